"""The command line: what each command hands over, prints and exits with. No command here trains a model."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from grpo_math import __version__, cli, config, doctor, find, preflight
from grpo_math.evaluation import ask
from grpo_math.recipes import run as run_module
from grpo_math.types import UserError

ROOT = Path(cli.__file__).parent.parent
COMMANDS = (
    "train",
    "evaluate",
    "compare",
    "decontaminate",
    "filter",
    "verify",
    "list",
    "plan",
    "plot",
    "doctor",
    "serve",
    "launch",
)
VERIFIER = '''\
"""Wants the answer itself; hangs on request."""
import time
from grpo_math.types import Problem, Verdict

P = Problem("", "t", "?", "4")
EXAMPLES = [(P, "4", 1.0), (P, "5", 0.0), (Problem("", "t", "?", "5"), "5", 1.0)]

def verify(problem, completion):
    while completion == "hang":
        time.sleep(1)
    if completion == "raise":
        raise KeyError("mine")
    right = completion == problem.answer
    return Verdict(float(right), "correct" if right else "wrong", "compared", completion)
'''
TASK = '''\
"""Two good problems and two bad ones."""
from grpo_math.types import Problem

VERIFIER = "./judge.py"

def load(split, path=None, good=False):
    answers = ["1", "2"] if good else ["1", "raise", "hang", "2"]
    return [Problem(f"p{i}", "mine", "?", a, {"source": f"data.jsonl:{i}"}) for i, a in enumerate(answers, 1)]

def gold_completion(problem):
    return problem.answer
'''

Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge.py").write_text(VERIFIER)
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "run.yaml").write_text("run_dir: run\nmodel: some/model\ntask: arithmetic\n")
    return tmp_path


@pytest.fixture
def call() -> Call:
    def invoke(*words: str) -> Result:
        return CliRunner().invoke(cli.app, list(words), prog_name="grpo-math")

    return invoke


def refused(result: Result) -> str:
    """What a user error prints: on stderr alone, exit code 2, no traceback."""
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    return result.stderr


def caught(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> dict[str, Any]:
    """Put a recorder in the place of a function, which must accept the call as the real one would."""
    seen: dict[str, Any] = {}
    signature = inspect.signature(getattr(module, name))

    def record(*args: Any, **kwargs: Any) -> None:
        seen.update(signature.bind(*args, **kwargs).arguments)

    monkeypatch.setattr(module, name, record)
    return seen


# Help


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom grpo_math.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as leave:\n    assert leave.code in (0, None)\n"
        "heavy = ('torch', 'transformers', 'vllm', 'sympy', 'datasets', 'pydantic', 'numpy')\n"
        "print('HEAVY', [m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr
    assert "plan" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example(call: Call, command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\n +grpo-math {command}", result.stdout)


def test_the_examples_in_the_help_are_understood(call: Call) -> None:
    """Every option that an example uses exists."""
    for command in COMMANDS:
        text = call(command, "--help").stdout
        options = {word for line in re.findall(r"grpo-math .*", text) for word in re.findall(r"(?<= )--?[a-z-]+", line)}
        for option in options:
            assert re.search(rf"^ +{option} ", text, re.MULTILINE), (command, option)


def test_version_and_module() -> None:
    result = subprocess.run([sys.executable, "-m", "grpo_math", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == f"grpo-math {__version__}\n"


# Errors


def test_a_user_error_is_one_message(call: Call) -> None:
    message = refused(call("plan", "run.yaml", "learning_rate=1e-5"))
    assert message == (
        "error: command line: learning_rate=1e-5: unknown key learning_rate; did you mean optimizer.learning_rate or "
        "critic.learning_rate or retraining.learning_rate?\n"
    )
    assert "did you mean run.yaml?" in refused(call("train", "runn.yaml"))


def test_other_errors_keep_their_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(find, "list_tasks", bug)
    assert isinstance(call("list", "tasks").exception, ZeroDivisionError)


def test_ctrl_c_is_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(find, "list_tasks", interrupt)
    result = call("list", "tasks")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_an_unknown_command_or_option_is_2(call: Call) -> None:
    assert call("trian").exit_code == 2
    assert call("list", "tusks").exit_code == 2
    assert call("train", "run.yaml", "--resum").exit_code == 2


# train


@pytest.mark.parametrize(("words", "resume"), [((), "auto"), (("--resume",), "must"), (("--fresh",), "never")])
def test_train_hands_over(call: Call, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], resume: str) -> None:
    seen = caught(monkeypatch, run_module, "run")
    result = call("train", "run.yaml", "group_size=4", *words, "optimizer.learning_rate=1e-5")
    assert result.exit_code == 0, result.output
    assert seen["resume"] == resume
    assert (seen["cfg"].group_size, seen["cfg"].optimizer.learning_rate) == (4, 1e-5)


def test_train_checks_before_it_loads(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = caught(monkeypatch, run_module, "run")
    message = refused(call("train", "run.yaml", "task=arithmetik", "model.path=./nowhere"))
    assert "did you mean arithmetic?" in message
    assert "model.path=./nowhere: there is no such folder" in message
    assert "--resume goes on" in refused(call("train", "run.yaml", "--resume", "--fresh"))
    assert not seen


# evaluate


def test_evaluate_hands_over(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ask, "command", seen.append)
    result = call(
        "evaluate", "some/model", "--task", "./mine.py", "-n", "4", "--k", "4,1", "--limit", "3", "--split", "other",
        "--option", "good=true", "--temperature", "0.5", "--max-tokens", "9", "--seed", "5", "--out", "here",
        "--verifier", "math", "--top-p", "0.9", "--top-k", "20", "--workers", "3", "--timeout", "2", "--no-chat",
        "--max-rows", "7", "--dtype", "bfloat16", "--device", "cpu", "--set", "percent=number", "--memory", "99",
        "--require", "namespaces", "--engine", "openai", "--base-url", "http://here/v1", "--key-env", "KEY",
        "--concurrency", "5", "--request-timeout", "7", "--retries", "2", "--engine-option", "seed=1",
        "--path", "a.jsonl", "--prompt", "default", "--fresh",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert seen == [
        ask.Arguments(
            model="some/model", task="./mine.py", split="other", n=4, k="4,1", limit=3, path=["a.jsonl"],
            option=["good=true"], prompt=["default"], chat=False, temperature=0.5, top_p=0.9, top_k=20, max_tokens=9,
            seed=5, engine="openai", engine_options={"seed": 1}, base_url="http://here/v1", key_env="KEY",
            concurrency=5, request_s=7.0, retries=2, out=Path("here"), fresh=True, verifier="math",
            verifier_options=["percent=number"], workers=3, timeout_s=2.0, max_rows=7, dtype="bfloat16", device="cpu",
            sandbox=config.Sandbox(require="namespaces", timeout_s=2.0, memory_mb=99),
        )
    ]  # fmt: skip


def test_the_defaults_of_evaluate_are_those_of_a_run(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ask, "command", seen.append)
    call("evaluate", "some/model", "--task", "./mine.py")
    (given,) = seen
    assert given == ask.Arguments(
        model="some/model", task="./mine.py", path=[], option=[], prompt=[], verifier_options=[]
    )
    assert (given.workers, given.timeout_s) == (config.Scoring().workers, config.Scoring().timeout_s)
    assert given.sandbox == config.Sandbox()
    assert (given.max_rows, given.dtype) == (config.Rollout().max_rows, config.Backend().dtype)
    assert (given.n, ask.ks_of(given, None)) == (config.Evaluation().n, config.Evaluation().k)
    assert given.temperature == config.SamplingConfig().temperature


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--k", "1,x"), "--k 1,x: give whole numbers"),
        (("--k", "1,16"), "k from 1 to n, which is 8 (-n 8); choose smaller ones, or set -n 16"),
        (("--k", "0"), "needs k from 1"),
        (("--path", "none.jsonl"), "--path=none.jsonl: there is no such file"),
        (("--verifier", "maths"), "did you mean math?"),
        (("--option", "good"), "--option good: write KEY=VALUE"),
        (("--prompt", "chat"), "task ./mine.py has the prompts default@1"),
        (("--out", "mine.py"), "--out=mine.py: "),
    ],
)
def test_evaluate_refuses(call: Call, words: tuple[str, ...], said: str) -> None:
    assert said in refused(call("evaluate", "some/model", "--task", "./mine.py", *words))


# verify


def test_verify_runs_examples(call: Call, folder: Path) -> None:
    result = call("verify", "./judge.py")
    assert (result.exit_code, result.stdout) == (0, "./judge.py: 3 of 3 examples as they should be\n")
    (folder / "judge2.py").write_text(
        VERIFIER.replace('"5", 0.0', '"5", 1.0').replace('(P, "4", 1.0)', '(P, "raise", 0.0)')
    )
    result = call("verify", "./judge2.py")
    assert result.exit_code == 1
    assert "1 of 3 examples" in result.stdout
    assert "FAILED example 2: reward 0.0, not 1.0 (wrong, read '5': compared)" in result.stdout
    assert "FAILED example 1: reward None, not 0.0 (error" in result.stdout
    (folder / "judge3.py").write_text(VERIFIER.replace("EXAMPLES", "SAMPLES"))
    assert "no EXAMPLES; add a list" in call("verify", "./judge3.py").stdout


def test_verify_runs_all_that_are_shipped(call: Call) -> None:
    result = call("verify")
    assert result.exit_code == 0, result.output
    for name in find.list_verifiers():
        assert f"{name}: " in result.stdout


def test_verify_runs_the_gold_answers_of_a_task(call: Call) -> None:
    result = call("verify", "--task", "./mine.py", "--timeout", "0.5")
    assert result.exit_code == 1
    assert "task ./mine.py, split train, verifier ./judge.py: 2 of 4 gold answers accepted" in result.stdout
    lines = [line for line in result.stdout.splitlines() if "REFUSED" in line]
    assert lines[0].startswith("  REFUSED data.jsonl:2: answer 'raise': error")
    assert lines[1].startswith("  REFUSED data.jsonl:3: answer 'hang': timeout")
    assert call("verify", "--task", "./mine.py", "--option", "good=true").exit_code == 0
    assert call("verify", "--task", "./mine.py", "--limit", "1").exit_code == 0
    assert "verifier math: 1 of 1" in call("verify", "math", "--task", "./mine.py", "--limit", "1").stdout


def test_verify_boxes_the_answer_and_stops_at_some_point(call: Call) -> None:
    assert "12 of 12 gold answers accepted" in call("verify", "--task", "arithmetic", "--limit", "12").stdout
    result = call("verify", "--task", "arithmetic")
    assert "has no end: taking its first 10,000 problems" in result.stdout
    assert "10,000 of 10,000" in result.stdout


def test_verify_leaves_out_what_check_refuses(call: Call, folder: Path) -> None:
    (folder / "judge.py").write_text(
        VERIFIER + "\ndef check(problem):\n    return 'is two' if problem.answer == '2' else None\n"
    )
    result = call("verify", "--task", "./mine.py", "--option", "good=true")
    assert result.exit_code == 1
    refusal = "REFUSED data.jsonl:2: answer '2': left out of training: is two"
    assert refusal in result.stdout
    # a gold program that takes too long is looked at like a wrong one: the verifier itself does not hang
    (folder / "judge.py").write_text((folder / "judge.py").read_text().replace('else "wrong"', 'else "timeout"'))
    (folder / "mine.py").write_text(TASK.replace("return problem.answer", "return 'slow'"))
    assert refusal in call("verify", "--task", "./mine.py", "--option", "good=true").stdout


def test_verify_judges_one_completion(call: Call) -> None:
    result = call("verify", "./judge.py", "--answer", "4", "--completion", "5")
    assert result.exit_code == 0
    assert result.stdout.split() == ["reward", "0.0", "reason", "wrong", "answer", "5", "detail", "compared"]
    assert "give NAME, --answer and --completion" in refused(call("verify", "./judge.py", "--answer", "4"))
    assert "name the task with --task" in refused(call("verify", "./judge.py", "--limit", "4"))
    assert "did you mean math?" in refused(call("verify", "maths", "--answer", "4", "--completion", "4"))


# list, plan, plot, doctor


def test_list(call: Call) -> None:
    assert re.search(r"^arithmetic +Multi-digit", call("list", "tasks").stdout, re.MULTILINE)
    assert [line.split()[0] for line in call("list", "verifiers").stdout.splitlines()] == find.list_verifiers()
    rows = call("list", "algorithms").stdout.splitlines()
    assert rows[0].split() == ["algorithm", "advantage", "ratio", "surrogate", "reduction", "paper"]
    gspo = next(row for row in rows if row.startswith("gspo")).split(maxsplit=5)
    assert gspo == ["gspo", "group_norm", "sequence", "clip", "sequence_mean", "Zheng et al. 2025, arXiv:2507.18071"]
    assert next(row for row in rows if row.startswith("gpg")).split()[4] == "token_mean"  # the preset's, not the loss's


def test_plan_shows_first_and_then_checks(call: Call) -> None:
    result = call("plan", "run.yaml", "group_size=4")
    assert result.exit_code == 0
    for part in ("  group_size: 4\n", "16 prompts x 4 completions = 64 completions", "hf download some/model", "pass."):
        assert part in result.stdout
    result = call("plan", "run.yaml", "task=arithmetik")
    assert "16 prompts" in result.stdout
    assert "did you mean arithmetic?" in refused(result)


def test_plot(call: Call, folder: Path) -> None:
    for name in ("run", "other"):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text('{"step": 1, "reward/accuracy": 0.5}\n')
    result = call("plot", "run")
    assert (result.exit_code, result.stdout) == (0, "run/curve.png\n")
    assert (folder / "run/curve.png").read_bytes().startswith(b"\x89PNG")
    assert call("plot", "run", "other").stdout == "curves.png\n"
    assert call("plot", "run", "other", "--out", "new/both.svg").stdout == "new/both.svg\n"
    assert "<svg" in (folder / "new/both.svg").read_text()
    assert "nowhere/metrics.jsonl cannot be read" in refused(call("plot", "nowhere"))
    assert call("plot").exit_code == 2


def test_doctor(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.output
    for word in ("python", "torch", "transformers", "CPU", "memory", "Everything required works."):
        assert word in result.stdout


def test_doctor_says_what_is_missing_and_how_to_get_it(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [doctor.Package("no-such-thing", ">=2", True), doctor.Package("pydantic", "<1", True)]
    optional = [doctor.Package("no-such-extra", "", False)]
    monkeypatch.setattr(doctor, "packages", lambda: wanted + optional)
    monkeypatch.setattr(doctor, "PROBE", "raise ImportError('libtorch.so is of another build')")
    result = call("doctor")
    assert result.exit_code == 1
    to_mend = result.stdout.partition("To mend")[2]
    assert "no-such-thing is missing: pip install 'no-such-thing>=2'" in to_mend
    assert "is not <1: pip install 'pydantic<1'" in to_mend
    assert "no-such-extra" not in to_mend
    assert "cannot be imported (ImportError: libtorch.so is of another build)" in to_mend


def test_doctor_asks_for_what_the_package_asks_for() -> None:
    names = {package.name: package for package in doctor.packages()}
    assert names["torch"].required
    assert names["transformers"].versions.startswith(">=")
    assert not names["tensorboard"].required
    assert "pytest" not in names
    for package in names.values():
        assert package.name in doctor.USES, f"say in doctor.USES what {package.name} is for"


def test_preflight_is_shared_with_evaluate() -> None:
    with pytest.raises(UserError, match=r"MODEL=\./nowhere: there is no such folder"):
        preflight.check_model("./nowhere", "MODEL")


@pytest.mark.parametrize("words", [["--local_rank=1", "list", "tasks"], ["--local_rank", "1", "list", "tasks"]])
def test_the_deepspeed_launchers_argument_is_taken(words: list[str]) -> None:
    """It comes before ours; LOCAL_RANK says the same."""
    result = CliRunner().invoke(cli.app, words, prog_name="grpo-math")
    assert result.exit_code == 0, result.output
    assert "local_rank" not in CliRunner().invoke(cli.app, ["--help"], prog_name="grpo-math").output


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], ["--gpus", "2"], r"backend\.name=torch trains in one process, and there are 2"),
        (
            ["rollout.engine=vllm", "rollout.vllm.tensor_parallel=3", "backend.name=deepspeed"],
            ["--gpus", "8"],
            "8 ranks",
        ),
    ],
)
def test_plan_says_what_so_many_ranks_cannot_run(tmp_path: Path, overrides, options, message) -> None:
    (tmp_path / "a.yaml").write_text(f"run_dir: {tmp_path / 'run'}\nmodel: Qwen/Qwen2.5-0.5B\ntask: gsm8k\n")
    result = CliRunner().invoke(
        cli.app, ["plan", str(tmp_path / "a.yaml"), *overrides, *options], prog_name="grpo-math"
    )
    assert result.exit_code == 2
    assert re.search(message, result.output)
