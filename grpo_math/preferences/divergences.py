"""How the log-ratio to the reference becomes a score, for each f-divergence; Wang et al. 2023, arXiv:2309.16240.

DPO is RLHF under the reverse KL solved for the reward. Under another f-divergence D_f the solved reward is

    r(x, y) = beta * f'(pi(y|x) / pi_ref(y|x)) + a term of the prompt alone,

so f'(u) takes the place of log u. The prompt's term cancels between two completions of one prompt and nowhere else:
only losses of the difference take a divergence. TRL allows the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.kl import bounded


def reverse_kl(log_ratio: Tensor, cfg: PreferenceLoss) -> Tensor:
    """f'(u) = log u (up to a constant, which cancels): plain DPO."""
    return log_ratio


def forward_kl(log_ratio: Tensor, cfg: PreferenceLoss) -> Tensor:
    """f'(u) = 1 - 1/u (up to a constant). The log-ratio is kept within +-20, beyond which it has no gradient."""
    return 1 - bounded(-log_ratio).exp()


def js(log_ratio: Tensor, cfg: PreferenceLoss) -> Tensor:
    """f'(u) = log(2u / (1 + u)) = log 2 + log sigmoid(log u): bounded above by log 2."""
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha(log_ratio: Tensor, cfg: PreferenceLoss) -> Tensor:
    """f'(u) = (u^(alpha - 1) - 1) / (alpha - 1): alpha -> 1 is reverse_kl, alpha -> 0 forward_kl.

    TRL's alpha, which is 1 minus the paper's. The exponent is kept within +-20, beyond which it has no gradient."""
    power = cfg.alpha - 1
    return bounded(power * log_ratio).expm1() / power


DIVERGENCES: dict[str, Callable[[Tensor, PreferenceLoss], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js": js,
    "alpha": alpha,
}
