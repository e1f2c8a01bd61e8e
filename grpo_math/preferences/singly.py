"""Losses of pairs that judge each completion by itself, against the reference, and not only their difference.

Each is (pairs, config) -> (P,). r = beta * log(pi / pi_ref), sigma is the sigmoid. These need the reverse KL.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences import rewards
from grpo_math.preferences.inputs import Pairs


def _rewards(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    chosen, rejected = rewards.log_ratios(pairs)
    return cfg.beta * chosen, cfg.beta * rejected


def apo_zero(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """(1 - sigma(r_chosen)) + sigma(r_rejected); D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7.

    Raises the chosen and lowers the rejected completion: for chosen ones better than the model's own."""
    chosen, rejected = _rewards(pairs, cfg)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """sigma(r_chosen) + (1 - sigma(r_chosen - r_rejected)); D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 8.

    Lowers both, the rejected completion more: for models better than the chosen completions."""
    chosen, rejected = _rewards(pairs, cfg)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def bco_pair(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(r_chosen) - log sigma(-r_rejected); Jung et al. 2024, arXiv:2404.04656, with the reward shift delta
    at 0, as TRL has it for pairs. With the shift: name=bco, on single completions."""
    chosen, rejected = _rewards(pairs, cfg)
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


def nca(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """-log sigma(r_chosen) - (log sigma(-r_chosen) + log sigma(-r_rejected)) / 2; Chen et al. 2024, arXiv:2402.05369.

    Noise-contrastive for two completions, TRL's `nca_pair`. Keeps the chosen completion's likelihood from falling."""
    chosen, rejected = _rewards(pairs, cfg)
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2


def sppo_hard(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """(l_chosen - 1 / (2 beta))^2 + (l_rejected + 1 / (2 beta))^2 with l = log(pi / pi_ref); SPPO, Wu et al. 2024,
    arXiv:2405.00675, eq. 4.7 with win probabilities 1 and 0, and beta = 1 / eta (the paper has 0.001)."""
    chosen, rejected = rewards.log_ratios(pairs)
    target = 1 / (2 * cfg.beta)
    return (chosen - target).square() + (rejected + target).square()
