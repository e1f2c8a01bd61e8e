"""OlympiadBench's open-ended problems of competition mathematics in English, without pictures.

He et al. 2024, arXiv:2402.14008. From the Hub (Hothan/OlympiadBench, OE_TO_maths_en_COMP, which calls them train), or
with `path` from JSON lines with its fields, of which question and final_answer are needed, or with problem and answer.
It is a test set: without a `path` the only split is test. As the authors' own evaluation has it, the question is put
without its `context`, all answers of a problem with several are wanted, in any order, and `error` is how far a number
may be off. Left out: that `error` where the answer is not one number, or is smaller than it, and is compared exactly;
units; proofs, physics, Chinese and pictures. Others report 674 or 675 problems, by when they took their copy.
"""

from __future__ import annotations

import re
from typing import Any

from grpo_math.rows import Row
from grpo_math.tasks._math import Hub, problem, test_rows
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem, UserError

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = Hub("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train")
SLACK = 1.01  # of the authors' judge, so that binary fractions do not decide at the very edge

_NUMBER = re.compile(r"\$?(-?\d+(?:\.\d+)?)(?:\^\{?\\circ\}?)?\$?")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list: where the row says is_multiple_answer all of
    it is wanted, or else any of it. Raises UserError."""
    return [
        problem("olympiadbench", id, row | {"answer": wanted(row)}, source, **tolerance(row, source))
        for id, source, row in test_rows("olympiadbench", HUB, split, path)
    ]


def wanted(row: Row) -> str | list[str]:
    answer: str | list[str] = row["answer"]
    return ", ".join(answer) if isinstance(answer, list) and row.get("is_multiple_answer") else answer


def tolerance(row: Row, source: str) -> dict[str, Any]:
    """The verifier's conventions: `error`, an absolute one, as a share of the gold number."""
    error, answer = row.get("error"), row["answer"]
    gold = _NUMBER.fullmatch(answer[0] if isinstance(answer, list) and len(answer) == 1 else str(answer))
    if not error or gold is None or not float(gold[1]):
        return {}
    try:
        share = SLACK * float(error) / abs(float(gold[1]))
    except ValueError as e:
        raise UserError(f"{source}: error={error!r} is no number; give how far the answer may be off, or null") from e
    return {"conventions": {"tolerance": share}} if 0 < share < 1 else {}
