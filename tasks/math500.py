"""MATH-500: 500 competition problems held out of MATH, with short answers in LaTeX.

Problems of Hendrycks et al. 2021, arXiv:2103.03874; the selection is that of Lightman et al. 2023, arXiv:2305.20050.
From the Hub (HuggingFaceH4/MATH-500), or with `path` from JSON lines with the fields problem and answer. It is a test
set: without a `path` there is no other split to train on.
"""

from __future__ import annotations

from grpo_math.rows import check_split, rows
from grpo_math.types import Problem

VERIFIER = "math"
TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. Raises UserError."""
    if path is None:
        check_split("math500", split, ("test",))
    return [
        Problem(f"math500/{split}/{number}", "math500", row["problem"], row["answer"].strip(), {"source": source})
        for number, source, row in rows(path, ("HuggingFaceH4/MATH-500", None), split, ("problem", "answer"))
    ]
