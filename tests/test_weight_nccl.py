"""The way of the weights over vLLM's NCCL end points, on the CPU: its protocol, and what goes wrong.

The servers are stand-ins that answer as vLLM's own router and worker do (the last test compares them, call by call),
and refuse what comes out of order. Where NCCL would carry the weights gloo does. Left out: NCCL and CUDA themselves.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from aiohttp import web
from torch import Tensor

from grpo_math.rollout import weight_nccl
from grpo_math.rollout.vllm_http import LOADING, Server
from grpo_math.rollout.weight_nccl import NCCLWeights
from grpo_math.types import EngineError

RUN = "run"
GIVE_UP = timedelta(seconds=3)  # of the transport below; NCCL has no such thing
NEW_GROUP = ["/shutdown_weight_transfer_engine", "/init_weight_transfer_engine"]
BEFORE, AFTER = ["/weight_info", "/pause", "/update_weight_version"], ["/update_weight_version", "/resume"]

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm")


class Gloo:
    """What vLLM's PyNcclCommunicator is to both sides, over gloo: made where all ranks meet, then broadcasts."""

    def __init__(self, address: str, port: int, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        options = dist.ProcessGroupGloo._Options()
        options._devices, options._timeout = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")], GIVE_UP
        store = dist.TCPStore(address, port, size, is_master=rank == 0, timeout=GIVE_UP)
        self.ends: Any = dist.ProcessGroupGloo(store, rank, size, options)

    def broadcast(self, tensor: Tensor, src: int, stream: object = None) -> None:
        assert tensor.is_contiguous()  # NCCL sends what lies in memory
        options = dist.BroadcastOptions()
        options.rootRank = src
        ends = self.ends  # kept here: gloo's own end waits for what is under way, and NCCL's does not
        ends.broadcast([tensor.reshape(-1).view(torch.uint8)], options).wait()

    def destroy(self) -> None:
        self.ends = None


@dataclass(frozen=True)
class Call:
    path: str
    query: str
    body: Any
    status: int
    made_up: bool  # the failure is the test's


class StandIn:
    """One server. trouble: for a path what its next calls do: `fail`, `hang`, or nothing else than usual."""

    def __init__(self, world_size: int, pool: ThreadPoolExecutor) -> None:
        self.world_size, self.pool, self.url = world_size, pool, ""
        self.calls: list[Call] = []
        self.trouble: dict[str, list[str]] = {}
        self.forgets = True
        self.restart()

    def restart(self) -> None:
        self.label, self.labels = "default", list[str]()
        self.paused = self.active = self.stale = False
        self.groups: list[Gloo] = []
        self.weights: list[dict[str, Tensor]] = [{} for _ in range(self.world_size)]

    def paths(self) -> list[str]:
        return [call.path for call in self.calls]

    def announced(self) -> list[dict[str, Any]]:
        return [call.body["update_info"] for call in self.calls if call.path == "/update_weights"]

    async def answer(self, request: web.Request) -> web.Response:
        path, body = request.path, await request.json() if request.can_read_body else None
        queue = self.trouble.get(path, [])
        trouble = queue.pop(0) if queue else ""
        if trouble == "hang":
            await asyncio.sleep(3600)
        try:
            if trouble == "fail":
                self.active = self.active and path != "/update_weights"
                raise RuntimeError("CUDA out of memory")
            said, status = await self.do(path, request.query_string, body), 200
        except RuntimeError as error:
            said, status = {"error": {"message": str(error)}}, 500
        self.calls.append(Call(path, request.query_string, body, status, trouble == "fail"))
        return web.json_response(said, status=status)

    def must(self, condition: object, text: str) -> None:
        if not condition:
            raise RuntimeError(text)

    async def do(self, path: str, query: str, body: Any) -> dict[str, Any]:
        if path == "/weight_info":
            return {"weight_version": self.label}
        if path == "/pause":
            self.must(query == "mode=abort" and body is None, "pause")
            self.paused = True
            return {"status": "paused"}
        self.must(self.paused, "samples meanwhile")
        if path == "/update_weight_version":
            self.must(list(body) == ["new_version"], "fields")
            self.label = body["new_version"]
            self.labels.append(self.label)
            self.must(self.label.startswith(LOADING) or not (self.active or self.stale), "not all are in")
        elif path == "/shutdown_weight_transfer_engine":
            self.must(not self.active, "Cannot release a trainer connection during a weight update")
            self.groups = []
        elif path == "/init_weight_transfer_engine":
            self.must(not self.groups, "has a group")
            await self.join(**body["init_info"])
        elif path == "/start_weight_update":
            self.must(self.groups and self.label.startswith(LOADING), "no group, or no label")
            self.must(not self.active, "start_weight_update called while a weight update is already active")
            self.active = self.stale = True
        elif path == "/update_weights":
            self.must(self.active, "start_weight_update must be called before update_weights.")
            await self.all(lambda worker: self.receive(worker, **body["update_info"]))
        elif path == "/finish_weight_update":
            self.must(self.active, "finish_weight_update called without a matching start_weight_update.")
            self.active = False
        elif path == "/reset_prefix_cache":
            self.must(not self.active, "in the middle of an update")
            self.stale = not self.forgets
            return {"success": self.forgets}
        elif path == "/resume":
            self.must(not self.label.startswith(LOADING), "has no weights")
            self.paused = False
        return {"message": "done"}

    async def all(self, work: Callable[[int], Any]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self.pool, work, i) for i in range(self.world_size)))

    async def join(self, *, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        self.groups = await self.all(lambda worker: Gloo(master_address, master_port, rank_offset + worker, world_size))

    def receive(self, worker: int, *, names: list[str], dtype_names: list[str], shapes: list[list[int]]) -> None:
        for name, dtype, shape in zip(names, dtype_names, shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.groups[worker].broadcast(weight, src=0)
            self.weights[worker][name] = weight


class Cluster:
    """Stand-ins, and the trainer's side that is to be tested."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.pool = ThreadPoolExecutor(16)
        self.runners: dict[StandIn, web.AppRunner] = {}
        self.joined: list[dict[str, Any]] = []

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def start(self, *world_sizes: int) -> list[StandIn]:
        ones = [StandIn(size, self.pool) for size in world_sizes]
        for one in ones:
            self.do(self._open(one))
        return ones

    async def _open(self, one: StandIn, port: int = 0) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path}", one.answer)
        self.runners[one] = runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    def leave(self, one: StandIn) -> None:
        self.do(self.runners.pop(one).cleanup())

    def come_back(self, one: StandIn) -> None:
        self.do(self._open(one, int(one.url.rpartition(":")[2])))

    def trainer(self, ones: list[StandIn], request_s: float = 30.0) -> NCCLWeights:
        servers = [Server(one.url, request_s) for one in ones]
        for server, one in zip(servers, ones, strict=True):
            server.facts = replace(server.facts, world_size=one.world_size)
        return NCCLWeights(servers, torch.device("cpu"), RUN)

    def join(self, info: dict[str, Any]) -> Gloo:
        self.joined.append(info)
        return Gloo(info["master_address"], info["master_port"], 0, info["world_size"])

    def end(self) -> None:
        self.pool.shutdown()
        for one in list(self.runners):
            self.leave(one)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    monkeypatch.setattr(weight_nccl, "_vllm_join", lambda: cluster.join)
    monkeypatch.setattr(weight_nccl, "BUCKET_BYTES", 34)
    yield cluster
    cluster.end()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "weights"]


class Model:
    """Weights as a trainer gives them out: each is good only until the next is asked for. asked: to the last one?"""

    def __init__(self, serial: int) -> None:
        self.label = f"full/{RUN}.{serial:06d}/{serial}"
        generator = torch.Generator().manual_seed(serial)
        shapes = {"embed": (5, 4), "norm": (4,), "scale": (), "up.weight": (3, 4), "up.bias": (3,)}
        self.tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.tensors["up.weight"] = self.tensors["up.weight"].T
        self.asked = False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.tensors.items():
            lent = tensor.clone(memory_format=torch.preserve_format)
            yield name, lent
            lent.fill_(float("nan"))
        self.asked = True


def assert_arrived(model: Model, *ones: StandIn) -> None:
    for one in ones:
        assert (one.label, one.paused) == (model.label, False)
        for weights in one.weights:
            assert list(weights) == list(model.tensors)
            for name, tensor in model.tensors.items():
                assert weights[name].dtype == torch.bfloat16
                assert weights[name].shape == tensor.shape
                assert torch.equal(weights[name], tensor.bfloat16())


def places(*ones: StandIn) -> list[list[int]]:
    """The ranks of each server's workers; all of them, and the trainer's 0, make up the group."""
    ranks = [[group.rank for group in one.groups] for one in ones]
    assert {group.size for one in ones for group in one.groups} == {1 + sum(map(len, ranks))}
    return ranks


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_all_weights_arrive_under_their_names_in_buckets(cluster: Cluster) -> None:
    ones = cluster.start(1, 2)
    trainer = cluster.trainer(ones)
    model = Model(1)
    trainer.send(model, model.label, torch.bfloat16)
    assert_arrived(model, *ones)
    assert places(*ones) == [[1], [2, 3]]
    updates = ["/start_weight_update", *["/update_weights"] * 3, "/finish_weight_update", "/reset_prefix_cache"]
    for one in ones:
        assert one.paths() == [*BEFORE, *NEW_GROUP, *updates, *AFTER]
        assert one.labels == [LOADING + model.label, model.label]
        # a bucket ends with the tensor that brings it to 34 bytes, at 2 for each number
        assert [info["names"] for info in one.announced()] == [["embed"], ["norm", "scale", "up.weight"], ["up.bias"]]
        assert one.announced()[1]["shapes"] == [[4], [], [4, 3]]
        assert one.announced()[1]["dtype_names"] == ["bfloat16"] * 3
    trainer.close()


def test_the_same_members_keep_their_group(cluster: Cluster) -> None:
    ones = cluster.start(1, 2)
    trainer = cluster.trainer(ones)
    for serial in (1, 2, 3):
        model = Model(serial)
        for one in ones:
            one.calls.clear()
        trainer.send(model, model.label, torch.bfloat16)
        assert_arrived(model, *ones)
        assert [path in one.paths() for one in ones for path in NEW_GROUP] == [serial == 1] * 4
    assert len(cluster.joined) == 1
    trainer.close()


def test_a_server_that_comes_or_goes_makes_a_new_group(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    a, b, c = cluster.start(1, 2, 1)
    trainer = cluster.trainer([a, b, c])

    def send(serial: int, *ones: StandIn) -> None:
        model = Model(serial)
        trainer.send(model, model.label, torch.bfloat16)
        assert_arrived(model, *ones)
        assert len(cluster.joined) == serial

    send(1, a, b, c)
    assert places(a, b, c) == [[1], [2, 3], [4]]
    cluster.leave(b)
    send(2, a, c)
    assert places(a, c) == [[1], [2]]
    assert capfd.readouterr().err.count(f"server {b.url} could not be asked for /weight_info") == 1
    cluster.come_back(b)  # with its weights of the first update, and the group of then
    send(3, a, b, c)
    assert places(a, b, c) == [[1], [2, 3], [4]]
    a.restart()
    send(4, a, b, c)
    b.label = "full/other.000001/7"
    send(5, a, b, c)
    c.label = f"{LOADING}full/{RUN}.000005/5"
    send(6, a, b, c)
    trainer.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_server_that_fails_in_the_middle_is_named_and_the_next_update_reaches_all(cluster: Cluster) -> None:
    ones = cluster.start(1, 2)
    trainer = cluster.trainer(ones)
    paths = ["/update_weights", "/start_weight_update", "/finish_weight_update", "/reset_prefix_cache"]
    for serial, path in enumerate(paths):
        ones[1].trouble = {path: ["", "fail"] if path == "/update_weights" else ["fail"]}
        broken, model = Model(2 * serial), Model(2 * serial + 1)
        with pytest.raises(EngineError, match=f"{ones[1].url} answers {path} with status 500: CUDA out of memory"):
            trainer.send(broken, broken.label, torch.bfloat16)
        assert broken.asked  # by the other ranks too, who would wait for this one
        assert [one.label for one in ones] == [LOADING + broken.label] * 2
        assert trainer.group is None
        if path == "/update_weights":  # the other one is in the middle of an update, in which vLLM leaves no group
            assert [one.active for one in ones] == [True, False]
        trainer.send(model, model.label, torch.bfloat16)
        assert_arrived(model, *ones)
        assert places(*ones) == [[1], [2, 3]]
        assert len(cluster.joined) == serial + 2
    trainer.close()


def test_another_trainer_goes_on_where_one_ended_between_two_buckets(cluster: Cluster) -> None:
    ones = cluster.start(1, 1)
    first = Model(1)

    def ends() -> Iterator[tuple[str, Tensor]]:
        for i, named in enumerate(first):
            if i == 2:
                raise KeyboardInterrupt
            yield named

    trainer = cluster.trainer(ones)
    with pytest.raises(KeyboardInterrupt):
        trainer.send(ends(), first.label, torch.bfloat16)
    assert [one.active for one in ones] == [True, True]
    trainer = cluster.trainer(ones)
    model = Model(2)
    trainer.send(model, model.label, torch.bfloat16)
    assert_arrived(model, *ones)
    trainer.close()


@pytest.mark.parametrize("path", ["/pause", "/init_weight_transfer_engine", "/update_weights"])
def test_a_server_that_hangs_is_named_in_time(cluster: Cluster, path: str) -> None:
    ones = cluster.start(1, 1)
    ones[1].trouble = {path: ["hang"]}
    trainer = cluster.trainer(ones, request_s=0.5)
    model = Model(1)
    began = time.monotonic()
    with pytest.raises(EngineError, match=rf"server {ones[1].url} did not answer {path}\S* within 0.5 s"):
        trainer.send(model, model.label, torch.bfloat16)
    assert time.monotonic() - began < 4
    assert model.asked


def test_a_server_that_makes_no_group_is_not_waited_for(cluster: Cluster) -> None:
    ones = cluster.start(1, 1)
    ones[0].trouble = {"/init_weight_transfer_engine": ["fail"]}
    model = Model(1)
    began = time.monotonic()
    with pytest.raises(EngineError, match=f"server {ones[0].url} answers /init_weight_transfer_engine with status 500"):
        cluster.trainer(ones).send(model, model.label, torch.bfloat16)
    assert time.monotonic() - began < GIVE_UP.total_seconds() - 1  # the trainer's own joining still waits


def test_a_broadcast_that_never_ends_is_left_behind(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = cluster.start(1)
    trainer = cluster.trainer(ones, request_s=0.5)
    over = threading.Event()

    class Lost(Gloo):
        def broadcast(self, tensor: Tensor, src: int, stream: object = None) -> None:
            super().broadcast(tensor, src)
            over.wait()

    trainer.join = lambda info: Lost(info["master_address"], info["master_port"], 0, info["world_size"])
    monkeypatch.setattr(weight_nccl, "LATER_S", 0.1)
    model = Model(1)
    with pytest.raises(EngineError, match=r"NCCL did not come to an end within 0.6 s"):
        trainer.send(model, model.label, torch.bfloat16)
    over.set()
    assert model.asked


def test_a_cache_of_old_weights_does_not_pass(cluster: Cluster) -> None:
    ones = cluster.start(1, 1)
    ones[1].forgets = False
    model = Model(1)
    with pytest.raises(EngineError, match=f"server {ones[1].url} did not forget the cached prefixes"):
        cluster.trainer(ones).send(model, model.label, torch.bfloat16)
    assert [(one.label, one.paused) for one in ones] == [(LOADING + model.label, True)] * 2


def test_none_answers(cluster: Cluster) -> None:
    ones = cluster.start(1, 1)
    trainer = cluster.trainer(ones)
    for one in ones:
        cluster.leave(one)
    model = Model(1)
    with pytest.raises(EngineError, match="did not reach the servers: none answers"):
        trainer.send(model, model.label, torch.bfloat16)
    assert model.asked


def test_servers_elsewhere_are_not_told_to_meet_at_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    # 0.0.0.0 stands for an address that the network knows: this machine may have no other
    towards = {"here": "127.0.0.1", "there": "0.0.0.0"}
    monkeypatch.setattr(weight_nccl, "_address_towards", towards.__getitem__)
    assert weight_nccl._meeting_point(["here", "there"])[0] == "0.0.0.0"
    assert weight_nccl._meeting_point(["here", "here"])[0] == "127.0.0.1"


# --- vLLM's own side -------------------------------------------------------------------------------------------------


@needs_vllm
@pytest.mark.slow  # for vLLM's import
def test_vllm_answers_as_the_stand_in_does(cluster: Cluster) -> None:
    """Every call of three updates, one of which fails, again to vLLM's own router, request types and worker."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
    from vllm.entrypoints.rl.online import api_router as rl
    from vllm.entrypoints.serve.dev.cache import api_router as cache
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.worker.gpu_worker import Worker

    ones = cluster.start(1, 2)
    trainer = cluster.trainer(ones)
    for serial in (1, 2, 3):
        ones[1].trouble = {"/update_weights": ["", "fail"]} if serial == 2 else {}
        model = Model(serial)
        if serial == 2:
            with pytest.raises(EngineError):
                trainer.send(model, model.label, torch.bfloat16)
        else:
            trainer.send(model, model.label, torch.bfloat16)
    trainer.close()

    class Transfer(NCCLWeightTransferEngine):
        """All of it but the device: joining, receiving, and where weights go."""

        def __init__(self) -> None:
            self.model_update_group, self.fails = None, False

        def init_transfer_engine(self, init_info: Any) -> None:
            assert init_info.packed is False  # one broadcast for each tensor
            self.model_update_group = Gloo.__new__(Gloo)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            self.parse_update_info(update_info)
            if self.fails:
                raise RuntimeError("CUDA out of memory")

        def start_weight_update(self) -> None: ...
        def finish_weight_update(self) -> None: ...
        def reset_weight_update_target(self) -> None: ...

    class OneWorker(Worker):
        def __init__(self) -> None:
            self.weight_transfer_engine, self.vllm_config, self.model_runner = Transfer(), None, Runner()
            self._weight_update_active = self._weight_update_is_draft = False

    class Runner:
        def reset_lora_state(self) -> None: ...

    class Core:
        """vLLM's EngineCore is a process of its own."""

        label = "default"

        async def set_weight_version_async(self, label: str) -> None:
            self.label = label

        async def get_weight_version_async(self) -> str:
            return self.label

        async def pause_scheduler_async(self, *, mode: str, clear_cache: bool) -> None: ...
        async def clear_mm_cache_async(self) -> None: ...
        async def resume_scheduler_async(self) -> None: ...
        async def reset_prefix_cache_async(self, *_: Any) -> bool:
            return True

    class Engine(AsyncLLM):
        def __init__(self) -> None:
            self.worker, self.engine_core, self.renderer = OneWorker(), Core(), Core()

        async def collective_rpc(self, method: str, *_: Any, kwargs: dict[str, Any] | None = None) -> list[Any]:
            return [getattr(self.worker, method)(**(kwargs or {}))]

        def __del__(self) -> None: ...

    assert [one.calls[-1].path for one in ones] == ["/resume"] * 2
    for one in ones:
        app, engine = FastAPI(), Engine()
        app.include_router(rl.router)
        app.include_router(cache.router)
        app.state.engine_client = engine
        client = TestClient(app, raise_server_exceptions=False)
        for call in one.calls:
            engine.worker.weight_transfer_engine.fails = call.made_up
            method = "GET" if call.path == "/weight_info" else "POST"
            answer = client.request(method, f"{call.path}?{call.query}", json=call.body)
            assert (call.path, answer.status_code) == (call.path, call.status)
        assert engine.engine_core.label == one.label == Model(3).label


@needs_vllm
@pytest.mark.slow  # for vLLM's import
def test_the_trainers_end_is_called_as_vllm_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.weight_transfer import nccl_common

    met: list[tuple[Any, ...]] = []
    monkeypatch.setattr(nccl_common, "stateless_init_process_group", lambda *args: met.append(args))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 5)
    weight_nccl._vllm_join()({"master_address": "10.0.0.1", "master_port": 77, "world_size": 4})
    assert met == [("10.0.0.1", 77, 0, 4, 5)]
    for ours, theirs in ((Gloo.broadcast, PyNcclCommunicator.broadcast), (Gloo.destroy, PyNcclCommunicator.destroy)):
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
