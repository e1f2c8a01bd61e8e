"""Run programs: a zygote to fork them from, a tester to judge them by, and a deadline over both from outside.

One Sandbox runs one program at a time, and belongs to one thread. Whatever goes wrong with a program ends in a Run; the
machine's own failures raise SandboxError, so that they are never taken for the program's.

Leaves out levels and what they stop (isolation.py), and the comparison of standard output (stdio.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo_math.sandbox import wire
from grpo_math.sandbox.child import Order
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.scratch import remove
from grpo_math.sandbox.tester import Job, Outcome, packed
from grpo_math.sandbox.zygote import End

START_S = 60.0
GRACE_S = 2.0  # beyond its own deadline, until a zygote or tester that does not answer is killed
_BOOT = "import sys; sys.path.insert(0, sys.argv[-1]); from grpo_math.sandbox.{} import main; main()"
_ROOT = str(Path(importlib.util.find_spec("grpo_math").submodule_search_locations[0]).parent)  # type: ignore[union-attr, index]


class SandboxError(RuntimeError):
    """The machine cannot run programs, now or at all; says why."""


@dataclass(frozen=True)
class Run:
    """One program that has ended. outcome: what the tests found, None for a script, and where they were not done in
    time (tests_late); output: what a script wrote."""

    end: End
    outcome: Outcome | None = None
    output: bytes = b""
    errors: bytes = b""
    tests_late: bool = False


class Helper:
    """A process of ours that reads from a control socket. It ends when that closes, or when we end."""

    def __init__(self, module: str, kind: socket.SocketKind, *args: str) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, kind)
        lifeline, kept = os.pipe()
        self.lifeline = os.fdopen(kept, "wb", 0)  # an object, so that it closes with this one
        given = [text.format(lifeline=lifeline) for text in args]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-c", _BOOT.format(module), str(theirs.fileno()), *given, _ROOT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=[theirs.fileno(), lifeline],
                start_new_session=True,
            )
        except OSError as error:
            self.control.close()
            self.lifeline.close()
            raise SandboxError(f"a process of the sandbox did not start: {error}") from error
        finally:
            theirs.close()
            os.close(lifeline)

    def wait(self, seconds: float) -> bool:
        """Whether there is something to read within so many seconds."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        return bool(poll.poll(max(0.0, 1000 * seconds)))

    def end(self) -> None:
        """Hang up, so that it puts its own children away, and see to it that it has left."""
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.control.close()
        self.lifeline.close()


# Nothing of ours: no token, no path. (Hence no -I, which would ignore the hash seed with the rest.) Threads of
# numerical libraries would multiply with the workers.
ENVIRONMENT = {
    **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},  # some Pythons need it to start
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
}


class Sandbox:
    """Runs programs at one level of isolation. Close it, or let it end with this process."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.report: dict[str, Any] = {}
        self._zygote: Helper | None = None
        self._tester: Helper | None = None
        self._folder: str | None = None

    def start(self) -> dict[str, Any]:
        """Start the zygote, unless it runs; what fails inside it (probe.ACTS). Raises SandboxError."""
        if self._zygote is not None:
            return self.report
        self._folder = self._folder or _new_folder()
        zygote = Helper("zygote", socket.SOCK_SEQPACKET, self.level, self._folder)
        try:
            if not zygote.wait(START_S):
                raise SandboxError(f"the sandbox did not start within {START_S:g} s")
            said = wire.receive_packet(zygote.control)[0]
            report = json.loads(said) if said else {"failed": "it ended while it started"}
            if "failed" in report:
                raise SandboxError(str(report["failed"]))
        except (OSError, ValueError) as error:
            zygote.kill()
            raise SandboxError(f"the sandbox said nothing sensible when it started: {error}") from error
        except SandboxError:
            zygote.kill()
            raise
        self._zygote, self.report = zygote, report
        if self.level == "namespaces":  # it has a root of its own
            self._remove_folder()
        return self.report

    def warm_up(self) -> None:
        """Start what the first program would otherwise have to wait for. Raises SandboxError."""
        self.start()
        self._start_tester()

    def judge(self, job: Job, limits: Limits) -> Run:
        """Load the job's sources as a module and put its tests to it."""
        mine, theirs = socket.socketpair()
        with mine, theirs, self._running(limits, False, [theirs]) as deadline:
            theirs.close()
            tester = self._start_tester()
            outcome = None
            try:
                wire.send_packet(tester.control, b"j", (mine.fileno(),))
                wire.send_bytes(tester.control, packed(job))
                mine.close()
                outcome = self._outcome(tester, deadline)
            except OSError as error:  # no test runs in the process that we speak with: this is the machine's doing
                raise SandboxError(f"the tester of the sandbox is gone: {error}") from error
            finally:
                if outcome is None:
                    tester.kill()
                    self._tester = None
            if outcome is not None and outcome.gone:  # it has ended, or will at once: how, is worth knowing
                assert self._zygote is not None
                self._zygote.wait(GRACE_S)
            end = self._stop(deadline)
        return Run(end, outcome, tests_late=outcome is None)

    def script(self, source: str, stdin: bytes, limits: Limits) -> Run:
        """Run the source as a main program on this standard input."""
        files: list[int] = []
        try:
            for content in (source.encode("utf-8", "surrogatepass"), stdin, b"", b""):
                files.append(_file(content))
            with self._running(limits, True, files) as deadline:
                end = self._ended(deadline)
            output, errors = (os.pread(f, min(os.fstat(f).st_size, limits.output_mb << 20), 0) for f in files[2:])
        finally:
            for file in files:
                os.close(file)
        return Run(end, None, output, errors)

    def close(self) -> None:
        """End both processes. A later call starts them anew."""
        for helper in (self._zygote, self._tester):
            if helper is not None:
                helper.end()
        self._zygote = self._tester = None
        self._remove_folder()

    def _remove_folder(self) -> None:
        if self._folder is not None:
            remove(self._folder)
        self._folder = None

    @contextlib.contextmanager
    def _running(self, limits: Limits, stdio: bool, fds: Sequence[Any]) -> Iterator[float]:
        """Within it a program runs. Gives the time at which the owner loses patience."""
        self.start()
        assert self._zygote is not None
        order = order_of(limits, stdio)
        numbers = tuple(fd if isinstance(fd, int) else fd.fileno() for fd in fds)
        try:
            wire.send_packet(self._zygote.control, json.dumps(asdict(order)).encode(), numbers)
            yield time.monotonic() + order.wall_s + GRACE_S
        except OSError as error:
            self._give_up()
            raise SandboxError(f"the zygote of the sandbox is gone: {error}") from error
        except BaseException:
            self._give_up()  # whatever still runs there would answer the next question
            raise

    def _ended(self, deadline: float) -> End:
        assert self._zygote is not None
        answered = self._zygote.wait(deadline - time.monotonic())
        said = wire.receive_packet(self._zygote.control)[0] if answered else b""
        if not said:
            self._give_up()
            raise SandboxError("the zygote of the sandbox is gone, or does not answer")
        end = End(**json.loads(said))
        if end.unconfined:
            raise SandboxError(f"a program could not be confined: {end.unconfined}")
        return end

    def _stop(self, deadline: float) -> End:
        assert self._zygote is not None
        with contextlib.suppress(OSError):
            wire.send_packet(self._zygote.control, b'{"stop": true}')
        return self._ended(deadline + GRACE_S)

    def _outcome(self, tester: Helper, deadline: float) -> Outcome | None:
        if not tester.wait(deadline - time.monotonic()):
            return None
        return Outcome(**json.loads(wire.receive(tester.control)))

    def _start_tester(self) -> Helper:
        if self._tester is not None and self._tester.process.poll() is not None:
            self._tester.kill()
            self._tester = None
        if self._tester is None:
            self._tester = Helper("tester", socket.SOCK_STREAM, "{lifeline}")
        return self._tester

    def _give_up(self) -> None:
        """Kill the zygote, and with it whatever runs in it; the next program gets a new one."""
        if self._zygote is not None:
            self._zygote.kill()
        self._zygote = None
        self._remove_folder()


def order_of(limits: Limits, stdio: bool) -> Order:
    """The wall's limit is twice the CPU's and more: a busy machine may take that long, a sleeping program may not."""
    return Order(stdio, limits.timeout_s, wall_limit(limits), limits.memory_mb, limits.output_mb)


def wall_limit(limits: Limits) -> float:
    return 2 * limits.timeout_s + 1.0


def _new_folder() -> str:
    """Memory-backed where there is such a place. What programs without mounts of their own may write lies in it."""
    for base in ("/dev/shm", None):
        with contextlib.suppress(OSError):
            folder = tempfile.mkdtemp(prefix="grpo-math-", dir=base)
            os.chmod(folder, 0o711)
            witness = Path(folder, "witness")
            witness.write_bytes(b"not for programs")
            witness.chmod(0o600)
            return folder
    raise SandboxError("no folder for temporary files can be made; is the disk full?")


def _file(content: bytes) -> int:
    """A file in memory that has no name."""
    try:
        fd = os.memfd_create("grpo-math")
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as error:
        raise SandboxError(f"no file for a program's input can be made: {error}") from error
    return fd
