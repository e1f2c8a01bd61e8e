"""Rewards of steps -> advantages of tokens: process supervision, and Monte-Carlo values of steps. Pure functions.

Left out: where a step ends (steps/), and where its reward comes from (a verifier's step_rewards, learned/).
"""

# G completions of a prompt, K steps of one of them, T tokens of it

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["std", "none"]
StepRewards = Sequence[tuple[int, float]]  # of one completion: (token at which the step ends, reward), in order


def process_advantages(
    group: Sequence[StepRewards | None], lengths: Sequence[int], eps: float = 1e-6, scale: Scale = "std"
) -> list[Tensor]:
    """r~_ij = (r_ij - mean R) / (std R + eps) over all steps R of the group;  A_it = sum of r~_ij over the steps j that
    end at token t or after it; DeepSeekMath, arXiv:2402.03300, section 4.1.3.

    scale: `none` leaves the division out, as Dr. GRPO does for outcomes (arXiv:2503.20783): in a group whose steps are
    all right it would blow up what a model's probabilities of 0.98 and 0.99 differ by.
    group: the G siblings, None where one has no score, which is left out and gets zeros. lengths: tokens of each.
    Returns (T,) for each. Equal rewards give exact zeros. std is the unbiased one and eps that of
    advantages.group_norm, so that with one step each this is the outcome advantage, for every token."""
    rewards = torch.tensor([r for steps in group if steps is not None for _, r in steps], dtype=torch.float64)
    # from the best, as in advantages.py: equal rewards are then zeros, and so is their mean
    best = rewards.max() if len(rewards) else torch.tensor(0.0)
    mean = (rewards - best).mean() if len(rewards) else torch.tensor(0.0)
    std = (rewards - best).std() if len(rewards) > 1 else torch.tensor(0.0)
    divisor = std + eps if scale == "std" else 1.0
    return [
        torch.zeros(length)
        if steps is None
        else sums_from([(at, float((r - best - mean) / divisor)) for at, r in steps], length)
        for steps, length in zip(group, lengths, strict=True)
    ]


def sums_from(steps: StepRewards, length: int) -> Tensor:
    """Each token gets the sum over the steps that end at it or after it; (T,)."""
    at_end = torch.zeros(length, dtype=torch.float64)
    for token, reward in steps:
        at_end[token] += reward
    return at_end.flip(0).cumsum(0).flip(0).float()


def step_advantages(ends: Sequence[int], values: Sequence[float | None], length: int) -> Tensor:
    """A_t = V(s_{k+1}) - V(s_k) for the tokens t of step k; VinePPO, arXiv:2410.01679, eq. 7, with gamma 1.

    ends: the token at which each of K steps ends; values: K + 1, of the prompt, of the text after each step but the
    last, and the completion's own reward. None, where a value is not known, gets the one before it, or the first that
    is: no step is praised or blamed for what nobody measured. Returns (T,); tokens behind the last step are 0."""
    assert len(values) == len(ends) + 1, (len(values), len(ends))
    known: list[float] = []
    first = next((value for value in values if value is not None), 0.0)
    for value in values:
        known.append(value if value is not None else (known[-1] if known else first))
    advantages, start = torch.zeros(length), 0
    for end, before, after in zip(ends, known[:-1], known[1:], strict=True):
        advantages[start : end + 1] = after - before
        start = end + 1
    return advantages
