"""MATH-500: 500 competition problems held out of MATH, with short answers in LaTeX.

Problems of Hendrycks et al. 2021, arXiv:2103.03874; the selection is that of Lightman et al. 2023, arXiv:2305.20050.
From the Hub (HuggingFaceH4/MATH-500), or with `path` from JSON lines with the fields problem and answer, which other
sets of competition problems have too (AIME, AMC, Minerva, OlympiadBench). It is a test set: without a `path` there is
no other split to train on.
"""

from __future__ import annotations

from typing import Any

from grpo_math.rows import check_split, rows
from grpo_math.types import Problem

VERIFIER = "math"
TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list, any of which is right. Raises UserError."""
    if path is None:
        check_split("math500", split, ("test",))
    hub, fields = ("HuggingFaceH4/MATH-500", None), ("problem", "answer")
    return [
        problem(f"math500/{split}/{number}", row, source)
        for number, source, row in rows(path, hub, split, fields, lists=("answer",))
    ]


def problem(id: str, row: dict[str, Any], source: str) -> Problem:
    golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    metadata = {"source": source} | ({"alternatives": golds[1:]} if len(golds) > 1 else {})
    return Problem(id, "math500", row["problem"], golds[0].strip(), metadata)
