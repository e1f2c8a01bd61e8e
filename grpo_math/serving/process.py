"""A server's process: started, its words handed on, asked for its health, and ended with everything it started.

Left out: when to start it again (supervisor.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque

TAIL = 40  # lines kept of what it said last
GRACE_S = 10.0  # from being asked to end to being ended


class ServerProcess:
    """A command in a session of its own. Where it has {lifeline} it gets the number of a pipe's reading end, with which
    it ends when this process does, however that ends (lifeline.py)."""

    def __init__(self, name: str, url: str, command: list[str], env: dict[str, str]) -> None:
        self.name, self.url = name, url
        self.started, self.healthy_since = time.monotonic(), 0.0
        self.tail: deque[str] = deque(maxlen=TAIL)
        lifeline, self.kept = os.pipe()
        try:
            self.process = subprocess.Popen(
                [word.replace("{lifeline}", str(lifeline)) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                pass_fds=[lifeline],
                start_new_session=True,
                text=True,
                errors="replace",
            )
        except BaseException:
            os.close(self.kept)
            raise
        finally:
            os.close(lifeline)
        threading.Thread(target=self._hand_on, daemon=True).start()

    def ended(self) -> bool:
        """Whether the server itself has ended; what it started may not have. It is not reaped here, so that its group
        cannot become somebody else's."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, flags) is not None

    def healthy(self) -> bool:
        """Whether it answers and its engine is alive. Remembers since when."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0) as answer:
                ok = answer.status == 200
        except (urllib.error.URLError, OSError, ValueError):
            ok = False
        if ok and not self.healthy_since:
            self.healthy_since = time.monotonic()
        return ok

    def ask_to_end(self) -> None:
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)

    def end(self, by: float) -> str:
        """Wait until `by` (monotonic) for it to end, then kill it and all that it started. Says how it ended."""
        while not self.ended() and time.monotonic() < by:
            time.sleep(0.05)
        if self.process.returncode is None:
            # its leader is running or not yet reaped, so the group is still its own
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.kept)
        code = self.process.returncode
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _hand_on(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.tail.append(line.rstrip())
                sys.stderr.write(f"[{self.name}] {line}")
                sys.stderr.flush()
