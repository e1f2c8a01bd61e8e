"""Weights on their way to servers, in a folder that both sides see: written whole, then named, then forgotten.

A version is a folder of safetensors files under Hugging Face names, or an adapter's folder as peft writes it. The last
two versions are kept, so that a server that is late still finds what it was told to read. Left out: telling the servers
(vllm_http.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from grpo_math.lora import save_adapter
from grpo_math.policy import Policy
from grpo_math.types import EngineError, UserError

PREFIX, WRITING = "weights-", ".writing-"
SHARD_BYTES = 4 << 30  # of host memory at a time, beside the trainer's
KEEP = 2


class WeightFolder:
    """One run at a time has it: what an earlier one left behind is removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.names: list[str] = []

    def check(self) -> None:
        """UserError where nothing can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f"{WRITING}probe-{os.getpid()}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise UserError(
                f"rollout.server.folder={self.folder} cannot be written: {error}; give a folder that trainer and "
                "servers both see, with room for two copies of the model"
            ) from error

    def clear_earlier(self) -> None:
        """Delete what an earlier run left, once it is sure that no other run has this folder."""
        for old in [*self.folder.glob(f"{PREFIX}*"), *self.folder.glob(f"{WRITING}*")]:
            shutil.rmtree(old)

    def path(self, name: str) -> Path:
        return self.folder / f"{PREFIX}{name}"

    def write(self, name: str, weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, policy: Policy) -> Path:
        """The folder with these weights, which appears under its name only when it is whole.

        Asks for every one of the weights even where writing fails, since other ranks give them out together with this
        one; then raises EngineError. dtype: the servers' own, so that no byte is written that they would drop."""
        final, partial = self.path(name), self.folder / f"{WRITING}{name}"
        rest = iter(weights)
        try:
            partial.mkdir(parents=True)
            if policy.lora.rank and policy.lora.sync == "adapter":
                save_adapter(policy.model, rest, partial)
            else:
                _save_shards(rest, partial, dtype)
            partial.rename(final)
        except (OSError, SafetensorError) as error:
            for _ in rest:
                pass
            shutil.rmtree(partial, ignore_errors=True)
            raise EngineError(
                f"the weights could not be written into rollout.server.folder={self.folder}: {error}. Make room for "
                "two copies of the model, or give another folder; the same command goes on from the last checkpoint"
            ) from error
        self.names.append(name)
        while len(self.names) > KEEP:
            shutil.rmtree(self.path(self.names.pop(0)), ignore_errors=True)
        return final

    def clear(self) -> None:
        """Nothing is left in it."""
        while self.names:
            shutil.rmtree(self.path(self.names.pop()), ignore_errors=True)


def _save_shards(weights: Iterable[tuple[str, Tensor]], path: Path, dtype: torch.dtype) -> None:
    shard: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in weights:
        # a copy, always: the tensor is good only until the next is asked for, and tied ones may not share memory
        shard[name] = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        shard[name] = shard[name].contiguous()
        size += shard[name].nbytes
        if size >= SHARD_BYTES:
            number += 1
            save_file(shard, path / f"model-{number:05d}.safetensors")
            shard, size = {}, 0
    if shard:
        save_file(shard, path / f"model-{number + 1:05d}.safetensors")
