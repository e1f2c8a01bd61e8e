"""sft, rest and preference as runs: what they learn, that nothing is lost when one breaks off, what they refuse."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo_math import config
from grpo_math.algorithms import PRESETS
from grpo_math.backend.torch import TorchBackend
from grpo_math.config_file import dump_config, load_config
from grpo_math.config_offline import BEHAVIOUR, NO_REFERENCE
from grpo_math.policy import Policy, load_policy
from grpo_math.preferences.table import PREFERENCES
from grpo_math.recipes import rounds
from grpo_math.recipes.held_out import HeldOut
from grpo_math.recipes.rest import best_of_each
from grpo_math.recipes.rounds import as_candidates, draw
from grpo_math.recipes.run import RECIPES, run
from grpo_math.reference import AdapterOff
from grpo_math.types import UserError
from tests.offline import RUNS, configured, distance, lines, make_setting, of_recipe, weights
from tests.test_kill import ROOT
from tests.tiny import group

SAMPLES: dict[str, Any] = {"files": ["samples"], "filter": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("offline")
    make_setting(path)
    return path


# the paper's tau starts on the far side of a hump, see docs/preferences.md
PARAMETERS: dict[str, dict[str, Any]] = {"discopop": {"discopop_tau": 0.5}, "p3o": {"beta": 0.01}}


@pytest.mark.parametrize("name", list(PREFERENCES))
def test_every_loss_learns_from_mined_pairs(folder, tmp_path, name):
    """20 updates on all the pairs: the loss falls, and the margin rises."""
    loss = {"name": name, **PARAMETERS.get(name, {})}
    changes: dict[str, Any] = {"data": SAMPLES, "steps": 20, "loss": loss, "checkpoint": {"every": 0}}
    changes |= {"prompts_per_step": 20, "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2}}
    cfg = of_recipe(folder, "preference", name, tmp_path / "run", **changes)
    run(cfg)
    rows = lines(cfg)
    first, last = rows[:4], rows[-4:]

    def mean(part: list[dict[str, Any]], key: str) -> float:
        return sum(row[key] for row in part) / len(part)

    if name != "p3o":  # a policy gradient's value, weighed by the other one's ratio, is no measure of anything
        assert mean(last, "loss/total") < mean(first, "loss/total")
    if name != "sft":  # which never looks at the rejected one
        chosen, rejected = (mean(last, f"implicit/{k}") - mean(first, f"implicit/{k}") for k in ("chosen", "rejected"))
        assert chosen - rejected > 0
    assert all(math.isfinite(row["optim/grad_norm"]) for row in rows)


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_that_breaks_off_goes_on_as_if_nothing_had_been(folder, tmp_path, name, monkeypatch):
    whole, broken = (configured(folder, name, tmp_path / half) for half in ("whole", "broken"))
    run(whole)
    recipe: Any = RECIPES[type(broken)]
    step = recipe.step

    def breaks(self, number):
        result = step(self, number)
        if number == 4:  # its weights have changed, and nothing of it is on disk
            raise RuntimeError("the power is gone")
        return result

    monkeypatch.setattr(recipe, "step", breaks)
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(broken)
    monkeypatch.undo()
    assert len(lines(broken)) == 3
    run(broken)
    assert lines(whole) == lines(broken)
    assert lines(whole, "completions.jsonl") == lines(broken, "completions.jsonl")
    assert distance(whole, broken) == 0


@pytest.mark.parametrize("name", ["rest_em", "iterative_dpo"])
def test_what_a_round_has_sampled_is_not_sampled_again(folder, tmp_path, name, monkeypatch):
    """Killed in the middle of sampling, with half a line written: what is whole is kept, the rest done again."""
    small = {"rollout": {"max_rows": 4}}  # four problems at a time
    whole, broken = (configured(folder, name, tmp_path / half, **small) for half in ("whole", "broken"))
    run(whole)
    sample, calls = rounds.sample_groups, []

    def breaks(*rest, **named):
        calls.append(named)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(*rest, **named)

    monkeypatch.setattr(rounds, "sample_groups", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    with (Path(broken.run_dir) / "rounds" / "round-1.jsonl").open("a") as stream:
        stream.write('[{"problem": ["half a li')
    run(broken)
    assert len(calls) == 2 + 1 + 2  # one chunk, the break, the other chunk, and two of the second round
    assert lines(whole) == lines(broken)
    assert lines(whole, "completions.jsonl") == lines(broken, "completions.jsonl")
    assert distance(whole, broken) == 0


def test_a_round_of_other_settings_is_sampled_anew(folder, tmp_path, monkeypatch):
    """Before the first checkpoint nothing else tells the two runs apart."""
    monkeypatch.setattr(TorchBackend, "step", lambda self, *rest: 1 / 0)
    found: list[Any] = []
    for seed in (0, 1):
        with pytest.raises(ZeroDivisionError):
            run(configured(folder, "rest", tmp_path / "run", seed=seed))
        chunks = (tmp_path / "run" / "rounds" / "round-1.jsonl").read_text().splitlines()[1:]
        read = [json.loads(chunk) for chunk in chunks]
        assert sum(map(len, read)) == 6
        found.append(read)
    assert found[0] != found[1]


def test_dpo_starts_at_ln_2_and_a_pair_is_one_forward_pass(folder, tmp_path, monkeypatch):
    forward, rows = Policy.logprobs, []

    def seen(self, batch, *rest, **named):
        rows.append([] if batch.units is None else batch.units.tolist())
        return forward(self, batch, *rest, **named)

    monkeypatch.setattr(Policy, "logprobs", seen)
    small = of_recipe(folder, "preference", "dpo", tmp_path / "a", data=SAMPLES, steps=3, micro_batch_tokens=40)
    run(small)
    assert lines(small)[0]["loss/total"] == pytest.approx(math.log(2), abs=1e-6)
    rows = rows[1:]  # the first is that of the check of the model's head
    assert all(units and units[0::2] == units[1::2] for units in rows)
    assert len(rows) > 6  # each of 3 batches is read by reference and policy, in parts
    monkeypatch.undo()
    large = of_recipe(folder, "preference", "dpo", tmp_path / "b", data=SAMPLES, steps=3, micro_batch_tokens=4000)
    run(large)
    assert distance(small, large) < 1e-5
    for one, other in zip(lines(small), lines(large), strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_a_round_trains_on_each_pair_as_often_as_was_asked_for(folder, tmp_path):
    cfg = configured(folder, "iterative_dpo", tmp_path / "run", online={"every": 3, "passes": 2}, steps=6)
    run(cfg)
    for start in (0, 3):
        rows = lines(cfg)[start : start + 3]
        sizes = [row["data/examples"] for row in rows]
        assert sum(sizes) == 2 * rows[0]["round/pairs"] > 0
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("name", ["rest_em", "iterative_dpo", "online_dpo", "kto", "sft"])
def test_adapters_are_trained_and_the_reference_is_the_model_without(folder, tmp_path, name, monkeypatch):
    cfg = configured(folder, name, tmp_path / "run", model={"path": str(folder / "model"), "lora": {"rank": 4}})
    reference, compared = AdapterOff.logprobs, []

    def seen(self, batch):
        values = reference(self, batch)
        compared.append((batch, values))
        return values

    monkeypatch.setattr(AdapterOff, "logprobs", seen)
    run(cfg)
    tensors = weights(cfg)
    assert all("lora" in key for key in tensors)
    assert any(float(value.abs().max()) > 0 for key, value in tensors.items() if "lora_B" in key)
    # at each of four steps, by kto once more for the mismatched; the others know it, or need none
    assert len(compared) == {"online_dpo": 4, "kto": 8}.get(name, 0)
    base = load_policy(config.Model(path=str(folder / "model")), torch.device("cpu"))
    for batch, said in compared:
        torch.testing.assert_close(said, base.score(batch, 1.0, 64, 4096), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rest_em", {"backend": {"name": "deepspeed", "deepspeed": {"zero": 2}}}),
        ("iterative_dpo", {"backend": {"name": "deepspeed", "deepspeed": {"zero": 3}}}),
        ("kto", {"backend": {"name": "deepspeed", "deepspeed": {"zero": 2}}}),
    ],
)
def test_two_processes_of_deepspeed_learn_what_one_of_torch_does(folder, tmp_path, name, changes):
    alone, both = (configured(folder, name, tmp_path / half, **c) for half, c in (("alone", {}), ("both", changes)))
    run(alone)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(both))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, "-m", "grpo_math", "train", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert distance(alone, both) < 1e-5
    for one, other in zip(lines(alone), lines(both), strict=True):
        # where policy and reference are one and the same, rounding decides which is the larger reward
        one["implicit/accuracy"] = other["implicit/accuracy"] = 0.0
        assert one == pytest.approx(other, abs=1e-4, nan_ok=True)


def test_rest_em_begins_each_round_from_the_base_and_rest_does_not(folder, tmp_path, monkeypatch):
    loaded = []
    load = TorchBackend.load
    monkeypatch.setattr(TorchBackend, "load", lambda self, path: (loaded.append(path.name), load(self, path))[1])
    optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 1}
    em = configured(folder, "rest_em", tmp_path / "em", tolerated_fall=None, optimizer=optimizer)
    run(em)
    assert loaded == ["step-0"]
    rates = [row["optim/lr"] for row in lines(em)]
    assert rates[:2] == rates[2:]
    assert rates[0] < rates[1]
    loaded.clear()
    run(configured(folder, "rest", tmp_path / "rest", tolerated_fall=None))
    assert loaded == []
    assert {p.name for p in (tmp_path / "rest" / "rounds").glob("step-*")} == {"step-0", "step-1", "step-2"}


def test_a_round_that_falls_is_thrown_away_and_ends_the_run(folder, tmp_path, monkeypatch, capsys):
    scores = iter([0.3, 0.6, 0.4, 0.9])
    monkeypatch.setattr(HeldOut, "measure", lambda self: {"eval/accuracy": next(scores)})
    cfg = configured(folder, "rest_em", tmp_path / "run", rounds=3)
    run(cfg)
    assert [row["step"] for row in lines(cfg)] == [1, 2, 3, 4]
    assert "round 2: held-out accuracy fell from 0.600 (round 1) to 0.400" in capsys.readouterr().out
    best = configured(folder, "rest_em", tmp_path / "run", rounds=3).model_copy(update={"run_dir": str(tmp_path / "x")})
    shutil.copytree(tmp_path / "run" / "rounds" / "step-1", tmp_path / "x" / "model")
    assert distance(cfg, best) == 0
    run(cfg)  # the same command again: it has ended
    assert len(lines(cfg)) == 4


def test_thresholds_that_nothing_reaches_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"thresholds=\[2.0\]: 2 leaves nothing .* lower thresholds.0"):
        run(configured(folder, "rest", tmp_path / "run", thresholds=[2.0]))


def test_takes_are_epochs_in_an_order_of_their_own():
    takes = [draw(10, 4, number, seed=3) for number in range(10)]
    drawn = [place for take in takes for place in take]
    for epoch in range(4):
        assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert draw(10, 4, 7, seed=3) == takes[7]
    assert sorted(draw(3, 64, 5, seed=0)) == [0, 1, 2]


def test_the_best_of_each_problem():
    candidates = as_candidates([group([0.0, 1.0, 1.0, None], [1, 2, 3, 4])])
    decided = [c for c in candidates if c.reward is not None]
    assert [c.line for c in best_of_each(decided)] == [1, 2]
    assert [c.tokens for c in candidates] == [1, 2, 3, 4]


def test_names_that_must_not_import_torch_are_those_of_the_table():
    assert {name for name, method in PREFERENCES.items() if not method.reference} == NO_REFERENCE
    assert {name for name, method in PREFERENCES.items() if method.behaviour} == BEHAVIOUR
    assert {name for name, method in PREFERENCES.items() if not method.paired} == set(config.UNPAIRED)


@pytest.mark.parametrize("recipe", ["preference", "rest"])
def test_every_preset_is_a_configuration(folder, tmp_path, recipe):
    for name in PRESETS[recipe]:
        path = tmp_path / f"{name}.yaml"
        data = "" if recipe == "rest" or "online" in PRESETS[recipe][name] else "data: a.jsonl\n"
        steps = "" if recipe == "rest" else "steps: 60\n"
        path.write_text(f"recipe: {recipe}\nalgorithm: {name}\nrun_dir: r\nmodel: m\ntask: arithmetic\n{data}{steps}")
        cfg = load_config(path)
        path.write_text(dump_config(cfg))
        assert load_config(path) == cfg


PREFERENCE = "recipe: preference\nrun_dir: r\nmodel: m\n"
REST = "recipe: rest\nrun_dir: r\nmodel: m\ntask: arithmetic\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PREFERENCE, "give one of data=FILE"),
        (PREFERENCE + "data: a\nonline: {every: 1}\ntask: arithmetic", "give one of data=FILE"),
        (PREFERENCE + "online: {every: 1}", "task is missing"),
        (PREFERENCE + "task: arithmetic\nalgorithm: kto\nonline: {every: 1}", "loss.name=kto learns from single"),
        (PREFERENCE + "data: a\nreference: none", "loss.name=dpo compares with one"),
        (PREFERENCE + "data: a\nalgorithm: simpo\nreference: fixed", "compares with none"),
        (PREFERENCE + "data: a\nreference: round", "reference=round is the policy at the start of a round"),
        (PREFERENCE + "data: a\nalgorithm: kto\nreference: precomputed", "set reference=fixed"),
        (PREFERENCE + "data: a\nstages: 3\nsteps: 10", "try steps=12"),
        (PREFERENCE + "data: a\nalgorithm: dpoo", "did you mean dpo"),
        (PREFERENCE + "data: a\nloss: {name: dpo, margin: 1.0}", "margin=1.0 is read by slic and simpo only"),
        (PREFERENCE + "data: a\nrollout: {engine: vllm}", "without a task nothing is sampled"),
        (PREFERENCE + "data: a\nevaluation: {every: 5}", "set evaluation.task"),
        (PREFERENCE + "task: arithmetic\nalgorithm: bpo\nsampling: {temperature: 0.7}", "set sampling.temperature=1"),
        (PREFERENCE + "data: {files: a, too_long: truncate}\nalgorithm: p3o", "set data.too_long=drop"),
        (PREFERENCE + "data: a\nalgorithm: kto\nprompts_per_step: 1", "set prompts_per_step=2 or more"),
        (PREFERENCE + "task: arithmetic\nalgorithm: iterative_dpo\nsteps: 30", "try steps=40"),
        (REST + "choose: random", "set per_problem too"),
        (REST + "evaluation: {every: 3}", "leave evaluation.every out"),
        (REST + "thresholds: [-1.0]\nweighting: reward", "begin thresholds at 0"),
        (REST + "steps: 7", "leave steps out"),
        (REST + "thresholds: [1.0, 0.5]", "do not rise; sort them"),
        (REST + "thresholds: [0.5, 7.0]\nthreshold: quantile", "are to be quantiles"),
        ("recipe: sft\nrun_dir: r\nmodel: m", "give data=FILE to learn from"),
        ("recipe: sft\nrun_dir: r\nmodel: m\ndata: a\nstop: {accuracy: 0.5}", "set task=NAME"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert says in str(caught.value)


def test_a_broken_file_is_refused_before_anything_is_loaded_or_written(folder, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "2"}\n{"prompt": "1+1=", "chosen": "2"}\n')
    cfg = of_recipe(folder, "preference", "dpo", tmp_path / "run", data={"files": [str(bad)]})
    with pytest.raises(UserError) as caught:
        run(cfg)
    assert f"{bad}:1" in str(caught.value)
    assert f"{bad}:2" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_needs_the_sampler_says_how_to_get_what_it_said(folder, tmp_path):
    cfg = of_recipe(folder, "preference", "p3o", tmp_path / "run", data={"files": ["plain.jsonl"]})
    (folder / "plain.jsonl").write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    with pytest.raises(UserError, match=r"plain.jsonl:1 lacks chosen_logps and rejected_logps, which loss.name=p3o"):
        run(cfg)


def test_a_reference_that_is_given_for_some_pairs_alone_is_refused(folder, tmp_path):
    rows = [{"prompt": "1+1=", "chosen": "2", "rejected": "3"}, {"prompt": "1+2=", "chosen": "3", "rejected": "4"}]
    rows[1] |= {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}  # type: ignore[dict-item]
    (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = of_recipe(
        folder, "preference", "dpo", tmp_path / "run", data={"files": ["some.jsonl"]}, reference="precomputed"
    )
    with pytest.raises(UserError, match=r"some.jsonl:1 lacks ref_chosen_logps .* which .*some.jsonl:2 has"):
        run(cfg)


def test_trl_users_data_trains_as_it_is_without_a_task(folder, tmp_path):
    rows = [{"prompt": f"{i}+{i}=", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1}"} for i in range(1, 9)]
    (folder / "trl.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = of_recipe(folder, "preference", "dpo", tmp_path / "run", data={"files": ["trl.jsonl"]}, steps=4)
    cfg = cfg.model_copy(update={"task": None})
    run(cfg)
    assert lines(cfg)[-1]["implicit/margin"] > 0
    assert np.isfinite([float(tensor.abs().max()) for tensor in weights(cfg).values()]).all()
