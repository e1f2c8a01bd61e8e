"""Losses that see a pair only through the difference of its two rewards: DPO and its kin.

Each is (pairs, config) -> (P,): a value per pair, never a mean, so that any split of a step gives the same gradient.
Written with d = r_chosen - r_rejected, r = beta * f'(pi / pi_ref) (rewards.relative) and sigma the sigmoid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences import rewards
from grpo_math.preferences.inputs import Pairs
from grpo_math.preferences.reference_free import sft


def _difference(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    chosen, rejected = rewards.relative(pairs, cfg)
    return chosen - rejected


def dpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(d); Rafailov et al. 2023, arXiv:2305.18290, eq. 7. TRL's `sigmoid`."""
    return -F.logsigmoid(_difference(pairs, cfg))


def cdpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-(1 - e) log sigma(d) - e log sigma(-d) with e = label_smoothing; Mitchell 2023, "A note on DPO with noisy
    preferences". Smallest where sigma(d) = 1 - e, so the rewards do not run away. TRL's `aot` of a single pair."""
    d = _difference(pairs, cfg)
    return -(1 - cfg.label_smoothing) * F.logsigmoid(d) - cfg.label_smoothing * F.logsigmoid(-d)


def robust(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """(-(1 - e) log sigma(d) + e log sigma(-d)) / (1 - 2e) with e = label_smoothing < 0.5; Chowdhury et al. 2024,
    arXiv:2403.00409. In expectation over labels flipped with probability e it is dpo on the right ones. It may be
    negative."""
    d, e = _difference(pairs, cfg), cfg.label_smoothing
    return (-(1 - e) * F.logsigmoid(d) + e * F.logsigmoid(-d)) / (1 - 2 * e)


def ipo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """(h - 1 / (2 beta))^2 with h the difference of log(pi / pi_ref) per token; Azar et al. 2023, arXiv:2310.12036,
    eq. 17, whose tau is beta.

    The paper writes sums over tokens. TRL asked its authors, who use means, and has means; so has this."""
    chosen, rejected = rewards.mean_scores(pairs, cfg)
    return (chosen - rejected - 1 / (2 * cfg.beta)).square()


def slic(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """max(0, margin - d); the hinge of SLiC-HF (Zhao et al. 2023, arXiv:2305.10425) on likelihoods relative to the
    reference, which the RSO paper calls hinge-norm (Liu et al. 2023, arXiv:2309.06657). TRL's `hinge` at margin 1.

    SLiC's second term, the likelihood of the chosen completion, is `mix: {slic: 1, sft: WEIGHT}`."""
    return F.relu(cfg.margin - _difference(pairs, cfg))


def dpo_norm(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(d) with rewards per token, beta * log(pi / pi_ref) / tokens; Tulu 3 (Lambert et al. 2024,
    arXiv:2411.15124), which has beta 5. TRL's `sigmoid_norm`."""
    chosen, rejected = rewards.mean_relative(pairs, cfg)
    return -F.logsigmoid(chosen - rejected)


def discopop(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """(1 - g) * -log sigma(d) + g * exp(-d) with the gate g = sigma(d / tau), tau = discopop_tau; Lu et al. 2024,
    arXiv:2406.08414, eq. 5.

    With the paper's tau = 0.05 the slope at d = 0 is positive and d = -0.12 is a local minimum: short steps from the
    reference on end there, with a negative margin; only a long one passes the hump at 0.07. From tau = 0.2 on there is
    no hump.

    g * exp(-d) is one exponential here: for a badly wrong pair TRL's product is 0 * inf. tau above 1 would let it
    grow without bound."""
    d = _difference(pairs, cfg)
    exponential = torch.exp(F.logsigmoid(d / cfg.discopop_tau) - d)
    return torch.sigmoid(-d / cfg.discopop_tau) * -F.logsigmoid(d) + exponential


def exo_pair(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """KL((sigma(d), sigma(-d)) || (1 - e, e)) with e = label_smoothing > 0; EXO, Ji et al. 2024, arXiv:2402.00856,
    eq. 16. The reverse of cdpo's direction: it seeks the mode. Its gradient fades for pairs that are badly wrong."""
    d, e = _difference(pairs, cfg), cfg.label_smoothing
    right = torch.sigmoid(d) * (F.logsigmoid(d) - math.log1p(-e))
    return right + torch.sigmoid(-d) * (F.logsigmoid(-d) - math.log(e))


def rpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(d) + sft_weight * -log pi(chosen) / tokens; Pang et al. 2024, arXiv:2404.19733, eq. 1.

    The likelihood is a mean over the tokens of each completion, as the paper has it; TRL's `["sigmoid", "sft"]` takes
    the mean over all tokens of a micro-batch, which depends on the split."""
    return dpo(pairs, cfg) + cfg.sft_weight * sft(pairs, cfg)
