"""Is the boxed answer of a completion mathematically the gold answer? Reward 1 or 0.

Text -> typed value -> comparison by exact arithmetic, or by 500 digits at random points where a formula has roots and
the like. Nothing from the completion is ever run: no eval, no sympy parser, and every size is bounded beforehand.

Leaves out answers outside a box, units that need converting, and rounding: 0.33 is not 1/3.
"""

from __future__ import annotations

from grpo_math.types import Problem, Verdict
from grpo_math.verifiers._math.compare import same
from grpo_math.verifiers._math.exact import Undecided
from grpo_math.verifiers._math.extract import final_answer
from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.read import read
from grpo_math.verifiers._math.scalars import plain_number


def verify(problem: Problem, completion: str) -> Verdict:
    """Compare the last box of `completion` with `problem.answer`.

    correct 1.0, wrong 0.0, no_answer 0.0 where there is no closed box after the thinking. An answer that cannot be read
    is wrong, with the reason in `detail`; a gold answer that cannot be read is our mistake and an error without reward.
    """
    answer, missing = final_answer(completion)
    if answer is None:
        return Verdict(0.0, "no_answer", missing)
    if complaint := check(problem) if plain_number(problem.answer) is None else None:
        return Verdict(None, "error", f"gold answer of {problem.id}: {complaint}", answer)
    correct, detail = _compare(problem.answer, answer)
    return Verdict(1.0, "correct", detail, answer) if correct else Verdict(0.0, "wrong", detail, answer)


def check(problem: Problem) -> str | None:
    """Why this gold answer cannot be compared with anything, or None."""
    if not problem.answer.strip():
        return "is empty"
    try:
        value = read(problem.answer)
        return None if same(value, value) else "does not equal itself"
    except (Unreadable, Undecided) as e:
        return f"{problem.answer[:80]!r} cannot be read: {e}"


def equivalent(gold: str, candidate: str) -> bool | None:
    """Whether two answers are the same, bare or in $...$ or \\boxed{}; None where the gold cannot be read, or a
    formula is over the bounds. Not symmetric: a candidate that cannot be read is simply not the gold."""
    try:
        value = read(gold)
    except (Unreadable, Undecided):
        return None
    try:
        return same(value, read(candidate))
    except Unreadable:
        return False
    except Undecided:
        return None


def _compare(gold: str, answer: str) -> tuple[bool, str]:
    """(correct, what to say about it) for a gold that can be read."""
    try:
        return same(read(gold), read(answer)), ""
    except Unreadable as e:
        return False, f"{answer[:80]!r} cannot be read: {e}"
    except Undecided as e:
        return False, f"undecided: {e}"


def _example(answer: str, completion: str, reward: float) -> tuple[Problem, str, float]:
    return Problem(f"example/{answer}", "example", "", answer), completion, reward


EXAMPLES = [
    _example("18", "She makes 9 * 2 = $18 a day. The answer is $\\boxed{18}$.", 1.0),
    _example("18", "The answer is 18.", 0.0),
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
]
