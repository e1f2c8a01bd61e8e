"""Judges against a real `vllm serve` on the CPU, and with vLLM in this process: the numbers, the calls, what is kept.

The model has random weights, a token for each character ("10" is two of them) and a chat template.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from grpo_math import config
from grpo_math.cli import app
from grpo_math.evaluation.hf import HFSampler
from grpo_math.judging import verdict
from grpo_math.judging.answers import top_tokens
from grpo_math.judging.desk import Desk
from grpo_math.judging.judge import Judge
from grpo_math.judging.ledger import Caps
from grpo_math.judging.local import Local
from grpo_math.judging.question import Question, Reply, Talk
from grpo_math.judging.server import Address, Server
from grpo_math.judging.template import load_template
from grpo_math.judging.verdict import Reading, Score, score
from grpo_math.prompts import plain_ids
from grpo_math.scoring import Scorer
from grpo_math.serving.command import server_arguments, server_environment
from grpo_math.serving.process import ServerProcess
from grpo_math.small_model import small_model
from grpo_math.types import Problem, UserError
from grpo_math.verify import completion_of
from tests.judges import collect, lines, save_judge_of_numbers, write_samples
from tests.test_openai_sampler import ascii_tokenizer
from tests.test_vllm_server import SHAPE, free_ports, needs_vllm, wait_for

pytestmark = [needs_vllm, pytest.mark.slow]

CONTEXT = 2048
ALL = 97  # tokens there are: with random weights no label is among the likeliest 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("model"), ascii_tokenizer()
    model = small_model(SHAPE.model_copy(update={"context": CONTEXT}), tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)  # far from uniform
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[str]:
    [port] = free_ports(1)
    cfg = config.GRPO(run_dir=str(folder), task=config.Task(name="arithmetic"), model=config.Model(path=str(folder)))
    command = [sys.executable, "-m", "grpo_math.serving.child", "{lifeline}"]
    command += [*server_arguments(cfg, "127.0.0.1", port, cuda=False), "--max-logprobs", str(ALL)]
    command += ["--served-model-name", "tiny"]
    url = f"http://127.0.0.1:{port}"
    process = ServerProcess(str(port), url, command, server_environment(cfg, 0, 1, []) | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: process.healthy() or process.ended(), 300)
        assert not process.ended()
        yield url
    finally:
        process.ask_to_end()
        process.end(time.monotonic() + 10)


@pytest.fixture(autouse=True)
def all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "TOP", ALL)


def one(question: Question) -> Talk[Reply]:
    reply = yield question
    return reply


def scores(reading: Reading) -> list[Talk[Score]]:
    template = load_template("score")
    return [score(template, {"question": "Why?", "completion": f"Because {i}."}, reading) for i in range(5)]


def test_server_vllm_and_transformers_give_the_same_scores(vllm: str, folder: Path, tmp_path: Path) -> None:
    from grpo_math.evaluation.vllm import VLLMSampler

    reading = Reading(min_mass=0.0)
    plain = Local(HFSampler(str(folder), 8, "float32", "cpu"), str(folder), Desk(tmp_path / "hf", Caps()))
    expected = collect(plain, scores(reading))
    values = [s.value for s in expected.values()]
    assert all(value is not None and 1 < value < 10 for value in values)
    assert plain.desk.asked == 10  # how each goes on after a "1" is asked too, since 10 is two tokens
    server = Server(Address(f"{vllm}/v1", "tiny"), Desk(tmp_path / "server", Caps()))
    found = collect(server, scores(reading))
    assert [found[i].value for i in range(5)] == pytest.approx(values, abs=1e-4)
    assert server.desk.asked == 10
    sampler = VLLMSampler(str(folder), 8, "float32", {"kv_cache_memory_bytes": 1 << 26, "max_logprobs": ALL})
    inside = Local(sampler, str(folder), Desk(tmp_path / "vllm", Caps()))
    try:
        found = collect(inside, scores(reading))
        assert [found[i].value for i in range(5)] == pytest.approx(values, abs=1e-4)
        judges: list[Judge] = [plain, inside, server]
        # and each writes the same text, and goes on from the same beginning
        text = Question(({"role": "user", "content": "Why?"},), 12, 0.0)
        replies = [collect(judge, [one(text)])[0] for judge in judges]
        assert replies[0].text
        assert len({(reply.text, reply.cut) for reply in replies}) == 1
        begun = Question(({"role": "user", "content": "Why?"},), top=ALL, begins="1")
        tops = [dict(collect(judge, [one(begun)])[0].top) for judge in judges]
        for top in tops[1:]:
            assert top["0"] == pytest.approx(tops[0]["0"], abs=1e-3)
            assert math.fsum(map(math.exp, top.values())) == pytest.approx(1.0, abs=1e-3)
    finally:
        inside.close()
    # and without a chat template, where the API has another form
    bare = Server(Address(f"{vllm}/v1", "tiny", chat=False), Desk(tmp_path / "bare", Caps()))
    top = dict(collect(bare, [one(begun)])[0].top)
    tokenizer = plain.answerer.tokenizer
    [own] = top_tokens(plain.answerer.sampler, [plain_ids("Why?\n\n1", tokenizer)], ALL)
    assert top["0"] == pytest.approx(dict(own)["0"], abs=1e-3)


def test_a_server_that_is_slow_or_has_another_model(vllm: str, tmp_path: Path) -> None:
    slow = Server(Address(vllm, "tiny", request_s=0.2, retries=1), Desk(tmp_path, Caps()))
    long = Question(({"role": "user", "content": "Why?"},), 1900, 1.0)
    [reply] = collect(slow, [one(long)]).values()
    assert "failed 2 times, the last time so: no answer to /chat/completions within 0.2 s" in str(reply.failed)
    assert len(slow.desk.cache) == 0
    with pytest.raises(UserError, match="has no model 'large'; it has tiny"):
        Server(Address(vllm, "large"), Desk(tmp_path, Caps())).introduce()


def test_label_and_revise_against_a_server(vllm: str, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "s.jsonl", {f"p{i}": ["It is 4.", "It is 5.", "No idea."] for i in range(4)})
    out = tmp_path / "pairs.jsonl"
    words = ["label", str(samples), "--judge", "tiny", "--base-url", vllm, "--out", str(out), "--tie", "0"]
    words += ["--min-mass", "0", "--pairs-per-problem", "2", "--reason", "--max-tokens", "20", "--temperature", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = lines(out)
    assert len(rows) == 8
    assert all(0.5 < row["probability"] < 1 for row in rows)
    summary = json.loads((tmp_path / "pairs.jsonl.summary.json").read_text())["made"]
    assert (summary["comparisons"], summary["failed"]) == (8, 0)
    before = out.read_bytes()
    result = CliRunner().invoke(app, words)
    assert (
        "0 questions asked, 32 known; with earlier calls 32 requests" in result.output
    )  # two orders, each with reasons and a verdict
    assert out.read_bytes() == before
    (tmp_path / "pairs.jsonl.judge" / "replies.jsonl").unlink()
    assert CliRunner().invoke(app, words).exit_code == 0  # the seed makes the server write the same reasons
    assert [(r["chosen"], r["rejected"]) for r in lines(out)] == [(r["chosen"], r["rejected"]) for r in rows]
    template = tmp_path / "whole.yaml"
    template.write_text(
        "kind: revision\nextract: whole\nprinciples: [Be kind.]\n"
        'critique: "{question} {completion} {principle}"\nrevise: Now.\n'
    )
    words = ["revise", str(samples), "--judge", "tiny", "--base-url", vllm, "--template", str(template)]
    words += ["--out", str(tmp_path / "sft.jsonl"), "--max-tokens", "100", "--temperature", "1", "--rounds", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (0, 2), result.output
    assert "revised" in result.output


def test_the_verifier_runs_vllm_for_its_workers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the scores that transformers gives; its process is gone with the workers."""
    monkeypatch.setattr(verdict, "TOP", 20)  # what the workers ask for
    numbers = tmp_path / "numbers"
    save_judge_of_numbers(AutoModelForCausalLM.from_pretrained(folder), ascii_tokenizer(), numbers)
    problems = [(Problem(f"p{i}", "t", "Why?", ""), completion_of(f"Because {i}.")) for i in range(5)]
    plain = Local(HFSampler(str(numbers), 8, "float32", "cpu"), str(numbers), Desk(tmp_path / "hf", Caps()))
    expected = [s.value for _, s in sorted(collect(plain, scores(Reading(min_mass=0.0))).items())]
    options = {
        "engine": "vllm", "model": str(numbers), "cache": str(tmp_path / "cache"), "min_mass": 0.0, "max_rows": 8,
        "engine_options": {"kv_cache_memory_bytes": 1 << 26},
    }  # fmt: skip
    with Scorer([config.Reward(verifier="judge", options=options)], config.Scoring(workers=2)) as scorer:
        scored = scorer.score(problems)
    assert len(set(expected)) == 5
    assert [s.reward for s in scored] == pytest.approx([(value - 1) / 9 for value in expected if value], abs=1e-4)


def test_the_verifier_asks_a_server(vllm: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"url": vllm, "cache": str(tmp_path / "cache"), "min_mass": 0.0}
    options |= {"read": "text", "max_tokens": 10, "retries": 0}
    scoring = config.Scoring(workers=1, timeout_s=0.2, max_error_share=1.0)
    with Scorer([config.Reward(verifier="judge", options=options)], scoring) as scorer:
        [scored] = scorer.score([(Problem("p", "t", "Why?", ""), completion_of("Because."))])
        [long] = scorer.score([(Problem("q", "t", "Why?", ""), completion_of("Because." * 400))])
    assert (scored.reward, scored.verdict.reason) == (None, "error")  # random weights give no score, and no zero
    assert 'there is no "score: ..." in the answer' in scored.verdict.detail
    assert "refuses the question with status 400" in long.verdict.detail
