"""Worker processes that judge jobs side by side, each of them killed when a job of its takes too long.

Leaves out what a verdict means and how rewards add up (scoring.py). One thread, one loop, no signals. A worker says
when it begins each job, so a deadline counts from there, and sends each verdict at once, so a kill loses one job only.
What a verifier wants to judge with nothing else running (types.RunAlone) is done last, one job at a time.
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
from dataclasses import dataclass, field
from typing import Any

from grpo_math.config import Reward, Scoring
from grpo_math.find import find_verifier, user_code
from grpo_math.scoring_worker import HEADER, MAX_DETAIL
from grpo_math.types import Problem, UserError, Verdict

START_S = 120.0  # a worker that has not loaded its verifiers by then is given up
END_S = 5.0  # an idle worker may take so long to leave
MAX_FALSE_STARTS = 3
POLL_S = 0.1  # how often to look for a worker that died without closing its pipe
MAX_CHUNK = 256
SHORT_S, LONG_S = 0.005, 0.05  # a chunk of jobs that took less grows, one that took more shrinks
_BOOT = "import sys; sys.path[:] = sys.argv[1:]; from grpo_math.scoring_worker import main; main()"

RECYCLE = 100_000  # jobs after which a worker is replaced

Job = tuple[Problem, str, int]  # the problem, the completion's text, which verifier
Done = Callable[[int, Verdict, float], None]  # the job's number, its verdict, seconds it took; 0 where nobody judged it


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

    def dismiss(self) -> None:
        """Tell an idle one to leave, so that it can put away what its verifiers have started. `kill` it afterwards."""
        with contextlib.suppress(OSError):
            self.stdin.close()

    def left(self) -> None:
        """Wait until one that was told to leave has done so, or should have."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)

    def kill(self) -> str:
        """Kill it with all its children; says how it ended, which is how it died where it was dead already."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.stdin.close()
        self.stdout.close()
        os.close(self.lifeline)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


@dataclass
class Batch:
    """The jobs of one call. Each that is not answered is in `waiting`, in `alone`, or with a worker."""

    jobs: Sequence[Job]
    done: Done
    until: float  # when the time of all of them is up
    allowed: dict[int, float] = field(default_factory=dict)  # seconds that each may take
    waiting: deque[int] = field(default_factory=deque)
    alone: deque[int] = field(default_factory=deque)  # to be asked again with nothing else running
    final: bool = False  # whether that has begun: the second answer stands


class Pool:
    """At most `size` workers, started when there is work, kept for the next call, replaced when they are killed."""

    def __init__(self, rewards: Sequence[Reward], scoring: Scoring):
        self.rewards, self.scoring, self.size = list(rewards), scoring, scoring.workers
        self.patience = [getattr(find_verifier(reward.verifier), "patience", None) for reward in rewards]
        self.cwd = os.getcwd()
        self.workers: list[Worker] = []
        self.false_starts = 0
        self._selector: selectors.BaseSelector | None = None

    def run(self, jobs: Sequence[Job], done: Done) -> None:
        """Call `done(number of the job, its verdict, seconds it took)` once for each job, as they come. Hand the
        longest over first. Raises RuntimeError where workers do not start."""
        batch = self._batch(jobs, done)
        for worker in self.workers:
            worker.chunk = 1  # it has grown over the short ones at the end of the last call
        try:
            self._work_off(batch)
            batch.final = True
            while batch.alone:
                for worker in [worker for worker in self.workers if not worker.ready]:
                    self._dismiss(worker)  # to start is work, too
                batch.waiting.append(batch.alone.popleft())
                self._work_off(batch)
        except BaseException:
            self.close()  # a half-answered worker would answer the next call's questions
            raise

    def close(self) -> None:
        idle = [worker for worker in self.workers if worker.ready and not worker.jobs]
        for worker in idle:
            worker.dismiss()
        for worker in idle:
            worker.left()
        for worker in self.workers:
            worker.kill()
        self.workers = []
        if self._selector is not None:
            self._selector.close()
        self._selector = None

    def _batch(self, jobs: Sequence[Job], done: Done) -> Batch:
        """All jobs, waiting; one whose verifier cannot say how long it may take is answered already."""
        seconds = self.scoring.batch_timeout_s
        batch = Batch(jobs, done, float("inf") if seconds is None else time.monotonic() + seconds)
        for number, job in enumerate(jobs):
            try:
                batch.allowed[number] = self._allowed(job)
            except UserError as error:
                done(number, Verdict(None, "error", str(error)[:MAX_DETAIL]), 0.0)
        batch.waiting.extend(batch.allowed)
        return batch

    def _allowed(self, job: Job) -> float:
        """Seconds that this job may take: the verifier's own `patience` where it has that."""
        problem, _, which = job
        reward, patience = self.rewards[which], self.patience[which]
        if patience is None:
            return self.scoring.timeout_s
        with user_code(f"{reward.verifier}: patience"):
            seconds = patience(problem, **reward.options)
        if not isinstance(seconds, int | float) or not seconds > 0:
            raise UserError(f"{reward.verifier}: patience returned {seconds!r}; return seconds above 0")
        return seconds

    def _work_off(self, batch: Batch) -> None:
        """Until nothing waits and no worker is busy."""
        while batch.waiting or any(worker.jobs for worker in self.workers):
            if time.monotonic() > batch.until:
                self._give_up(batch)
                return
            self._staff(batch)
            for worker in self._readable(batch):
                self._hear(worker, batch)
            self._bury(batch)

    def _staff(self, batch: Batch) -> None:
        """Start workers for the work there is, and hand out chunks to those that are free."""
        if self._selector is None:
            self._selector = selectors.DefaultSelector()
        waiting = batch.waiting
        busy = sum(bool(worker.jobs) for worker in self.workers)
        while len(self.workers) < min(self.size, busy + len(waiting)):
            worker = self._start()
            self.workers.append(worker)
            self._selector.register(worker.stdout, selectors.EVENT_READ, worker)
        for worker in self.workers:
            if waiting and worker.ready and not worker.jobs:
                share = -(-len(waiting) // (2 * self.size))  # the last chunks are small, to end at the same time
                worker.give([waiting.popleft() for _ in range(min(worker.chunk, share))], batch.jobs)

    def _start(self) -> Worker:
        try:
            return Worker(self.rewards, self.cwd, self.scoring.memory_mb)
        except OSError as error:
            raise RuntimeError(
                f"a verifier worker cannot be started ({error}); lower scoring.workers={self.size}"
            ) from error

    def _readable(self, batch: Batch) -> list[Worker]:
        assert self._selector is not None
        now = time.monotonic()
        wait = min((self._due(worker, batch) - now for worker in self.workers), default=POLL_S)
        return [key.data for key, _ in self._selector.select(max(0.0, min(wait, POLL_S)))]

    @staticmethod
    def _due(worker: Worker, batch: Batch) -> float:
        """When the time of its present job, or of its start, is up. An idle worker has all the time in the world."""
        if worker.ready and not worker.jobs:
            return float("inf")
        return worker.since + (batch.allowed[worker.jobs[0]] if worker.started else START_S)

    def _hear(self, worker: Worker, batch: Batch) -> None:
        for message in worker.read():
            kind = message[0]
            if kind == "ready":
                worker.ready, self.false_starts = True, 0
            elif kind == "start":
                worker.started, worker.since = True, message[1]
            elif kind == "failed":
                raise UserError(message[1])
            else:
                number, worker.since, seconds, alone, *fields = message
                worker.jobs.popleft()
                worker.judged += 1
                if alone and not batch.final:
                    batch.alone.append(number)
                else:
                    batch.done(number, Verdict(*fields), seconds)
        if worker.ready and worker.started and not worker.jobs:
            self._resize(worker, time.monotonic() - worker.sent_at)
            worker.started = False

    @staticmethod
    def _resize(worker: Worker, seconds: float) -> None:
        if seconds < SHORT_S:
            worker.chunk = min(MAX_CHUNK, worker.chunk * 2)
        elif seconds > LONG_S:
            worker.chunk = max(1, worker.chunk // 2)

    def _bury(self, batch: Batch) -> None:
        """Take out the dead and those whose time is up. The job at hand is answered for them, the others wait again."""
        for worker in list(self.workers):
            if worker.judged >= RECYCLE and not worker.jobs:  # whatever a verifier leaks goes with it
                worker.dismiss()
                worker.left()
                self._dismiss(worker)
                continue
            died = worker.died()
            if not died and time.monotonic() <= self._due(worker, batch):
                continue
            self._hear(worker, batch)  # what it said before it died, or while we were busy, still counts
            if not died and time.monotonic() <= self._due(worker, batch):
                continue
            seconds = time.monotonic() - worker.since
            end = self._dismiss(worker)
            if worker.started and worker.jobs:
                number = worker.jobs.popleft()
                batch.done(number, self._verdict(batch, number, not died, end), seconds)
            elif not worker.ready or worker.jobs:
                self._false_start(not died, end)
            batch.waiting.extendleft(reversed(worker.jobs))

    def _give_up(self, batch: Batch) -> None:
        """The time of all jobs is up: kill the workers that are busy, and answer what has not been judged."""
        for worker in [worker for worker in self.workers if worker.jobs]:
            self._hear(worker, batch)  # what it has said still counts
            batch.waiting.extend(worker.jobs)
            self._dismiss(worker)
        for number in sorted([*batch.waiting, *batch.alone]):
            why = (
                f"{self._name(batch, number)}: scoring.batch_timeout_s={self.scoring.batch_timeout_s:g} passed before "
                "it was judged; raise it, or scoring.workers"
            )
            batch.done(number, Verdict(None, "timeout", why), 0.0)
        batch.waiting.clear()
        batch.alone.clear()

    def _dismiss(self, worker: Worker) -> str:
        assert self._selector is not None
        self._selector.unregister(worker.stdout)
        self.workers.remove(worker)
        return worker.kill()

    def _verdict(self, batch: Batch, number: int, late: bool, end: str) -> Verdict:
        name = self._name(batch, number)
        if late:
            within = f"{batch.allowed[number]:g} s"
            return Verdict(None, "timeout", f"{name}: no verdict within {within}; its process was killed")
        return Verdict(None, "error", f"{name}: its process {end}")

    def _name(self, batch: Batch, number: int) -> str:
        return self.rewards[batch.jobs[number][2]].verifier

    def _false_start(self, late: bool, end: str) -> None:
        self.false_starts += 1
        if self.false_starts >= MAX_FALSE_STARTS:
            what = f"did not start within {START_S:g} s" if late else end
            raise RuntimeError(
                f"a verifier worker {what}, {self.false_starts} times in a row, before it judged anything; what it "
                "wrote, if anything, is above; try the verifier by itself: grpo-math verify NAME"
            )
