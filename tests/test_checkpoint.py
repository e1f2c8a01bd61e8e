"""Checkpoints are whole or not there, whatever kills the run, and damage is found."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo_math import checkpoint
from grpo_math.checkpoint import latest, random_states, restore_random_states, save
from grpo_math.types import UserError


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights.bin").write_bytes(text.encode() * 1000)
        (folder / "state.json").write_text(json.dumps(text))

    return write


def text_of(folder: Path) -> object:
    return json.loads((folder / "state.json").read_text())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_save_find_and_prune(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    assert latest(root) is None
    for step in (2, 4, 10):
        assert save(root, step, writer(f"s{step}"), keep=2) == root / f"step-{step}"
    assert names(root) == ["step-10", "step-4"]  # the newest by number, not by name
    assert latest(root) == (10, root / "step-10")
    manifest = json.loads((root / "step-10" / "complete.json").read_text())
    assert manifest["step"] == 10
    assert set(manifest["files"]) == {"model/weights.bin", "state.json"}
    assert manifest["files"]["model/weights.bin"]["size"] == 3000


def test_the_new_one_is_in_use_before_older_ones_go(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    for step in (1, 2):
        save(tmp_path, step, writer(f"s{step}"), 1, lambda path: seen.append(names(path.parent)))
    assert seen == [["step-1"], ["step-1", "step-2"]]
    assert names(tmp_path) == ["step-2"]


def test_the_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 3, writer("old"), keep=1)
    save(tmp_path, 3, writer("new"), keep=1)
    assert names(tmp_path) == ["step-3"]
    assert text_of(tmp_path / "step-3") == "new"


def test_what_was_just_saved_is_never_pruned(tmp_path: Path) -> None:
    save(tmp_path, 30, writer("damaged"), keep=1)
    save(tmp_path, 20, writer("resumed further back"), keep=1)
    save(tmp_path, 25, writer("on"), keep=1)
    assert names(tmp_path) == ["step-25", "step-30"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: (f / "model" / "weights.bin").write_bytes(b"short"),
            "model/weights.bin has 5 bytes instead of 2000",
        ),
        (lambda f: (f / "model" / "weights.bin").write_bytes(b"X" * 2000), "model/weights.bin has another checksum"),
        (lambda f: (f / "state.json").unlink(), "state.json is missing"),
        (lambda f: (f / "complete.json").unlink(), "it has no complete.json"),
        (lambda f: (f / "complete.json").write_text('{"step": 2, "fil'), "complete.json or a file cannot be read"),
        (lambda f: (f / "complete.json").write_text("[]"), "complete.json or a file cannot be read"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(
    tmp_path: Path, damage: Callable[[Path], object], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, writer("s1"), keep=9)
    save(tmp_path, 2, writer("s2"), keep=9)
    damage(tmp_path / "step-2")
    assert latest(tmp_path) == (1, tmp_path / "step-1")
    assert f"{tmp_path / 'step-2'} is damaged ({says}" in caplog.text


def test_files_beside_the_checkpoints_are_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1, writer("s1"), keep=1)
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-9").write_text("not a folder")
    (tmp_path / ".tmp-step-8").mkdir()
    assert latest(tmp_path) == (1, tmp_path / "step-1")


def test_stale_temporary_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-5" / "deep").mkdir(parents=True)
    save(tmp_path, 5, writer("s5"), keep=1)
    assert names(tmp_path) == ["step-5"]


def test_killed_between_the_two_renames(tmp_path: Path) -> None:
    save(tmp_path, 3, writer("first"), keep=1)
    (tmp_path / "step-3").rename(tmp_path / ".old-step-3")
    assert latest(tmp_path) == (3, tmp_path / ".old-step-3")
    save(tmp_path, 4, writer("next"), keep=2)
    assert names(tmp_path) == ["step-3", "step-4"]
    assert text_of(tmp_path / "step-3") == "first"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError("a bug")])
def test_a_bug_or_an_interrupt_passes_through_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    save(tmp_path, 1, writer("s1"), keep=1)
    for step in (1, 2):
        with pytest.raises(type(error)):
            save(tmp_path, step, write, keep=1)
    assert names(tmp_path) == ["step-1"]
    assert latest(tmp_path) == (1, tmp_path / "step-1")


@pytest.mark.parametrize("place", ["write", "manifest", "rename"])
def test_a_full_disk_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    def write(folder: Path) -> None:
        writer("s2")(folder)
        if place == "write":
            fail()

    save(tmp_path, 1, writer("s1"), keep=1)
    with monkeypatch.context() as patched:
        if place == "manifest":
            patched.setattr(checkpoint, "_write_manifest", fail)
        if place == "rename":
            real = Path.rename
            patched.setattr(Path, "rename", lambda a, b: fail() if a.name.startswith(".tmp") else real(a, b))
        for step in (1, 2):
            with pytest.raises(UserError, match=rf"step {step} cannot be written to .*no space left.*same command"):
                save(tmp_path, step, write, keep=1)
            assert names(tmp_path) == ["step-1"]
    assert text_of(tmp_path / "step-1") == "s1"
    assert latest(tmp_path) == (1, tmp_path / "step-1")


@pytest.mark.parametrize("how", ["bytes", "torch", "safetensors"])
def test_a_really_full_disk(small_disk: Path, how: str) -> None:
    from safetensors.torch import save_file

    def write(folder: Path) -> None:
        table = torch.zeros(200_000)
        if how == "bytes":
            (folder / "w").write_bytes(table.numpy().tobytes())
        elif how == "torch":
            torch.save({"w": table}, folder / "w")  # its own RuntimeError, which does not name the cause
        else:
            save_file({"w": table}, folder / "w")

    save(small_disk, 1, writer("s1"), keep=1)
    with pytest.raises(UserError, match=r"step 2 cannot be written .* left on the disk.*same command"):
        save(small_disk, 2, write, keep=1)
    assert names(small_disk) == ["step-1"]
    assert latest(small_disk) == (1, small_disk / "step-1")
    save(small_disk, 2, writer("s2"), keep=1)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*root"):
        save(tmp_path / "root", 1, writer("s1"), keep=1)


def test_kill_9_at_any_moment_leaves_an_intact_one(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from grpo_math.checkpoint import save
def write(folder):
    for i in range(20):
        (folder / f"f{{i}}").write_bytes(str(step).encode() * 20_000)
for step in range(1, 10_000):
    save(Path({str(tmp_path)!r}), step // 2, write, keep=2)  # every step twice: replacing is killed too
    print(step // 2, flush=True)
"""
    reached = 0
    for delay in (0.0, 0.013, 0.029, 0.041, 0.057, 0.071):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        reached = max([reached, *said])
        found = latest(tmp_path)
        assert found is not None
        assert found[0] >= max(said, default=0)
    save(tmp_path, reached + 100, writer("after"), keep=1)
    assert names(tmp_path) == [f"step-{reached + 100}"]


def test_random_states_go_on_with_the_same_numbers() -> None:
    def draw() -> list[object]:
        return [random.random(), random.gauss(0, 1), np.random.normal(), torch.randn(5).tolist(), torch.rand(1).item()]

    draw()  # so that the second value of a pair of normal ones is waiting in Python's and numpy's states
    states = json.loads(json.dumps(random_states()))
    expected = [draw(), draw()]
    restore_random_states(states)
    assert [draw(), draw()] == expected


def test_another_number_of_devices_is_said(caplog: pytest.LogCaptureFixture) -> None:
    states = random_states()
    restore_random_states({**states, "cuda": [*states["cuda"], ""]})
    assert "not with the same random numbers" in caplog.text
