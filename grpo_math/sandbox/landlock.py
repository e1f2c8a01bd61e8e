"""A Landlock ruleset for one untrusted program: which folders it may read, and which it may change.

It binds root as it binds others, needs no mounts, and cannot be taken off. It is a file descriptor, built before the
fork or after. Nothing may be executed; where the kernel knows how, TCP is denied (ABI 4), and so are abstract sockets
and signals that lead out of the process (ABI 6).

Left out, because Landlock does not govern them: stat, chdir, readlink, access, chmod, chown, utime and extended
attributes, of any path (seccomp.py stops those that change); file descriptors that are already open; how much is
written. Before ABI 3 (Linux 6.2) truncation is not governed either: there, writes are not wholly confined.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

# the same numbers on every machine that seccomp.py knows
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION, RULE_PATH_BENEATH = 1, 1

# name: (bit, the first ABI that knows it), from linux/landlock.h
RIGHTS = {
    "EXECUTE": (0, 1),
    "WRITE_FILE": (1, 1),
    "READ_FILE": (2, 1),
    "READ_DIR": (3, 1),
    "REMOVE_DIR": (4, 1),
    "REMOVE_FILE": (5, 1),
    "MAKE_CHAR": (6, 1),
    "MAKE_DIR": (7, 1),
    "MAKE_REG": (8, 1),
    "MAKE_SOCK": (9, 1),
    "MAKE_FIFO": (10, 1),
    "MAKE_BLOCK": (11, 1),
    "MAKE_SYM": (12, 1),
    "REFER": (13, 2),
    "TRUNCATE": (14, 3),
    "IOCTL_DEV": (15, 5),
}
# EXECUTE is for execve alone: a shared object is mapped by READ_FILE
READ = frozenset({"READ_FILE", "READ_DIR"})
WRITE = frozenset(RIGHTS) - {"EXECUTE", "MAKE_CHAR", "MAKE_BLOCK", "MAKE_SOCK"}
# the kernel takes no others for a path that is not a folder
OF_A_FILE = frozenset({"EXECUTE", "WRITE_FILE", "READ_FILE", "TRUNCATE", "IOCTL_DEV"})

TCP = (0b11, 4)  # bind and connect; likewise (bits, first ABI)
SCOPES = (0b11, 6)  # abstract unix sockets and signals

_LIBC = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: int | bytes | None) -> int:
    # a bare int would be passed as 32 bits, and leave the rest of its register to chance
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in (number, *arguments)]
    result: int = _LIBC.syscall(*words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result


def abi() -> int:
    """The version of Landlock that this kernel has; 0 where there is none, or it is turned off."""
    try:
        return _call(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    except OSError:
        return 0


def _bits(names: frozenset[str], version: int) -> int:
    return sum(1 << bit for name, (bit, since) in RIGHTS.items() if name in names and since <= version)


def ruleset(read: Sequence[str], write: Sequence[str]) -> int | None:
    """The descriptor, for restrict, of a ruleset under which only these files and folders are read or changed.

    read: paths whose contents may be read and listed. write: paths that may be read, changed, renamed within, linked.
    A path that does not exist is skipped; a symbolic link stands for what it points to. Every right that the kernel
    knows and no path is given is denied. Returns None where there is no Landlock; raises OSError for an unusable path.
    """
    version = abi()
    if version == 0:
        return None
    handled = [_bits(frozenset(RIGHTS), version), *(bits if since <= version else 0 for bits, since in (TCP, SCOPES))]
    # an older kernel, whose struct is shorter, takes the longer one as long as what it does not know is zero
    attributes = struct.pack("=QQQ", *handled)
    rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, names in ((read, READ), (write, WRITE)):
            for path in paths:
                _allow(rules, path, names, version)
    except OSError:
        os.close(rules)
        raise
    return rules


def _allow(rules: int, path: str, names: frozenset[str], version: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
        rights = _bits(names if is_folder else names & OF_A_FILE, version)
        _call(ADD_RULE, rules, RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def restrict(fd: int) -> None:
    """Bind this thread, and all it starts, to a ruleset, for good; the caller closes fd. seccomp.no_new_privs first.

    Raises OSError: EPERM for an ordinary user who has kept new privileges, E2BIG under 16 rulesets already.
    """
    _call(RESTRICT_SELF, fd, 0)
