"""The few calls of the Linux kernel that Python's standard library lacks: namespaces, mounts, capabilities."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_CAPABILITY_VERSION_3 = 0x20080522
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

# made once, before the fork: every new type costs a child the pages that it is written to
_CAPABILITIES_OF_SELF = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
_NO_CAPABILITIES = bytes(24)
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Raises OSError, as all here do."""
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def unmount(target: str) -> None:
    _checked(_libc.umount2(os.fsencode(target), DETACH), f"unmount {target}")


def make_read_only(target: str) -> None:
    """The mount and all below it. Kernels before 5.12 do the top one only."""
    attributes = (ctypes.c_uint64 * 4)(RDONLY | NOSUID | NODEV, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, ctypes.byref(attributes), size
    )
    if result < 0:
        kept = os.statvfs(target).f_flag & NOEXEC  # a flag that was there may not be taken away
        mount("none", target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | kept)


def pivot_root(new: str, old: str) -> None:
    number = _PIVOT_ROOT[platform.machine()]
    _checked(_libc.syscall(number, os.fsencode(new), os.fsencode(old)), "pivot_root")


def set_hostname(name: str) -> None:
    _checked(_libc.sethostname(name.encode(), len(name)), "sethostname")


def drop_capabilities() -> None:
    """All of them, for good: nothing can be executed that would bring one back."""
    _checked(_libc.capset(_CAPABILITIES_OF_SELF, _NO_CAPABILITIES), "capset")


def die_with_thread(signal: int) -> None:
    """Receive `signal` when the thread that started this process ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def show_memory() -> None:
    """The contrary of hide_memory, which children inherit."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def hide_memory() -> None:
    """Have other processes of this user neither trace this one nor read its memory."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
