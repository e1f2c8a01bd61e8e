"""Importance weights for the gap between the engine that sampled and the trainer: the table CORRECTIONS.

The two compute the same policy with other kernels and precisions, so old_logprobs (the trainer's, before the step's
first update) and sampler_logprobs differ and the samples are a little off policy. exp(old - sampler), cut in one of
these ways, multiplies the surrogate. Left out: the ratio of policy to old policy, which is the loss's own.
"""

# B completions, T tokens. d = old_logprobs - sampler_logprobs

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grpo_math.kl import bounded

CorrectionFn = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def none(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w = 1. All (B, T); returns (B, T)."""
    return torch.ones_like(old_logprobs, requires_grad=False)


def token_truncate(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w_t = min(exp(d_t), high): truncated importance sampling (Yao et al. 2025; TRL token_truncate). low is not used.

    All (B, T), mask True at trained tokens. Returns (B, T) without a gradient, 1 outside the mask."""
    d, mask = _gap(old_logprobs, sampler_logprobs, mask)
    return torch.where(mask, d.exp().clamp(max=high), 1.0)


def token_mask(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w_t = exp(d_t) if low <= exp(d_t) <= high else 0: IcePop (Ling team 2025, arXiv:2510.18855; TRL token_mask).

    All (B, T), mask True at trained tokens. Returns (B, T) without a gradient, 1 outside the mask."""
    d, mask = _gap(old_logprobs, sampler_logprobs, mask)
    return torch.where(mask, _within(d.exp(), low, high), 1.0)


def sequence_truncate(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w = min(exp(sum_t d_t), high), one weight per completion (TRL sequence_truncate). low is not used.

    All (B, T), mask True at trained tokens. Returns (B, T) without a gradient, 1 outside the mask."""
    d, mask = _gap(old_logprobs, sampler_logprobs, mask)
    return torch.where(mask, bounded(d.sum(1, keepdim=True)).exp().clamp(max=high), 1.0)


def sequence_mask(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w = exp(sum_t d_t) if within [low, high] else 0, one weight per completion (TRL sequence_mask, its default with
    no low and high = 3).

    All (B, T), mask True at trained tokens. Returns (B, T) without a gradient, 1 outside the mask."""
    d, mask = _gap(old_logprobs, sampler_logprobs, mask)
    return torch.where(mask, _within(bounded(d.sum(1, keepdim=True)).exp(), low, high), 1.0)


def geometric_mask(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, low: float, high: float) -> Tensor:
    """w = 1 if low <= exp(mean_t d_t) <= high else 0: drop completions that the sampler saw otherwise, weigh no other.

    The mean makes the range the same for all lengths, so it wants to be narrow: verl's examples have about
    [0.999, 1.001]. All (B, T), mask True at trained tokens. Returns (B, T) without a gradient, 1 outside the mask."""
    d, mask = _gap(old_logprobs, sampler_logprobs, mask)
    mean = d.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask, (_within(mean.exp(), low, high) > 0).to(d.dtype), 1.0)


CORRECTIONS: dict[str, CorrectionFn] = {
    "none": none,
    "token_truncate": token_truncate,
    "token_mask": token_mask,
    "sequence_truncate": sequence_truncate,
    "sequence_mask": sequence_mask,
    "geometric_mask": geometric_mask,
}


def _gap(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """d within +-20, 0 outside the mask, and the mask as bool."""
    mask = mask.bool()
    gap = old_logprobs.detach() - sampler_logprobs.detach()
    # vLLM now and then has NaN for a sampled token; no evidence of a gap counts as no gap, as in TRL
    return bounded(torch.where(mask & ~gap.isnan(), gap, 0.0)), mask


def _within(ratio: Tensor, low: float, high: float) -> Tensor:
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0.0)
