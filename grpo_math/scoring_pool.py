"""Worker processes that judge jobs side by side, each of them killed when a job of its takes too long.

Leaves out what a verdict means and how rewards add up (scoring.py). One thread, one loop, no signals. A worker says
when it begins each job, so a deadline counts from there, and sends each verdict at once, so a kill loses one job only.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from grpo_math.config import Reward, Scoring
from grpo_math.scoring_worker import HEADER
from grpo_math.types import Problem, Verdict

START_S = 120.0  # a worker that has not loaded its verifiers by then is given up
MAX_FALSE_STARTS = 3
POLL_S = 0.1  # how often to look for a worker that died without closing its pipe
MAX_CHUNK = 256
SHORT_S, LONG_S = 0.005, 0.05  # a chunk of jobs that took less grows, one that took more shrinks
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from grpo_math.scoring_worker import main; main()"

RECYCLE = 100_000  # jobs after which a worker is replaced

Job = tuple[Problem, str, int]  # the problem, the completion's text, which verifier
Done = Callable[[int, Verdict, float], None]


class Worker:
    """One process, and what the parent knows of it. `since` is when its present job, or its start, began."""

    def __init__(self, rewards: Sequence[Reward], cwd: str, memory_mb: int):
        lifeline, self.lifeline = os.pipe()  # a pipe each: what happens at its hang-up is set per open file
        # A fresh interpreter, not a fork of the trainer: it has no CUDA, no threads and no main script to run again.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            pass_fds=[lifeline],
            start_new_session=True,  # a group of its own: its children are killed with it, and Ctrl-C passes it by
        )
        os.close(lifeline)
        self.ready = self.started = False
        self.since = time.monotonic()
        self.sent_at = 0.0
        self.jobs: deque[int] = deque()  # given and not yet answered, in order
        self.chunk = 1
        self.judged = 0
        self.buffer = b""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self._write((lifeline, [r.verifier for r in rewards], [r.options for r in rewards], memory_mb))

    def give(self, numbers: Sequence[int], jobs: Sequence[Job]) -> None:
        self.jobs.extend(numbers)
        self.started = False
        self.since = self.sent_at = time.monotonic()
        self._write([(number, jobs[number][2], *jobs[number][:2]) for number in numbers])

    def _write(self, message: object) -> None:
        data = memoryview(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
        with contextlib.suppress(BrokenPipeError):  # it died, which `died` reports
            while data:
                data = data[self.stdin.write(data) or 0 :]

    def read(self) -> list[tuple[Any, ...]]:
        """All whole messages that have arrived."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.stdout.fileno(), 1 << 18):
                self.buffer += data
        messages, at = [], 0
        while len(self.buffer) >= at + HEADER.size:
            end = at + HEADER.size + HEADER.unpack_from(self.buffer, at)[0]
            if len(self.buffer) < end:
                break
            messages.append(pickle.loads(self.buffer[at + HEADER.size : end]))
            at = end
        self.buffer = self.buffer[at:]
        return messages

    def died(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> str:
        """Kill it with all its children; says how it ended, which is how it died where it was dead already."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.stdin.close()
        self.stdout.close()
        os.close(self.lifeline)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


class Pool:
    """At most `size` workers, started when there is work, kept for the next call, replaced when they are killed."""

    def __init__(self, rewards: Sequence[Reward], scoring: Scoring):
        self.rewards, self.size, self.timeout_s = list(rewards), scoring.workers, scoring.timeout_s
        self.memory_mb = scoring.memory_mb
        self.cwd = os.getcwd()
        self.workers: list[Worker] = []
        self.false_starts = 0
        self._selector: selectors.BaseSelector | None = None

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Call `done(number of the job, its verdict, seconds it took)` for each job, as they come. Raises RuntimeError
        where workers do not start."""
        waiting = deque(range(len(jobs)))
        try:
            while waiting or any(worker.jobs for worker in self.workers):
                self._staff(waiting, jobs)
                for worker in self._readable():
                    self._hear(worker, done)
                self._bury(waiting, jobs, done)
        except BaseException:
            self.close()  # a half-answered worker would answer the next call's questions
            raise

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers = []
        if self._selector is not None:
            self._selector.close()
        self._selector = None

    def _staff(self, waiting: deque[int], jobs: Sequence[Job]) -> None:
        """Start workers for the work there is, and hand out chunks to those that are free."""
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
        busy = sum(bool(worker.jobs) for worker in self.workers)
        while len(self.workers) < min(self.size, busy + len(waiting)):
            worker = Worker(self.rewards, self.cwd, self.memory_mb)
            self.workers.append(worker)
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        for worker in self.workers:
            if waiting and worker.ready and not worker.jobs:
                share = -(-len(waiting) // (2 * self.size))  # the last chunks are small, to end at the same time
                worker.give([waiting.popleft() for _ in range(min(worker.chunk, share))], jobs)

    def _readable(self) -> list[Worker]:
        assert self._selector is not None
        now = time.monotonic()
        wait = min((self._due(worker) - now for worker in self.workers), default=POLL_S)
        return [key.data for key, _ in self._selector.select(max(0.0, min(wait, POLL_S)))]

    def _due(self, worker: Worker) -> float:
        """When its time is up. An idle worker has all the time in the world."""
        if worker.ready and not worker.jobs:
            return float("inf")
        return worker.since + (self.timeout_s if worker.started else START_S)

    def _hear(self, worker: Worker, done: Done) -> None:
        for message in worker.read():
            kind = message[0]
            if kind == "ready":
                worker.ready, self.false_starts = True, 0
            elif kind == "start":
                worker.started, worker.since = True, message[1]
            elif kind == "failed":
                raise RuntimeError(f"a verifier worker cannot work: {message[1]}")
            else:
                worker.jobs.popleft()
                worker.since = message[1]
                worker.judged += 1
                done(kind, Verdict(*message[3:]), message[2])
        if worker.ready and worker.started and not worker.jobs:
            self._resize(worker, time.monotonic() - worker.sent_at)
            worker.started = False

    @staticmethod
    def _resize(worker: Worker, seconds: float) -> None:
        if seconds < SHORT_S:
            worker.chunk = min(MAX_CHUNK, worker.chunk * 2)
        elif seconds > LONG_S:
            worker.chunk = max(1, worker.chunk // 2)

    def _bury(self, waiting: deque[int], jobs: Sequence[Job], done: Done) -> None:
        """Take out the dead and those whose time is up. The job at hand is answered for them, the others wait again."""
        for worker in list(self.workers):
            if worker.judged >= RECYCLE and not worker.jobs:  # whatever a verifier leaks goes with it
                self._dismiss(worker)
                continue
            died = worker.died()
            if not died and time.monotonic() <= self._due(worker):
                continue
            self._hear(worker, done)  # what it said before it died, or while we were busy, still counts
            if not died and time.monotonic() <= self._due(worker):
                continue
            seconds = time.monotonic() - worker.since
            end = self._dismiss(worker)
            if worker.started and worker.jobs:
                number = worker.jobs.popleft()
                done(number, self._verdict(jobs[number], not died, end), seconds)
            elif not worker.ready or worker.jobs:
                self._false_start(not died, end)
            waiting.extendleft(reversed(worker.jobs))

    def _dismiss(self, worker: Worker) -> str:
        assert self._selector is not None
        self._selector.unregister(worker.stdout)
        self.workers.remove(worker)
        return worker.kill()

    def _verdict(self, job: Job, late: bool, end: str) -> Verdict:
        name = self.rewards[job[2]].verifier
        if late:
            return Verdict(None, "timeout", f"{name}: no verdict within {self.timeout_s:g} s; its process was killed")
        return Verdict(None, "error", f"{name}: its process {end}")

    def _false_start(self, late: bool, end: str) -> None:
        self.false_starts += 1
        if self.false_starts >= MAX_FALSE_STARTS:
            what = f"did not start within {START_S:g} s" if late else end
            raise RuntimeError(
                f"a verifier worker {what}, {self.false_starts} times in a row, before it judged anything; what it "
                "wrote, if anything, is above; try the verifier by itself: grpo-math verify NAME"
            )
