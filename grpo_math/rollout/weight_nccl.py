"""Weights from the trainer's device to the servers' devices, through vLLM's own NCCL weight transfer.

The trainer's rank 0 is rank 0 of a group with all workers of all servers that answer; it broadcasts, they receive. The
group is made anew when a server has come or gone. Left out: packing small tensors together, which saves little beside
the large ones. A server that is started again in between has to wait for the next update: the trainer's weights are in
the middle of one.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import torch
from torch import Tensor

from grpo_math.rollout.fleet import out_of_use
from grpo_math.rollout.vllm_http import FULL, LOADING, Server, ServerError
from grpo_math.types import EngineError, UserError

BUCKET_BYTES = 1 << 30  # of the device's memory at a time, beside the trainer's
POLL_S = 0.01


class NCCLWeights:
    """run: the name that this run's labels begin with."""

    def __init__(self, servers: Sequence[Server], device: torch.device, run: str) -> None:
        try:
            from vllm.distributed.weight_transfer import nccl_common
        except ImportError as error:
            raise UserError(
                f"rollout.server.transfer=nccl needs vLLM beside the trainer too ({error}); pip install "
                "'grpo-math[vllm]', or set rollout.server.transfer=folder"
            ) from error
        self.join = nccl_common.trainer_init
        self.servers, self.device, self.run = list(servers), device, run
        self.group: Any = None
        self.members: list[Server] = []
        # a stream of its own: should a server be lost in the middle, only this stream waits for it for ever
        self.stream = torch.cuda.Stream(device)

    def send(self, weights: Iterable[tuple[str, Tensor]], label: str, dtype: torch.dtype) -> None:
        """Gives every server that answers the weights and the label. Asks for all of the weights even where it fails,
        since other ranks give them out together with this one; then raises EngineError."""
        rest = iter(weights)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="weights", daemon=True)
        thread.start()
        try:
            self._send(rest, label, dtype, loop)
        except (ServerError, RuntimeError, OSError) as error:  # RuntimeError is NCCL's
            for _ in rest:
                pass
            self.close()
            raise EngineError(
                f"the weights {label} did not reach the servers: {error}. The same command goes on from the last "
                "checkpoint; rollout.server.transfer=folder goes without NCCL"
            ) from error
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def close(self) -> None:
        if self.group is not None:
            self.group.destroy()
            self.group = None

    def _send(
        self, rest: Iterable[tuple[str, Tensor]], label: str, dtype: torch.dtype, loop: asyncio.AbstractEventLoop
    ) -> None:
        def do(*asked: Any) -> None:
            asyncio.run_coroutine_threadsafe(_all(*asked), loop).result()

        members, fresh = asyncio.run_coroutine_threadsafe(self._who_answers(), loop).result()
        if not members:
            raise ServerError("none answers")
        do([(s, "/pause?mode=abort", None) for s in members])
        do([(s, "/update_weight_version", {"new_version": f"{LOADING}{label}"}) for s in members])
        if fresh or members != self.members or self.group is None:
            self._make_group(members, loop)
        do([(s, "/start_weight_update", None) for s in members])
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
        do([(s, "/finish_weight_update", None) for s in members])
        do([(s, "/reset_prefix_cache", None) for s in members])
        do([(s, "/update_weight_version", {"new_version": label}) for s in members])
        do([(s, "/resume", None) for s in members])
        self.members = members

    async def _who_answers(self) -> tuple[list[Server], bool]:
        """The servers that answer, and whether one of them has forgotten this run's weights, and so its group."""
        async with aiohttp.ClientSession() as http:
            said = await asyncio.gather(*(s.label(http, 60.0) for s in self.servers), return_exceptions=True)
        members = []
        fresh = False
        for server, label in zip(self.servers, said, strict=True):
            if isinstance(label, str):
                members.append(server)
                fresh = fresh or not label.startswith(f"{FULL}{self.run}.")
            elif isinstance(label, ServerError):
                out_of_use(server, label, 0)
            else:
                raise label
        return members, fresh

    def _make_group(self, members: list[Server], loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        address, port = _meeting_point(members[0].url)
        size = 1 + sum(server.facts.world_size for server in members)
        asked = []
        offset = 1
        for server in members:
            info = {"master_address": address, "master_port": port, "rank_offset": offset, "world_size": size}
            asked.append((server, "/init_weight_transfer_engine", {"init_info": info}))
            offset += server.facts.world_size
        asyncio.run_coroutine_threadsafe(
            _all([(server, "/shutdown_weight_transfer_engine", None) for server in members]), loop
        ).result()
        joined = asyncio.run_coroutine_threadsafe(_all(asked), loop)
        with torch.cuda.device(self.device):
            self.group = self.join({"master_address": address, "master_port": port, "world_size": size})
        joined.result()
        self.members = members

    def _broadcast(self, bucket: list[tuple[str, Tensor]], loop: asyncio.AbstractEventLoop) -> None:
        """Returns when every server has this bucket; the workers' receiving and our sending meet inside NCCL."""
        info = {
            "names": [name for name, _ in bucket],
            "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
        }
        told = asyncio.run_coroutine_threadsafe(
            _all([(server, "/update_weights", {"update_info": info}) for server in self.members]), loop
        )
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for _, tensor in bucket:
            self.group.broadcast(tensor, src=0, stream=self.stream)
        sent = torch.cuda.Event()
        sent.record(self.stream)
        until = time.monotonic() + self.servers[0].request_s
        # asked, not waited for: a server that is lost in the middle would be waited for for ever
        while not (told.done() and sent.query()):
            if told.done():
                told.result()
            if time.monotonic() > until:
                raise ServerError(f"did not take the weights within {self.servers[0].request_s:g} s")
            time.sleep(POLL_S)
        told.result()


async def _all(asked: Sequence[tuple[Server, str, dict[str, Any] | None]]) -> None:
    """Asks all at the same time; raises what the first that fails says, with its name."""
    async with aiohttp.ClientSession() as http:

        async def one(server: Server, path: str, body: dict[str, Any] | None) -> None:
            try:
                await server.ask(http, "POST", path, body)
            except ServerError as error:
                raise ServerError(f"server {server.url} {error}") from error

        await asyncio.gather(*(one(*ask) for ask in asked))


def _meeting_point(url: str) -> tuple[str, int]:
    """An address of this machine on the way to `url`, and a port that is free."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=10.0) as line:
        address = str(line.getsockname()[0])
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return address, int(probe.getsockname()[1])
