"""MATH-500: 500 competition problems held out of MATH, with short answers in LaTeX.

Problems of Hendrycks et al. 2021, arXiv:2103.03874; the selection is that of Lightman et al. 2023, arXiv:2305.20050.
From the Hub (HuggingFaceH4/MATH-500), or with `path` from JSON lines with the fields problem and answer. It is a test
set: without a `path` there is no other split; math_train has what to train on. Left out: subjects and levels.
"""

from __future__ import annotations

from grpo_math.tasks._math import Hub, load_test_set
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = Hub("HuggingFaceH4/MATH-500", None, "test")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list, any of which is right. Raises UserError."""
    return load_test_set("math500", HUB, split, path)
