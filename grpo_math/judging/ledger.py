"""What judging has cost so far, and when the next request may go out: one small file that all processes share.

Left out: the money. Requests are counted as they go out, tokens as replies come in, so that what is on its way when the
budget is spent is over it by so much.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grpo_math.types import UserError

WIDTH = 128  # bytes of the file: rewritten in one piece, a kill leaves the old or the new one


class BudgetSpent(UserError):
    """The budget is spent. Everything that it paid for is kept."""


@dataclass
class Counts:
    """next: the Unix time from which the next request may go out."""

    requests: int = 0
    tokens: int = 0
    next: float = 0.0


@dataclass(frozen=True)
class Caps:
    """None is no limit. requests_per_minute: of all processes together; evenly spaced. requests, tokens (read and
    written): of all that was ever asked into the cache beside the ledger."""

    requests_per_minute: float | None = None
    requests: int | None = None
    tokens: int | None = None


class Ledger:
    """names: what the user calls the caps on requests and tokens, for messages."""

    def __init__(self, path: Path, caps: Caps, names: tuple[str, str]) -> None:
        self.path, self.caps, self.names = path, caps, names
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def pay(self) -> float:
        """Count a request that is about to go out; seconds that it must wait first. Raises BudgetSpent."""
        with self._counts() as counts:
            spent = ((counts.requests, self.caps.requests), (counts.tokens, self.caps.tokens))
            for (count, cap), name, what in zip(spent, self.names, ("requests", "tokens"), strict=True):
                if cap is not None and count >= cap:
                    raise BudgetSpent(
                        f"the judge's budget is spent: {count:,} {what} of {name}={cap}, with those of earlier calls "
                        f"({self.path}). All replies are kept; raise it, and the same command goes on from here"
                    )
            counts.requests += 1
            if self.caps.requests_per_minute is None:
                return 0.0
            now = time.time()
            turn = max(now, min(counts.next, now + 3600.0))  # a clock that was set back must not stop us for days
            counts.next = turn + 60.0 / self.caps.requests_per_minute
            return turn - now

    def add(self, tokens: int) -> None:
        with self._counts() as counts:
            counts.tokens += tokens

    def counts(self) -> Counts:
        with self._counts() as counts:
            return counts

    def close(self) -> None:
        os.close(self._file)

    @contextmanager
    def _counts(self) -> Iterator[Counts]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            counts = self._read()
            yield counts
            text = json.dumps([counts.requests, counts.tokens, counts.next]).ljust(WIDTH - 1) + "\n"
            os.pwrite(self._file, text.encode(), 0)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _read(self) -> Counts:
        raw = os.pread(self._file, WIDTH, 0)
        if not raw:
            return Counts()
        try:
            requests, tokens, turn = json.loads(raw)
            return Counts(int(requests), int(tokens), float(turn))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self.path} is no ledger of a judge ({error}); delete it, or give another --cache"
            ) from error
