"""Minerva's OCWCourses: 272 problems of undergraduate mathematics and science, from MIT's OpenCourseWare.

Lewkowycz et al. 2022, arXiv:2206.14858, section 3. From the Hub (math-ai/minervamath, with the fields question and
answer), or with `path` from JSON lines with those or with problem and answer. It is a test set: without a `path` the
only split is test. Left out: a tolerance for rounded numbers; where a file lists several roundings, each is right. Not
to be confused with lm-evaluation-harness's minerva_math, which is MATH put in the words of minerva-4shot.
"""

from __future__ import annotations

from grpo_math.tasks._math import Hub, load_test_set
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = Hub("math-ai/minervamath", None, "test")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list, any of which is right. Raises UserError."""
    return load_test_set("minerva_math", HUB, split, path)
