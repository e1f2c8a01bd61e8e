"""HumanEval+: HumanEval's 164 functions with some 80 times as many tests (Liu et al. 2023, arXiv:2305.01210).

From the Hub (evalplus/humanevalplus), or with `path` from JSON lines with the same fields, which are HumanEval's. Each
problem's `check` goes through lists of inputs and results, the first tests among them; floats may be off by 1e-6. It is
a test set: without a `path` there is no other split.
"""

from __future__ import annotations

from grpo_math.tasks import humaneval
from grpo_math.types import Problem

VERIFIER = "code"
PROMPTS = humaneval.PROMPTS
HUB = "evalplus/humanevalplus"
gold_completion = humaneval.gold_completion


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. Raises UserError."""
    return list(humaneval.problems_of("humaneval_plus", HUB, split, path))
