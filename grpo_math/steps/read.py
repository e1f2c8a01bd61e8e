"""Files of step labels -> StepExamples, all lines checked before a model is loaded.

A file is JSON lines, a .json list (either may be .gz), or .parquet. Left out: what a row's columns mean (formats.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_math.examples.complaints import Complaints
from grpo_math.examples.read import check_files, file_lines
from grpo_math.steps.example import StepExample
from grpo_math.steps.formats import Reading, step_examples
from grpo_math.types import UserError

READING = Reading()


@dataclass(frozen=True)
class Found:
    """examples: in the order of the files; a line may make several, or none. lines: how many there were. unused: those
    without a label of use, which made none."""

    examples: list[StepExample]
    lines: int
    unused: int


def read_steps(files: Sequence[str], reading: Reading = READING, key: str = "data.files") -> Found:
    """Raises UserError, with file:line for each kind of mistake. key: where the files are named, for errors."""
    check_files(files, key)
    examples: list[StepExample] = []
    complaints = Complaints()
    lines = unused = 0
    for where, row in file_lines(files):
        lines += 1
        with complaints.of(where):
            made = step_examples(row, where, reading)
            unused += not made
            examples += made
    complaints.raise_if_any()
    if not examples:
        raise UserError(f"{', '.join(files)}: no step of {lines:,} lines has a label; give a file with some")
    _one_manner(examples)
    return Found(examples, lines, unused)


def _one_manner(examples: Sequence[StepExample]) -> None:
    chat = next((e for e in examples if e.chat), None)
    plain = next((e for e in examples if not e.chat), None)
    if chat is not None and plain is not None:
        raise UserError(
            f"{chat.where} is a conversation and {plain.where} plain text: the chat template would be on some prompts "
            "only; write all in one manner, or train on one after the other"
        )
