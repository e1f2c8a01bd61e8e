"""Numbers and a target, to be reached with + - * / (the game Countdown): made on the spot, or from a file.

Every problem has a solution, being made from one. The test split holds the problems whose checksum is 0 modulo 10, the
train split the others, so that no training problem, whatever its seed, is a test problem with its numbers in another
order. Left out: the 490,364 puzzles Jiayi-Pan/Countdown-Tasks-3to4 of the Hub, which have one split alone; as a file of
JSON lines they can be given as `path`.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, overload
from zlib import crc32

from grpo_math.forms import Form
from grpo_math.rows import read_rows
from grpo_math.types import Problem, UserError
from grpo_math.verifiers.countdown import fault, puzzle_of

VERIFIER = "countdown"
PROMPTS = {
    "boxed@1": Form(
        "{question} You can use the operations +, -, *, / and parentheses, and must use each number exactly once. "
        "Please reason step by step, and put the expression within \\boxed{}."
    ),
    "tinyzero@1": Form(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
        "User: {question} You can use basic arithmetic operations (+, -, *, /) and each number can only be used once. "
        "Show your work in <think> </think> tags. And return the final answer in <answer> </answer> tags, for example "
        "<answer> (1 + 2) / 3 </answer>.\n"
        "Assistant: Let me solve this step by step.\n<think>",
        chat=False,
        source="Jiayi-Pan/TinyZero, examples/data_preprocess/countdown.py, template_type base",
    ),
}
TEST_PROBLEMS = 1000
MOST_NUMBERS = 6  # as in the game; the search for a solution of a puzzle from a file takes ever longer
MAX_DRAWS = 10_000  # in a row of which no problem comes, and none will
MAX_REPEATS = 500  # in a row that are there already, and few others will come


def load(
    split: str,
    path: str | None = None,
    *,
    seed: int = 0,
    min_numbers: int = 3,
    max_numbers: int = 4,
    max_number: int = 99,
    max_target: int = 999,
    operations: str = "+-*/",
) -> Iterator[Problem] | Sequence[Problem]:
    """Endless for `train`; TEST_PROBLEMS distinct ones for `test`, or fewer where there are no more. Raises UserError.

    A problem has min_numbers to max_numbers numbers of 1 to max_number and a target of 1 to max_target. operations:
    what the solution is made of, any of + - * /; each of its steps gives a whole number of 1 to max_target. metadata:
    numbers, target, and solution, a step a line and the expression in a box, for supervised training.

    path: JSON lines with `nums` or `numbers`, and `target`; may contain {split}. The options above then do nothing.
    Solutions are searched for as problems are asked for: about 0.3 ms for four numbers, 20 ms where there is none."""
    if path is not None:
        return FromFile(split, path.replace("{split}", split))
    if split not in ("train", "test"):
        raise UserError(f"task.split={split}: countdown has the splits train and test")
    if not operations or set(operations) - set("+-*/"):
        raise UserError(f"task.options.operations={operations!r}: give any of + - * /, for example '+-'")
    if not 2 <= min_numbers <= max_numbers <= MOST_NUMBERS:
        raise UserError(
            f"task.options: min_numbers={min_numbers}, max_numbers={max_numbers}; give 2 to {MOST_NUMBERS}, such as 3 "
            "and 4"
        )
    for name, value in (("max_number", max_number), ("max_target", max_target)):
        if not 1 <= value < 10**9:
            raise UserError(f"task.options.{name}={value}: give a number of at least 1 and at most 9 digits")
    maker = Maker(random.Random(f"{split}/{seed}"), min_numbers, max_numbers, max_number, max_target, operations)
    return maker.train() if split == "train" else maker.test()


class Term(NamedTuple):
    """A part of an expression: its value, how it is written, and the sign that was put last ("" for a number)."""

    value: int | Fraction
    text: str
    sign: str = ""


@dataclass(frozen=True)
class Maker:
    """Draws problems from `rng`."""

    rng: random.Random
    min_numbers: int
    max_numbers: int
    max_number: int
    max_target: int
    operations: str

    def train(self) -> Iterator[Problem]:
        for number in itertools.count():
            problem = self.draw(f"train/{number}", of_test=False)
            if problem is None:
                raise self.nothing()
            yield problem

    def test(self) -> Iterator[Problem]:
        seen: set[str] = set()
        repeats = 0  # few and small numbers may not make that many problems
        while len(seen) < TEST_PROBLEMS and repeats < MAX_REPEATS:
            problem = self.draw(f"test/{len(seen)}", of_test=True)
            if problem is None:
                break
            name = key(problem.metadata["numbers"], problem.metadata["target"])
            if name in seen:
                repeats += 1
            else:
                repeats = 0
                seen.add(name)
                yield problem
        if not seen:
            raise self.nothing()

    def draw(self, name: str, of_test: bool) -> Problem | None:
        """The next problem of the split, or None where none comes."""
        for _ in range(MAX_DRAWS):
            count = self.rng.randint(self.min_numbers, self.max_numbers)
            numbers = [self.rng.randint(1, self.max_number) for _ in range(count)]
            made = self.expression(numbers)
            if made is not None and held_out(numbers, int(made[0].value)) == of_test:
                return problem_of(f"countdown/{name}", numbers, int(made[0].value), *made)
        return None

    def expression(self, numbers: Sequence[int]) -> tuple[Term, list[str]] | None:
        """All numbers put together in a random order, and the steps; None where no target comes of it."""
        terms, steps = [Term(n, str(n)) for n in numbers], []
        while len(terms) > 1:
            low, high = sorted((terms.pop(self.rng.randrange(len(terms))) for _ in range(2)), key=lambda t: t.value)
            joined = [join(high, low, sign) for sign in self.operations if sign != "/" or low.value != 1]
            within = [t for t in joined if t and isinstance(t.value, int) and 1 <= t.value <= self.max_target]
            if not within:
                return None
            terms.append(self.rng.choice(within))
            steps.append(_step(high, low, terms[-1]))
        return terms[0], steps

    def nothing(self) -> UserError:
        return UserError(
            f"task.options: {self.min_numbers} to {self.max_numbers} numbers of 1 to {self.max_number} with the "
            f"operations {self.operations} hardly ever give steps of 1 to {self.max_target}, or hardly any problems; "
            "raise max_target or max_number, or allow more operations"
        )


class FromFile(Sequence[Problem]):
    """The puzzles of a file, each solved when it is asked for: a limit spares the others. Raises UserError."""

    def __init__(self, split: str, path: str) -> None:
        self.split, self.rows = split, []
        for number, row in read_rows(path, ()):
            try:
                numbers, target = puzzle_of(row)
            except UserError as e:
                raise UserError(f"{path}:{number}: {e}; mend or delete the row") from e
            if len(numbers) > MOST_NUMBERS:
                raise UserError(f"{path}:{number}: {len(numbers)} numbers; countdown takes up to {MOST_NUMBERS}")
            self.rows.append((number, f"{path}:{number}", numbers, target))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number, source, numbers, target = self.rows[index]
        name = f"countdown/{self.split}/{number}"
        found = solve(numbers, target)
        if found is None:  # the verifier's check leaves it out, and says why
            return Problem(name, "countdown", question(numbers, target), "", _metadata(numbers, target, source=source))
        return problem_of(name, numbers, target, *found, source=source)


def problem_of(
    name: str, numbers: Sequence[int], target: int, term: Term, steps: Sequence[str], **more: Any
) -> Problem:
    assert fault(term.text, numbers, target) is None, (term, numbers, target)
    solution = "\n".join([*steps, f"\\boxed{{{term.text}}}"])
    metadata = _metadata(numbers, target, solution=solution, **more)
    return Problem(name, "countdown", question(numbers, target), term.text, metadata)


def _metadata(numbers: Sequence[int], target: int, **more: Any) -> dict[str, Any]:
    return {"numbers": list(numbers), "target": target, **more}


def question(numbers: Sequence[int], target: int) -> str:
    """In TinyZero's words, which its prompt goes on from."""
    return f"Using the numbers {list(numbers)}, create an equation that equals {target}."


def key(numbers: Sequence[int], target: int) -> str:
    """The same for the same puzzle in another order."""
    return f"{sorted(numbers)} {target}"


def held_out(numbers: Sequence[int], target: int) -> bool:
    return crc32(key(numbers, target).encode()) % 10 == 0


def join(a: Term, b: Term, sign: str) -> Term | None:
    """a sign b, in no more parentheses than it needs; None for a division by zero."""
    if sign == "/" and not b.value:
        return None
    value = _OPERATIONS[sign](a.value, b.value)
    left = f"({a.text})" if sign in "*/" and a.sign in ("+", "-") else a.text
    right = f"({b.text})" if b.sign in _TIGHTER[sign] else b.text
    return Term(value, f"{left}{sign}{right}", sign)


def _divide(a: int | Fraction, b: int | Fraction) -> int | Fraction:
    quotient = Fraction(a) / b
    return int(quotient) if quotient.denominator == 1 else quotient


_OPERATIONS: dict[str, Callable[[Any, Any], int | Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}
# which expressions need parentheses to the right of a sign
_TIGHTER: dict[str, tuple[str, ...]] = {"+": (), "-": ("+", "-"), "*": ("+", "-"), "/": ("+", "-", "*", "/")}


def _step(a: Term, b: Term, joined: Term) -> str:
    return f"{_written(a)}{joined.sign}{_written(b)}={joined.value}"


def _written(term: Term) -> str:
    """8/3 in parentheses, so that a step with a fraction reads as what it is."""
    return f"({term.value})" if "/" in str(term.value) else str(term.value)


def solve(numbers: Sequence[int], target: int) -> tuple[Term, list[str]] | None:
    """An expression of all `numbers` with the value `target` and its steps, or None where there is none.

    Whole steps are tried first, which is far quicker and nearly always enough; then all."""
    start = [Term(n, str(n)) for n in numbers]
    return _search(start, target, True, set()) or _search(start, target, False, set())


def _search(
    terms: list[Term], target: int, whole: bool, dead: set[tuple[int | Fraction, ...]]
) -> tuple[Term, list[str]] | None:
    """dead: the values of terms that lead nowhere, which grows; many orders of the same steps end in the same ones."""
    if len(terms) == 1:
        return (terms[0], []) if terms[0].value == target else None
    terms = sorted(terms, key=lambda term: -term.value)
    values = tuple(term.value for term in terms)
    if values in dead:
        return None
    for i, j in itertools.combinations(range(len(terms)), 2):
        rest = [term for place, term in enumerate(terms) if place not in (i, j)]
        a, b = terms[i], terms[j]
        for first, second, sign in ((a, b, "+"), (a, b, "-"), (a, b, "*"), (a, b, "/"), (b, a, "-"), (b, a, "/")):
            joined = join(first, second, sign)
            if joined is None or (whole and not (isinstance(joined.value, int) and joined.value >= 0)):
                continue
            if found := _search([*rest, joined], target, whole, dead):
                return found[0], [_step(first, second, joined), *found[1]]
    dead.add(values)
    return None
