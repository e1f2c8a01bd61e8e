"""The tasks whose answers are programs: what they ask, what judges it, and that their own answers are right.

Programs are run here with plain exec, since they are the tasks' own; those of a model go through the sandbox.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_math import config
from grpo_math.forms import form_of, forms_of
from grpo_math.tasks import humaneval, mbpp, programs
from grpo_math.tasks.programs import CALLS, MAX_CALLS, MIN_CALLS, MIN_RESULTS, Step, body, choose_calls, run
from grpo_math.types import Problem, UserError

# ---- what a program does, without a sandbox


def block(completion: str) -> str:
    """The one fenced block of a completion."""
    (code,) = re.findall(r"```python\n(.*?)```", completion, re.DOTALL)
    return code


def execute(*sources: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MBPP has programs with "\d"
        for source in sources:
            exec(source, names)
    return names


def passes(problem: Problem, text: str) -> bool:
    """Whether every call of a problem of `programs` gives what it should."""
    function = execute(problem.metadata["prompt"] + text)["f"]
    return all(function(*case["args"]) == case["expected"] for case in problem.metadata["tests"]["cases"])


# ---- programs


@pytest.fixture(scope="module")
def drawn() -> list[Problem]:
    return list(islice(programs.load("train", seed=3, min_steps=1, max_steps=4, slips=0.5), 1000))


def test_a_problem_by_hand() -> None:
    steps = [
        Step("take from {n}", 8),
        Step("add {n}", "y", condition="above {n}", m=3),
        Step("subtract {n}", 2, loop=True),
        Step("absolute", condition="odd"),
    ]
    assert programs.question_of(steps) == "take from 8; if above 3, add y; y times, subtract 2; if odd, absolute"
    assert body(steps) == (
        " x = 8 - x\n if x > 3:\n  x += y\n for i in range(y):\n  x -= 2\n if x % 2 == 1:\n  x = abs(x)\n return x"
    )
    results = dict(zip(CALLS, run(steps).tolist(), strict=True))
    assert results[1, 2] == 8 - 1 + 2 - 2 - 2
    assert results[6, 1] == 8 - 6 - 2
    assert results[6, -5] == 8 - 6
    assert results[8, 1] == -2
    assert results[7, 1] == 1 == abs(8 - 7 - 2)


@pytest.mark.parametrize(
    ("step", "x", "y", "result"),
    [
        (Step("divide by {n}", 2), -5, 0, -3),
        (Step("modulo {n}", 3), -5, 0, 1),
        (Step("at most {n}", "y"), 4, -2, -2),
        (Step("at least {n}", "y"), 4, -2, 4),
        (Step("double", loop=True), 3, 2, 12),
        (Step("square", condition="negative"), -3, 0, 9),
        (Step("negate", condition="even"), 0, 5, 0),
        (Step("multiply by {n}", 3, condition="below {n}", m="y"), 2, 2, 2),
        (Step("multiply by {n}", 3, condition="below {n}", m="y"), 1, 2, 3),
    ],
)
def test_steps_by_hand(step: Step, x: int, y: int, result: int) -> None:
    assert run([step])[CALLS.index((x, y))] == result


def test_every_body_does_what_its_steps_say() -> None:
    """The program and the numbers it is judged by have separate sources: here they meet, on every call there is."""
    maker = programs.load("train", seed=5, max_steps=4).gi_frame.f_locals["self"]  # type: ignore[attr-defined]
    for _ in range(300):
        steps, _calls = maker.draw(held=False)
        function = execute(programs.TEMPLATE.replace("{question}", "") + body(steps))["f"]
        assert [function(x, y) for x, y in CALLS] == run(steps).tolist(), programs.question_of(steps)


def test_every_answer_passes_its_calls(drawn: list[Problem]) -> None:
    for problem in drawn:
        assert problem.metadata["prompt"] == f"# {problem.question}\ndef f(x, y):\n"
        assert passes(problem, programs.gold_completion(problem))


def test_calls_are_few_and_no_constant_is_near(drawn: list[Problem]) -> None:
    for problem in drawn:
        tests = problem.metadata["tests"]
        assert (tests["type"], tests["entry_point"]) == ("function", "f")
        assert MIN_CALLS <= len(tests["cases"]) <= MAX_CALLS
        assert len({tuple(case["args"]) for case in tests["cases"]}) == len(tests["cases"])
        assert len({case["expected"] for case in tests["cases"]}) >= MIN_RESULTS
    json.dumps([dict(problem.metadata) for problem in drawn])  # plain ints, not numpy's


def test_near_misses_fail_unless_they_are_right_everywhere() -> None:
    maker = programs.load("train", seed=7, max_steps=4).gi_frame.f_locals["self"]  # type: ignore[attr-defined]
    missed, equivalent = 0, 0
    for _ in range(200):
        steps, calls = maker.draw(held=False)
        right = run(steps)
        wrongs = [[*steps[:i], miss, *steps[i + 1 :]] for i, step in enumerate(steps) for miss in step.near_misses()]
        wrongs += [[*steps[:i], steps[i + 1], steps[i], *steps[i + 2 :]] for i in range(len(steps) - 1)]
        for wrong in wrongs:
            same = np.array_equal(run(wrong), right)
            equivalent += same
            missed += not same
            assert same == (run(wrong)[calls] == right[calls]).all(), programs.question_of(wrong)
        for i, step in enumerate(steps):  # these are never right: such questions are drawn anew
            idle = [[*steps[:i], *steps[i + 1 :]]] if len(steps) > 1 else []
            if step.condition or step.loop:
                idle.append([*steps[:i], Step(step.action, step.n), *steps[i + 1 :]])
            assert all((run(wrong)[calls] != right[calls]).any() for wrong in idle)
    assert missed > 10 * equivalent > 0


@pytest.mark.parametrize(
    "steps",
    [
        [Step("at least {n}", 3), Step("absolute")],  # the second does nothing
        [Step("at least {n}", 9, condition="below {n}", m=9)],  # nor does the condition
        [Step("at most {n}", 4), Step("at least {n}", 7)],  # always 7
        [Step("modulo {n}", 2)],  # two results are too few
    ],
)
def test_poor_questions_are_drawn_anew(steps: list[Step]) -> None:
    assert choose_calls(steps, 0) is None


def test_a_mistaken_operator_in_the_text_fails(drawn: list[Problem]) -> None:
    """The same by mutating text, which knows nothing of steps. What stays right everywhere is equivalent."""
    swaps = {"+=": "-=", "-=": "+=", "min": "max", "max": "min", " < ": " <= ", " > ": " >= ", "== 1": "== 0"}
    caught = 0
    for problem in drawn[:300]:
        right = execute(problem.metadata["prompt"] + problem.answer)["f"]
        for old, new in swaps.items():
            if old not in problem.answer:
                continue
            mutant = problem.answer.replace(old, new, 1)
            wrong = execute(problem.metadata["prompt"] + mutant)["f"]
            if any(wrong(x, y) != right(x, y) for x, y in CALLS):
                assert not passes(problem, mutant), problem.metadata["prompt"] + mutant
                caught += 1
    assert caught > 200


def test_slips_change_the_solution_and_never_the_rest(drawn: list[Problem]) -> None:
    clean = list(islice(programs.load("train", seed=3, min_steps=1, max_steps=4), 1000))
    assert all(p.metadata["solution"] == p.answer for p in clean)
    assert [replace(p, metadata={**p.metadata, "solution": ""}) for p in clean] == [
        replace(p, metadata={**p.metadata, "solution": ""}) for p in drawn
    ]
    wrong = sum(not passes(p, p.metadata["solution"]) for p in drawn)
    assert 500 < wrong < 900


def test_the_same_seed_gives_the_same_problems() -> None:
    def first(seed: int) -> list[Problem]:
        return list(islice(programs.load("train", seed=seed, slips=0.2), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert len({p.id for p in first(1)}) == 50


def test_no_training_problem_is_a_test_problem_whatever_the_seed() -> None:
    test = list(programs.load("test"))
    questions = {p.question for p in test}
    assert len(test) == len(questions) == len({p.id for p in test}) == programs.TEST_PROBLEMS
    assert all(map(programs.held_out, questions))
    for seed in range(3):
        assert not questions & {p.question for p in islice(programs.load("train", seed=seed), 1000)}


def test_the_test_split_of_single_steps_ends() -> None:
    test = [p.question for p in programs.load("test", min_steps=1, max_steps=1, conditions=0, loops=0)]
    assert 0 < len(test) == len(set(test)) < 30


@pytest.mark.parametrize(
    ("split", "options", "says"),
    [
        ("dev", {}, r"task\.split=dev: .* train and test"),
        ("train", {"path": "x.jsonl"}, r"task\.path=x\.jsonl: .* leave task\.path out"),
        ("train", {"min_steps": 3, "max_steps": 2}, "min_steps=3, max_steps=2; give 1 to 4"),
        ("train", {"max_steps": 5}, "max_steps=5; give 1 to 4"),
        ("train", {"slips": 1.0}, r"task\.options\.slips=1\.0: give a share"),
        ("train", {"conditions": 0.8, "loops": 0.4}, r"conditions=0\.8, loops=0\.4; give shares"),
        ("train", {"loops": -0.1}, r"loops=-0\.1; give shares"),
    ],
)
def test_bad_options_name_the_key_and_the_remedy(split: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        programs.load(split, **options)


# ---- HumanEval

HEAD = 'def twice(x):\n    """Two times x."""\n'
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": f"\n\n{HEAD}",
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_humaneval_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", HUMANEVAL)
    (problem,) = humaneval.load("test", path)
    assert (problem.id, problem.task, problem.answer) == ("HumanEval/0", "humaneval", "    return 2 * x\n")
    assert problem.question == HEAD.strip()
    assert problem.metadata == {
        "source": f"{path}:1",
        "prompt": f"\n\n{HEAD}",
        "tests": {
            "type": "check",
            "test": HUMANEVAL["test"],
            "entry_point": "twice",
            "prompt": f"\n\n{HEAD}",
        },
    }
    assert execute(block(humaneval.gold_completion(problem)))["twice"](4) == 8


def test_humaneval_forms(tmp_path: Path) -> None:
    (problem,) = humaneval.load("test", written(tmp_path / "a.jsonl", HUMANEVAL))
    assert humaneval.PROMPTS["chat@1"].text(problem) == (
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        f"```\n{HEAD.strip()}\n```\n"
    )
    name, raw = form_of(config.Task(name="humaneval", prompt="completion"), humaneval)
    assert (name, raw.chat, raw.text(problem)) == ("completion@1", False, f"\n\n{HEAD}")
    assert raw.stop == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def test_humaneval_has_one_split_on_the_hub() -> None:
    with pytest.raises(UserError, match=r"task\.split='train': humaneval on the Hub .* set task\.split=test"):
        humaneval.load("train")


def test_humaneval_whole(shared: Path) -> None:
    problems = humaneval.load("test", str(shared / "data" / "humaneval.jsonl"))
    assert len(problems) == 164 == len({p.id for p in problems})
    for problem in problems:
        tests = problem.metadata["tests"]
        assert f"def {tests['entry_point']}(" in problem.question
        names = execute(block(humaneval.gold_completion(problem)), tests["test"])
        names["check"](names[tests["entry_point"]])


# ---- MBPP


def mbpp_row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": "Write a function to double.",
        "code": "def helper(x):\r\n\treturn x\r\ndef twice(x):\r\n\treturn 2 * helper(x)\r",
        "test_list": ["assert twice(1) == 2", "assert twice(2) == 4\r\n"],
        "test_setup_code": "",
        "challenge_test_list": [],
        **fields,
    }


def test_mbpp_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", mbpp_row(601))
    (problem,) = mbpp.load("train", path)
    assert (problem.id, problem.task) == ("mbpp/601", "mbpp")
    assert mbpp.PROMPTS["tests@1"].text(problem) == (
        "You are an expert Python programmer, and here is your task: Write a function to double. "
        "Your code should pass these tests:\n\nassert twice(1) == 2\nassert twice(2) == 4\n\n"
        "Answer with the whole program in one ```python block."
    )
    code = "def helper(x):\n\treturn x\ndef twice(x):\n\treturn 2 * helper(x)"
    assert problem.answer == code
    assert problem.metadata == {
        "source": f"{path}:1",
        "solution": f"```python\n{code}\n```",
        "tests": {
            "type": "asserts",
            "asserts": ["assert twice(1) == 2", "assert twice(2) == 4"],
            "entry_point": "twice",
        },
    }


def test_mbpp_set_up_runs_after_the_program(tmp_path: Path) -> None:
    (problem,) = mbpp.load("train", written(tmp_path / "a.jsonl", mbpp_row(700, test_setup_code="a = twice(2) \r\n")))
    assert problem.metadata["tests"]["epilogue"] == "a = twice(2)"


def test_mbpp_without_one_function_that_all_asserts_call(tmp_path: Path) -> None:
    row = mbpp_row(700, code="def a(x):\n return x\ndef b(x):\n return x", test_list=["assert a(b(1)) == 1"])
    (problem,) = mbpp.load("train", written(tmp_path / "a.jsonl", row))
    assert "entry_point" not in problem.metadata["tests"]


def test_mbpp_splits_of_one_file_and_of_several(tmp_path: Path) -> None:
    numbers = (1, 10, 11, 510, 511, 600, 601, 974)
    rows = [mbpp_row(number) for number in numbers]
    path = written(tmp_path / "all.jsonl", *rows)
    found = {split: [p.id for p in mbpp.load(split, path)] for split in mbpp.SPLITS}
    assert found == {
        "prompt": ["mbpp/1", "mbpp/10"],
        "test": ["mbpp/11", "mbpp/510"],
        "validation": ["mbpp/511", "mbpp/600"],
        "train": ["mbpp/601", "mbpp/974"],
    }
    written(tmp_path / "own_train.jsonl", *rows)
    assert len(mbpp.load("train", str(tmp_path / "own_{split}.jsonl"))) == len(numbers)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (mbpp_row(11), r"has no row of the split 'train', which is task_id 601 to 974; choose another split"),
        ({**mbpp_row(1), "task_id": "601"}, r"a\.jsonl:1: task_id='601': give MBPP's number"),
        (mbpp_row(601, code="def f(:"), r"a\.jsonl:1: code or test_list is not valid Python .*; mend or delete"),
        (mbpp_row(601, test_list=[]), r"a\.jsonl:1: 'test_list' is a list"),
    ],
)
def test_mbpp_bad_rows(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        mbpp.load("train", written(tmp_path / "a.jsonl", row))


def test_mbpp_has_the_splits_of_the_hub(tmp_path: Path) -> None:
    for path in (None, written(tmp_path / "a.jsonl", mbpp_row(601))):
        with pytest.raises(UserError, match=r"task\.split='dev': mbpp .* only prompt, test, validation, train"):
            mbpp.load("dev", path)


@pytest.mark.slow
def test_mbpp_whole(shared: Path) -> None:
    path = str(shared / "data" / "mbpp.jsonl")
    problems = {split: mbpp.load(split, path) for split in mbpp.SPLITS}
    counts = {split: len(found) for split, found in problems.items()}
    assert counts == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    everything = [problem for found in problems.values() for problem in found]
    assert len({p.id for p in everything}) == 974
    assert {p.id for p in everything if "epilogue" in p.metadata["tests"]} == {"mbpp/367", "mbpp/927"}
    for problem in everything:
        tests = problem.metadata["tests"]
        code = block(mbpp.gold_completion(problem))
        assert "\r" not in problem.question + code + str(tests)
        names = execute(code, tests.get("epilogue", ""), *tests["asserts"])
        assert callable(names[tests["entry_point"]])


# ---- all of them


@pytest.mark.parametrize("task", [humaneval, mbpp, programs])
def test_they_ask_for_the_code_verifier(task: Any) -> None:
    assert task.VERIFIER == "code"
    assert all("{question}" in f.template or "{prompt}" in f.template for f in forms_of(task).values())


def test_columns_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> Iterator[dict[str, Any]]:
        calls.append((args, kwargs))
        return iter([mbpp_row(7) if "mbpp" in str(args[0]) else HUMANEVAL])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert [p.id for p in mbpp.load("train")] == ["mbpp/7"]  # the Hub's split is the Hub's word
    assert [p.id for p in humaneval.load("test")] == ["HumanEval/0"]
    assert calls == [
        (("google-research-datasets/mbpp", "full"), {"split": "train"}),
        (("openai/openai_humaneval", None), {"split": "test"}),
    ]
