"""The loop on a tiny random model: a step's parts, resuming bit for bit, signals, and what stops a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_math.algorithms import ALGORITHMS
from grpo_math.config import GRPO
from grpo_math.recipes.run import run
from grpo_math.types import UserError
from tests.credit import save_reward_model
from tests.tiny import save_tiny

TASK = '''
"""Digits: any completion with a 1 in it is right, so that a random model has something to learn."""
from grpo_math.types import Problem
VERIFIER = "{verifier}"
TEMPLATE = "{{question}}"
def load(split, path=None):
    return [Problem(f"{{split}}/{{i}}", "digits", f"{{i}}+{{i}}=", "1", {{"solution": "11"}}) for i in range(24)]
'''
VERIFIER = '''
"""Share of ones."""
import os, time
from grpo_math.types import Verdict
EXAMPLES = []
def verify(problem, completion):
    {body}
    good = completion.count("e") + completion.count("1")
    steps = [(len(completion), float(good > 0))] if completion else []
    return Verdict(float(good > 0), "correct" if good else "wrong", answer=completion[:3], step_rewards=steps)
'''


@pytest.fixture
def setting(tmp_path: Path):
    def make(body: str = "pass", **changes: object) -> GRPO:
        verifier, task = tmp_path / "verifier.py", tmp_path / "task.py"
        verifier.write_text(VERIFIER.format(body=body))
        task.write_text(TASK.format(verifier=verifier))
        model = tmp_path / "model"
        if not model.exists():
            save_tiny(model)
        values: dict[str, object] = {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": str(model)},
            "task": str(task),
            "steps": 4,
            "prompts_per_step": 4,
            "group_size": 4,
            "optimizer": {"learning_rate": 1e-3},
            "sampling": {"max_tokens": 8},
            "checkpoint": {"every": 1, "keep": 9},
            "scoring": {"workers": 1},
        }
        return GRPO.model_validate(values | changes)

    return make


def lines(cfg: GRPO, name: str) -> list[dict]:
    return [json.loads(line) for line in (Path(cfg.run_dir) / name).read_text().splitlines()]


def weights(cfg: GRPO, step: int) -> dict[str, torch.Tensor]:
    return load_file(Path(cfg.run_dir) / "checkpoints" / f"step-{step}" / "model.safetensors")


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_same_run(one: GRPO, other: GRPO, step: int) -> None:
    assert without_times(lines(one, "metrics.jsonl")) == without_times(lines(other, "metrics.jsonl"))
    assert lines(one, "completions.jsonl") == lines(other, "completions.jsonl")
    a, b = weights(one, step), weights(other, step)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_a_folder_that_plain_transformers_loads(setting):
    cfg = setting()
    run(cfg)
    records, metrics = lines(cfg, "completions.jsonl"), lines(cfg, "metrics.jsonl")
    assert len(records) == 4 * 4 * 4
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    wanted = {"prompt", "completion", "tokens", "reason", "reward", "advantage", "finish_reason", "filtered"}
    assert wanted <= records[0].keys()
    for row in metrics:
        mine = [r for r in records if r["step"] == row["step"]]
        assert row["reward/mean"] == pytest.approx(sum(r["reward"] for r in mine) / len(mine))
        assert abs(row["sampler/gap"]) < 1e-5
    model = AutoModelForCausalLM.from_pretrained(Path(cfg.run_dir) / "model")
    start = AutoModelForCausalLM.from_pretrained(cfg.model.path)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert {r["policy_version"] for r in records if r["step"] == 3} == {2}


def test_the_same_seed_gives_the_same_run_and_another_seed_another(setting, tmp_path):
    one = setting(run_dir=str(tmp_path / "one"))
    two = setting(run_dir=str(tmp_path / "two"))
    three = setting(run_dir=str(tmp_path / "three"), seed=1)
    for cfg in (one, two, three):
        run(cfg)
    assert_same_run(one, two, 4)
    assert lines(one, "completions.jsonl") != lines(three, "completions.jsonl")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"updates_per_step": 2, "passes": 2},
        {"kl": {"coefficient": 0.1, "reference": "ema", "target": 0.05}},
        {"dynamic_sampling": {"enabled": True, "max_rounds": 3}, "kl": {"coefficient": 0.1, "where": "reward"}},
    ],
)
def test_a_run_in_two_parts_equals_a_run_in_one(setting, tmp_path, changes):
    whole = setting(run_dir=str(tmp_path / "whole"), **changes)
    run(whole)
    half = setting(run_dir=str(tmp_path / "halves"), **changes)
    run(half.model_copy(update={"steps": 2}))
    run(half)
    assert_same_run(whole, half, 4)


MAIN = """
import sys
from grpo_math.config_file import load_config
from grpo_math.recipes.run import run
run(load_config(sys.argv[1]))
"""


def start(cfg: GRPO, tmp_path: Path) -> subprocess.Popen:
    from grpo_math.config_file import dump_config

    path = tmp_path / "cfg.yaml"
    path.write_text(dump_config(cfg))
    return subprocess.Popen([sys.executable, "-c", MAIN, str(path)], stderr=subprocess.PIPE, text=True)


def wait_for_step(cfg: GRPO, step: int, process: subprocess.Popen) -> None:
    """Until the run has begun the step after `step`."""
    deadline = time.monotonic() + 120
    while not (Path(cfg.run_dir) / "checkpoints" / f"step-{step}").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


SLOW = "time.sleep(0.05)"


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_to_the_same_numbers(setting, tmp_path):
    cfg = setting(SLOW, steps=6, run_dir=str(tmp_path / "killed"))
    process = start(cfg, tmp_path)
    wait_for_step(cfg, 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = setting(SLOW, steps=6, run_dir=str(tmp_path / "whole"))
    run(whole)
    run(cfg)
    assert_same_run(whole, cfg, 6)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(setting, tmp_path, number):
    cfg = setting(SLOW, steps=50, checkpoint={"every": 1, "keep": 60})
    process = start(cfg, tmp_path)
    wait_for_step(cfg, 1, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    last = lines(cfg, "metrics.jsonl")[-1]["step"]
    assert last < 50
    assert (Path(cfg.run_dir) / "checkpoints" / f"step-{last}").exists()


@pytest.mark.slow
def test_a_stall_names_its_phase_prints_the_stacks_and_exits(setting, tmp_path):
    cfg = setting("time.sleep(60)", phase_timeout_s=3.0, scoring={"workers": 1, "timeout_s": 100})
    process = start(cfg, tmp_path)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 70
    assert "phase `verify`" in errors
    assert "in score" in errors
    assert "in score" in (Path(cfg.run_dir) / "stacks-0.txt").read_text()


@pytest.mark.slow
def test_a_stall_loses_no_step_that_was_done(setting, tmp_path):
    """The third step's verdicts never come: the state after the second is saved, of which no checkpoint was due."""
    changes = {"phase_timeout_s": 6.0, "scoring": {"workers": 1, "timeout_s": 100}, "checkpoint": {"every": 50}}
    body = "import pathlib; n = pathlib.Path(__file__).with_name('count'); k = len(n.read_text()) if n.exists() else 0"
    stalls = body + "; n.write_text('x' * (k + 1)); time.sleep(60 if k >= 2 * 16 else 0)"
    cfg = setting(stalls, **changes, run_dir=str(tmp_path / "stalled"))
    process = start(cfg, tmp_path)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 70, errors
    done = lines(cfg, "metrics.jsonl")[-1]["step"]
    assert done >= 1
    assert f"saved after step {done}" in errors
    whole = setting(**changes, run_dir=str(tmp_path / "whole"))
    run(whole)
    again = setting(**changes, run_dir=str(tmp_path / "stalled"))
    run(again)
    assert_same_run(whole, again, 4)


def test_a_run_whose_sampler_is_lost_saves_the_step_before(setting, tmp_path, monkeypatch):
    from grpo_math.rollout import hf
    from grpo_math.types import EngineError

    class Lost(hf.HFEngine):
        def generate(self, prompts, sampling):
            if self.version == 2:
                raise EngineError("no server is left")
            return super().generate(prompts, sampling)

    cfg = setting(checkpoint={"every": 50}, run_dir=str(tmp_path / "lost"))
    with monkeypatch.context() as patched:
        patched.setattr(hf, "HFEngine", Lost)
        with pytest.raises(EngineError, match=r"no server is left\n.*saved after step 2"):
            run(cfg)
    whole = setting(checkpoint={"every": 50}, run_dir=str(tmp_path / "whole"))
    run(whole)
    run(cfg)
    assert_same_run(whole, cfg, 4)


def test_a_check_of_gold_answers_that_hangs_is_a_phase_too(setting, tmp_path):
    """Of an endless task the answers are checked as they come, in the process that trains."""
    verifier = tmp_path / "verifier.py"
    cfg = setting(phase_timeout_s=3.0, task="arithmetic", rewards=[{"verifier": str(verifier)}])
    verifier.write_text(verifier.read_text() + "def check(problem):\n    time.sleep(60)\n")
    process = start(cfg, tmp_path)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 70
    assert "phase `problems`" in errors


def test_a_skipped_weight_sync_is_caught_within_one_step(setting, monkeypatch):
    """The engine keeps weights of its own here, as vLLM does, and is not told of the first update."""
    from grpo_math.reference import copy_policy
    from grpo_math.rollout import hf

    class Forgetful(hf.HFEngine):
        def __init__(self, policy, *rest, shares_weights):
            super().__init__(copy_policy(policy), *rest)

        def update_weights(self, weights, version):
            self.version = version

    monkeypatch.setattr(hf, "HFEngine", Forgetful)
    cfg = setting(optimizer={"learning_rate": 1e-2})
    with pytest.raises(RuntimeError, match=r"step 2: the sampler's log-probabilities differ"):
        run(cfg)


def test_an_engine_with_weights_of_its_own_is_synced(setting, tmp_path, monkeypatch):
    from grpo_math.reference import copy_policy
    from grpo_math.rollout import hf

    shared_memory = setting(run_dir=str(tmp_path / "shared"))
    run(shared_memory)

    class Apart(hf.HFEngine):
        def __init__(self, policy, *rest, shares_weights):
            super().__init__(copy_policy(policy), *rest)

    monkeypatch.setattr(hf, "HFEngine", Apart)
    apart = setting(run_dir=str(tmp_path / "apart"))
    run(apart)
    texts = [[row["completion"] for row in lines(cfg, "completions.jsonl")] for cfg in (shared_memory, apart)]
    assert texts[0] == texts[1]
    assert all(row["sampler/gap"] < 1e-5 for row in lines(apart, "metrics.jsonl"))
    one, other = weights(shared_memory, 4), weights(apart, 4)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=0)


def test_a_broken_verifier_stops_the_run_and_its_samples_are_kept(setting):
    cfg = setting("raise KeyError('oops')")
    with pytest.raises(UserError, match=r"verifier\.py"):
        run(cfg)
    records = lines(cfg, "completions.jsonl")
    assert len(records) == 16
    assert {r["reason"] for r in records} == {"error"}
    assert "KeyError" in records[0]["detail"]


def test_a_verifier_that_fails_now_and_then_is_neither_zero_nor_the_end(setting):
    cfg = setting(
        "assert 'a' not in completion and 'b' not in completion, 'bad letter'",
        scoring={"workers": 1, "max_error_share": 0.9},
    )
    run(cfg)
    records = lines(cfg, "completions.jsonl")
    failed = [r for r in records if r["reason"] == "error"]
    assert failed
    assert all(r["reward"] is None and r["advantage"] is None for r in failed)
    assert sum(row["verdict/error"] for row in lines(cfg, "metrics.jsonl")) > 0
    assert all(row["verdict/failed"] == row["verdict/error"] for row in lines(cfg, "metrics.jsonl"))


def test_gradient_checkpointing_samples_and_learns_the_same(setting, tmp_path):
    """A model that recomputes its activations is in training mode, in which transformers keeps no cache."""
    plain = setting(run_dir=str(tmp_path / "plain"), steps=2)
    saving = setting(run_dir=str(tmp_path / "saving"), steps=2, backend={"gradient_checkpointing": True})
    run(plain)
    run(saving)
    texts = [[row["completion"] for row in lines(cfg, "completions.jsonl")] for cfg in (plain, saving)]
    assert texts[0] == texts[1]


def test_kl_off_means_no_reference(setting, monkeypatch):
    from grpo_math import reference

    def never(policy):
        raise AssertionError("a reference was made")

    monkeypatch.setattr(reference, "copy_policy", never)
    run(setting(steps=1))
    with pytest.raises(AssertionError):
        run(setting(steps=1, kl={"coefficient": 0.1}, run_dir=str(Path(setting().run_dir) / "kl")))


def test_dynamic_sampling_trains_on_groups_with_a_signal_only(setting):
    cfg = setting(dynamic_sampling={"enabled": True, "max_rounds": 4}, overlong={"penalty_buffer": 0.5})
    run(cfg)
    records = lines(cfg, "completions.jsonl")
    # by fours, not by problem: an epoch may end within a step, and the new one bring a problem once more
    for members in (records[i : i + 4] for i in range(0, len(records), 4)):
        assert len({r["problem"] for r in members}) == 1
        task_rewards = {next(iter(r["parts"].values())) for r in members}
        # an overlong penalty that differs within the group does not make it one with a signal
        assert all(r["filtered"] == (len(task_rewards) == 1) for r in members)
    assert any(r["filtered"] for r in records)


def test_other_settings_in_the_same_folder_are_refused_with_the_difference(setting):
    cfg = setting()
    run(cfg)
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: was 0.001, now 0.5"):
        run(setting(optimizer={"learning_rate": 0.5}))
    run(setting(optimizer={"learning_rate": 0.5}, steps=1), resume="never")
    assert len(lines(cfg, "metrics.jsonl")) == 1


def test_resume_without_a_checkpoint_is_an_error(setting):
    with pytest.raises(UserError, match="no checkpoint"):
        run(setting(), resume="must")


def test_damaged_checkpoints_are_passed_over_and_never_trained_over(setting, caplog):
    cfg = setting()
    run(cfg)
    folder = Path(cfg.run_dir) / "checkpoints"
    os.truncate(folder / "step-4" / "model.safetensors", 100)
    run(cfg)
    assert "damaged" in caplog.text
    assert [row["step"] for row in lines(cfg, "metrics.jsonl")] == [1, 2, 3, 4]
    for step in folder.glob("step-*"):
        os.truncate(step / "model.safetensors", 100)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        run(cfg)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_preset_takes_a_step(setting, name, tmp_path):
    import yaml

    from grpo_math.config_file import load_config

    path = tmp_path / "preset.yaml"
    values = setting(steps=1).model_dump(exclude_unset=True)
    if name == "grpo_iterative":
        save_reward_model(tmp_path / "model", "outcome", tmp_path / "judge", seed=0)
        values["rewards"] = [{"verifier": str(tmp_path / "verifier.py")}, {"model": str(tmp_path / "judge")}]
        values |= {"steps": 2, "retraining": {"every": 1, "updates": 1}, "kl": {"refresh_every": 1}}
    path.write_text(yaml.safe_dump(values | {"algorithm": name}))
    cfg = load_config(path)
    run(cfg)
    rows = lines(cfg, "metrics.jsonl")
    assert len(rows) == cfg.steps
    assert all(row["reward/mean"] is not None for row in rows)


def test_a_step_without_any_trained_token_is_no_end(setting):
    """Everything truncated and masked: there is no KL to adapt the coefficient to."""
    cfg = setting(
        steps=2,
        sampling={"max_tokens": 2},
        overlong={"mask": True},
        kl={"coefficient": 0.1, "target": 0.01},
    )
    run(cfg)
    assert [row["completion/truncated"] > 0 for row in lines(cfg, "metrics.jsonl")] == [True, True]


def test_evaluation_leaves_out_what_does_not_fit_and_says_so(setting, tmp_path, capsys):
    task = tmp_path / "held_out.py"
    task.write_text(
        "from grpo_math.types import Problem\n"
        f"VERIFIER = {str(tmp_path / 'verifier.py')!r}\n"
        "def load(split, path=None):\n"
        "    long = [Problem('long', 'held_out', 'x' * 125, '1')]\n"
        "    return long + [Problem(str(i), 'held_out', f'{i}?', '1') for i in range(3)]\n"
    )
    cfg = setting(steps=2, evaluation={"every": 1, "n": 2, "k": [1, 2], "task": {"name": str(task), "split": "test"}})
    run(cfg)
    assert "1 prompts of more than 120 tokens are left out" in capsys.readouterr().out
    for row in lines(cfg, "metrics.jsonl"):
        assert row["eval/problems"] == 3
        assert 0 <= row["eval/pass@1"] <= row["eval/pass@2"] <= 1
        assert row["eval/accuracy"] == pytest.approx(row["eval/pass@1"])


def test_what_shapes_the_reward_is_shown_beside_it(setting):
    cfg = setting(overlong={"penalty_buffer": 0.5}, kl={"coefficient": 0.1, "where": "reward", "estimator": "k1"})
    run(cfg)
    for row in lines(cfg, "metrics.jsonl"):
        parts = row["reward/verifier"] + row["reward/overlong"] + row["reward/kl"]
        assert row["reward/mean"] == pytest.approx(parts, abs=1e-6)
        assert row["reward/overlong"] < 0


def test_gsm8k_from_disk(shared, tmp_path):
    """launch/gsm8k.yaml as users start it, but for its size."""
    from grpo_math.config_file import load_config

    cfg = load_config(
        Path("launch/gsm8k.yaml"),
        [
            f"model.path={save_tiny(tmp_path / 'model', context=1024)}",
            f"task.path={shared}/data/gsm8k_{{split}}.jsonl",
            f"run_dir={tmp_path / 'run'}",
            "steps=2",
            "prompts_per_step=4",
            "group_size=4",
            "sampling.max_tokens=16",
        ],
    )
    run(cfg)
    assert len(lines(cfg, "completions.jsonl")) == 2 * 4 * 4
    assert all(row["sampler/gap"] < 0.05 for row in lines(cfg, "metrics.jsonl"))
    AutoModelForCausalLM.from_pretrained(Path(cfg.run_dir) / "model")


def test_fresh_throws_nothing_away_before_the_new_run_can_start(setting, tmp_path):
    cfg = setting(steps=1)
    run(cfg)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("run/**/*") if p.is_file())
    inside = cfg.model_copy(update={"model": cfg.model.model_copy(update={"path": f"{cfg.run_dir}/model"})})
    with pytest.raises(UserError, match="lies in run_dir"):
        run(inside, "never")
    torn = tmp_path / "torn"
    save_tiny(torn)
    (torn / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"torn could not be loaded"):
        run(cfg.model_copy(update={"model": cfg.model.model_copy(update={"path": str(torn)})}), "never")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("run/**/*") if p.is_file()) == before


def test_weights_that_lack_a_tensor_are_refused(setting, tmp_path):
    from safetensors.torch import save_file

    cfg = setting()
    file = Path(cfg.model.path) / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors .*model\.layers\.1\.mlp\.up_proj\.weight"):
        run(cfg)


def test_a_run_folder_whose_config_is_gone_is_refused(setting):
    cfg = setting(steps=1)
    run(cfg)
    (Path(cfg.run_dir) / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is missing or damaged"):
        run(cfg)
