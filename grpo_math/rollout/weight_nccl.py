"""Weights from the trainer's device to the servers' devices, through vLLM's own NCCL weight transfer.

The trainer's rank 0 is rank 0 of a group with all workers of all servers that answer; it broadcasts, they receive. The
group is made anew when a server has come or gone. Left out: packing small tensors together, which saves little beside
the large ones. A server that is started again in between has to wait for the next update: the trainer's weights are in
the middle of one. After the trainer died in the middle of a transfer the servers have to be started again: their
workers wait inside NCCL for ever, and vLLM answers nothing that its engine is asked for meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import torch
from torch import Tensor

from grpo_math.event_loop import event_loop
from grpo_math.rollout.fleet import out_of_use
from grpo_math.rollout.vllm_http import FULL, LOADING, Refused, Server, ServerError
from grpo_math.types import EngineError, UserError

BUCKET_BYTES = 1 << 30  # of the device's memory at a time, beside the trainer's
POLL_S = 0.01
LATER_S = 5.0  # a request's own deadline comes first, since it names the server
OTHERS_S = 1.0  # a server that is lost holds up others, whose deadline is its own: to name them all, not one of them

T = TypeVar("T")
Asked = Sequence[tuple[Server, str, dict[str, Any] | None]]


class NCCLWeights:
    """run: the name that this run's labels begin with."""

    def __init__(self, servers: Sequence[Server], device: torch.device, run: str) -> None:
        self.join = _vllm_join()
        self.servers, self.run = list(servers), run
        self.device = torch.empty(0, device=device).device  # with its index, which another thread would not know
        self.on = torch.get_device_module(device)  # torch.cuda; torch.cpu has the same names, for the tests
        self.group: Any = None
        self.members: list[Server] = []
        # a stream of its own: should a server be lost in the middle, only this stream waits for it for ever
        self.stream = self.on.Stream(self.device)

    def send(self, weights: Iterable[tuple[str, Tensor]], label: str, dtype: torch.dtype) -> None:
        """Gives every server that answers the weights and the label. Asks for all of the weights even where it fails,
        since other ranks give them out together with this one; then raises EngineError."""
        rest = iter(weights)
        try:
            with event_loop("weights") as loop:
                self._send(rest, label, dtype, loop)
        except (ServerError, RuntimeError, OSError) as error:  # RuntimeError is NCCL's
            for _ in rest:
                pass
            self.close()
            raise EngineError(
                f"the weights {label} did not reach the servers: {error}. The same command goes on from the last "
                "checkpoint; start servers again that do not answer any more. rollout.server.transfer=folder goes "
                "without NCCL"
            ) from error

    def close(self) -> None:
        if self.group is not None:
            self.group.destroy()
            self.group = None

    def _send(
        self, rest: Iterable[tuple[str, Tensor]], label: str, dtype: torch.dtype, loop: asyncio.AbstractEventLoop
    ) -> None:
        def do(path: str, body: dict[str, Any] | None = None) -> list[Any]:
            return _ask([(server, path, body) for server in members], loop).result()

        labels = asyncio.run_coroutine_threadsafe(self._who_answers(), loop).result()
        members = list(labels)
        if not members:
            raise ServerError("none answers")
        # a server without this run's weights has no group of this run either
        fresh = any(not has.startswith(f"{FULL}{self.run}.") for has in labels.values())
        do("/pause?mode=abort")
        do("/update_weight_version", {"new_version": f"{LOADING}{label}"})
        if fresh or members != self.members or self.group is None:
            self._make_group(labels, loop)
        do("/start_weight_update")
        bucket: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in rest:
            # a copy: the tensor is good only until the next is asked for
            bucket.append((name, tensor.detach().to(self.device, dtype, copy=True).contiguous()))
            size += bucket[-1][1].nbytes
            if size >= BUCKET_BYTES:
                self._broadcast(bucket, loop)
                bucket, size = [], 0
        if bucket:
            self._broadcast(bucket, loop)
        do("/finish_weight_update")
        for server, answer in zip(members, do("/reset_prefix_cache"), strict=True):
            if not (isinstance(answer, dict) and answer.get("success")):
                raise ServerError(f"server {server.url} did not forget the cached prefixes of its old weights")
        do("/update_weight_version", {"new_version": label})
        do("/resume")

    async def _who_answers(self) -> dict[Server, str]:
        """The servers that answer, and the weights that each has."""
        async with aiohttp.ClientSession() as http:
            said = await asyncio.gather(*(s.label(http, 60.0) for s in self.servers), return_exceptions=True)
        labels = {}
        for server, label in zip(self.servers, said, strict=True):
            if isinstance(label, str):
                labels[server] = label
            elif isinstance(label, ServerError):
                out_of_use(server, label, 0)
            else:
                raise label
        return labels

    def _make_group(self, labels: dict[Server, str], loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        members = list(labels)
        address, port = _meeting_point([server.url for server in members])
        size = 1 + sum(server.facts.world_size for server in members)
        asked = []
        offset = 1
        for server in members:
            info = {"master_address": address, "master_port": port, "rank_offset": offset, "world_size": size}
            asked.append((server, "/init_weight_transfer_engine", {"init_info": info}))
            offset += server.facts.world_size
        # vLLM keeps its old group while an update is open, as one that failed elsewhere is; it refuses where none is
        half = [server for server, label in labels.items() if label.startswith(LOADING)]
        _ask([(server, "/finish_weight_update", None) for server in half], loop, but=(Refused,)).result()
        _ask([(server, "/shutdown_weight_transfer_engine", None) for server in members], loop).result()
        ours = {"master_address": address, "master_port": port, "world_size": size}
        self.group = self._meet(_ask(asked, loop), lambda: self.join(ours))
        self.members = members

    def _broadcast(self, bucket: list[tuple[str, Tensor]], loop: asyncio.AbstractEventLoop) -> None:
        """Returns when every server has this bucket; the workers' receiving and our sending meet inside NCCL."""
        info = {
            "names": [name for name, _ in bucket],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
        }
        told = _ask([(server, "/update_weights", {"update_info": info}) for server in self.members], loop)
        self.stream.wait_stream(self.on.current_stream(self.device))
        group = self.group

        def broadcast() -> None:
            for _, tensor in bucket:
                group.broadcast(tensor, src=0, stream=self.stream)
            sent = self.on.Event()
            sent.record(self.stream)
            while not sent.query():
                time.sleep(POLL_S)

        self._meet(told, broadcast)

    def _meet(self, told: Future[list[Any]], ours: Callable[[], T]) -> T:
        """What `ours` gives, which needs that the servers do their part at the same time. It is left behind, in a
        thread of its own, where they do not: NCCL waits for ever for a server that is lost."""
        mine: Future[T] = Future()

        def work() -> None:
            try:
                self.on.set_device(self.device)
                mine.set_result(ours())
            except BaseException as error:  # raised below, by result()
                mine.set_exception(error)

        threading.Thread(target=work, name="nccl", daemon=True).start()
        within_s = self.servers[0].request_s + LATER_S
        both: tuple[Future[Any], ...] = (told, mine)  # in this order: the servers' complaints have names
        done, late = wait(both, within_s, FIRST_EXCEPTION)
        for future in both:
            if future in done:
                future.result()
        if late:
            raise ServerError(f"NCCL did not come to an end within {within_s:g} s")
        return mine.result()


def _vllm_join() -> Callable[[dict[str, Any]], Any]:
    """vLLM's way into a group as its rank 0, on the current device."""
    try:
        from vllm.distributed.weight_transfer import nccl_common
    except ImportError as error:
        raise UserError(
            f"rollout.server.transfer=nccl needs vLLM beside the trainer too ({error}); pip install "
            "'grpo-math[vllm]', or set rollout.server.transfer=folder"
        ) from error
    return nccl_common.trainer_init


def _ask(asked: Asked, loop: asyncio.AbstractEventLoop, but: tuple[type[ServerError], ...] = ()) -> Future[list[Any]]:
    return asyncio.run_coroutine_threadsafe(_all(asked, but), loop)


async def _all(asked: Asked, but: tuple[type[ServerError], ...]) -> list[Any]:
    """Asks all at the same time; raises what those that fail first say, with their names. but: what is no failure."""
    async with aiohttp.ClientSession() as http:

        async def one(server: Server, path: str, body: dict[str, Any] | None) -> Any:
            try:
                with suppress(*but):
                    return await server.ask(http, "POST", path, body)
            except ServerError as error:
                raise ServerError(f"server {server.url} {error}") from error

        said = [asyncio.create_task(one(*ask)) for ask in asked]
        try:
            return await asyncio.gather(*said)
        except ServerError as error:
            await asyncio.wait(said, timeout=OTHERS_S)
            failed = [str(task.exception()) for task in said if task.done() and task.exception()]
            raise ServerError("; ".join(failed)) from error
        finally:
            for task in said:
                task.cancel()


def _meeting_point(urls: Sequence[str]) -> tuple[str, int]:
    """An address of this machine that all of `urls` can reach, and a port that is free."""
    ways = [_address_towards(url) for url in urls]
    # a server here reaches every address of this machine, one elsewhere none that is only for here
    address = next((way for way in ways if not ip_address(way).is_loopback), ways[0])
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])


def _address_towards(url: str) -> str:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10.0) as line:
        return str(line.getsockname()[0])
