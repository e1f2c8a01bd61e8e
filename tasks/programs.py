"""Short Python functions of two whole numbers from a description, made on the spot: no download, endless, never leaked.

    # add 3; if odd, negate; y times, subtract 2
    def f(x, y):

A step changes x, perhaps under a condition or y times over; the function returns x at the end. Hidden calls judge the
program, whatever its form. They are chosen by mutation: see `choose_calls`.

The test split holds the questions whose checksum is 0 modulo 10 and the train split the others, so that no training
problem, whatever its seed, is ever a test problem.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np

from grpo_math.types import Problem, UserError

VERIFIER = "code"
TEMPLATE = "# {question}\ndef f(x, y):\n"
TEST_PROBLEMS = 1000
MAX_STEPS = 4  # values of more steps could leave 64 bits: 72 squared three times is 7e14, four times 5e29

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Operand = int | str | None  # a constant, "y", or none


@dataclass(frozen=True)
class Action:
    """What a step does to x, and the actions that it is taken for."""

    code: str
    apply: Callable[[Numbers, Any], Numbers]
    mistakes: tuple[str, ...]
    takes_y: bool = True  # y can be 0, by which nothing can be divided
    repeats: bool = False  # whether doing it y times is worth a question


@dataclass(frozen=True)
class Condition:
    code: str
    holds: Callable[[Numbers, Any], Any]
    mistakes: tuple[str, ...]
    asked: bool = True  # the others are only there to be taken for one that is


ACTIONS = {
    "add {n}": Action("x += {n}", lambda x, n: x + n, ("subtract {n}",), repeats=True),
    "subtract {n}": Action("x -= {n}", lambda x, n: x - n, ("add {n}",), repeats=True),
    "take from {n}": Action("x = {n} - x", lambda x, n: n - x, ("subtract {n}",)),
    "multiply by {n}": Action("x *= {n}", lambda x, n: x * n, ("add {n}",)),
    "divide by {n}": Action("x //= {n}", lambda x, n: x // n, ("modulo {n}",), takes_y=False),
    "modulo {n}": Action("x %= {n}", lambda x, n: x % n, ("divide by {n}",), takes_y=False),
    "at most {n}": Action("x = min(x, {n})", np.minimum, ("at least {n}",)),
    "at least {n}": Action("x = max(x, {n})", np.maximum, ("at most {n}",)),
    "double": Action("x += x", lambda x, _: x * 2, ("square",), repeats=True),
    "square": Action("x *= x", lambda x, _: x * x, ("double",)),
    "negate": Action("x = -x", lambda x, _: -x, ("absolute",)),
    "absolute": Action("x = abs(x)", lambda x, _: np.abs(x), ("negate",)),
}
CONDITIONS = {
    "negative": Condition("x < 0", lambda x, _: x < 0, ("positive", "not positive")),
    "odd": Condition("x % 2 == 1", lambda x, _: x % 2 == 1, ("even",)),
    "even": Condition("x % 2 == 0", lambda x, _: x % 2 == 0, ("odd",)),
    "above {n}": Condition("x > {n}", lambda x, n: x > n, ("below {n}", "from {n} up")),
    "below {n}": Condition("x < {n}", lambda x, n: x < n, ("above {n}", "up to {n}")),
    "positive": Condition("x > 0", lambda x, _: x > 0, (), asked=False),
    "not positive": Condition("x <= 0", lambda x, _: x <= 0, (), asked=False),
    "from {n} up": Condition("x >= {n}", lambda x, n: x >= n, (), asked=False),
    "up to {n}": Condition("x <= {n}", lambda x, n: x <= n, (), asked=False),
}
ASKED = [words for words, condition in CONDITIONS.items() if condition.asked]
REPEATED = [words for words, action in ACTIONS.items() if action.repeats]

# every call there could be, in an order without a pattern, so that a cyclic walk from anywhere meets all kinds
SIDE = range(-8, 9)
CALLS = random.Random(0).sample([(x, y) for x in SIDE for y in SIDE], len(SIDE) ** 2)
X, Y = (np.array(column, dtype=np.int64) for column in zip(*CALLS, strict=True))
MIN_CALLS, MAX_CALLS = 5, 6
MIN_RESULTS = 3  # different ones among the calls of a problem, so that no constant is near


def load(
    split: str,
    path: str | None = None,
    *,
    seed: int = 0,
    min_steps: int = 2,
    max_steps: int = 3,
    conditions: float = 0.3,
    loops: float = 0.1,
    slips: float = 0.0,
) -> Iterator[Problem]:
    """Endless for `train`; TEST_PROBLEMS distinct ones for `test`.

    conditions, loops: the shares of steps that begin with "if ...," and "y times,". The answer is the body of a right
    function, which metadata["prompt"] begins; metadata["tests"] has the calls that judge one. metadata["solution"] is
    for supervised fine-tuning: the answer, but for slips, the share of its steps that do something similar and wrong,
    as a teacher's may."""
    if path is not None:
        raise UserError(f"task.path={path}: programs makes its own problems; leave task.path out")
    if split not in ("train", "test"):
        raise UserError(f"task.split={split}: programs has the splits train and test")
    if not 1 <= min_steps <= max_steps <= MAX_STEPS:
        raise UserError(
            f"task.options: min_steps={min_steps}, max_steps={max_steps}; give 1 to {MAX_STEPS}, for example 2 and 3"
        )
    if not 0 <= slips < 1:
        raise UserError(f"task.options.slips={slips}: give a share of at least 0 and below 1")
    if min(conditions, loops) < 0 or conditions + loops > 1:
        raise UserError(
            f"task.options: conditions={conditions}, loops={loops}; give shares that add up to 1 at most, for example "
            "0.3 and 0.1"
        )
    # what the teacher does has a source of its own, so that slips do not change the questions
    rng, teacher = random.Random(f"{split}/{seed}"), random.Random(f"teacher/{split}/{seed}")
    maker = Maker(rng, teacher, range(min_steps, max_steps + 1), conditions, loops, slips)
    return maker.train() if split == "train" else maker.test()


def gold_completion(problem: Problem) -> str:
    """The body alone, as a policy writes it: the head is in the prompt."""
    return problem.answer


@dataclass(frozen=True)
class Step:
    """`action` with operand n, where `condition` with operand m holds, or `loop`: y times over."""

    action: str
    n: Operand = None
    condition: str | None = None
    m: Operand = None
    loop: bool = False

    def words(self) -> str:
        before = "y times, " if self.loop else f"if {fill(self.condition, self.m)}, " if self.condition else ""
        return before + fill(self.action, self.n)

    def lines(self) -> list[str]:
        line = fill(ACTIONS[self.action].code, self.n)
        if self.loop:
            return ["for i in range(y):", f" {line}"]
        if self.condition:
            return [f"if {fill(CONDITIONS[self.condition].code, self.m)}:", f" {line}"]
        return [line]

    def apply(self, x: Numbers, y: Numbers) -> Numbers:
        """What x becomes; not by running the code, so that the two can be held against each other."""
        action, n = ACTIONS[self.action].apply, y if self.n == "y" else self.n
        if self.loop:
            for i in range(SIDE[-1]):
                x = np.where(i < y, action(x, n), x)
            return x
        changed = action(x, n)
        if self.condition:
            return np.where(CONDITIONS[self.condition].holds(x, y if self.m == "y" else self.m), changed, x)
        return changed

    def slips(self) -> list[Step]:
        """What a careless teacher writes instead."""
        steps = [replace(self, action=action) for action in ACTIONS[self.action].mistakes]
        if self.condition:
            steps += [replace(self, condition=condition) for condition in CONDITIONS[self.condition].mistakes]
        return [step for step in steps if not (step.n == "y" and not ACTIONS[step.action].takes_y)]

    def near_misses(self) -> list[Step]:
        """The slips, and a constant beside the right one."""
        steps = self.slips()
        if isinstance(self.n, int):
            steps += [replace(self, n=self.n + 1), replace(self, n=self.n - 1)]
        if isinstance(self.m, int):
            steps += [replace(self, m=self.m + 1), replace(self, m=self.m - 1)]
        return steps


def fill(text: str, operand: Operand) -> str:
    return text.replace("{n}", str(operand))


def body(steps: Sequence[Step]) -> str:
    """What follows the head. Indented by one space: a model that writes characters pays for each."""
    lines = [line for step in steps for line in step.lines()]
    return "\n".join(f" {line}" for line in [*lines, "return x"])


def run(steps: Sequence[Step]) -> Numbers:
    """The results of all CALLS."""
    x = X
    for step in steps:
        x = step.apply(x, Y)
    return x


def choose_calls(steps: Sequence[Step], start: int) -> list[int] | None:
    """Indices into CALLS, or None for steps that make no good question.

    Beside the right program there are its near misses: a step left out, two neighbours swapped, an operator, a
    condition or its strictness taken for another, a constant off by one. While there is one that differs from the
    right program somewhere in CALLS and in none of the calls chosen, the call that shows up most of them is added;
    then, up to MIN_CALLS, any. No good question: a step or a condition that makes no difference, results too alike,
    too many calls. `start` is where in CALLS the search begins."""
    right, before, wrong = X, X, np.empty((0, len(CALLS)), np.int64)  # wrong: a row for each near miss up to this step
    idle: list[int] = []  # the rows that must differ from the right results for the question to be good
    for i, step in enumerate(steps):
        near = [miss.apply(right, Y) for miss in step.near_misses()]
        if i:
            near.append(steps[i - 1].apply(step.apply(before, Y), Y))
        if len(steps) > 1:
            near.append(right)
        if step.condition or step.loop:
            near.append(Step(step.action, step.n).apply(right, Y))
        wrong = np.concatenate([step.apply(wrong, Y), near])
        idle += range(len(wrong) - (len(steps) > 1) - bool(step.condition or step.loop), len(wrong))
        before, right = right, step.apply(right, Y)
    differs = wrong != right
    seen = differs.any(1)
    if not seen[idle].all():
        return None
    differs = np.concatenate([differs[seen, start:], differs[seen, :start]], axis=1)
    chosen: list[int] = []
    while len(differs):
        best = int(differs.sum(0).argmax())
        chosen.append(best)
        differs = differs[~differs[:, best]]
    chosen += [i for i in range(MAX_CALLS) if i not in chosen][: max(MIN_CALLS - len(chosen), 0)]
    chosen = [(i + start) % len(CALLS) for i in chosen]
    alike = len({int(right[i]) for i in chosen}) < MIN_RESULTS
    return None if alike or len(chosen) > MAX_CALLS else chosen


@dataclass(frozen=True)
class Maker:
    """Draws problems from `rng`, and what the teacher makes of them from `teacher`."""

    rng: random.Random
    teacher: random.Random
    lengths: range
    conditions: float
    loops: float
    slips: float

    def train(self) -> Iterator[Problem]:
        for number in itertools.count():
            yield self.problem(f"train/{number}", *self.draw(held=False))

    def test(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for _ in range(10 * TEST_PROBLEMS):  # single steps do not have that many questions
            steps, calls = self.draw(held=True)
            if (question := question_of(steps)) not in seen:
                seen.add(question)
                yield self.problem(f"test/{len(seen)}", steps, calls)
            if len(seen) == TEST_PROBLEMS:
                return

    def draw(self, held: bool) -> tuple[list[Step], list[int]]:
        """Steps that make a good question of the split, and its calls."""
        while True:
            steps = [self.step() for _ in range(self.rng.choice(self.lengths))]
            checksum = crc32(question_of(steps).encode())
            if (checksum % 10 == 0) == held and (calls := choose_calls(steps, checksum % len(CALLS))) is not None:
                return steps, calls

    def step(self) -> Step:
        kind = self.rng.random()
        if kind < self.loops:
            action = self.rng.choice(REPEATED)
            # y times y is a square, and x has no part in it
            return Step(action, self.operand(action, False), loop=True)
        action = self.rng.choice(list(ACTIONS))
        step = Step(action, self.operand(action, ACTIONS[action].takes_y))
        if kind < self.loops + self.conditions:
            condition = self.rng.choice(ASKED)
            return replace(step, condition=condition, m=self.operand(condition, True))
        return step

    def operand(self, words: str, takes_y: bool) -> Operand:
        if "{n}" not in words:
            return None
        return "y" if takes_y and self.rng.random() < 0.3 else self.rng.randint(2, 9)

    def problem(self, name: str, steps: list[Step], calls: list[int]) -> Problem:
        question = question_of(steps)
        results = run(steps)
        cases = [{"args": list(CALLS[i]), "expected": int(results[i])} for i in calls]
        metadata = {
            "prompt": TEMPLATE.replace("{question}", question),
            "tests": {"type": "function", "entry_point": "f", "cases": cases},
            "solution": self.solution(steps),
        }
        return Problem(f"programs/{name}", "programs", question, body(steps), metadata)

    def solution(self, steps: list[Step]) -> str:
        written = []
        for step in steps:
            slips = step.slips() if self.teacher.random() < self.slips else []
            written.append(self.teacher.choice(slips) if slips else step)
        return body(written)


def question_of(steps: Sequence[Step]) -> str:
    return "; ".join(step.words() for step in steps)


def held_out(question: str) -> bool:
    return crc32(question.encode()) % 10 == 0
