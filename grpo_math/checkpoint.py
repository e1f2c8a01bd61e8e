"""Checkpoints as folders that are whole or not there: save, find the newest intact one, and the random states.

What is in a checkpoint is the caller's business. The folder is written under another name, put on disk, listed with
sizes and checksums in complete.json, and only then renamed. Left out: repair; a damaged one is named and passed over.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from grpo_math.ranks import Ranks
from grpo_math.types import UserError

ALONE = Ranks()
MANIFEST = "complete.json"
_READ = 1 << 22

log = logging.getLogger(__name__)


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    keep: int,
    use: Callable[[Path], None] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Have `write` fill a folder, make it root/step-N at once, and prune all but the newest `keep` up to it.

    Every rank must call it, and each one's `write` is called with the same folder; the first does all the rest. `use`
    is called with the new folder before older ones are pruned. A checkpoint of the same step is replaced. Where `write`
    or the disk fails the earlier checkpoints stay as they were and nothing of the new one is left; a disk that is full
    or read-only raises UserError, the rest passes through.
    """
    assert keep >= 1, keep
    final, temporary = root / f"step-{step}", root / f".tmp-step-{step}"

    def begin() -> None:
        root.mkdir(parents=True, exist_ok=True)
        _tidy(root)
        temporary.mkdir()

    def finish() -> None:
        _write_manifest(temporary, step)
        if final.exists():  # a folder cannot be renamed onto another; `latest` knows of .old-step-N
            final.rename(root / f".old-step-{step}")
        temporary.rename(final)
        _fsync(root)

    with _nothing_left_of(root, step) if ranks.first else nullcontext():
        ranks.together(lambda: begin() if ranks.first else None)
        ranks.together(lambda: write(temporary))
        ranks.together(lambda: finish() if ranks.first else None)
    if ranks.first:
        if use is not None:
            use(final)
        _discard(root / f".old-step-{step}")
        steps = sorted((n for n in _steps(root) if n <= step), reverse=True)
        for n in steps[keep:]:
            _discard(root / f"step-{n}")
    return final


@contextmanager
def _nothing_left_of(root: Path, step: int) -> Iterator[None]:
    """Where writing fails: remove the half of a checkpoint, put back the one it was to replace, and say what to do."""
    final, temporary, old = root / f"step-{step}", root / f".tmp-step-{step}", root / f".old-step-{step}"
    try:
        yield
    except BaseException as error:
        full = _disk_is_full(root, error)
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        if full or isinstance(error, OSError):
            raise UserError(
                f"the checkpoint of step {step} cannot be written to {root} ({full or error}); the earlier ones are "
                "untouched. Free some space or mend the permissions (or lower checkpoint.keep), then run the same "
                "command again: it continues from the last one"
            ) from error
        raise


def latest(root: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest checkpoint whose files are all as they were saved, None where there is none.

    Every byte is read once. A damaged one is named in a warning and passed over.
    """
    for step in sorted(_steps(root), reverse=True):
        # .old-step-N is whole: a kill between the two renames of `save` leaves it so, and no step-N beside it
        folders = [path for path in (root / f"step-{step}", root / f".old-step-{step}") if path.is_dir()]
        for folder in folders:
            if (found := damage(folder)) is None:
                return step, folder
            log.warning("checkpoint %s is damaged (%s): passed over; delete it to silence this", folder, found)
    return None


def random_states() -> dict[str, Any]:
    """The states of the random generators of Python, numpy and torch (each CUDA device's too), as plain JSON."""
    import torch

    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
        "cuda": [_encode(state.numpy().tobytes()) for state in cuda],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what random_states took. With another number of CUDA devices than then, those keep their own states."""
    import torch

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensor(states["torch"]))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices == len(states["cuda"]):
        if devices:
            torch.cuda.set_rng_state_all([tensor(text) for text in states["cuda"]])
    else:
        log.warning(
            "the checkpoint has the random states of %d CUDA devices, here are %d: the run continues, but not with the "
            "same random numbers",
            len(states["cuda"]),
            devices,
        )


def _encode(state: bytes) -> str:
    return base64.b64encode(state).decode("ascii")


def _steps(root: Path) -> set[int]:
    if not root.is_dir():
        return set()
    matches = (re.fullmatch(r"(?:\.old-)?step-(\d+)", path.name) for path in root.iterdir())
    return {int(match[1]) for match in matches if match}


def _tidy(root: Path) -> None:
    """Remove what killed runs left half-written or half-deleted. The run folder's lock says nobody else is writing."""
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)
    for path in root.glob(".old-step-*"):
        if (final := root / path.name.removeprefix(".old-")).exists():
            shutil.rmtree(path)
        else:
            path.rename(final)


def _discard(folder: Path) -> None:
    """Delete under another name, so that a kill on the way leaves no half of a checkpoint under its own."""
    if folder.exists():
        going = folder.with_name(f".tmp-going-{folder.name}")
        try:
            folder.rename(going)
            shutil.rmtree(going)
        except OSError as error:
            log.warning("the old checkpoint %s cannot be deleted (%s); delete it yourself", folder, error)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _write_manifest(folder: Path, step: int) -> None:
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "crc32": _crc32(path)}
        _fsync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n", encoding="utf-8")
    _fsync(manifest)
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            _fsync(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where it is as it was saved."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, was in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != was["size"]:
                return f"{name} has {size} bytes instead of {was['size']}"
            if _crc32(path) != was["crc32"]:
                return f"{name} has another checksum than when it was saved"
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file cannot be read: {error}"
    return None


def _crc32(path: Path) -> int:
    """Against accidents, not against forgery: more than twice as fast as SHA-256, and as sure for a torn file."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_READ):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_is_full(root: Path, error: BaseException) -> str | None:
    """Torch and safetensors report a full disk as errors of their own types: look at their words, and at the disk."""
    if not isinstance(error, Exception):
        return None
    text = str(error)
    if "No space left" in text or "os error 28" in text:
        return "no space left on the disk"
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        return None
    return f"{free // 1024} kB left on the disk" if free < 1 << 20 else None
