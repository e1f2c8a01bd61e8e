"""The policy loss: ratio x surrogate x reduction, each a literal table; LOSSES names the published combinations.

    loss = sum over tokens of weight * (-correction * surrogate(ratio, A) + beta * KL - entropy_bonus * entropy)

A reduction is a weight per token, computed once for the whole step before any split, so micro-batches and ranks only
add. make_loss chooses every part at construction. Left out: advantages, log-probabilities, and the optimizer.
"""

# B completions (one a row), T tokens of prompt + completion; mask (B, T) is True at the trained completion tokens

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.correction import CORRECTIONS
from grpo_math.kl import KLS, bounded, k3, kl_loss

Metrics = dict[str, Tensor]


class LossInputs(Protocol):
    """What a loss reads of a batch; all (B, T). Values outside loss_mask are never looked at, and may be NaN."""

    @property
    def loss_mask(self) -> Tensor: ...
    @property
    def advantages(self) -> Tensor: ...
    @property
    def weights(self) -> Tensor: ...
    @property
    def sampler_logprobs(self) -> Tensor | None: ...
    @property
    def old_logprobs(self) -> Tensor | None: ...
    @property
    def ref_logprobs(self) -> Tensor | None: ...


LossFn = Callable[[Tensor, Tensor | None, LossInputs, float], tuple[Tensor, Metrics]]


# Ratios: (log_ratio, logprobs, mask) -> (B, T), where log_ratio = logprobs - old_logprobs, 0 outside the mask.


def token_ratio(log_ratio: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """rho_t = exp(logprob_t - old_logprob_t); PPO, arXiv:1707.06347. The log-ratio is kept within +-20."""
    return bounded(log_ratio).exp()


def sequence_ratio(log_ratio: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """s_t = sg[exp(mean_t log_ratio_t)] * exp(logprob_t - sg[logprob_t]); GSPO-token, arXiv:2507.18071, section 4.3.

    The value is the geometric mean for every token of the completion; the gradient reaches each token through its own
    logprob. With one advantage per completion and a reduction that weighs its tokens alike, value and gradient are
    those of the plain form (TRL's, OpenRLHF's); with advantages per token, only this form credits the right token."""
    mean = log_ratio.detach().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return bounded(mean).exp() * torch.exp(logprobs - logprobs.detach())


RATIOS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"token": token_ratio, "sequence": sequence_ratio}


# Surrogates: (ratio, logprobs, advantages, bounds) -> objective per token, (B, T), to be maximised.


def clip(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: config.Loss) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A); PPO, arXiv:1707.06347, eq. 7. Different bounds are DAPO's
    clip-higher, arXiv:2503.14476."""
    clipped = ratio.clamp(1 - bounds.clip_low, 1 + bounds.clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dual_clip(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: config.Loss) -> Tensor:
    """max(clip(rho, A), c A) for A < 0, else clip(rho, A), with c = dual_clip > 1; Ye et al. 2019, arXiv:1912.09729.

    Bounds the one side that `clip` leaves open: a bad token whose ratio has run away. As verl has it; TRL's `delta`
    is the same for A < 0 and cannot act for A > 0 unless it is below 1 + clip_high."""
    objective = clip(ratio, logprobs, advantages, bounds)
    return torch.where(advantages < 0, torch.maximum(objective, bounds.dual_clip * advantages), objective)


def cispo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: config.Loss) -> Tensor:
    """sg[clamp(rho, cispo_low, cispo_high)] A logprob; MiniMax-M1, arXiv:2506.13585.

    No token loses its gradient: the ratio is only a weight. Its bounds are its own, not PPO's 0.2: the paper and TRL
    bound it above only (cispo_low = 0); verl has clamp(rho, 1 - eps, 1 + eps). The value says nothing of rewards."""
    return ratio.detach().clamp(bounds.cispo_low, bounds.cispo_high) * advantages * logprobs


def sapo(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: config.Loss) -> Tensor:
    """(4 / tau) sigmoid(tau (rho - 1)) A with tau = sapo_positive for A > 0, else sapo_negative; arXiv:2511.20347.

    On policy the gradient is REINFORCE's, as 4 sigmoid' = 1 at 0, while the value is 2 A / tau and not A."""
    tau = torch.where(advantages > 0, bounds.sapo_positive, bounds.sapo_negative)
    return torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantages


def reinforce(ratio: Tensor, logprobs: Tensor, advantages: Tensor, bounds: config.Loss) -> Tensor:
    """A exp(logprob - sg[logprob]): the value is A, the gradient A d logprob; Williams 1992. Off policy it stays that:
    no ratio. Written with the exp, and not as A * logprob, so that the logged loss is -mean A as for the others."""
    return torch.exp(logprobs - logprobs.detach()) * advantages


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor, config.Loss], Tensor]] = {
    "clip": clip,
    "dual_clip": dual_clip,
    "cispo": cispo,
    "sapo": sapo,
    "reinforce": reinforce,
}


# Reductions: (mask, constant_length) -> weights (B, T), float32, 0 outside the mask. B is the number of rows, those
# without a trained token among them: masking one completion (overlong.mask) then moves no other's weight, except in
# token_mean. TRL's grpo and dr_grpo count so too; a mean over the rows that are left would enlarge the others.


def sequence_mean(mask: Tensor, constant_length: int) -> Tensor:
    """mask / len_i / B: mean over completions of the mean over their tokens; GRPO, arXiv:2402.03300, eq. 3."""
    return mask.float() / mask.sum(1, keepdim=True).clamp(min=1) / max(len(mask), 1)


def token_mean(mask: Tensor, constant_length: int) -> Tensor:
    """mask / N: mean over all N trained tokens of the step; DAPO, arXiv:2503.14476, section 3.3."""
    return mask.float() / mask.sum().clamp(min=1)


def constant_length_sum(mask: Tensor, constant_length: int) -> Tensor:
    """mask / (B L): sum over tokens by a length L that is the same for all, so none is favoured for being short or
    long; Dr. GRPO, arXiv:2503.20783."""
    return mask.float() / (max(len(mask), 1) * constant_length)


def sequence_sum(mask: Tensor, constant_length: int) -> Tensor:
    """mask / B: mean over completions of the sum over their tokens, the policy gradient of the whole completion."""
    return mask.float() / max(len(mask), 1)


REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "constant_length": constant_length_sum,
    "sequence_sum": sequence_sum,
}

# bnpo and dapo differ in TRL (token mean per micro-batch, or over the step). Per micro-batch is the bug that a token
# then weighs by how its micro-batch was filled, so here both are the mean over the step.
LOSSES: dict[str, tuple[str, str, str]] = {
    "grpo": ("token", "clip", "sequence_mean"),
    "bnpo": ("token", "clip", "token_mean"),
    "dapo": ("token", "clip", "token_mean"),
    "dr_grpo": ("token", "clip", "constant_length"),
    "gspo": ("sequence", "clip", "sequence_mean"),
    "cispo": ("token", "cispo", "token_mean"),
    "sapo": ("token", "sapo", "sequence_mean"),
    "reinforce": ("token", "reinforce", "sequence_sum"),
}


def negative_log_likelihood(
    logprobs: Tensor, entropy: Tensor | None, batch: LossInputs
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum_t w_t log p_t: imitation. With token_mean as weights, the mean over the tokens of the update."""
    return -(logprobs * batch.weights).sum(), {}


def resolve(loss: config.Loss) -> tuple[str, str, str]:
    """The names of ratio, surrogate and reduction: those of the row `loss.name`, each overridden where it is given."""
    ratio, surrogate, reduction = LOSSES[loss.name]
    return loss.ratio or ratio, loss.surrogate or surrogate, loss.reduction or reduction


def make_loss(loss: config.Loss, kl: config.KL, correction: config.Correction) -> LossFn:
    """The loss of these settings: (logprobs, entropy, batch, kl_coefficient) -> (scalar, metrics per token).

    logprobs, entropy: (B, T), the policy's now, with a gradient (without an entropy bonus, None will do). The scalar
    is the batch's part of the step's loss, as batch.weights are those of the step: parts add. metrics: detached (B, T)
    each, to be averaged over loss_mask. batch.old_logprobs None means on policy: the ratio is then exactly 1."""
    ratio_name, surrogate_name, _ = resolve(loss)
    ratio_of, surrogate_of, clipped = RATIOS[ratio_name], SURROGATES[surrogate_name], CLIPPED.get(surrogate_name)
    estimator, in_loss = KLS[kl.estimator], kl.coefficient > 0 and kl.where == "loss"
    correct = None if correction.name == "none" else CORRECTIONS[correction.name]

    def loss_fn(
        logprobs: Tensor, entropy: Tensor | None, batch: LossInputs, kl_coefficient: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask.bool()

        # NaN and infinity go before the arithmetic: where() on the result would still send 0 * NaN to the gradient
        def trained(values: Tensor) -> Tensor:
            return torch.where(mask, values, 0.0)

        logprobs, advantages = trained(logprobs), trained(batch.advantages)
        old_logprobs = logprobs.detach() if batch.old_logprobs is None else trained(batch.old_logprobs)
        log_ratio = logprobs - old_logprobs
        ratio = ratio_of(log_ratio, logprobs, mask)

        objective = surrogate_of(ratio, logprobs, advantages, loss)
        metrics = {"loss/ratio": ratio, "kl/old": k3(old_logprobs, logprobs.detach())}
        if clipped is not None:
            metrics |= clipped(ratio, advantages, loss)
        if correct is not None:
            assert batch.sampler_logprobs is not None, "a correction needs the sampler's logprobs in the batch"
            weight = correct(old_logprobs, batch.sampler_logprobs, mask, correction.low, correction.high)
            objective = objective * weight
            metrics["sampler/weight"] = weight

        per_token = -objective
        if in_loss:
            assert batch.ref_logprobs is not None, "the KL in the loss needs the reference's logprobs in the batch"
            ref_logprobs = trained(batch.ref_logprobs)
            distance = kl_loss(logprobs, ref_logprobs, old_logprobs, estimator, kl.unbiased)
            per_token = per_token + kl_coefficient * distance
            metrics["kl/ref"] = k3(logprobs.detach(), ref_logprobs)
        if loss.entropy_bonus:
            assert entropy is not None, "an entropy bonus needs the entropies"
            metrics["policy/exact_entropy"] = trained(entropy)
            per_token = per_token - loss.entropy_bonus * trained(entropy)

        return (per_token * trained(batch.weights)).sum(), {name: value.detach() for name, value in metrics.items()}

    return loss_fn


# Where a surrogate's bound acts: (ratio, advantages, bounds) -> 0 or 1 per token. sapo and reinforce have none.


def _ppo_clipped(ratio: Tensor, advantages: Tensor, bounds: config.Loss) -> Metrics:
    low = (ratio < 1 - bounds.clip_low) & (advantages < 0)
    high = (ratio > 1 + bounds.clip_high) & (advantages > 0)
    return {"loss/clip_low": low.float(), "loss/clip_high": high.float()}


def _dual_clipped(ratio: Tensor, advantages: Tensor, bounds: config.Loss) -> Metrics:
    dual = (ratio > bounds.dual_clip) & (advantages < 0)
    return _ppo_clipped(ratio, advantages, bounds) | {"loss/clip_dual": dual.float()}


def _cispo_clipped(ratio: Tensor, advantages: Tensor, bounds: config.Loss) -> Metrics:
    low, high = ratio < bounds.cispo_low, ratio > bounds.cispo_high
    return {"loss/clip_low": low.float(), "loss/clip_high": high.float()}


CLIPPED: dict[str, Callable[[Tensor, Tensor, config.Loss], Metrics]] = {
    "clip": _ppo_clipped,
    "dual_clip": _dual_clipped,
    "cispo": _cispo_clipped,
}
