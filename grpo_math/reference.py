"""The reference policy of the KL term: a frozen twin of the policy, or the policy itself with its adapter off.

A twin is fixed, refreshed from the policy every so often, or its exponential average. Left out: how log-probabilities
are computed and shared among ranks, which is the backend's, as is a twin whose weights are split over them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from grpo_math.batch import Batch
from grpo_math.lora import adapter_off
from grpo_math.policy import Policy

if TYPE_CHECKING:
    from grpo_math import config

REFERENCE_FILE = "reference.pt"
Score = Callable[[Policy, Batch], Tensor]  # log-probabilities (B, T) of a policy, without gradients


class Reference(Protocol):
    def logprobs(self, batch: Batch) -> Tensor:
        """(B, T) at the sampling temperature, 0 outside batch.loss_mask."""

    def follow(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        """What becomes of it after a step: `weights` are the policy's."""

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...


class Twin:
    """A frozen copy with memory of its own."""

    def __init__(self, policy: Policy, score: Score, kl: config.KL) -> None:
        self.policy, self.score, self.kl = copy_policy(policy), score, kl

    def logprobs(self, batch: Batch) -> Tensor:
        return self.score(self.policy, batch)

    @torch.no_grad()
    def follow(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        own = dict(self.policy.model.named_parameters())
        keep = kept_share(self.kl, step)
        if keep < 1.0:
            for name, tensor in weights:
                if name in own:
                    own[name].lerp_(tensor.to(own[name]), 1 - keep)

    def save(self, path: Path) -> None:
        """A fixed one needs no file, being the model the run started from."""
        if self.kl.reference != "fixed":
            torch.save(self.policy.model.state_dict(), path / REFERENCE_FILE)

    def load(self, path: Path) -> None:
        if self.kl.reference != "fixed":
            self.policy.model.load_state_dict(torch.load(path / REFERENCE_FILE, map_location="cpu", weights_only=True))


class AdapterOff:
    """The policy before training: its frozen weights without the adapter. Takes no memory and never moves."""

    def __init__(self, policy: Policy, score: Score) -> None:
        self.policy, self.score = policy, score

    def logprobs(self, batch: Batch) -> Tensor:
        with adapter_off(self.policy.model):
            return self.score(self.policy, batch)

    def follow(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        pass

    def save(self, path: Path) -> None:
        pass

    def load(self, path: Path) -> None:
        pass


def copy_policy(policy: Policy) -> Policy:
    """A frozen twin with memory of its own."""
    return replace(policy, model=copy.deepcopy(policy.model).eval().requires_grad_(False))


def kept_share(kl: config.KL, step: int) -> float:
    """How much of the reference stays after a step: theta_ref <- d theta_ref + (1 - d) theta at every step (ema), with
    d = 0 every kl.refresh_every steps and 1 between them (refresh), or always 1 (fixed)."""
    if kl.reference == "ema":
        return kl.ema_decay
    return 0.0 if kl.reference == "refresh" and step % kl.refresh_every == 0 else 1.0
