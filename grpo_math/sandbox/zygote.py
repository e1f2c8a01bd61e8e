"""The process from which programs are forked: the common modules loaded, the walls up, one program at a time.

It is small, has no thread, and knows no test. It reads an order, forks, and then watches the child's clocks and its own
control socket: an order to stop, or the owner's end, ends the child. Started by client.py, by main.

Leaves out what a child does before the program runs (child.py).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_math.sandbox import child, kernel, landlock, namespaces, probe, scratch, seccomp, wire
from grpo_math.sandbox.child import Layers, Order

# What programs import most, loaded once. Neither numpy nor asyncio, whose memory every child would have to copy; nor
# threading and what needs it, which has work to do in every child.
# fmt: off
COMMON = (
    "abc", "array", "bisect", "cmath", "collections", "collections.abc", "contextlib", "copy", "dataclasses",
    "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io", "itertools", "json", "math", "numbers",
    "operator", "os", "random", "re", "statistics", "string", "struct", "tempfile", "textwrap", "time", "typing",
    "warnings",
)
# fmt: on
UNUSED_UID = 1_000_000_000  # added to a process id: nobody's, so that a limit of processes counts ours alone
NOBODY = 65534
ORPHANS_S = 10.0  # to end what a program has forked where it may fork: a bomb of our own user may be faster than we
LOOK_S = 0.05  # between looks at a folder that no file system limits


@dataclass
class End:
    """How a program ended. killed: why we killed it, `cpu`, `wall`, `disk`, `threads`, `stop` where it was no longer
    wanted, or nothing; status: what wait(2) says; unconfined: why it never began."""

    status: int
    cpu_s: float
    wall_s: float
    killed: str = ""
    unconfined: str = ""


class Zygote:
    def __init__(self, control: socket.socket, level: str, folder: str) -> None:
        self.control, self.level, self.folder = control, level, folder
        self.mounts = level == "namespaces"
        self.scratch = namespaces.SCRATCH if self.mounts else os.path.join(folder, "scratch")
        self.layers = Layers()
        self.orphaned = False
        self.number = os.getpid()  # of this machine, before there are other numbers

    def build(self) -> dict[str, Any]:
        """Put the walls up, and report which of them a program cannot get over. Raises OSError."""
        paths = namespaces.readable()
        if self.mounts:
            privileged = os.geteuid() == 0
            try:
                namespaces.enter(privileged)
            except PermissionError:
                if not privileged:
                    raise
                namespaces.enter(False)  # root in a container, without the right to mount
            namespaces.build_root(paths)
        kernel.adopt_orphans()
        kernel.hide_memory()
        uid = self._uid()
        self.layers = Layers(uid)
        self._open_scratch()
        if self.level != "process":
            self.layers = self._layers(paths, uid)
        return self._probe()

    def _layers(self, paths: list[str], uid: int | None) -> Layers:
        # The right to write ends at the folder: a program can neither remove it nor put a link in its place. Where
        # there are mounts they have said all that already, and a program costs less without
        devices = ["/dev/null", "/dev/zero", "/dev/full"]
        read = [*paths, "/dev/random", "/dev/urandom"]
        rules = None if self.mounts else landlock.ruleset(read, [self.scratch, *devices])
        return Layers(uid, rules, seccomp.supported(), threads=uid is not None or self.mounts)

    def _uid(self) -> int | None:
        """Another user for the program to be, where we may choose and where it can still read the interpreter."""
        if os.geteuid() != 0:
            return None
        for uid in (UNUSED_UID + self.number, NOBODY):
            if self._works(uid):
                return uid
        return None

    def _works(self, uid: int) -> bool:
        def attempt() -> bool:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            Path(os.__file__).read_bytes()
            return os.access(sys.prefix, os.R_OK | os.X_OK)

        return probe.in_child(attempt) is True

    def _probe(self) -> dict[str, Any]:
        order = Order(False, 10.0, 20.0, 512, 1)

        def confined() -> None:
            child.wall_in(self.layers)
            os.chdir(self.scratch)
            child.limit(order, self.layers)
            child.confine(self.layers, os.getppid())

        report = probe.report(confined, self.folder)
        self._clear_scratch()
        return report

    def serve(self) -> None:
        """One order after the other, until the owner hangs up."""
        while not self.orphaned:
            message, fds = wire.receive_packet(self.control)
            if not message:
                return
            order = json.loads(message)
            if order.get("stop"):
                continue  # for a program that had ended by itself
            end = self._run(Order(**order), fds)
            with contextlib.suppress(OSError):  # nobody is left to hear it: the loop ends
                wire.send_packet(self.control, json.dumps(asdict(end)).encode())

    def _run(self, order: Order, fds: list[int]) -> End:
        complaint, complain = os.pipe()
        parent = os.getpid()
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child.become(order, self.layers, self.scratch, fds, complain, parent)
        for fd in (*fds, complain):
            os.close(fd)
        killed = self._watch(pid, order, began)
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.monotonic() - began
        with os.fdopen(complaint, "rb") as stream:
            unconfined = stream.read().decode()
        self._end_orphans()
        self._clear_scratch()
        return End(status, usage.ru_utime + usage.ru_stime, wall_s, killed, unconfined)

    def _watch(self, pid: int, order: Order, began: float) -> str:
        """Wait until the child has ended, and end it when its time is up or it is no longer wanted. Says why."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        watched = os.pidfd_open(pid)  # readable once it has ended
        poll.register(watched, select.POLLIN)
        killed = ""
        try:
            while True:
                wait_s = self._patience(pid, order, began)
                if wait_s <= 0:
                    killed = "cpu" if time.monotonic() - began < order.wall_s else "wall"
                    break
                events = dict(poll.poll(1000 * wait_s + 1))
                if watched in events:
                    return ""
                if events:
                    self.orphaned = not wire.receive_packet(self.control)[0]
                    killed = "stop"
                    break
                if killed := self._beyond(pid):
                    break
        finally:
            os.close(watched)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return killed

    def _patience(self, pid: int, order: Order, began: float) -> float:
        """Seconds for which the child need not be looked at: neither of its clocks can run out before."""
        left_s = order.wall_s - (time.monotonic() - began)
        cpu_left_s = order.cpu_s - _cpu_seconds(pid)
        if cpu_left_s <= 0:
            return 0.0
        wait_s = min(left_s, max(cpu_left_s / CORES, 0.002))
        return wait_s if self.mounts and self.layers.threads else min(wait_s, LOOK_S)

    def _beyond(self, pid: int) -> str:
        """What a program has too much of, where neither a file system nor the limit of processes says no."""
        if not self.mounts and scratch.too_much(self.scratch, pid):
            return "disk"
        return "threads" if not self.layers.threads and _threads(pid) > child.MAX_THREADS else ""

    def _open_scratch(self) -> None:
        """Make the folder that programs may write in. What the last one was in is there, emptied, but at the level
        `process`, where a program may put anything in its place."""
        if self.mounts:
            options = f"size={scratch.MEGABYTES}m,nr_inodes={scratch.FILES},mode=0777"
            kernel.mount("scratch", self.scratch, "tmpfs", kernel.NOSUID | kernel.NODEV, options)
        else:
            os.mkdir(self.scratch, 0o700)
            if self.layers.uid is not None:
                os.chown(self.scratch, self.layers.uid, self.layers.uid)

    def _clear_scratch(self) -> None:
        if self.level == "process":
            scratch.remove(self.scratch)
            self._open_scratch()
        elif next(os.scandir(self.scratch), None) is not None:
            scratch.empty(self.scratch)

    def _end_orphans(self) -> None:
        """Whoever was forked where forking is possible is our child by now: end it, and its children after it."""
        if self.layers.filter:
            return
        until = time.monotonic() + ORPHANS_S
        while time.monotonic() < until:
            try:
                while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
                    pass
            except ChildProcessError:
                return
            for pid in probe.children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_seconds(pid: int) -> float:
    """CPU time of another process; 0 once it is gone. The clock's number is Linux's: ~pid << 3, and 2 for CPU time."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _threads(pid: int) -> int:
    """How many there are; 0 where nobody can tell."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def main() -> None:
    """argv: control socket, level, a folder of ours, where we come from. Says what holds, then serves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    level, folder, origin = sys.argv[2:5]
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # rather a program than the trainer
    for name in COMMON:
        importlib.import_module(name)
    zygote = Zygote(control, level, folder)
    try:
        report = zygote.build()
    except OSError as error:
        wire.send_packet(control, json.dumps({"failed": str(error)}).encode())
        return
    gc.collect()
    gc.freeze()  # or the children's collector would touch, and so copy, every page
    sys.path[:] = [path for path in sys.path if path != origin]  # an installed checkout has it twice
    sys.argv[:] = sys.orig_argv[:] = [""]
    wire.send_packet(control, json.dumps(report).encode())
    try:
        zygote.serve()
    finally:
        if not zygote.mounts:
            scratch.remove(folder)
