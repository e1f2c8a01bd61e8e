"""`grpo-math launch`: one run on many ranks, through torchrun, ssh, Slurm or Kubernetes, shown or started.

Everything that can be wrong is said before anything is started. Left out: a scheduler of our own; what a launcher is
told is in launching/, and what the ranks check of one another, once they run, in rank_checks.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from grpo_math import config
from grpo_math.config_file import load_config
from grpo_math.launching.kubernetes import kubernetes_file
from grpo_math.launching.layout import Layout, Where, check_layout, label, urls
from grpo_math.launching.local import local_script
from grpo_math.launching.ports import check_port
from grpo_math.launching.slurm import slurm_script
from grpo_math.launching.ssh import ssh_script
from grpo_math.preflight import preflight
from grpo_math.types import UserError

SUFFIX: dict[Where, str] = {"here": ".sh", "ssh": ".sh", "slurm": ".sbatch", "k8s": ".yaml"}
# what starts a file, and the program that has to be there for it
START: dict[Where, list[str]] = {
    "here": ["bash"],
    "ssh": ["bash"],
    "slurm": ["sbatch"],
    "k8s": ["kubectl", "apply", "-f"],
}
NEEDS: dict[Where, tuple[str, str]] = {
    "here": ("bash", "a shell"),
    "ssh": ("ssh", "the OpenSSH client"),
    "slurm": ("sbatch", "Slurm, which a cluster's login node has"),
    "k8s": ("kubectl", "Kubernetes' client"),
}


def launch(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    nodes: int = 1,
    gpus: int = 1,
    server_nodes: int = 0,
    slurm: bool = False,
    k8s: bool = False,
    ssh: str | None = None,
    print_only: bool = False,
    out: Path | None = None,
    name: str | None = None,
    port: int = 29_500,
    setup: str = "",
    cpus_per_gpu: int = 8,
    time_limit: str = "24:00:00",
    partition: str | None = None,
    account: str | None = None,
    image: str | None = None,
    claim: str | None = None,
    namespace: str | None = None,
) -> int:
    """Start the run, or with print_only print what would be started, or with `out` write it into a file there.

    Returns the exit status of what was started. Raises UserError before that."""
    where = _where(slurm, k8s, ssh)
    layout = Layout(
        path=path, overrides=tuple(overrides), where=where, name=name or label(path.stem), nodes=nodes, gpus=gpus,
        server_nodes=server_nodes, hosts=tuple(host.strip() for host in (ssh or "").split(",") if host.strip()),
        port=port, setup=setup, cpus_per_gpu=cpus_per_gpu, time_limit=time_limit, partition=partition, account=account,
        image=image, claim=claim, namespace=namespace,
    )  # fmt: skip
    cfg = _load(path, overrides, server_nodes)
    check_layout(cfg, layout)
    if server_nodes:
        layout = replace(layout, servers_per_node=gpus // cfg.rollout.vllm.tensor_parallel)
    text = script(cfg, layout)
    if print_only:
        sys.stdout.write(text)
        return 0
    if out is not None:
        file = write(text, layout, out)
        print(f"{file}: start it with {shlex.join([*START[where], str(file)])}")
        return 0
    program, what = NEEDS[where]
    if shutil.which(program) is None:
        raise UserError(f"{_option(where)} needs {program} ({what}), which is not here; install it, or give --print")
    if where != "k8s":  # whose files lie elsewhere
        preflight(cfg)
    if where == "ssh" and layout.hosts[0].rpartition("@")[2] in ("localhost", socket.gethostname()):
        check_port("0.0.0.0", port)
    return start(text, layout)


def script(cfg: config.Common, layout: Layout) -> str:
    """What is started: a shell script, a batch script or Kubernetes' objects."""
    if layout.where == "here":
        return local_script(layout)
    if layout.where == "ssh":
        return ssh_script(layout, Path.cwd())
    if layout.where == "slurm":
        return slurm_script(layout, command_of(layout))
    return kubernetes_file(cfg, layout, command_of(layout))


def write(text: str, layout: Layout, out: Path) -> Path:
    """`out`/NAME with the launcher's own ending."""
    file = out / f"{layout.path.stem}{SUFFIX[layout.where]}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: {file} cannot be written ({error.strerror}); give another folder") from error
    return file


def start(text: str, layout: Layout) -> int:
    """Exit status of the launcher."""
    if layout.where == "here":
        # in place of this process: a signal then reaches the ranks' launcher itself
        sys.stdout.flush()
        os.execvp("bash", ["bash", "-c", text])
    if layout.where == "ssh":
        return subprocess.run(["bash", "-c", text], stdin=subprocess.DEVNULL).returncode
    command = ["sbatch"] if layout.where == "slurm" else ["kubectl", "apply", "-f", "-"]
    return subprocess.run(command, input=text, text=True).returncode


def command_of(layout: Layout) -> str:
    """The command that makes the file, for the file's own comment."""
    words = ["grpo-math", "launch", str(layout.path), *layout.overrides]
    words += ["--nodes", str(layout.nodes), "--gpus", str(layout.gpus)]
    words += ["--server-nodes", str(layout.server_nodes)] if layout.server_nodes else []
    words += [_option(layout.where)]
    given = (
        ("--name", layout.name if layout.name != label(layout.path.stem) else None),
        ("--setup", layout.setup or None),
        ("--partition", layout.partition),
        ("--account", layout.account),
        ("--image", layout.image),
        ("--claim", layout.claim),
        ("--namespace", layout.namespace),
    )
    for key, value in given:
        words += [key, value] if value else []
    return shlex.join(words).replace("\n", " ")


def _where(slurm: bool, k8s: bool, ssh: str | None) -> Where:
    chosen: list[Where] = [name for name, given in (("slurm", slurm), ("k8s", k8s), ("ssh", ssh)) if given]  # type: ignore[misc]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(_option(name) for name in chosen)}: a run has one launcher; give one of them")
    return chosen[0] if chosen else "here"


def _option(where: Where) -> str:
    return {"here": "launch", "ssh": "--ssh", "slurm": "--slurm", "k8s": "--k8s"}[where]


def _load(path: Path, overrides: Sequence[str], server_nodes: int) -> config.Common:
    """Where the servers are known only once they are started, a stand-in for their addresses is put in."""
    if not server_nodes:
        return load_config(path, overrides)
    if named := [text for text in overrides if text.startswith("rollout.server.urls")]:
        raise UserError(
            f"{named[0]}: --server-nodes {server_nodes} starts servers of its own; leave one of the two out"
        )
    stand_in = ",".join(urls([f"server-{i}" for i in range(server_nodes)], 1))
    return load_config(path, [*overrides, f"rollout.server.urls=[{stand_in}]"])
