"""The table of `grpo-math evaluate-steps`. Left out: the figures (step_figures.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = tuple[str, ...]

FIRST_ERRORS = (
    ("first error: F1", "first_error_f1"),
    ("  found, of those with an error", "found"),
    ("  spared, of those without", "spared"),
)
OF_STEPS = (
    ("steps: accuracy", "accuracy"),
    ("  balanced accuracy", "balanced_accuracy"),
    ("  AUC", "auc"),
    ("  wrong steps: F1", "wrong_f1"),
    ("    precision", "wrong_precision"),
    ("    recall", "wrong_recall"),
)
COUNTS = (
    ("solutions", "solutions"),
    ("  with an error", "with_error"),
    ("  without", "without_error"),
    ("labelled steps", "steps"),
    ("  wrong", "wrong_steps"),
)
# shown where there are any
APART = (
    ("left out: too few labels to place the first error", "left_out"),
    ("left out: the model cannot read them", "unread"),
    ("lines without a label of use", "unused_lines"),
)
BY_STEPS = ("solutions", "first_error_f1", "found", "spared", "accuracy", "auc")
HEADS = {"first_error_f1": "F1", "auc": "AUC"}


def step_table(results: Mapping[str, Any]) -> str:
    rows: list[Row] = [
        (name, _number(results[key]) + _interval(results[f"{key}_interval"])) for name, key in FIRST_ERRORS
    ]
    rows += [(name, _number(results[key])) for name, key in OF_STEPS]
    rows += [(name, f"{results[key]:,}") for name, key in COUNTS]
    rows += [(name, f"{results[key]:,}") for name, key in APART if results[key]]
    lengths: list[Row] = [("steps", *(HEADS.get(key, key) for key in BY_STEPS))]
    lengths += [(_range(*row["steps"]), *(_number(row[key]) for key in BY_STEPS)) for row in results["by_steps"]]
    return f"{_columns(rows, '<')}\n\n{_columns(lengths, '>')}"


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _range(low: int, high: int | None) -> str:
    return f"{low}+" if high is None else f"{low}-{high}"


def _columns(rows: Sequence[Row], side: str) -> str:
    """The first flush left, the others as `side` says."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join(
            [row[0].ljust(widths[0]), *(f"{c:{side}{w}}" for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )
