"""Chunked log-probabilities and entropies against the plain formula, values and gradients."""

from __future__ import annotations

import pytest
import torch

from grpo_math.logprobs import token_logprobs


def plain(hidden, weight, bias, targets, scale, softcap):
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = scale * (z if softcap is None else softcap * torch.tanh(z / softcap))
    logp = z.log_softmax(-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), -(logp.exp() * logp).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(("scale", "softcap", "with_bias"), [(1.0, None, False), (2.0, None, True), (0.7, 3.0, True)])
def test_equal_to_the_whole_table(chunk, scale, softcap, with_bias):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    bias = torch.randn(11, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(11, (7,), generator=generator)
    pull_logprobs, pull_entropy = torch.randn(7, generator=generator), torch.randn(7, generator=generator)
    leaves = [hidden, weight] + ([bias] if with_bias else [])

    ours = token_logprobs(hidden, weight, bias, targets, scale=scale, softcap=softcap, chunk=chunk, with_entropy=True)
    theirs = plain(hidden, weight, bias, targets, scale, softcap)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    our_grads = torch.autograd.grad((ours[0] * pull_logprobs + ours[1] * pull_entropy).sum(), leaves)
    their_grads = torch.autograd.grad((theirs[0] * pull_logprobs + theirs[1] * pull_entropy).sum(), leaves)
    for a, b in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_without_entropy_the_gradient_is_that_of_the_logprob_alone():
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    targets = torch.tensor([0, 5, 2, 2])
    ours, entropy = token_logprobs(hidden, weight, None, targets, chunk=2)
    assert not entropy.any()
    theirs, _ = plain(hidden, weight, None, targets, 1.0, None)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), [hidden, weight]),
        torch.autograd.grad(theirs.sum(), [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_table_of_tokens_by_vocabulary_is_never_whole():
    """2,048 tokens x 50,000 words is 410 MB in float32; no tensor made on the way is over a tenth of that."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel() * tensor.element_size())
            return out

    hidden, weight = torch.randn(2048, 8, requires_grad=True), torch.randn(50_000, 8, requires_grad=True)
    targets = torch.randint(50_000, (2048,))
    with Watch():
        values, _ = token_logprobs(hidden, weight, None, targets, chunk=64)
        values.sum().backward()
    assert largest <= 2048 * 50_000 * 4 / 10
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_no_tokens_at_all():
    hidden, weight = torch.zeros(0, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    values, _ = token_logprobs(hidden, weight, None, torch.zeros(0, dtype=torch.long))
    assert values.shape == (0,)
    values.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
