"""DeepSpeed as a library: imported quietly for the device at hand, and models whose weights are split from the start.

Left out: training (backend/deepspeed.py). Nothing here is imported before somebody asks for backend.name=deepspeed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from grpo_math.types import UserError


def load_deepspeed(device: torch.device) -> Any:
    """The module, ready for `device`, in the group of ranks that is there or in one of this process alone."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UserError("backend.name=deepspeed needs DeepSpeed: pip install 'grpo-math[deepspeed]'") from error
    accelerator = deepspeed.get_accelerator().device_name()
    if accelerator != device.type:
        raise UserError(
            f"backend.device={device.type}, but DeepSpeed works on {accelerator}; set DS_ACCELERATOR={device.type} in "
            "the environment"
        )
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it, alone or not
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # nothing that a user could mend
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    deepspeed.utils.logger.addFilter(_not_ours)
    # on CPUs DeepSpeed would compile an all-reduce of its own here, for minutes, where gloo's does
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _not_ours(record: logging.LogRecord) -> bool:
    """A skipped update is counted, logged and bounded by the trainer."""
    return "OVERFLOW! Skipping step" not in str(record.msg)


@contextmanager
def split_loading(device: torch.device, dtype: torch.dtype, offload_parameters: bool = False) -> Iterator[None]:
    """Inside it transformers builds models whose weights are split over the ranks (ZeRO-3), whether they are read or
    new: no rank holds more than a layer whole. offload_parameters: each keeps its part in the CPU's memory."""
    load_deepspeed(device)
    from transformers.integrations import HfDeepSpeedConfig

    zero: dict[str, Any] = {"stage": 3}
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
    asks = HfDeepSpeedConfig(settings)  # transformers asks for it as long as it lives
    try:
        yield
    finally:
        del asks
