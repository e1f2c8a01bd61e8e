"""The reference policy of the KL term: fixed, refreshed from the policy every so often, or its exponential average."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_math.policy import Policy

if TYPE_CHECKING:
    from grpo_math import config


def copy_policy(policy: Policy) -> Policy:
    """A frozen twin with memory of its own."""
    return replace(policy, model=copy.deepcopy(policy.model).eval().requires_grad_(False))


@torch.no_grad()
def move_reference(reference: Policy, weights: Iterable[tuple[str, Tensor]], kl: config.KL, step: int) -> None:
    """theta_ref <- theta every kl.refresh_every steps, or theta_ref <- d theta_ref + (1 - d) theta at every step."""
    if kl.reference == "fixed" or (kl.reference == "refresh" and step % kl.refresh_every):
        return
    keep = kl.ema_decay if kl.reference == "ema" else 0.0
    own = dict(reference.model.named_parameters())
    for name, tensor in weights:
        if name in own:
            own[name].lerp_(tensor.to(own[name].device), 1 - keep)


REFERENCE_FILE = "reference.pt"


def save_reference(reference: Policy, path: Path) -> None:
    """Beside the checkpoint; a fixed reference needs none, being the model the run started from."""
    torch.save(reference.model.state_dict(), path / REFERENCE_FILE)


def load_reference(reference: Policy, path: Path) -> None:
    reference.model.load_state_dict(torch.load(path / REFERENCE_FILE, map_location="cpu", weights_only=True))
