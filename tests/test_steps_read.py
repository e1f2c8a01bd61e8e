"""Files of step labels: PRM800K's, Math-Shepherd's and the stepwise form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_math.steps.formats import Reading
from grpo_math.steps.read import Found, read_steps
from grpo_math.types import UserError


def rated(text: str, rating: int | None) -> dict[str, Any]:
    return {"text": text, "rating": rating, "flagged": False}


def prm_line(steps: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """A line as PRM800K has it."""
    return {
        "labeler": "340d89bc",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": "What is $2+2+2$?", "ground_truth_solution": "It is 6.", "ground_truth_answer": "6"},
        "label": {"steps": steps, "total_time": 278270, "finish_reason": "found_error"},
    } | fields


def chosen(place: int | None, *completions: dict[str, Any], human: Any = None) -> dict[str, Any]:
    return {"completions": list(completions), "human_completion": human, "chosen_completion": place}


PRM = prm_line(
    [
        chosen(0, rated("I add.", 0)),
        chosen(1, rated("$2+2=5$.", -1), rated("$2+2=4$.", 1), rated("Hm.", None)),
        chosen(None, rated("$4+2=7$.", -1), human={"text": "$4+2=6$.", "rating": None, "source": "human"}),
        chosen(None, rated("So 7.", -1), rated("So 8.", -1)),
        chosen(0, rated("never reached", 1)),
    ]
)
SHEPHERD = {
    "input": "What is 2+2+2? Step 1: 2+2 = <<2+2=4>>4. \u043a\u0438\nStep 2: 4+2 = 7. \u043a\u0438\n"
    "Step 3: So it is 7. The answer is: 7 \u043a\u0438",
    "label": "What is 2+2+2? Step 1: 2+2 = <<2+2=4>>4. +\nStep 2: 4+2 = 7. -\nStep 3: So it is 7. The answer is: 7 -",
    "task": "GSM8K",
}
STEPWISE = {"prompt": "Which is larger, 9.8 or 9.11?", "completions": ["8 < 11.", "So 9.11."], "labels": [True, False]}
OURS = {
    "prompt": [{"role": "user", "content": "2+2+2?"}], "completions": ["2+2=4\n", "4+2=7"], "labels": [0.75, None],
    "separator": "", "problem": "p/1", "task": "sums", "gold": "6", "counts": [[3, 4], None],
}  # fmt: skip


def read(folder: Path, *rows: Any, reading: Reading = Reading()) -> Found:  # noqa: B008
    file = folder / "steps.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_steps([str(file)], reading)


def test_prm800k_gives_each_rated_step_one_label(tmp_path: Path) -> None:
    found = read(tmp_path, PRM)
    assert {e.prompt for e in found.examples} == {"What is $2+2+2$?\n"}
    assert {e.gold for e in found.examples} == {"6"}
    none = None
    assert [(e.text, e.labels) for e in found.examples] == [
        ("I add.\n$2+2=5$.", (none, 0.0)),
        # "Hm." was not rated, and makes no example
        ("I add.\n$2+2=4$.\n$4+2=7$.", (none, none, 0.0)),
        ("I add.\n$2+2=4$.\n$4+2=6$.\nSo 7.", (none, none, none, 0.0)),
        ("I add.\n$2+2=4$.\n$4+2=6$.\nSo 8.", (none, none, none, 0.0)),
        ("I add.\n$2+2=4$.\n$4+2=6$.", (1.0, 1.0, 1.0)),  # neutral is right, and what the labeller wrote
    ]
    assert found.examples[1].ends == (7, 16, 24)
    for neutral, label in (("wrong", 0.0), ("unlabelled", none)):
        kept = read(tmp_path, PRM, reading=Reading(neutral=neutral, separator=" ")).examples[-1]  # type: ignore[arg-type]
        assert (kept.labels[0], kept.text) == (label, "I add. $2+2=4$. $4+2=6$.")


def test_prm800k_leaves_out_what_the_paper_does(tmp_path: Path) -> None:
    gave_up = prm_line([], label={"steps": PRM["label"]["steps"], "finish_reason": "give_up"})
    rows = [PRM | {"is_quality_control_question": True}, PRM | {"is_initial_screening_question": True}, gave_up]
    found = read(tmp_path, *rows, PRM, prm_line([chosen(None)]))
    assert (len(found.examples), found.lines, found.unused) == (5, 5, 4)
    assert {e.where for e in found.examples} == {f"{tmp_path}/steps.jsonl:4"}


def test_math_shepherd(tmp_path: Path) -> None:
    (example,) = read(tmp_path, SHEPHERD).examples
    assert example.prompt == "What is 2+2+2?"
    assert example.steps == (
        " Step 1: 2+2 = <<2+2=4>>4.\n",
        "Step 2: 4+2 = 7.\n",
        "Step 3: So it is 7. The answer is: 7",
    )
    assert (example.labels, example.task) == ((1.0, 0.0, 0.0), "GSM8K")
    broken = SHEPHERD | {"input": SHEPHERD["input"].replace("? Step 1:", "?\n\nStep 1:")}
    broken["label"] = SHEPHERD["label"].replace("? Step 1:", "?\n\nStep 1:")
    assert read(tmp_path, broken).examples[0].steps[0] == "\n\nStep 1: 2+2 = <<2+2=4>>4.\n"


def test_stepwise_and_our_own(tmp_path: Path) -> None:
    (plain,) = read(tmp_path, STEPWISE).examples
    assert (plain.prompt, plain.steps) == (STEPWISE["prompt"], ("8 < 11.\n", "So 9.11."))
    assert plain.labels == (1.0, 0.0)
    (ours,) = read(tmp_path, OURS).examples
    assert (ours.steps, ours.labels, ours.chat) == (("2+2=4\n", "4+2=7"), (0.75, None), True)
    assert (ours.problem, ours.task, ours.gold) == ("p/1", "sums", "6")
    assert read(tmp_path, PRM, SHEPHERD, STEPWISE).lines == 3  # each line says itself what it is


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "a"}, "no labels of steps, only 'text'; a line has 'prompt', 'completions' and 'labels', or PRM800K"),
        (dict.fromkeys(("problem", "prompt", "completion", "reward", "reason")), "is a sample with one verdict; make"),
        (STEPWISE | {"labels": [True]}, "2 completions and 1 labels; each step has one label, null for none"),
        (STEPWISE | {"labels": [True, 1.5]}, r"labels\[1\]=1.5: give true, false, a number from 0 to 1, or null"),
        (STEPWISE | {"labels": [True, "+"]}, r'labels\[1\]="\+": give true'),
        (STEPWISE | {"completions": ["a", " "]}, r"'completions\[1\]' is empty; fill it in or delete the line"),
        (STEPWISE | {"completions": "a"}, 'completions="a": give a list with one for each step'),
        (STEPWISE | {"separator": 1}, "separator=1: give the text between two steps, or leave it out"),
        (OURS | {"prompt": [{"role": "assistant", "content": "a"}]}, "'prompt' ends with a message of the role"),
        (SHEPHERD | {"input": "What? Step 1: a"}, "has no '\u043a\u0438', which ends a step"),
        (SHEPHERD | {"input": SHEPHERD["input"] + " so"}, r'goes on behind its last .*, with "so"'),
        (SHEPHERD | {"label": SHEPHERD["label"].replace("7. -", "7. ?")}, "they part in step 2; delete the line"),
        (SHEPHERD | {"label": SHEPHERD["label"].replace("4+2", "3+2")}, "they part in step 2; delete the line"),
        ({"input": "Q a \u043a\u0438", "label": "Q a +"}, "no 'Step 1:' between the problem and the first"),
        (prm_line([chosen(0, rated("a", 2))]), r"label.steps\[0\].completions\[0\].rating=2: give -1, 0, 1, or null"),
        (
            prm_line([chosen(1, rated("a", 1))]),
            r"label.steps\[0\].chosen_completion=1: there are 1 completions, from 0",
        ),
        (prm_line([chosen(0, {"rating": 1})]), r"label.steps\[0\].completions\[0\].text=null: give a string"),
        (PRM | {"label": []}, "'question' and 'label' are not PRM800K's: it has question.problem and label.steps"),
    ],
)
def test_what_is_wrong_with_a_line(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path}/steps.jsonl:2: .*{complaint}.* \(and 1 more such lines, .*:3\)"):
        read(tmp_path, STEPWISE, row, row)


def test_files_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"steps.jsonl: no step of 1 lines has a label"):
        read(tmp_path, STEPWISE | {"labels": [None, None]})
    with pytest.raises(UserError, match=r"steps.jsonl:2 is a conversation and .*:1 plain text"):
        read(tmp_path, STEPWISE, OURS)
    with pytest.raises(UserError, match=r"data.files=\S*none.jsonl: there is no such file"):
        read_steps([str(tmp_path / "none.jsonl")])
