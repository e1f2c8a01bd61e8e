"""HumanEval+, MBPP+, LiveCodeBench and APPS: rows in the published shape through the real verifier, and their words.

Rows are made here; what the Hub is asked for is seen by a stand-in for `load_dataset`.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grpo_math.find import list_tasks
from grpo_math.forms import forms_of
from grpo_math.sandbox import isolation
from grpo_math.sandbox.client import SandboxError
from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.tasks import _code, apps, humaneval, humaneval_plus, livecodebench, mbpp, mbpp_plus
from grpo_math.types import Problem, RunAlone, UserError, Verdict
from grpo_math.verifiers import code

TASKS = [humaneval, humaneval_plus, mbpp, mbpp_plus, livecodebench, apps]


@pytest.fixture(scope="module")
def limits() -> Iterator[Limits]:
    try:
        level = isolation.report(LEVELS[0]).level
    except SandboxError as error:
        pytest.skip(f"no program can be run here: {error}")
    yield Limits(require=level, at_most=level)
    code.shut_down()


def judged(problem: Problem, completion: str, limits: Limits) -> Verdict:
    assert code.check(problem) is None
    try:
        return code.verify(problem, completion, sandbox=limits)
    except RunAlone as late:
        return late.verdict


def reward(problem: Problem, program: str, limits: Limits) -> float | None:
    return judged(problem, _code.fenced(program), limits).reward


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[dict[str, Any]]]:
    """(what load_dataset was called with, the rows that it gives)."""
    calls: list[Any] = []
    rows: list[dict[str, Any]] = []

    def load_dataset(*args: object, **kwargs: object) -> Iterator[dict[str, Any]]:
        calls.append((args, kwargs))
        return iter(rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls, rows


# ---- words that were published with results

# sha256 of a form: another wording is another version, never another digest
GOLDEN = {
    "humaneval chat@1": "be346d4ab10c2c3a",
    "humaneval completion@1": "b7fc2d60be014b2f",
    "humaneval_plus chat@1": "be346d4ab10c2c3a",
    "humaneval_plus completion@1": "b7fc2d60be014b2f",
    "mbpp tests@1": "2e686b2c2cc021a3",
    "mbpp 3shot@1": "8f7a825af4215fd6",
    "mbpp_plus chat@1": "be346d4ab10c2c3a",
    "mbpp_plus completion@1": "54707c520cfebd6c",
    "livecodebench chat@1": "c855e6b38824df0c",
    "apps chat@1": "2e686b2c2cc021a3",
    "apps base@1": "d4064ca0c2eb6162",
}


def digest(task: ModuleType, name: str) -> str:
    form = forms_of(task)[name]
    return hashlib.sha256(repr((form.template, form.system, form.chat, form.stop)).encode()).hexdigest()[:16]


def test_no_published_words_change_under_a_name() -> None:
    found = {
        f"{task.__name__.rpartition('.')[2]} {name}": digest(task, name) for task in TASKS for name in task.PROMPTS
    }
    assert found == GOLDEN


def test_evalplus_words() -> None:
    """To the last newline, and the source says what EvalPlus has besides."""
    problem = Problem("p", "t", "def f():", "", {})
    for task in (humaneval, humaneval_plus, mbpp_plus):
        form = task.PROMPTS["chat@1"]
        assert form.text(problem) == (
            "Please provide a self-contained Python script that solves the following problem in a markdown code "
            "block:\n```\ndef f():\n```\n"
        )
        assert "make_raw_chat_prompt; left out: the beginning of the answer" in form.source


def test_the_shared_file_is_no_task() -> None:
    assert {"humaneval_plus", "mbpp_plus", "livecodebench", "apps"} <= set(list_tasks())
    assert "_code" not in list_tasks()
    assert {task.VERIFIER for task in TASKS} == {"code"}


# ---- HumanEval in the form of the paper: what a base model writes is judged as prompt + completion


@pytest.fixture
def distance(tmp_path: Path) -> Problem:
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'from typing import List\n\n\ndef spread(xs: List[int]) -> int:\n    """Largest less smallest."""\n',
        "entry_point": "spread",
        "canonical_solution": "    return max(xs) - min(xs)\n",
        "test": "def check(candidate):\n    assert candidate([3, 1, 4]) == 3\n    assert candidate([5]) == 0\n",
    }
    (problem,) = humaneval.load("test", written(tmp_path / "a.jsonl", row))
    return problem


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return max(xs) - min(xs)\n", 1.0),
        ("\n    return max(xs) - min(xs)", 1.0),  # a blank line first; cut before "\ndef"
        ("    low = min(xs)\n\n    return max(xs) - low\n\n", 1.0),  # cut before "\nprint"
        ("    return max(xs)\n", 0.0),
        ("    def low():\n        return min(xs)\n    return max(xs) - low()", 1.0),
        ("def spread(xs: List[int]) -> int:\n    return max(xs) - min(xs)\n", 1.0),  # begins anew; List is the prompt's
        ("", 0.0),
    ],
)
def test_a_completion_goes_on_with_the_prompt(
    completion: str, expected: float, distance: Problem, limits: Limits
) -> None:
    assert judged(distance, completion, limits).reward == expected


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chat", "completion"])
def test_all_of_humaneval_in_either_form(form: str, shared: Path, limits: Limits) -> None:
    problems = humaneval.load("test", str(shared / "data" / "humaneval.jsonl"))
    texts = [humaneval.gold_completion(p) if form == "chat" else p.answer for p in problems]
    refused = [p.id for p, text in zip(problems, texts, strict=True) if judged(p, text, limits).reward != 1.0]
    assert (len(problems), refused) == (164, [])


# ---- MBPP in the paper's form


def test_three_shots_are_those_of_the_split_prompt(shared: Path) -> None:
    problems = mbpp.load("prompt", str(shared / "data" / "mbpp.jsonl"))
    shots = [
        f"{p.question}\n[BEGIN]\n{p.answer}\n[DONE]\n\n" for p in problems if p.id in ("mbpp/2", "mbpp/3", "mbpp/4")
    ]
    assert len(shots) == 3
    assert mbpp.PROMPTS["3shot@1"].template == "".join(shots) + "{question}\n[BEGIN]\n"


def test_what_follows_begin_is_read(limits: Limits) -> None:
    row = {
        "task_id": 700,
        "text": "Double.",
        "code": "def twice(x):\n\treturn 2 * x",
        "test_list": ["assert twice(2) == 4"],
    }
    problem = mbpp.problem(700, row, "here:1")
    form = mbpp.PROMPTS["3shot@1"]
    assert form.text(problem).endswith("pass these tests:\n\nassert twice(2) == 4\n[BEGIN]\n")
    assert (form.chat, form.stop) == (False, ("[DONE]",))
    assert judged(problem, "def twice(x):\n  return x + x\n", limits).reward == 1.0
    assert judged(problem, "def twice(x):\n  return x\n", limits).reward == 0.0


# ---- HumanEval+ and MBPP+

HELPERS = """import numpy as np


def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact_match

"""
HUMANEVAL_PLUS = {
    "task_id": "HumanEval/2",
    "prompt": '\n\ndef part(number: float) -> float:\n    """What is behind the point."""\n',
    "entry_point": "part",
    "canonical_solution": "\n    return number - int(number)\n\n",
    "test": HELPERS + "def check(candidate):\n    inputs = [[3.5], [1.25], [0.1]]\n    results = [0.5, 0.25, 0.1]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
}
MBPP_PLUS = {
    "task_id": 2,
    "code": "def shared(a, b):\r\n  return tuple(set(a) & set(b))\r\n",
    "prompt": "Write a function to find what two tuples share.",
    "source_file": "a.ipynb",
    "test_imports": ["import math"],
    "test_list": ["assert set(shared((3, 4), (4, 5))) == {4}", "assert set(shared((1,), (2,))) == set()"],
    "test": HELPERS + "inputs = [[(3, 4, 5), (4, 5)], [(1,), (2,)]]\nresults = [(5, 4), ()]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(set(shared(*inp)), set(exp), 0)\n",
}


def test_humaneval_plus(tmp_path: Path, limits: Limits) -> None:
    (problem,) = humaneval_plus.load("test", written(tmp_path / "a.jsonl", HUMANEVAL_PLUS))
    assert (problem.id, problem.task) == ("HumanEval/2", "humaneval_plus")
    assert judged(problem, humaneval_plus.gold_completion(problem), limits).reward == 1.0
    assert judged(problem, HUMANEVAL_PLUS["canonical_solution"], limits).reward == 1.0
    assert reward(problem, "def part(number):\n    return number % 1 + 1e-9", limits) == 1.0  # within the tolerance
    assert reward(problem, "def part(number):\n    return number % 1 + 1e-3", limits) == 0.0
    assert reward(problem, "class Any:\n    __eq__ = __sub__ = lambda *a: True\npart = lambda x: Any()", limits) == 0.0


def test_mbpp_plus(tmp_path: Path, limits: Limits) -> None:
    (problem,) = mbpp_plus.load("test", written(tmp_path / "a.jsonl", MBPP_PLUS))
    head = '"""\nWrite a function to find what two tuples share.\nassert set(shared((3, 4), (4, 5))) == {4}\n"""'
    assert (problem.id, problem.question, problem.metadata["prompt"]) == ("mbpp_plus/2", head, f"{head}\n")
    assert problem.metadata["tests"]["entry_point"] == "shared"
    assert judged(problem, mbpp_plus.gold_completion(problem), limits).reward == 1.0
    assert judged(problem, "def shared(a, b):\n    return [x for x in a if x in b]\n", limits).reward == 1.0
    assert reward(problem, "def shared(a, b):\n    return a", limits) == 0.0
    assert reward(problem, "def shared(a, b):\n    return 5", limits) == 0.0
    assert "\r" not in problem.answer


def test_mbpp_plus_with_a_reference_for_results(tmp_path: Path, limits: Limits) -> None:
    """Three rows have the right program instead of results."""
    test = HELPERS + (
        "def ref_func(a, b):\n    return tuple(set(a) & set(b))\n\ninputs = [[(3, 4), (4, 5)]]\n"
        "for i, inp in enumerate(inputs):\n    assertion(shared(*inp), ref_func(*inp), 0)\n"
    )
    (problem,) = mbpp_plus.load("test", written(tmp_path / "a.jsonl", {**MBPP_PLUS, "test": test, "task_id": "Mbpp/2"}))
    assert problem.id == "mbpp_plus/2"
    assert judged(problem, mbpp_plus.gold_completion(problem), limits).reward == 1.0
    assert reward(problem, "def shared(a, b):\n    return ()", limits) == 0.0


def test_numbers_that_python_does_not_read(tmp_path: Path, limits: Limits) -> None:
    long = "1" + 5000 * "0"
    test = f"def check(candidate):\n    assert candidate(5000) == {long}, '{long}'\n"
    row = {**HUMANEVAL_PLUS, "entry_point": "ten", "prompt": "def ten(n):\n", "test": test}
    (problem,) = humaneval_plus.load("test", written(tmp_path / "a.jsonl", row))
    assert f"'{long}'" in problem.metadata["tests"]["test"]  # what is a string stays one
    assert reward(problem, "def ten(n):\n    return 10**n", limits) == 1.0
    assert reward(problem, "def ten(n):\n    return 10**n + 1", limits) == 0.0
    assert _code.whole("-" + long) == -(10**5000)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"test": "assert shared((1,), (1,)) == (1,)"}, r"a\.jsonl:1: test has 0 loops .* use the task mbpp"),
        ({"test_list": ["assert max((1, 2)) == 2"]}, r"a\.jsonl:1: no one function of code is called by all of test_l"),
        ({"code": "def f(:"}, r"a\.jsonl:1: code or test_list is not valid Python .* mend or delete the row"),
        ({"task_id": None}, r"a\.jsonl:1: task_id=None: give MBPP's number"),
        ({"prompt": ""}, r"a\.jsonl:1: 'prompt' is empty"),
    ],
)
def test_mbpp_plus_rows_of_no_use(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        mbpp_plus.load("test", written(tmp_path / "a.jsonl", {**MBPP_PLUS, **row}))


@pytest.mark.parametrize(
    ("task", "row", "called"),
    [
        (humaneval_plus, HUMANEVAL_PLUS, (("evalplus/humanevalplus", None), {"split": "test"})),
        (mbpp_plus, MBPP_PLUS, (("evalplus/mbppplus", None), {"split": "test"})),
    ],
)
def test_plus_from_the_hub(task: Any, row: dict[str, Any], called: object, hub: tuple[list[Any], list[Any]]) -> None:
    hub[1].append(row)
    assert len(task.load("test")) == 1
    assert hub[0] == [called]
    with pytest.raises(UserError, match=rf"task\.split='train': {task.__name__.rpartition('.')[2]} on the Hub"):
        task.load("train")


# ---- LiveCodeBench


def hidden(cases: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str) -> dict[str, str]:
    return {"input": given, "output": wanted, "testtype": kind}


STDIN = {
    "question_title": "A",
    "question_content": "Print a + b and a / b.",
    "platform": "atcoder",
    "question_id": "abc001_a",
    "contest_id": "abc001",
    "contest_date": "2025-02-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([case("4 2\n", "6\n2\n", "stdin")]),
    "private_test_cases": hidden(
        [case("1 2", "3\n0.5", "stdin"), case(f"{10**17} 1", f"{10**17 + 1}\n{10**17}", "stdin")]
    ),
    "metadata": "{}",
}
METHOD = {
    **STDIN,
    "platform": "leetcode",
    "question_id": "2777",
    "contest_date": "2025-03-02T00:00:00",
    "starter_code": "class Solution:\n    def add(self, xs: List[int], y: int) -> List[int]:\n        ",
    "public_test_cases": json.dumps([case("[1, 2]\n3", "[4, 5]", "functional")]),
    "private_test_cases": json.dumps([case("[]\n1", "[]", "functional")]),
    "metadata": '{"func_name": "add"}',
}


@pytest.fixture
def contests(tmp_path: Path) -> tuple[Problem, Problem]:
    first, second = livecodebench.load("test", written(tmp_path / "a.jsonl", STDIN, METHOD))
    return first, second


def test_livecodebench_words(contests: tuple[Problem, Problem]) -> None:
    stdin, method = map(livecodebench.PROMPTS["chat@1"].text, contests)
    assert stdin == (
        "### Question:\nPrint a + b and a / b.\n\n### Format: Read the inputs from stdin solve the problem and write "
        "the answer to stdout (do not directly test on the sample inputs). Enclose your code within delimiters as "
        "follows. Ensure that when the python program runs, it reads the inputs, runs the algorithm and writes output "
        "to STDOUT.\n```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    assert method == (
        "### Question:\nPrint a + b and a / b.\n\n### Format: You will use the following starter code to write "
        f"the solution to the problem and enclose your code within delimiters.\n```python\n"
        f"{METHOD['starter_code']}\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )


def test_livecodebench_standard_input(contests: tuple[Problem, Problem], limits: Limits) -> None:
    problem = contests[0]
    assert (problem.id, problem.metadata["date"]) == ("livecodebench/abc001_a", "2025-02-01")
    read = "a, b = map(int, input().split())\n"
    assert reward(problem, read + "print(a + b)\nprint(a / b if a % b else f'{a // b}.0 ')", limits) == 1.0
    assert reward(problem, read + "print(a + b)\nprint(a // b)", limits) == 0.0
    # a float for 10**17 + 1: numbers are compared as they stand, not as floats
    assert reward(problem, read + "print(int(float(a + b)))\nprint(a / b if a % b else a // b)", limits) == 0.0
    assert reward(problem, read + "print(a + b)", limits) == 0.0


def test_livecodebench_imports_run_before_programs_too(contests: tuple[Problem, Problem], limits: Limits) -> None:
    """As its runner does: names that only its imports bring, and a depth that only its limit allows."""
    use = "a, b = map(int, input().split())\nprint(reduce(add, [a, b]))\nprint(a / b if a % b else f'{a // b}.0')\n"
    deep = "def down(n): return 0 if n == 0 else down(n - 1)\ndown(5000)\n"
    assert reward(contests[0], use + deep, limits) == 1.0
    assert reward(contests[0], f"from __future__ import annotations\nx: Never = 1\n{use}", limits) == 1.0
    assert reward(contests[0], use.replace("reduce", "deduce"), limits) == 0.0


def test_livecodebench_methods(contests: tuple[Problem, Problem], limits: Limits) -> None:
    problem = contests[1]
    head = METHOD["starter_code"]  # which leaves the import of List to the runner
    assert reward(problem, f"{head}return [x + y for x in xs]", limits) == 1.0
    assert reward(problem, f"{head}return xs", limits) == 0.0
    assert judged(problem, f"```python\n{head}return xs\n```", limits).tests is not None
    deep = "def down(n): return 0 if n == 0 else down(n - 1)\n        down(5000)\n        return [x + y for x in xs]"
    assert reward(problem, head + deep, limits) == 1.0


@pytest.mark.parametrize(
    ("release", "files"),
    [
        ("v1", ["test.jsonl"]),
        ("v6", ["test6.jsonl"]),
        ("v2_v3", ["test2.jsonl", "test3.jsonl"]),
        ("release_v2", ["test.jsonl", "test2.jsonl"]),
    ],
)
def test_livecodebench_releases(release: str, files: list[str], hub: tuple[list[Any], list[Any]]) -> None:
    calls, rows = hub
    rows.append({**STDIN, "contest_date": datetime.datetime(2025, 2, 1)})
    assert livecodebench.load("test", release=release)[0].metadata["date"] == "2025-02-01"
    place = "hf://datasets/livecodebench/code_generation_lite"
    assert calls == [(("json",), {"data_files": f"{place}/{name}", "split": "train"}) for name in files]


def test_livecodebench_window(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", STDIN, METHOD)
    late = livecodebench.load("test", path, from_date="2025-02-02")
    assert [p.id for p in late] == ["livecodebench/2777"]
    both = livecodebench.load("test", path, from_date="2025-02-01", until_date="2025-03-02")
    assert [p.id for p in both] == ["livecodebench/abc001_a", "livecodebench/2777"]
    with pytest.raises(UserError, match=r"from_date=2026-01-01.*the 2 contests were from 2025-02-01 to 2025-03-02"):
        livecodebench.load("test", path, from_date="2026-01-01")


@pytest.mark.parametrize("release", ["v7", "v0", "6", "v3_v2", "release_v2_v3", "latest"])
def test_livecodebench_has_no_such_release(release: str) -> None:
    with pytest.raises(UserError, match=rf"task\.options\.release='{release}': give v1 to v6"):
        livecodebench.load("test", release=release)


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["GRPO_MATH_HARM"],)


def test_a_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPO_MATH_HARM", str(tmp_path / "harm"))
    bad = base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode()
    with pytest.raises(UserError, match=r"a\.jsonl:1: 'private_test_cases' is neither .* names posix\.mkdir"):
        livecodebench.load("test", written(tmp_path / "a.jsonl", {**STDIN, "private_test_cases": bad}))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"private_test_cases": "???"}, r"a\.jsonl:1: 'private_test_cases' is neither JSON nor text in a pickle"),
        ({"private_test_cases": hidden([])[:-8]}, r"a\.jsonl:1: 'private_test_cases' is neither JSON nor text"),
        ({"private_test_cases": '[{"input": 3}]'}, r"a\.jsonl:1: 'private_test_cases' is no list of cases"),
        ({"public_test_cases": "[{]"}, r"a\.jsonl:1: 'public_test_cases' holds broken JSON .* mend or delete the row"),
        ({"contest_date": "soon"}, r"a\.jsonl:1: contest_date='soon' is no date such as 2025-01-31"),
        ({"metadata": '{"func_name": "add"}'}, r"a\.jsonl:1: 'input of a case' holds broken JSON"),
    ],
)
def test_livecodebench_rows_of_no_use(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        livecodebench.load("test", written(tmp_path / "a.jsonl", {**STDIN, **row}))


# ---- APPS


def apps_row(number: int, found: object, **fields: Any) -> dict[str, Any]:
    return {
        "problem_id": number,
        "question": "Say it.",
        "solutions": json.dumps(["print(input()[::-1])", "print('no')"]),
        "input_output": json.dumps(found) if found is not None else "",
        "difficulty": "interview",
        "url": "https://example.org/1",
        "starter_code": "",
        **fields,
    }


REVERSE = apps_row(0, {"inputs": ["abc\n", ["xy", ""]], "outputs": ["cba\n", ["yx"]]})


def test_apps_standard_input(tmp_path: Path, limits: Limits) -> None:
    (problem,) = apps.load("train", written(tmp_path / "a.jsonl", REVERSE))
    assert problem.id == "apps/train/0"
    assert apps.PROMPTS["base@1"].text(problem) == "\nQUESTION:\nSay it.\nUse Standard Input format\nANSWER:\n"
    assert apps.PROMPTS["chat@1"].text(problem) == (
        "Say it.\nUse Standard Input format\n\nAnswer with the whole program in one ```python block."
    )
    assert judged(problem, apps.gold_completion(problem), limits).reward == 1.0
    assert judged(problem, "s = input()\nprint(s[::-1])\n", limits).reward == 1.0  # as a base model goes on
    assert reward(problem, "print(input())", limits) == 0.0


def test_apps_imports_run_before_programs_too(tmp_path: Path, limits: Limits) -> None:
    """As its script does: `stdin` is its own name, `Counter` one that it imports."""
    (problem,) = apps.load("train", written(tmp_path / "a.jsonl", REVERSE))
    counted = "s = stdin.readline().strip()\nassert Counter(s)\nstdout.write(s[::-1])"
    assert reward(problem, counted, limits) == 1.0
    assert reward(problem, f"'Words.'\nfrom __future__ import annotations; {counted}", limits) == 1.0
    assert reward(problem, counted.replace("Counter", "Counted"), limits) == 0.0


@pytest.mark.parametrize(
    ("wanted", "written_out", "expected"),
    [
        ("0.3333333", "1 / 3", 1.0),
        ("0.3333", "1 / 3", 0.0),
        ("1000000", "1000001", 0.0),  # whole numbers are exact
        ("5", "'5.0'", 1.0),
        ("2 1", "'1 2'", 0.0),  # and in order
        ("YES", "'  YES '", 1.0),
        ("1.5", "float('inf')", 0.0),
        ("1.5", "float('nan')", 0.0),
    ],
)
def test_apps_compares(wanted: str, written_out: str, expected: float, tmp_path: Path, limits: Limits) -> None:
    row = apps_row(1, {"inputs": ["\n"], "outputs": [wanted]})
    (problem,) = apps.load("test", written(tmp_path / "a.jsonl", row))
    assert reward(problem, f"print({written_out})", limits) == expected


def test_apps_functions(tmp_path: Path, limits: Limits) -> None:
    """Codewars' results are in a list of one, LeetCode's are not; a tuple is as good as a list."""
    wrapped = apps_row(2, {"fn_name": "pair", "inputs": [[1], [2]], "outputs": [[[1, 1]], [[2, 2]]]})
    method = apps_row(
        3,
        {"fn_name": "up", "inputs": [[[1]], [[2, 3]]], "outputs": [[2], [3, 4]]},
        starter_code="class Solution:\n    def up(self, xs: List[int]) -> List[int]:\n        ",
    )
    function, solution = apps.load("test", written(tmp_path / "a.jsonl", wrapped, method))
    assert function.question == "Say it.\nUse Call-Based format"
    assert solution.question.startswith("Say it.\nclass Solution:\n")
    assert reward(function, "def pair(x):\n    return x, x", limits) == 1.0
    assert reward(function, "def pair(x):\n    return [x]", limits) == 0.0
    assert judged(function, _code.fenced("def pair(x):\n    return [1, 1]"), limits).tests is not None
    head = method["starter_code"]
    assert reward(solution, f"{head}return [x + 1 for x in xs]", limits) == 1.0
    assert reward(solution, f"{head}return xs", limits) == 0.0


def test_apps_numbers_of_any_length(tmp_path: Path, limits: Limits) -> None:
    long = "1" + 9000 * "0"
    row = apps_row(4, None, input_output=f'{{"fn_name": "ten", "inputs": [[9000]], "outputs": [{long}]}}')
    (problem,) = apps.load("train", written(tmp_path / "a.jsonl", row))
    assert reward(problem, "def ten(n):\n    return 10**n", limits) == 1.0
    assert reward(problem, "def ten(n):\n    return 10**n - 1", limits) == 0.0


def test_apps_names_what_has_no_tests(tmp_path: Path) -> None:
    rows = [apps_row(5, None, solutions=""), apps_row(6, {"inputs": [], "outputs": []})]
    for problem in apps.load("test", written(tmp_path / "a.jsonl", *rows)):
        assert code.check(problem) == "tests.cases: give a list of at least one mapping"


def test_apps_from_the_hub(hub: tuple[list[Any], list[Any]]) -> None:
    calls, rows = hub
    other = {**REVERSE, "id": 7, "difficulty": "competition"}
    del other["problem_id"]
    rows += [REVERSE, other]
    assert [p.id for p in apps.load("test")] == ["apps/test/0", "apps/test/7"]
    assert [p.id for p in apps.load("train", difficulty="competition")] == ["apps/train/7"]
    place = "hf://datasets/codeparrot/apps"
    assert calls == [(("json",), {"data_files": f"{place}/{s}.jsonl", "split": "train"}) for s in ("test", "train")]


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(
        UserError, match=r"test\.jsonl of the data set codeparrot/apps .*\(no route\).* task\.path=FILE"
    ):
        apps.load("test")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "x"}, "has no field 'question', only 'text'"),
        ({"question": None}, ": 'question' is null, null, where a string is expected"),
        ({"question": " \n"}, ": 'question' is empty"),
        ({"question": "\ud83d"}, ": 'question' holds half a Unicode pair"),
    ],
)
def test_a_hub_that_has_changed(row: dict[str, Any], says: str, hub: tuple[list[Any], list[Any]]) -> None:
    """Files of the Hub are checked like every other row."""
    hub[1].append(row)
    with pytest.raises(UserError, match=rf"codeparrot/apps/test\.jsonl:1:? ?{says}"):
        apps.load("test")


def test_a_hub_without_rows(hub: tuple[list[Any], list[Any]]) -> None:
    with pytest.raises(UserError, match=r"codeparrot/apps/test\.jsonl has no rows"):
        apps.load("test")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_output": "{"}, r"a\.jsonl:1: 'input_output' holds broken JSON .* mend or delete the row"),
        ({"input_output": "[]"}, r"a\.jsonl:1: 'input_output' is no object with inputs and outputs"),
        ({"input_output": '{"inputs": ["1"]}'}, r"a\.jsonl:1: 1 inputs and 0 outputs"),
        ({"solutions": '"x"'}, r"a\.jsonl:1: 'solutions' is no list of programs"),
        ({"solutions": 3}, r"a\.jsonl:1: 'solutions' is 3, where JSON as a string is expected"),
        ({"problem_id": None}, r"a\.jsonl:1: problem_id=None: give the problem's number"),
    ],
)
def test_apps_rows_of_no_use(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        apps.load("test", written(tmp_path / "a.jsonl", {**REVERSE, **row}))


def test_apps_options() -> None:
    with pytest.raises(
        UserError, match=r"difficulty='easy': apps has introductory, .*; set task\.options\.difficulty="
    ):
        apps.load("test", difficulty="easy")
    with pytest.raises(UserError, match=r"task\.split='dev': apps on the Hub has no such split, only train, test"):
        apps.load("dev")
