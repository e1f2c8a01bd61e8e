"""grpo-math verify NAME --pairs: a verdict a line, in order, whatever the lines are like."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_math.cli import app
from grpo_math.sandbox.limits import Limits

SLOW = """
import time
from grpo_math.types import Verdict

def verify(problem, completion, slow=0.0):
    time.sleep(float(completion) if slow == 0.0 else slow)
    return Verdict(1.0, "correct", problem.metadata.get("note", ""), completion)
"""


TESTED = """
from grpo_math.types import Verdict

def verify(problem, completion):
    tests = tuple(completion.split())
    right = set(tests) == {"passed"}
    return Verdict(float(right), "correct" if right else "wrong", tests=tests or None)
"""

LIMITED = """
from grpo_math.types import Verdict

def verify(problem, completion, *, sandbox=None):
    return Verdict(1.0, "correct", str(sandbox))
"""


@pytest.fixture
def judge(tmp_path):
    def run(lines, *arguments, name="math"):
        source, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        source.write_bytes(text.encode("utf-8", "surrogatepass"))
        result = CliRunner().invoke(app, ["verify", name, "--pairs", str(source), "--out", str(out), *arguments])
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None
        return result, rows

    return run


def test_lines_come_back_in_order_with_all_that_is_known_of_them(judge):
    lines = [{"id": n, "answer": str(n), "candidate": str(n if n % 3 else -n)} for n in range(1, 600)]
    result, rows = judge(lines)
    assert result.exit_code == 0
    assert [row["id"] for row in rows] == list(range(1, 600))
    assert [row["reward"] for row in rows] == [float(n % 3 > 0) for n in range(1, 600)]
    assert set(rows[0]) == {"id", "reward", "reason", "detail", "answer", "seconds"}
    assert all(0 <= row["seconds"] < 2 for row in rows)
    assert "599 lines judged" in result.stdout
    assert "ms a line: mean" in result.stdout


def test_a_completion_is_searched_and_a_candidate_is_not(judge):
    answer = {"answer": "5"}
    _, rows = judge(
        [
            {"id": "a", **answer, "completion": "I say 5"},
            {"id": "b", **answer, "completion": "so \\boxed{5}"},
            {"id": "c", **answer, "candidate": "$5$"},
            {"id": "d", **answer, "candidate": "\\boxed{5}"},
            {"id": "e", **answer, "candidate": "I say 5"},
            {"id": "f", **answer, "candidate": "\\int_0^5 dx"},
            {"id": "g", "answer": ["4", "5"], "candidate": "5"},
            {"id": "h", "answer": "", "candidate": ""},
            {"id": "i", "answer": "14", "candidate": "2+12", "question": "What is 2+12?"},
            {"id": "j", "answer": "3.14", "candidate": "3.15", "conventions": {"tolerance": 0.01}},
            {"id": "k", "answer": "5", "candidate": "\ud800"},
        ]
    )
    assert [(row["reward"], row["reason"]) for row in rows] == [
        (0.0, "no_answer"),
        (1.0, "correct"),
        (1.0, "correct"),
        (1.0, "correct"),
        (0.0, "wrong"),
        (None, "unknown"),
        (1.0, "correct"),
        (0.0, "no_answer"),
        (0.0, "wrong"),
        (1.0, "correct"),
        (0.0, "wrong"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json\n", "is not JSON"),
        ("[" * 100_000 + "\n", "is not JSON"),
        ("[1]\n", "is a JSON list; give an object"),
        ({"answer": "5", "candidate": "5"}, "has no id"),
        ({"id": 2, "candidate": "5"}, "answer=None"),
        ({"id": 2, "answer": 5, "candidate": "5"}, "answer=5"),
        ({"id": 2, "answer": [], "candidate": "5"}, "answer=[]"),
        ({"id": 2, "answer": "5"}, "it needs either completion or candidate"),
        ({"id": 2, "answer": "5", "candidate": "5", "completion": "5"}, "it needs either completion or candidate"),
        ({"id": 2, "answer": "5", "candidate": 5}, "candidate=5"),
        ({"id": 2, "answer": "5", "candidate": "5", "expected": "yes"}, "expected='yes': give true or false"),
        ({"id": 2, "answer": "5", "candidate": "5", "conventions": {"tol": 1}}, "option tol"),
        ({"id": 2, "answer": "5", "candidate": "5", "conventions": 5}, "conventions=5"),
    ],
)
def test_a_broken_line_is_named_and_skipped(judge, line, words):
    good = {"id": 1, "answer": "5", "candidate": "5"}
    result, rows = judge([good, "\n", line, good])
    assert result.exit_code == 1
    assert f"in.jsonl:3: {words}" in result.stderr
    assert [row["reward"] for row in rows] == [1.0, 1.0]
    assert "1 skipped" in result.stdout


def test_labelled_lines_end_in_a_table_by_category(judge):
    def line(number, candidate, expected, category):
        return {"id": number, "answer": "5", "candidate": candidate, "expected": expected, "category": category}

    lines = [line(1, "5", True, "easy"), line(2, "6", True, "easy"), line(3, "5", False, "hard")]
    result, _ = judge([*lines, line(4, "\\int x", False, "hard"), {"id": 5, "answer": "5", "candidate": "5"}])
    table = [line.split() for line in result.stdout.splitlines()[-4:]]
    assert table[0] == ["category", "lines", "right", "false", "accept", "false", "reject", "unknown"]
    assert table[1] == ["easy", "2", "50.00%", "-", "1", "of", "2", "(50.00%)", "0"]
    assert table[2] == ["hard", "2", "50.00%", "1", "of", "2", "(50.00%)", "-", "1"]
    assert table[3] == ["all", "4", "50.00%", "1", "of", "2", "(50.00%)", "1", "of", "2", "(50.00%)", "1"]


def test_lines_with_a_kind_are_grouped_by_it_and_tests_are_counted(judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tested.py").write_text(TESTED)
    line = {"answer": "", "category": "c", "expected": True}
    lines = [
        {"id": 1, **line, "kind": "stdio", "completion": "passed passed"},
        {"id": 2, **line, "kind": "asserts", "completion": "passed timeout crashed"},
        {"id": 3, **line, "completion": ""},
    ]
    result, rows = judge(lines, name="./tested.py")
    assert [(row.get("passed"), row.get("total")) for row in rows] == [(2, 2), (1, 3), (None, None)]
    table = [line.split()[:3] for line in result.stdout.splitlines()[-5:]]
    assert table == [
        ["kind", "lines", "right"],
        ["stdio", "1", "100.00%"],
        ["asserts", "1", "0.00%"],
        ["-", "1", "0.00%"],
        ["all", "3", "33.33%"],
    ]


def test_the_limits_of_programs_are_those_of_the_command(judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "limited.py").write_text(LIMITED)
    lines = [{"id": 1, "answer": "", "completion": ""}]
    _, rows = judge(lines, "--timeout", "3", "--memory", "128", "--require", "process", name="./limited.py")
    assert (
        rows[0]["detail"]
        == "Limits(timeout_s=3.0, memory_mb=128, output_mb=16, require='process', at_most='namespaces')"
    )
    assert judge(lines, name="./limited.py")[1][0]["detail"] == str(Limits())
    assert "set sandbox.timeout_s" in judge(lines, "--set", "sandbox=1", name="./limited.py")[0].stderr


def test_a_verifier_of_one_s_own_and_its_options(judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    lines = [{"id": n, "answer": "", "completion": text, "note": "n"} for n, text in enumerate(["0", "9", "0.2", "x"])]
    result, rows = judge(lines, "--timeout", "0.5", "--workers", "1", name="./slow.py")
    assert result.exit_code == 0
    assert [row["reason"] for row in rows] == ["correct", "timeout", "correct", "error"]
    assert rows[0]["detail"] == "n"
    assert 0.5 <= rows[1]["seconds"] < 1.5
    assert 0.2 <= rows[2]["seconds"] < 0.5
    result, rows = judge(lines, "--set", "slow=0.01", name="./slow.py")
    assert [row["reason"] for row in rows] == ["correct"] * 4
    assert "it takes slow" in judge(lines, "--set", "fast=1", name="./slow.py")[0].stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pairs", "in.jsonl"], "give NAME, --pairs and --out"),
        (["--out", "out.jsonl"], "give NAME, --pairs and --out"),
        (["--pairs", "in.jsonl", "--out", "o", "--task", "gsm8k"], "no --task"),
        (["--pairs", "none.jsonl", "--out", "o"], "none.jsonl: cannot be read (No such file"),
        (["--pairs", "empty.jsonl", "--out", "o"], "has no line that can be used"),
        (["--pairs", "in.jsonl", "--out", "in.jsonl/o"], "--out in.jsonl/o: cannot be written"),
        (["--pairs", "in.jsonl", "--out", "o", "--set", "tolerance"], "--set tolerance: write KEY=VALUE"),
        (["--pairs", "in.jsonl", "--out", "o", "--set", "tolerance=5"], "tolerance=5"),
        (["--pairs", "in.jsonl", "--out", "."], "--out . is a folder"),
        (["--pairs", "in.jsonl", "--out", "./in.jsonl"], "is the file that --pairs reads"),
        (["--set", "tolerance=0.1"], "--set speaks of the verifier's options"),
    ],
)
def test_a_wrong_command_is_told_apart(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"id": 1, "answer": "5", "candidate": "5"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    result = CliRunner().invoke(app, ["verify", "math", *arguments])
    assert result.exit_code == 2
    assert words in result.stderr


def test_one_completion_is_explained():
    result = CliRunner().invoke(app, ["verify", "math", "--answer", "1/2", "--completion", "so \\boxed{0.5 cm}"])
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["reward"] == "1.0"
    assert rows["answer"] == "0.5 cm"
    assert rows["found"] == "the last box"
    assert rows["gold"] == "1/2 (rational number)"
    assert rows["read"] == "as  0.5 cm (rational number, unit cm)"
    assert rows["detail"] == "the same number"


def test_ctrl_c_keeps_the_verdicts_so_far(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    lines = [{"id": n, "answer": "", "completion": "0" if n < 40 else "1.5"} for n in range(80)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "grpo_math", "verify", "./slow.py", "--pairs", "in.jsonl", "--out", "out.jsonl"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        partial = tmp_path / "out.jsonl.partial"
        for _ in range(600):
            if partial.exists() and time.sleep(0.1) is None and process.poll() is None and _written(partial) >= 1:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "out.jsonl.partial" in errors
    assert [json.loads(line)["id"] for line in partial.read_text().splitlines()] == list(range(_written(partial)))
    assert not (tmp_path / "out.jsonl").exists()


def _written(path):
    return path.read_text().count("\n")


def test_a_device_is_written_as_it_is(tmp_path, judge):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "answer": "5", "candidate": "5"}\n')
    result = CliRunner().invoke(app, ["verify", "math", "--pairs", str(source), "--out", "/dev/null"])
    assert result.exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_a_disk_that_fills_up_is_named_with_what_is_saved(tmp_path):
    lines = [{"id": n, "answer": "5", "candidate": "5"} for n in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "grpo_math", "verify", "math", "--pairs", "in.jsonl", "--out"]
    limit = f"ulimit -f 8; exec {shlex.join([*command, 'out.jsonl'])}"  # in KiB; to Python like a disk that is full
    full = subprocess.run(["bash", "-c", limit], cwd=tmp_path, capture_output=True, text=True)
    assert full.returncode == 2
    assert "--out out.jsonl: cannot be written any more (File too large); the verdicts" in full.stderr
    assert "are in out.jsonl.partial; free some space" in full.stderr
    assert "Traceback" not in full.stderr
    assert json.loads((tmp_path / "out.jsonl.partial").read_text().splitlines()[0])["id"] == 0
    device = subprocess.run([*command, "/dev/full"], cwd=tmp_path, capture_output=True, text=True)
    assert "--out /dev/full: cannot be written any more (No space left on device); free" in device.stderr
