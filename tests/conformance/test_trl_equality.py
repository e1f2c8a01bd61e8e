"""Values and gradients equal to those of TRL's own code, to 1e-6, on random inputs.

TRL's methods run as they are installed: _compute_loss and _generate_and_score_completions are called with a stand-in
for the trainer object that has the attributes they read, and that answers the calls for log-probabilities, completions
and rewards with our tensors. Not compared, because TRL has no counterpart: REINFORCE++, MaxRL, pass@k and GPG
advantages, k1 and k2, the geometric mask, CISPO's lower bound.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.advantages import group_center, group_norm, group_norm_batch_scale, leave_one_out
from grpo_math.correction import CORRECTIONS
from grpo_math.losses import LOSSES, REDUCTIONS, make_loss, resolve

pytest.importorskip("trl")

from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

# B completions, C completion tokens at most, P prompt tokens (ours are rows of P + C, TRL's of C)
PROMPT = 2
CONSTANT_LENGTH = 11  # Dr. GRPO's; TRL calls it max_completion_length
SHAPES = [(1, 1), (2, 9), (6, 5), (16, 12)]
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
# (loss_type, importance_sampling_level); reinforce has none and gets tests of its own
TRL_NAMES = {name: (name, "token") for name in LOSSES if name not in ("gspo", "reinforce")} | {
    "gspo": ("grpo", "sequence")
}
NO_KL = config.KL()
PLAIN_KL = config.KL(coefficient=0.3, unbiased=False)
UNBIASED_KL = config.KL(coefficient=0.3, unbiased=True)


@dataclass(frozen=True)
class Sample:
    """Random tensors of TRL's shape (B, C); the mask is ragged, with an empty row where there are more than two."""

    mask: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    sampler_logprobs: Tensor
    entropy: Tensor
    advantages: Tensor  # (B,)

    def leaf(self) -> Tensor:
        return self.logprobs.clone().requires_grad_()


def sample(rows: int, width: int, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(1000 * seed + rows)

    def normal(scale: float, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0] = width
    if rows > 2:
        lengths[1] = 0
    logprobs = -normal(1.5, rows, width).abs()
    # steps large enough that every bound is crossed by some token, in both directions
    old, ref, sampler = (logprobs + normal(scale, rows, width) for scale in (0.4, 0.7, 0.5))
    mask = torch.arange(width) < lengths[:, None]
    return Sample(mask, logprobs, old, ref, sampler, normal(1.0, rows, width).abs(), normal(1.0, rows))


# TRL's side


def stand_in(loss_type: str = "grpo", level: str = "token", beta: float = 0.0, **more: Any) -> SimpleNamespace:
    """The part of a GRPOTrainer that its loss and its scoring read: one process, no gradient accumulation."""
    args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
    )
    vars(args).update({key: more.pop(key) for key in list(more) if hasattr(args, key)})
    accelerator = SimpleNamespace(
        num_processes=1, process_index=0, device="cpu", gather=lambda x: x, reduce=lambda x, reduction: x
    )
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    settings: dict[str, Any] = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "beta": beta,
        "args": args,
        "epsilon_low": CLIP["clip_low"],
        "epsilon_high": 5.0 if loss_type == "cispo" else CLIP["clip_high"],
        "max_completion_length": CONSTANT_LENGTH,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "accelerator": accelerator,
        "current_gradient_accumulation_steps": 1,
        "num_iterations": 1,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "_metrics": metrics,
    }
    return SimpleNamespace(**(settings | more))


def compute_loss(cls: Any, trainer: SimpleNamespace, inputs: dict[str, Any]) -> Tensor:
    loss: Tensor = cls._compute_loss(trainer, None, inputs)
    return loss


def trl_loss(
    trainer: SimpleNamespace, data: Sample, logprobs: Tensor, entropy: Tensor | None = None, **more: Any
) -> Tensor:
    """GRPOTrainer._compute_loss on these tensors; `more` replaces what it would find in its batch."""
    entropies = data.entropy if entropy is None else entropy
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropies, None)
    ids = torch.zeros(data.mask.shape, dtype=torch.long)
    prompt = torch.zeros(len(ids), PROMPT, dtype=torch.long)
    inputs: dict[str, Any] = {
        "prompt_ids": prompt,
        "prompt_mask": prompt + 1,
        "completion_ids": ids,
        "completion_mask": data.mask.long(),
        "advantages": data.advantages,
        "old_per_token_logps": data.old_logprobs,
        "ref_per_token_logps": data.ref_logprobs,
        "num_items_in_batch": data.mask.sum(),
    }
    return compute_loss(GRPOTrainer, trainer, inputs | more)


# Our side


def our_loss(
    settings: config.Loss,
    data: Sample,
    logprobs: Tensor,
    kl: config.KL = NO_KL,
    correction: config.Correction | None = None,
    entropy: Tensor | None = None,
    on_policy: bool = False,
) -> Tensor:
    def row(values: Tensor, prompt: float = math.nan) -> Tensor:
        """(B, C) -> (B, P + C); what stands at the prompt must not matter."""
        return torch.cat([torch.full((len(values), PROMPT), prompt, dtype=values.dtype), values], 1)

    mask = row(data.mask, prompt=False)
    batch = SimpleNamespace(
        loss_mask=mask,
        weights=REDUCTIONS[resolve(settings)[2]](mask, CONSTANT_LENGTH),
        advantages=row(data.advantages[:, None].expand(data.mask.shape)),
        old_logprobs=None if on_policy else row(data.old_logprobs),
        ref_logprobs=row(data.ref_logprobs) if kl.coefficient else None,
        sampler_logprobs=row(data.sampler_logprobs),
    )
    loss_fn = make_loss(settings, kl, correction or config.Correction())
    return loss_fn(row(logprobs), row(data.entropy if entropy is None else entropy), batch, kl.coefficient)[0]


def settings_of(name: str, **more: Any) -> config.Loss:
    return config.Loss.model_validate({"name": name, **CLIP, **more})


def assert_equal(ours: Tensor, theirs: Tensor, our_leaf: Tensor, their_leaf: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    (gradient,), (expected,) = torch.autograd.grad(ours, our_leaf), torch.autograd.grad(theirs, their_leaf)
    assert expected.abs().sum() > 0 or expected.numel() == 1  # the only token may be a clipped one
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


# Losses


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "kl"),
    [
        (name, kl)
        for name in TRL_NAMES
        for kl in (NO_KL, PLAIN_KL, UNBIASED_KL)
        # under GSPO TRL weighs a token's KL by its whole sequence's ratio; ours by its own, which is the unbiased one
        if not (name == "gspo" and kl is UNBIASED_KL)
    ],
)
def test_loss(name: str, kl: config.KL, shape: tuple[int, int]) -> None:
    loss_type, level = TRL_NAMES[name]
    for seed in range(3):
        data = sample(*shape, seed)
        logprobs, their_logprobs = data.leaf(), data.leaf()
        trainer = stand_in(loss_type, level, kl.coefficient, use_bias_correction_kl=kl.unbiased)
        theirs = trl_loss(trainer, data, their_logprobs)
        assert_equal(our_loss(settings_of(name), data, logprobs, kl), theirs, logprobs, their_logprobs)


@pytest.mark.parametrize("name", TRL_NAMES)
def test_loss_on_policy(name: str) -> None:
    data = sample(6, 5)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = trl_loss(stand_in(*TRL_NAMES[name]), data, their_logprobs, old_per_token_logps=None)
    assert_equal(our_loss(settings_of(name), data, logprobs, on_policy=True), theirs, logprobs, their_logprobs)


@pytest.mark.parametrize("name", sorted(set(TRL_NAMES) - {"bnpo"}))  # TRL's bnpo is by definition per micro-batch
def test_loss_of_a_step_in_micro_batches(name: str) -> None:
    """TRL adds up two micro-batches, scaled as its Trainer would have them; ours is the whole step at once."""
    data = sample(8, 7)
    trainer = stand_in(*TRL_NAMES[name], current_gradient_accumulation_steps=2, steps_per_generation=2)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = torch.zeros(())
    for half in (slice(0, 4), slice(4, 8)):
        part = Sample(*(values[half] for values in vars(data).values()))
        theirs = theirs + trl_loss(trainer, part, their_logprobs[half], num_items_in_batch=data.mask.sum())
    assert_equal(our_loss(settings_of(name), data, logprobs), theirs, logprobs, their_logprobs)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_dual_clip_is_their_delta(name: str) -> None:
    data = sample(16, 12)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = trl_loss(stand_in(*TRL_NAMES[name], delta=1.4), data, their_logprobs)
    settings = settings_of(name, surrogate="dual_clip", dual_clip=1.4)
    assert_equal(our_loss(settings, data, logprobs), theirs, logprobs, their_logprobs)
    if name != "gspo":  # a geometric mean seldom goes that far
        assert theirs.item() != pytest.approx(our_loss(settings_of(name), data, logprobs).item(), abs=1e-4)


def test_cispo_bound() -> None:
    data = sample(16, 12)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = trl_loss(stand_in("cispo", epsilon_high=1.1), data, their_logprobs)
    assert_equal(our_loss(settings_of("cispo", cispo_high=1.1), data, logprobs), theirs, logprobs, their_logprobs)


def test_sapo_temperatures() -> None:
    data = sample(16, 12)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = trl_loss(stand_in("sapo", sapo_temperature_pos=0.5, sapo_temperature_neg=3.0), data, their_logprobs)
    settings = settings_of("sapo", sapo_positive=0.5, sapo_negative=3.0)
    assert_equal(our_loss(settings, data, logprobs), theirs, logprobs, their_logprobs)


@pytest.mark.parametrize(
    ("reduction", "name"), [("sequence_mean", "grpo"), ("token_mean", "dapo"), ("constant_length", "dr_grpo")]
)
def test_reinforce_is_their_loss_on_policy(reduction: str, name: str) -> None:
    data = sample(6, 5)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    theirs = trl_loss(stand_in(name), data, their_logprobs, old_per_token_logps=None)
    ours = our_loss(settings_of("reinforce", reduction=reduction), data, logprobs)  # old_logprobs make no difference
    assert_equal(ours, theirs, logprobs, their_logprobs)


def test_reinforce_has_the_gradient_of_their_rloo() -> None:
    """The values differ: RLOOTrainer has one ratio per completion, so its loss is -mean A; ours sums over tokens."""
    data = sample(6, 5)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    trainer = stand_in()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (their_logprobs, data.entropy, None)
    ids = torch.zeros(data.mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": data.mask.long(),
        "advantages": data.advantages,
        "old_logps": (data.logprobs * data.mask).sum(1),
    }
    theirs = compute_loss(RLOOTrainer, trainer, inputs)
    (expected,) = torch.autograd.grad(theirs, their_logprobs)
    (gradient,) = torch.autograd.grad(our_loss(settings_of("reinforce"), data, logprobs), logprobs)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["bnpo", "dapo"]
)  # their bonus is a token mean under every loss, ours follows the reduction
def test_entropy_bonus(name: str) -> None:
    data = sample(6, 5)
    logprobs, their_logprobs = data.leaf(), data.leaf()
    entropy, their_entropy = data.entropy.clone().requires_grad_(), data.entropy.clone().requires_grad_()
    trainer = stand_in(name, _entropy_bonus_enabled=True, entropy_coef=0.05)
    trainer.accelerator.sync_gradients = True
    theirs = trl_loss(trainer, data, their_logprobs, their_entropy)
    ours = our_loss(settings_of(name, entropy_bonus=0.05), data, logprobs, entropy=entropy)
    (gradient,) = torch.autograd.grad(ours, entropy, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs, their_entropy, retain_graph=True)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)
    assert_equal(ours, theirs, logprobs, their_logprobs)


def test_entropy_without_a_bonus_is_only_logged() -> None:
    data = sample(6, 5)
    entropy = data.entropy.clone().requires_grad_()
    logprobs = data.leaf()
    ours = our_loss(settings_of("grpo"), data, logprobs, entropy=entropy)
    (gradient,) = torch.autograd.grad(ours, entropy, allow_unused=True)
    assert gradient is None


# Scoring: advantages and the sampler's mismatch, out of one method of TRL's


def trl_scoring(trainer: SimpleNamespace, data: Sample, rewards: Tensor, cls: Any = GRPOTrainer) -> dict[str, Tensor]:
    """_generate_and_score_completions with completions of the lengths in data.mask, and these rewards (B,)."""
    lengths = data.mask.sum(1).tolist()
    completions = [[1] * length for length in lengths]
    sampler = [values[:length].tolist() for values, length in zip(data.sampler_logprobs, lengths, strict=True)]
    prompts: list[Any] = [[1] * PROMPT] * len(lengths)
    generated: tuple[Any, ...] = (prompts, completions, None, [""] * len(lengths), sampler, {}, None, [])
    logs: dict[str, Any] = defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)}
    vars(trainer).update(
        _generate=lambda _: generated if cls is GRPOTrainer else (prompts, completions, generated[3]),
        _calculate_rewards=lambda *_: rewards[:, None],
        _get_per_token_logps_and_entropies=lambda *_, **__: (data.old_logprobs, None, None),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs=logs,
        _pending_extra_logs={},
        _pending_metrics={},
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=torch.ones(1, dtype=rewards.dtype),
        reward_func_names=["reward"],
    )
    scored: dict[str, Tensor] = cls._generate_and_score_completions(trainer, [{"prompt": ""}] * len(lengths))
    return scored


def full(rows: int) -> Sample:
    """A sample whose completions all have a token, as completions do."""
    data = sample(rows, 5)
    data.mask[:, 0] = True
    return data


def random_rewards(kind: str, seed: int) -> Tensor:
    """(P, G) in float64, to compare formulas and not roundings; `missing` has a group of one score and one of none."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(8, 5, generator=generator, dtype=torch.float64)
    if kind == "binary":
        rewards = rewards.round()
    if kind == "missing":
        rewards = rewards.masked_fill(torch.rand(8, 5, generator=generator) < 0.4, torch.nan)
        rewards[0, 1:], rewards[1] = torch.nan, torch.nan
    return rewards


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["dense", "binary", "missing"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(scale: str, kind: str, seed: int) -> None:
    rewards = random_rewards(kind, seed)
    trainer = stand_in(num_generations=5, scale_rewards=scale)
    theirs = trl_scoring(trainer, full(rewards.numel()), rewards.flatten())["advantages"].view_as(rewards)
    ours = {
        "group": lambda: group_norm(rewards, eps=1e-4),
        "batch": lambda: group_norm_batch_scale(rewards, eps=1e-4),
        "none": lambda: group_center(rewards),
    }[scale]()
    assert theirs.abs().sum() > 1
    torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["dense", "binary", "missing"])
def test_leave_one_out(kind: str) -> None:
    rewards = random_rewards(kind, 0)
    trainer = stand_in(num_generations=5, normalize_advantages=False, reward_clip_range=None)
    theirs = trl_scoring(trainer, full(rewards.numel()), rewards.flatten(), RLOOTrainer)["advantages"].view_as(rewards)
    torch.testing.assert_close(leave_one_out(rewards).double(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_correction(name: str) -> None:
    data, (low, high) = full(16), (0.6, 1.7)
    data.sampler_logprobs[0, 0] = torch.nan  # vLLM has these
    trainer = stand_in(
        num_generations=4,
        scale_rewards="none",
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=name,
        vllm_importance_sampling_clip_min=low if name.endswith("mask") else None,
        vllm_importance_sampling_clip_max=high,
    )
    scored = trl_scoring(trainer, data, data.advantages)
    theirs = scored["importance_sampling_ratio"].expand(data.mask.shape)
    ours = CORRECTIONS[name](data.old_logprobs, data.sampler_logprobs, data.mask, low, high)
    torch.testing.assert_close(ours[data.mask], theirs[data.mask], atol=1e-6, rtol=1e-6)
    at_bound = theirs[data.mask] == (0 if name.endswith("mask") else high)
    assert at_bound.any()
    assert not at_bound.all()

    # and it acts on the surrogate, not on the KL
    logprobs, their_logprobs = data.leaf(), data.leaf()
    trainer.loss_type, trainer.importance_sampling_level, trainer.beta = "dapo", "token", PLAIN_KL.coefficient
    weighted = trl_loss(trainer, data, their_logprobs, importance_sampling_ratio=scored["importance_sampling_ratio"])
    correction = config.Correction.model_validate({"name": name, "low": low, "high": high})
    assert_equal(
        our_loss(settings_of("dapo"), data, logprobs, PLAIN_KL, correction), weighted, logprobs, their_logprobs
    )
