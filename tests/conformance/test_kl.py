"""CONFORMANCE.md, section "KL": gradients by enumeration over a vocabulary of three, as the table reckons them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.kl import KLS, adapt, k1, k2, k3, kl_loss
from grpo_math.losses import make_loss

P, Q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
EXACT = [0.4325, -0.2081, -0.2244]  # d KL(p || q) / d logits of p = p * (log p/q - KL)


def expected_gradient(estimator: str, unbiased: bool, drawn_from: Tensor = P) -> list[float]:
    """E over tokens of `drawn_from` of d kl_loss / d logits: each token's own gradient, weighed by its probability."""
    logits = P.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    per_token = kl_loss(logprobs, Q.log(), drawn_from.log(), KLS[estimator], unbiased)
    (gradient,) = torch.autograd.grad((drawn_from * per_token).sum(), logits)
    return gradient.tolist()


def test_the_exact_gradient_is_that_of_the_table() -> None:
    logits = P.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    (gradient,) = torch.autograd.grad((logprobs.exp() * (logprobs - Q.log())).sum(), logits)
    assert gradient.tolist() == pytest.approx(EXACT, abs=1e-4)


@pytest.mark.parametrize(
    ("estimator", "unbiased", "gradient"),
    [
        ("k3", False, [0.5, -0.1, -0.4]),
        ("k1", False, [0, 0, 0]),
        ("k2", False, EXACT),
        ("k1", True, EXACT),
        ("k3", True, EXACT),
    ],
)
def test_gradient_of_the_estimator(estimator: str, unbiased: bool, gradient: list[float]) -> None:
    assert expected_gradient(estimator, unbiased) == pytest.approx(gradient, abs=1e-4)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_unbiased_gradient_holds_off_policy_too(estimator: str) -> None:
    old = torch.tensor([0.4, 0.35, 0.25])
    assert expected_gradient(estimator, True, drawn_from=old) == pytest.approx(EXACT, abs=1e-4)


def test_k1_in_the_reward_has_the_exact_gradient() -> None:
    logits = P.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    reward = -k1(logprobs, Q.log()).detach()
    (gradient,) = torch.autograd.grad(-(P * reward * logprobs).sum(), logits)
    assert gradient.tolist() == pytest.approx(EXACT, abs=1e-4)


def test_values_of_the_estimators() -> None:
    exact = (P * (P / Q).log()).sum().item()
    assert (P * k1(P.log(), Q.log())).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (P * k3(P.log(), Q.log())).sum().item() == pytest.approx(exact, abs=1e-6)
    d = torch.tensor([[-0.5, 0.0, 2.0]])
    zero = torch.zeros(1, 3)
    assert k1(zero, d)[0].tolist() == pytest.approx([0.5, 0, -2])
    assert k2(zero, d)[0].tolist() == pytest.approx([0.125, 0, 2])
    assert k3(zero, d)[0].tolist() == pytest.approx([0.1065307, 0, 4.3890561])


@pytest.mark.parametrize("estimator", KLS)
def test_a_token_that_one_policy_excludes_stays_finite(estimator: str) -> None:
    for gap in (500.0, -500.0, torch.inf, -torch.inf):
        logprobs = torch.tensor([-3.0], requires_grad=True)
        value = KLS[estimator](logprobs, logprobs.detach() + gap)
        value.sum().backward()
        assert value.isfinite().all()
        assert logprobs.grad is not None
        assert logprobs.grad.isfinite().all()


def test_k3_is_never_negative() -> None:
    gaps = torch.cat([torch.logspace(-8, 1, 100), -torch.logspace(-8, 1, 100)])
    assert (k3(torch.zeros(200), gaps) >= 0).all()


# In the loss


def batch_of(mask: Tensor, ref_logprobs: Tensor) -> SimpleNamespace:
    weights = mask.float() / mask.sum()
    zeros = torch.zeros(mask.shape)
    return SimpleNamespace(
        loss_mask=mask,
        advantages=zeros,
        weights=weights,
        sampler_logprobs=None,
        old_logprobs=None,
        ref_logprobs=ref_logprobs,
    )


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True), ("k3", False)])
def test_kl_has_a_gradient(estimator: str, unbiased: bool) -> None:
    kl = config.KL.model_validate({"coefficient": 0.1, "estimator": estimator, "unbiased": unbiased})
    logprobs = P.log()[None].requires_grad_()
    batch = batch_of(torch.ones(1, 3, dtype=torch.bool), Q.log()[None])  # and advantages of 0
    loss, metrics = make_loss(config.Loss(name="dapo"), kl, config.Correction())(logprobs, None, batch, 0.1)
    loss.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad != 0).all()
    assert loss.item() == pytest.approx(0.1 * KLS[estimator](P.log(), Q.log()).mean().item())
    torch.testing.assert_close(metrics["kl/ref"], k3(P.log(), Q.log())[None])


def test_the_coefficient_is_the_one_of_the_call() -> None:
    loss_fn = make_loss(config.Loss(), config.KL(coefficient=0.1, target=0.05), config.Correction())
    batch = batch_of(torch.ones(1, 3, dtype=torch.bool), Q.log()[None])
    one, _ = loss_fn(P.log()[None], None, batch, 0.1)
    two, _ = loss_fn(P.log()[None], None, batch, 0.2)
    assert two.item() == pytest.approx(2 * one.item())


def test_kl_is_masked_like_the_rest() -> None:
    mask = torch.tensor([[True, True, False]])
    loss_fn = make_loss(config.Loss(), config.KL(coefficient=0.1), config.Correction())

    def run(padding: float) -> tuple[float, Tensor]:
        logprobs = P.log()[None].clone().requires_grad_()
        reference = torch.where(mask, Q.log()[None], padding)
        loss, _ = loss_fn(logprobs, None, batch_of(mask, reference), 0.1)
        loss.backward()
        assert logprobs.grad is not None
        return loss.item(), logprobs.grad

    value, gradient = run(-1.0)
    for padding in (-50.0, 0.0, torch.nan, -torch.inf):
        other, other_gradient = run(padding)
        assert other == value
        assert torch.equal(gradient, other_gradient)


def test_a_kl_in_the_reward_is_not_in_the_loss_too() -> None:
    kl = config.KL(coefficient=0.1, estimator="k1", where="reward")
    batch = batch_of(torch.ones(1, 3, dtype=torch.bool), Q.log()[None])
    loss, metrics = make_loss(config.Loss(), kl, config.Correction())(P.log()[None], None, batch, 0.1)
    assert loss.item() == 0
    assert "kl/ref" not in metrics


@pytest.mark.parametrize(
    ("measured", "coefficient"), [(0.01, 0.1), (0.0199, 0.1), (0.021, 0.2), (0.03, 0.2), (0.044, 0.2), (0.046, 0.4)]
)
def test_the_coefficient_follows_its_target(measured: float, coefficient: float) -> None:
    assert adapt(0.2, measured, target=0.03) == pytest.approx(coefficient)
