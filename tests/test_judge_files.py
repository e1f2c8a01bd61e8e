"""The files that a judge makes of samples: `grpo-math label` and `grpo-math revise`."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from grpo_math import config
from grpo_math.examples.columns import example_of
from grpo_math.judging.constitution import Principle
from grpo_math.judging.revise import Revising, drawn
from grpo_math.judging.samples import asked_in
from grpo_math.problems import load_problems
from tests.judges import (
    TEXTS,
    call,
    judges,
    judging_server,
    lines,
    with_tops,
    write_samples,
)
from tests.test_openai_sampler import StandIn, answer, says
from tests.test_vllm_server import wait_for

ROOT = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with judging_server() as stand_in:
        yield stand_in


# --- label -----------------------------------------------------------------------------------------------------------


def test_label_writes_pairs_that_trainers_take(server: StandIn, tmp_path: Path) -> None:
    samples, out = write_samples(tmp_path / "samples.jsonl", TEXTS), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "2 pairs -> " in result.output
    assert "3 comparisons: 2 pairs, 1 ties; " in result.output
    rows = lines(out)
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in rows] == [
        ("a?", "good good", "bad"), ("c?", "good x", "x"),
    ]  # fmt: skip
    odds = [1 / (1 + math.exp(-2 - s * 0.3)) for s in (1, -1)]
    assert rows[0]["probability"] == pytest.approx(sum(odds) / 2, abs=1e-6)
    assert rows[0]["orders_differ"] == pytest.approx(odds[0] - odds[1], abs=2e-6)
    assert rows[0]["chosen_source"] == f"{samples}:1"
    for row in rows:
        pair = example_of("preference", row, "here")
        assert [c.text for c in pair.completions] == [row["chosen"], row["rejected"]]
        assert [c.reward for c in pair.completions] == [row["probability"], pytest.approx(1 - row["probability"])]
    summary = json.loads((tmp_path / "pairs.jsonl.summary.json").read_text())
    assert summary["made"] == {
        "comparisons": 3, "pairs": 2, "ties": 1, "failed": 0, "not_asked": 0, "contradicted": 1,
        "first_shown": summary["made"]["first_shown"],
    }  # fmt: skip
    assert 0.5 < summary["made"]["first_shown"] < 0.6  # the stand-in's bias shows, and is averaged out of the pairs
    assert summary["judge"]["model"] == "tiny"
    assert summary["judge"]["template"] == "prefer"
    assert summary["output"]["lines"] == 2
    before, asked = out.read_bytes(), len(server.bodies)
    assert asked == 6
    assert call(*words).exit_code == 0
    assert (out.read_bytes(), len(server.bodies)) == (before, 6)
    # neither the order of the lines nor other problems change what is compared
    turned = write_samples(tmp_path / "turned.jsonl", {p: some[::-1] for p, some in reversed(TEXTS.items())})
    assert call("label", turned, *words[2:-1], tmp_path / "b.jsonl", "--cache", f"{out}.judge").exit_code == 0
    assert len(server.bodies) == 6
    assert {(r["chosen"], r["probability"]) for r in lines(tmp_path / "b.jsonl")} == {
        (r["chosen"], r["probability"]) for r in rows
    }


def test_label_with_a_budget(server: StandIn, tmp_path: Path) -> None:
    texts = {f"p{i:02}": ["good", "bad"] for i in range(10)}
    samples, out = write_samples(tmp_path / "samples.jsonl", texts), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--concurrency", 1]
    result = call(*words, "--max-requests", 7)
    assert result.exit_code == 2
    assert "budget is spent: 7 requests of --max-requests=7" in result.output
    assert "3 of 10 comparisons are made; --partial writes those" in result.output
    assert not out.exists()
    result = call(*words, "--max-requests", 7, "--partial")
    assert result.exit_code == 0, result.output
    assert "7 not asked" in result.output
    assert [row["problem"] for row in lines(out)] == ["p00", "p01", "p02"]
    assert call(*words, "--max-requests", 20).exit_code == 0
    assert (len(lines(out)), len(server.bodies)) == (10, 20)


def test_label_refuses_what_it_cannot_use(server: StandIn, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples.jsonl", {"a": ["x", "x "]})
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", tmp_path / "pairs.jsonl"]
    assert "no problem has two different completions" in call(*words).output
    write_samples(samples, {"a": ["so", "la"]})
    result = call(*words)
    assert result.exit_code == 2
    assert "no pair is left: 1 comparisons: 0 pairs, 1 ties" in result.output
    server.does = says(with_tops({"Well": 0.9}))
    assert (
        "first that failed: the labels 1, 2 have a probability of 0" in call(*words, "--cache", tmp_path / "c").output
    )
    assert "--engine openai and --base-url URL go together" in call(*words, "--engine", "hf").output
    assert "is one of the inputs" in call(*words[:-1], samples).output
    assert "kind score, and preference is needed" in call(*words, "--template", "score").output
    assert "name the task with --task" in call(*words, "--path", samples).output


def test_questions_are_taken_from_where_they_are(server: StandIn, tmp_path: Path) -> None:
    assert asked_in('[{"role": "system", "content": "s"}, {"role": "user", "content": "Q?"}]') == "Q?"
    assert asked_in("[{1, 2}] = ?") == "[{1, 2}] = ?"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "What is 2 + 3?", "answer": "so\n#### 5"}) + "\n")
    out = tmp_path / "pairs.jsonl"
    samples = write_samples(
        tmp_path / "s.jsonl", {"gsm8k/train/1": ["good", "bad"]}, question="From the sample?", gold="5"
    )
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out]
    assert call(*words).exit_code == 0
    assert "From the sample?" in server.bodies[-1]["messages"][0]["content"]
    assert call(*words, "--task", "gsm8k", "--path", data).exit_code == 0
    assert "What is 2 + 3?" in server.bodies[-1]["messages"][0]["content"]
    write_samples(samples, {"gsm8k/test/1": ["good", "bad"]})
    result = call(*words, "--task", "gsm8k", "--path", data)
    assert "s.jsonl:1: problem='gsm8k/test/1' is not one of --task; give the task, --path and --split" in result.output


def test_label_killed_goes_on_where_it_was(server: StandIn, tmp_path: Path) -> None:
    server.does = judges(pause_s=0.05)
    texts = {f"p{i:02}": ["good", "bad"] for i in range(40)}
    samples, out = write_samples(tmp_path / "samples.jsonl", texts), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--concurrency", 2]
    command = [sys.executable, "-m", "grpo_math", *map(str, words)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: len(server.bodies) >= 20, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: server.running == 0, 5)
    assert not out.exists()
    asked = len(server.bodies)
    assert asked < 80
    assert call(*words).exit_code == 0
    assert 80 <= len(server.bodies) <= 80 + 2 + 2  # what was on its way is asked again, and nothing else
    assert len(lines(out)) == 40
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


# --- revise ----------------------------------------------------------------------------------------------------------


def test_revise_writes_what_sft_and_pairs_need(server: StandIn, tmp_path: Path) -> None:
    samples, law = write_samples(tmp_path / "samples.jsonl", TEXTS), tmp_path / "law.txt"
    law.write_text("Be kind.\nBe brief.\nBe true.\n")
    out, pairs = tmp_path / "sft.jsonl", tmp_path / "pairs.jsonl"
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--constitution", law]
    words += ["--rounds", 2, "--out", out, "--pairs", pairs]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "7 revisions -> " in result.output
    rows = lines(out)
    assert [(r["prompt"], r["completion"]) for r in rows[:3]] == [
        ("a?", "good good good good"), ("a?", "bad good good"), ("b?", "so good good"),
    ]  # fmt: skip
    assert rows[1]["original"] == "bad"
    assert rows[1]["critiques"] == ["It could be better."] * 2
    assert {p for r in rows for p in r["principles"]} == {"Be kind.", "Be brief.", "Be true."}
    assert (rows[0]["problem"], rows[0]["task"], rows[0]["gold"]) == ("a", "t", "1")
    example_of("sft", rows[0], "here")
    for row, pair in zip(rows, lines(pairs), strict=True):
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (row["prompt"], row["completion"], row["original"])
        example_of("preference", pair, "here")
    # the second turn has the critique before it, and the principle that was drawn
    turns = next(b["messages"] for b in server.bodies if len(b["messages"]) == 3)
    assert [m["role"] for m in turns] == ["user", "assistant", "user"]
    assert len(server.bodies) == 7 * 2 * 2
    before = out.read_bytes()
    assert call(*words).exit_code == 0
    assert (out.read_bytes(), len(server.bodies)) == (before, 28)
    summary = json.loads((tmp_path / "sft.jsonl.summary.json").read_text())
    assert summary["constitution"]["principles"] == 3
    assert summary["made"] == {"completions": 7, "revised": 7, "unchanged": 0, "failed": 0, "not_asked": 0}


def test_revisions_are_samples_that_a_verifier_judges(server: StandIn, tmp_path: Path) -> None:
    problems = load_problems(config.Task(name="arithmetic", split="test", limit=2)).problems
    assert problems
    answers = {p.id: [f"\\boxed{{{p.answer}}}"] for p in problems}
    samples, out = write_samples(tmp_path / "s.jsonl", answers, task="arithmetic", gold=""), tmp_path / "sft.jsonl"
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--constitution"]
    (tmp_path / "law.txt").write_text("Be kind.\n")
    assert call(*words, tmp_path / "law.txt").exit_code == 0
    words = ["evaluate", "--samples", out, "--task", "arithmetic", "--limit", 2, "--out", tmp_path / "verified"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    kept = tmp_path / "kept.jsonl"
    assert call("filter", tmp_path / "verified" / "samples.jsonl", "--to", "sft", "--out", kept).exit_code == 0
    assert [r["completion"] for r in lines(kept)] == [f"{some[0]} good" for some in answers.values()]
    assert [r["prompt"] for r in lines(kept)] == [f"{name}?" for name in answers]


def test_revise_fails_one_by_one_and_leaves_out_what_is_unchanged(server: StandIn, tmp_path: Path) -> None:
    async def does(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        [text] = re.findall(r"\[Solution\]\n(.*?)\n\n\[", body["messages"][0]["content"], re.DOTALL)
        if len(body["messages"]) == 1:
            return web.json_response(answer("Hm."))
        last = {"x": "no tags", "y": "<revision>y</revision>", "z": "<revision>z!</revision>"}[text]
        return web.json_response(answer(last, "length" if text == "w" else "stop"))

    server.does = does
    samples = write_samples(tmp_path / "s.jsonl", {"a": ["x", "y", "z"]})
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--template", "clair"]
    words += ["--out", tmp_path / "sft.jsonl", "--pairs", tmp_path / "pairs.jsonl"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "3 completions, 2 revised, 1 unchanged, 1 failed" in result.output
    assert "first that failed: the answer has no <revision>" in result.output
    assert [row["completion"] for row in lines(tmp_path / "sft.jsonl")] == ["y", "z!"]
    assert [row["chosen"] for row in lines(tmp_path / "pairs.jsonl")] == ["z!"]
    assert "brings no principles of its own; give --constitution" in call(*words, "--template", "constitutional").output
    assert "is --out too" in call(*words[:-1], tmp_path / "sft.jsonl").output


def test_principles_are_drawn_by_the_seed() -> None:
    from grpo_math.filtering.candidate import Candidate

    law = [Principle(str(i), str(i)) for i in range(4)]
    candidates = [Candidate("f", i, "t", f"p{i}", "q", "c", None, "unknown") for i in range(300)]
    found = [drawn(law, c, Revising(rounds=2, seed=1)) for c in candidates]
    assert found == [drawn(law, c, Revising(rounds=2, seed=1)) for c in candidates]
    assert found != [drawn(law, c, Revising(rounds=2, seed=2)) for c in candidates]
    counts = [sum(p.critique == str(i) for some in found for p in some) for i in range(4)]
    assert min(counts) > 110  # of 150 each on average
