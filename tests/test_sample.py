"""`grpo-math sample`: what each line says is so, nothing is lost or twice, and a run's completions serve as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from grpo_math import config
from grpo_math.batch import pad_rows
from grpo_math.cli import app
from grpo_math.evaluation import ask, sample
from grpo_math.evaluation.journal import NAME as JOURNAL
from grpo_math.evaluation.journal import Journal
from grpo_math.evaluation.sample import figures, policy_version
from grpo_math.evaluation.sampler import Sample, with_tokens
from grpo_math.evaluation.summary import Judged
from grpo_math.forms import Form
from grpo_math.policy import Policy, load_policy
from grpo_math.recipes.records import completion_records
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Completion, Group, Problem, Prompt, Sampling, Scored, UserError, Verdict
from tests.tiny import completion, save_tiny

ROOT = Path(__file__).parents[1]
ARITHMETIC = ("--task", "arithmetic", "--option", "max_digits=2", "--limit", "6", "-n", "4", "--max-tokens", "12")
# reads a completion as right where it has a vowel: of a random model some are
JUDGE = '''"""Vowels."""
from grpo_math.types import Problem, Verdict
EXAMPLES = ()
def verify(problem, completion):
    found = any(vowel in completion for vowel in "aeiouAEIOU")
    return Verdict(float(found), "correct" if found else "wrong", answer=completion[-1:])
'''


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def sampled(model: Path, out: Path, *words: str | Path) -> list[dict[str, Any]]:
    result = call("sample", model, *ARITHMETIC, *words, "--out", out)
    assert result.exit_code == 0, result.output
    return lines(out / "samples.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has 31 tokens that end a completion, so that some of a dozen tokens end and others are cut."""
    path = save_tiny(tmp_path_factory.mktemp("model"))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [*range(130, 160), 1]}))
    return path


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    path = tmp_path / "vowels.py"
    path.write_text(JUDGE)
    return path


# ---- what a line says


def under_policy(policy: Policy, prompt: str, token_ids: Sequence[int], temperature: float) -> torch.Tensor:
    """log p of a completion's tokens, from one forward pass over prompt and completion."""
    asked = Prompt(Problem("p", "t", "q", "1"), tuple(policy.tokenizer(prompt)["input_ids"]), prompt)
    batch = pad_rows([(asked, completion(token_ids))], [True], policy.pad_id)
    logprobs, _ = policy.logprobs(batch, temperature, chunk=64)
    return logprobs[batch.loss_mask].detach()


def test_log_probabilities_are_the_policys_at_the_sampling_temperature(model: Path, tmp_path: Path) -> None:
    policy = load_policy(config.Model(path=str(model)), torch.device("cpu"))
    for temperature in (1.0, 0.6):
        rows = sampled(model, tmp_path / str(temperature), "--temperature", str(temperature))
        assert {row["finish_reason"] for row in rows} == {"stop", "length"}  # with the end-of-sequence token, and cut
        for row in rows:
            ours = under_policy(policy, row["prompt"], row["token_ids"], temperature)
            torch.testing.assert_close(torch.tensor(row["logprobs"]), ours, atol=1e-5, rtol=0)
            assert row["logprob"] == pytest.approx(sum(row["logprobs"]), abs=1e-6)
            assert len(row["token_ids"]) == len(row["logprobs"]) == row["tokens"]
            assert policy.tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["completion"]
            assert (row["token_ids"][-1] in policy.eos_ids) == (row["finish_reason"] == "stop")


@pytest.mark.slow
def test_vllms_log_probabilities_are_the_policys_too(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: make vllm")
    from grpo_math.evaluation.vllm import VLLMSampler

    # vLLM's attention on the CPU takes heads of 32 and more
    shape = config.NewModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, context=128)
    tokenizer = character_tokenizer()
    small_model(shape, tokenizer, 0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(config.Model(path=str(tmp_path)), torch.device("cpu"))
    with closing(VLLMSampler(str(tmp_path), 32, "float32", {"kv_cache_memory_bytes": 1 << 26}, tokens=True)) as sampler:
        asked = [sampler.ask("t", i, Problem(f"p{i}", "t", f"{i}+1", ""), Form("{question}=")) for i in range(4)]
        for temperature in (1.0, 0.6):
            blocks = sampler.sample(asked, Sampling(4, 20, temperature))
            for number, samples in (answered for block in blocks for answered in block):
                for one in samples:
                    assert one.token_ids is not None
                    assert one.logprobs is not None
                    assert len(one.token_ids) == one.tokens
                    ours = under_policy(policy, asked[number].text, one.token_ids, temperature)
                    torch.testing.assert_close(torch.tensor(one.logprobs.tolist()), ours, atol=1e-5, rtol=0)


def test_each_line_says_what_made_it(model: Path, judge: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = sampled(model, out, "--verifier", judge, "--seed", "3", "--top-p", "0.9")
    assert [(row["task"], row["sample"]) for row in rows] == [("arithmetic", i) for _ in range(6) for i in range(4)]
    assert all(row["problem"].startswith("arithmetic/train/") for row in rows)  # not what a model is measured with
    for row in rows:
        assert row["sampling"] == {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_tokens": 12, "seed": 3}
        assert (row["model"], row["policy_version"], row["verifier"]) == (str(model), 0, str(judge))
        assert row["reason"] == ("correct" if row["reward"] else "truncated" if row["tokens"] == 12 else "wrong")
    results = json.loads((out / "results.json").read_text())
    assert results["manifest"]["tasks"]["arithmetic"]["verifier"]["name"] == str(judge)
    found, right = results["tasks"]["arithmetic"], [row["reason"] == "correct" for row in rows]
    by_problem = [sum(right[i : i + 4]) for i in range(0, 24, 4)]
    assert found["correct"] == sum(right)
    assert found["pass@1"] == pytest.approx(sum(right) / 24)
    assert found["solved_sometimes"] == sum(0 < c < 4 for c in by_problem) > 0
    assert (found["solved_always"], found["solved_never"]) == (by_problem.count(4), by_problem.count(0))
    assert not (out / "curve.png").exists()
    # evaluation asks and draws the same, and its lines have no more than they had
    call("evaluate", model, *ARITHMETIC, "--split", "train", "--verifier", judge, "--seed", "3", "--top-p", "0.9",
         "--out", tmp_path / "measured")  # fmt: skip
    measured = lines(tmp_path / "measured" / "samples.jsonl")
    assert [{key: row[key] for key in measured[0]} for row in rows] == measured
    assert set(rows[0]) - set(measured[0]) == {
        *("model", "policy_version", "sampling", "verifier", "logprob", "token_ids", "logprobs"),
    }


def test_the_end_tells_the_next_command(model: Path, judge: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("sample", model, *ARITHMETIC, "--verifier", judge, "--out", out)
    said = result.output.splitlines()
    assert [line.split()[-1] for line in said if line.startswith(("problems", "completions"))] == ["6", "24"]
    assert "sometimes solved" in result.output
    command = said[-1].removeprefix("next: ").split()
    assert command[:2] == ["grpo-math", "filter"]
    result = call(*command[1:])
    assert result.exit_code == 0, result.output
    assert lines(out / "sft.jsonl")
    result = call("sample", model, *ARITHMETIC, "--out", tmp_path / "none")  # a random model does no sums
    assert result.output.splitlines()[-1].startswith("no completion is right: try easier problems")


def test_solved_always_sometimes_and_never_count_problems_that_could_be_judged() -> None:
    right, wrong, open_ = Verdict(1.0, "correct"), Verdict(0.0, "wrong"), Verdict(None, "timeout")
    groups = [[right, right], [right, wrong], [wrong, open_], [right, open_], [open_, open_]]
    found = figures([[Judged(verdict, "stop", 3) for verdict in group] for group in groups], [1])
    assert found["problems"] == 5
    assert [found[f"solved_{word}"] for word in ("always", "sometimes", "never")] == [2, 1, 1]
    assert found["correct"] == 4


def test_a_checkpoint_of_a_run_knows_its_step(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = run / "checkpoints" / "step-7"
    step.mkdir(parents=True)
    for file in model.iterdir():
        (step / file.name).symlink_to(file)
    (step / "run.json").write_text(json.dumps({"step": 7, "finished": False}))
    (run / "model").symlink_to("checkpoints/step-7")
    rows = sampled(run, tmp_path / "out")
    assert {(row["model"], row["policy_version"]) for row in rows} == {(str(run), 7)}
    assert policy_version(str(model)) == policy_version("Qwen/Qwen2.5-0.5B") == 0
    (step / "run.json").write_text("[]")
    assert policy_version(str(step)) == 0
    (step / "run.json").write_text('{"st')
    with pytest.raises(UserError, match=r"run.json: .* cannot be read .*; give another checkpoint, or delete the file"):
        policy_version(str(step))


def test_a_stop_string_ends_the_tokens_where_it_is_complete() -> None:
    drawn = Completion((5, 6, 7, 8), (-0.12345678, -2.0, -3.0, -4.0), "ab\nc", "length", 0)
    kept = with_tokens(Sample("ab", 3, "stop"), drawn)
    assert kept == Sample("ab", 3, "stop", None, array("i", [5, 6, 7]), array("d", [-0.123457, -2.0, -3.0]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("m", "--task", "arithmetic"), "split 'train', has no end; say how many problems of it with --limit"),
        (("m",), "Missing option '--task'"),
        (("./nowhere", "--task", "arithmetic", "--limit", "2"), "MODEL=./nowhere: there is no such folder"),
        (("m", "--task", "math500"), "--split='train': math500 is a test set"),
        (("m", "--task", "arithmetic", "--limit", "2", "--engine-option", "a=1"), "--engine-option is for"),
        (("m", "--task", "arithmetic", "--base-url", "http://here/v1"), "--engine openai and --base-url URL"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(words: tuple[str, ...], said: str) -> None:
    result = call("sample", *words)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    "words",
    [
        (),
        (
            "-n", "4", "--limit", "3", "--option", "good=true", "--temperature", "0.5", "--max-tokens", "9",
            "--seed", "5", "--out", "here", "--verifier", "math", "--top-p", "0.9", "--top-k", "20", "--workers", "3",
            "--timeout", "2", "--no-chat", "--max-rows", "7", "--dtype", "bfloat16", "--device", "cpu",
            "--set", "percent=number", "--memory", "99", "--require", "namespaces", "--engine", "openai",
            "--base-url", "http://here/v1", "--key-env", "KEY", "--concurrency", "5", "--request-timeout", "7",
            "--retries", "2", "--engine-option", "seed=1", "--path", "a.jsonl", "--prompt", "default", "--fresh",
        ),
    ],
)  # fmt: skip
def test_options_mean_what_they_mean_to_evaluate(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ask.Arguments] = []
    for module in (ask, sample):
        monkeypatch.setattr(module, "command", seen.append)
    for command in ("evaluate", "sample"):
        assert call(command, "some/model", "--task", "gsm8k", *words).exit_code == 0
    measured, kept = seen
    assert (measured.split, kept.split) == ("test", "train")
    assert kept == replace(measured, split="train")


# ---- nothing lost, nothing twice


def test_the_journal_keeps_tokens_and_log_probabilities(tmp_path: Path) -> None:
    plain = Sample("1", 2, "stop")
    full = with_tokens(plain, Completion((5, 70_000), (-0.123456, -17.654321), "1", "stop", 0))
    journal = Journal(tmp_path, {})
    journal.sampled("t", [(0, [plain, full])], 0.5)
    journal.close()
    again = Journal(tmp_path, {})
    assert again.samples["t"][0] == [plain, full]
    again.close()


@pytest.mark.slow
def test_killed_and_asked_again_it_comes_to_the_same(model: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--task", "arithmetic", "--limit", "100", "-n", "8", "--max-tokens", "40", "--max-rows", "32")
    command = [sys.executable, "-m", "grpo_math", "sample", str(model), *words, "--out", str(killed)]
    # sums of another number of threads differ in their last digits, and log-probabilities are written down
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while blocks(killed) < 3:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed / "samples.jsonl").exists()
    before = blocks(killed)
    for folder in (killed, whole):
        result = call("sample", model, *words, "--out", folder)
        assert result.exit_code == 0, result.output
        assert (f"{4 * before} of 100 problems were sampled before" in result.output) == (folder is killed)
    for name in ("samples.jsonl", "results.json", "prompts.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    rows = lines(killed / "samples.jsonl")
    assert len({(row["task"], row["problem"], row["sample"]) for row in rows}) == len(rows) == 800


def blocks(folder: Path) -> int:
    try:
        return sum('"sampled"' in line for line in (folder / JOURNAL).read_text().splitlines() if line.endswith("}"))
    except FileNotFoundError:
        return 0


def test_an_evaluation_in_the_same_folder_is_refused(model: Path, tmp_path: Path) -> None:
    sampled(model, tmp_path / "out")
    result = call("evaluate", model, *ARITHMETIC, "--split", "train", "--k", "1", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds the results of another command, which differs in\n  model.policy_version: 0 ->" in result.output


# ---- a run's completions


def as_a_run_logs_them(rows: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """What a training run writes of the same completions and verdicts, by way of its own types."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["problem"], []).append(row)
    made = []
    for problem, members in groups.items():
        first = members[0]
        verdicts = [Verdict(row["reward"], row["reason"], row["detail"], row["answer"]) for row in members]
        made.append(
            Group(
                Prompt(Problem(problem, first["task"], "", first["gold"]), (1, 2), first["prompt"]),
                tuple(
                    Completion(tuple(r["token_ids"]), tuple(r["logprobs"]), r["completion"], r["finish_reason"], 0)
                    for r in members
                ),
                tuple(Scored(v.reward, v, {first["verifier"]: v}) for v in verdicts),
            )
        )
    records = completion_records(1, made, [], None, None)
    warm = completion_records(1, made, [], None, None, temperature=0.7)
    assert warm == [record | {"logprob": None} for record in records]  # of another distribution than the policy's own
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def test_a_runs_completions_say_the_same_and_filter_alike(model: Path, judge: Path, tmp_path: Path) -> None:
    rows = sampled(model, tmp_path / "out", "--verifier", judge)
    logged = as_a_run_logs_them(rows, tmp_path / "completions.jsonl")
    shared = set(rows[0]) & set(logged[0])
    assert shared == set(rows[0]) - {"model", "sampling", "token_ids", "logprobs", "failed"}
    assert [{key: row[key] for key in shared} for row in logged] == [{key: row[key] for key in shared} for row in rows]
    for to in ("sft", "pairs", "kto"):
        found = {}
        for name, source in (("s", tmp_path / "out" / "samples.jsonl"), ("c", tmp_path / "completions.jsonl")):
            result = call("filter", source, "--to", to, "--out", tmp_path / f"{name}.jsonl")
            assert result.exit_code == 0, result.output
            found[name] = lines(tmp_path / f"{name}.jsonl")
        origin = ("model", "source")  # a run says the model in its config.yaml
        kept = [{k: v for k, v in row.items() if not k.endswith(origin)} for row in found["s"]]
        assert kept == [{k: v for k, v in row.items() if not k.endswith(origin)} for row in found["c"]]
        assert kept
        assert {"sft": "logps", "pairs": "chosen_logps", "kto": "logps"}[to] in kept[0]


def test_what_a_run_calls_its_task_is_understood_when_it_is_judged_again(tmp_path: Path) -> None:
    """Its problems say reasoning_gym, or whatever a task file of one's own has there, not the name on the command
    line."""
    (tmp_path / "five.py").write_text(
        '"""Says five."""\nfrom grpo_math.types import Problem\nVERIFIER = "math"\nTEMPLATE = "{question}"\n'
        "def load(split):\n    return [Problem('a', 'my own', 'five?', '5')]\n"
    )
    samples = tmp_path / "completions.jsonl"
    row = {"task": "my own", "problem": "a", "completion": "so \\boxed{5}", "prompt": "five?"}
    samples.write_text(json.dumps(row) + "\n")
    words = ("evaluate", "--samples", samples, "--task", f"{tmp_path}/five.py")
    result = call(*words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert lines(tmp_path / "out" / "samples.jsonl")[0]["reason"] == "correct"
    samples.write_text(json.dumps({**row, "task": "yours"}) + "\n")
    assert "its task is 'yours', which is not five" in call(*words, "--out", tmp_path / "other").output
