"""The commands that start other processes: servers that sample, and runs on several devices or machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grpo_math.cli_options import Config, Overrides


def serve(
    path: Config,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Servers, on ports from --port on.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the first one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Where to listen. Whoever reaches a server can replace its model: let it be a network "
                               "that is yours alone.")
    ] = "127.0.0.1",
) -> None:  # fmt: skip
    """Run vLLM's servers for a configuration, to sample from while it trains.

    The trainer is told of them with rollout.engine=vllm_server rollout.server.urls=[http://HOST:PORT, ...]. A server
    that dies is started again and gets the current weights. Ends with Ctrl-C or SIGTERM.

    \b
    Examples:
      grpo-math serve launch/math_32b_multinode.yaml --count 2 --host 10.0.0.5
      grpo-math serve launch/gsm8k.yaml model.path=models/mine --port 9000
    """
    from grpo_math.config_file import load_config
    from grpo_math.serve import serve as run

    urls = ",".join(f"http://{host}:{port + i}" for i in range(count))
    cfg = load_config(path, ["rollout.engine=vllm_server", f"rollout.server.urls=[{urls}]", *(overrides or [])])
    run(cfg, host=host, port=port, count=count)


def launch(
    path: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks on each, one a GPU.")] = 1,
    server_nodes: Annotated[
        int, typer.Option(min=0, help="Machines that sample, with rollout.engine=vllm_server.")
    ] = 0,
    slurm: Annotated[bool, typer.Option("--slurm", help="As a Slurm job.")] = False,
    k8s: Annotated[bool, typer.Option("--k8s", help="As Kubernetes jobs.")] = False,
    ssh: Annotated[
        str | None, typer.Option(metavar="HOST,HOST", help="On these machines, the trainers' first.")
    ] = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Print what would be started, and start nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write it into this folder, and start nothing.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the job.", show_default="the file's")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="At which the ranks find each other.")] = 29_500,
    setup: Annotated[str, typer.Option(metavar="SHELL", help="What each machine does first: module load, venv.")] = "",
    cpus_per_gpu: Annotated[int, typer.Option(min=1, help="Slurm, Kubernetes: cores for each rank.")] = 8,
    time_limit: Annotated[str, typer.Option("--time", metavar="H:MM:SS", help="Slurm: of the job.")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm.")] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: an image with grpo-math in it.")] = None,
    claim: Annotated[str | None, typer.Option(help="Kubernetes: the volume claim that run_dir lies on.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes.")] = None,
) -> None:
    """Start a run on several devices or machines, through torchrun, ssh, Slurm or Kubernetes.

    \b
    Examples:
      grpo-math launch launch/math_qwen2.5-7b.yaml --gpus 8
      grpo-math launch launch/math_32b_multinode.yaml --nodes 2 --gpus 8 --server-nodes 2 --slurm --print
    """
    from grpo_math.launch_command import launch as start

    status = start(
        path, overrides or [], nodes=nodes, gpus=gpus, server_nodes=server_nodes, slurm=slurm, k8s=k8s, ssh=ssh,
        print_only=print_only, out=out, name=name, port=port, setup=setup, cpus_per_gpu=cpus_per_gpu,
        time_limit=time_limit, partition=partition, account=account, image=image, claim=claim, namespace=namespace,
    )  # fmt: skip
    if status:
        raise typer.Exit(status)
