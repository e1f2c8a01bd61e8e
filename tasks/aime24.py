"""AIME 2024: the 30 problems of the American Invitational Mathematics Examination, both papers; whole numbers to 999.

Problems of the Mathematical Association of America. From the Hub (HuggingFaceH4/aime_2024, which calls them train), or
with `path` from JSON lines with the fields problem and answer, or those of other copies (Problem and Answer). An answer
may be the text "025" or the number 25. It is a test set: without a `path` the only split is test. Left out: the
solutions, and other years.
"""

from __future__ import annotations

from grpo_math.tasks._math import Hub, load_test_set
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = Hub("HuggingFaceH4/aime_2024", None, "train")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list, any of which is right. Raises UserError."""
    return load_test_set("aime24", HUB, split, path)
