"""The sizes of well-known models of the Hub, for a `plan` on a machine that does not have them.

As their config.json files have it; a test counts the parameters of each. Left out: every other model, and loading.
"""

from __future__ import annotations

import re

from grpo_math.model_size import ModelSize, Shape

# hidden, intermediate, layers, heads, kv heads, head size, vocabulary, tied
_QWEN2: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "0.5B": (896, 4864, 24, 14, 2, 64, 151_936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 128, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 128, 151_936, True),
    "7B": (3584, 18_944, 28, 28, 4, 128, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 128, 152_064, False),
    "32B": (5120, 27_648, 64, 40, 8, 128, 152_064, False),
}
_QWEN3: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "0.6B": (1024, 3072, 28, 16, 8, 128, 151_936, True),
    "1.7B": (2048, 6144, 28, 16, 8, 128, 151_936, True),
    "4B": (2560, 9728, 36, 32, 8, 128, 151_936, True),
    "8B": (4096, 12_288, 36, 32, 8, 128, 151_936, False),
    "14B": (5120, 17_408, 40, 40, 8, 128, 151_936, False),
    "32B": (5120, 25_600, 64, 64, 8, 128, 151_936, False),
}
_LLAMA: dict[str, tuple[int, int, int, int, int, int, int, bool]] = {
    "3.1-8B": (4096, 14_336, 32, 32, 8, 128, 128_256, False),
    "3.1-70B": (8192, 28_672, 80, 64, 8, 128, 128_256, False),
    "3.2-1B": (2048, 8192, 16, 32, 8, 64, 128_256, True),
    "3.2-3B": (3072, 8192, 28, 24, 8, 128, 128_256, True),
}
_LONG = 131_072
_TUNED = re.compile(r"-(?:Instruct|Base)$")


def known_model(hub_id: str) -> ModelSize | None:
    """Of a Hub id such as Qwen/Qwen2.5-7B-Instruct; None where the table does not have it."""
    return _TABLE.get(_TUNED.sub("", hub_id))


def _qwen2(size: str, context: int, tied: bool | None = None) -> ModelSize:
    *numbers, own_tied = _QWEN2[size]
    hidden, intermediate, layers, heads, kv_heads, head_size, vocabulary = numbers
    bias = (heads + 2 * kv_heads) * head_size  # on queries, keys and values
    shape = Shape(
        hidden, intermediate, layers, heads, kv_heads, head_size, vocabulary,
        own_tied if tied is None else tied, bias,
    )  # fmt: skip
    return ModelSize("qwen2", shape.parameters(), context, shape)


def _qwen3(size: str) -> ModelSize:
    shape = Shape(*_QWEN3[size], qk_norm=True)
    return ModelSize("qwen3", shape.parameters(), 40_960, shape)


def _llama(size: str) -> ModelSize:
    shape = Shape(*_LLAMA[size])
    return ModelSize("llama", shape.parameters(), _LONG, shape)


_TABLE: dict[str, ModelSize] = {
    **{f"Qwen/Qwen2.5-{size}": _qwen2(size, 32_768) for size in _QWEN2},
    **{f"Qwen/Qwen2.5-Coder-{size}": _qwen2(size, 32_768) for size in _QWEN2},
    **{f"Qwen/Qwen2.5-Math-{size}": _qwen2(size, 4096) for size in ("1.5B", "7B")},
    **{f"Qwen/Qwen3-{size}": _qwen3(size) for size in _QWEN3},
    **{f"meta-llama/Llama-{size}": _llama(size) for size in _LLAMA},
    **{f"meta-llama/Meta-Llama-{size}": _llama(size) for size in ("3.1-8B", "3.1-70B")},
    # the smallest alone was given a head of its own
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _qwen2("1.5B", _LONG, tied=False),
    **{f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}": _qwen2(size, _LONG) for size in ("7B", "14B", "32B")},
}
