"""The mathematical tasks: rows as the Hub and local copies have them, and prompts that never change under a name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_math.find import find_task, list_tasks
from grpo_math.forms import Form, forms_of
from grpo_math.tasks import _prompts_math as prompts
from grpo_math.tasks import aime24, amc, math500, math_train, minerva_math, olympiadbench
from grpo_math.tasks._math import in_digits, last_box
from grpo_math.types import Problem, UserError
from grpo_math.verifiers import math as verifier

TEST_SETS = ("math500", "aime24", "aime25", "amc", "minerva_math", "olympiadbench")
Hub = Callable[[list[dict[str, Any]]], list[tuple[object, ...]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Makes the Hub give these rows, and returns the list that every load_dataset is written down in."""

    def gives(rows: list[dict[str, Any]]) -> list[tuple[object, ...]]:
        calls: list[tuple[object, ...]] = []

        def load_dataset(id: str, config: str | None, *, split: str) -> list[dict[str, Any]]:
            calls.append((id, config, split))
            return rows

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return calls

    return gives


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def verdict(problem: Problem, completion: str) -> tuple[float | None, str]:
    judged = verifier.verify(problem, completion)
    return judged.reward, judged.reason


# ---- the Hub: rows in each data set's own schema

OLYMPIAD = {
    "id": 1609,
    "question": "Find $T$.",
    "solution": ["Add."],
    "final_answer": ["2"],
    "context": None,
    "image_1": None,
    "modality": "Text-only",
    "difficulty": "Competition",
    "is_multiple_answer": False,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
    "question_type": "Open-ended",
    "subfield": "Algebra",
    "subject": "Math",
    "language": "English",
}

# task, what load_dataset is asked for, a row, the question, the answer
ON_THE_HUB: list[tuple[str, tuple[object, ...], dict[str, Any], str, str]] = [
    (
        "math500",
        ("HuggingFaceH4/MATH-500", None, "test"),
        {
            "problem": "What is $1+1$?",
            "solution": "It is $\\boxed{2}$.",
            "answer": "2",
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": "test/prealgebra/1.json",
        },
        "What is $1+1$?",
        "2",
    ),
    (
        "aime24",
        ("HuggingFaceH4/aime_2024", None, "train"),
        {"id": 61, "problem": "Find $x$.", "solution": "So.", "answer": "025", "url": "u", "year": "2024"},
        "Find $x$.",
        "025",
    ),
    (
        "aime25",
        ("math-ai/aime25", None, "test"),
        {"problem": "Find $y$.", "answer": "70", "id": "0"},
        "Find $y$.",
        "70",
    ),
    (
        "amc",
        ("AI-MO/aimo-validation-amc", None, "train"),
        {"id": 0, "problem": "Find $m+n$.", "answer": 142.0, "url": "u"},
        "Find $m+n$.",
        "142",
    ),
    (
        "minerva_math",
        ("math-ai/minervamath", None, "test"),
        {"question": "Each star?", "answer": "8.7 \\times 10^{8}"},
        "Each star?",
        "8.7 \\times 10^{8}",
    ),
    ("olympiadbench", ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"), OLYMPIAD, "Find $T$.", "2"),
]


@pytest.mark.parametrize(("name", "call", "row", "question", "answer"), ON_THE_HUB)
def test_a_test_set_from_the_hub(
    hub: Hub, name: str, call: tuple[object, ...], row: dict[str, Any], question: str, answer: str
) -> None:
    calls = hub([row, row])
    problems = list(find_task(name).load("test"))
    assert calls == [call]
    assert problems[1] == Problem(f"{name}/test/2", name, question, answer, {"source": f"{call[0]}/{call[2]}:2"})


def test_math_train_from_the_hub(hub: Hub) -> None:
    solution = "As $\\boxed{1}$ is too small, $x=\\boxed{\\frac{\\sqrt{3}}{2}}$."
    calls = hub([{"problem": "Find $x$.", "level": "Level 5", "type": "Algebra", "solution": solution}])
    (problem,) = math_train.load("train")
    assert calls == [("DigitalLearningGmbH/MATH-lighteval", "default", "train")]
    metadata = {"source": "DigitalLearningGmbH/MATH-lighteval/train:1", "solution": solution}
    assert problem == Problem("math_train/train/1", "math_train", "Find $x$.", "\\frac{\\sqrt{3}}{2}", metadata)
    assert verdict(problem, "\\boxed{\\sqrt{3}/2}") == (1.0, "correct")


@pytest.mark.parametrize("name", TEST_SETS)
def test_a_test_set_has_no_other_split(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"task\.split='train': {name} is a test set.*task\.split=test.*task\.path=FILE"
    ):
        find_task(name).load("train")


def test_math_train_has_no_test_split() -> None:
    with pytest.raises(UserError, match=r"task\.split='test': math_train .* only train; set task\.split=train"):
        math_train.load("test")


def test_a_row_of_the_hub_that_lacks_a_field(hub: Hub) -> None:
    hub([{"id": 1, "problem": "?", "answer": "1"}, {"id": 2, "problem": "?"}])
    with pytest.raises(UserError, match=r"HuggingFaceH4/aime_2024/train:2 has no field 'answer', only 'id', 'problem'"):
        aime24.load("test")


# ---- files

COUNTS = {"math500": 500, "aime24": 30, "amc": 83, "minerva_math": 272, "olympiadbench": 675}
UNUSABLE = {"olympiadbench": ["olympiadbench/test/97"]}  # $t(0,4]$: a letter is glued to an interval


@pytest.mark.parametrize("name", COUNTS)
def test_local_copies_load_and_their_answers_verify(shared: Path, name: str) -> None:
    problems = list(find_task(name).load("test", str(shared / "data" / f"{name}.jsonl")))
    assert len(problems) == COUNTS[name] == len({p.id for p in problems})
    assert all(problem.task == name for problem in problems)
    assert [p.id for p in problems if verifier.check(p)] == UNUSABLE.get(name, [])
    usable = [p for p in problems if p.id not in UNUSABLE.get(name, [])]
    assert [p.id for p in usable if verdict(p, f"\\boxed{{{p.answer}}}") != (1.0, "correct")] == []


def test_any_answer_of_a_list_is_right(shared: Path) -> None:
    problems = minerva_math.load("test", str(shared / "data" / "minerva_math.jsonl"))
    (problem,) = (p for p in problems if p.answer == "6630.65")
    assert problem.metadata["alternatives"] == ["6630"]
    assert [verdict(problem, f"\\boxed{{{answer}}}")[0] for answer in ("6630.65", "6630", "6631")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("name", TEST_SETS)
@pytest.mark.parametrize(
    "row",
    [
        {"problem": "Find $x$.", "answer": "25"},
        {"question": "Find $x$.", "answer": 25},
        {"question": "Find $x$.", "final_answer": ["25"]},
        {"Problem": "Find $x$.", "Answer": 25.0},
    ],
)
def test_fields_under_the_names_of_other_copies(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    file = written(tmp_path / "mine_train.jsonl", row)
    (problem,) = find_task(name).load("train", str(tmp_path / "mine_{split}.jsonl"))
    assert problem == Problem(f"{name}/train/1", name, "Find $x$.", "25", {"source": f"{file}:1"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25, "25"),
        (0, "0"),
        (-4, "-4"),
        (142.0, "142"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e23, "99999999999999991611392"),
        (2**63, "9223372036854775808"),
        ("025", "025"),
        ([1, "b"], ["1", "b"]),
        (None, None),
        (True, True),
    ],
)
def test_numbers_in_digits(value: object, text: object) -> None:
    assert in_digits(value) == text
    assert type(in_digits(value)) is type(text)


def test_leading_zeros_are_kept_and_count_for_nothing(tmp_path: Path) -> None:
    (problem,) = aime24.load("test", written(tmp_path / "a.jsonl", {"problem": "Find $x$.", "answer": "025"}))
    assert problem.answer == "025"
    assert [verdict(problem, f"\\boxed{{{answer}}}")[0] for answer in ("25", "025", "250")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"problem": "?"}, "a.jsonl:2 has no field 'answer', only 'problem'"),
        ({"answer": "1"}, "a.jsonl:2 has no field 'problem', only 'answer'"),
        ({"problem": 5, "answer": "1"}, "a.jsonl:2: 'problem' is a number, 5, where a string is expected"),
        ({"problem": "?", "answer": True}, "a.jsonl:2: 'answer' is a boolean, true, where a string is expected"),
        ({"problem": "?", "answer": float("nan")}, "a.jsonl:2: 'answer' is a number, NaN, where a string is expected"),
        ({"problem": "?", "answer": []}, "a.jsonl:2: 'answer' is a list"),
        ({"problem": "?", "final_answer": None}, "a.jsonl:2: 'answer' is null"),
        ([1], "a.jsonl:2 is a list, not an object with the fields problem and answer"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: object, says: str) -> None:
    file = written(tmp_path / "a.jsonl", {"problem": "?", "answer": "1"}, row)
    for task in (math500, amc, olympiadbench, math_train):
        with pytest.raises(UserError) as caught:
            task.load("train", file)
        assert says in str(caught.value)


# ---- OlympiadBench: several answers, and a tolerance


def olympiad(hub: Hub, **fields: object) -> Problem:
    hub([OLYMPIAD | fields])
    (problem,) = olympiadbench.load("test")
    return problem


@pytest.mark.parametrize("answers", [["$69$,$84$"], ["$69$", "$84$"]])
def test_several_answers_are_all_wanted(hub: Hub, answers: list[str]) -> None:
    problem = olympiad(hub, final_answer=answers, is_multiple_answer=True)
    assert "alternatives" not in problem.metadata
    rewards = {said: verdict(problem, f"\\boxed{{{said}}}")[0] for said in ("69, 84", "84, 69", "69", "84", "69, 85")}
    assert rewards == {"69, 84": 1.0, "84, 69": 1.0, "69": 0.0, "84": 0.0, "69, 85": 0.0}


def test_a_list_without_that_mark_is_of_alternatives(hub: Hub) -> None:
    problem = olympiad(hub, final_answer=["69", "84"])
    assert [verdict(problem, f"\\boxed{{{said}}}")[0] for said in ("69", "84", "69, 84")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "error", "right", "wrong"),
    [
        ("79.67", "1e-1", ["79.67", "79.57", "79.77", "79.7"], ["79.56", "79.78", "80"]),
        ("$-2.5$", "0.01", ["-2.5", "-2.51", "-2.49"], ["-2.52", "2.5"]),
        ("$18.8^{\\circ}$", "0.1", ["18.8^{\\circ}", "18.9^{\\circ}", "18.7"], ["19^{\\circ}"]),
        ("79.67", None, ["79.67"], ["79.7"]),
        ("79.67", "", ["79.67"], ["79.7"]),
        ("0", "0.1", ["0"], ["0.05"]),  # no share of nothing
        ("0.05", "0.1", ["0.05"], ["0.06"]),
        ("$1.68,0.45$", "0.1,0.1", ["1.68, 0.45"], ["1.7, 0.45"]),
    ],
)
def test_how_far_a_number_may_be_off(
    hub: Hub, answer: str, error: str | None, right: list[str], wrong: list[str]
) -> None:
    problem = olympiad(hub, final_answer=[answer], error=error)
    judged = {said: verdict(problem, f"\\boxed{{{said}}}")[0] for said in (*right, *wrong)}
    assert judged == dict.fromkeys(right, 1.0) | dict.fromkeys(wrong, 0.0)


def test_a_tolerance_that_is_no_number(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"OlympiadBench/train:1: error='little' is no number; give how far"):
        olympiad(hub, error="little")


def test_the_context_is_not_put(hub: Hub) -> None:
    assert olympiad(hub, context="Let $T=7$.").question == "Find $T$."


# ---- MATH: the answer in the solution's last box


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("$\\boxed{2}$ or $\\boxed{\\frac{\\sqrt{3}}{2}}$.", "\\frac{\\sqrt{3}}{2}"),
        ("\\boxed{\\text{(A) }\\left\\{1,2\\right\\}}", "\\text{(A) }\\left\\{1,2\\right\\}"),
        ("\\fbox{ 7 }", "7"),
        ("so $\\boxed 2$.", "2"),
        ("\\boxed{1} and then \\boxed{2", None),
        ("\\boxed{ }", None),
        ("It is 2.", None),
    ],
)
def test_last_box(text: str, answer: str | None) -> None:
    assert last_box(text) == answer


def test_math_train_from_files(tmp_path: Path) -> None:
    file = written(
        tmp_path / "math_train.jsonl",
        {"problem": "a?", "solution": "It is $\\boxed{3}$."},
        {"problem": "b?", "answer": "4"},
        {"problem": "c?", "answer": 5, "solution": "Five."},
        {"problem": "d?", "answer": "$\\boxed{6}$", "solution": None},
    )
    problems = math_train.load("train", file)
    assert [p.answer for p in problems] == ["3", "4", "5", "6"]
    assert [p.metadata.get("solution") for p in problems] == ["It is $\\boxed{3}$.", None, "Five.", None]


@pytest.mark.parametrize("solution", ["It is 3.", "It is $\\boxed{3.", "It is $\\boxed{}$."])
def test_a_solution_without_an_answer(tmp_path: Path, solution: str) -> None:
    file = written(tmp_path / "a.jsonl", {"problem": "?", "solution": solution})
    with pytest.raises(UserError, match=r"a\.jsonl:1: the solution 'It is .* has no \\boxed\{ANSWER\}.*; add it"):
        math_train.load("train", file)


# ---- prompts

# Of template, system message, chat and stops, as `fingerprint` has it. A changed hash is a changed prompt: give the new
# words a new version, and leave these as they are.
PUBLISHED: dict[str, dict[str, str]] = {
    "math": {
        "boxed@1": "a3b1875675c5ce1ffb63f279b653d6b52f3ec3b1ba75508d83e13b4b78283671",
        "qwen25-math-cot@1": "df755f02b44afe035dccd44a895cb059aec82a0b67427a1e1beafe77955ca4ea",
        "simple-evals@1": "9be4a80d6d103f613343f23cd96d70bc12a60d8365fe43b8d173c52d5cd28040",
        "minerva-4shot@1": "a7fb5551fd6b0b267f50e6f76bedc9627ab76b483a0110f6fade208610d3a382",
    },
    "gsm8k": {
        "boxed@1": "a3b1875675c5ce1ffb63f279b653d6b52f3ec3b1ba75508d83e13b4b78283671",
        "qwen25-math-cot@1": "df755f02b44afe035dccd44a895cb059aec82a0b67427a1e1beafe77955ca4ea",
        "cot-8shot@1": "8f194983af669ea25e907736367a012eeb65e72af6cae373ec845c63ceee737c",
    },
}


def fingerprint(form: Form) -> str:
    return hashlib.sha256(json.dumps([form.template, form.system, form.chat, form.stop]).encode()).hexdigest()


MATH_TASKS = (*TEST_SETS, "math_train", "gsm8k")


def test_published_words_never_change_under_a_name() -> None:
    for task in MATH_TASKS:
        expected = PUBLISHED["gsm8k" if task == "gsm8k" else "math"]
        assert {name: fingerprint(form) for name, form in forms_of(find_task(task)).items()} == expected, task


def test_every_form_names_its_source_and_shows_the_problem_once() -> None:
    for task in MATH_TASKS:
        module = find_task(task)
        assert module.VERIFIER == "math"
        assert next(iter(forms_of(module))) == "boxed@1"
        for form in forms_of(module).values():
            assert form.source
            assert form.template.count("{question}") == 1


def test_the_default_is_the_question_and_an_instruction() -> None:
    assert prompts.BOXED.text(Problem("p", "t", "What is {x}?", "1")) == (
        "What is {x}?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert prompts.BOXED.system is None
    assert prompts.BOXED.chat is None


Examples = tuple[tuple[str, str], ...]
SHOTS: list[tuple[Form, str, Examples, list[str]]] = [
    (prompts.COT_8SHOT, "Q: {question}\nA:", prompts.COT_8SHOT_EXAMPLES, ["6", "5", "39", "8", "9", "29", "33", "8"]),
    (
        prompts.MINERVA_4SHOT,
        "Problem:\n{question}\n\nSolution:",
        prompts.MINERVA_4SHOT_EXAMPLES,
        ["[2,5)", "24", "16", "-\\frac{2}{3}"],
    ),
]


@pytest.mark.parametrize(("form", "shot", "examples", "golds"), SHOTS)
def test_the_verifier_reads_each_example_as_a_completion(
    form: Form, shot: str, examples: Examples, golds: list[str]
) -> None:
    for (question, completion), gold in zip(examples, golds, strict=True):
        assert shot.replace("{question}", question) + completion in form.template
        assert verdict(Problem("p", "t", question, gold), completion) == (1.0, "correct")
        assert verdict(Problem("p", "t", question, "1234"), completion) == (0.0, "wrong")


@pytest.mark.parametrize(("form", "shot", "examples", "golds"), SHOTS)
def test_base_models_go_on_from_the_examples(form: Form, shot: str, examples: Examples, golds: list[str]) -> None:
    text = form.text(Problem("p", "t", "What is $1+1$?", "2"))
    assert text.endswith("\n\n" + shot.replace("{question}", "What is $1+1$?"))
    assert form.chat is False
    # the stop is how the next example would begin, so a model that invents one is cut off there, and never before
    assert text.startswith(form.stop[0])
    assert text.count(form.stop[0]) == len(golds) + 1
    assert not [stop for stop in form.stop for _, completion in examples if stop in completion]


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("11", " She has 5 + 6 = 11. The answer is 11."),
        ("1200", " The answer is 1,200."),
        ("18", " The answer is $18."),
        ("3.5", " The answer is 3.5."),
        ("[2,5)", "\nFinal Answer: The final answer is $[2,5)$. I hope it is correct."),
        ("-\\frac{2}{3}", "\nFinal Answer: The final answer is $-\\frac23$. I hope it is correct."),
        ("x^2+1", "\nThus.\nFinal Answer: The final answer is $x^2 + 1$. I hope it is correct.\n\n"),
        ("42", "It adds up.\n\nAnswer: 42"),
        ("42", "It adds up.\n\n**Answer: 42**"),
        ("\\frac{1}{2}", "It adds up.\n\nAnswer: $\\frac{1}{2}$"),
        ("\\frac{1}{2}", "It adds up.\n\nAnswer: \\frac{1}{2}"),
        ("(3, \\frac{\\pi}{2})", "It adds up.\n\nAnswer: $\\left(3, \\frac{\\pi}{2}\\right)$"),
        ("42", "Step by step, the final answer is $\\boxed{42}$."),
    ],
)
def test_the_verifier_reads_each_published_way_of_answering(gold: str, completion: str) -> None:
    assert verdict(Problem("p", "t", "How many?", gold), completion) == (1.0, "correct")
    assert verdict(Problem("p", "t", "How many?", "1234"), completion) == (0.0, "wrong")


def test_what_they_share_is_no_task() -> None:
    assert {*TEST_SETS, "math_train", "gsm8k"} <= set(list_tasks())
    assert not [name for name in list_tasks() if name.startswith("_")]
