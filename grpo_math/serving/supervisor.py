"""Keep servers up: start them, wait until they answer, start again those that end, stop them all together.

Left out: a server that hangs; whoever uses it finds that out and goes to another one (rollout/fleet.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from grpo_math.serving.process import GRACE_S, ServerProcess
from grpo_math.types import EngineError

Start = Callable[[], ServerProcess]
POLL_S = 0.2
ASK_S = 1.0  # between two questions to a server that starts
STEADY_S = 60.0  # a server that has been up for so long has recovered
GIVE_UP_AFTER = 4  # times that a server ends without having recovered in between
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


@dataclass
class Post:
    """One address, and the process that holds it now. deaths: since it was last steady."""

    name: str
    url: str
    start: Start
    process: ServerProcess | None = None
    deaths: int = 0
    again_at: float = 0.0
    asked: float = 0.0
    last_words: list[str] = field(default_factory=list)


class Supervisor:
    """stopped: asked again and again; True ends everything."""

    def __init__(self, posts: list[Post], start_timeout_s: float, stopped: Callable[[], bool]) -> None:
        self.posts, self.start_timeout_s, self.stopped = posts, start_timeout_s, stopped

    def run(self, ready: Callable[[], None]) -> None:
        """Returns when stopped. `ready` is called once, when all servers answer. EngineError: one did not come up in
        the first place, or none is left."""
        try:
            for post in self.posts:
                post.process = post.start()
            while not self.stopped() and not all(p.process and p.process.healthy_since for p in self.posts):
                for post in self.posts:
                    self._wait_for_first(post)
                time.sleep(POLL_S)
            if not self.stopped():
                ready()
            while not self.stopped():
                for post in list(self.posts):
                    self._keep(post)
                time.sleep(POLL_S)
        finally:
            self.stop()

    def stop(self) -> None:
        processes = [post.process for post in self.posts if post.process is not None]
        for process in processes:
            process.ask_to_end()
        by = time.monotonic() + GRACE_S
        for process in processes:
            process.end(by)

    def _wait_for_first(self, post: Post) -> None:
        process = post.process
        assert process is not None
        if trouble := self._trouble(post, process):
            # nothing would be other the next time: a wrong option, no memory, no such model
            raise EngineError(f"server {post.name} did not come up: {trouble}. It said last:\n{_tail(process)}")

    def _keep(self, post: Post) -> None:
        process, now = post.process, time.monotonic()
        if process is None:
            if now >= post.again_at:
                post.process = post.start()
            return
        if process.healthy_since and now - process.healthy_since > STEADY_S:
            post.deaths = 0
        was_up = bool(process.healthy_since)
        if trouble := self._trouble(post, process):
            post.process, post.deaths = None, post.deaths + 1
            if post.deaths >= GIVE_UP_AFTER:
                self._give_up(post, process, trouble)
                return
            pause = min(FIRST_PAUSE_S * 2 ** (post.deaths - 1), LONGEST_PAUSE_S)
            post.again_at = now + pause
            _say(f"server {post.name} {trouble}; starting it again in {pause:g} s")
        elif process.healthy_since and not was_up:
            _say(f"server {post.name} is up again")

    def _trouble(self, post: Post, process: ServerProcess) -> str:
        """What became of a process that is of no use any more, which is then gone; empty where it is well."""
        now = time.monotonic()
        if process.ended():
            return process.end(now)
        if not process.healthy_since and now - post.asked >= ASK_S:
            post.asked = now
            if not process.healthy() and now - process.started > self.start_timeout_s:
                process.end(now)
                return f"did not answer within rollout.server.start_timeout_s={self.start_timeout_s:g} s"
        return ""

    def _give_up(self, post: Post, process: ServerProcess, trouble: str) -> None:
        text = f"server {post.name} {trouble}, {post.deaths} times in a row. It said last:\n{_tail(process)}"
        self.posts.remove(post)
        if not self.posts:
            raise EngineError(f"{text}\nNo server is left")
        _say(f"{text}\nNot starting it again; {len(self.posts)} go on")


def _tail(process: ServerProcess) -> str:
    return "\n".join(f"  {line}" for line in process.tail) or "  (nothing)"


def _say(text: str) -> None:
    sys.stderr.write(f"grpo-math serve: {text}\n")
    sys.stderr.flush()
