"""A small model and a character tokenizer, made from scratch as ordinary Hugging Face objects.

For `make train` and for tests: nothing is downloaded, and what is saved loads in plain transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from grpo_math import config

SPECIAL = ("<pad>", "<eos>")


def character_tokenizer() -> Qwen2Tokenizer:
    """One token a character, several for one beyond ASCII: a byte-level Qwen2 tokenizer without merges.

    It adds no token of its own to a text.

    Not a tokenizer of another class: for a Qwen2 model AutoTokenizer makes a Qwen2Tokenizer of whatever was saved, with
    its own way of cutting text up, and would drop the newlines of any other."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *bytes_to_unicode().values()])}
    pad, eos = SPECIAL
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token=pad, eos_token=eos, unk_token=None)


def small_model(spec: config.NewModel, tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 model with tied embeddings and random weights that depend on the seed alone."""
    settings = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.context,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        initializer_range=spec.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(settings)
