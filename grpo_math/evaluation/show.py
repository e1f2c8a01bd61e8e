"""What an evaluation shows in the terminal: a line while it runs, a table at the end."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from grpo_math.evaluation.journal import Journal
from grpo_math.progress import duration

EVERY_S = 0.5  # on a terminal
SELDOM_S = 30.0  # in a log
Z = 1.96  # of 95 %, for the running estimate alone


class Line:
    """One line that is kept up to date on a terminal, and printed now and then in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shown = time.monotonic()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream.isatty():
            print("\r\033[K", end="", file=self.stream, flush=True)

    @property
    def due(self) -> bool:
        return time.monotonic() - self.shown >= (EVERY_S if self.stream.isatty() else SELDOM_S)

    def show(self, text: str) -> None:
        """If it is time for it."""
        if not self.due:
            return
        self.shown = time.monotonic()
        if self.stream.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{text}", end="", file=self.stream, flush=True)
        else:
            print(text, file=self.stream, flush=True)


class Progress:
    """gsm8k  320/1,319 problems  pass@1 0.621 +- 0.031  1,240 tokens/s  eta 3m12s"""

    def __init__(self, label: str, problems: int, journal: Journal, stream: TextIO | None = None) -> None:
        self.label, self.problems, self.journal, self.place = label, problems, journal, Line(stream)
        self.began = time.monotonic()
        self.before = len(journal.samples.get(label, {}))

    def __enter__(self) -> Progress:
        if self.before:
            print(
                f"{self.label}: {self.before:,} of {self.problems:,} problems were sampled before",
                file=self.place.stream,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.place.__exit__()

    def show(self) -> None:
        """Now and then. Called from the thread that judges too."""
        if self.place.due:
            self.place.show(self.line(time.monotonic()))

    def line(self, now: float) -> str:
        samples = dict(self.journal.samples.get(self.label, {}))
        parts = [self.label, f"{len(samples):,}/{self.problems:,} problems"]
        shares = []
        for verdicts in list(self.journal.verdicts.get(self.label, {}).values()):
            known = [v.reason == "correct" for v in verdicts if v.reward is not None]
            if known:
                shares.append(sum(known) / len(known))
        if len(shares) > 1:
            mean = sum(shares) / len(shares)
            spread = math.sqrt(sum((s - mean) ** 2 for s in shares) / (len(shares) - 1) / len(shares))
            parts.append(f"pass@1 {mean:.3f} \u00b1 {Z * spread:.3f}")
        seconds = self.journal.seconds.get(self.label, 0.0)
        tokens = sum(sample.tokens or 0 for some in samples.values() for sample in some)
        if seconds and tokens:
            parts.append(f"{tokens / seconds:,.0f} tokens/s")
        fresh = len(samples) - self.before
        if fresh and len(samples) < self.problems:
            parts.append(f"eta {duration((now - self.began) / fresh * (self.problems - len(samples)))}")
        return "  ".join(parts)


Row = tuple[str, str, str]  # label, key, and how it is shown

ROWS: tuple[Row, ...] = (
    ("mean accuracy", "accuracy", "{:.3f}"),
    ("majority", "majority", "{:.3f}"),
    ("with an answer", "format_rate", "{:.3f}"),
    ("truncated", "truncated", "{:.3f}"),
    ("mean tokens", "mean_tokens", "{:.1f}"),
    ("problems", "problems", "{:,}"),
    ("completions", "completions", "{:,}"),
)
SELECTIONS = {
    "best_of": "best of ",
    "weighted_majority": "weighted majority@",
}  # figures of a reward model, and their names
# shown where there are any: these are not in the figures, or not all of them
APART = (
    ("undecided: unknown", "unknown"),
    ("undecided: time-outs of the verifier", "timeouts"),
    ("undecided: errors", "errors"),
    ("left out: gold answer of no use", "refused_answers"),
    ("left out: prompt too long", "prompts_too_long"),
    ("left out: no samples", "missing"),
)


def table(
    results: Mapping[str, Any],
    speeds: Mapping[str, Mapping[str, Any]],
    width: int | None = None,
    rows: Sequence[Row] = ROWS,
) -> str:
    """A column for each task, as many side by side as `width` takes (the terminal's, where None). rows: those below
    pass@k."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    tasks: dict[str, Mapping[str, Any]] = results["tasks"]
    columns = {label: _cells(figures, speeds.get(label, {}), rows) for label, figures in tasks.items()}
    names = list(dict.fromkeys(name for cells in columns.values() for name in cells))
    side = max(map(len, names))
    blocks: list[list[str]] = []
    used = width
    for label, cells in columns.items():
        size = max(len(label), *map(len, cells.values())) + 3
        if used + size > width:
            blocks.append([])
            used = side
        blocks[-1].append(label)
        used += size
    return "\n\n".join(_block(labels, columns, names) for labels in blocks)


def _cells(figures: Mapping[str, Any], speed: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    cells = {}
    for key in figures:
        if key.startswith(("pass@", "majority@")) and f"{key}_interval" in figures:
            cells[key] = _estimate(figures[key], figures[f"{key}_interval"])
            if left := figures.get(f"{key}_left_out"):
                cells[f"{key} left out"] = f"{left:,} problems"
    for model, found in figures.get("reward_models", {}).items():
        cells |= _of_model(model, found)
    for name, key, form in rows:
        cells[name] = "-" if figures[key] is None else form.format(figures[key])
    for name, key in APART:
        if figures.get(key):
            cells[name] = f"{figures[key]:,}"
    if (rate := speed.get("tokens_per_s")) is not None:
        cells["tokens/s"] = f"{rate:,.0f}"
    return cells


def _of_model(model: str, found: Mapping[str, Any]) -> dict[str, str]:
    """Of a reward model: best of k, then votes, then how well it can tell."""
    keys = [key for start in SELECTIONS for key in found if key.startswith(start) and f"{key}_interval" in found]
    cells = {f"{SELECTIONS[key.partition('@')[0]]}{key.partition('@')[2]} by {model}": key for key in keys}
    shown = {name: _estimate(found[key], found[f"{key}_interval"]) for name, key in cells.items()}
    for name, key in (("AUC", "auc"), ("AUC within problems", "auc_within")):
        shown[f"{name} of {model}"] = _estimate(found[key], found[f"{key}_interval"])
    if found["unscored"]:
        shown[f"not scored by {model}"] = f"{found['unscored']:,}"
    return shown


def _estimate(mean: float | None, interval: Sequence[float] | None) -> str:
    if mean is None or interval is None:
        return "-"
    return f"{mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _block(labels: Sequence[str], columns: Mapping[str, Mapping[str, str]], names: Sequence[str]) -> str:
    names = [name for name in names if any(name in columns[label] for label in labels)]
    rows = [("", *labels), *((name, *(columns[label].get(name, "") for label in labels)) for name in names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )
