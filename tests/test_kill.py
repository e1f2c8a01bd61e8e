"""kill -9 at random moments: the run goes on to the same problems, and with the HF engine to the same numbers, bit for
bit.

Most combinations are killed once; GRPO_MATH_KILLS=10 kills each ten times. A kill hits every process of the run at
once, as a power cut does, or a single rank.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from grpo_math import config
from grpo_math.small_model import character_tokenizer, small_model

ROOT = Path(__file__).parents[1]
STEPS = 12
KILLS = int(os.environ.get("GRPO_MATH_KILLS", "0"))
MODEL = config.NewModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, context=128)
ZERO2 = ("backend.name=deepspeed", "backend.deepspeed.zero=2")
ZERO3 = ("backend.name=deepspeed", "backend.deepspeed.zero=3")
# what the other recipes have in place of GRPO's own keys
RECIPES: dict[str, dict[str, object]] = {
    "grpo": {"steps": STEPS, "updates_per_step": 2},
    "rest": {
        "algorithm": "rest_em",
        "rounds": 3,
        "problems": 48,
        "sampling": {"max_tokens": 24},  # few completions of an untrained model end, and only those are imitated
        "thresholds": [0.0],
        "updates": 4,
        "evaluation": {"limit": 8, "n": 1, "k": [1]},
        "tolerated_fall": None,
    },
    "preference": {"algorithm": "iterative_dpo", "online": {"every": 3}, "steps": STEPS},
}
STALLED_S = 240  # a start and a few steps take seconds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("model"), character_tokenizer()
    small_model(MODEL, tokenizer, 0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def write_config(folder: Path, model: Path, recipe: str = "grpo") -> Path:
    verifier = model / "digits.py"
    verifier.write_text(
        '"""Any digit will do."""\n'
        "from grpo_math.types import Verdict\n"
        "EXAMPLES = []\n"
        "def verify(problem, completion):\n"
        "    good = sum(c.isdigit() for c in completion)\n"
        "    return Verdict(float(good > 0), 'correct' if good else 'wrong')\n"
    )
    tree = {
        "run_dir": str(folder / "run"),
        "model": str(model),
        "task": {"name": "arithmetic", "options": {"min_digits": 1, "max_digits": 2}},
        "recipe": recipe,
        "prompts_per_step": 4,
        "group_size": 4,
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine"},
        "sampling": {"max_tokens": 8},
        "checkpoint": {"every": 1},
        "scoring": {"workers": 1},
        "rewards": str(verifier),
        "phase_timeout_s": STALLED_S,
        **RECIPES[recipe],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree))
    return folder / "run.yaml"


def start(path: Path, ranks: int, overrides: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    train = ["-m", "grpo_math", "train", str(path), *overrides]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as stream:
        return subprocess.Popen([sys.executable, *launcher, *train], env=environment, stdout=stream, stderr=stream)


def steps_done(run: Path) -> int:
    try:
        return len((run / "metrics.jsonl").read_bytes().splitlines())
    except FileNotFoundError:
        return 0


def kill(process: subprocess.Popen[bytes], one_rank: bool) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [p for p in family if "grpo_math" in " ".join(p.cmdline()) and p.ppid() == process.pid]
    doomed = ranks[-1:] if one_rank and ranks else [psutil.Process(process.pid), *family]
    for victim in doomed:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait(timeout=STALLED_S)  # with one rank gone the launcher ends the others, and itself
    assert process.returncode != 0
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, [p.cmdline() for p in alive]


def run_with_kills(path: Path, ranks: int, overrides: tuple[str, ...], kills: int, seed: int) -> None:
    run, log = path.parent / "run", path.parent / "log"
    chance = random.Random(seed)
    for number in range(kills + 1):
        before = steps_done(run)
        process = start(path, ranks, overrides, log)
        try:
            last = number == kills
            goal = STEPS if last else min(before + chance.randint(1, 2), STEPS - 1)
            deadline = time.monotonic() + STALLED_S
            # the log is cut back to the checkpoint at the start: a step counts once it is new
            while steps_done(run) < goal or (last and process.poll() is None):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() in (None, 0), log.read_text()
                time.sleep(0.01)
            if not last:
                time.sleep(chance.random() * 0.5)
                if process.poll() is None:
                    kill(process, one_rank=ranks > 1 and chance.random() < 0.5)
        finally:
            if process.poll() is None:
                kill(process, one_rank=False)
    assert process.returncode == 0, log.read_text()


def rows(run: Path, name: str) -> list[dict]:
    parsed = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in parsed]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted((run / "checkpoints" / f"step-{STEPS}").glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(
    ("recipe", "ranks", "overrides", "kills"),
    [
        ("grpo", 1, (), 1),
        ("grpo", 2, ZERO2, 0),
        ("grpo", 2, ZERO3, 1),
        ("grpo", 1, ("rollout.engine=vllm",), 1),
        ("grpo", 2, (*ZERO2, "rollout.engine=vllm"), 0),
        ("grpo", 2, (*ZERO3, "rollout.engine=vllm"), 0),
        ("rest", 1, (), 1),
        ("rest", 2, ZERO2, 0),
        ("preference", 1, (), 0),
        ("preference", 2, ZERO3, 0),
    ],
    ids=[
        *("torch", "zero2", "zero3", "torch-vllm", "zero2-vllm", "zero3-vllm"),
        *("rest-torch", "rest-zero2", "preference-torch", "preference-zero3"),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(recipe, ranks, overrides, kills, model, tmp_path):
    kills = KILLS or kills
    if not kills:
        pytest.skip("only with GRPO_MATH_KILLS=N: the parts of it are killed in the other cases")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        write_config(folder, model, recipe)
    run_with_kills(whole / "run.yaml", ranks, overrides, 0, seed=0)
    run_with_kills(killed / "run.yaml", ranks, overrides, kills, seed=kills)
    same = ("problem",) if "rollout.engine=vllm" in overrides else None
    for name in ("completions.jsonl",) if same else ("metrics.jsonl", "completions.jsonl"):
        one, other = rows(whole / "run", name), rows(killed / "run", name)
        if same:
            one, other = ([{key: row[key] for key in ("step", *same)} for row in part] for part in (one, other))
        assert one == other
    if not same:
        one, other = tensors(whole / "run"), tensors(killed / "run")
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
