"""The folder that programs may write in: has it too much in it, and how is it emptied.

Whatever a program left there is hostile: deep, closed, full of links. Leaves out where the folder is (zygote.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator

MEGABYTES, FILES = 64, 4096


def too_much(folder: str, pid: int) -> bool:
    """Whether a folder that no file system limits holds more than it should, files without a name included."""
    files = size = 0
    folders = [folder]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if files > FILES:
                        return True
    except FileNotFoundError:  # gone since it was listed
        pass
    except OSError:  # deeper than a path can tell, or closed to us: nothing that an honest program needs
        return True
    return size + sum(_unlinked(f"/proc/{pid}/fd")) > MEGABYTES << 20


def _unlinked(descriptors: str) -> Iterator[int]:
    """Bytes of each open file that has no name any more."""
    with contextlib.suppress(OSError):  # a process that has just ended has none that we may see
        for name in os.listdir(descriptors):
            found = os.stat(f"{descriptors}/{name}")
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                yield found.st_blocks * 512


def remove(folder: str) -> None:
    """A folder and all in it, or what stands in its place."""
    with contextlib.suppress(OSError):
        if os.path.islink(folder) or not os.path.isdir(folder):
            os.unlink(folder)
        else:
            empty(folder)
            os.rmdir(folder)


def empty(folder: str) -> None:
    """All that is in a folder, however deep and however closed, without following a link. What is found in an inner
    folder is moved up before its own content is looked at, so that no path gets long."""
    names = itertools.count()
    waiting = [folder]
    while waiting:
        at = waiting.pop()
        for path, is_folder in _entries(at):
            with contextlib.suppress(OSError):
                if not is_folder:
                    os.unlink(path)
                    continue
                os.chmod(path, stat.S_IRWXU)
                up = path if at == folder else os.path.join(folder, f".grpo-math-{next(names)}")
                os.rename(path, up)
                waiting.append(up)
        if at != folder:
            with contextlib.suppress(OSError):
                os.rmdir(at)


def _entries(folder: str) -> list[tuple[str, bool]]:
    """(path, whether it is a folder and no link to one) of what is in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return []
