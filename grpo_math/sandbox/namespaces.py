"""A world of its own for the zygote and its programs: own root, processes, network, users, hostname.

The root holds the interpreter and the system's libraries, read-only, five device files and an empty /tmp. There is no
/proc, no home, no socket, nothing of the machine's. Leaves out what binds a single program (child.py).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo_math.sandbox import kernel

ALL = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
SCRATCH = "/scratch"  # /tmp is a link to it, unless the interpreter lies below /tmp
STDIN = f"{SCRATCH}/.stdin"
LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
LINKED = ("/etc/ld.so.cache",)
DEVICES = ("null", "zero", "full", "random", "urandom")


def readable() -> list[str]:
    """What a program may read: the interpreter it runs on, and what that needs of the system. Real paths and the names
    under which they are known."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    # a prefix that is the whole system, or somebody's home, holds more than Python
    wide = {"/", "/usr", str(Path.home())}
    inner = [f"{path.rstrip('/')}/{name}" for path in prefixes & wide for name in ("lib", "lib64", "bin")]
    linked = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path.startswith("/")]
    given = {*(prefixes - wide), *inner, *LIBRARIES, *LINKED, *linked}
    return sorted(path for path in given | {os.path.realpath(path) for path in given} if os.path.exists(path))


def enter(privileged: bool) -> None:
    """Become process 1 of new namespaces: returns in a child, while this process waits for it and ends as it does.

    privileged: as root, without a user namespace. Raises OSError where the kernel or a container's rules refuse."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(ALL if privileged else ALL | kernel.NEWUSER)
    if not privileged:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    child = os.fork()
    if child:
        _follow(child)
    kernel.die_with_thread(signal.SIGKILL)
    kernel.set_hostname("sandbox")


def _follow(child: int) -> None:
    """Wait for process 1, holding nothing open that would hide its end from its owner."""
    os.closerange(0, 1 << 16)
    status = os.waitpid(child, 0)[1]
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def build_root(paths: Sequence[str]) -> None:
    """Replace the root by one that has `paths`, read-only, and what the module's docstring says. Raises OSError."""
    sources = {path: os.path.realpath(path) for path in _outermost(paths)}  # links lead elsewhere once they are moved
    kernel.mount("none", "/", None, kernel.REC | kernel.PRIVATE)
    # a base to stand on while the old root is still in sight under /old, so that no path of it is hidden by the new one
    kernel.mount("base", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=0755,size=1m")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    kernel.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    kernel.mount("root", "/new", "tmpfs", kernel.NOSUID | kernel.NODEV, "mode=0755,size=1m")
    for path, real in sources.items():
        _bind(f"/old{real}", f"/new{path}")
        kernel.make_read_only(f"/new{path}")
    os.makedirs("/new/dev")
    for name in DEVICES:
        _bind(f"/old/dev/{name}", f"/new/dev/{name}")
    os.symlink(STDIN, "/new/dev/stdin")
    os.symlink(SCRATCH, "/new/dev/shm")
    os.mkdir(f"/new{SCRATCH}")
    if not os.path.exists("/new/tmp"):
        os.symlink(SCRATCH, "/new/tmp")
    os.chdir("/new")
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")
    kernel.mount("none", "/", None, kernel.REMOUNT | kernel.BIND | kernel.RDONLY | kernel.NOSUID | kernel.NODEV)


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another."""
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


def _bind(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        Path(target).touch()
    kernel.mount(source, target, None, kernel.BIND | kernel.REC)
