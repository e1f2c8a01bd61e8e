"""`grpo-math serve` for benchmarks/rollout.py, in a process that ends with the benchmark whatever ends that."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection

import torch

from benchmarks.rollout_side import Setting
from grpo_math import config
from grpo_math.lifeline import die_with_parent
from grpo_math.policy import load_policy
from grpo_math.rollout.vllm_common import kv_cache_bytes
from grpo_math.rollout.vllm_local import free_memory
from grpo_math.serve import serve


def main(setting: Setting, run_dir: str, port: int, log: str, lifeline: Connection) -> None:
    """Serve until SIGTERM, with the options of the other sides."""
    os.setpgrp()
    die_with_parent(lifeline.fileno())
    with open(log, "w", buffering=1) as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    policy = load_policy(config.Model(path=setting.model), torch.device("cpu"))
    options = {
        "max_num_seqs": setting.rows,
        "max_model_len": policy.context,
        "kv_cache_memory_bytes": kv_cache_bytes(
            policy.model.config, policy.context, setting.rows, torch.float32, free_memory()
        ),
    }
    rollout = config.Rollout(vllm=config.VLLM(options=options))
    model = config.Model(path=setting.model)
    serve(config.GRPO(run_dir=run_dir, task=config.Task(name="arithmetic"), model=model, rollout=rollout), port=port)
