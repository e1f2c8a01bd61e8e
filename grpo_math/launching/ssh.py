"""A shell script that starts the same run on several machines over ssh, and ends it on all when it ends on one.

The machines must see this folder under this path (a shared home, or the same checkout), as they must see run_dir.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from grpo_math.launching.layout import SAVE_S, Layout, urls
from grpo_math.launching.local import PATIENCE, torchrun

# -tt: the end of the connection is a hang-up to what runs there, so that nothing stays behind
SSH = "ssh -tt -o BatchMode=yes -o ServerAliveInterval=30"

END = f"""
# the first that ends decides: the others may save, then are hung up on. Not `wait -n`, which forgets what has ended
# before it was called
while :; do
  for pid in "${{trainers[@]}}"; do kill -0 "$pid" 2>/dev/null || {{ wait "$pid"; code=$?; break 2; }}; done
  sleep 1
done
for ((second = 0; second < {SAVE_S}; second++)); do
  alive=0
  for pid in "${{trainers[@]}}"; do kill -0 "$pid" 2>/dev/null && alive=1; done
  ((alive)) || break
  sleep 1
done
exit "$code"
"""


def ssh_script(layout: Layout, cwd: Path) -> str:
    """The first hosts train, the others serve."""
    trainers, servers = layout.hosts[: layout.nodes], layout.hosts[layout.nodes :]
    lines = [
        "#!/bin/bash",
        f"# {layout.name}: {layout.nodes} x {layout.gpus} ranks" + (f", {len(servers)} for servers" if servers else ""),
        "set -u",
        "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT",
        "trap 'exit 130' INT",
        "trap 'exit 143' TERM HUP",
    ]
    for host in servers:
        command = f"exec python {layout.serve(f'--host {_name(host)}', *_urls(layout, servers))}"
        lines.append(_start(layout, cwd, host, command))
    lines.append("trainers=()")
    for rank, host in enumerate(trainers):
        run = f"exec {torchrun(layout, str(rank), _name(trainers[0]))} {layout.train(*_urls(layout, servers))}"
        if rank == 0:
            run = f"python -m grpo_math.launching.ports {layout.port} && {run}"
        lines += [_start(layout, cwd, host, f"{PATIENCE}\n{run}"), "trainers+=($!)"]
    return "\n".join(lines) + END


def _urls(layout: Layout, servers: tuple[str, ...]) -> list[str]:
    if not servers:
        return []
    listed = ",".join(urls([_name(host) for host in servers], layout.servers_per_node))
    return [shlex.quote(f"rollout.server.urls=[{listed}]")]


def _start(layout: Layout, cwd: Path, host: str, command: str) -> str:
    script = "\n".join([f"cd {shlex.quote(str(cwd))} || exit 2", *layout.setup.splitlines(), command])
    return f"{SSH} {shlex.quote(host)} {shlex.quote(f'bash -lc {shlex.quote(script)}')} </dev/null &"


def _name(host: str) -> str:
    """USER@HOST is for ssh; the others ask for HOST."""
    return host.rpartition("@")[2]
