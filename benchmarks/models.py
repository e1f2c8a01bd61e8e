"""Models made from a configuration for the benchmarks, and a policy that never ends a completion.

Left out: real weights. A model with random weights costs what a trained one of its shape costs, but for two things: no
two completions are alike, and nothing ends by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from transformers import Qwen2Config, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from grpo_math.model_size import Shape
from grpo_math.policy import Policy
from grpo_math.small_model import SPECIAL


@dataclass(frozen=True)
class Endless(Policy):
    """Every completion is as long as sampling.max_tokens, so that the work of two samplers is the same."""

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset()


def endless(policy: Policy) -> Endless:
    return Endless(**{item.name: getattr(policy, item.name) for item in fields(policy)})


def tokenizer_of(vocabulary: int) -> Qwen2Tokenizer:
    """`vocabulary` tokens: the characters, then made-up words, which decode like any other."""
    names = [*SPECIAL, *bytes_to_unicode().values()]
    assert vocabulary >= len(names), vocabulary
    names += [f"Ġw{i}" for i in range(vocabulary - len(names))]
    pad, eos = SPECIAL
    numbers = {name: i for i, name in enumerate(names)}
    return Qwen2Tokenizer(vocab=numbers, merges=[], pad_token=pad, eos_token=eos, unk_token=None)


def qwen2_config(shape: Shape, context: int) -> Qwen2Config:
    """Of a model with this shape, without dropout. Token 0 pads and token 1 ends, as in `tokenizer_of`."""
    return Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
