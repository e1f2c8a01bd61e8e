"""The torch backend: splits change nothing, bad gradients are skipped, what is saved loads."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_math import config
from grpo_math.backend.torch import GIVE_UP_AFTER, TorchBackend, schedule
from grpo_math.batch import pad_rows
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.types import UserError
from tests.tiny import completion, prompt, tiny_policy


def make_backend(policy, budget=10_000, **optimizer):
    settings = config.Optimizer(learning_rate=1e-3, **optimizer)
    return TorchBackend(policy, config.Backend(device="cpu"), settings, 100, budget, temperature=1.0)


def make_rows(policy, reduction="token_mean"):
    lengths = (2, 8, 5, 11)
    pairs = [(prompt(policy, "1+" * (i + 1)), completion(range(5, 5 + n))) for i, n in enumerate(lengths)]
    batch = pad_rows(pairs, [True] * 4, policy.pad_id)
    batch = replace(batch, weights=REDUCTIONS[reduction](batch.loss_mask, 16))
    return batch.with_advantages(torch.tensor([1.0, -1.0, 0.5, -0.5]))


def gradient(policy, batch, budget, loss):
    backend = make_backend(policy, budget)
    seen = {}

    def keep(norm):
        seen.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})
        return True

    backend._update_if_finite = keep
    backend.max_grad_norm = 1e9
    metrics = backend.step(batch, lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))
    return seen, metrics


@pytest.mark.parametrize("reduction", list(REDUCTIONS))
def test_micro_batches_change_neither_gradient_nor_loss(reduction):
    policy = tiny_policy(sharp=3.0)
    batch = make_rows(policy, reduction)
    batch = replace(batch, old_logprobs=policy.score(batch, 1.0, 64, 10_000) + 0.1 * batch.loss_mask)
    loss = make_loss(config.Loss(), config.KL(), config.Correction())
    whole, one = gradient(policy, batch, 10_000, loss)
    split, four = gradient(policy, batch, 1, loss)
    assert len(batch.micro_batches(1)) == 4
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=1e-6, rtol=1e-5)
    assert any(value.abs().sum() > 0 for value in whole.values())
    for name in one:
        assert four[name] == pytest.approx(one[name], abs=1e-5), name


def test_merged_copies_change_neither_gradient_nor_metrics():
    policy = tiny_policy(sharp=3.0)
    batch = make_rows(policy).rows([0, 1, 1, 2, 3, 0, 1])
    batch = replace(batch, weights=batch.weights * 4 / 7)
    batch = replace(batch, old_logprobs=policy.score(batch, 1.0, 64, 10_000) + 0.1 * batch.loss_mask)
    merged = batch.merge_copies()
    assert merged.copies.tolist() == [2, 3, 1, 1]
    loss = make_loss(config.Loss(), config.KL(), config.Correction())
    whole, metrics = gradient(policy, batch, 10_000, loss)
    once, same = gradient(policy, merged, 10_000, loss)
    for name, value in whole.items():
        torch.testing.assert_close(once[name], value, atol=1e-6, rtol=1e-5)
    for name in metrics:
        assert same[name] == pytest.approx(metrics[name], abs=1e-5), name


def test_on_policy_first_update_has_ratio_1_and_reinforces_gradient():
    policy = tiny_policy(sharp=3.0)
    batch = make_rows(policy)
    grpo, metrics = gradient(policy, batch, 10_000, make_loss(config.Loss(), config.KL(), config.Correction()))
    assert metrics["loss/ratio"] == pytest.approx(1.0)
    logprobs, _ = policy.logprobs(batch, 1.0, 64)
    policy.model.zero_grad()
    (-(logprobs * batch.advantages * batch.weights).sum()).backward()
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(grpo[name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_a_gradient_that_is_not_finite_changes_no_weight_and_three_in_a_row_stop_the_run():
    policy = tiny_policy()
    backend, batch = make_backend(policy), make_rows(policy)
    before = copy.deepcopy(policy.model.state_dict())

    def broken(logprobs, entropy, part):
        return logprobs.sum() * float("nan"), {}

    metrics = backend.step(batch, broken)
    assert metrics["optim/skipped"] == 1.0
    assert all(torch.equal(before[n], t) for n, t in policy.model.state_dict().items())
    for _ in range(GIVE_UP_AFTER - 2):
        backend.step(batch, broken)
    with pytest.raises(RuntimeError, match="not finite"):
        backend.step(batch, broken)


def test_what_is_saved_loads_in_plain_transformers_and_goes_on_the_same(tmp_path):
    policy = tiny_policy()
    backend, batch = make_backend(policy), make_rows(policy)
    loss = make_loss(config.Loss(), config.KL(), config.Correction())

    def update(target):
        target.step(batch, lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))

    update(backend)
    backend.save(tmp_path)
    other = make_backend(tiny_policy(seed=1))
    other.load(tmp_path)
    update(backend)
    update(other)
    for (name, a), (_, b) in zip(backend.weights(), other.weights(), strict=True):
        assert torch.equal(a, b), name
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("1+1=", return_tensors="pt")["input_ids"]
    assert model(ids).logits.shape == (1, 4, len(tokenizer))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    backend = make_backend(tiny_policy())
    backend.save(tmp_path)
    from safetensors.torch import load_file, save_file

    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="another model"):
        backend.load(tmp_path)


def test_tied_weights_are_given_under_each_of_their_names():
    names = [name for name, _ in make_backend(tiny_policy()).weights()]
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" in names


@pytest.mark.parametrize(
    ("name", "final", "values"),
    [
        ("constant", 0.0, {0: 1 / 3, 1: 2 / 3, 2: 1.0, 51: 1.0, 100: 1.0}),
        ("linear", 0.0, {0: 1 / 3, 2: 1.0, 51: 0.5, 100: 0.0}),
        ("cosine", 0.1, {2: 1.0, 51: 0.55, 100: 0.1}),
    ],
)
def test_schedules(name, final, values):
    factor = schedule(config.Optimizer(schedule=name, warmup_steps=2, final_share=final), 100)
    for update, expected in values.items():
        assert factor(update) == pytest.approx(expected), update


def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = tiny_policy(sharp=2.0), tiny_policy(sharp=2.0)
    settings = config.Backend(device="cpu", gradient_checkpointing=True)
    TorchBackend(saving, settings, config.Optimizer(), 10, 1000, 1.0)
    assert saving.model.is_gradient_checkpointing
    for policy in (plain, saving):
        logprobs, _ = policy.logprobs(make_rows(policy), 1.0, 64)
        logprobs.sum().backward()
    for (name, a), (_, b) in zip(plain.model.named_parameters(), saving.model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_bf16_autocast_keeps_float32_weights_and_is_near_float32():
    policy = tiny_policy(sharp=2.0)
    batch = make_rows(policy)
    exact = policy.score(batch, 1.0, 64, 1000)
    rough = policy.score(batch, 1.0, 64, 1000, torch.bfloat16)
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())
