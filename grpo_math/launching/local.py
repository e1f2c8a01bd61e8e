"""Ranks on this machine, and torchrun's arguments for any."""

from __future__ import annotations

import shlex
import sys

from grpo_math.launching.layout import SAVE_S, Layout

# torchrun kills its ranks 30 seconds after it was told to stop, in the midst of the step or the checkpoint
PATIENCE = f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVE_S}"


def torchrun(layout: Layout, node_rank: str, master: str) -> str:
    """Of one node among several, without the command of the rank."""
    return (
        f"torchrun --nnodes {layout.nodes} --node-rank {node_rank} --nproc-per-node {layout.gpus} "
        f"--master-addr {master} --master-port {layout.port}"
    )


def local_script(layout: Layout) -> str:
    """One process needs no launcher; more are started by torchrun, which finds a free port itself."""
    python = shlex.quote(sys.executable)
    ranks = "" if layout.gpus == 1 else f"-m torch.distributed.run --standalone --nproc-per-node {layout.gpus} "
    lines = [*layout.setup.splitlines(), *([PATIENCE] if ranks else []), f"exec {python} {ranks}{layout.train()}"]
    return "\n".join(lines) + "\n"
