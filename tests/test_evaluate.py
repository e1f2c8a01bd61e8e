"""Evaluation from the model to the files: what is counted, what is left out, and that nothing else decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_math import quickstart
from grpo_math.cli import app
from grpo_math.evaluate import summarise
from grpo_math.passk import pass_at_k
from grpo_math.types import Group, Problem, Prompt, Scored, Verdict
from tests.tiny import completion, save_tiny


def judged(*verdicts: Verdict) -> Group:
    scores = tuple(Scored(v.reward, v, {"math": v}) for v in verdicts)
    return Group(Prompt(Problem("p", "t", "q", "1"), (4,), "q"), tuple(completion([5, 6]) for _ in verdicts), scores)


RIGHT, WRONG = Verdict(1.0, "correct", answer="1"), Verdict(0.0, "wrong", answer="2")
SLOW_PROGRAM = Verdict(0.0, "timeout", tests=("passed", "timeout"))
LATE, SILENT = Verdict(None, "timeout"), Verdict(0.0, "no_answer")


def test_what_is_summed_up():
    groups = [judged(RIGHT, WRONG, SILENT, LATE), judged(RIGHT, RIGHT, RIGHT, RIGHT), judged(LATE, LATE, LATE, LATE)]
    figures = summarise(groups, [1, 2, 4])
    assert figures["accuracy"] == pytest.approx((1 / 3 + 1) / 2)  # a time-out is left out, not wrong
    assert figures["pass@1"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["pass@2"] == pytest.approx((pass_at_k(3, 1, 2) + 1) / 2)
    assert figures["pass@4"] == 1.0
    assert figures["pass@4_left_out"] == 2
    assert figures["timeouts"] == 5
    assert figures["format_rate"] == pytest.approx(6 / 12)


def test_a_program_whose_time_was_up_is_wrong_and_no_time_out():
    figures = summarise([judged(RIGHT, SLOW_PROGRAM)], [1])
    assert (figures["accuracy"], figures["pass@1"], figures["timeouts"]) == (0.5, 0.5, 0)


def test_from_the_command_line_to_the_files(tmp_path: Path):
    model, out = save_tiny(tmp_path / "model"), tmp_path / "out"
    arguments = ["evaluate", str(model), "--task", "arithmetic", "--option", "max_digits=2", "--limit", "6", "-n", "4"]
    options = ["--k", "1,4", "--max-tokens", "12", "--out", str(out), "--seed", "3"]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "results.json").read_text())
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert figures["problems"] == 6
    assert figures["completions"] == len(samples) == 24
    assert len({s["problem"] for s in samples}) == 6
    problems = {s["problem"] for s in samples}
    correct = [[s["reason"] == "correct" for s in samples if s["problem"] == p] for p in problems]
    assert figures["pass@1"] == pytest.approx(sum(map(sum, correct)) / 24)
    assert figures["pass@4"] == pytest.approx(sum(map(any, correct)) / 6)
    assert figures["truncated"] == pytest.approx(sum(s["finish_reason"] == "length" for s in samples) / 24)
    again = CliRunner().invoke(app, [*arguments, *options[:-3], str(tmp_path / "again"), "--seed", "3"])
    assert again.exit_code == 0
    assert (tmp_path / "again" / "samples.jsonl").read_text() == (out / "samples.jsonl").read_text()


def test_the_quickstart_measures_both_models_on_the_same_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launch = tmp_path / "launch"
    launch.mkdir()
    for name, changes in (
        (
            "arithmetic_sft.yaml",
            {
                "steps: 500": "steps: 2",
                "every: 20, problems: 512": "every: 2, problems: 8",
                "hidden_size: 128, layers: 4": "hidden_size: 16, layers: 1",
            },
        ),
        (
            "arithmetic_grpo.yaml",
            {
                "steps: 300": "steps: 2",
                "prompts_per_step: 64": "prompts_per_step: 2",
                "max_tokens: 64": "max_tokens: 8",
            },
        ),
    ):
        text = (Path("launch") / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (launch / name).write_text(text)
    monkeypatch.setattr(quickstart, "LAUNCH", launch)
    monkeypatch.setattr(quickstart, "PROBLEMS", 10)
    out = tmp_path / "out"
    quickstart.quickstart(seed=1, out=out)
    results = json.loads((out / "results.json").read_text())
    assert {"base", "trained", "seconds"} <= results.keys()
    for name in ("base", "trained"):
        assert {"pass@1", "pass@8", "pass@1_interval"} <= results[name].keys()

    def asked(file: str) -> list[str]:
        return [json.loads(line)["prompt"] for line in (out / file).read_text().splitlines()]

    measured = asked("trained/evaluation/samples.jsonl")
    assert measured == asked("base/evaluation/samples.jsonl")
    assert len(set(measured)) == 10
    assert not set(measured) & set(asked("trained/completions.jsonl"))
    assert not quickstart.interrupted(out, 1)
