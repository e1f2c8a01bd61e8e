"""Every wait has a deadline: a phase that takes too long is named, all stacks are written down, and the process exits.

A hang (a deadlocked worker, a lost peer) otherwise costs the night. What was saved at the last checkpoint stays, and
where the hang has not touched the weights the run is saved as it was before the step.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

EXIT_CODE = 70  # EX_SOFTWARE
RESCUE_S = 120.0  # longest that saving may take in the face of a hang


class Watchdog:
    """`enter` a phase and `leave` it; one that lasts longer than `seconds` ends the process with EXIT_CODE.

    Each thread has a phase of its own. stacks: the file that gets every thread's stack. rescue: saves what it can and
    says what it did; called in a thread of its own, which is not waited for longer than RESCUE_S."""

    def __init__(self, seconds: float, stacks: Path | None = None, rescue: Callable[[], str] | None = None) -> None:
        self.seconds, self.stacks, self.rescue = seconds, stacks, rescue
        self._phases: dict[int, tuple[tuple[str, float], ...]] = {}  # of each thread, one within another
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
        me = threading.get_ident()
        self._phases[me] = (*self._phases.get(me, ()), (phase, time.monotonic()))

    def leave(self) -> None:
        me = threading.get_ident()
        self._phases[me] = self._phases[me][:-1]

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 10)):
            now = time.monotonic()
            late = [one for phases in list(self._phases.values()) for one in phases if now - one[1] > self.seconds]
            if late:
                self._end(late[-1][0])  # the innermost says most

    def _end(self, phase: str) -> None:
        sys.stderr.write(
            f"\nerror: phase `{phase}` has taken more than phase_timeout_s={self.seconds:g} seconds; where every "
            "thread stands follows. The last checkpoint is sound: the same command goes on from it\n"
        )
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        if self.stacks is not None:
            self._write_stacks(self.stacks, phase)
        if self.rescue is not None:
            saving = threading.Thread(target=self._save, args=(self.rescue,), name="rescue", daemon=True)
            saving.start()
            saving.join(RESCUE_S)
        # not sys.exit: the main thread is the one that hangs
        os._exit(EXIT_CODE)

    def _write_stacks(self, path: Path, phase: str) -> None:
        try:
            with path.open("w", encoding="utf-8") as stream:
                stream.write(f"phase `{phase}` took more than {self.seconds:g} seconds\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
        except OSError as error:
            sys.stderr.write(f"{path} cannot be written: {error.strerror}\n")

    def _save(self, rescue: Callable[[], str]) -> None:
        sys.stderr.write(rescue() + "\n")
        sys.stderr.flush()
