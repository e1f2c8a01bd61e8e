"""Log-probabilities: temperature, the sampled token, no dropout, never re-tokenised, padding, sampler = trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_math import config
from grpo_math.batch import pad_rows
from grpo_math.loading import switch_off_dropout
from grpo_math.logprobs import token_logprobs
from grpo_math.policy import make_policy
from grpo_math.rollout.hf import HFEngine
from grpo_math.rollout.sampler import draw, keep_likely
from grpo_math.types import Sampling
from tests.tiny import completion, prompt, tiny_policy


def test_temperature_is_in_them():
    """logits [2, 0] at T = .5: -.01815, not -.12693."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[2.0], [0.0]])
    value, _ = token_logprobs(hidden, weight, None, torch.tensor([0]), scale=1 / 0.5)
    assert float(value) == pytest.approx(-0.01815, abs=1e-5)
    tokens, sampled = draw(
        torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64), Sampling(1, 1, 0.5)
    )
    assert int(tokens) == 0
    assert float(sampled) == pytest.approx(-0.01815, abs=1e-5)


def test_training_refuses_top_p_and_top_k_with_a_reason():
    for wrong in ({"top_p": 0.9}, {"top_k": 20}):
        with pytest.raises(ValueError, match="where the trainer cannot follow"):
            config.SamplingConfig(**wrong)


def test_top_p_and_top_k_renormalise_what_they_keep():
    logprobs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = keep_likely(logprobs, 2, 1.0).exp()
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    kept = keep_likely(logprobs, 0, 0.79).exp()  # .5 + .3 reaches it: two tokens
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


def test_the_sampled_tokens_logprob_not_the_likeliest_ones():
    """{a: -.1, sampled: -3}: -3."""
    rest = 1 - math.exp(-0.1) - math.exp(-3.0)
    logits = torch.tensor([[-0.1, math.log(rest), -3.0]])
    tokens, sampled = draw(logits, torch.tensor([0]), torch.tensor([0.9999], dtype=torch.float64), Sampling(1, 1))
    assert int(tokens) == 2
    assert float(sampled) == pytest.approx(-3.0, abs=1e-5)


def test_the_draw_follows_the_distribution():
    p = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, _ = draw(p.log()[None], torch.zeros(10_000, dtype=torch.long), uniform, Sampling(1, 1))
    counts = torch.bincount(tokens, minlength=4).double() / 10_000
    torch.testing.assert_close(counts, p.double(), atol=2e-4, rtol=0)


def test_no_dropout_in_training_forward_passes():
    policy = tiny_policy()
    policy.model.config.attention_dropout = 0.5
    switch_off_dropout(policy.model.config)
    model = type(policy.model)(policy.model.config)
    again = make_policy(model, policy.tokenizer)
    again.model.train()
    asked = prompt(again, "1+1=")
    batch = pad_rows([(asked, completion([5, 6, 7]))], [True], again.pad_id)
    first, _ = again.logprobs(batch, 1.0, 64)
    second, _ = again.logprobs(batch, 1.0, 64)
    assert torch.equal(first, second)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_samplers_logprobs_are_the_trainers(temperature):
    policy = tiny_policy(sharp=4.0)
    prompts = [prompt(policy, text) for text in ("1+1=", "What is 12 times 3?", "x")]
    rows = HFEngine(policy, max_rows=5).generate(prompts, Sampling(4, 20, temperature, seed=3))
    pairs = [(p, c) for p, group in zip(prompts, rows, strict=True) for c in group]
    batch = pad_rows(pairs, [True] * len(pairs), policy.pad_id)
    ours = policy.score(batch, temperature, 64, 256)
    gap = (ours - batch.sampler_logprobs)[batch.loss_mask].abs().max()
    assert float(gap) < 2e-5
    assert len({c.token_ids for _, c in pairs}) > 6  # it did sample


def test_padding_side_and_amount_do_not_matter():
    policy = tiny_policy(sharp=4.0)
    asked = prompt(policy, "12+34=")
    short, long = completion([5, 6, 7, 8]), completion(list(range(5, 45)))
    alone = pad_rows([(asked, short)], [True], policy.pad_id)
    beside = pad_rows([(asked, short), (asked, long)], [True, True], policy.pad_id)
    one, _ = policy.logprobs(alone, 1.0, 64)
    two, _ = policy.logprobs(beside, 1.0, 64)
    torch.testing.assert_close(two[0, : one.shape[1]], one[0], atol=1e-5, rtol=0)
    other_pad = replace(beside, token_ids=beside.token_ids.masked_fill(~_filled(beside), 9))
    three, _ = policy.logprobs(other_pad, 1.0, 64)
    torch.testing.assert_close(three, two, atol=1e-5, rtol=0)


def _filled(batch):
    return torch.arange(batch.token_ids.shape[1])[None] < batch.lengths[:, None]


def test_left_padded_prompts_sample_what_they_sample_alone():
    policy = tiny_policy(sharp=4.0)
    prompts = [prompt(policy, text) for text in ("1+1=", "a much longer prompt than the first: ", "x", "12+30=")]
    sampling = Sampling(3, 24, seed=5)
    together = HFEngine(policy, max_rows=64).generate(prompts, sampling)
    alone = [HFEngine(policy, max_rows=1).generate([p], sampling)[0] for p in prompts]
    for row, other in zip(together, alone, strict=True):
        assert [c.token_ids for c in row] == [c.token_ids for c in other]
        for a, b in zip(row, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_never_retokenised():
    """A tokenizer where "he" + "llo" decode, and re-encode, to "hello": the trained ids are the sampled ones."""
    vocabulary = {"<eos>": 0, "he": 1, "llo": 2, "hello": 3, "x": 4}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    assert tokenizer.decode([1, 2]) == "hello"
    assert tokenizer("hello")["input_ids"] == [3]
    asked = replace(prompt(tiny_policy(), "x"), token_ids=(4,))
    sampled = replace(completion([1, 2, 0]), text="hello")
    batch = pad_rows([(asked, sampled)], [True], 0)
    assert batch.token_ids[0].tolist() == [4, 1, 2, 0]
    assert batch.loss_mask[0].tolist() == [False, True, True, True]
