"""Log-probabilities and entropies of chosen tokens, a chunk of rows at a time.

The table of tokens x vocabulary is never whole in memory: neither in the forward pass nor, since the backward pass
computes each chunk again, in the backward one. Left out: which hidden states and which head (policy.py).
"""

# N tokens, H hidden size, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk: int = 1024,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of p, where p = softmax(z) and z = scale * cap(hidden @ weight.T + bias).

    hidden: (N, H); weight: (V, H); bias: (V,) or None; targets: (N,) int64. scale holds 1 / temperature and whatever
    the architecture multiplies its logits by; cap(x) = softcap * tanh(x / softcap) where softcap is given (Gemma 2).
    Returns two float32 tensors (N,), in nats; the entropy is all zeros unless `with_entropy`. Gradients in closed form:

        d logp_y / dz = 1[y] - p        d entropy / dz = -p * (log p + entropy)

    Peak memory beyond the inputs is a few times chunk * V * 4 bytes, plus the gradient of the weight."""
    return _ChunkedLogprobs.apply(hidden, weight, bias, targets, scale, softcap, chunk, with_entropy)


def _capped_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """The float32 logits of one chunk, and d cap / d raw where there is a cap."""
    # float32 comes after the product, as in the model's own head: a bf16 sampler and the trainer then round alike
    raw = torch.nn.functional.linear(hidden, weight, bias).float()
    if softcap is None:
        return (raw if scale == 1.0 else raw.mul_(scale)), None
    bent = torch.tanh(raw / softcap)
    return bent * (softcap * scale), 1 - bent * bent


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        chunk: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.zeros_like(logprobs)
        weight_cast, bias_cast = weight.to(hidden.dtype), _like(bias, hidden)
        for rows in _slices(len(hidden), chunk):
            z, _ = _capped_logits(hidden[rows], weight_cast, bias_cast, scale, softcap)
            log_norm = z.logsumexp(-1)
            logprobs[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - log_norm
            if with_entropy:
                p = (z - log_norm[:, None]).exp_()
                entropy[rows] = log_norm - (p * z).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy)
        ctx.scale, ctx.softcap, ctx.chunk, ctx.with_entropy = scale, softcap, chunk, with_entropy
        return logprobs, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy = ctx.saved_tensors
        weight_cast, bias_cast = weight.to(hidden.dtype), _like(bias, hidden)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # one float32 buffer for the head's gradient: chunks add into it, none makes a (V, H) table of its own
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if need_bias else None
        for rows in _slices(len(hidden), ctx.chunk):
            z, slope = _capped_logits(hidden[rows], weight_cast, bias_cast, ctx.scale, ctx.softcap)
            p = z.sub_(z.logsumexp(-1, keepdim=True))  # log p for now
            if ctx.with_entropy:
                pull = (p + entropy[rows, None]).mul_(-grad_entropy[rows, None])
                pull -= grad_logprobs[rows, None]
                p = p.exp_().mul_(pull)
            else:
                p = p.exp_().mul_(-grad_logprobs[rows, None])
            p.scatter_add_(-1, targets[rows, None], grad_logprobs[rows, None])
            if slope is not None:
                p.mul_(slope)
            grad_z = p.mul_(ctx.scale).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_z, weight_cast, out=grad_hidden[rows])
            if grad_weight is not None:
                if grad_z.dtype == torch.float32:
                    grad_weight.addmm_(grad_z.T, hidden[rows])
                else:
                    grad_weight += grad_z.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += grad_z.sum(0)
        as_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        as_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, as_weight, as_bias, None, None, None, None, None


def _slices(total: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, total)) for start in range(0, total, chunk)]


def _like(tensor: Tensor | None, hidden: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(hidden.dtype)
