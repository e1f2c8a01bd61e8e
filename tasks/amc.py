"""AMC 12 of 2022 and 2023: 83 problems with whole numbers for answers, without their choices.

Problems of the Mathematical Association of America, reworded by Project Numina where the answer was no whole number.
From the Hub (AI-MO/aimo-validation-amc, which calls them train and has 142.0 for 142), or with `path` from JSON lines
with the fields problem and answer. It is a test set: without a `path` the only split is test. Left out: the AMC 10, the
choices, and the 40 problems of 2023 alone that others report as AMC 23.
"""

from __future__ import annotations

from grpo_math.tasks._math import Hub, load_test_set
from grpo_math.tasks._prompts_math import MATH_PROMPTS
from grpo_math.types import Problem

VERIFIER = "math"
PROMPTS = MATH_PROMPTS
HUB = Hub("AI-MO/aimo-validation-amc", None, "train")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. An answer may be a list, any of which is right. Raises UserError."""
    return load_test_set("amc", HUB, split, path)
