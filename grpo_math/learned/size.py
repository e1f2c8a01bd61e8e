"""What the reward models of a configuration hold in memory: their lines in `grpo-math plan`."""

from __future__ import annotations

from collections.abc import Callable

from grpo_math import config
from grpo_math.memory_report import in_units
from grpo_math.model_size import ModelSize

BYTES = {"float32": 4, "bfloat16": 2}


def reward_model_lines(
    cfg: config.Common, size_of: Callable[[config.Model], ModelSize | None]
) -> list[tuple[str, ...]]:
    """A row for each: name, bytes of its weights on each rank, and where they are. Empty without any."""
    models = [reward for reward in cfg.rewards or () if isinstance(reward, config.LearnedReward)]
    return [(reward.called, *_weights(reward, cfg.backend.dtype, size_of)) for reward in models]


def _weights(
    reward: config.LearnedReward, run_dtype: str, size_of: Callable[[config.Model], ModelSize | None]
) -> tuple[str, str]:
    if reward.url is not None:
        return "-", f"{reward.model}, on the server {reward.url}"
    dtype = run_dtype if reward.dtype == "auto" else reward.dtype
    place = "the policy's device, in the peak below" if reward.device == "auto" else reward.device
    if reward.offload:
        place += ", and on the CPU while nothing is scored"
    size = size_of(config.Model(path=reward.model))
    if size is None or size.parameters is None:
        return "unknown", f"{reward.model}, {dtype}, on {place}"
    return in_units(BYTES[dtype] * size.parameters), f"{size.parameters:,} x {BYTES[dtype]} bytes, on {place}"
