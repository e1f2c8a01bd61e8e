"""Where DeepSpeed keeps the float32 weights and AdamW's moments, in each ZeRO stage: made, read whole, written back.

    stage 0                 each rank has all of them; in bfloat16 the weights in float32 are a copy
    stage 1, 2              flat, a part on each rank; which piece of it is which parameter's, DeepSpeed's links know
    stage 3                 the same, and the weights themselves are in parts

Left out: files (states.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor

from grpo_math.backend.states import MASTER, MOMENTS

Parameter: TypeAlias = torch.nn.Parameter


class Masters:
    """engine: one that trains. Every rank must call each method, with the same parameters in the same order."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine
        self.stage = int(engine.zero_optimization_stage())
        self.optimizer: torch.optim.Optimizer = engine.basic_optimizer
        wrapper: Any = engine.optimizer
        # the tensors that AdamW works on
        self.flat: list[Tensor]
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
            if hasattr(wrapper, name):  # stage 3; stages 1 and 2; stage 1 in bfloat16
                self.flat = list(getattr(wrapper, name))
                break
        else:
            self.flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        # stage 0 in bfloat16
        self.copies: dict[Parameter, Tensor] = {
            half: full
            for halves, fulls in zip(
                getattr(wrapper, "fp16_groups", []) if self.stage == 0 else [],
                getattr(wrapper, "fp32_groups", []) if self.stage == 0 else [],
                strict=True,
            )
            for half, full in zip(halves, fulls, strict=True)
        }
        self.reset()

    def reset(self) -> None:
        """AdamW as it is before its first step. DeepSpeed has none yet in most stages, and in others has made a step
        with gradients of 0 already, which would count."""
        whole_numbers = type(self.optimizer).__name__ == "DeepSpeedCPUAdam"
        for tensor in self.flat:
            self.optimizer.state[tensor] = {
                "step": 0 if whole_numbers else torch.zeros((), device=_step_device(self.optimizer)),
                **{name: torch.zeros_like(tensor, requires_grad=False) for name in MOMENTS},
            }
        if hasattr(self.engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    @property
    def step(self) -> int:
        """Updates that AdamW has made."""
        return int(self.optimizer.state[self.flat[0]]["step"])

    @step.setter
    def step(self, value: int) -> None:
        for tensor in self.flat:
            state = self.optimizer.state[tensor]
            if isinstance(state["step"], Tensor):
                state["step"].fill_(value)
            else:
                state["step"] = value

    def read(self, parameter: Parameter, kind: str) -> Tensor:
        """The whole tensor in float32, on every rank; kind as states.py has it."""
        if self.stage == 0:
            return self._in_stage_0(parameter, kind)
        whole = (
            safe_get_full_fp32_param(parameter) if kind == MASTER else safe_get_full_optimizer_state(parameter, kind)
        )
        assert whole is not None
        return whole

    def write(self, parameter: Parameter, kind: str, whole: Tensor) -> None:
        """Takes this rank's part of it."""
        linked: Any = parameter  # DeepSpeed hangs its links on it
        key = None if kind == MASTER else kind
        if self.stage == 0:
            self._in_stage_0(parameter, kind).copy_(whole)
        elif self.stage == 3:  # not safe_set_...: it cannot take what does not divide by the number of ranks
            linked._z3_optimizer.set_local_hp_param(part_of(whole, parameter), parameter, key)
        else:
            linked.set_full_hp_param(whole, key)

    def _in_stage_0(self, parameter: Parameter, kind: str) -> Tensor:
        full = self.copies.get(parameter, parameter)
        return full.detach() if kind == MASTER else self.optimizer.state[full][kind]


def part_of(whole: Tensor, tensor: Any) -> Tensor:
    """What of it this rank has in stage 3: equal parts of the flat tensor, the last ones filled up with zeros. It keeps
    its type: float32 goes to float32."""
    size, rank = tensor.ds_tensor.ds_numel, tensor.ds_process_group.rank()
    flat = whole.detach().flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(flat, (0, size - len(flat)))


@torch.no_grad()
def set_weight(tensor: Any, whole: Tensor) -> None:
    """Gives a parameter or buffer its value in whatever way it is stored."""
    if not hasattr(tensor, "ds_tensor"):
        tensor.copy_(whole)
        return
    tensor.ds_tensor.data.copy_(part_of(whole, tensor))
    if tensor.numel() == tensor.ds_numel:  # small ones are whole on every rank as well, between two steps
        tensor.data.copy_(whole.view(tensor.ds_shape))


def _step_device(optimizer: torch.optim.Optimizer) -> torch.device:
    group = optimizer.param_groups[0]
    on_device = group.get("fused") or group.get("capturable")
    tensors: Iterable[Tensor] = optimizer.state.keys()
    return next((t.device for t in tensors), torch.device("cpu")) if on_device else torch.device("cpu")
