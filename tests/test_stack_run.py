"""Runs with vLLM in the training process, and what a run may change between its parts."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from grpo_math.config import LearnedReward, Reward
from grpo_math.config_file import dump_config, load_config
from grpo_math.recipes.run import run
from grpo_math.recipes.same_run import fingerprint, refuse_another_run
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import UserError
from tests.test_kill import MODEL, ROOT, write_config

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, tokenizer = tmp_path / "model", character_tokenizer()
    small_model(MODEL, tokenizer, 0).save_pretrained(model)
    tokenizer.save_pretrained(model)
    return write_config(tmp_path, model)


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path.parent / "run" / "metrics.jsonl").read_text().splitlines()]


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("how", ["not asked", "asked and not done"])
def test_a_sync_that_is_skipped_stops_the_run_in_the_next_step(path, how, monkeypatch):
    """Not asked: the version shows it. Asked, and vLLM says that it is done: the log-probabilities show it."""
    from grpo_math.recipes.grpo import GRPO
    from grpo_math.rollout.vllm_local import VLLMEngine

    cfg = load_config(path, ["rollout.engine=vllm", "optimizer.learning_rate=1e-2", "steps=6"])
    if how == "not asked":
        sync = GRPO.sync
        monkeypatch.setattr(GRPO, "sync", lambda self, step: None if step == 2 else sync(self, step))
        message = r"step 3: 16 of 16 completions .* weights of step 1, 1 updates behind, .*staleness=0"
    else:
        take = VLLMEngine._take_model
        monkeypatch.setattr(VLLMEngine, "_take_model", lambda self, w: None if self.version == 1 else take(self, w))
        message = r"step 3: the sampler's log-probabilities differ from the trainer's"
    with pytest.raises(RuntimeError, match=message):
        run(cfg)
    assert [row["step"] for row in metrics(path)] == [1, 2]
    assert all(row["sampler/gap"] < 1e-4 for row in metrics(path))


@needs_vllm
@pytest.mark.slow
def test_prompts_that_the_sampler_cannot_read_are_passed_over_and_counted(path):
    """vLLM may be started for less than the model's context, which takes less memory."""
    template = "task.template=" + "x" * 51 + "{question}"
    changes = ["rollout.engine=vllm", "rollout.vllm.options.max_model_len=64", "steps=2", template]
    run(load_config(path, changes))
    assert metrics(path)[-1]["prompts/too_long"] > 0
    assert metrics(path)[-1]["completion/count"] == 16


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"backend.deepspeed.zero": 3, "backend.gradient_checkpointing": True}, True),
        ({"rollout.server.patience_s": 5.0, "rollout.max_rows": 4}, True),
        ({"rollout.engine": "vllm"}, False),
        ({"model.lora.rank": 4}, False),
    ],
)
def test_what_may_change_between_the_parts_of_a_run(path, changes, free):
    cfg = load_config(path)
    run_dir = Path(cfg.run_dir)
    (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(cfg))
    changed = load_config(path, [f"{key}={yaml.safe_dump(value).split()[0]}" for key, value in changes.items()])
    if free:
        refuse_another_run(changed, fresh=False)
    else:
        with pytest.raises(UserError, match=next(iter(changes))):
            refuse_another_run(changed, fresh=False)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"device": "cpu", "offload": True, "micro_batch_tokens": 99}, None),
        ({"url": "http://localhost:8001"}, None),
        ({"weight": 0.5}, r"rewards.1.weight: was 1.0, now 0.5\n"),
        ({"model": "e"}, r"rewards.1.model: was d, now e\n"),
    ],
)
def test_a_reward_model_may_be_scored_elsewhere_when_a_run_goes_on(path, own, says):
    """Its place is not part of what the run is; what it rewards is."""
    cfg, changed = (load_config(path).model_copy(update={"rewards": with_model(given)}) for given in ({}, own))
    run_dir = Path(cfg.run_dir)
    (run_dir / "checkpoints" / "step-1").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(cfg))
    if says is None:
        refuse_another_run(changed, fresh=False)
        assert fingerprint(changed) == fingerprint(cfg)
    else:
        with pytest.raises(UserError, match=says):
            refuse_another_run(changed, fresh=False)
        assert fingerprint(changed) != fingerprint(cfg)


def with_model(own: dict) -> list[Reward | LearnedReward]:
    return [Reward(verifier="math"), LearnedReward(model="d").model_copy(update=own)]


@pytest.mark.slow
def test_a_phase_within_another_does_not_end_the_others_deadline(tmp_path):
    script = (
        "import time; from pathlib import Path; from grpo_math.recipes.watchdog import Watchdog\n"
        f"with Watchdog(1.0, Path({str(tmp_path / 'stacks')!r})) as dog:\n"
        "    dog.enter('sync'); dog.enter('wait'); dog.leave(); time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "phase `sync`" in done.stderr
    assert "phase `sync`" in (tmp_path / "stacks").read_text()
