"""What an evaluation has done so far, so that an interruption loses nothing that was sampled.

A line for each block that a sampler gave, for each that was judged and for each that a reward model scored, whole or
not at all: a line that was cut off by a kill is dropped, and what it held is done again. Gone once results.json is
there.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_math.config_file import flat
from grpo_math.evaluation.sampler import Answered, Sample
from grpo_math.types import FinishReason, UserError, Verdict

NAME = "journal.jsonl"

Block = list[Answered]
JudgedBlock = list[tuple[int, list[Verdict]]]


class Journal:
    """request: all that decides what is sampled and how it is judged, as plain JSON. A journal of another request is
    refused, or with `fresh` discarded. samples, verdicts: what there is already, by task and by number of the problem.
    scores: the same of reward models, (digest of the model, task) first. seconds: that the samples of each task took.
    Holds the folder: a second one is refused until this one is closed."""

    def __init__(self, folder: Path, request: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = folder / NAME
        self.samples: dict[str, dict[int, list[Sample]]] = {}
        self.verdicts: dict[str, dict[int, list[Verdict]]] = {}
        self.scores: dict[tuple[str, str], dict[int, list[Verdict]]] = {}
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()  # one thread samples, another judges
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fresh:
                os.ftruncate(self._file, 0)
            whole = self._read(request)
            os.ftruncate(self._file, whole)
            os.lseek(self._file, 0, os.SEEK_END)
        except BlockingIOError as error:
            os.close(self._file)
            raise UserError(f"--out {folder}: another evaluation writes there now; give another --out") from error
        except OSError as error:
            raise self._unwritable(error) from error
        except UserError:
            os.close(self._file)
            raise
        if not whole:
            self._append({"request": request})

    def sampled(self, task: str, block: Block, seconds: float) -> None:
        # with the disk's word for it: this is what took the time
        self._append({"task": task, "seconds": seconds, "sampled": [[i, [_row(s) for s in some]] for i, some in block]})
        self._take_samples(task, block, seconds)

    def judged(self, task: str, block: JudgedBlock) -> None:
        self._append({"task": task, "judged": [[i, [asdict(v) for v in some]] for i, some in block]})
        self.verdicts.setdefault(task, {}).update(block)

    def scored(self, model: str, task: str, block: JudgedBlock) -> None:
        self._append({"task": task, "model": model, "scored": [[i, [asdict(v) for v in some]] for i, some in block]})
        self.scores.setdefault((model, task), {}).update(block)

    def close(self) -> None:
        os.close(self._file)

    def remove(self) -> None:
        self.path.unlink()
        self.close()

    def _take_samples(self, task: str, block: Block, seconds: float) -> None:
        self.samples.setdefault(task, {}).update(block)
        self.seconds[task] = self.seconds.get(task, 0.0) + seconds

    def _append(self, line: Mapping[str, Any]) -> None:
        rest = memoryview(json.dumps(line).encode() + b"\n")
        with self._lock:
            start = os.lseek(self._file, 0, os.SEEK_CUR)
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError as error:
                os.ftruncate(self._file, start)
                os.lseek(self._file, start, os.SEEK_SET)
                raise self._unwritable(error) from error

    def _read(self, request: Mapping[str, Any]) -> int:
        """Takes what the file has; returns the bytes of its whole lines."""
        with os.fdopen(os.dup(self._file), "rb") as stream:
            content = stream.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                self._take(line, request)
            except (ValueError, KeyError, TypeError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"{self.path}:{number} is no line of a journal ({error!r}); give --fresh to sample anew, or "
                    "another --out"
                ) from error
        return whole

    def _take(self, line: dict[str, Any], request: Mapping[str, Any]) -> None:
        if "request" in line:
            refuse_other(line["request"], request, self.path.parent)
        elif "sampled" in line:
            block = [(i, [_sample(*row) for row in rows]) for i, rows in line["sampled"]]
            self._take_samples(line["task"], block, line["seconds"])
        elif "scored" in line:
            self.scores.setdefault((line["model"], line["task"]), {}).update(_verdicts(line["scored"]))
        else:
            self.verdicts.setdefault(line["task"], {}).update(_verdicts(line["judged"]))

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} cannot be written ({error.strerror or error}); free some space on its disk, then run the "
            "same command again: it goes on from here"
        )


def _row(sample: Sample) -> tuple[Any, ...]:
    said = sample.text, sample.tokens, sample.finish_reason, sample.failed
    if sample.token_ids is None or sample.logprobs is None:
        return said
    return *said, sample.token_ids.tolist(), sample.logprobs.tolist()


def _sample(
    text: str,
    tokens: int | None,
    finish_reason: FinishReason,
    failed: str | None,
    token_ids: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
) -> Sample:
    """Of a row of `_row`."""
    sample = Sample(text, tokens, finish_reason, failed)
    if token_ids is None or logprobs is None:
        return sample
    return replace(sample, token_ids=array("i", token_ids), logprobs=array("d", logprobs))


def _verdicts(rows: Sequence[tuple[int, Sequence[dict[str, Any]]]]) -> dict[int, list[Verdict]]:
    return {i: [_verdict(row) for row in some] for i, some in rows}


def _verdict(row: dict[str, Any]) -> Verdict:
    steps, tests = row["step_rewards"], row["tests"]
    return Verdict(
        row["reward"],
        row["reason"],
        row["detail"],
        row["answer"],
        None if steps is None else tuple((int(end), float(reward)) for end, reward in steps),
        None if tests is None else tuple(tests),
    )


def refuse_other(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where a folder's results are those of another request, with the keys that differ."""
    before, after = flat(then), flat(now)
    differing = [
        f"  {key}: {before.get(key, '(not there)')!s:.100} -> {after.get(key, '(not there)')!s:.100}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differing:
        raise UserError(
            f"--out {folder} holds the results of another command, which differs in\n" + "\n".join(differing) + "\n"
            "give another --out, or --fresh to discard what is there"
        )
