"""label-steps: from samples to labels, with a real tiny model and with a sampler whose answers are known."""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_math.evaluation.ask import Arguments
from grpo_math.evaluation.hf import HFSampler
from grpo_math.evaluation.journal import Journal
from grpo_math.evaluation.sampler import Answered, Asked, Sample
from grpo_math.steps.go_on import Beginner, Continuer
from grpo_math.steps.label import label_command
from grpo_math.steps.read import read_steps
from grpo_math.steps.write import Labelling
from grpo_math.types import Completion, Problem, Sampling, Scored, UserError, Verdict
from tests.test_steps import byte_fallback
from tests.tiny import save_tiny

# right where the last letter is early in the alphabet of bytes: a random model hits that now and then
LOTTERY = """
from grpo_math.types import Verdict
def verify(problem, completion):
    right = ord(completion[-1]) % 3 == 0
    return Verdict(float(right), "correct" if right else "wrong")
"""
SOLUTIONS = ("5+1=6\n4+7=11\n0+4+1=5\n\\boxed{516}", "5+1=7\n4+7=11\n\\boxed{517}", "\\boxed{1}")


def samples(folder: Path, verdicts: Sequence[str] = ("correct", "wrong", "wrong")) -> Path:
    """A run's completions.jsonl of two problems, with a repeated and an empty text among them."""
    file = folder / "completions.jsonl"
    rows = [
        {
            "problem": f"arithmetic/train/{number}", "prompt": "45+471=?\n", "completion": text, "task": "arithmetic",
            "reward": float(reason == "correct"), "reason": reason, "finish_reason": "stop",
        }
        for number in (0, 3)
        for text, reason in [*zip(SOLUTIONS, verdicts, strict=True), (SOLUTIONS[0], verdicts[0]), ("\n", "no_answer")]
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def counts(out: Path) -> dict[str, Any]:
    summary = json.loads(out.with_name(f"{out.name}.summary.json").read_text())
    assert summary["output"]["lines"] == 6
    return dict(summary["made"])


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    (tmp_path / "lottery.py").write_text(LOTTERY)
    return Arguments(
        model=str(save_tiny(tmp_path / "model")), task="arithmetic", split="train", n=4, max_tokens=6, max_rows=8,
        option=["max_digits=3"], verifier=str(tmp_path / "lottery.py"), workers=1, timeout_s=20.0, device="cpu",
    )  # fmt: skip


def test_a_tiny_model_labels_steps_and_goes_on_after_a_kill(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole, killed = samples(tmp_path), tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    asked: list[int] = []
    sample = HFSampler.sample

    def counted(self: HFSampler, some: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        asked.append(len(some))
        return sample(self, some, sampling)

    monkeypatch.setattr(HFSampler, "sample", counted)
    said = label_command([file], arguments, Labelling(labels="soft"), whole)
    assert asked == [10]  # of each problem 3 + 2 prefixes: the repeated text is asked once, and no whole one is
    made = {"samples": 10, "completions": 6, "steps": 16, "labelled": 16, "prefixes": 10, "continuations": 40}
    assert made.items() <= counts(whole).items()
    assert " prefixes gone on from 10 too long for the model 0 continuations 40 correct " in " ".join(said.split())
    found = read_steps([str(whole)]).examples
    assert [e.text for e in found] == [*SOLUTIONS, *SOLUTIONS]
    assert found[0].steps == ("5+1=6\n", "4+7=11\n", "0+4+1=5\n", "\\boxed{516}")
    assert [e.labels[-1] for e in found] == [1.0, 0.0, 0.0] * 2  # their own verdicts
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [e.labels for e in found] == [tuple(right / drawn for right, drawn in row["counts"]) for row in rows]
    assert {drawn for row in rows for _, drawn in row["counts"][:-1]} == {4}
    assert len({right for row in rows for right, _ in row["counts"][:-1]}) > 2  # the lottery has winners and losers
    assert (rows[0]["gold"], rows[0]["problem"], rows[0]["source"]) != ("", rows[3]["problem"], rows[3]["source"])

    judged = Journal.judged

    def cut_short(self: Journal, task: str, block: list[tuple[int, list[Verdict]]]) -> None:
        judged(self, task, block)
        if block[0][0] >= 2:  # the second block: kill it, and leave half a line
            with self.path.open("a") as stream:
                stream.write('{"task": "round 1", "judged": [[4,')
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "judged", cut_short)
        with pytest.raises(KeyboardInterrupt):
            label_command([file], arguments, Labelling(labels="soft"), killed)
    assert not killed.exists()
    with pytest.raises(UserError, match=r"killed.jsonl.work holds the results of another command.*\n.*budget"):
        label_command([file], arguments, Labelling(labels="soft", budget=9), killed)
    asked.clear()
    label_command([file], arguments, Labelling(labels="soft"), killed)
    assert asked == [6]
    assert killed.read_text() == whole.read_text()
    assert not killed.with_name("killed.jsonl.work").exists()
    assert counts(killed) == counts(whole)


def test_a_binary_search_asks_less(tmp_path: Path, arguments: Arguments) -> None:
    out = tmp_path / "steps.jsonl"
    label_command([samples(tmp_path)], arguments, Labelling(method="binary"), out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["labels"] for row in rows[::3]] == [[True] * 4] * 2  # right ones are not asked about
    for row in rows[1::3]:
        assert row["labels"] == sorted(row["labels"], reverse=True)
        assert row["labels"][-1] is False
    assert counts(out)["first_wrong"] == 4
    assert counts(out)["prefixes"] <= 4  # of 10: at most two for three steps, and none for one


@pytest.mark.parametrize(
    ("change", "labelling", "complaint"),
    [
        ({}, Labelling(method="binary", labels="soft"), "--method binary finds out whether a step is right, no share"),
        ({}, Labelling(budget=3), "--budget 3 is less than the -n 4 of one step; raise it"),
        ({}, Labelling(boundary="lines"), "unknown boundary 'lines'; did you mean 'newline'"),
        ({"split": "test"}, Labelling(), r"completions.jsonl:1: problem 'arithmetic/train/0' is not one of --task ari"),
        ({"max_tokens": 1000}, Labelling(), "no step has a label"),
        ({}, Labelling(boundary="marker"), "--boundary marker finds no step in any of"),
    ],
)
def test_what_cannot_be_labelled(
    tmp_path: Path, arguments: Arguments, change: dict[str, Any], labelling: Labelling, complaint: str
) -> None:
    file = samples(tmp_path, ("unknown", "unknown", "unknown"))
    file.write_text(file.read_text().replace('"reward": 0.0', '"reward": null'))
    with pytest.raises(UserError, match=complaint):
        label_command([file], replace(arguments, **change), labelling, tmp_path / "steps.jsonl")


def test_samples_of_other_problems_with_the_same_ids_are_refused(tmp_path: Path, arguments: Arguments) -> None:
    """Another seed, split or option of a generated task has the same ids: their labels would all be wrong."""
    file = samples(tmp_path)
    file.write_text(file.read_text().replace('"prompt"', '"gold": "516", "prompt"'))
    asked = (
        r"completions\.jsonl:1: it was asked '45\+471=\?\\n' with the answer '516', and problem 'arithmetic/train/0'"
    )
    told = (
        asked + r" of --task arithmetic asks '.*' with the answer '\d+'; give --task, --split, --path and --option as"
    )
    with pytest.raises(UserError, match=told):
        label_command([file], replace(arguments, option=["max_digits=3", "seed=2"]), Labelling(), tmp_path / "s.jsonl")


class Fixed:
    """Samples the same text for everything: by tokens, ` an` and what is cut off by a stop string; and one failure."""

    context = 40

    def __init__(self, tokenizer: Any) -> None:
        self.policy = SimpleNamespace(tokenizer=tokenizer, eos_ids=frozenset({tokenizer.eos_token_id}))
        self.asked: list[Asked] = []

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        self.asked += asked
        ids = array("i", self.policy.tokenizer.convert_tokens_to_ids(["\u2581an", "s", "\u2581", "t", "h", "e"]))
        for a in asked:
            yield [(a.number, [Sample("an", 6, "stop", None, ids), Sample("", 0, "stop", "it is down")])]


class Heard:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def judge(self, items: Sequence[tuple[Problem, Completion]]) -> list[Scored]:
        self.texts += [completion.text for _, completion in items]
        verdict = Verdict(1.0, "correct")
        return [Scored(1.0, verdict, {}) for _ in items]


def test_a_continuation_is_judged_with_what_was_before_it(tmp_path: Path) -> None:
    """A tokenizer as Llama 2's drops the space before a text that it decodes alone."""
    tokenizer = byte_fallback()
    sampler, heard = Fixed(tokenizer), Heard()
    beginner = Beginner(sampler, "hf")
    problem = Problem("p", "t", "", "")
    begun = [beginner.begin(problem, "a:", text) for text in ("a an.", "a an. a", "\u0434 " * 20)]
    assert begun[0].prefix.text == "a:a an."
    assert tokenizer.decode(begun[0].prefix.token_ids) == "a: a an."  # in tokens of their own, as in training
    journal = Journal(tmp_path, {})
    go_on = Continuer(
        sampler, heard, journal, Sampling(1, 10), (" th",),  # type: ignore[arg-type]
        {("p", b.prefix.text): b for b in begun}, beginner.tokenizer,
    )  # fmt: skip
    found = go_on([b.prefix for b in begun], 2, 7)
    assert heard.texts[::2] == ["a an. ans", "a an. a ans"]
    failed = Verdict(None, "error", "not sampled: it is down")
    assert found == [[Verdict(1.0, "correct"), failed]] * 2 + [[]]
    assert go_on.too_long == 1
    assert len({a.problem.id for a in sampler.asked}) == 2  # random numbers of their own
    journal.close()
    server = Beginner(sampler, "openai")
    assert server.begin(problem, "a:", "b").prefix.token_ids == ()
    with pytest.raises(UserError, match="problem p: the sample's prompt is a conversation"):
        server.begin(problem, '[{"role": "user"}]', "b")
