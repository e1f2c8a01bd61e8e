"""What betrays that a policy pleases its reward model and no longer solves the problems. Pure functions.

A reward model is right where it was trained; a policy that is pushed towards its scores leaves that place (Gao et al.
2022, "Scaling laws for reward model overoptimization", arXiv:2210.10760). Left out: what is remembered from step to
step, and alarms (watch.py).
"""

# B completions of a step that have both a learned score and a verified reward

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

LEAST_KL = 1e-6  # nats for a completion, below which it is rounding
TINY = 1e-12  # a spread below this times the size of the numbers is rounding


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r of two (B,); NaN where one of them is constant, or there are fewer than two."""
    a, b = a.double(), b.double()
    if len(a) < 2:
        return math.nan
    from_a, from_b = a - a.mean(), b - b.mean()
    spread_a, spread_b = from_a.norm(), from_b.norm()
    if spread_a <= TINY * a.norm() or spread_b <= TINY * b.norm():
        return math.nan
    return float((from_a @ from_b) / (spread_a * spread_b))


def rise(mean: float, first: float, std: float) -> float:
    """(mean - first) / std: how far a reward has come since the first steps, in standard deviations of all that the run
    has seen; 0 where it has never varied."""
    return (mean - first) / std if std > 0 else 0.0


def gap(learned: float, verified: float) -> float:
    """The rise of the learned reward less that of the verified one. Above 0 the policy pleases the model more than it
    has learnt to solve: at 1 by a whole standard deviation."""
    return learned - verified


def share_above(values: Sequence[float], bound: float | None) -> float:
    """The share of them above `bound`: by definition 0.01 on the model's training data, where it is their 99th
    percentile. NaN where that is not known."""
    return math.nan if bound is None or not values else sum(v > bound for v in values) / len(values)


def score_per_kl(gained: float, kl: float) -> float:
    """What the score has gained since the first steps for each nat of distance to the reference: falling, the policy
    pays more and more for less. gained: in units of the score. kl: nats for a whole completion; almost 0 gives NaN."""
    return gained / kl if kl > LEAST_KL else math.nan


def beyond(name: str, value: float, threshold: float) -> bool:
    """Whether a guard's metric is past its threshold; NaN never is. A correlation may be too low, all others too high;
    length counts up and down alike."""
    if name == "correlation":
        return value < threshold
    return (abs(value) if name == "length_correlation" else value) > threshold
