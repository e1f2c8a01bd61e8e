"""Is a completion's final answer mathematically the gold answer? Reward 1, 0, or none where nobody can tell.

Text -> typed value -> comparison by exact arithmetic, or to hundreds of digits at random points where a formula has
roots and the like. Nothing from the completion is ever run: no eval, no sympy parser, and every size is bounded before
anything is built.

Leaves out integrals, limits and what else grammar.py does not read: those answers are `unknown`, unless they are
spelled like the gold one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from grpo_math.types import Problem, UserError, Verdict
from grpo_math.verifiers._math.compare import same
from grpo_math.verifiers._math.conventions import Conventions, conventions
from grpo_math.verifiers._math.echo import is_echo
from grpo_math.verifiers._math.exact import BUDGET, Undecided
from grpo_math.verifiers._math.extract import final_answer, whole
from grpo_math.verifiers._math.literals import Unreadable, plain_number
from grpo_math.verifiers._math.numeric import context
from grpo_math.verifiers._math.read import MAX_CHARS, read
from grpo_math.verifiers._math.values import KINDS, Opaque, Scalar

CACHED = 1 << 14
Judged = tuple[bool | None, str]  # (the same, different or undecided; what decided it)


def verify(problem: Problem, completion: str, **options: Any) -> Verdict:
    """Compare the completion's final answer with `problem.answer`, or with any of `metadata["alternatives"]`.

    correct 1.0; wrong 0.0; no_answer 0.0 where the completion does not say which its answer is; unknown, without a
    reward, where an answer is over a bound or in a notation that is not read. A gold answer that cannot be read is our
    mistake: an error without reward. options: see conventions.Conventions; `metadata["conventions"]` of a problem,
    which a task may set, goes before them. Raises UserError for options that there are not.
    """
    rules = _rules(problem, options)
    answer, where = final_answer(completion, rules.answer_format)
    if answer is None:
        return Verdict(0.0, "no_answer", where)
    if len(answer) > MAX_CHARS:  # and nothing so long is kept in a cache or a log
        return Verdict(0.0, "wrong", f"the answer is longer than {MAX_CHARS:,} characters", answer[:MAX_CHARS])
    judged: list[Judged] = []
    for gold in _golds(problem):
        if complaint := _complaint(gold, rules):
            return Verdict(None, "error", f"gold answer of {problem.id}: {complaint}", answer)
        judged.append(_compared(gold, answer, rules))
        if judged[-1][0]:
            if problem.question and plain_number(answer) is None and is_echo(problem.question, gold, answer):
                return Verdict(0.0, "wrong", "a formula of the question, not worked out", answer)
            return Verdict(1.0, "correct", judged[-1][1], answer)
    unknown = next((how for verdict, how in judged if verdict is None), None)
    if unknown is None:
        return Verdict(0.0, "wrong", judged[0][1], answer)
    return Verdict(None if rules.unknown == "none" else 0.0, "unknown", unknown, answer)


def check(problem: Problem) -> str | None:
    """Why this gold answer cannot be compared with anything, or None."""
    try:
        rules = _rules(problem, {})
    except UserError as e:
        return str(e)
    return next((c for gold in _golds(problem) if (c := _complaint(gold, rules)) is not None), None)


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError, which names the key, the value and what it could be."""
    conventions(options)


def conventions_in_force(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every convention, for whoever writes down how answers were judged."""
    return asdict(conventions(options))


def equivalent(gold: str, candidate: str, **options: Any) -> bool | None:
    """Whether two answers are the same, bare or in $...$ or \\boxed{}; None where nobody can tell: the gold cannot be
    read, a formula is over the bounds, or its notation is not supported. options: see conventions.Conventions.

    A candidate that cannot be read is simply not the gold."""
    rules = conventions(options)
    gold, candidate = _stated(gold), _stated(candidate)
    if _complaint(gold, rules):
        return None
    return _compared(gold, candidate, rules)[0] if len(candidate) <= MAX_CHARS else False


def explain(problem: Problem, completion: str, **options: Any) -> list[tuple[str, str]]:
    """Where the answer was found, and how it and the gold answers are read, as (name, text), for a person to see."""
    rules = _rules(problem, options)
    BUDGET.reset()
    answer, where = final_answer(completion, rules.answer_format)
    read_as = [] if answer is None else [("read as", _described(answer, rules))]
    return [("found", where), *read_as, *(("gold", _described(gold, rules)) for gold in _golds(problem))]


def from_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """The problem and the text to judge of a line with `answer`, and `completion` (a whole text) or `candidate` (an
    answer that was extracted already). Raises UserError."""
    given = [key for key in ("completion", "candidate") if key in row]
    if len(given) != 1:
        raise UserError("it needs either completion or candidate")
    golds = row.get("answer")
    golds = golds if isinstance(golds, list) else [golds]
    if not golds or not all(isinstance(gold, str) for gold in golds):
        raise UserError(f"answer={row.get('answer')!r}: give a string, or a list of strings any of which is right")
    text, question = row[given[0]], row.get("question", row.get("problem", ""))
    for key, value in ((given[0], text), ("question", question)):
        if not isinstance(value, str):
            raise UserError(f"{key}={value!r}: give a string")
    rules = row.get("conventions", {})
    if not isinstance(rules, dict):
        raise UserError(f"conventions={rules!r}: give a mapping, such as {{'tolerance': 0.01}}")
    if given[0] == "candidate":
        rules = {**rules, "answer_format": "whole"}
    conventions(rules)
    metadata = {"conventions": rules, "alternatives": golds[1:]}
    return Problem(str(row.get("id")), "pairs", question, golds[0], metadata), text


def warm_up() -> None:
    """Load what the first formula with a root would have to wait for."""
    context()


def _rules(problem: Problem, options: Mapping[str, Any]) -> Conventions:
    own = problem.metadata.get("conventions")
    return conventions({**options, **own} if own else options)


def _golds(problem: Problem) -> tuple[str, ...]:
    """The right answers; of a worked solution what it boxes, has behind ####, or calls the answer."""
    return tuple(_stated(gold) for gold in (problem.answer, *problem.metadata.get("alternatives", ())))


def _stated(answer: str) -> str:
    return whole(answer)[0] or ""


@functools.lru_cache(maxsize=CACHED)
def _complaint(gold: str, rules: Conventions) -> str | None:
    """Why a gold answer is unusable, or None."""
    if not gold:
        return "it is empty"
    if plain_number(gold) is not None:
        return None
    BUDGET.reset()
    try:
        value = read(gold, rules.decimal_comma)
        return None if same(value, value, rules) else f"{gold[:80]!r} does not equal itself"
    except (Unreadable, Undecided) as e:
        return f"{gold[:80]!r} cannot be read: {e}"


@functools.lru_cache(maxsize=CACHED)
def _compared(gold: str, answer: str, rules: Conventions) -> Judged:
    """For a gold that can be read, and an answer within the bounds."""
    BUDGET.reset()
    try:
        outcome = same(read(gold, rules.decimal_comma), read(answer, rules.decimal_comma), rules)
        return outcome.same, outcome.how
    except Unreadable as e:
        return False, f"{answer[:80]!r} cannot be read: {e}"
    except Undecided as e:
        return None, f"undecided: {e}"


def _described(text: str, rules: Conventions) -> str:
    try:
        value = read(text, rules.decimal_comma)
    except (Unreadable, Undecided) as e:
        return f"{text} (cannot be read: {e})"
    match value:
        case Opaque(why=why):
            return f"{text} ({KINDS[Opaque]}: {why})"
        case Scalar(node=("num", Fraction() as number), unit=unit):
            kind = "integer" if number.denominator == 1 else "rational number"
            return f"{text} ({kind}{f', unit {unit}' if unit else ''})"
    return f"{text} ({KINDS[type(value)]})"


def _example(answer: str, completion: str, reward: float, question: str = "") -> tuple[Problem, str, float]:
    return Problem(f"example/{answer}", "example", question, answer), completion, reward


EXAMPLES = [
    _example("18", "She makes 9 * 2 = $18 a day. The answer is $\\boxed{18}$.", 1.0),
    _example("18", "The answer is 18.", 1.0),
    _example("18", "She makes 18 dollars.", 0.0),
    _example("5", "\\boxed{-5}", 0.0),
    _example("1200", "\\boxed{\\$1{,}200.00}", 1.0),
    _example("\\frac{1}{2}", "\\boxed{0.5}", 1.0),
    _example("\\frac{1}{3}", "\\boxed{0.33}", 0.0),
    _example("6", "<think> \\boxed{6}? </think> It is \\boxed{7}.", 0.0),
    _example("(2,\\infty)", "\\boxed{x > 2}", 1.0),
    _example("3, 5", "\\boxed{5 \\text{ and } 3}", 1.0),
    _example("3", "\\boxed{3 \\text{ or } 5}", 0.0),
    _example("2\\sqrt{5}", "\\boxed{\\sqrt{20}}", 1.0),
    _example("x^2 + 2x + 1", "\\boxed{(x+1)^2}", 1.0),
    _example("14", "\\boxed{2+3*4}", 0.0, "What is 2+3*4?"),
]
