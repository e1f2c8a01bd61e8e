"""What is launched where: the machines, the ranks on each, the servers beside them, checked before anything is written.

Left out: how a launcher is told so (local.py, ssh.py, slurm.py, kubernetes.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from grpo_math import config
from grpo_math.types import UserError

Where = Literal["here", "ssh", "slurm", "k8s"]
SERVER_PORT = 8000  # of the first server on a machine; the next ones have the ports after it
MASTER_PORT = 29_500
SAVE_S = 600  # seconds between the signal to stop and the end: a step and a checkpoint must fit
HOST = re.compile(r"([\w.-]+@)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")  # a DNS label, with room for what is put behind it


@dataclass(frozen=True)
class Layout:
    """nodes train, with `gpus` ranks each; server_nodes sample, as far as the configuration has servers.

    hosts: for ssh, the trainers' first. setup: shell lines that come before everything on each node, such as `module
    load cuda` or `source .venv/bin/activate`."""

    path: Path
    overrides: tuple[str, ...] = ()
    where: Where = "here"
    name: str = "grpo-math"
    nodes: int = 1
    gpus: int = 1
    server_nodes: int = 0
    hosts: tuple[str, ...] = ()
    port: int = MASTER_PORT
    setup: str = ""
    cpus_per_gpu: int = 8
    # Slurm
    time_limit: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    # Kubernetes
    image: str | None = None
    claim: str | None = None
    namespace: str | None = None
    servers_per_node: int = field(default=0)

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    def train(self, *more: str, config_path: str | None = None) -> str:
        """The command of one rank, quoted for a shell, without the interpreter. `more` stands there as it is."""
        words = ["train", config_path or str(self.path), *self.overrides]
        return " ".join(["-m grpo_math", shlex.join(words), *more])

    def serve(self, *more: str, config_path: str | None = None) -> str:
        # said again: `serve` takes any configuration, and by itself one of the engine vllm
        words = ["serve", config_path or str(self.path), *self.overrides, "rollout.engine=vllm_server"]
        ports = f"--port {SERVER_PORT} --count {self.servers_per_node}"
        return " ".join(["-m grpo_math", shlex.join(words), *more, ports])


def urls(hosts: Sequence[str], per_host: int) -> list[str]:
    return [f"http://{host}:{SERVER_PORT + i}" for host in hosts for i in range(per_host)]


def check_layout(cfg: config.Common, layout: Layout) -> None:
    """Raises UserError where the configuration cannot run like that."""
    for key, value in (("--nodes", layout.nodes), ("--gpus", layout.gpus), ("--cpus-per-gpu", layout.cpus_per_gpu)):
        if value < 1:
            raise UserError(f"{key} {value}: there must be one at least; give {key} 1")
    if not 1024 <= layout.port < 65_536 - 1:
        raise UserError(f"--port {layout.port}: is no port that a user may open; give one from 1024 to 65534")
    if layout.ranks > 1 and cfg.backend.name == "torch":
        raise UserError(
            f"backend.name=torch trains in one process, and --nodes {layout.nodes} x --gpus {layout.gpus} makes "
            f"{layout.ranks}; set backend.name=deepspeed, or give --nodes 1 --gpus 1"
        )
    _check_split(cfg, layout)
    _check_servers(cfg, layout)
    if layout.where == "here" and layout.nodes > 1:
        raise UserError(
            f"--nodes {layout.nodes} needs a launcher that reaches the others; give --slurm, --k8s or --ssh HOST,HOST"
        )
    if layout.where == "ssh":
        _check_hosts(layout)
    if layout.where in ("slurm", "k8s") and not LABEL.fullmatch(layout.name):
        raise UserError(
            f"--name {layout.name}: the launcher takes small letters, digits and dashes, 52 at most; give --name "
            f"{label(layout.name)}"
        )
    if layout.where == "slurm" and not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", layout.time_limit):
        raise UserError(
            f"--time {layout.time_limit}: is no time of Slurm's; write --time 24:00:00 or --time 2-00:00:00"
        )
    if layout.where == "k8s":
        for key, given, example in (
            ("--image", layout.image, "--image registry/grpo-math:0.1.0, one that has grpo-math installed"),
            ("--claim", layout.claim, "--claim NAME, a PersistentVolumeClaim that all nodes may mount (ReadWriteMany)"),
        ):
            if not given:
                raise UserError(f"{key} is missing, and --k8s needs it; give {example}")


def _check_split(cfg: config.Common, layout: Layout) -> None:
    split, engine = cfg.rollout.vllm.tensor_parallel, cfg.rollout.engine
    key = f"rollout.vllm.tensor_parallel={split}"
    if engine == "vllm" and layout.ranks % split:
        raise UserError(
            f"{key} does not divide --nodes {layout.nodes} x --gpus {layout.gpus} = {layout.ranks} ranks; set "
            f"rollout.vllm.tensor_parallel={_divisor(layout.gpus, split)}"
        )
    if engine == "vllm" and layout.gpus % split:
        raise UserError(
            f"{key} would split a copy of the model over machines, --gpus being {layout.gpus}; set "
            f"rollout.vllm.tensor_parallel={_divisor(layout.gpus, split)}"
        )
    if layout.server_nodes and layout.gpus % split:
        raise UserError(
            f"{key} does not divide the --gpus {layout.gpus} of a server's node; set "
            f"rollout.vllm.tensor_parallel={_divisor(layout.gpus, split)}"
        )


def _check_servers(cfg: config.Common, layout: Layout) -> None:
    if layout.server_nodes < 0:
        raise UserError(f"--server-nodes {layout.server_nodes}: give 0 or more")
    if not layout.server_nodes:
        return
    if cfg.rollout.engine != "vllm_server":
        raise UserError(
            f"--server-nodes {layout.server_nodes} starts servers, and rollout.engine={cfg.rollout.engine} uses none; "
            "set rollout.engine=vllm_server, or leave --server-nodes out"
        )
    if layout.where == "here":
        raise UserError(
            f"--server-nodes {layout.server_nodes} needs a launcher that reaches them; give --slurm, --k8s or --ssh, "
            "or start `grpo-math serve` yourself and set rollout.server.urls"
        )


def _check_hosts(layout: Layout) -> None:
    wanted = layout.nodes + layout.server_nodes
    for host in layout.hosts:
        if not HOST.fullmatch(host):
            raise UserError(f"--ssh: {host!r} is no name of a host; write --ssh HOST,HOST or --ssh USER@HOST,USER@HOST")
    if twice := [host for host in layout.hosts if layout.hosts.count(host) > 1]:
        raise UserError(f"--ssh: {twice[0]} is named twice; name each host once, and give it more --gpus")
    if len(layout.hosts) != wanted:
        servers = f" and --server-nodes {layout.server_nodes}" if layout.server_nodes else ""
        raise UserError(
            f"--ssh names {len(layout.hosts)} hosts, but --nodes {layout.nodes}{servers} need {wanted}; name {wanted}"
        )


def _divisor(number: int, near: int) -> int:
    return max(n for n in range(1, min(number, near) + 1) if number % n == 0)


def label(text: str) -> str:
    """A name that Slurm and Kubernetes take: math_qwen2.5-7b -> math-qwen2-5-7b."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:52].strip("-") or "grpo-math"
