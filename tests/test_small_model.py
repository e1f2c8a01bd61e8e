"""The small model and its tokenizer are ordinary Hugging Face folders."""

from __future__ import annotations

import string

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_math import config
from grpo_math.small_model import character_tokenizer, small_model


@pytest.mark.parametrize(
    "text", ["12+3=?\n\\boxed{5}", "  two  spaces\n\n", string.printable[:95], "Hello it'll do 123", "é≤"]
)
def test_the_tokenizer_is_the_same_after_saving(tmp_path, text):
    """AutoTokenizer picks its class by the model's type, whatever class was saved: once that dropped every newline."""
    tokenizer = character_tokenizer()
    small_model(config.NewModel(), tokenizer, 0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_a_character_is_a_token():
    assert len(character_tokenizer()("12+3=?\n\\boxed{5}")["input_ids"]) == 16


def test_the_weights_depend_on_the_seed_alone_and_load_as_they_were(tmp_path):
    tokenizer = character_tokenizer()
    one, again, other = (small_model(config.NewModel(), tokenizer, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    one.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), loaded.parameters(), strict=True))


def test_the_quickstarts_model_has_half_a_million_to_a_million_parameters():
    from pathlib import Path

    from grpo_math.config_file import load_config

    cfg = load_config(Path(__file__).parents[1] / "launch" / "arithmetic_sft.yaml")
    assert cfg.model.new is not None
    count = sum(p.numel() for p in small_model(cfg.model.new, character_tokenizer(), 0).parameters())
    assert 500_000 <= count <= 1_000_000
