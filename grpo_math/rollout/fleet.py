"""Prompts over several vLLM servers: least loaded first, and what a server that fails had goes to the others.

A server is in use while it answers and has the right weights. One that does not is named once on stderr, asked again
every few seconds, given the weights it lacks, and used again. Left out: HTTP (vllm_http.py).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp

from grpo_math.rollout.vllm_http import LOADING, Aborted, Refused, Sampled, Server, ServerError, Stale, Weights
from grpo_math.types import EngineError, UserError

AGAIN_S = 3.0  # between two questions to a server that is out of use
BEAT_S = 5.0  # between two questions to one that is in use: a hanging server must not keep its requests till the end
BEAT_TIMEOUT_S = 60.0
FIRST_LOOK_S = 5.0  # for all servers to say what they have, before the first prompt goes to one of them
OTHERS_S = 60.0  # for another rank to finish giving a server its weights
RIVALS = 10  # times that a server loses its weights within one generation
TRIES = 5  # servers that may fail at the same prompts
MORE_THAN_FITS = 1.25  # a server is given this many times what it samples side by side, so that it never waits


@dataclass(frozen=True, eq=False)
class Job:
    """sampling["n"] completions of a prompt, one request. name: the problem's id."""

    name: str
    token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]

    @property
    def size(self) -> int:
        return int(self.sampling["n"])


@dataclass(eq=False)
class Lane:
    """A server within one generation. broken: set with the error that put it out of use."""

    server: Server
    ready: bool = False
    mending: bool = False
    looked: asyncio.Event = field(default_factory=asyncio.Event)
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    error: ServerError | None = None
    stale: int = 0
    lost: int = 0  # requests that ended with the error, beside those still active
    active: dict[asyncio.Task[None], Job] = field(default_factory=dict)

    @property
    def load(self) -> int:
        return sum(job.size for job in self.active.values())

    def takes(self, job: Job) -> bool:
        room = MORE_THAN_FITS * self.server.facts.max_sequences - self.load
        return self.ready and (job.size <= room or not self.active)

    def fail(self, error: ServerError) -> None:
        self.ready = False  # at once: what it had must not come back to it
        if self.error is None:
            self.error = error
            self.broken.set()


class Fleet:
    """me: a name for this client that no other has. patience_s: how long to go without any server in use."""

    def __init__(self, servers: Sequence[Server], me: str, patience_s: float) -> None:
        self.servers, self.me, self.patience_s = list(servers), me, patience_s

    async def sample(self, jobs: Sequence[Job], weights: Weights) -> list[list[Sampled]]:
        """The completions of each job, all sampled with `weights`. EngineError where no server is left."""
        # a connection for each request: vLLM queues them better than a pool would
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            return await _Round(self, http, jobs, weights).run()

    async def give(self, weights: Weights) -> dict[str, ServerError]:
        """Sends all servers the weights, at the same time. Returns who did not take them, by URL, and names them; they
        get them when they are needed next."""
        async with aiohttp.ClientSession() as http:
            results = await asyncio.gather(
                *(make_ready(server, http, weights, self.me) for server in self.servers), return_exceptions=True
            )
        failed = {}
        for server, result in zip(self.servers, results, strict=True):
            if isinstance(result, ServerError):
                failed[server.url] = result
                out_of_use(server, result, 0)
            elif isinstance(result, BaseException):
                raise result
            else:
                in_use(server, weights)
        return failed

    def no_server_left(self) -> EngineError:
        said = "\n".join(f"  {server.url} {server.trouble or 'said nothing'}" for server in self.servers)
        return EngineError(
            f"no server has worked for rollout.server.patience_s={self.patience_s:g} s. What each said last:\n{said}\n"
            "Start them again with `grpo-math serve CONFIG`; the same command goes on with the run"
        )


class _Round:
    """One generation."""

    def __init__(self, fleet: Fleet, http: aiohttp.ClientSession, jobs: Sequence[Job], weights: Weights) -> None:
        self.fleet, self.http, self.jobs, self.weights = fleet, http, jobs, weights
        self.todo = deque(jobs)
        self.failures: dict[Job, int] = {}
        self.done: dict[Job, list[Sampled]] = {}
        self.started = False
        self.over = asyncio.Event()
        self.fatal: Exception | None = None
        self.lanes = [Lane(server) for server in fleet.servers]

    async def run(self) -> list[list[Sampled]]:
        keepers = [asyncio.create_task(self._keep(lane)) for lane in self.lanes]
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(lane.looked.wait() for lane in self.lanes)), FIRST_LOOK_S)
            self.started = True
            self._hand_out()
            await self._until_over(keepers)
        finally:
            self.over.set()  # what is put back now is not handed out again
            tasks = [*keepers, *(task for lane in self.lanes for task in lane.active)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.fatal is not None:
            raise self.fatal
        return [self.done[job] for job in self.jobs]

    async def _until_over(self, keepers: list[asyncio.Task[None]]) -> None:
        alone = 0.0  # seconds without a server
        before = time.monotonic()
        while not self.over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), 0.5)
            for keeper in keepers:
                if keeper.done():
                    keeper.result()  # they never end by themselves: this raises a bug of ours
            now = time.monotonic()
            if any(lane.ready for lane in self.lanes):
                alone = 0.0
            elif not any(lane.mending for lane in self.lanes):  # which has deadlines of its own
                alone += now - before
            before = now
            if alone > self.fleet.patience_s:
                raise self.fleet.no_server_left()

    def _hand_out(self) -> None:
        while self.started and self.todo:
            free = [lane for lane in self.lanes if lane.takes(self.todo[0])]
            if not free or self.over.is_set():
                return
            lane, job = min(free, key=lambda lane: lane.load), self.todo.popleft()
            task = asyncio.create_task(self._ask(lane, job))
            lane.active[task] = job
            task.add_done_callback(partial(self._ended, lane))

    async def _ask(self, lane: Lane, job: Job) -> None:
        self.done[job] = await lane.server.sample(self.http, job.token_ids, job.sampling, self.weights)

    def _ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        job = lane.active.pop(task)
        error = None if task.cancelled() else task.exception()
        if job not in self.done:
            self.todo.appendleft(job)
        if isinstance(error, Refused) and error.status in (400, 422):
            self._end_with(UserError(f"{lane.server.url} refuses the prompt of problem {job.name}: {error}"))
        elif isinstance(error, ServerError):
            lane.lost += 1
            if not isinstance(error, Stale | Aborted):
                self.failures[job] = self.failures.get(job, 0) + 1
            lane.fail(error)
            if self.failures.get(job, 0) >= TRIES:
                self._end_with(EngineError(f"{TRIES} times a server failed at problem {job.name}; the last: {error}"))
        elif isinstance(error, Exception):
            self._end_with(error)
        if len(self.done) == len(self.jobs):
            self.over.set()
        self._hand_out()

    def _end_with(self, error: Exception) -> None:
        self.fatal = self.fatal or error
        self.over.set()

    async def _keep(self, lane: Lane) -> None:
        """Have the server in use whenever it can be. Never returns."""
        server = lane.server
        while True:
            lane.error, lane.lost = None, 0
            lane.broken.clear()
            try:
                await self._bring_in(lane)
                while True:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(lane.broken.wait(), BEAT_S)
                    if lane.error is not None:
                        raise lane.error
                    label = await server.label(self.http, BEAT_TIMEOUT_S)
                    if label != self.weights.label:
                        raise Stale(f"has the weights {label} instead of {self.weights.label}")
            except ServerError as error:
                lane.ready = lane.mending = False
                lost = list(lane.active)
                if not isinstance(error, Aborted):
                    out_of_use(server, error, lane.lost + len(lost))
                lane.looked.set()
                for task in lost:
                    task.cancel()
                await asyncio.gather(*lost, return_exceptions=True)  # each puts its job back
                self._hand_out()
                if not isinstance(error, Stale | Aborted):
                    await asyncio.sleep(AGAIN_S)
                    continue
                lane.stale += 1
                if lane.stale >= RIVALS:
                    self._end_with(
                        EngineError(
                            f"server {server.url} {error}, for the {lane.stale}th time in one generation: somebody "
                            "else gives it weights too. Every run needs servers of its own"
                        )
                    )

    async def _bring_in(self, lane: Lane) -> None:
        server = lane.server
        label = await server.label(self.http, BEAT_TIMEOUT_S)
        if label != self.weights.label and server.trouble is None:
            out_of_use(server, Stale(f"has the weights {label} instead of {self.weights.label}"), 0)
        lane.mending = True
        await make_ready(server, self.http, self.weights, self.fleet.me)
        lane.mending, lane.ready = False, True
        in_use(server, self.weights)
        lane.looked.set()
        self._hand_out()


async def make_ready(server: Server, http: aiohttp.ClientSession, weights: Weights, me: str) -> None:
    """Returns when the server has the weights and samples; ServerError otherwise."""
    label = await server.label(http, BEAT_TIMEOUT_S)
    until = time.monotonic() + min(OTHERS_S, server.request_s)
    while label.startswith(f"{LOADING}{weights.label} by ") and not label.endswith(f" by {me}"):
        if time.monotonic() > until:
            break  # whoever was at it has been lost
        await asyncio.sleep(0.5)
        label = await server.label(http, BEAT_TIMEOUT_S)
    if label == weights.label:
        if (await server.ask(http, "GET", "/is_paused", within_s=BEAT_TIMEOUT_S))["is_paused"]:
            await server.resume(http)
    elif weights.path is None:
        raise ServerError(f"has the weights {label}; it gets the current ones, {weights.label}, at the next update")
    else:
        await server.load(http, weights, me)


def out_of_use(server: Server, error: ServerError, requests: int) -> None:
    """Told when it begins, or when the reason is another one; the last reason is remembered."""
    new = server.trouble is None
    server.trouble = str(error)
    if new:
        given = f"; its {requests} requests go to the others" if requests else ""
        _say(f"server {server.url} {error}{given}. It is out of use until it has the right weights")


def in_use(server: Server, weights: Weights) -> None:
    if server.trouble is not None:
        server.trouble = None
        _say(f"server {server.url} is in use again, with the weights of version {weights.label.rpartition('/')[2]}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
