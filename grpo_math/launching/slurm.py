"""A batch script for Slurm: srun starts a process for each GPU, and the job is queued again when it was interrupted.

No torchrun: a signal then reaches every rank itself, which finishes its step, saves and leaves; the same command goes
on from there. Left out: containers (put their start into --setup) and Slurm's array jobs.
"""

from __future__ import annotations

import shlex

from grpo_math.launching.layout import SAVE_S, SERVER_PORT, Layout

HOST = '--host "$SLURMD_NODENAME"'  # not every address of the node: the servers trust whoever asks


def slurm_script(layout: Layout, command: str) -> str:
    """command: how this script was made, for its comment."""
    nodes = layout.nodes + layout.server_nodes
    chosen = [("partition", layout.partition), ("account", layout.account)]
    head = f"""#!/bin/bash
# {command}
#SBATCH --job-name={layout.name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={layout.gpus}
#SBATCH --gpus-per-node={layout.gpus}
#SBATCH --cpus-per-task={layout.cpus_per_gpu}
#SBATCH --time={layout.time_limit}
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# {SAVE_S} seconds before the time is up: a step and a checkpoint must fit in there
#SBATCH --signal=B:USR1@{SAVE_S}
"""
    head += "".join(f"#SBATCH --{key}={value}\n" for key, value in chosen if value)
    setup = layout.setup.strip() or "# module load cuda\n# source .venv/bin/activate"
    return (
        head
        + f"""
set -u

# what every node needs first: modules, the virtual environment, variables
{setup}

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${{hosts[0]}}"
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
join() {{ local IFS=,; echo "$*"; }}
"""
        + (_servers(layout) if layout.server_nodes else "")
        + _trainers(layout)
    )


def _servers(layout: Layout) -> str:
    ports = " ".join(str(SERVER_PORT + i) for i in range(layout.servers_per_node))
    run = f"exec python {layout.serve(_urls(), HOST)}"
    return f"""
# the last {layout.server_nodes} nodes sample
servers=("${{hosts[@]:{layout.nodes}:{layout.server_nodes}}}")
urls=()
for host in "${{servers[@]}}"; do
  for port in {ports}; do urls+=("http://$host:$port"); done
done
export SERVER_URLS="[$(join "${{urls[@]}}")]"
srun --nodes={layout.server_nodes} --nodelist="$(join "${{servers[@]}}")" \\
  --ntasks={layout.server_nodes} --ntasks-per-node=1 --cpus-per-task=$((SLURM_CPUS_PER_TASK * {layout.gpus})) \\
  --job-name=serve --label bash -c {shlex.quote(run)} &
serving=$!
"""


def _trainers(layout: Layout) -> str:
    train = layout.train(*([_urls()] if layout.server_nodes else []))
    rank = "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS\n"
    stop = '\nkill -TERM "$serving"\nwait "$serving"' if layout.server_nodes else ""
    return f"""
# --wait, not --kill-on-bad-exit: when one rank ends the others may still be saving
trainers=("${{hosts[@]:0:{layout.nodes}}}")
srun --nodes={layout.nodes} --nodelist="$(join "${{trainers[@]}}")" --distribution=block \\
  --ntasks={layout.ranks} --ntasks-per-node={layout.gpus} --wait=300 \\
  --job-name=train --label bash -c {shlex.quote(f"{rank}exec python {train}")} &
training=$!

# the time is nearly up: tell the ranks, which save, and queue the job again
tell() {{
  squeue --steps --jobs="$SLURM_JOB_ID" --noheader --format='%i %j' | while read -r step name; do
    if [ "$name" = train ]; then scancel --signal=TERM "$step"; fi
  done
}}
trap 'interrupted=1; again=1; tell' USR1
# cancelled, or preempted: Slurm itself has told the ranks, and queues the job again in the second case
trap 'interrupted=1; again=0' TERM
again=0 interrupted=0
wait "$training"
code=$?
while ((interrupted)); do
  interrupted=0
  wait "$training"
  code=$?
done
if ((again && code)); then scontrol requeue "$SLURM_JOB_ID"; fi{stop}
exit "$code"
"""


def _urls() -> str:
    return '"rollout.server.urls=$SERVER_URLS"'
