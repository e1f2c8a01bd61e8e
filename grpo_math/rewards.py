"""The reward that training uses: the verifiers' weighted sum with the overlong penalty, and DAPO's filter."""

# P prompts, G group size

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_math.types import Group


def overlong_penalty(length: int, max_tokens: int, buffer: int, penalty: float) -> float:
    """0 up to max_tokens - buffer, then falling linearly to -penalty at max_tokens; DAPO, arXiv:2503.14476, eq. 13.

    length, max_tokens and buffer in tokens; buffer 0 is off."""
    if buffer == 0:
        return 0.0
    return -penalty * min(max(length - (max_tokens - buffer), 0) / buffer, 1.0)


def group_rewards(groups: Sequence[Group], max_tokens: int, buffer: int, penalty: float) -> Tensor:
    """(P, G) float32; NaN where a completion has no score."""
    return torch.tensor(
        [
            [
                float("nan")
                if score.reward is None
                else score.reward + overlong_penalty(len(completion.token_ids), max_tokens, buffer, penalty)
                for completion, score in zip(group.completions, group.scores, strict=True)
            ]
            for group in groups
        ]
    )


def has_signal(group: Group) -> bool:
    """Whether the task's own rewards differ within the group (DAPO's filter). Shaping such as a length penalty does not
    count: a group that is all right or all wrong stays without signal however long its completions are."""
    rewards = {score.verdict.reward for score in group.scores if score.verdict.reward is not None}
    return len(rewards) > 1
