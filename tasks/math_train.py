"""MATH's training problems: 7,500 from competitions, with worked solutions (Hendrycks et al. 2021, arXiv:2103.03874).

From the Hub (DigitalLearningGmbH/MATH-lighteval), or with `path` from JSON lines with the fields problem and solution,
of which the last \\boxed{} is the answer, or with problem and answer. The solution goes into the metadata. MATH-500 is
drawn from the 5,000 test problems, so none of it is here; near copies, with other numbers, are for grpo-math
decontaminate to find. Left out: the test problems, subjects and levels.
"""

from __future__ import annotations

from grpo_math.rows import Row, check_split, rows
from grpo_math.tasks._math import last_box, prepare
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem, UserError

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = ("DigitalLearningGmbH/MATH-lighteval", "default")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems of `split` (train); `path` may contain {split}. Raises UserError."""
    if path is None:
        check_split("math_train", split, ("train",))
    problems = []
    for number, source, row in rows(path, HUB, split, ("problem", "answer"), prepare=_solved):
        answer = last_box(row["answer"])
        if answer is None and row["answer"] == row.get("solution"):
            raise UserError(
                f"{source}: the solution {row['solution'][-40:]!r} has no \\boxed{{ANSWER}}, where MATH has the final "
                "answer; add it, or give the answer as a field of its own"
            )
        metadata = {"source": source} | ({"solution": row["solution"]} if row.get("solution") else {})
        problems.append(
            Problem(f"math_train/{split}/{number}", "math_train", row["problem"], answer or row["answer"], metadata)
        )
    return problems


def _solved(row: Row) -> Row:
    """With the solution for the answer where that is all there is."""
    return prepare({"answer": row["solution"], **row} if "solution" in row else row)
