"""Rewards of groups -> advantages of completions: pure functions (P, G) -> (P, G), and the table ADVANTAGES.

A completion without a score (NaN) is left out of every statistic and gets exactly 0; a reward of 0.0 is a score like
any other. Left out: process supervision, which needs steps within a completion, and the KL in the reward, which the
recipe has subtracted before it calls these.
"""

# P prompts, G group size

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def group_norm(rewards: Tensor, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """A_i = (r_i - mean r) / (std r + eps) within each group; DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros.
    std is the unbiased one (ddof=1), as TRL, verl and OpenRLHF have it; eps is verl's (TRL 1e-4, OpenRLHF 1e-9)."""
    deviation, count = _deviation(rewards)
    return (deviation / (_std(deviation, count, ddof) + eps)).float()


def group_norm_batch_scale(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean_group r) / (std_batch r + eps); Lite PPO, arXiv:2508.08221, as TRL's scale_rewards="batch".

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros. The std is
    that of the rewards themselves (ddof=1), so it holds the spread between prompts too; reinforce_pp_baseline takes
    that of the deviations. Not in the table: no preset asks for it."""
    deviation, _ = _deviation(rewards)
    return (deviation / (_std(*_deviation(rewards.reshape(1, -1))) + eps)).float()


def group_center(rewards: Tensor) -> Tensor:
    """A_i = r_i - mean r within each group; Dr. GRPO, arXiv:2503.20783: no division by std, so no question is
    weighed up for being nearly always or nearly never solved.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros."""
    return _deviation(rewards)[0].float()


def leave_one_out(rewards: Tensor) -> Tensor:
    """A_i = r_i - mean_{j != i} r_j = (r_i - mean r) * n / (n - 1) for n scored siblings; RLOO, arXiv:2402.14740.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros, and so does
    a group with one score, which has no siblings to compare with (verl leaves it the raw reward, TRL 0)."""
    deviation, count = _deviation(rewards)
    return (deviation * count / (count - 1).clamp(min=1)).float()


def reinforce_pp(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean_batch r) / (std_batch r + eps); REINFORCE++, arXiv:2501.03262, global normalisation.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G). There is no group here: a group of equal
    rewards is not 0 unless the whole batch is equal. Mean and std are over completions, ddof=1; verl and OpenRLHF take
    them over tokens, so that a long completion counts more in them than a short one."""
    deviation, count = _deviation(rewards.reshape(1, -1))
    return (deviation / (_std(deviation, count) + eps)).reshape(rewards.shape).float()


def reinforce_pp_baseline(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """d_i = r_i - mean_group r;  A_i = d_i / (std_batch d + eps); REINFORCE++-baseline, arXiv:2501.03262.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros. The paper
    also subtracts mean_batch d, which over completions is 0 already. std is over all completions with ddof=1 (verl and
    OpenRLHF: over tokens), counting those of constant groups too."""
    deviation, count = _deviation(rewards)
    return (deviation / (_std(deviation.reshape(1, -1), count.sum()) + eps)).float()


def maxrl(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean r) / (mean r + eps) within each group; MaxRL, arXiv:2602.02710.

    The gradient of log p(correct) in place of that of p(correct), for rewards that are not negative.
    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros, and so does a
    mean that is not positive: dividing by it would turn the advantages' signs round (penalties can bring it there)."""
    deviation, count = _deviation(rewards)
    mean = rewards.double().nansum(1, keepdim=True) / count.clamp(min=1)
    return torch.where(mean > 0, deviation / (mean + eps), 0.0).float()


def pass_at_k(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """A_best = (r_1 - r_2) / (std r + eps), the others 0, with r_1 >= r_2 the two best of the group; arXiv:2503.19595.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); a tie for the best gives exact zeros, and so
    does a group with one score. Division by std, its ddof=1 and eps are verl's default."""
    deviation, count = _deviation(rewards)
    ranked = torch.where(rewards.isnan(), -torch.inf, rewards.double())
    first = ranked.argmax(1, keepdim=True)
    # a group with fewer than two scores has -inf for its second best, so the margin is taken only where there are two
    runner_up = ranked.scatter(1, first, -torch.inf).amax(1, keepdim=True)
    margin = torch.where(count > 1, ranked.gather(1, first) - runner_up, 0.0)
    return torch.zeros_like(ranked).scatter(1, first, margin / (_std(deviation, count) + eps)).float()


def gpg(rewards: Tensor) -> Tensor:
    """A_i = alpha * (r_i - mean_group r), alpha = n / (n with r != 0) over the batch; GPG, arXiv:2504.02546.

    rewards: (P, G), NaN where a completion has no score. Returns (P, G); equal rewards give exact zeros. alpha is
    verl's. The paper counts the completions whose group has a signal (rewards not all equal) in the place of those
    with a reward: on [1, 0, 0, 0] it has alpha = 1, verl and this function 4."""
    deviation, count = _deviation(rewards)
    rewarded = torch.nan_to_num(rewards, nan=0.0).count_nonzero()
    return (deviation * count.sum() / rewarded.clamp(min=1)).float()


ADVANTAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "group_norm": group_norm,
    "group_center": group_center,
    "leave_one_out": leave_one_out,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "maxrl": maxrl,
    "pass_at_k": pass_at_k,
    "gpg": gpg,
}


def _deviation(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """r - mean r of each row over its scored entries (0 for the others), float64 (P, G), and their number, (P, 1)."""
    scored = ~rewards.isnan()
    count = scored.sum(1, keepdim=True)
    # Measured from the row's best, because the float32 mean of seven .95 is not .95, and dividing that rounding error
    # by a std of its own size makes an advantage of it. From the best, equal rewards are zeros, and so is their mean.
    best = torch.where(scored, rewards, -torch.inf).amax(1, keepdim=True)
    gap = torch.where(scored, rewards - best, 0.0).double()
    return torch.where(scored, gap - gap.sum(1, keepdim=True) / count.clamp(min=1), 0.0), count


def _std(deviation: Tensor, count: Tensor, ddof: int = 1) -> Tensor:
    """(P, 1) from deviations (P, G) of which `count` are scored; 0 where there are too few for one."""
    return (deviation.square().sum(1, keepdim=True) / (count - ddof).clamp(min=1)).sqrt()
