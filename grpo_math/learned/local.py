"""A reward model in this process, on the policy's device or on another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo_math.types import UserError
from grpo_math.value_input import Read, at_places, batch_of
from grpo_math.value_model import ValueModel


class Local:
    """token_budget: tokens of a micro-batch. offload: its weights lie on the CPU while nothing is scored."""

    def __init__(self, model: ValueModel, token_budget: int, offload: bool = False) -> None:
        self.model, self.token_budget, self.offload = model, token_budget, offload
        self.context, self.device = model.context, model.device
        self._rest()

    def values(self, reads: Sequence[Read]) -> list[list[float]]:
        if not reads:
            return []
        if self.offload:
            self.model.model.to(self.device)
        try:
            batch = batch_of(reads, self.model.pad_id)
            return at_places(self.model.score(batch, self.token_budget), batch)
        finally:
            self._rest()

    def close(self) -> None:
        pass

    def _rest(self) -> None:
        if self.offload and self.device.type != "cpu":
            self.model.model.to("cpu")
            torch.cuda.empty_cache()  # torch would keep the room for itself, and the sampler could not have it


def device_of(name: str, policy: torch.device, key: str) -> torch.device:
    """`auto` is the policy's. Raises UserError."""
    if name == "auto":
        return policy
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{key}={name}: {error}; use auto, cpu, or cuda:1") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"{key}={name}, and torch sees {count} CUDA devices; use auto, or cpu")
    return device
