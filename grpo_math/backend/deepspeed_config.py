"""Our configuration as the dictionary that DeepSpeed wants, with a DeepSpeed JSON merged in.

What this configuration decides cannot be decided twice: a JSON may repeat it, or say "auto", and is refused where it
says something else. Left out: what DeepSpeed makes of the dictionary (deepspeed.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.types import UserError

AUTO = "auto"
BUCKET = 50_000_000  # numbers sent at once; DeepSpeed's own 500 million take 2 GB of each device

# where to change what a JSON must not: dotted key of DeepSpeed -> our own
_OURS = {
    "zero_optimization.stage": "backend.deepspeed.zero",
    "zero_optimization.offload_optimizer": "backend.deepspeed.offload_optimizer",
    "zero_optimization.offload_param": "backend.deepspeed.offload_parameters",
    "bf16": "backend.dtype",
    "data_types": "backend.dtype",
    "fp16": "backend.dtype",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "train_batch_size": "prompts_per_step and group_size",
    "train_micro_batch_size_per_gpu": "micro_batch_tokens",
    "gradient_accumulation_steps": "micro_batch_tokens",
    "managed_gradient_accumulation": "micro_batch_tokens",
}
# DeepSpeed keeps no list of its own, and ignores what it does not know: this is what 0.19 looks up in a configuration
# fmt: off
TOP_LEVEL = frozenset((
    "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "bfloat16", "checkpoint", "comet",
    "comms_logger", "communication_data_type", "compile", "compression_training", "csv_monitor", "data_efficiency",
    "data_types", "dataloader_drop_last", "datastates_ckpt", "disable_allgather", "disable_python_gc", "dump_state",
    "expert_parallel", "flops_profiler", "fp16", "gradient_accumulation_steps", "gradient_allreduce_op",
    "gradient_clipping", "gradient_predivide_factor", "hybrid_engine", "log_level", "managed_gradient_accumulation",
    "memory_breakdown", "monitor_config", "nebula", "optimizer", "pipeline", "prescale_gradients", "scheduler",
    "seq_parallel_communication_data_type", "sequence_parallel_size", "steps_per_print", "tensor_parallel",
    "tensorboard", "timers", "torch_autocast", "train_batch_size", "train_micro_batch_size_per_gpu",
    "use_data_before_expert_parallelism", "vocabulary_size", "wall_clock_breakdown", "wandb", "weight_quantization",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
))
# fmt: on
# the trainer makes these itself, and a batch has no fixed size
_NOT_PASSED_ON = ("optimizer", "scheduler", "fp16", "train_batch_size")
# would change the loss or the gradient behind the trainer's back
_REFUSED = {
    "gradient_allreduce_op": "the trainer undoes DeepSpeed's mean over ranks itself",
    "gradient_predivide_factor": "the trainer undoes DeepSpeed's mean over ranks itself",
    "prescale_gradients": "the trainer undoes DeepSpeed's mean over ranks itself",
    "data_efficiency": "the trainer cuts its batches itself",
    "amp": "set backend.dtype",
    "bfloat16": "the key is bf16 now",
    "torch_autocast": "set backend.dtype",
    "sequence_parallel_size": "the trainer's ranks hold whole rows",
    "tensor_parallel": "the trainer's ranks hold whole rows",
    "pipeline": "the trainer's ranks hold whole rows",
}


def deepspeed_config(backend: config.Backend, optimizer: config.Optimizer) -> dict[str, Any]:
    """DeepSpeed's dictionary. Raises UserError for a JSON that cannot be read, has an unknown key or contradicts us."""
    ours = _own_config(backend, optimizer)
    if backend.deepspeed.config is None:
        return ours
    theirs = _read(Path(backend.deepspeed.config))
    _check_keys(backend.deepspeed.config, theirs)
    fixed = _fixed(ours, backend, optimizer)
    for key, said in _leaves(theirs, fixed):
        _compare(backend.deepspeed.config, key, said, _at(fixed, key))
    for key in _NOT_PASSED_ON:
        theirs.pop(key, None)
    merged = _merge(ours, theirs)
    assert isinstance(merged, dict)
    return merged


def _own_config(backend: config.Backend, optimizer: config.Optimizer) -> dict[str, Any]:
    spec = backend.deepspeed
    half = backend.dtype == "bfloat16"
    zero: dict[str, Any] = {
        "stage": spec.zero,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if spec.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if spec.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        # one row a pass and one pass a step, as far as DeepSpeed knows: it divides a loss by the number of passes that
        # it expects, and ours is a sum that must not be divided. The caller says when a step is full
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half},
    }
    if half and spec.zero > 0:  # stage 0 has no such buffer: it adds up in bfloat16
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _fixed(ours: Mapping[str, Any], backend: config.Backend, optimizer: config.Optimizer) -> dict[str, Any]:
    """What a JSON may repeat but not change."""
    offload = {True: {"device": "cpu"}, False: {"device": "none"}}
    fixed = {key: ours[key] for key in _OURS if key in ours}
    return fixed | {
        "zero_optimization": {
            "stage": backend.deepspeed.zero,
            "offload_optimizer": offload[backend.deepspeed.offload_optimizer],
            "offload_param": offload[backend.deepspeed.offload_parameters],
        },
        "train_batch_size": None,
        "fp16": {"enabled": False},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.eps,
                "weight_decay": optimizer.weight_decay,
            },
        },
        "scheduler": None,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"backend.deepspeed.config={path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"backend.deepspeed.config={path}: holds no JSON object; write {{...}}")
    return value


def _check_keys(path: str, theirs: Mapping[str, Any]) -> None:
    for key, value in theirs.items():
        if key not in TOP_LEVEL:
            near = get_close_matches(key, TOP_LEVEL, 1)
            hint = f"; did you mean {near[0]}?" if near else "; remove it"
            raise UserError(f"backend.deepspeed.config={path}: DeepSpeed has no key {key}{hint}")
        off = value is False or value == AUTO or (isinstance(value, dict) and value.get("enabled") is False)
        if key in _REFUSED and not off:
            what = f"{key}={json.dumps(value)}: {_REFUSED[key]}"
            raise UserError(f"backend.deepspeed.config={path}: {what}; remove the key")


def _leaves(said: Mapping[str, Any], fixed: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of whatever both have."""
    for key in said.keys() & fixed.keys():
        if isinstance(said[key], dict) and isinstance(fixed[key], dict):
            yield from _leaves(said[key], fixed[key], f"{prefix}{key}.")
        else:
            yield prefix + key, said[key]


def _compare(path: str, key: str, said: Any, own: Any) -> None:
    if said in (AUTO, own) or (isinstance(own, float) and _number(said) == own):
        return
    ours = next((ours for theirs, ours in _OURS.items() if key == theirs or key.startswith(f"{theirs}.")), None)
    assert ours is not None, key
    means = "which it does not have" if own is None else f"which is {json.dumps(own)}"
    raise UserError(
        f'backend.deepspeed.config={path}: {key}={json.dumps(said)} contradicts {ours}, {means} there; write "auto" in '
        f"the file, or remove the key, and set {ours}"
    )


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _at(tree: Mapping[str, Any], dotted: str) -> Any:
    value: Any = tree
    for key in dotted.split("."):
        value = value[key]
    return value


def _merge(ours: Any, theirs: Any) -> Any:
    """theirs over ours, key by key; "auto" leaves ours, or DeepSpeed's default."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return theirs
    merged = dict(ours)
    for key, value in theirs.items():
        if value != AUTO:
            merged[key] = _merge(ours[key], value) if key in ours else _without_auto(value)
    return merged


def _without_auto(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_auto(inner) for key, inner in value.items() if inner != AUTO}
