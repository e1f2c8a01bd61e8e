"""`grpo-math serve`: vLLM's own servers, for a trainer whose rollout.engine is vllm_server.

They are started, watched, started again when they end, and stopped together; none outlives this process. Left out:
the weights, which the trainer sends (rollout/vllm_server.py), and servers on other machines, each with its own `serve`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib.util import find_spec
from types import FrameType

from grpo_math import config
from grpo_math.preflight import check_model
from grpo_math.serving.command import server_arguments, server_environment
from grpo_math.serving.process import ServerProcess
from grpo_math.serving.supervisor import Post, Supervisor
from grpo_math.types import UserError

LOCAL = "127.0.0.1"
ANY = ("0.0.0.0", "::")


def serve(cfg: config.Common, host: str = LOCAL, port: int = 8000, count: int = 1) -> None:
    """Run `count` servers on ports `port`, `port` + 1, ... until SIGINT or SIGTERM.

    Every server has the end points for new weights: whoever reaches it can replace its model, so `host` is this machine
    alone unless another is asked for. Raises UserError for what the user can mend, EngineError where a server does not
    come up or no server is left. Call it from the main thread, which signals go to."""
    if find_spec("vllm") is None:
        raise UserError(
            "grpo-math serve runs vLLM, which is not installed; pip install 'grpo-math[vllm]' where there is a CUDA "
            "device, or `make vllm` in the checkout for its CPU build"
        )
    if cfg.model.path is not None:
        check_model(cfg.model.path)
    ports = list(range(port, port + count))
    if taken := [p for p in ports if not _free(host, p)]:
        raise UserError(
            f"port {taken[0]} of {host} is taken (--port {port} --count {count} needs {ports[0]} to {ports[-1]}); give "
            "another --port, or end what listens there"
        )
    devices = cuda_devices()
    posts = [_post(cfg, host, ports, i, devices) for i in range(count)]
    if host not in (LOCAL, "localhost", "::1"):
        print(
            f"warning: --host {host} lets whoever reaches this machine replace the model; use it on a network of yours",
            file=sys.stderr,
        )
    stop: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.append(number)

    def ready() -> None:
        shown = socket.gethostname() if host in ANY else host
        urls = ",".join(f"http://{shown}:{p}" for p in ports)
        print(f"ready: train with rollout.engine=vllm_server 'rollout.server.urls=[{urls}]'", flush=True)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        print(f"starting {count} server{'s' * (count > 1)} of {cfg.model.path}; this takes a while", flush=True)
        Supervisor(posts, cfg.rollout.server.start_timeout_s, lambda: bool(stop)).run(ready)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _post(cfg: config.Common, host: str, ports: list[int], index: int, devices: list[str]) -> Post:
    port = ports[index]
    url = f"http://{LOCAL if host in ANY else host}:{port}"
    command = [sys.executable, "-m", "grpo_math.serving.child", "{lifeline}"]
    command += server_arguments(cfg, host, port, cuda=bool(devices))
    env = server_environment(cfg, index, len(ports), devices)
    return Post(str(port), url, lambda: ServerProcess(str(port), url, command, env))


def cuda_devices() -> list[str]:
    """The CUDA devices that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def _free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; give an address of this machine") from error
    with socket.socket(family, kind, protocol) as probe:
        # as vLLM does it: connections of a server that has just ended do not count
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise UserError(f"--port {port}: {error}; give a port above 1023") from error
        except OSError:
            return False
    return True
