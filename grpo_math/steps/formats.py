"""One row of a file -> StepExamples, in a table by the columns that tell the format.

Each function is pure, and raises UserError with what is wrong and the remedy; whoever calls it knows file and line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_math.examples.chat import columns_of, ends_in_a_question, shown, text_of
from grpo_math.filtering.read import NEEDED
from grpo_math.steps.example import StepExample
from grpo_math.steps.split import MARK
from grpo_math.types import UserError

Row = Mapping[str, Any]
Neutral = Literal["right", "wrong", "unlabelled"]

NEUTRAL: dict[Neutral, float | None] = {"right": 1.0, "wrong": 0.0, "unlabelled": None}
SIGNS = {"+": 1.0, "-": 0.0}
FIRST_STEP = re.compile(r"\s*Step 1:")
GAVE_UP = ("give_up", "bad_problem")  # how PRM800K says that the labeller could not do it


@dataclass(frozen=True)
class Reading:
    """neutral: what PRM800K's rating 0 counts as, of a step that is not wrong and leads nowhere. separator: between
    steps, where the file has them without; in PRM800K between the problem and the first step too."""

    neutral: Neutral = "right"
    separator: str = "\n"


def step_examples(row: Row, where: str, reading: Reading) -> list[StepExample]:
    """Those with a label; a row may have several, or none. Raises UserError, without `where`."""
    for columns, convert in FORMATS:
        if set(columns) <= set(row):
            return [example for example in convert(row, where, reading) if any(x is not None for x in example.labels)]
    if set(NEEDED) <= set(row):
        raise UserError("this is a sample with one verdict; make labels of its steps with grpo-math label-steps")
    raise UserError(
        f"no labels of steps, only {columns_of(row)}; a line has 'prompt', 'completions' and 'labels', or PRM800K's "
        "'question' and 'label', or Math-Shepherd's 'input' and 'label'"
    )


def stepwise(row: Row, where: str, reading: Reading) -> list[StepExample]:
    """prompt, completions (the steps) and labels, one each: true, false, a number from 0 to 1, or null for none; the
    form of TRL's stepwise supervision. separator: of this row."""
    prompt = text_of("prompt", row["prompt"])
    if not isinstance(prompt, str):
        ends_in_a_question("prompt", prompt)
    steps, labels = row["completions"], row["labels"]
    for name, value in (("completions", steps), ("labels", labels)):
        if not isinstance(value, list) or not value:
            raise UserError(f"{name}={shown(value)}: give a list with one for each step")
    if len(steps) != len(labels):
        raise UserError(f"{len(steps)} completions and {len(labels)} labels; each step has one label, null for none")
    separator = row.get("separator", reading.separator)
    if not isinstance(separator, str):
        raise UserError(f"separator={shown(separator)}: give the text between two steps, or leave it out")
    texts = [_step(f"completions[{i}]", step) for i, step in enumerate(steps)]
    numbers = tuple(_label(f"labels[{i}]", label) for i, label in enumerate(labels))
    named = {name: _named(row, name) for name in ("problem", "task", "gold")}
    return [StepExample(where, prompt, joined(texts, separator), numbers, **named)]


def math_shepherd(row: Row, where: str, reading: Reading) -> list[StepExample]:
    """input, where the mark "\\u043a\\u0438" ends each step, and label, the same with + or - in its place;
    arXiv:2312.08935. The prompt is what comes before "Step 1:"."""
    given, said = _step("input", row["input"]), _step("label", row["label"])
    *marked, rest = given.split(MARK)
    if not marked:
        raise UserError(f"input={shown(given)} has no {MARK!r}, which ends a step; mend or delete the line")
    if rest.strip():
        raise UserError(f"input goes on behind its last {MARK!r}, with {shown(rest.strip())}; mend or delete the line")
    labels: list[float | None] = []
    place = 0
    for k, text in enumerate(marked, 1):
        place += len(text) + 1
        sign = said[place - 1 : place]
        if said[place - 1 - len(text) : place - 1] != text or sign not in SIGNS:
            raise UserError(f"label is not input with + or - for each {MARK!r}: they part in step {k}; delete the line")
        labels.append(SIGNS[sign])
    begin = FIRST_STEP.search(marked[0])
    if begin is None or begin.start() == 0:
        raise UserError(
            f"input has no 'Step 1:' between the problem and the first {MARK!r}, to tell the prompt from the solution; "
            "mend or delete the line"
        )
    prompt = marked[0][: begin.start()]
    steps: list[str] = []
    for k, text in enumerate((marked[0][begin.start() :], *marked[1:]), 1):
        if not text.strip():
            raise UserError(f"input has nothing in step {k}; mend or delete the line")
        # the line break behind a mark is the step's, as split.py has it, and the blank before it the mark's
        breaks = text[: len(text) - len(text.lstrip("\r\n"))] if steps else ""
        if steps:
            steps[-1] += breaks
        steps.append(text[len(breaks) :].rstrip(" "))
    return [StepExample(where, prompt, tuple(steps), tuple(labels), task=_named(row, "task"))]


def prm800k(row: Row, where: str, reading: Reading) -> list[StepExample]:
    """question.problem, and label.steps, each with rated completions of which one was chosen; "Let's verify step by
    step", arXiv:2305.20050.

    Each (prefix, step) that was rated gives one label, however many examples it stands in: the chosen steps are one
    example with all of their labels, and each other completion of a step is one of its own, whose earlier steps have
    none. A rating of 1 is right and -1 wrong; 0 is `neutral`, in the paper right. A step that the labeller wrote is
    right. What served to check the labellers, and what they gave up, is left out as in the paper."""
    question, label = row["question"], row["label"]
    if not isinstance(question, dict) or not isinstance(label, dict) or not isinstance(label.get("steps"), list):
        raise UserError("'question' and 'label' are not PRM800K's: it has question.problem and label.steps")
    problem = _step("question.problem", question.get("problem"))
    if row.get("is_quality_control_question") or row.get("is_initial_screening_question"):
        return []
    if label.get("finish_reason") in GAVE_UP:
        return []
    gold = question.get("ground_truth_answer")
    prompt = problem + reading.separator
    return [
        StepExample(where, prompt, joined(texts, reading.separator), labels, gold=gold if isinstance(gold, str) else "")
        for texts, labels in _paths(label["steps"], NEUTRAL[reading.neutral])
    ]


FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row, str, Reading], list[StepExample]]], ...] = (
    (("prompt", "completions", "labels"), stepwise),
    (("question", "label"), prm800k),
    (("input", "label"), math_shepherd),
)


def joined(steps: Sequence[str], separator: str) -> tuple[str, ...]:
    """With what stands between them."""
    return (*(step + separator for step in steps[:-1]), steps[-1])


Path = tuple[list[str], tuple[float | None, ...]]


def _paths(steps: Sequence[Any], neutral: float | None) -> Iterator[Path]:
    """The other completions of each step, behind the chosen steps before it, and last the chosen steps themselves."""
    ratings: dict[Any, float | None] = {1: 1.0, 0: neutral, -1: 0.0, None: None}
    texts: list[str] = []
    labels: list[float | None] = []
    for i, step in enumerate(steps):
        at = f"label.steps[{i}]"
        if not isinstance(step, dict):
            raise UserError(f"{at} is {shown(step)}: give an object with completions and chosen_completion")
        completions = [
            _rated(f"{at}.completions[{j}]", c, ratings) for j, c in enumerate(step.get("completions") or ())
        ]
        chosen, human = step.get("chosen_completion"), step.get("human_completion")
        if chosen is not None and (not isinstance(chosen, int) or not 0 <= chosen < len(completions)):
            raise UserError(f"{at}.chosen_completion={shown(chosen)}: there are {len(completions)} completions, from 0")
        for j, (text, label) in enumerate(completions):
            if j != chosen:
                yield [*texts, text], (*[None] * len(texts), label)
        if chosen is not None:
            text, label = completions[chosen]
        elif human is not None:
            written = human.get("text") if isinstance(human, dict) else human
            text, label = _step(f"{at}.human_completion", written), 1.0
        else:
            break
        texts.append(text)
        labels.append(label)
    if texts:
        yield texts, tuple(labels)


def _rated(at: str, completion: Any, ratings: Mapping[Any, float | None]) -> tuple[str, float | None]:
    if not isinstance(completion, dict):
        raise UserError(f"{at} is {shown(completion)}: give an object with text and rating")
    rating = completion.get("rating")
    if isinstance(rating, bool | list | dict) or rating not in ratings:
        raise UserError(f"{at}.rating={shown(rating)}: give -1, 0, 1, or null for none")
    return _step(f"{at}.text", completion.get("text")), ratings[rating]


def _step(at: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{at}={shown(value)}: give a string")
    text_of(at, value)  # complains of what is empty, or no text
    return value


def _label(at: str, value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(f"{at}={shown(value)}: give true, false, a number from 0 to 1, or null for none")
    return float(value)


def _named(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)
