"""Scores of reward models -> numbers of a known size. Pure functions, and the statistics that a run gathers.

Left out: weights and their sum (rewards.py).
"""

# P prompts, G group size

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from grpo_math.advantages import group_norm

EPS = 1e-6  # as in advantages.py


@dataclass(frozen=True)
class Running:
    """Count, mean and sum of squared deviations of all numbers seen, from which more can be gone on with."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Tensor) -> Running:
        """With one more batch of numbers, NaN left out; Chan, Golub and LeVeque 1979, eq. 1.5:

        d = mean_b - mean_a;  mean = mean_a + d n_b / n;  M2 = M2_a + M2_b + d^2 n_a n_b / n."""
        values = values[~values.isnan()].double()
        if not len(values):
            return self
        count, mean = len(values), float(values.mean())
        apart, total = mean - self.mean, self.count + count
        between = apart**2 * self.count * count / total
        squares = self.squares + float((values - mean).square().sum()) + between
        return Running(total, self.mean + apart * count / total, squares)

    @property
    def std(self) -> float:
        """The unbiased one; 0 of fewer than two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def normalised(self, values: Tensor) -> Tensor:
        """(x - mean) / (std + 1e-6)"""
        return (values - self.mean) / (self.std + EPS)

    def state(self) -> dict[str, float]:
        return asdict(self)

    @staticmethod
    def of(state: Mapping[str, float]) -> Running:
        return Running(int(state["count"]), state["mean"], state["squares"])


def used(scores: Tensor, lengths: Tensor, how: str, seen: Running, clip: float | None, length_penalty: float) -> Tensor:
    """clip(normalise(score)) - length_penalty * length: what is weighed of a reward model's scores.

    scores: (P, G) float64, NaN where there is none. lengths: (P, G), tokens. how: `none`, `running` by `seen`, which
    must have these scores in it already, or `group` by the siblings, whose equal scores give exact zeros. clip: bounds
    what comes of it to [-clip, clip]. Returns (P, G) float64."""
    normalised = NORMALISE[how](scores, seen)
    if clip is not None:
        normalised = normalised.clamp(-clip, clip)
    return normalised - length_penalty * lengths.double()


def _by_group(scores: Tensor, seen: Running) -> Tensor:
    # an advantage of 0 is what it gives a completion without a score
    return torch.where(scores.isnan(), torch.nan, group_norm(scores, EPS).double())


NORMALISE = {
    "none": lambda scores, seen: scores,
    "running": lambda scores, seen: seen.normalised(scores),
    "group": _by_group,
}
