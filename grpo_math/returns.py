"""Rewards and values of tokens -> advantages of tokens: GAE, rewards to go, whitening; and the critic's loss.

All are pure functions of (B, T) tensors that look at the completion's tokens alone, where mask is True: those of a row
lie side by side. Left out: advantages of whole completions (advantages.py) and of steps (process.py).
"""

# B completions, T tokens; V_t is the value of the text before token t, r_t the reward for it

from __future__ import annotations

import torch
from torch import Tensor


def token_rewards(rewards: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """r_t = -penalty_t, and at the last token the completion's reward besides; Stiennon et al. 2020, arXiv:2009.01325.

    rewards: (B,). penalty: (B, T), such as beta * KL of each token. mask: (B, T) bool. Returns (B, T), 0 outside mask.
    A row without a trained token gets nothing."""
    later = mask.flip(1).cumsum(1).flip(1)  # trained tokens from here on
    last = mask & (later == 1)
    return torch.where(mask, rewards[:, None] * last - penalty, 0.0).float()


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Tensor:
    """delta_t = r_t + gamma V_{t+1} - V_t;  A_t = sum_l (gamma lam)^l delta_{t+l}; Schulman et al. 2015,
    arXiv:1506.02438, eq. 16.

    rewards, values: (B, T), read inside mask alone. Returns (B, T), 0 outside. V behind the last token is 0, whether
    the completion ended or was cut. lam=1 is the discounted rewards to go less V_t (Monte-Carlo), lam=0 is delta_t
    (one step). The value target is A_t + V_t."""
    rewards, values = torch.where(mask, rewards, 0.0).double(), torch.where(mask, values, 0.0).double()
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = rewards + gamma * following - values
    return discounted(torch.where(mask, delta, 0.0), gamma * lam).float() * mask


def to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = sum_l gamma^l r_{t+l}: the rewards from each token on; Williams 1992. (B, T), 0 outside mask."""
    return discounted(torch.where(mask, rewards, 0.0).double(), gamma).float() * mask


def discounted(deltas: Tensor, discount: float) -> Tensor:
    """S_t = d_t + discount S_{t+1}, from the last column on; (B, T)."""
    sums = torch.zeros_like(deltas)
    ahead = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        sums[:, t] = ahead = deltas[:, t] + discount * ahead
    return sums


def whiten(advantages: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(A_t - mean A) / sqrt(var A + eps) over all tokens of the step; (B, T), 0 outside mask.

    var is the unbiased one and eps stands under the root, as in TRL's and verl's masked_whiten. With one token or none
    there is nothing to compare with, and it is 0; equal advantages give exact zeros."""
    count = int(mask.sum())
    if count < 2:
        return torch.zeros_like(advantages)
    known = advantages[mask].double()
    known = known - known.max()  # as in advantages.py: equal ones are then zeros, and so is their mean
    white = (known - known.mean()) / (known.var() + eps).sqrt()
    return torch.zeros_like(advantages).masked_scatter(mask, white.to(advantages))


def value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float | None) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 for each token; PPO as OpenAI's baselines have it, and
    InstructGPT after them. c=None: (V - R)^2 / 2.

    All of one shape, which is returned. The clip is on the value and not on a ratio: what moves further than c in a
    step gets no gradient for coming nearer to its target. It depends on the scale of the rewards."""
    error = (values - targets).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - targets).square())
    return error / 2


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - var(R - V) / var R over the tokens inside mask: 1 is a perfect critic, 0 one that knows the mean alone, and
    below it is worse than that. NaN where all targets are equal, or there are none."""
    known, wanted = values[mask].double(), targets[mask].double()
    spread = float(wanted.var(correction=0)) if len(wanted) else 0.0
    return 1 - float((wanted - known).var(correction=0)) / spread if spread > 0 else float("nan")
