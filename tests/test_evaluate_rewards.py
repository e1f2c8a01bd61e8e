"""Reward models in an evaluation: their figures are those of their scores, and an interruption changes no bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner, Result

from grpo_math import config
from grpo_math.best_of import auc, best_of_k, majority_of_k
from grpo_math.cli import app
from grpo_math.evaluation import reward_scores
from grpo_math.evaluation.journal import NAME, Journal
from grpo_math.evaluation.selection import selection
from grpo_math.evaluation.step_figures import ScoredSteps, step_figures
from grpo_math.evaluation.summary import Judged
from grpo_math.reward_metrics import first_errors
from grpo_math.rollout.hf import HFEngine
from grpo_math.types import Verdict
from grpo_math.value_model import ValueKind, head_of, load_value_model
from tests.tiny import save_tiny

FILES = ("samples.jsonl", "results.json", "prompts.jsonl")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def done(*words: str | Path) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str | Path) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    return result.output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def save_reward_model(path: Path, kind: ValueKind, seed: int, trained: bool = True) -> Path:
    base = save_tiny(path.with_name(f"{path.name}-base"), seed=seed)
    model = load_value_model(config.Model(path=str(base)), kind, torch.device("cpu"))
    if trained:
        torch.manual_seed(seed)
        for parameter in head_of(model.model).parameters():
            torch.nn.init.normal_(parameter, std=2.0)
    if kind == "critic":
        model.model.config.grpo_math = {"kind": kind}
    model.model.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "policy")
    save_reward_model(folder / "orm", "outcome", 1)
    save_reward_model(folder / "prm", "process", 2)
    save_reward_model(folder / "critic", "critic", 3)
    save_reward_model(folder / "untrained", "outcome", 4, trained=False)
    return folder


# ---- the figures, of verdicts and scores


def a(right: bool, answer: str | None, **scores: float | None) -> Judged:
    return Judged(Verdict(float(right), "correct" if right else "wrong", answer=answer), "stop", 5, scores=scores)


def test_what_reward_models_choose() -> None:
    failed = Judged(Verdict(None, "timeout", answer="9"), "stop", 5, scores={"m": 99.0})
    problems = [
        [a(True, "1", m=3.0), a(False, "2", m=-1.0), a(False, "2", m=0.0), failed],
        [a(False, "5", m=2.0), a(True, "6", m=1.0), a(True, "6", m=None)],
        [a(True, "1", m=1.0)],
    ]
    figures = selection(problems, [1, 3], {"m": "outcome"})
    model = figures["reward_models"]["m"]
    assert figures["majority@3"] == pytest.approx((0 + 1) / 2)  # the third problem has one verdict
    assert model["best_of@3"] == pytest.approx((1 + 0) / 2)  # the one without a score is chosen last
    # sigma(3) = 0.95 against sigma(-1) + sigma(0) = 0.77; sigma(2) = 0.88 against sigma(1) = 0.73
    assert model["weighted_majority@3"] == pytest.approx((1 + 0) / 2)
    low, high = model["best_of@3_interval"]
    assert 0 <= low < 0.5 < high <= 1
    assert "best_of@1" not in model  # that is pass@1
    # right: 3, 1, 1; wrong: -1, 0, 2: of nine pairs 3 + 2 + 2 are won
    assert model["auc"] == pytest.approx(7 / 9)
    assert model["auc_within"] == pytest.approx((1 + 0) / 2)
    assert (model["auc_within_problems"], model["unscored"]) == (2, 1)
    as_process = selection([[a(True, "1", m=0.6), a(False, "2", m=0.4), a(False, "2", m=0.3)]], [3], {"m": "process"})
    assert as_process["reward_models"]["m"]["weighted_majority@3"] == 0.0  # 0.6 against 0.7


def test_figures_of_nothing_are_none() -> None:
    figures = selection([[a(False, None, m=None)]], [2], {"m": "process"})
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["majority@2"] is None
    assert figures["reward_models"]["m"]["auc"] is None


# ---- from the command line to the files

TASK = ("--task", "arithmetic", "--option", "max_digits=2", "--limit", "6")
SAMPLED = (*TASK, "-n", "4", "--max-tokens", "12")
COMPLETIONS = ("so\n\\boxed{{{right}}}", "\\boxed{{{right}}}", "no:\nit is\n\\boxed{{7}}", "\\boxed{{7}}", "?")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five completions of each of six problems, of which two are right."""
    folder = tmp_path_factory.mktemp("sampled")
    done("evaluate", "--gold", *TASK, "--out", folder / "gold")
    file = folder / "some.jsonl"
    with file.open("w") as stream:
        for row in lines(folder / "gold" / "samples.jsonl"):
            for text in COMPLETIONS:
                kept = {key: row[key] for key in ("task", "problem", "prompt")}
                stream.write(json.dumps({**kept, "completion": text.format(right=row["gold"])}) + "\n")
    return file


def scoring(sampled: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return ("evaluate", "--samples", sampled, *TASK, "--k", "1,3,5", *more)


def test_existing_samples_are_scored_and_summed_up(models: Path, sampled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = scoring(sampled, "--reward-model", f"judge={models / 'orm'}", "--reward-model", models / "prm")
    output = done(*words, "--aggregate", "last", "--out", out)
    rows = lines(out / "samples.jsonl")
    results = json.loads((out / "results.json").read_text())
    figures = results["tasks"]["arithmetic"]
    groups = [rows[i : i + 5] for i in range(0, 30, 5)]
    for name in ("judge", "prm"):
        found = figures["reward_models"][name]
        scores = [[row["scores"][name] for row in group] for group in groups]
        right = [[float(row["reason"] == "correct") for row in group] for group in groups]
        answers = [[row["answer"] for row in group] for group in groups]
        weights = [[1 / (1 + math.exp(-s)) if name == "judge" else s for s in some] for some in scores]
        for k in (3, 5):
            best = [best_of_k(s, r, k) for s, r in zip(scores, right, strict=True)]
            voted = [majority_of_k(v, r, k, w) for v, r, w in zip(answers, right, weights, strict=True)]
            assert found[f"best_of@{k}"] == pytest.approx(sum(best) / 6)
            assert found[f"weighted_majority@{k}"] == pytest.approx(sum(voted) / 6)
        flat = [s for some in scores for s in some], [r for some in right for r in some]
        assert found["auc"] == pytest.approx(auc(*flat))
        assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1]
    for row in rows:
        steps = row["step_scores"]["prm"]
        assert steps[-1] == [len(row["completion"]), row["scores"]["prm"]]  # aggregate last
        assert len(steps) == row["completion"].count("\n") + 1
    assert "best of 5 by judge" in output
    assert "weighted majority@3 by prm" in output
    said = results["manifest"]["reward_models"]["prm"]
    assert (said["kind"], said["aggregate"], said["boundary"]) == ("process", "last", "newline")
    assert said["files_sha256"]


def test_scores_are_those_of_plain_transformers(models: Path, sampled: Path, tmp_path: Path) -> None:
    done(*scoring(sampled, "--reward-model", models / "orm", "--out", tmp_path / "out"))
    model = AutoModelForSequenceClassification.from_pretrained(models / "orm")
    tokenizer = AutoTokenizer.from_pretrained(models / "orm")
    for row in lines(tmp_path / "out" / "samples.jsonl")[:5]:
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        ids = [*ids, tokenizer.eos_token_id] if ids[-1] != tokenizer.eos_token_id else ids
        with torch.no_grad():
            assert row["scores"]["orm"] == pytest.approx(float(model(torch.tensor([ids])).logits), abs=1e-4)


def test_interrupted_while_it_scores_the_files_are_the_same(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_scores, "BLOCK", 8)  # two problems of four samples
    one = ("evaluate", models / "policy", *SAMPLED, "--reward-model", models / "orm")
    words = (*one, "--reward-model", models / "prm", "--out")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done(*words, whole)
    write = Journal.scored
    written: list[str] = []

    def scored(self: Journal, model: str, task: str, block: Any) -> None:
        if len(written) == 4:  # three blocks of the first model, one of the second
            with self.path.open("ab") as stream:
                stream.write(b'{"task": "arithmetic", "model": "')  # what a kill may leave
            raise KeyboardInterrupt
        written.append(model)
        write(self, model, task, block)

    monkeypatch.setattr(Journal, "scored", scored)
    assert call(*words, cut).exit_code == 130
    assert (cut / NAME).exists()
    first = list(written)

    def rest(self: Journal, model: str, task: str, block: Any) -> None:
        written.append(model)
        write(self, model, task, block)

    def sample(*_: object) -> None:
        raise AssertionError("sampled twice")

    monkeypatch.setattr(Journal, "scored", rest)
    monkeypatch.setattr(HFEngine, "generate", sample)
    done(*words, cut)
    assert len(written) - len(first) == 2  # what was scored is not scored again
    assert set(written[4:]) == {first[-1]}
    for name in FILES:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert not (cut / NAME).exists()
    assert "reward_models.prm.kind: process -> (not there)" in refused(*one, "--out", cut)


def test_a_useless_reward_model_costs_no_samples(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("evaluate", models / "policy", *SAMPLED, "--out", tmp_path / "out", "--reward-model")
    assert "--reward-model" in (said := refused(*words, models / "untrained"))
    assert "its head is all zeros" in said

    def sample(*_: object) -> None:
        raise AssertionError("sampled twice")

    monkeypatch.setattr(HFEngine, "generate", sample)
    done(*words, models / "orm")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reward-model", "{}/policy"), "policy is Qwen2ForCausalLM, which does not say how good a text is"),
        (("--reward-model", "{}/critic"), "which does not say how good a text is; give a model trained with recipe"),
        (("--reward-model", "{}/none"), "--reward-model={}/none: there is no such folder"),
        (
            ("--reward-model", "{}/orm", "--reward-model", "orm={}/prm"),
            "orm is the name of {}/orm too; tell them apart",
        ),
        (("--reward-model", "x="), "write DIR, or NAME=DIR"),
        (("--reward-model", "{}/orm", "--aggregate", "prod"), "--aggregate prod speaks of the steps"),
        (("--reward-model", "{}/prm", "--boundary", "newlines"), "--boundary newlines: unknown boundary"),
        (("--reward-model", "{}/prm", "--reward-device", "cuda:99"), "--reward-device=cuda:99, and torch sees"),
        (("--aggregate", "prod"), "--aggregate says how --reward-model is meant; give --reward-model too"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sampled(
    models: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    filled = [word.replace("{}", str(models)) for word in words]
    output = refused("evaluate", "--gold", "--task", "arithmetic", "--limit", "1", *filled, "--out", tmp_path / "out")
    assert said.replace("{}", str(models)) in output
    assert not (tmp_path / "out").exists()


# ---- labels of steps


def steps_of(labels: list[float | None], scores: list[float], problem: str = "p") -> ScoredSteps:
    return ScoredSteps(problem, tuple(labels), tuple(scores))


def test_figures_of_steps_by_hand() -> None:
    solutions = [
        steps_of([1, 0, None], [0.9, 0.2, 0.1]),  # found
        steps_of([1, 1, 0], [0.9, 0.5, 0.1], "q"),  # a step before it is named
        steps_of([1, 1], [0.6, 0.8], "r"),  # spared
        steps_of([None, 0], [0.9, 0.1], "s"),  # nobody knows whether the first is wrong
    ]
    figures = step_figures(solutions)
    assert (figures["with_error"], figures["without_error"], figures["left_out"]) == (2, 1, 1)
    assert (figures["found"], figures["spared"]) == (0.5, 1.0)
    assert figures["first_error_f1"] == pytest.approx(2 * 0.5 / 1.5)
    labels = [[math.nan if x is None else x for x in s.labels] for s in solutions]
    trained = first_errors([[p - 0.5 for p in s.scores] for s in solutions], labels)
    assert {key: figures[key] for key in trained} == pytest.approx(trained)
    # right: 0.9, 0.9, 0.5, 0.6, 0.8; wrong: 0.2, 0.1, 0.1
    assert (figures["steps"], figures["wrong_steps"]) == (8, 3)
    assert figures["accuracy"] == pytest.approx(7 / 8)
    assert figures["balanced_accuracy"] == pytest.approx((4 / 5 + 1) / 2)
    assert (figures["wrong_precision"], figures["wrong_recall"]) == (pytest.approx(3 / 4), 1.0)
    assert figures["wrong_f1"] == pytest.approx(6 / 7)
    assert figures["auc"] == 1.0
    for name in ("found", "spared", "first_error_f1"):
        low, high = figures[f"{name}_interval"]
        assert 0 <= low < figures[name] <= high <= 1
    lower = step_figures(solutions, threshold=0.4)
    assert (lower["found"], lower["spared"], lower["accuracy"]) == (1.0, 1.0, 1.0)
    assert [row["steps"] for row in figures["by_steps"]] == [[1, 2], [3, 4]]
    assert figures["by_steps"][1]["found"] == 0.5
    only_right = step_figures([steps_of([1, 1], [0.9, 0.1])])
    assert (only_right["found"], only_right["first_error_f1"], only_right["wrong_f1"], only_right["auc"]) == (None,) * 4
    json.dumps(only_right, allow_nan=False)


def test_a_process_model_against_files_of_labels(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    rows = [
        {"prompt": "1+2+3=", "completions": ["1+2=3", "3+3=6"], "labels": [True, True], "problem": "a"},
        {"prompt": "1+2+4=", "completions": ["1+2=4", "4+4=8", "8"], "labels": [False, False, None], "problem": "b"},
        {"prompt": "1+9=", "completions": ["x" * 200], "labels": [True], "problem": "c"},  # more than it reads
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    output = done("evaluate-steps", models / "prm", file, "--out", out, "--threshold", "0.4")
    results, scored = json.loads((out / "step_results.json").read_text()), lines(out / "step_scores.jsonl")
    assert results["manifest"]["threshold"] == 0.4
    assert (results["solutions"], results["unread"], results["steps"]) == (2, 1, 4)
    assert [line["first_wrong"] for line in scored[:2]] == [None, 0]
    read = [ScoredSteps(line["problem"], tuple(line["labels"]), tuple(line["scores"])) for line in scored[:2]]
    expected = step_figures(read, 0.4)
    assert {key: results[key] for key in expected} == json.loads(json.dumps(expected))
    assert "tokens are more than the 128 that it reads" in scored[2]["unread"]
    assert "first error: F1" in output
    # the same text in the same steps has the score that it has as a completion
    sampled = tmp_path / "s.jsonl"
    row = {"problem": "arithmetic/test/0", "prompt": "1+2+3=", "completion": "1+2=3\n3+3=6"}
    sampled.write_text(json.dumps(row) + "\n")
    task = ("--task", "arithmetic", "--limit", "1")
    done("evaluate", "--samples", sampled, *task, "--reward-model", models / "prm", "--out", tmp_path / "e")
    (sample,) = lines(tmp_path / "e" / "samples.jsonl")
    assert [p for _, p in sample["step_scores"]["prm"]] == pytest.approx(scored[0]["scores"], abs=1e-6)
    assert "is an outcome model, which says nothing of steps" in refused("evaluate-steps", models / "orm", file)
    assert "policy is Qwen2ForCausalLM" in refused("evaluate-steps", models / "policy", file)
    assert "FILE=" in refused("evaluate-steps", models / "prm", tmp_path / "none.jsonl")
