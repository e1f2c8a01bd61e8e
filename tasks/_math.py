"""What the test sets of mathematical problems share: from a row of the Hub or of a file to a Problem.

Left out: how rows are read (grpo_math/rows.py), the prompts (_prompts_math.py), and what counts as the same answer
(verifiers/math.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from grpo_math.rows import Row, rows
from grpo_math.types import Problem, UserError
from grpo_math.verifiers._math.extract import find_boxes

# What other copies of these sets call the two fields that count.
NAMES = {"problem": ("question", "Problem"), "answer": ("final_answer", "Answer")}

_BARE_BOX = re.compile(r"\\boxed\s+([^$]+)\$")  # $\boxed 2$


class Hub(NamedTuple):
    """Where a test set is on the Hugging Face Hub. split: what it is called there, which for many is train."""

    id: str
    config: str | None
    split: str


def load_test_set(task: str, hub: Hub, split: str, path: str | None) -> list[Problem]:
    """All problems, from `hub` or from `path`, which may contain {split}. Raises UserError."""
    return [problem(task, id, row, source) for id, source, row in test_rows(task, hub, split, path)]


def test_rows(task: str, hub: Hub, split: str, path: str | None) -> Iterator[tuple[str, str, Row]]:
    """(id, source for people, row with the fields problem and answer). An answer may be a list, any of which is right.

    Raises UserError: rows that cannot be used, and every split but test where there is no path."""
    if path is None and split != "test":
        raise UserError(
            f"task.split={split!r}: {task} is a test set, and on the Hub there is nothing else of it; set "
            "task.split=test, or give your own data as task.path=FILE"
        )
    own_split = hub.split if path is None else split
    for number, source, row in rows(path, hub[:2], own_split, ("problem", "answer"), ("answer",), prepare):
        yield f"{task}/{split}/{number}", source, row


def problem(task: str, id: str, row: Row, source: str, **metadata: Any) -> Problem:
    golds = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    alternatives = {"alternatives": golds[1:]} if len(golds) > 1 else {}
    return Problem(id, task, row["problem"], golds[0].strip(), {"source": source, **alternatives, **metadata})


def prepare(row: Row) -> Row:
    """The row with the fields' names as they are here, and its answer in words: 25 is "25", 142.0 is "142"."""
    named = dict(row)
    for name, others in NAMES.items():
        other = next((other for other in others if other in row), None)
        if name not in row and other is not None:
            named[name] = row[other]
    return named | {"answer": in_digits(named["answer"])} if "answer" in named else named


def in_digits(value: Any) -> Any:
    """A number, as JSON and the Hub may have it, as the shortest text with that value; all else as it is."""
    if isinstance(value, list):
        return [in_digits(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value
    return str(int(value)) if value == int(value) else repr(value)


def last_box(text: str) -> str | None:
    """What the last \\boxed{} of a worked solution holds, or a bare $\\boxed 2$; None without one, or with one that is
    empty or never closed."""
    boxes, unclosed = find_boxes(text)
    if unclosed:
        return None
    bare = _BARE_BOX.findall(text)
    answer = text[boxes[-1][1] : boxes[-1][2] - 1] if boxes else bare[-1] if bare else ""
    return answer.strip() or None
