"""The table of preference losses, and the choice of one (or a weighted sum) by the configuration.

To add one: a function in a file beside this one, a row here, and its name and parameters in config_preference.py.
Left out on purpose: TRL's aot and aot_unpaired, which sort over the batch and so have no value per pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences import differences, reference_free, singly, unpaired
from grpo_math.preferences.inputs import Pairs
from grpo_math.preferences.policy_gradient import p3o


@dataclass(frozen=True)
class Method:
    """A loss and what it needs.

    loss: paired: (Pairs, config) -> (P,); unpaired: (Singles, baseline, config) -> (B,). One value per pair or
    completion, never a mean over the batch: the caller weighs them, 1/P of the whole step, and adds.
    reference: it reads the reference's log-probabilities. behaviour: also those of the policy that sampled, and the
    rewards."""

    loss: Callable[..., Tensor]
    paper: str
    paired: bool
    reference: bool
    behaviour: bool


_relative = partial(Method, paired=True, reference=True, behaviour=False)
_reference_free = partial(Method, paired=True, reference=False, behaviour=False)
_unpaired = partial(Method, paired=False, reference=True, behaviour=False)
_sampled = partial(Method, paired=True, reference=True, behaviour=True)

PREFERENCES: dict[str, Method] = {
    "dpo": _relative(differences.dpo, "Rafailov et al. 2023, arXiv:2305.18290"),
    "cdpo": _relative(differences.cdpo, "Mitchell 2023, A note on DPO with noisy preferences"),
    "robust": _relative(differences.robust, "Chowdhury et al. 2024, arXiv:2403.00409"),
    "ipo": _relative(differences.ipo, "Azar et al. 2023, arXiv:2310.12036"),
    "slic": _relative(differences.slic, "Zhao et al. 2023, arXiv:2305.10425"),
    # RSO's sigmoid-norm is dpo with its gamma for beta. What makes it RSO are the pairs: `filter --pair rso`.
    # Its other loss, hinge-norm, is slic with beta 0.05.
    "rso": _relative(differences.dpo, "Liu et al. 2023, arXiv:2309.06657"),
    "dpo_norm": _relative(differences.dpo_norm, "Lambert et al. 2024, arXiv:2411.15124"),
    "discopop": _relative(differences.discopop, "Lu et al. 2024, arXiv:2406.08414"),
    "exo_pair": _relative(differences.exo_pair, "Ji et al. 2024, arXiv:2402.00856"),
    "rpo": _relative(differences.rpo, "Pang et al. 2024, arXiv:2404.19733"),
    "apo_zero": _relative(singly.apo_zero, "D'Oosterlinck et al. 2024, arXiv:2408.06266"),
    "apo_down": _relative(singly.apo_down, "D'Oosterlinck et al. 2024, arXiv:2408.06266"),
    "bco_pair": _relative(singly.bco_pair, "Jung et al. 2024, arXiv:2404.04656"),
    "nca": _relative(singly.nca, "Chen et al. 2024, arXiv:2402.05369"),
    "sppo_hard": _relative(singly.sppo_hard, "Wu et al. 2024, arXiv:2405.00675"),
    "simpo": _reference_free(reference_free.simpo, "Meng et al. 2024, arXiv:2405.14734"),
    "orpo": _reference_free(reference_free.orpo, "Hong et al. 2024, arXiv:2403.07691"),
    "cpo": _reference_free(reference_free.cpo, "Xu et al. 2024, arXiv:2401.08417"),
    "sft": _reference_free(reference_free.sft, "maximum likelihood"),
    "p3o": _sampled(p3o, "Wu et al. 2023, arXiv:2310.00212"),
    "kto": _unpaired(unpaired.kto, "Ethayarajh et al. 2024, arXiv:2402.01306"),
    "bco": _unpaired(unpaired.bco, "Jung et al. 2024, arXiv:2404.04656"),
}


def make_preference(cfg: PreferenceLoss) -> Method:
    """The method of these settings; call it once. A mix is sum_m weight_m * loss_m, MPO: Wang et al. 2024,
    arXiv:2411.10442, whose weights are {dpo: 0.8, bco_pair: 0.2, sft: 1.0}. It needs what any of its losses needs."""
    if cfg.mix is None:
        return PREFERENCES[cfg.name]
    parts = [(weight, PREFERENCES[name]) for name, weight in cfg.weights.items()]

    def loss(pairs: Pairs, cfg: PreferenceLoss) -> Tensor:
        return torch.stack([weight * method.loss(pairs, cfg) for weight, method in parts]).sum(0)

    return Method(
        loss,
        paper="Wang et al. 2024, arXiv:2411.10442",
        paired=True,
        reference=any(method.reference for _, method in parts),
        behaviour=any(method.behaviour for _, method in parts),
    )
