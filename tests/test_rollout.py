"""The built-in engine: siblings share a row until they part, and the cache follows."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache, DynamicLayer

from grpo_math.policy import make_policy
from grpo_math.rollout.cache import GrowingLayer, growing, select_rows
from grpo_math.rollout.hf import HFEngine, part
from grpo_math.small_model import character_tokenizer
from grpo_math.types import Sampling
from tests.tiny import prompt, tiny_policy


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


def test_layers_of_other_kinds_are_sampled_with_alike():
    """A sliding window, whose cache is the stock one."""
    tokenizer = character_tokenizer()
    settings = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    policy = make_policy(Qwen2ForCausalLM(settings), tokenizer)
    kinds = {type(layer) for layer in growing(DynamicCache(config=policy.model.config), 4, 40).layers}
    assert len(kinds) == 2
    prompts = [prompt(policy, text) for text in ("1+1=", "a longer prompt: ")]
    sampling = Sampling(4, 16, seed=2)
    together = HFEngine(policy, 64).generate(prompts, sampling)
    alone = [HFEngine(policy, 1).generate([p], sampling)[0] for p in prompts]
    assert [[c.token_ids for c in g] for g in together] == [[c.token_ids for c in g] for g in alone]


def test_a_cache_whose_layers_come_with_use_grows_too():
    cache = growing(DynamicCache(), 4, 40)
    keys = torch.randn(2, 1, 3, 4)
    cache.update(keys, keys, 0)
    assert type(cache.layers[0]) is GrowingLayer
    select_rows(cache, torch.tensor([1, 0, 1]))
    assert torch.equal(cache.layers[0].keys, keys[[1, 0, 1]])
