"""Pairs and single completions for the tests of the preference losses."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from grpo_math.config_preference import READS, DivergenceName, PreferenceLoss
from grpo_math.preferences.inputs import Pairs, Singles
from grpo_math.preferences.table import PREFERENCES, make_preference

PAIRED = [name for name, method in PREFERENCES.items() if method.paired]


def preference(name: str, **values: Any) -> PreferenceLoss:
    return PreferenceLoss.model_validate({"name": name} | values)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_pairs() -> Pairs:
    """Log-ratios 1 and -1 for chosen, -1 and 0 for rejected; ratios to the sampler e^0.1, e^0.4 and e^0.05, e^0.1."""
    return Pairs(
        chosen=tensor(-2, -6).requires_grad_(),
        rejected=tensor(-5, -4).requires_grad_(),
        ref_chosen=tensor(-3, -5),
        ref_rejected=tensor(-4, -4),
        chosen_tokens=tensor(2, 4),
        rejected_tokens=tensor(5, 2),
        old_chosen=tensor(-2.1, -6.4),
        old_rejected=tensor(-5.05, -4.1),
        chosen_reward=tensor(1, 1),
        rejected_reward=tensor(0, 0.5),
    )


def random_pairs(count: int = 5, dtype: torch.dtype = torch.float64) -> Pairs:
    generator = torch.Generator().manual_seed(0)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64).to(dtype)

    chosen, rejected = draw(-9, -1), draw(-9, -1)
    ref_chosen, ref_rejected = chosen + draw(-3, 3), rejected + draw(-3, 3)
    old_chosen, old_rejected = chosen + draw(-0.5, 0.5), rejected + draw(-0.5, 0.5)
    chosen_tokens, rejected_tokens = torch.randint(1, 6, (2, count), generator=generator).to(dtype)
    return Pairs(
        chosen.requires_grad_(),
        rejected.requires_grad_(),
        ref_chosen,
        ref_rejected,
        chosen_tokens,
        rejected_tokens,
        old_chosen,
        old_rejected,
        chosen_reward=draw(0, 1),
        rejected_reward=draw(0, 1),
    )


def four_singles() -> Singles:
    """Log-ratios 1, -1, -1 and 0; the first two desirable."""
    label = torch.tensor([True, True, False, False])
    return Singles(tensor(-2, -6, -5, -4).requires_grad_(), tensor(-3, -5, -4, -4), tensor(2, 4, 5, 2), label)


def loss_and_gradients(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Each pair's loss, and its gradients by chosen and rejected."""
    loss = make_preference(cfg).loss(pairs, cfg)
    chosen, rejected = torch.autograd.grad(
        loss.sum(), (pairs.chosen, pairs.rejected), allow_unused=True, materialize_grads=True
    )
    return loss, chosen, rejected


def every_setting() -> list[PreferenceLoss]:
    settings = [preference(name) for name in PAIRED] + [preference("p3o", clipping="joint")]
    others = [name for name in get_args(DivergenceName) if name != "reverse_kl"]
    settings += [preference(n, divergence=d) for n in PAIRED if "divergence" in READS[n] for d in others]
    return [*settings, PreferenceLoss(mix={"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0})]
