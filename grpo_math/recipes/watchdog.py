"""Every wait has a deadline: a phase that takes too long is named, all stacks are printed, and the process exits.

A hang (a deadlocked worker, a lost peer) otherwise costs the night. What was saved at the last checkpoint stays.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

EXIT_CODE = 70  # EX_SOFTWARE


class Watchdog:
    """`enter` a phase and `leave` it; one that lasts longer than `seconds` ends the process with EXIT_CODE."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._phase: tuple[str, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def enter(self, phase: str) -> None:
        self._phase = (phase, time.monotonic())

    def leave(self) -> None:
        self._phase = None

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 10)):
            phase = self._phase
            if phase is not None and time.monotonic() - phase[1] > self.seconds:
                sys.stderr.write(
                    f"\nerror: phase `{phase[0]}` has taken more than phase_timeout_s={self.seconds:g} seconds; where "
                    "every thread stands follows. The last checkpoint is sound: the same command goes on from it\n"
                )
                sys.stderr.flush()
                faulthandler.dump_traceback(all_threads=True)
                # not sys.exit: the main thread is the one that hangs
                os._exit(EXIT_CODE)
