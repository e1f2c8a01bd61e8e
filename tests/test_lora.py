"""Adapters: they start as nothing, are trained alone, and are handed on merged, as an adapter, or switched off."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_math import config
from grpo_math.backend.torch import TorchBackend
from grpo_math.lora import adapter_off, engine_weights
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.policy import load_policy
from grpo_math.preflight import check_model
from grpo_math.types import UserError
from tests.test_backend import make_rows
from tests.tiny import save_tiny

CPU = torch.device("cpu")


def lora_policy(path: Path, **values: object):
    torch.manual_seed(0)  # A starts at random
    return load_policy(config.Model(path=str(path), lora=config.LoRA(rank=4, **values)), CPU)


def trained(policy, steps: int = 3) -> TorchBackend:
    optimizer = config.Optimizer(learning_rate=1e-2)
    backend = TorchBackend(policy, config.Backend(device="cpu"), optimizer, 100, 10_000, temperature=1.0)
    loss = make_loss(config.Loss(), config.KL(), config.Correction())
    for _ in range(steps):
        backend.step(make_rows(policy), lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))
    return backend


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "base")


def test_an_adapter_changes_nothing_before_training_and_is_all_that_is_trained(base):
    plain, adapted = load_policy(config.Model(path=str(base)), CPU), lora_policy(base)
    batch = make_rows(plain)
    assert torch.equal(plain.score(batch, 1.0, 64, 10_000), adapted.score(batch, 1.0, 64, 10_000))
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    trained(adapted)
    changed = {name for name, p in adapted.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert changed == {name for name in before if ".lora_" in name}


def test_merged_weights_are_those_of_the_adapted_model(base):
    """W + alpha / r B A under the names of the base model, the tied head too."""
    adapted = lora_policy(base, alpha=3.0)
    trained(adapted)
    plain = load_policy(config.Model(path=str(base)), CPU)
    merged = {name: tensor.clone() for name, tensor in engine_weights(adapted.model, adapted.lora)}
    assert merged.keys() == dict(plain.model.named_parameters(remove_duplicate=False)).keys()
    name = "model.layers.0.self_attn.q_proj"
    layer = adapted.model.get_submodule(name)
    by_hand = layer.base_layer.weight + 3.0 / 4 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(merged[f"{name}.weight"], by_hand)
    plain.model.load_state_dict(merged)
    batch = make_rows(plain)
    ours, theirs = adapted.score(batch, 1.0, 64, 10_000), plain.score(batch, 1.0, 64, 10_000)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_reference_is_the_model_with_the_adapter_off(base):
    adapted = lora_policy(base)
    backend = trained(adapted, steps=0)
    reference = backend.reference(config.KL(coefficient=0.1))
    batch = make_rows(adapted)
    start = adapted.score(batch, 1.0, 64, 10_000)
    backend = trained(adapted)
    assert torch.equal(reference.logprobs(batch), start)
    assert not torch.allclose(backend.logprobs(batch), start, atol=1e-4)
    with adapter_off(adapted.model):
        pass
    assert not torch.allclose(backend.logprobs(batch), start, atol=1e-4)


def test_a_checkpoint_is_the_adapter_and_on_request_the_merged_model(base, tmp_path):
    adapted = lora_policy(base, save_merged=True)
    backend = trained(adapted)
    saved = tmp_path / "saved"
    saved.mkdir()
    backend.save(saved)
    names = load_file(saved / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    assert not (saved / "model.safetensors").exists()
    batch = make_rows(adapted)
    ids = batch.token_ids
    ours = adapted.model(input_ids=ids).logits
    for folder in (saved, saved / "merged"):
        check_model(str(folder))
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.testing.assert_close(model(input_ids=ids).logits, ours, atol=1e-4, rtol=1e-4)
        again = load_policy(config.Model(path=str(folder)), CPU)
        torch.testing.assert_close(again.score(batch, 1.0, 64, 10_000), backend.logprobs(batch), atol=1e-5, rtol=0)


def test_training_goes_on_from_a_checkpoint_to_the_same_numbers(base, tmp_path):
    whole = trained(lora_policy(base), steps=3)
    first = trained(lora_policy(base), steps=2)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    policy = lora_policy(base)
    second = trained(policy, steps=0)
    second.load(tmp_path / "saved")
    loss = make_loss(config.Loss(), config.KL(), config.Correction())
    second.step(make_rows(policy), lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))
    for a, b in zip(whole.policy.model.parameters(), policy.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_rank_is_refused(base, tmp_path):
    backend = trained(lora_policy(base, targets=["q_proj"]), steps=1)
    (tmp_path / "saved").mkdir()
    backend.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"of another model .* model\.lora"):
        trained(lora_policy(base), steps=0).load(tmp_path / "saved")


def test_an_adapter_on_top_of_an_adapter_is_refused(base, tmp_path):
    backend = trained(lora_policy(base), steps=1)
    (tmp_path / "saved").mkdir()
    backend.save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"save_merged=true"):
        lora_policy(tmp_path / "saved")


def test_layers_that_are_not_there_are_refused_with_those_that_are(base):
    with pytest.raises(UserError, match=r"model\.lora\.targets=.*wq.*q_proj"):
        lora_policy(base, targets=["wq"])


def test_an_untied_head_is_no_target_and_is_handed_on(tmp_path):
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tied = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "tied"))
    settings = Qwen2Config.from_pretrained(tmp_path / "tied", tie_word_embeddings=False)
    model = Qwen2ForCausalLM(settings)
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tmp_path / "tied").save_pretrained(tmp_path / "untied")
    policy = lora_policy(tmp_path / "untied")
    merged = dict(engine_weights(policy.model, policy.lora))
    assert torch.equal(merged["lm_head.weight"], model.lm_head.weight)
    assert type(policy.model.lm_head) is torch.nn.Linear
    assert tied.config.tie_word_embeddings


def test_bfloat16_freezes_half_the_bytes_and_trains_the_adapter_in_float32(base):
    model = config.Model(path=str(base), lora=config.LoRA(rank=4))
    policy = load_policy(model, CPU, torch.bfloat16)
    kinds = {(".lora_" in name, p.dtype) for name, p in policy.model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    settings = config.Backend(device="cpu", dtype="bfloat16")
    backend = TorchBackend(policy, settings, config.Optimizer(learning_rate=1e-2), 9, 10_000, temperature=1.0)
    batch = make_rows(policy)
    batch = replace(batch, weights=REDUCTIONS["token_mean"](batch.loss_mask, 16))
    before = copy.deepcopy(backend.logprobs(batch))
    backend.step(batch, lambda logprobs, entropy, part: (-(logprobs * part.weights).sum(), {}))
    after = backend.logprobs(batch)
    assert float((after - before)[batch.loss_mask].mean()) > 0
