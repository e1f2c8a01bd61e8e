"""Replies of judges on disk: a line of JSON each, only ever added to, by any number of processes at once.

A line that a kill has torn is skipped, and the next writer begins a new one. In memory is only where each reply stands.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_math.judging.question import Reply
from grpo_math.types import UserError

REPLIES, LEDGER = "replies.jsonl", "ledger.json"
BLOCK = 1 << 20


class Cache:
    def __init__(self, folder: Path) -> None:
        self.path = folder / REPLIES
        self._places: dict[bytes, tuple[int, int]] = {}  # key -> offset and length of its line
        self._read_to = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._unusable(error) from error
        self._take_new()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Reply | None:
        """The reply to a question, which another process may have just put there."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            self._take_new()
            place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        return reply_of(json.loads(os.pread(self._file, place[1], place[0])))

    def put(self, key: str, reply: Reply) -> None:
        """With the disk's word for it: replies are what took the time and the money."""
        line = json.dumps({"key": key, **asdict(reply)}).encode() + b"\n"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                end = os.fstat(self._file).st_size
                if end and os.pread(self._file, 1, end - 1) != b"\n":  # torn by a kill
                    line = b"\n" + line
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.fdatasync(self._file)
        except OSError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        os.close(self._file)

    def _take_new(self) -> None:
        """The whole lines that were added since it was read last."""
        size = os.fstat(self._file).st_size
        tail = b""
        while self._read_to + len(tail) < size:
            block = os.pread(self._file, BLOCK, self._read_to + len(tail))
            if not block:
                return
            *lines, tail = (tail + block).split(b"\n")
            for line in lines:
                if (key := _key(line)) is not None:
                    self._places[key] = (self._read_to, len(line))
                self._read_to += len(line) + 1

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: the judge's replies cannot be kept there ({error.strerror or error}); free some space on "
            "its disk, or give another --cache. What is there stays"
        )


def _key(line: bytes) -> bytes | None:
    """None for a torn line."""
    try:
        row: Any = json.loads(line)
        reply_of(row)
        return bytes.fromhex(row["key"])
    except (ValueError, KeyError, TypeError):
        return None


def reply_of(row: dict[str, Any]) -> Reply:
    """One that did not fail: only those are kept."""
    top = tuple((str(token), float(logprob)) for token, logprob in row["top"])
    return Reply(str(row["text"]), top, int(row["tokens"]), bool(row["cut"]), None)
