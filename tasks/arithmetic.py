"""Multi-digit addition and subtraction with worked solutions, made on the spot: no download, endless, never leaked.

The test split holds the questions whose checksum is 0 modulo 10 and the train split the others, so that no training
problem, whatever its seed, is ever a test problem.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

from grpo_math.types import Problem, UserError

VERIFIER = "math"
TEMPLATE = "{question}\n"
TEST_PROBLEMS = 1000


def load(
    split: str,
    path: str | None = None,
    *,
    seed: int = 0,
    min_digits: int = 2,
    max_digits: int = 4,
    operations: str = "+-",
    slips: float = 0.0,
) -> Iterator[Problem]:
    """Endless for `train`; TEST_PROBLEMS distinct ones for `test`.

    operations: any of "+" and "-". Numbers have min_digits to max_digits digits; a difference is never negative.
    metadata["solution"] is a worked solution, a line per column from the right, for supervised fine-tuning. slips: the
    share of its lines that are off by one, as a teacher's may be; what follows builds on the slip. The answer, which
    the verifier compares with, is always right."""
    if path is not None:
        raise UserError(f"task.path={path}: arithmetic makes its own problems; leave task.path out")
    if split not in ("train", "test"):
        raise UserError(f"task.split={split}: arithmetic has the splits train and test")
    if not operations or set(operations) - set("+-"):
        raise UserError(f"task.options.operations={operations!r}: give any of '+' and '-', for example '+-'")
    if not 1 <= min_digits <= max_digits:
        raise UserError(f"task.options: min_digits={min_digits}, max_digits={max_digits}; try 2 and 4")
    if not 0 <= slips < 1:
        raise UserError(f"task.options.slips={slips}: give a share of at least 0 and below 1")
    maker = Maker(random.Random(f"{split}/{seed}"), min_digits, max_digits, operations, slips)
    return maker.train() if split == "train" else maker.test()


@dataclass(frozen=True)
class Maker:
    """Draws problems from `rng`."""

    rng: random.Random
    min_digits: int
    max_digits: int
    operations: str
    slips: float

    def train(self) -> Iterator[Problem]:
        for number in itertools.count():
            problem = self.draw(f"train/{number}")
            if not held_out(problem.question):
                yield problem

    def test(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for _ in range(100 * TEST_PROBLEMS):  # short numbers may not have that many questions
            problem = self.draw(f"test/{len(seen)}")
            if held_out(problem.question) and problem.question not in seen:
                seen.add(problem.question)
                yield problem
            if len(seen) == TEST_PROBLEMS:
                return

    def draw(self, name: str) -> Problem:
        a, b = self.number(), self.number()
        operation = self.rng.choice(self.operations)
        if operation == "-":
            a, b = max(a, b), min(a, b)
        answer = a + b if operation == "+" else a - b
        lines, result = (addition if operation == "+" else subtraction)(a, b, self.slip)
        solution = "\n".join([*lines, f"\\boxed{{{result}}}"])
        question = f"{a}{operation}{b}=?"
        return Problem(f"arithmetic/{name}", "arithmetic", question, str(answer), {"solution": solution})

    def number(self) -> int:
        digits = self.rng.randint(self.min_digits, self.max_digits)
        return self.rng.randint(10 ** (digits - 1), 10**digits - 1)

    def slip(self, value: int, largest: int) -> int:
        """value, or now and then one beside it that is still within 0 and `largest`."""
        if self.rng.random() >= self.slips:
            return value
        return self.rng.choice([v for v in (value - 1, value + 1) if 0 <= v <= largest])


def held_out(question: str) -> bool:
    return crc32(question.encode()) % 10 == 0


Slip = Callable[[int, int], int]


def addition(a: int, b: int, slip: Slip) -> tuple[list[str], int]:
    """347+85 -> ["7+5=12", "4+8+1=13", "3+0+1=4"], 432: a column a line, the carry as a third term."""
    lines, digits, carry = [], [], 0
    while a or b:
        column = slip(a % 10 + b % 10 + carry, 19)
        lines.append(f"{a % 10}+{b % 10}" + ("+1" if carry else "") + f"={column}")
        digits.append(column % 10)
        a, b, carry = a // 10, b // 10, column // 10
    return lines, from_right([*digits, carry])


def subtraction(a: int, b: int, slip: Slip) -> tuple[list[str], int]:
    """432-85 -> ["12-5=7", "13-8-1=4", "4-0-1=3"], 347: a short column gets ten, the borrow is a third term."""
    lines, digits, borrow = [], [], 0
    while a or b:
        short = int(a % 10 < b % 10 + borrow)
        top = a % 10 + 10 * short
        column = slip(top - b % 10 - borrow, 9)
        lines.append(f"{top}-{b % 10}" + ("-1" if borrow else "") + f"={column}")
        digits.append(column)
        a, b, borrow = a // 10, b // 10, short
    return lines, from_right(digits)


def from_right(digits: list[int]) -> int:
    """[2, 3, 4] -> 432"""
    return sum(digit * 10**place for place, digit in enumerate(digits))
