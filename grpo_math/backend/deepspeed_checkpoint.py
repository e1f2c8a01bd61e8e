"""A checkpoint of DeepSpeed's that depends neither on the number of ranks nor on the ZeRO stage, nor on DeepSpeed.

The folder is one of Hugging Face's, in the type that the model computes with, with the optimizer's states beside it
under the parameters' names. Left out: the layout of the states' files (states.py), and folders that are whole or not
there (checkpoint.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo_math.backend.states import (
    MASTER,
    MOMENTS,
    Progress,
    Store,
    open_model,
    open_states,
    owners,
    to_float32,
    write_index,
    write_share,
)
from grpo_math.backend.torch import save_merged, save_model
from grpo_math.lora import engine_weights, peft_name, save_adapter
from grpo_math.ranks import Ranks
from grpo_math.token_model import TokenModel
from grpo_math.types import UserError

if TYPE_CHECKING:
    from grpo_math.backend.deepspeed_masters import Masters

Whole = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Checkpoint:
    """whole: makes split parameters readable inside it. with_masters: the model's own weights are rounded, so that the
    ones in float32 must be saved too."""

    policy: TokenModel
    masters: Masters
    whole: Whole
    ranks: Ranks
    with_masters: bool

    def save(self, path: Path, progress: Progress) -> None:
        """Each rank writes its share of the states, the first one the model too. All that ranks need of each other
        comes before the first byte is written, so that a full disk on one leaves none waiting."""
        trained = self._trained()
        kinds = (MASTER, *MOMENTS) if self.with_masters else MOMENTS
        owner = owners({name: _numel(p) for name, p in trained.items()}, self.ranks.size)
        states: dict[str, Tensor] = {}
        for name, parameter in trained.items():
            for kind in kinds:
                tensor = self.masters.read(parameter, kind)
                if owner[name] == self.ranks.rank:
                    states[f"{kind}/{name}"] = to_float32(tensor)
        model = self._collect(saved_tensors(self.policy).items())
        lora = self.policy.lora
        merged: dict[str, Tensor] | None = None
        if lora.rank and lora.save_merged:
            spec = lora.model_copy(update={"sync": "merged"})
            merged = self._collect(engine_weights(self.policy.model, spec, self.whole))

        def write() -> None:
            write_share(path, self.ranks.rank, self.ranks.size, states)
            if not self.ranks.first:
                return
            write_index(path, owner, kinds, self.ranks.size, progress)
            self.policy.tokenizer.save_pretrained(path)
            if not lora.rank:
                save_model(self.policy, model, path)
                return
            save_adapter(self.policy.model, model.items(), path)
            if merged is not None:
                save_merged(self.policy, merged.items(), path)

        self.ranks.together(write)

    def _collect(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies of whole tensors in the CPU's memory, on the first rank; {} on the others, which only help."""
        copies: dict[str, Tensor] = {}
        for name, tensor in tensors:
            with self.whole([tensor]) if isinstance(tensor, torch.nn.Parameter) else nullcontext():
                if self.ranks.first:
                    copies[name] = tensor.detach().to("cpu", copy=True)
        return copies

    def load(self, path: Path) -> Progress:
        """Into the model and the optimizer, in place, by any number of ranks in any stage. Nothing has changed where a
        file is not sound: UserError names it."""
        from grpo_math.backend.deepspeed_masters import set_weight  # needs DeepSpeed

        with ExitStack() as stack:
            model, states, progress = self.ranks.together(lambda: self._open(path, stack))
            for name, tensor in saved_tensors(self.policy).items():
                set_weight(tensor, model.get(name))
            for name, parameter in self._trained().items():
                master = f"{MASTER}/{name}"
                exact = states.get(master) if master in states.names() else model.get(self._name_in_file(name)).float()
                self.masters.write(parameter, MASTER, exact)
                for kind in MOMENTS:
                    self.masters.write(parameter, kind, states.get(f"{kind}/{name}"))
        self.ranks.wait()
        return progress

    def _open(self, path: Path, stack: ExitStack) -> tuple[Store, Store, Progress]:
        store, progress = open_states(path)
        states = stack.enter_context(store)
        model = stack.enter_context(open_model(path))
        shapes = {name: _shape(tensor) for name, tensor in saved_tensors(self.policy).items()}
        _refuse_others(path, shapes, model)
        moments = {f"{kind}/{name}": _shape(p) for name, p in self._trained().items() for kind in MOMENTS}
        _refuse_others(path, moments, states, extra=f"{MASTER}/")
        return model, states, progress

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.policy.model.named_parameters() if p.requires_grad}

    def _name_in_file(self, name: str) -> str:
        return peft_name(name) if self.policy.lora.rank else name


def saved_tensors(policy: TokenModel) -> dict[str, Tensor]:
    """The model's own tensors, or with LoRA the adapter's, under their names in the files; tied ones once."""
    if policy.lora.rank:
        return {peft_name(name): p for name, p in policy.model.named_parameters() if ".lora_" in name}
    tied = set(policy.model.all_tied_weights_keys)
    return {name: t for name, t in policy.model.state_dict(keep_vars=True).items() if name not in tied}


def _refuse_others(path: Path, shapes: dict[str, tuple[int, ...]], store: Store, extra: str | None = None) -> None:
    """UserError where the names or shapes are not these. extra: names that may be there besides."""
    there = {name for name in store.names() if extra is None or not name.startswith(extra)}
    odd = sorted(shapes.keys() ^ there)
    if odd:
        what = f"{len(odd)} tensors are missing or too many, such as {odd[0]}"
    else:
        wrong = [name for name, shape in shapes.items() if store.shape(name) != shape]
        if not wrong:
            return
        what = f"{wrong[0]} is {store.shape(wrong[0])} there and {shapes[wrong[0]]} here"
    raise UserError(
        f"{path}: the checkpoint is of another model ({what}); check model.path and model.lora, or start over with "
        "--fresh"
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _numel(tensor: Tensor) -> int:
    return int(getattr(tensor, "ds_numel", tensor.numel()))
