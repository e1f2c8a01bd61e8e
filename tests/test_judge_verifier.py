"""Judges as verifiers, and judges in this process."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from grpo_math import config
from grpo_math.cli import app
from grpo_math.judging import verdict
from grpo_math.judging.cache import REPLIES
from grpo_math.judging.desk import Desk
from grpo_math.judging.ledger import BudgetSpent, Caps
from grpo_math.judging.options import Options
from grpo_math.judging.question import Question, Reply, Talk
from grpo_math.judging.verdict import Reading, Score
from grpo_math.scoring import Scorer, ScoringError, check_options
from grpo_math.types import Problem, UserError
from grpo_math.verify import completion_of
from tests.judges import (
    call,
    collect,
    judges,
    judging_server,
    lines,
    scores,
    with_tops,
    write_samples,
)
from tests.test_openai_sampler import StandIn, says

ROOT = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with judging_server() as stand_in:
        yield stand_in


# --- the verifier ----------------------------------------------------------------------------------------------------


def items(count: int) -> list[Any]:
    return [(Problem(f"p{i}", "t", "Why?", ""), completion_of("good " * i + ".")) for i in range(1, count)]


def scorer(options: dict[str, Any], workers: int = 1) -> Scorer:
    scoring = config.Scoring(workers=workers, timeout_s=0.2, max_error_share=0.5)
    return Scorer([config.Reward(verifier="judge", options=options)], scoring)


def test_the_verifier_in_the_workers_of_training(server: StandIn, tmp_path: Path) -> None:
    server.does = judges(pause_s=0.5)  # longer than scoring.timeout_s: the judge's own patience counts
    options = {"url": server.url, "cache": str(tmp_path / "cache"), "reward": "signed", "correct_from": 0.3}
    with scorer(options, workers=2) as one:
        scored = one.score([*items(4), (Problem("e", "t", "Why?", ""), completion_of(" "))])
    rewards = [2 * (s - 1) / 9 - 1 for s in (2, 3, 4)]
    assert [s.reward for s in scored] == pytest.approx([*rewards, -1.0])
    assert [s.verdict.reason for s in scored] == ["wrong", "wrong", "correct", "no_answer"]
    assert scored[0].verdict.detail == "tiny gives 2.000 from 1 to 10"
    assert len(server.bodies) == 3
    with scorer({**options, "reward": "unit"}) as other:  # in new processes, from the disk
        assert [s.reward for s in other.score(items(4))] == pytest.approx([(s - 1) / 9 for s in (2, 3, 4)])
    assert len(server.bodies) == 3


def test_a_judge_that_fails_is_an_error_verdict(server: StandIn, tmp_path: Path) -> None:
    server.does = says("boom", 500)
    options = {"url": server.url, "cache": str(tmp_path / "cache"), "retries": 0}
    with scorer(options) as one, pytest.raises(ScoringError, match=r"judge tiny: .*gave status 500") as raised:
        one.score(items(4))
    assert [(s.reward, s.verdict.reason) for s in raised.value.scored] == [(None, "error")] * 3
    server.does = says(with_tops({"Well": 0.9}))
    with scorer(options) as one, pytest.raises(ScoringError, match=r"the labels 1, 2, .* have a probability of 0"):
        one.score(items(4))
    server.does = judges()
    with scorer({**options, "max_requests": 7}) as one, pytest.raises(ScoringError, match="of max_requests=7"):
        one.score(items(6))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tempearture": 1}, "no option 'tempearture'; did you mean temperature"),
        ({"read": "tokens"}, "read='tokens': give logprobs or text"),
        ({"retries": -1}, "retries=-1: give a whole number from 0"),
        ({"reason": "yes"}, "reason='yes': give true or false"),
        ({"min_mass": 2}, "min_mass=2: give a number from 0 to 1"),
        ({"url": 8000}, "url=8000: give a text"),
        ({"url": "localhost"}, "judge: url 'localhost' is no address of a server; give one like http"),
        ({"request_field": "a"}, "request_field='a': give a mapping"),
        ({"template": "prefer"}, "it is of kind preference, and score is needed"),
        ({"rubric": "none.txt"}, "rubric none.txt cannot be read"),
    ],
)
def test_options_of_the_verifier(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Scorer([config.Reward(verifier="judge", options=options)], config.Scoring())
    Scorer([config.Reward(verifier="judge", options={"model": None, "max_requests": None, "temperature": 1})],
           config.Scoring()).close()  # fmt: skip


# --- a model in this process -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"), context=2048)


def test_transformers_tell_the_models_own_probabilities(folder: Path, tmp_path: Path) -> None:
    import torch

    from grpo_math.evaluation.hf import HFSampler
    from grpo_math.judging import answers
    from grpo_math.judging.answers import rendered, top_tokens
    from grpo_math.judging.local import Local

    sampler = HFSampler(str(folder), 3, "float32", "cpu")
    questions = [Question(({"role": "user", "content": "a" * n},), top=5, begins="1" * (n % 2)) for n in (1, 9, 40)]
    prompts = [rendered(question, sampler.policy.tokenizer) for question in questions]
    assert sampler.policy.tokenizer.decode(list(prompts[0])) == "a\n\n1"
    found = top_tokens(sampler, prompts, 5)
    for ids, top in zip(prompts, found, strict=True):
        with torch.no_grad():
            alone = sampler.policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, best = alone.topk(5)
        assert [p for _, p in top] == pytest.approx(values.tolist(), abs=1e-5)
        assert [t for t, _ in top] == [sampler.policy.tokenizer.decode([i]) for i in best.tolist()]
    answers.TOKENS_AT_ONCE, whole = 1, answers.TOKENS_AT_ONCE
    try:
        for one, other in zip(top_tokens(sampler, prompts, 5), found, strict=True):
            assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)
    finally:
        answers.TOKENS_AT_ONCE = whole

    short = Local(sampler, str(folder), Desk(tmp_path / "cache", Caps(requests=8)))
    any_mass = Reading(min_mass=0.0)
    judged: dict[int, Score] = {}
    with pytest.raises(BudgetSpent):
        collect(short, scores(9, any_mass), judged)
    again = Local(sampler, str(folder), Desk(tmp_path / "cache", Caps()))
    complete = collect(again, scores(9, any_mass))
    assert sorted(complete) == list(range(9))
    assert judged.items() <= complete.items()
    assert again.desk.kept >= 8
    again.answerer.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match=r"chat template does not take .*no system here.*leave it out of the template"):
        collect(again, [one_question(Question(({"role": "system", "content": "s"},), top=5))])
    again.answerer.tokenizer.chat_template = None
    long = Question(({"role": "user", "content": "a" * 3000},), top=5)
    [[(_, outcome)]] = again.hold([one_question(long)])
    assert "do not fit into the judge's context of 2048; take a judge that reads more" in str(outcome.failed)


def one_question(question: Question) -> Talk[Reply]:
    reply = yield question
    return reply


def test_commands_with_a_model_in_this_process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "TOP", 256)  # random weights: neither 1 nor 2 is among the likeliest 20
    samples = write_samples(tmp_path / "s.jsonl", {"a": ["good", "bad"], "b": ["x", "y"]})
    out = tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", folder, "--engine", "hf", "--out", out, "--tie", 0, "--min-mass", 0]
    words += ["--reason", "--max-tokens", 8, "--temperature", 1]
    result = call(*words, "--device", "cpu")
    assert result.exit_code == 0, result.output
    before = out.read_bytes()
    (tmp_path / "pairs.jsonl.judge" / REPLIES).unlink()
    assert call(*words, "--device", "cpu", "--max-rows", 1).exit_code == 0
    assert [row["chosen"] for row in lines(out)] == [json.loads(line)["chosen"] for line in before.splitlines()]
    result = call(*words, "--requests-per-minute", 5)
    assert "--requests-per-minute is for --engine openai; leave it out" in result.output


def test_what_the_document_says_can_be_typed() -> None:
    text = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in shell.splitlines() if line.startswith("grpo-math ")]
    assert {words[1] for words in commands} >= {"label", "revise", "verify", "evaluate", "train"}
    root: Any = typer.main.get_command(app)
    for _, *words in commands:
        parsed = root.make_context("grpo-math", list(words))
        name, command, rest = root.resolve_command(parsed, words)
        command.make_context(name, rest, parent=parsed)
    table = text.partition("\n## The verifier\n")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert named == {f.name for f in fields(Options)}
    for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for reward in yaml.safe_load(block)["rewards"]:
            if isinstance(reward, dict):
                check_options(config.Reward(**reward))
