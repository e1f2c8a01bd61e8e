"""SIGINT, SIGTERM and SIGHUP while training: noted, and acted on after the step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# A signal so soon after the first is no second thought of anybody's: the death of a launcher is told once for each of
# its threads, and a launcher that is told to end passes that on to ranks that the terminal has told already.
ECHO_S = 5.0 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0.2


@dataclass
class StopSignal:
    signal: int = 0
    since: float = 0.0


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """SIGINT, SIGTERM and SIGHUP are noted; the loop looks after each step. A second one stops without saving."""
    stop = StopSignal()

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if stop.signal:
            if now - stop.since > ECHO_S:
                raise KeyboardInterrupt
            return
        stop.signal, stop.since = number, now
        # os.write, not print: the signal may have come in the middle of one
        os.write(2, b"\nfinishing this step, then saving; once more to leave at once\n")

    # a closed terminal is an end like any other, unless nohup has said that it is none
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
