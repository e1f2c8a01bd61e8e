"""CONFORMANCE.md, section "Loss": one test a row, named after the property, with the numbers worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.algorithms import ALGORITHMS
from grpo_math.correction import CORRECTIONS
from grpo_math.losses import LOSSES, RATIOS, REDUCTIONS, SURROGATES, make_loss, resolve

LENGTHS = (2, 8)  # the two completions that CONFORMANCE.md reckons with
CONSTANT_LENGTH = 16


def mask_of(lengths: tuple[int, ...] | list[int]) -> Tensor:
    """Rows of one prompt token, `length` trained tokens, then padding."""
    position = torch.arange(1 + max(lengths))
    ends = 1 + torch.tensor(lengths)[:, None]
    return (position >= 1) & (position < ends)


def batch_of(mask: Tensor, advantages: Tensor, reduction: str, **more: Any) -> SimpleNamespace:
    """advantages: (B,) or (B, T)."""
    spread = advantages if advantages.dim() == 2 else advantages[:, None].expand(mask.shape)
    tensors: dict[str, Any] = {"sampler_logprobs": None, "old_logprobs": None, "ref_logprobs": None} | more
    weights = REDUCTIONS[reduction](mask, CONSTANT_LENGTH)
    return SimpleNamespace(loss_mask=mask, advantages=spread, weights=weights, **tensors)


def rows(batch: SimpleNamespace, index: list[int]) -> SimpleNamespace:
    return SimpleNamespace(**{k: None if v is None else v[index] for k, v in vars(batch).items()})


def loss_of(
    logprobs: Tensor,
    batch: SimpleNamespace,
    settings: config.Loss,
    kl: config.KL | None = None,
    correction: config.Correction | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    kl = kl or config.KL()
    loss_fn = make_loss(settings, kl, correction or config.Correction())
    return loss_fn(logprobs, entropy, batch, kl.coefficient)


def settings_of(name: str = "grpo", **more: Any) -> config.Loss:
    return config.Loss.model_validate({"name": name, **more})


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3 - 1).requires_grad_()


def one_token(ratio: float, advantage: float, settings: config.Loss) -> tuple[float, float]:
    """Surrogate and d surrogate / d logprob of a single token with this ratio."""
    old = torch.tensor([[-2.0]])
    logprobs = (old + math.log(ratio)).requires_grad_()
    batch = batch_of(torch.ones(1, 1, dtype=torch.bool), torch.tensor([advantage]), "token_mean", old_logprobs=old)
    loss, _ = loss_of(logprobs, batch, settings)
    loss.backward()
    assert logprobs.grad is not None
    return -loss.item(), -logprobs.grad.item()


# Reductions


def test_token_mean_is_over_the_whole_step_not_per_micro_batch() -> None:
    mask = mask_of(LENGTHS)
    weights = REDUCTIONS["token_mean"](mask, CONSTANT_LENGTH)
    assert weights[mask].tolist() == pytest.approx([0.1] * 10)
    assert weights[~mask].abs().sum() == 0

    whole = batch_of(mask, torch.tensor([1.0, 1.0]), "token_mean")
    logprobs = leaf(*mask.shape)
    for row in (0, 1):  # each completion is a micro-batch of its own
        loss_of(logprobs[[row]], rows(whole, [row]), settings_of("dapo"))[0].backward()
    assert logprobs.grad is not None
    assert logprobs.grad[mask].tolist() == pytest.approx([-0.1] * 10)

    # what the bug does: a mean per micro-batch, then the mean of the two
    per_micro = [REDUCTIONS["token_mean"](mask[[row]], CONSTANT_LENGTH)[0, 1].item() / 2 for row in (0, 1)]
    assert per_micro == pytest.approx([0.25, 0.0625])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_accumulation_changes_nothing(name: str, reduction: str) -> None:
    lengths = [2, 8, 5, 1, 7, 3, 8, 4]
    mask = mask_of(lengths)
    old, advantages = leaf(8, 9, seed=1).detach(), torch.linspace(-2, 2, 8)
    sampler, reference = old + 0.3 * leaf(8, 9, seed=2).detach(), leaf(8, 9, seed=3).detach()
    batch = batch_of(mask, advantages, reduction, old_logprobs=old, sampler_logprobs=sampler, ref_logprobs=reference)
    settings = settings_of(name, reduction=reduction, entropy_bonus=0.01)
    kl, correction = config.KL(coefficient=0.1), config.Correction(name="token_truncate")

    def gradient(micro_batches: list[list[int]]) -> tuple[float, Tensor]:
        logprobs, total = leaf(8, 9), 0.0
        for index in micro_batches:
            part, _ = loss_of(
                logprobs[index], rows(batch, index), settings, kl, correction, entropy=-logprobs[index].exp()
            )
            part.backward()
            total += part.item()
        assert logprobs.grad is not None
        return total, logprobs.grad

    one, one_gradient = gradient([list(range(8))])
    four, four_gradient = gradient([[0, 5], [1], [7, 6, 2], [3, 4]])
    assert four == pytest.approx(one, abs=1e-6)
    torch.testing.assert_close(four_gradient, one_gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("reduction", "value"),
    [("sequence_mean", 0), ("token_mean", 0.6), ("sequence_sum", 3), ("constant_length", 0.1875)],
)
def test_reductions_are_what_they_say(reduction: str, value: float) -> None:
    mask = mask_of(LENGTHS)
    batch = batch_of(mask, torch.tensor([1.0, -1.0]), reduction)
    loss, _ = loss_of(leaf(*mask.shape), batch, settings_of(reduction=reduction))
    assert loss.item() == pytest.approx(value, abs=1e-6)


def test_a_masked_completion_leaves_the_others_alone() -> None:
    advantages = torch.tensor([1.0, -1.0, 5.0])
    logprobs = leaf(3, 9)
    alone = batch_of(mask_of(LENGTHS), advantages[:2], "token_mean")
    beside = batch_of(mask_of([*LENGTHS, 0]), advantages, "token_mean")
    expected, _ = loss_of(logprobs[:2], alone, settings_of("dapo"))
    loss, _ = loss_of(logprobs, beside, settings_of("dapo"))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-7)


@pytest.mark.parametrize("reduction", sorted(set(REDUCTIONS) - {"token_mean"}))
def test_masking_a_completion_moves_no_weight_of_the_others(reduction: str) -> None:
    before = REDUCTIONS[reduction](mask_of([*LENGTHS, 4]), CONSTANT_LENGTH)
    after = REDUCTIONS[reduction](mask_of([*LENGTHS, 0]), CONSTANT_LENGTH)
    assert torch.equal(before[:2], after[:2])
    assert after[2].abs().sum() == 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_step_with_nothing_to_train_weighs_nothing(reduction: str) -> None:
    for mask in (torch.zeros(2, 3, dtype=torch.bool), torch.zeros(0, 0, dtype=torch.bool)):
        assert REDUCTIONS[reduction](mask, CONSTANT_LENGTH).sum() == 0


# Masks


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_no_nan_leaks_through_a_mask(name: str, correction: str, junk: float) -> None:
    mask = mask_of([2, 8, 0])

    def spoiled(seed: int) -> Tensor:
        return torch.where(mask, leaf(*mask.shape, seed=seed), junk).detach()

    batch = batch_of(
        mask,
        spoiled(1),
        resolve(settings_of(name))[2],
        old_logprobs=spoiled(2),
        sampler_logprobs=spoiled(3),
        ref_logprobs=spoiled(4),
    )
    logprobs, entropy = spoiled(5).requires_grad_(), spoiled(6).requires_grad_()
    settings = settings_of(name, entropy_bonus=0.1)
    kl, correct = config.KL(coefficient=0.1), config.Correction.model_validate(correction)
    loss, metrics = loss_of(logprobs, batch, settings, kl, correct, entropy)
    loss.backward()
    assert logprobs.grad is not None
    assert entropy.grad is not None
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert entropy.grad.isfinite().all()
    assert logprobs.grad[~mask].abs().sum() == 0
    assert logprobs.grad[mask].abs().sum() > 0
    assert all(values.isfinite().all() and not values.requires_grad for values in metrics.values())


# Surrogates


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "gradient"),
    [(0.5, 1, 0.5, 0.5), (1.5, 1, 1.28, 0), (0.5, -1, -0.8, 0), (1.5, -1, -1.5, -1.5)],
)
def test_clip_with_different_bounds(ratio: float, advantage: float, surrogate: float, gradient: float) -> None:
    settings = settings_of(clip_low=0.2, clip_high=0.28)
    assert one_token(ratio, advantage, settings) == pytest.approx((surrogate, gradient), abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "gradient"),
    [(10, -1, -3, 0), (2, -1, -2, -2), (10, 1, 1.2, 0), (0.5, 1, 0.5, 0.5), (0.5, -1, -0.8, 0)],
)
def test_dual_clip_is_for_negative_advantages(
    ratio: float, advantage: float, surrogate: float, gradient: float
) -> None:
    settings = settings_of(surrogate="dual_clip", dual_clip=3.0)
    assert one_token(ratio, advantage, settings) == pytest.approx((surrogate, gradient), abs=1e-5)


@pytest.mark.parametrize("clip_high", [0.2, 0.28])
def test_the_bound_of_cispo_is_its_own(clip_high: float) -> None:
    settings = settings_of("cispo", clip_high=clip_high)
    for ratio, weight in [(0.01, 0.01), (3.0, 3.0), (10.0, 5.0)]:  # the default bound is 5, and there is none below
        for advantage in (1.0, -1.0):
            _, gradient = one_token(ratio, advantage, settings)
            assert gradient == pytest.approx(weight * advantage, rel=1e-5)
    _, gradient = one_token(0.01, 1.0, settings_of("cispo", cispo_low=0.5))
    assert gradient == pytest.approx(0.5)


def test_the_value_of_cispo_is_the_weighted_likelihood() -> None:
    surrogate, _ = one_token(3.0, -1.0, settings_of("cispo"))
    assert surrogate == pytest.approx(3.0 * -1.0 * (-2.0 + math.log(3.0)))


def test_sapo_is_a_smooth_gate() -> None:
    def gate(ratio: float, tau: float) -> float:
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1)))

    settings = settings_of("sapo", sapo_positive=1.0, sapo_negative=2.0)
    assert one_token(1.5, 1.0, settings)[0] == pytest.approx(gate(1.5, 1.0), abs=1e-6)
    assert one_token(1.5, -1.0, settings)[0] == pytest.approx(-gate(1.5, 2.0), abs=1e-6)


def test_the_ratio_of_gspo_is_the_geometric_mean() -> None:
    old = torch.tensor([[-9.0, -1.0, -2.0, -9.0]])
    logprobs = torch.tensor([[-7.0, -0.9, -1.7, -5.0]], requires_grad=True)  # differences .1 and .3 where it counts
    mask = torch.tensor([[False, True, True, False]])
    batch = batch_of(mask, torch.tensor([1.0]), "sequence_mean", old_logprobs=old)
    loss, metrics = loss_of(logprobs, batch, settings_of("gspo", clip_high=10.0))
    loss.backward()
    assert metrics["loss/ratio"][mask].tolist() == pytest.approx([math.exp(0.2)] * 2)
    assert loss.item() == pytest.approx(-math.exp(0.2))
    assert logprobs.grad is not None
    assert logprobs.grad.tolist()[0] == pytest.approx([0, -math.exp(0.2) / 2, -math.exp(0.2) / 2, 0])


def test_gspo_clips_whole_completions() -> None:
    old = torch.full((1, 2), -2.0)
    logprobs = torch.tensor([[-1.0, -2.5]], requires_grad=True)  # one token up, one down, geometric mean exp(.25)
    batch = batch_of(torch.ones(1, 2, dtype=torch.bool), torch.tensor([1.0]), "sequence_mean", old_logprobs=old)
    loss, _ = loss_of(logprobs, batch, settings_of("gspo", clip_high=0.2))
    loss.backward()
    assert logprobs.grad is not None
    assert loss.item() == pytest.approx(-1.2)
    assert logprobs.grad.abs().sum() == 0


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_on_policy_the_first_update_is_reinforce(name: str, given: bool) -> None:
    mask = mask_of(LENGTHS)
    logprobs = leaf(*mask.shape)
    old = logprobs.detach().clone() if given else None
    batch = batch_of(mask, torch.tensor([1.0, -1.0]), "sequence_mean", old_logprobs=old)
    loss, metrics = loss_of(logprobs, batch, settings_of(name, reduction="sequence_mean"))
    loss.backward()

    assert (metrics["loss/ratio"] == 1).all()
    assert all((metrics[key] == 0).all() for key in metrics if key.startswith(("loss/clip", "kl/old")))
    if name not in ("cispo", "sapo"):  # the value of these is no return: A logprob, 2 A / tau
        assert loss.item() == pytest.approx(0, abs=1e-6)  # -mean(A), and the advantages are centred
    reinforce = -batch.advantages * batch.weights  # d/dlogprob of -sum w A logprob
    assert logprobs.grad is not None
    assert logprobs.grad.abs().sum() > 0.5
    torch.testing.assert_close(logprobs.grad, reinforce, atol=1e-6, rtol=0)


def test_a_clip_that_never_acts_gives_the_gradient_of_the_ratio() -> None:
    mask, old = mask_of(LENGTHS), leaf(2, 9, seed=1).detach()
    logprobs = leaf(2, 9)
    batch = batch_of(mask, torch.tensor([1.0, -1.0]), "token_mean", old_logprobs=old)
    loss, _ = loss_of(logprobs, batch, settings_of("dapo", clip_low=1.0, clip_high=100.0))
    loss.backward()
    torch.testing.assert_close(
        logprobs.grad, -batch.advantages * batch.weights * (logprobs - old).exp().detach(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gap", [300.0, -300.0])
def test_a_ratio_out_of_reach_of_exp_stays_finite(name: str, gap: float) -> None:
    old = torch.full((1, 3), -400.0)
    logprobs = (old + gap).requires_grad_()
    for advantage in (1.0, -1.0):
        batch = batch_of(torch.ones(1, 3, dtype=torch.bool), torch.tensor([advantage]), "token_mean", old_logprobs=old)
        batch.ref_logprobs = old - gap
        loss, metrics = loss_of(logprobs, batch, settings_of(name), config.KL(coefficient=0.1))
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert all(values.isfinite().all() for values in metrics.values())


# The parts put together


def test_the_bonus_raises_entropy() -> None:
    mask = mask_of(LENGTHS)
    entropy = torch.ones(mask.shape, requires_grad=True)
    batch = batch_of(mask, torch.zeros(2), "token_mean")
    loss, metrics = loss_of(leaf(*mask.shape), batch, settings_of("dapo", entropy_bonus=0.01), entropy=entropy)
    loss.backward()
    assert entropy.grad is not None
    assert loss.item() == pytest.approx(-0.01)
    assert entropy.grad[mask].tolist() == pytest.approx([-0.001] * 10)
    assert (metrics["policy/exact_entropy"][mask] == 1).all()


def test_metrics_are_the_share_of_tokens_that_were_clipped() -> None:
    ratio = torch.tensor([[0.5, 1.0, 1.5, 4.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    old = torch.full((1, 4), -2.0)
    logprobs = (old + ratio.log()).requires_grad_()

    def clipped(advantage: float, surrogate: str) -> dict[str, list[float]]:
        batch = batch_of(mask, torch.tensor([advantage]), "token_mean", old_logprobs=old)
        _, metrics = loss_of(logprobs, batch, settings_of(surrogate=surrogate))
        torch.testing.assert_close(metrics["loss/ratio"], ratio)
        torch.testing.assert_close(metrics["kl/old"], ratio - ratio.log() - 1, atol=1e-6, rtol=0)
        return {key: value[0].tolist() for key, value in metrics.items() if "clip" in key}

    assert clipped(1.0, "clip") == {"loss/clip_low": [0, 0, 0, 0], "loss/clip_high": [0, 0, 1, 1]}
    assert clipped(-1.0, "clip") == {"loss/clip_low": [1, 0, 0, 0], "loss/clip_high": [0, 0, 0, 0]}
    assert clipped(-1.0, "dual_clip")["loss/clip_dual"] == [0, 0, 0, 1]
    assert clipped(1.0, "cispo") == {"loss/clip_low": [0, 0, 0, 0], "loss/clip_high": [0, 0, 0, 0]}
    assert clipped(1.0, "sapo") == {}


def test_each_part_of_a_named_loss_can_be_replaced() -> None:
    assert resolve(settings_of("gspo")) == ("sequence", "clip", "sequence_mean")
    assert resolve(settings_of("dapo", surrogate="dual_clip")) == ("token", "dual_clip", "token_mean")
    assert resolve(settings_of("grpo", ratio="sequence", reduction="sequence_sum")) == (
        "sequence",
        "clip",
        "sequence_sum",
    )


def test_tables_hold_what_the_configuration_can_name() -> None:
    def names(literal: Any) -> set[str]:
        return set(literal.__args__)

    assert set(LOSSES) == names(config.LossName)
    assert set(RATIOS) == names(config.RatioName)
    assert set(SURROGATES) == names(config.SurrogateName)
    assert set(REDUCTIONS) == names(config.ReductionName)
    assert set(CORRECTIONS) == names(config.CorrectionName)
    for ratio, surrogate, reduction in LOSSES.values():
        assert ratio in RATIOS
        assert surrogate in SURROGATES
        assert reduction in REDUCTIONS


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_preset_has_a_gradient(algorithm: str) -> None:
    preset = ALGORITHMS[algorithm]
    settings = config.Loss.model_validate(preset["loss"])
    kl = config.KL.model_validate(preset.get("kl", {}))
    mask = mask_of(LENGTHS)
    batch = batch_of(mask, torch.tensor([1.0, -1.0]), resolve(settings)[2], ref_logprobs=leaf(2, 9, seed=1).detach())
    logprobs = leaf(2, 9)
    loss_of(logprobs, batch, settings, kl)[0].backward()
    assert logprobs.grad is not None
    assert (logprobs.grad[mask] != 0).all()
    assert (logprobs.grad[~mask] == 0).all()


# Sampler and trainer


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("none", [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        ("token_truncate", [[1, 0.25, 1.5, 1], [1, 2, 1, 1], [1, 1, 1, 1]]),
        ("token_mask", [[1, 0, 1.5, 1], [1, 0, 1, 1], [1, 1, 1, 1]]),
        ("sequence_truncate", [[1, 0.375, 0.375, 1], [1, 2, 2, 1], [1, 1, 1, 1]]),
        ("sequence_mask", [[1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]),
        ("geometric_mask", [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]),
    ],
)
def test_corrections_are_what_they_say(name: str, weights: list[list[float]]) -> None:
    # exp(old - sampler) of the trained tokens: .25 and 1.5 (product .375, geometric mean .61); 8 and 1; none trained
    gap = torch.tensor([[9.0, 0.25, 1.5, 9.0], [9.0, 8.0, 1.0, 9.0], [9.0, 9.0, 9.0, 9.0]]).log()
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    sampler = torch.full_like(gap, -3.0)
    old = (sampler + gap).requires_grad_()
    result = CORRECTIONS[name](old, sampler, mask, 0.5, 2.0)
    torch.testing.assert_close(result, torch.tensor(weights, dtype=torch.float32))
    assert not result.requires_grad


@pytest.mark.parametrize("name", CORRECTIONS)
def test_no_gap_needs_no_correction(name: str) -> None:
    sampler = leaf(2, 9).detach()
    unknown = sampler.masked_fill(torch.eye(2, 9).bool(), math.nan)  # vLLM has no logprob for some tokens
    for given in (sampler, unknown):
        weights = CORRECTIONS[name](sampler, given, mask_of(LENGTHS), 0.5, 2.0)
        assert torch.equal(weights, torch.ones(weights.shape))


def test_a_correction_weighs_the_surrogate_and_nothing_else() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0 - math.log(1.5), -1.0 - math.log(4.0)]])  # ratios 1.5, and 4 which becomes 2
    batch = batch_of(mask, torch.tensor([1.0]), "token_mean", sampler_logprobs=sampler, ref_logprobs=sampler)
    kl = config.KL(coefficient=0.1, estimator="k2", unbiased=False)
    correction = config.Correction(name="token_truncate")
    loss, metrics = loss_of(logprobs, batch, settings_of("dapo"), kl, correction)
    expected = -(1.5 + 2.0) / 2 + 0.1 * (math.log(1.5) ** 2 + math.log(4.0) ** 2) / 4
    assert loss.item() == pytest.approx(expected)
    assert metrics["sampler/weight"].tolist()[0] == pytest.approx([1.5, 2.0])
