"""The KL divergence to a reference policy, estimated from the sampled tokens alone: k1, k2, k3, and the table KLS.

Names after Schulman, "Approximating KL divergence" (2020). A good value need not mean a good gradient: as a plain loss
only k2 has the gradient of KL(policy || reference); k1 has none in expectation, and k3 that of KL(reference || policy).
kl_loss offers the unbiased form. Left out: where the KL acts (the recipe), and the reference itself.
"""

# B completions, T tokens

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]


def bounded(log_ratio: Tensor) -> Tensor:
    """log_ratio within +-20, as verl and OpenRLHF bound it."""
    # A token that one policy all but excludes can differ by a hundred nats; exp overflows float32 above 88, and one
    # inf * 0 loses the step. exp(20) is 5e8, already past any ratio that means something. The price: beyond 20 nats the
    # value is constant and its own gradient 0.
    return log_ratio.clamp(-20.0, 20.0)


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """-d with d = ref_logprobs - logprobs: unbiased value, either sign; as a plain loss its expected gradient is 0.

    logprobs, ref_logprobs: any equal shape. Returns that shape. d is within +-20."""
    return -bounded(ref_logprobs - logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """d^2 / 2 with d = ref_logprobs - logprobs: biased value, never negative; as a plain loss its expected gradient is
    exactly that of KL(policy || reference) on policy.

    logprobs, ref_logprobs: any equal shape. Returns that shape. d is within +-20."""
    return bounded(ref_logprobs - logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logprobs - logprobs: unbiased value, never negative; DeepSeekMath, arXiv:2402.03300,
    eq. 4. As a plain loss its expected gradient is p - q in the logits, that of KL(reference || policy).

    logprobs, ref_logprobs: any equal shape. Returns that shape. d is within +-20; verl also cuts the result to +-10,
    which is not followed: it would take the gradient from every token further than 2.5 nats below the reference."""
    d = bounded(ref_logprobs - logprobs)
    # expm1, since exp(d) - d - 1 near d = 0 is the difference of almost equal numbers: float32 gives 0 or less
    return torch.expm1(d) - d


KLS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}


def kl_loss(
    logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor, estimator: Estimator, unbiased: bool
) -> Tensor:
    """rho * k with rho = exp(logprobs - old_logprobs) if unbiased, else k: the KL per token, to be minimised.

    All (B, T); returns (B, T). old_logprobs are those of the policy that drew the tokens; on policy they are
    logprobs.detach(), and rho is 1 with a gradient. That gradient is the point: E_old[rho k] is the KL for any policy
    if k is k1 or k3, so differentiating through rho and k together gives d KL (DeepSeek-V3.2, arXiv:2512.02556;
    TRL: use_bias_correction_kl). k2 must stay plain, as its gradient is exact and its value is not.
    Per token, given the tokens before it: how a token changes the KL of later ones is left out, here as in the peers
    (a KL in the reward has it). rho is always the token's own; TRL takes the sequence's under GSPO."""
    k = estimator(logprobs, ref_logprobs)
    return torch.exp(bounded(logprobs - old_logprobs)) * k if unbiased else k


def adapt(coefficient: float, measured: float, target: float) -> float:
    """The next coefficient: half if measured < target / 1.5, double if measured > 1.5 * target; PPO, arXiv:1707.06347,
    section 4. measured: mean KL of the update in nats."""
    if measured < target / 1.5:
        return coefficient / 2
    if measured > target * 1.5:
        return coefficient * 2
    return coefficient
