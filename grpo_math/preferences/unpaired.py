"""Losses of single completions with a label: no pairs are needed, only good ones and bad ones.

A loss is (singles, baseline, config) -> (B,), class weights included. The baseline is one number for the whole step,
without gradient, that the recipe computes before any split: kto_baseline or bco_baseline.
"""

# B completions, each desirable (label True) or undesirable

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences.inputs import Singles


def single_rewards(singles: Singles, cfg: PreferenceLoss) -> Tensor:
    """beta * log(pi / pi_ref), (B,): DPO's reward of a single completion."""
    return cfg.beta * (singles.logprobs - singles.ref_logprobs)


def class_weights(label: Tensor, cfg: PreferenceLoss) -> Tensor:
    """desirable_weight where label is True, else undesirable_weight, (B,).

    With classes of unequal size, KTO's authors advise desirable_weight * desirable / (undesirable_weight * undesirable)
    of 1 to 4/3."""
    weights = torch.full(label.shape, cfg.undesirable_weight, device=label.device)
    return weights.masked_fill(label.bool(), cfg.desirable_weight)


def kto_logits(singles: Singles, baseline: Tensor, cfg: PreferenceLoss) -> Tensor:
    """beta * (log(pi / pi_ref) - z0), (B,): above 0 for what the policy holds desirable."""
    return single_rewards(singles, cfg) - cfg.beta * baseline


def kto(singles: Singles, baseline: Tensor, cfg: PreferenceLoss) -> Tensor:
    """weight * (1 - sigma(u)) if desirable, weight * (1 - sigma(-u)) if not, u = beta * (log(pi / pi_ref) - z0);
    Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7. baseline: z0 of kto_baseline, in nats."""
    logits = kto_logits(singles, baseline, cfg)
    wrong = torch.sigmoid(torch.where(singles.label.bool(), -logits, logits))
    return class_weights(singles.label, cfg).to(wrong) * wrong


def kto_baseline(mismatched_log_ratios: Tensor) -> Tensor:
    """z0 = max(0, mean log(pi / pi_ref)) over prompts each with the completion of ANOTHER prompt: a scalar without
    gradient, an estimate of the KL; arXiv:2402.01306.

    mismatched_log_ratios: (B,), of the whole step (of all ranks), in nats."""
    return mismatched_log_ratios.detach().mean().clamp(min=0)


def bco_logits(singles: Singles, baseline: Tensor, cfg: PreferenceLoss) -> Tensor:
    """beta * log(pi / pi_ref) - delta, (B,): above 0 for what the policy holds desirable."""
    return single_rewards(singles, cfg) - baseline


def bco(singles: Singles, baseline: Tensor, cfg: PreferenceLoss) -> Tensor:
    """weight * -log sigma(v) if desirable, weight * -log sigma(-v) if not, v = beta * log(pi / pi_ref) - delta; Jung et
    al. 2024, arXiv:2404.04656. baseline: delta, RunningMean.mean of bco_baseline. The prompt's density ratio,
    for classes with different prompts, is left out: here both come from the same problems."""
    logits = bco_logits(singles, baseline, cfg)
    return -class_weights(singles.label, cfg).to(logits) * F.logsigmoid(
        torch.where(singles.label.bool(), logits, -logits)
    )


@dataclass(frozen=True)
class RunningMean:
    """The mean over the steps so far; plain numbers, to be kept in a checkpoint."""

    mean: float = 0.0
    steps: int = 0


def bco_baseline(before: RunningMean, rewards: Tensor) -> RunningMean:
    """delta after this step: the mean over all steps, this one with it, of the step's mean reward.

    before: that of the steps so far. rewards: single_rewards of the whole step (of all ranks), (B,). As TRL had it; the
    paper's midpoint of the two classes' means is the same for classes of equal size."""
    steps = before.steps + 1
    return RunningMean(before.mean + (float(rewards.detach().mean()) - before.mean) / steps, steps)
