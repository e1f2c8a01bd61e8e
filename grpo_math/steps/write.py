"""What label-steps writes: a line for each completion with labels, and the counts of all of them.

Left out: the files themselves (filtering/write.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_math.evaluation.sampler import DIGITS
from grpo_math.filtering.candidate import Candidate
from grpo_math.steps.split import pieces
from grpo_math.steps.values import Value, Values
from grpo_math.types import Problem


@dataclass(frozen=True)
class Labelling:
    """method: ask every step's prefix, or those of a binary search. boundary: what ends a step (split.BOUNDARIES).
    labels: the share of continuations that are right, or whether any is. budget: of continuations for each problem,
    over all of its completions."""

    method: Literal["every", "binary"] = "every"
    boundary: str = "newline"
    labels: Literal["soft", "hard"] = "hard"
    budget: int | None = None


@dataclass(frozen=True)
class Written:
    """A completion and its steps."""

    candidate: Candidate
    problem: Problem
    ends: tuple[int, ...]

    @property
    def steps(self) -> list[str]:
        return pieces(self.candidate.completion, self.ends)


@dataclass(frozen=True)
class Labelled:
    """Of one completion. first_wrong: of a search that came to its end."""

    values: Values
    labels: tuple[float | None, ...]
    first_wrong: int | None = None


def rows_of(written: Sequence[Written], found: Sequence[Labelled], labelling: Labelling) -> Iterator[dict[str, Any]]:
    """prompt, completions (the steps) and labels, as TRL has stepwise supervision; those without a label are left out.
    The steps join to the completion, which `separator` says. counts: right and drawn of each step's continuations."""
    for w, one in zip(written, found, strict=True):
        if all(label is None for label in one.labels):
            continue
        yield {
            "prompt": w.candidate.prompt,
            "completions": w.steps,
            "labels": [_label(label, labelling) for label in one.labels],
            "separator": "",
            "problem": w.candidate.problem,
            "task": w.candidate.task,
            "gold": w.problem.answer,
            "counts": [None if value is None else [value.right, value.drawn] for value in one.values],
            "source": w.candidate.source,
        }


def _label(label: float | None, labelling: Labelling) -> float | bool | None:
    if label is None:
        return None
    return round(label, DIGITS) if labelling.labels == "soft" else bool(label)


def counts_of(
    written: Sequence[Written], found: Sequence[Labelled], read: int, too_long: int, labelling: Labelling
) -> dict[str, int | float]:
    """continuations: of all prefixes that were asked, each once."""
    labels = [label for each in found for label in each.labels]
    known = [label for label in labels if label is not None]
    asked: dict[tuple[str, str], Value] = {}
    for w, each in zip(written, found, strict=True):
        for end, value in zip(w.ends[:-1], each.values, strict=False):
            if value is not None:
                asked[w.problem.id, w.candidate.prompt + w.candidate.completion[:end]] = value
    counts: dict[str, int | float] = {
        "samples": read,
        "completions": len(written),
        "steps": len(labels),
        "labelled": len(known),
        "right": round(sum(known) / len(known), DIGITS) if known else 0.0,
        "prefixes": len(asked),
        "continuations": sum(value.drawn + value.lost for value in asked.values()),
        "correct": sum(value.right for value in asked.values()),
        "undecided": sum(value.lost for value in asked.values()),
        "too_long": too_long,
    }
    if labelling.method == "binary":
        counts["first_wrong"] = sum(each.first_wrong is not None for each in found)
    return counts


ROWS = (
    ("samples", "samples", "{:,}"),
    ("completions, each text once", "completions", "{:,}"),
    ("steps", "steps", "{:,}"),
    ("  with a label", "labelled", "{:,}"),
    ("  mean label", "right", "{:.3f}"),
    ("first wrong step found", "first_wrong", "{:,}"),
    ("prefixes gone on from", "prefixes", "{:,}"),
    ("  too long for the model", "too_long", "{:,}"),
    ("continuations", "continuations", "{:,}"),
    ("  correct", "correct", "{:,}"),
    ("  undecided", "undecided", "{:,}"),
)


def table(counts: Mapping[str, int | float]) -> str:
    shown = [(name, form.format(counts[key])) for name, key, form in ROWS if key in counts]
    widths = max(len(name) for name, _ in shown), max(len(value) for _, value in shown)
    return "\n".join(f"{name:<{widths[0]}}  {value:>{widths[1]}}" for name, value in shown)
