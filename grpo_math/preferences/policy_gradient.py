"""P3O: a policy gradient from pairs. The verifier's rewards say how much better one completion is; there is no sigmoid.

Wu et al. 2023, arXiv:2310.00212. With a = r_1 - r_2, rho_i = pi(y_i) / pi_old(y_i) and sg[] without gradient, theorem 1
in its off-policy form is

    grad = E_{y_1, y_2 ~ old} [ a rho_1 rho_2 grad log(pi(y_1) / pi(y_2)) ] / 2,

and both functions here have exactly that gradient as long as nothing is clipped (the loss has minus it). The rewards
carry the KL penalty of the policy that sampled: r = reward - beta * log(pi_old / pi_ref). A constant added to both
rewards changes nothing. The ratios are those of whole completions, so they leave the clip range after few updates. The
value says nothing of progress, each ratio being weighed by the other: watch the margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.kl import bounded
from grpo_math.preferences.inputs import Pairs


def p3o(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
    """Minus the clipped pairwise objective, (P,): 0 on policy, with gradient -a/2 for chosen and a/2 for rejected.

    Reads old_chosen, old_rejected, the rewards and the reference. clipping: separate (V1) or joint (V2)."""
    assert pairs.old_chosen is not None, "p3o needs the sampling policy's logprobs of the chosen completions"
    assert pairs.old_rejected is not None, "p3o needs the sampling policy's logprobs of the rejected completions"
    difference = _reward_difference(pairs, pairs.old_chosen, pairs.old_rejected, cfg)
    return -CLIPPINGS[cfg.clipping](
        bounded(pairs.chosen - pairs.old_chosen), bounded(pairs.rejected - pairs.old_rejected), difference, cfg.clip
    )


def separate(chosen: Tensor, rejected: Tensor, difference: Tensor, clip: float) -> Tensor:
    """sum_i min(a_i sg[rho_j] rho_i, a_i sg[rho_j] clip(rho_i, 1 - clip, 1 + clip)) / 2, j the other one, a_2 = -a_1;
    section 4.2, V1.

    chosen, rejected: log rho, (P,); difference: a, (P,). Returns the objective, (P,)."""
    total = torch.zeros_like(difference)
    for own, other, gain in ((chosen, rejected, difference), (rejected, chosen, -difference)):
        weighted, ratio = gain * other.detach().exp(), own.exp()
        total = total + torch.minimum(weighted * ratio, weighted * ratio.clamp(1 - clip, 1 + clip)) / 2
    return total


def joint(chosen: Tensor, rejected: Tensor, difference: Tensor, clip: float) -> Tensor:
    """sg[rho_1 rho_2] min(a l, a clip(l, log(1 - clip), log(1 + clip))) / 2, l = log(rho_1 / rho_2); section 4.2, V2.

    The quotient of the two ratios is bounded, not each: both may move, as long as they move together. The bounds are
    our reading: those of V1, on the quotient. Arguments and result as for separate."""
    log_quotient = chosen - rejected
    clipped = log_quotient.clamp(math.log(1 - clip), math.log(1 + clip))
    weight = (chosen + rejected).detach().exp()
    return weight * torch.minimum(difference * log_quotient, difference * clipped) / 2


CLIPPINGS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {"separate": separate, "joint": joint}


def _reward_difference(pairs: Pairs, old_chosen: Tensor, old_rejected: Tensor, cfg: PreferenceLoss) -> Tensor:
    assert pairs.chosen_reward is not None, "p3o needs the rewards of the chosen completions"
    assert pairs.rejected_reward is not None, "p3o needs the rewards of the rejected completions"
    assert pairs.ref_chosen is not None, "p3o needs the reference's logprobs of the chosen completions"
    assert pairs.ref_rejected is not None, "p3o needs the reference's logprobs of the rejected completions"
    penalty = (old_chosen - pairs.ref_chosen) - (old_rejected - pairs.ref_rejected)
    return pairs.chosen_reward - pairs.rejected_reward - cfg.beta * penalty
