"""Have a process end with the one that started it, even while it is stuck in C code. Leaves out how it is started."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import threading

_F_SETSIG = 10  # Linux's, which Python's fcntl does not name


def die_with_parent(lifeline: int) -> None:
    """Have this process group killed when the parent, which holds the other end of this pipe, is gone.

    On Linux the kernel does it: the pipe's hang-up is made to raise SIGKILL in our process group. (PR_SET_PDEATHSIG
    would also strike when the thread that started us ends.)
    """
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        poll = select.poll()
        poll.register(lifeline, select.POLLHUP)
        if poll.poll(0):  # gone already, before the kernel was told
            os.killpg(0, signal.SIGKILL)
        return

    def wait() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
