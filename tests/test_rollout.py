"""The built-in engine: siblings share a row until they part, and the cache follows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer

from grpo_math.batch import pad_rows
from grpo_math.policy import make_policy
from grpo_math.rollout.cache import GrowingLayer, growing, select_rows
from grpo_math.rollout.hf import HFEngine, part
from grpo_math.small_model import character_tokenizer
from grpo_math.types import Sampling, UserError
from tests.tiny import completion, prompt, tiny_policy


@pytest.mark.parametrize("seed", range(20))
def test_part_gives_a_row_to_each_distinct_continuation_and_moves_few(seed):
    generator = torch.Generator().manual_seed(seed)
    before = int(torch.randint(1, 9, (), generator=generator))
    row = torch.randint(0, before, (12,), generator=generator)
    tokens = torch.randint(0, 3, (12,), generator=generator) + 151_000
    index, next_tokens, new = part(row, tokens)
    assert index[new].tolist() == row.tolist()
    assert next_tokens[new].tolist() == tokens.tolist()
    pairs = set(zip(row.tolist(), tokens.tolist(), strict=True))
    assert len(index) == len(pairs) == len(set(zip(index.tolist(), next_tokens.tolist(), strict=True)))
    # a row that goes on, and whose place is still there, keeps one of its continuations in that place
    for parent in {parent for parent, _ in pairs if parent < len(index)}:
        assert int(index[parent]) == parent


@pytest.mark.parametrize("seed", range(5))
def test_the_growing_cache_holds_what_the_stock_one_holds(seed):
    generator = torch.Generator().manual_seed(seed)
    ours, stock = GrowingLayer(max_rows=16, max_tokens=40), DynamicLayer()
    rows = 3
    for step in range(12):
        keys, values = torch.randn(2, rows, 2, 5 if step == 0 else 1, 4, generator=generator)
        for one, other in zip(ours.update(keys, values), stock.update(keys, values), strict=True):
            assert torch.equal(one, other)
        assert ours.get_seq_length() == stock.get_seq_length()
        wanted = int(torch.randint(1, 17, (), generator=generator))
        index = torch.randint(0, rows, (wanted,), generator=generator)
        ours.select(index)
        stock.batch_select_indices(index)
        assert torch.equal(ours.keys, stock.keys)
        rows = wanted


def rows_seen(policy) -> list[int]:
    """The number of rows in each forward pass from now on."""
    seen: list[int] = []
    policy.model.register_forward_pre_hook(
        lambda _, args, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    return seen


def test_siblings_that_say_the_same_are_one_row():
    policy = tiny_policy(sharp=4.0)
    seen = rows_seen(policy)
    (group,) = HFEngine(policy, 64).generate([prompt(policy, "1+1=")], Sampling(16, 12, temperature=0.0))
    assert len({c.token_ids for c in group}) == 1
    assert set(seen) == {1}


def test_rows_are_those_of_distinct_beginnings():
    policy = tiny_policy(sharp=6.0)
    seen = rows_seen(policy)
    prompts = [prompt(policy, text) for text in ("1+1=", "2+2=", "1+1=")]  # two problems may ask the same
    groups = HFEngine(policy, 64).generate(prompts, Sampling(16, 12, temperature=0.7, seed=1))
    said = [(p.token_ids, c.token_ids) for p, group in zip(prompts, groups, strict=True) for c in group]
    for t in range(1, len(seen)):
        beginnings = Counter((asked, ids[:t]) for asked, ids in said if len(ids) > t)
        assert seen[t] == len(beginnings)
    assert 2 < max(seen) < 48


SMALL = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "eos_token_id": 1,
}
KINDS = {  # a cache of each kind that transformers has
    "sliding window": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "softcap": (transformers.Gemma2Config, {"head_dim": 16, "sliding_window": 6}),
    "learned positions": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}),
    "short convolutions": (transformers.Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
    "state space beside attention": (
        transformers.FalconH1Config,
        {
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
        },
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_follows_its_rows(kind):
    """Rows that part and end: the sampler's logprobs are the trainer's, which reads each completion from the start."""
    config, more = KINDS[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(**SMALL, **more))
    policy = make_policy(model, character_tokenizer())
    prompts = [prompt(policy, text) for text in ("1+1=", "a longer prompt: ", "x")]
    groups = HFEngine(policy, 64).generate(prompts, Sampling(6, 20, seed=2))
    pairs = [(p, c) for p, group in zip(prompts, groups, strict=True) for c in group]
    batch = pad_rows(pairs, [True] * len(pairs), policy.pad_id)
    gap = (policy.score(batch, 1.0, 64, 10_000) - batch.sampler_logprobs)[batch.loss_mask].abs().max()
    assert float(gap) < 1e-4
    assert len({c.token_ids for _, c in pairs}) > 6


def test_a_model_with_a_cache_of_its_own_is_refused():
    model = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(**SMALL))
    with pytest.raises(UserError, match="MambaForCausalLM keeps its state in a way of its own"):
        HFEngine(make_policy(model, character_tokenizer()), 4)


def test_under_bf16_the_trainers_head_rounds_as_the_models_own_does():
    """The sampler uses the model's head; one that stayed in float32 would be off by a hundredth of a nat."""
    policy = tiny_policy(sharp=4.0)
    batch = pad_rows([(prompt(policy, "1+1="), completion(range(5, 60)))], [True], policy.pad_id)
    ours, _ = policy.logprobs(batch, 1.0, 16, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        logits = policy.model(input_ids=batch.token_ids, use_cache=False).logits[:, :-1]
    theirs = logits.float().log_softmax(-1).gather(-1, batch.token_ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(ours[:, 1:], theirs * batch.loss_mask[:, 1:], atol=1e-5, rtol=0)


def test_a_hub_models_generation_config_can_be_saved_again(tmp_path):
    policy = tiny_policy()
    policy.model.generation_config.temperature = 0.7
    with pytest.raises(ValueError, match="invalid"):
        policy.model.save_pretrained(tmp_path / "a")
    make_policy(policy.model, policy.tokenizer).model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "generation_config.json").exists()


def test_a_cache_whose_layers_come_with_use_grows_too():
    cache = growing(DynamicCache(), 4, 40)
    keys = torch.randn(2, 1, 3, 4)
    cache.update(keys, keys, 0)
    assert type(cache.layers[0]) is GrowingLayer
    select_rows(cache, torch.tensor([1, 0, 1]))
    assert torch.equal(cache.layers[0].keys, keys[[1, 0, 1]])
