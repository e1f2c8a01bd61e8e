"""Several processes as one: what they tell each other, the same numbers as one process, and an end in good order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from grpo_math.config_file import load_config
from grpo_math.ranks import Ranks, join
from grpo_math.recipes.run import run
from grpo_math.types import UserError
from tests.test_kill import ROOT, ZERO2, start, write_config
from tests.tiny import save_tiny

TALK = """
import sys
from grpo_math.ranks import join, leave
from grpo_math.types import EngineError, PeerFailed

ranks = join(30.0)
items = list(range(7))
assert ranks.gather(ranks.share(items)) == items
assert ranks.gather(["me"] if ranks.first else []) == ["me"]
assert ranks.tell(lambda: ranks.rank) == 0
assert ranks.any(ranks.rank * 15) == 15
line = ranks.apart()
assert line.gather([ranks.rank]) == [0, 1]

def fail(error):
    if ranks.rank == 1:
        raise error

for error, on_others in ((KeyError("k"), PeerFailed), (EngineError("gone"), EngineError)):
    try:
        ranks.together(lambda: fail(error))
    except (type(error), on_others) as seen:
        wanted = type(error) if ranks.rank == 1 else on_others
        assert type(seen) is wanted, seen
        assert ranks.rank == 1 or "rank 1 failed" in str(seen)
    else:
        raise AssertionError("nothing was raised")
assert ranks.gather([1]) == [1, 1]  # the line is whole after a failure
leave()
print("done", flush=True)
"""


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_joined_are_the_whole_in_order(size):
    items = list(range(5))
    assert [item for rank in range(size) for item in Ranks(rank, size).share(items)] == items


def test_alone_everything_is_immediate():
    ranks = Ranks()
    assert ranks.gather([1, 2]) == [1, 2]
    assert ranks.tell(lambda: 3) == 3
    assert ranks.apart() is ranks
    with pytest.raises(KeyError):
        ranks.together(lambda: {}["k"])


def test_half_an_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"LOCAL_RANK, MASTER_ADDR, MASTER_PORT; start the ranks with torchrun"):
        join(1.0)


@pytest.mark.slow
def test_ranks_talk(tmp_path):
    (tmp_path / "talk.py").write_text(TALK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        torchrun(str(tmp_path / "talk.py")), env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count("done") == 2, done.stderr


@pytest.fixture
def path(tmp_path) -> Path:
    return write_config(tmp_path, save_tiny(tmp_path / "model"))


def wait_for(process: subprocess.Popen[bytes], path: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (path.parent / "run" / "checkpoints" / f"step-{step}").exists():
        assert process.poll() is None, (path.parent / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children() if "grpo_math" in " ".join(p.cmdline())]


def rows(run_dir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


@pytest.mark.slow
def test_two_ranks_stopped_and_continued_give_the_numbers_of_one(path, tmp_path):
    """SIGTERM to the launcher reaches all ranks; they finish the same step, save, and the same command goes on. The
    samples, the metrics and the weights are those of plain torch in one process."""
    log = tmp_path / "log"
    process = start(path, 2, ZERO2, log)
    wait_for(process, path, 2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    stopped = rows(tmp_path / "run", "metrics.jsonl")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{stopped}").exists()
    assert start(path, 2, ZERO2, log).wait(timeout=240) == 0, log.read_text()

    cfg = load_config(path, [f"run_dir={tmp_path / 'alone'}"])
    run(cfg)
    one, two = (rows(folder, "completions.jsonl") for folder in (tmp_path / "alone", tmp_path / "run"))
    same = ("step", "problem", "completion", "reward", "reason", "policy_version")
    assert [[row[key] for key in same] for row in one] == [[row[key] for key in same] for row in two]
    assert len({row["completion"] for row in two if row["step"] == 1}) > 8  # the ranks drew different samples
    for a, b in zip(*(rows(folder, "metrics.jsonl") for folder in (tmp_path / "alone", tmp_path / "run")), strict=True):
        kept = {k for k in a.keys() | b.keys() if not k.startswith("time/")}
        assert {k: b.get(k) for k in kept} == pytest.approx({k: a.get(k) for k in kept}, abs=2e-4, nan_ok=True)
    last = f"checkpoints/step-{cfg.steps}/model.safetensors"
    for name, tensor in load_file(tmp_path / "alone" / last).items():
        torch.testing.assert_close(load_file(tmp_path / "run" / last)[name], tensor, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_its_phase_named(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")
    log = tmp_path / "log"
    process = start(path, 2, (*ZERO2, "phase_timeout_s=12", "steps=100000"), log)
    wait_for(process, path, 1)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks_of(process)[1].suspend()
    assert process.wait(timeout=120) != 0
    assert "has taken more than phase_timeout_s=12" in log.read_text()
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "loop.py" in stacks
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


@pytest.mark.slow
def test_ranks_whose_launcher_is_gone_save_and_end(path, tmp_path):
    process = start(path, 2, (*ZERO2, "steps=100000", "checkpoint.every=100000"), tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not rows(tmp_path / "run", "metrics.jsonl"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=90)
    assert not alive, [p.cmdline() for p in alive]
    last = rows(tmp_path / "run", "metrics.jsonl")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last}" / "complete.json").exists()
