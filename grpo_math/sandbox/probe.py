"""Try to get out, from inside: what a program could do here. Leaves out the walls (child.py, namespaces.py).

Each layer is believed only where the act that it forbids has failed in a process that was confined like a program's.
"""

from __future__ import annotations

import _thread
import ctypes
import json
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process, as JSON; None where it dies or raises OSError."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.write(write, json.dumps(work()).encode())
        except OSError:
            os._exit(1)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return json.loads(said) if said else None


def report(confine: Callable[[], object], outside: str) -> dict[str, Any]:
    """Whether each of ACTS fails in a confined child. `outside`: a folder of ours that programs must not touch."""

    def attempt() -> dict[str, bool]:
        confine()
        return {name: _fails(act, outside) for name, act in ACTS.items()}

    found = in_child(attempt)
    if found is None:
        raise OSError("a confined process did not start")
    return dict(found)


def _fails(act: Callable[[str], object], outside: str) -> bool:
    try:
        act(outside)
    except (OSError, RuntimeError, MemoryError, ValueError):
        return True
    return False


def _fork(_: str) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _signal(_: str) -> None:
    os.kill(os.getppid(), 0)


def _trace(_: str) -> None:
    if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0:  # PTRACE_ATTACH
        raise PermissionError


def _namespace(_: str) -> None:
    if ctypes.CDLL(None).unshare(0x10000000) < 0:
        raise PermissionError


def _read(outside: str) -> None:
    (Path(outside) / "witness").read_bytes()


def _write(outside: str) -> None:
    witness = Path(outside) / "witness"
    try:
        os.truncate(witness, 0)  # which Landlock does not know before Linux 6.2
    except OSError:
        witness.write_bytes(b"")


def _threads(_: str) -> None:
    lock = _thread.allocate_lock()
    lock.acquire()
    _thread.stack_size(1 << 16)
    for _number in range(400):  # not threading's, whose start waits for a thread that may never come to run
        _thread.start_new_thread(lock.acquire, ())


def _memory(_: str) -> None:
    bytearray(1 << 31)


def _file(_: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("large", "wb") as stream:
        stream.truncate(1 << 34)


# What each proves when it fails; the keys are those of isolation.LAYERS.
ACTS: dict[str, Callable[[str], object]] = {
    "fork": _fork,
    "socket": lambda _: socket.socket().close(),
    "signal": _signal,
    "trace": _trace,
    "namespace": _namespace,
    "read": _read,
    "write": _write,
    "processes": lambda _: os.listdir("/proc/1"),
    "rights": lambda _: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)),
    "memory": _memory,
    "file": _file,
    "threads": _threads,
    "world": os.stat,
}


def children() -> list[int]:
    """The processes whose parent this one is, from /proc, which is there wherever this is asked for."""
    me = str(os.getpid())
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                state = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            if state.rpartition(")")[2].split()[1] == me:
                found.append(int(entry.name))
    return found
