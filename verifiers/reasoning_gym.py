"""The score that reasoning-gym gives an answer to one of its own questions, 0 to 1, by the scorer of that generator.

What a scorer of reasoning-gym 0.1.25 takes amiss is kept from it: text that it would run as Python, text that it
fails on, and text that it takes for right whatever the question was (ASKED). The generator `composite` is left out: it
mixes the others, and lists of tasks do that here.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from fractions import Fraction
from types import ModuleType
from typing import Any

from grpo_math.find import nearest
from grpo_math.types import Problem, UserError, Verdict
from grpo_math.verifiers._math.extract import final_answer
from grpo_math.verifiers.countdown import fault

Entry = Mapping[str, Any]

FORMATS = ("tag:answer", "boxed")
PATIENCE_S = 10.0
MAX_CHARS = 20_000  # the largest board has some 2,000


def verify(problem: Problem, completion: str, *, partial: bool = True) -> Verdict:
    """correct where the package's score is 1, else wrong with that score for a reward; no_answer 0.0 where there is
    neither <answer></answer> nor \\boxed{}.

    `metadata` has dataset, the generator's name; config, its options; entry, what it made. partial: whether scores
    below 1 are the reward, as the package means them (often 0.01 for any text of the right form), or else 0."""
    text, where = final_answer(completion, FORMATS)
    if text is None:
        return Verdict(0.0, "no_answer", where)
    if len(text) > MAX_CHARS:
        return Verdict(0.0, "wrong", f"the answer is longer than {MAX_CHARS:,} characters", text[:MAX_CHARS])
    name, entry = problem.metadata["dataset"], problem.metadata["entry"]
    if name in ASKED and not ASKED[name](text, entry):
        return Verdict(0.0, "wrong", f"nothing that the scorer of {name} is asked about", text)
    score_answer = _scorer(name, json.dumps(problem.metadata.get("config", {}), sort_keys=True))
    score = float(score_answer(text, copy.deepcopy(entry)))  # a copy: the scorer of knight_swap writes into it
    if score >= 1:
        return Verdict(score, "correct", "", text)
    return Verdict(score if partial else 0.0, "wrong", f"score {score:.3g}", text)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError."""
    if not isinstance(partial := options.get("partial", True), bool):
        raise UserError(f"partial={partial!r}: the verifier reasoning_gym takes true or false")


def from_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """The problem and the text to judge of a line with dataset, entry (as the package made it), and completion.

    Raises UserError."""
    kinds = (("dataset", str, "a generator's name"), ("entry", dict, "an entry"), ("completion", str, "a text"))
    for key, kind, words in kinds:
        if not isinstance(row.get(key), kind):
            raise UserError(f"{key}={row.get(key)!r}: give {words}")
    metadata = {"dataset": known(row["dataset"]), "config": row.get("config", {}), "entry": row["entry"]}
    return Problem(str(row.get("id")), "pairs", "", str(row["entry"].get("answer")), metadata), row["completion"]


def patience(problem: Problem, **_: Any) -> float:
    """Seconds that a verdict may take: the first of a generator reads its data, and sympy simplifies at leisure."""
    return PATIENCE_S


def warm_up() -> None:
    """Import the package, which takes seconds. Without it there is nothing to score, and the task has said so."""
    if importlib.util.find_spec("reasoning_gym"):
        package()


def package() -> ModuleType:
    """reasoning_gym. Raises UserError where it is not installed."""
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as e:
        raise UserError(
            f"the task and the verifier reasoning_gym need the package reasoning-gym ({e}): "
            "pip install 'grpo-math[reasoning-gym]'"
        ) from e


def generators() -> dict[str, tuple[Any, Any]]:
    """Each generator's name -> (its class, the class of its options)."""
    package()
    datasets = importlib.import_module("reasoning_gym.factory").DATASETS
    return {name: pair for name, pair in sorted(datasets.items()) if name != "composite"}


def known(name: str) -> str:
    """`name`, where a generator has it. Raises UserError."""
    if name in (names := generators()):
        return name
    near = nearest(name, names)
    raise UserError(
        f"dataset={name!r}: reasoning-gym has no such generator{f'; did you mean {near}?' if near else ''}\n"
        f"  known: {', '.join(names)}"
    )


def make_dataset(name: str, options: Mapping[str, Any], **own: int) -> Any:
    """The package's dataset of `name`: [i] makes its i-th entry. own: its seed and size. Raises UserError."""
    return generators()[known(name)][0](checked(name, options, **own))


def checked(name: str, options: Mapping[str, Any], **own: int) -> Any:
    """The package's object for the options of a generator. Raises UserError."""
    config = generators()[known(name)][1]
    names = {field.name for field in fields(config)} - {"seed", "size"}
    for option in options:
        if option not in names:
            near = nearest(option, names)
            raise UserError(
                f"task.options.{option}={options[option]!r}: the generator {name} takes "
                f"{', '.join(sorted(names)) or 'no options'}{f'; did you mean {near}?' if near else ''}"
            )
    try:
        made = config(**options, **own)
        getattr(made, "validate", lambda: None)()
    except (AssertionError, TypeError, ValueError) as e:  # how options say that a value is wrong
        raise UserError(f"task.options={dict(options)}: the generator {name} refuses this: {e or 'no reason'}") from e
    return made


@functools.lru_cache(maxsize=16)
def _scorer(name: str, options: str) -> Callable[[str, Entry], float]:
    return make_dataset(name, json.loads(options)).score_answer


def _like(pattern: str) -> Callable[[str, Entry], bool]:
    compiled = re.compile(pattern)
    return lambda text, _: compiled.fullmatch(text) is not None


def _coin_flip(text: str, entry: Entry) -> bool:
    """Within the scorer's tolerance: it also gives 1 for every beginning of the right number, such as "0"."""
    plain = text.replace(",", "")
    if not re.fullmatch(r"\d{1,30}(?:\.\d{1,30}(?:e-\d{1,2})?|/0*[1-9]\d{0,29})?", plain, re.ASCII):
        return False
    return abs(Fraction(plain) - Fraction(entry["answer"].replace(",", ""))) <= Fraction(1, 10_000)


def _rows(text: str, _: Entry) -> bool:
    """A list in JSON, of lists or of numbers: of anything else the scorer of game_of_life may fail."""
    try:
        board = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(board, list) and all(isinstance(row, list | int) for row in board)


_AGENT = re.compile(r"Agent\[\d{1,9}(?:\.\d{1,9})?,\s*\d{1,9}(?:\.\d{1,9})?\]", re.ASCII)
_MOVE = re.compile(r"move\(\w+,\s(?:square\[\d{1,9}(?:\.\d{1,9})?,\s*\d{1,9}(?:\.\d{1,9})?\]|target_\w+)\)", re.ASCII)


def _plans(text: str, _: Entry) -> bool:
    """A list of plans in the form that the question of boxnet asks for."""
    try:
        plans = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(plans, list) and all(isinstance(plan, dict) and _is_plan(plan.items()) for plan in plans)


def _is_plan(moves: Iterable[tuple[str, object]]) -> bool:
    return all(_AGENT.fullmatch(agent) and isinstance(move, str) and _MOVE.fullmatch(move) for agent, move in moves)


# Of names a formula may have letters and these: sympy's parser evaluates its text as Python. Not Integral:
# with it the question itself is a right answer. It is the package's own where sympy finds no other.
_FUNCTIONS = "a?(?:sin|cos|tan|cot|sec|csc)h?|exp|log|ln|sqrt|pi"
_FORMULA = rf"(?:\d+(?:\.\d+)?|(?:{_FUNCTIONS}|[A-Za-z])(?![A-Za-z_])|[-+*/^(), \n])*"
_ITEMS = r"[A-Za-z0-9_\s\[\],'\"]*"  # no call and no attribute can be written with these

# Generator -> whether its scorer may be asked about a text. Why each stands here:
ASKED: dict[str, Callable[[str, Entry], bool]] = {
    # eval of the answer
    "binary_matrix": _like(_ITEMS),
    "n_queens": _like(_ITEMS),
    "spiral_matrix": _like(_ITEMS),
    "string_insertion": _like(_ITEMS),
    # sympy.parse_expr of the answer, which is an eval too
    "countdown": _like(r"(?!.*\*\s*\*)[0-9+\-*/() ]*"),  # no 1.5 either, which counts as the numbers 1 and 5
    "intermediate_integration": _like(_FORMULA),
    "polynomial_multiplication": _like(_FORMULA),
    "simple_integration": _like(_FORMULA),
    # the same, and any four numbers that make 24 are taken for right, and 24.9 for 24
    "puzzle24": lambda text, entry: fault(text, entry["metadata"]["numbers"], 24) is None,
    # takes any text for right
    "game_of_life_halting": lambda text, entry: text.lower() == entry["answer"].lower(),
    "coin_flip": _coin_flip,
    "complex_arithmetic": _like(r"[-+0-9.ij*() ]{1,80}"),  # not nan
    # raise for what is no answer of theirs
    "boxnet": _plans,
    "calendar_arithmetic": _like(r"[-+]?[0-9]{1,30}|[A-Za-z]{1,20}"),
    "game_of_life": _rows,
    "prime_factorization": _like(r"[0-9]{1,99}(?:\s*×\s*[0-9]{1,99})*"),
}

_PROBLEM = Problem(
    "example", "reasoning_gym", "4 + 3 = ?", "7", {"dataset": "chain_sum", "entry": {"answer": "7", "metadata": {}}}
)

EXAMPLES = [(_PROBLEM, "It is 7.", 0.0), (_PROBLEM, "<answer></answer>", 0.0)]
if importlib.util.find_spec("reasoning_gym"):
    EXAMPLES += [
        (_PROBLEM, "4 + 3 is <answer>7</answer>", 1.0),
        (_PROBLEM, "4 + 3 is \\boxed{7}", 1.0),
        (_PROBLEM, "<answer>8</answer>", 0.0),
        (_PROBLEM, "<answer>about 7</answer>", 1 / 7),
    ]
