"""References that live in a group of ranks: a twin that each rank has whole, and one whose weights are split as well.

Both are saved in the same file as in one process, so a run may go on with other ranks or in another ZeRO stage. Left
out: what a reference is for (reference.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grpo_math.actor_critic import policy_in
from grpo_math.backend.deepspeed_masters import set_weight
from grpo_math.batch import Batch
from grpo_math.policy import Policy
from grpo_math.ranks import Ranks
from grpo_math.reference import REFERENCE_FILE, Score, Twin, kept_share
from grpo_math.zero import split_loading

if TYPE_CHECKING:
    from grpo_math import config
    from grpo_math.backend.deepspeed import DeepSpeedBackend


class WholeTwin(Twin):
    """A twin of which each rank has a copy; the first one writes it."""

    def __init__(self, policy: Policy, score: Score, kl: config.KL, ranks: Ranks) -> None:
        super().__init__(policy, score, kl)
        self.ranks = ranks

    def save(self, path: Path) -> None:
        self.ranks.together(lambda: super(WholeTwin, self).save(path) if self.ranks.first else None)


class SplitTwin:
    """A twin in ZeRO-3: an engine of DeepSpeed's without an optimizer. Its parts lie as the policy's do, so that it
    follows the policy without any rank asking another."""

    def __init__(self, backend: DeepSpeedBackend, kl: config.KL) -> None:
        from grpo_math.backend.deepspeed import Scorer

        self.backend, self.kl, self.ranks = backend, kl, backend.ranks
        policy = policy_in(backend.policy)
        offload = "offload_param" in backend.settings["zero_optimization"]
        with split_loading(backend.device, policy.model.dtype, offload), torch.random.fork_rng():
            model = type(policy.model)._from_config(copy.deepcopy(policy.model.config), dtype=policy.model.dtype)
        self.policy = replace(policy, model=model.eval().requires_grad_(False))
        self._mix(0.0)
        settings = backend.settings | {
            # small weights, too, are whole during a pass alone: what changes a part must not leave a copy behind
            "zero_optimization": backend.settings["zero_optimization"] | {"stage3_param_persistence_threshold": 0}
        }
        settings["zero_optimization"].pop("offload_optimizer", None)
        scorer = Scorer(self.policy, backend.temperature, backend.chunk)
        self.engine: Any = backend.deepspeed.initialize(model=scorer, config=settings)[0]

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        return self.backend.share(lambda part: self.engine.module(batch=part)[0], batch)

    def follow(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        self._mix(kept_share(self.kl, step))

    @torch.no_grad()
    def _mix(self, keep: float) -> None:
        theirs = dict(self.backend.policy.model.named_parameters())
        for name, own in self.policy.model.named_parameters():
            if keep < 1.0:
                own.ds_tensor.data.lerp_(theirs[name].ds_tensor.data.to(own.ds_tensor), 1 - keep)

    def save(self, path: Path) -> None:
        if self.kl.reference == "fixed":
            return
        whole: dict[str, Tensor] = {}
        for name, tensor in self.policy.model.state_dict(keep_vars=True).items():
            with self.backend.deepspeed.zero.GatheredParameters([tensor]):
                if self.ranks.first:
                    whole[name] = tensor.detach().to("cpu", copy=True)
        self.ranks.together(lambda: torch.save(whole, path / REFERENCE_FILE) if self.ranks.first else None)

    def load(self, path: Path) -> None:
        if self.kl.reference == "fixed":
            return
        read = lambda: torch.load(path / REFERENCE_FILE, map_location="cpu", weights_only=True, mmap=True)  # noqa: E731
        whole: dict[str, Tensor] = self.ranks.together(read)
        for name, tensor in self.policy.model.state_dict(keep_vars=True).items():
            set_weight(tensor, whole[name])
