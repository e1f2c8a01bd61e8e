"""The run folder: one writer, whole lines, a cut that survives kills; and the progress line."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo_math.log import RunFolder
from grpo_math.progress import LOSS_NOTE, Progress, progress_line
from grpo_math.types import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed
    with RunFolder(tmp_path / "runs" / "a", config="seed: 3\n", seed=3) as opened:
        yield opened


def mount(folder: Path, options: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir(exist_ok=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    mount(folder, "size=64k")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def read(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / name).read_text().splitlines()]


# ---- what is written


def test_config_versions_and_seed(folder: RunFolder) -> None:
    assert (folder.path / "config.yaml").read_text() == "seed: 3\n"
    versions = json.loads((folder.path / "versions.json").read_text())
    assert versions["seed"] == 3
    assert versions["packages"]["torch"] == torch.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"grpo-math", "platform", "commit", "command", "started"} <= set(versions)


def test_a_resumed_run_keeps_what_the_first_one_ran_on(folder: RunFolder) -> None:
    folder.close()
    for seed in (4, 5):
        with RunFolder(folder.path, config="", seed=seed):
            pass
    versions = json.loads((folder.path / "versions.json").read_text())
    assert versions["seed"] == 5
    assert [v["seed"] for v in versions["earlier"]] == [3, 4]
    assert "earlier" not in versions["earlier"][1]


def test_metrics_and_completions_lines(folder: RunFolder) -> None:
    folder.log_metrics(
        1, {"reward/mean": torch.tensor(0.5), "n": np.int64(3), "kl/ref": float("nan"), "x": float("inf")}
    )
    folder.log_completions(
        1, [{"text": "a\nb\u2028\ud800", "reward": None, "ids": (1, 2), "at": np.array([1.5, np.nan])}] * 2
    )
    assert read(folder, "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5, "n": 3, "kl/ref": None, "x": None}]
    row = {"step": 1, "text": "a\nb\u2028\ud800", "reward": None, "ids": [1, 2], "at": [1.5, None]}
    assert read(folder, "completions.jsonl") == [row, row]


def test_what_cannot_be_logged_is_an_error_and_leaves_no_line(folder: RunFolder) -> None:
    folder.log_metrics(1, {"a": 1})
    with pytest.raises(TypeError, match="object cannot be logged"):
        folder.log_completions(1, [{"a": 1}, {"a": object()}])
    assert not (folder.path / "completions.jsonl").exists()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder(tmp_path, config="", seed=0) as folder:
        for step in (1, 2, 3):
            folder.log_metrics(step, {"reward/mean": step / 4, "kl/ref": float("nan"), "note": "text"})
    with RunFolder(tmp_path, config="", seed=0) as folder:
        folder.truncate_after(1)
        folder.log_metrics(2, {"reward/mean": 0.75})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.75)]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_without_tensorboard_it_says_so_once(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        folder.log_metrics(step, {"a": 1.0})
    assert caplog.text.count("tensorboard is not installed") == 1
    assert not (folder.path / "tensorboard").exists()


# ---- resuming


def test_truncate_after_a_torn_last_line(folder: RunFolder) -> None:
    for step in (1, 2, 3):
        folder.log_metrics(step, {"a": step})
        folder.log_completions(step, [{"i": 0}, {"i": 1}])
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (folder.path / name).open("ab") as stream:
            stream.write(b'{"step": 4, "te')
    folder.truncate_after(2)
    assert [row["step"] for row in read(folder, "metrics.jsonl")] == [1, 2]
    assert [row["step"] for row in read(folder, "completions.jsonl")] == [1, 1, 2, 2]
    folder.log_metrics(3, {"a": 3})
    folder.truncate_after(3)
    assert [row["step"] for row in read(folder, "metrics.jsonl")] == [1, 2, 3]
    folder.truncate_after(0)
    assert read(folder, "metrics.jsonl") == []


@pytest.mark.parametrize(
    "torn", [b'{"step": 2', b'{"step": 2}', b"\xff\n", b"\0\0\0\0\n", b'{"no": 2}\n', b"[2]\n", b"7\n"]
)
def test_a_torn_line_is_dropped_whatever_is_in_it(folder: RunFolder, torn: bytes) -> None:
    folder.log_metrics(1, {"a": 1})
    with (folder.path / "metrics.jsonl").open("ab") as stream:
        stream.write(torn)
    folder.truncate_after(9)
    assert read(folder, "metrics.jsonl") == [{"step": 1, "a": 1}]


def test_opening_mends_a_torn_end_before_anything_is_appended(folder: RunFolder) -> None:
    folder.log_metrics(1, {"a": 1})
    folder.close()
    with (folder.path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 2, "a')
    with RunFolder(folder.path, config="", seed=0) as again:
        again.log_metrics(2, {"a": 2})
        assert read(again, "metrics.jsonl") == [{"step": 1, "a": 1}, {"step": 2, "a": 2}]


# ---- disks and locks


def test_a_full_disk_leaves_whole_lines(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.log_metrics(1, {"a": 1})
    real = os.write
    calls = []

    def short_then_full(descriptor: int, block: bytes) -> int:
        calls.append(len(block))
        if len(calls) == 1:
            return real(descriptor, block[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short_then_full)
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left .*same command again"):
            folder.log_metrics(2, {"a": 2})
    assert len(calls) == 2
    assert read(folder, "metrics.jsonl") == [{"step": 1, "a": 1}]


def test_a_short_write_goes_on(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, block: real(descriptor, block[:7]))
        folder.log_metrics(1, {"a": "x" * 100})
    assert read(folder, "metrics.jsonl") == [{"step": 1, "a": "x" * 100}]


# TensorBoard writes from a thread of its own, which the full disk ends too
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_really_full_disk(disk: Path) -> None:
    with RunFolder(disk / "run", config="", seed=0) as folder:
        steps = iter(range(1, 1000))

        def fill() -> None:
            for step in steps:
                folder.log_completions(step, [{"text": "x" * 1000}] * 7)

        with pytest.raises(UserError, match=r"completions\.jsonl cannot be written \(No space left"):
            fill()
        assert len(read(folder, "completions.jsonl")) == 7 * (next(steps) - 2)  # the failed step left nothing
        folder.truncate_after(1)  # works on the full disk
        folder.log_completions(2, [{"text": "y"}])
        assert len(read(folder, "completions.jsonl")) == 8


def test_a_full_disk_at_the_start(disk: Path) -> None:
    (disk / "big").write_bytes(b"x" * (64 * 1024 - 4096))
    with pytest.raises(UserError, match=r"run_dir=.*run cannot be written \(No space left"):
        RunFolder(disk / "run", config="x" * 9000, seed=0)
    assert [p.name for p in (disk / "run").iterdir()] == [".lock"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # tensorboard's own thread
def test_a_full_disk_under_tensorboard_alone(disk: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").symlink_to(disk)
    with RunFolder(run, config="", seed=0) as folder:

        def fill() -> None:
            for step in range(1, 1000):
                folder.log_metrics(step, {f"m{i}": 0.5 for i in range(50)})

        with pytest.raises(UserError, match=r"tensorboard cannot be written .*same command"):
            fill()


def test_a_read_only_place(tmp_path: Path) -> None:
    mount(tmp_path / "ro", "ro")
    try:
        with pytest.raises(
            UserError, match=r"run_dir=.*x cannot be written \(Read-only file system\); .*another run_dir"
        ):
            RunFolder(tmp_path / "ro" / "x", config="", seed=0)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "ro"], check=True)


def test_a_run_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(UserError, match="cannot be written"):
            RunFolder(path, config="", seed=0)


def other_process(folder: Path, then: str) -> subprocess.Popen[str]:
    code = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from grpo_math.log import RunFolder
try:
    run = RunFolder({str(folder)!r}, config="", seed=0)
except ValueError as error:
    print(error)
else:
    {then}
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_one_writer_at_a_time(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="in use by this very process"):
        RunFolder(folder.path, config="", seed=0)
    (folder.path / "config.yaml").write_text("mine")
    out, _ = other_process(folder.path, "print('got in')").communicate()
    assert f"is in use by process {os.getpid()} on " in out
    assert "another run_dir" in out
    assert (folder.path / "config.yaml").read_text() == "mine"
    folder.close()
    assert other_process(folder.path, "print('got in')").communicate()[0] == "got in\n"


def test_a_killed_run_leaves_no_lock_though_its_forked_workers_live_on(tmp_path: Path) -> None:
    then = "print(worker, flush=True) if (worker := os.fork()) else 0; time.sleep(60)"
    process = other_process(tmp_path, then)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunFolder(tmp_path, config="", seed=0):
            os.kill(worker, 0)  # it does live on
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


# ---- the terminal

METRICS = {
    "reward/mean": 0.62,
    "reward/accuracy": 0.6,
    "kl/ref": 0.0012,
    "policy/entropy": 0.41,
    "completion/length": 38.2,
    "groups/no_signal": 0.12,
    "time/generate": 0.8,
    "time/verify": 0.1,
    "time/update": 1.2,
    "loss/total": 0.0,
}


def test_progress_line() -> None:
    assert progress_line(12, 100, METRICS, elapsed=12 * 130 / 88) == (
        "step 12/100  reward 0.62  acc 0.60  kl 0.0012  entropy 0.41  length 38  no-signal 12%  "
        "gen 0.8s verify 0.1s update 1.2s  eta 2m10s"
    )


def test_progress_line_leaves_out_what_is_off_and_shows_what_has_no_value() -> None:
    without_kl = {k: v for k, v in METRICS.items() if k != "kl/ref"}
    assert "kl" not in progress_line(1, 2, without_kl, 1.0)
    assert "reward -  acc -" in progress_line(
        1, 2, METRICS | {"reward/mean": None, "reward/accuracy": float("nan")}, 1.0
    )
    assert progress_line(3, 9, {"loss/total": 1.2345}, 3.0) == "step 3/9  loss 1.234  eta 6s"
    assert progress_line(9, 9, {}, 3.0) == "step 9/9"


def test_time_left_counts_only_this_processs_steps() -> None:
    assert progress_line(60, 100, {}, elapsed=20, done=10).endswith("eta 1m20s")
    assert progress_line(1, 10_001, {}, elapsed=1).endswith("eta 2h46m")


def test_a_log_gets_a_line_per_step_and_one_note() -> None:
    stream = io.StringIO()
    with Progress(3, stream=stream) as progress:
        for step in (1, 2, 3):
            progress.step(step, METRICS)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", LOSS_NOTE, "step 2/3", "step 3/3"]
    assert "gradient is not 0" in LOSS_NOTE


@pytest.mark.parametrize(
    "metrics",
    [
        METRICS | {"loss/total": 0.4},
        {"loss/total": 0.0},
        METRICS | {"groups/no_signal": 1.0},
        {name: value for name, value in METRICS.items() if name != "loss/total"},
    ],
    ids=["a loss", "no reward", "no signal", "no update of the policy"],
)
def test_no_note_where_the_loss_is_not_0_or_nothing_is_rewarded(metrics: dict[str, float]) -> None:
    stream = io.StringIO()
    with Progress(3, stream=stream) as progress:
        progress.step(1, metrics)
    assert "note" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_changes() -> None:
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as stream, Progress(2, stream=stream) as progress:
        for step in (1, 2):
            progress.step(step, METRICS)
    blocks = []
    with suppress(OSError):  # EIO: everything that the closed end had written was read
        while block := os.read(parent, 1 << 16):
            blocks.append(block)
    os.close(parent)
    shown = b"".join(blocks).decode()
    assert "step 1/2" in shown
    assert "no-signal 12%\r\n" in shown or "no-signal 12%  gen" in shown  # broken between parts
    assert "step 2/2" in shown
    assert "note: a loss of 0" in shown
    assert "\x1b[2K" in shown  # the line is erased and written again
