"""Multi-digit addition and subtraction with worked solutions, made on the spot: no download, endless, never leaked.

The test split holds the questions whose checksum is 0 modulo 10 and the train split the others, so that no training
problem, whatever its seed, is ever a test problem.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
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
) -> Iterator[Problem]:
    """Endless for `train`; TEST_PROBLEMS distinct ones for `test`.

    operations: any of "+" and "-". Numbers have min_digits to max_digits digits; a difference is never negative.
    metadata["solution"] is the worked solution, a line per digit from the right, for supervised fine-tuning."""
    if path is not None:
        raise UserError(f"task.path={path}: arithmetic makes its own problems; leave task.path out")
    if split not in ("train", "test"):
        raise UserError(f"task.split={split}: arithmetic has the splits train and test")
    if not operations or set(operations) - set("+-"):
        raise UserError(f"task.options.operations={operations!r}: give any of '+' and '-', for example '+-'")
    if not 1 <= min_digits <= max_digits:
        raise UserError(f"task.options: min_digits={min_digits}, max_digits={max_digits}; try 2 and 4")
    rng = random.Random(f"{split}/{seed}")
    return (
        _train(rng, min_digits, max_digits, operations)
        if split == "train"
        else _test(rng, min_digits, max_digits, operations)
    )


def _train(rng: random.Random, min_digits: int, max_digits: int, operations: str) -> Iterator[Problem]:
    for number in itertools.count():
        problem = _draw(rng, f"train/{number}", min_digits, max_digits, operations)
        if not _held_out(problem.question):
            yield problem


def _test(rng: random.Random, min_digits: int, max_digits: int, operations: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for _ in range(100 * TEST_PROBLEMS):  # short numbers may not have that many questions
        problem = _draw(rng, f"test/{len(seen)}", min_digits, max_digits, operations)
        if _held_out(problem.question) and problem.question not in seen:
            seen.add(problem.question)
            yield problem
        if len(seen) == TEST_PROBLEMS:
            return


def _held_out(question: str) -> bool:
    return crc32(question.encode()) % 10 == 0


def _draw(rng: random.Random, name: str, min_digits: int, max_digits: int, operations: str) -> Problem:
    a, b = (_number(rng, rng.randint(min_digits, max_digits)) for _ in range(2))
    operation = rng.choice(operations)
    if operation == "-":
        a, b = max(a, b), min(a, b)
    question = f"{a}{operation}{b}=?"
    answer = a + b if operation == "+" else a - b
    steps = addition_steps(a, b) if operation == "+" else subtraction_steps(a, b)
    solution = "\n".join([*steps, f"\\boxed{{{answer}}}"])
    return Problem(f"arithmetic/{name}", "arithmetic", question, str(answer), {"solution": solution})


def _number(rng: random.Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def addition_steps(a: int, b: int) -> list[str]:
    """347+85 -> ["7+5=12", "4+8+1=13", "3+0+1=4"]: a column a line, from the right, the carry as a third term."""
    lines, carry = [], 0
    while a or b:
        terms = f"{a % 10}+{b % 10}" + ("+1" if carry else "")
        column = a % 10 + b % 10 + carry
        lines.append(f"{terms}={column}")
        a, b, carry = a // 10, b // 10, column // 10
    return lines


def subtraction_steps(a: int, b: int) -> list[str]:
    """432-85 -> ["12-5=7", "13-8-1=4", "4-0-1=3"]: ten is added where a column is short, the borrow is a third term."""
    lines, borrow = [], 0
    while a or b:
        short = a % 10 < b % 10 + borrow
        top = a % 10 + 10 * short
        terms = f"{top}-{b % 10}" + ("-1" if borrow else "")
        lines.append(f"{terms}={top - b % 10 - borrow}")
        a, b, borrow = a // 10, b // 10, int(short)
    return lines
