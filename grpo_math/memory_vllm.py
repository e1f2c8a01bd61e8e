"""What vLLM takes of each device and what it gets for that: weights, and a cache for so many completions at a time.

Left out: the training states (memory.py). vLLM measures its own peak of activations; here it is taken to be 1 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from grpo_math import config
from grpo_math.model_size import ModelSize

GIB = 1 << 30
ACTIVATIONS = GIB
SERVER_SHARE = 0.9  # of a device, where rollout.vllm.memory is not given


@dataclass(frozen=True)
class Sampler:
    """A copy of the model in vLLM, per device, in bytes. cache is below 0 where not even the weights fit."""

    share: int
    weights: int
    cache: int
    tokens: int  # that the cache of the whole copy holds
    lines: tuple[tuple[str, int | None, str], ...]


def sampler(cfg: config.Common, size: ModelSize, row: int, device_bytes: int) -> Sampler:
    """Of the engine vllm: its share is rollout.vllm.memory. Of a server's device: what vllm serve takes."""
    assert size.parameters is not None
    split, width = cfg.rollout.vllm.tensor_parallel, 2 if cfg.backend.dtype == "bfloat16" else 4
    if cfg.rollout.engine == "vllm":
        portion, key = cfg.rollout.vllm.memory, "rollout.vllm.memory"
    else:
        chosen = "memory" in cfg.rollout.vllm.model_fields_set
        portion = cfg.rollout.vllm.memory if chosen else SERVER_SHARE
        key = "rollout.vllm.memory" if chosen else "what a server takes"
    share = int(portion * device_bytes)
    weights = size.parameters * width // split
    cache = share - weights - ACTIVATIONS
    by = f" / {split} devices" if split > 1 else ""
    lines: list[tuple[str, int | None, str]] = [
        ("share", share, f"{portion:g} x {device_bytes / GIB:,.0f} GiB ({key})"),
        ("weights", weights, f"P x {width} bytes{by}"),
        ("cache", max(cache, 0), "what is left beside 1 GiB of activations"),
    ]
    tokens = 0
    if size.shape is not None:
        shape = size.shape
        per_token = 2 * shape.layers * shape.keys * width
        tokens = max(cache, 0) * split // per_token
        holds = f"{tokens:,} tokens of L x K x 2 x {width} bytes{by}: {tokens // row:,} completions of {row:,} tokens"
        lines.append(("  holds", None, holds))
    return Sampler(share, weights, cache, tokens, tuple(lines))
