"""What becomes of a freshly forked process before the program runs in it: its limits, its rights, its descriptors.

Leaves out the program (program.py) and whoever watches from outside (zygote.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import resource
import signal
import socket
from dataclasses import dataclass
from typing import Any, NoReturn

from grpo_math.sandbox import kernel, landlock, program, seccomp, wire

DEV_STDIN = "/dev/stdin"
CHANNEL = 3  # the descriptor over which a program answers
MAX_FILES = 256
STACK_MB = 64
MAX_THREADS = 128


@dataclass(frozen=True)
class Layers:
    """What holds a program here, decided once by the zygote. uid: whom to become, None to stay; rules: Landlock's."""

    uid: int | None = None
    rules: int | None = None
    filter: bool = False
    threads: bool = False  # whether a limit of processes binds this user


@dataclass(frozen=True)
class Order:
    """How to run one program. stdio: as a script over the standard streams, else it answers calls on CHANNEL."""

    stdio: bool
    cpu_s: float
    wall_s: float
    memory_mb: int
    output_mb: int


def become(order: Order, layers: Layers, scratch: str, fds: list[int], complain: int, parent: int) -> NoReturn:
    """Run the program that comes over the descriptors. fds: [channel], or [source, stdin, stdout, stderr].

    complain: a pipe to the zygote, closed before the program runs. What is written there is the machine's failure."""
    try:
        try:
            wall_in(layers)
            os.chdir(scratch)
            source = _take(order, fds, complain)
            os.environ.update(HOME=scratch, TMPDIR=scratch)
            os.setsid()
            limit(order, layers)
            confine(layers, parent)
        except BaseException as error:  # whatever it is, the program has not begun
            os.write(complain, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os.close(complain)
        atexit._clear()
        random.seed(0)
        if source is not None:
            program.run_script(source)
        program.Session(socket.socket(fileno=CHANNEL)).run()
    except wire.WireError:
        os._exit(0)  # the tests hung up: all is said
    finally:
        os._exit(70)


def _take(order: Order, fds: list[int], kept: int) -> str | None:
    """Put the descriptors in their places and close all others but `kept`. Returns the source of a script."""
    if order.stdio:
        source = os.fdopen(fds[0], "rb").read().decode("utf-8", "surrogatepass")
        if DEV_STDIN in source and os.path.lexists(DEV_STDIN):
            _copy(fds[1], os.readlink(DEV_STDIN))
        for place, fd in enumerate(fds[1:]):
            os.dup2(fd, place)
        _close_from(3, kept)
        return source
    null = os.open(os.devnull, os.O_RDWR)
    channel = os.dup(fds[0]) if fds[0] <= CHANNEL else fds[0]
    for place in (0, 1, 2):
        os.dup2(null, place)
    os.dup2(channel, CHANNEL)
    _close_from(CHANNEL + 1, kept)
    return None


def _copy(fd: int, path: str) -> None:
    """Where there is no /proc to find the descriptor by, /dev/stdin leads to this file."""
    with contextlib.suppress(OSError), open(path, "wb") as file:
        file.write(os.pread(fd, os.fstat(fd).st_size, 0))


def _close_from(first: int, kept: int) -> None:
    os.closerange(first, kept)
    os.closerange(max(first, kept + 1), 1 << 16)


def wall_in(layers: Layers) -> None:
    """Out of sight with all files but those of the rules. First of all: the rules are a descriptor, soon closed."""
    if layers.rules is not None:
        seccomp.no_new_privs()
        landlock.restrict(layers.rules)


def limit(order: Order, layers: Layers) -> None:
    """What the process may use. Raises OSError, as all here do for what is asked for and fails."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, int(order.cpu_s) + 2)  # the zygote looks closer; this is for when it cannot
    _limit(resource.RLIMIT_FSIZE, order.output_mb << 20)
    _limit(resource.RLIMIT_NOFILE, MAX_FILES)
    _limit(resource.RLIMIT_STACK, STACK_MB << 20)  # of the main thread; recursion in C is deep in honest programs
    _limit(resource.RLIMIT_AS, order.memory_mb << 20)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    if layers.threads:
        _limit(resource.RLIMIT_NPROC, MAX_THREADS)


def confine(layers: Layers, parent: int) -> None:
    """What the process may do, from here on and for good. parent: the zygote's id, as this process sees it."""
    if layers.uid is not None:
        os.setgroups([])
        os.setresgid(layers.uid, layers.uid, layers.uid)
        os.setresuid(layers.uid, layers.uid, layers.uid)
    kernel.drop_capabilities()
    kernel.die_with_thread(signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)
    kernel.show_memory()  # to the zygote, which counts what it holds open; other programs have no way to look
    if layers.filter:
        seccomp.no_new_privs()
        seccomp.install(seccomp.filter_program(os.getpid()))


def _limit(what: int, value: Any) -> None:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(what, (value, value))
