"""Logits -> one token a row and its log-probability: temperature, top-k, top-p, by inverting the distribution."""

# S distributions, R draws from them, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from grpo_math.types import Sampling


def draw(logits: Tensor, rows: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative probability exceeds `uniform`, and log p of it, in nats.

    logits: (S, V); rows: (R,) int64, which of them each draw is from; uniform: (R,) float64 in [0, 1). Returns int64
    and float32, (R,). p is softmax(logits / temperature) renormalised over what top_k and top_p keep. temperature 0
    takes the most likely token and reports log p at temperature 1. One number per draw decides, so a token does not
    depend on the draws beside it."""
    scaled = logits.float()
    if sampling.temperature not in (0.0, 1.0):
        scaled = scaled / sampling.temperature
    logprobs = keep_likely(scaled.log_softmax(-1), sampling.top_k, sampling.top_p)
    tokens = logprobs.argmax(-1)[rows] if sampling.temperature == 0.0 else invert(logprobs, rows, uniform)
    return tokens, logprobs[rows, tokens]


def invert(logprobs: Tensor, rows: Tensor, uniform: Tensor) -> Tensor:
    """Where `uniform` (R,) falls in the running sums of the probabilities in `rows` of logprobs (S, V)."""
    # in float64: with 150,000 tokens a float32 running sum loses the tail
    cumulative = logprobs.double().exp_().cumsum_(-1)
    # the draws from one row side by side: searched together, so the sums are never copied for each draw
    order = rows.argsort(stable=True)
    counts = rows.bincount(minlength=len(logprobs))
    column = torch.empty_like(rows)
    column[order] = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
    thresholds = cumulative.new_zeros(len(logprobs), int(counts.max()))
    thresholds[rows, column] = uniform * cumulative[rows, -1]
    # right=True skips tokens of probability 0, whose step in the sum is flat; the last step may round below 1
    tokens = torch.searchsorted(cumulative, thresholds, right=True).clamp_(max=logprobs.shape[-1] - 1)
    return tokens[rows, column]


def keep_likely(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the k most likely tokens of the smallest set of probability >= top_p; the rest is -inf; renormalise."""
    if top_k <= 0 and top_p >= 1.0:
        return logprobs
    ranked, order = logprobs.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if top_k > 0:
        keep[:, top_k:] = False
    if top_p < 1.0:
        before = ranked.exp().cumsum(-1) - ranked.exp()
        keep &= before < top_p
    keep[:, 0] = True  # a rounding error must not leave nothing
    ranked = ranked.masked_fill(~keep, float("-inf")).log_softmax(-1)
    return torch.empty_like(logprobs).scatter_(-1, order, ranked)
