"""The arguments and the environment of one vLLM server for training, from the configuration.

Left out: starting it (process.py) and keeping it up (supervisor.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.rollout.vllm_common import WHOLE_PROMPTS, lora_rank
from grpo_math.types import UserError

# nothing else has the devices: rollout.vllm.memory's own default leaves room for a trainer
MEMORY = 0.9
# set by us, and a second voice would contradict it
OURS = frozenset({"model", "host", "port", "logprobs_mode", "generation_config", "enable_scale_out"})


def server_arguments(cfg: config.Common, host: str, port: int, cuda: bool) -> list[str]:
    """What follows `vllm serve`.

    processed_logprobs: the log-probabilities at the sampling temperature. generation_config=vllm: the model's folder
    brings no sampling defaults of its own. enable_scale_out: the end point that takes and gives token ids."""
    options = cfg.rollout.vllm.options
    if both := sorted(OURS & {key.replace("-", "_") for key in options}):
        raise UserError(f"rollout.vllm.options has {', '.join(both)}, which grpo-math serve sets itself; leave it out")
    model, vllm = cfg.model, cfg.rollout.vllm
    if model.path is None:
        raise UserError("model.path is missing: a server needs a model to serve; set model.path=DIR_OR_HUB_ID")
    chosen: dict[str, Any] = {
        "model": base_model(cfg),
        "host": host,
        "port": port,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "enable_scale_out": True,
        "enable_prefix_caching": True,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
        "use_tqdm_on_load": False,
        "dtype": cfg.backend.dtype,
        "seed": cfg.seed,
        "tensor_parallel_size": vllm.tensor_parallel,
        "trust_remote_code": model.trust_remote_code or None,
        "revision": model.revision,
    }
    if model.lora.rank and model.lora.sync == "adapter":
        chosen |= {"enable_lora": True, "max_lora_rank": lora_rank(model.lora.rank)}
    if cuda:
        chosen["gpu_memory_utilization"] = vllm.memory if "memory" in vllm.model_fields_set else MEMORY
        if cfg.rollout.server.transfer != "folder":
            chosen["weight_transfer_config"] = {"backend": "nccl"}
    else:
        chosen |= {"enforce_eager": True, **WHOLE_PROMPTS}
        if vllm.tensor_parallel == 1:
            # a worker process of its own (vLLM turns `uni` into it) costs 12 s at the start and is good for binding
            # threads to cores alone, which VLLM_CPU_OMP_THREADS_BIND=nobind gives up
            chosen["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return flags(chosen | {key.replace("-", "_"): value for key, value in options.items()})


def base_model(cfg: config.Common) -> str:
    """The folder or Hub id whose weights a server starts with."""
    assert cfg.model.path is not None
    if not (Path(cfg.model.path) / "adapter_config.json").exists():
        return cfg.model.path
    from grpo_math.loading import base_of_adapter  # loads transformers

    base = base_of_adapter(Path(cfg.model.path))
    if base is not None and cfg.model.lora.rank and cfg.model.lora.sync == "adapter":
        raise UserError(
            f"model.path={cfg.model.path} is an adapter of {base}, and model.lora.sync=adapter would put the new one "
            "beside it on servers that have the base alone; set model.lora.sync=merged"
        )
    return base or cfg.model.path


def flags(options: Mapping[str, Any]) -> list[str]:
    """vLLM's spelling: --key value, --key or --no-key for truth values, JSON for what is nested; None is left out."""
    words = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, dict | list):
            words += [f"--{name}", json.dumps(value)]
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def server_environment(cfg: config.Common, index: int, count: int, devices: list[str]) -> dict[str, str]:
    """The environment of server `index` of `count`; what the user has set stays. devices: the CUDA devices to share."""
    ours = {
        "VLLM_LOGGING_LEVEL": "ERROR",  # it warns of each thing that it is told to do, and at every weight update
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not devices:
        ours |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)),
            # without CUDA graphs there is little to win, and the first sampled token would wait 20 s for a compiler
            "TORCHDYNAMO_DISABLE": "1",
        }
    env = ours | dict(os.environ)
    env["VLLM_SERVER_DEV_MODE"] = "1"  # the end points for new weights
    if cfg.model.lora.rank and cfg.model.lora.sync == "adapter":
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if devices:
        each = cfg.rollout.vllm.tensor_parallel
        if count * each > len(devices):
            raise UserError(
                f"--count {count} servers with rollout.vllm.tensor_parallel={each} need {count * each} devices, and "
                f"{len(devices)} are visible; set --count {max(1, len(devices) // each)}, or tensor_parallel=1"
            )
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index * each : (index + 1) * each])
    return env
