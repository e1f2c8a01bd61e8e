"""Losses that need no reference model: half the memory and a forward pass less.

Each is (pairs, config) -> (P,). Likelihoods of the chosen completion are means over its own tokens: TRL takes the mean
over all tokens of a micro-batch, which depends on the split (and for orpo counts the prompt's tokens too).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences import rewards
from grpo_math.preferences.inputs import Pairs


def sft(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log pi(chosen) / tokens: the negative log-likelihood per token of the chosen completion. For mixtures."""
    return -pairs.chosen / pairs.chosen_tokens


def simpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(r_chosen - r_rejected - margin) with r = beta * log pi / tokens; Meng et al. 2024, arXiv:2405.14734,
    eq. 6, whose gamma is the margin. The paper sets gamma / beta from 0.3 to 0.8."""
    chosen, rejected = rewards.mean_absolute(pairs, cfg)
    return -F.logsigmoid(chosen - rejected - cfg.margin)


def cpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(beta * (log pi(chosen) - log pi(rejected))) + sft_weight * -log pi(chosen) / tokens; Xu et al. 2024,
    arXiv:2401.08417. The paper sums the likelihood over tokens; TRL and this take the mean."""
    chosen, rejected = rewards.absolute(pairs, cfg)
    return -F.logsigmoid(chosen - rejected) + cfg.sft_weight * sft(pairs, cfg)


def orpo(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log p + beta * -log sigma(log odds(chosen) - log odds(rejected)), odds = p / (1 - p) and p = exp(mean logprob);
    Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7, whose lambda is beta. The likelihood is the chosen completion's."""
    chosen, rejected = rewards.mean_logprobs(pairs, cfg)
    return sft(pairs, cfg) - cfg.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
    # a completion that is certain (log p = 0) has infinite odds, whose gradient is NaN
    certain = mean_logprobs.clamp(max=-1e-6)
    return certain - torch.log(-torch.expm1(certain))
