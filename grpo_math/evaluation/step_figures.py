"""How well a process model tells wrong steps from right ones, as plain JSON. Pure functions.

Left out: the scores (steps.py) and how the figures are shown (show_steps.py).
"""

# S solutions of P problems, K steps of a solution

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_math.best_of import DECIMALS, RESAMPLES, Floats, auc
from grpo_math.reward_metrics import f1, first_wrong

SIZES = ((1, 2), (3, 4), (5, 8), (9, 16), (17, None))  # steps of a solution, for the table by length


@dataclass(frozen=True)
class ScoredSteps:
    """A solution. problem: equal for those of one problem. labels: (K,), from 0 (wrong) to 1 (right), None where nobody
    says; 1/2 or less counts as wrong. scores: (K,), the model's probability that the step is right."""

    problem: str
    labels: tuple[float | None, ...]
    scores: tuple[float, ...]

    @property
    def first_wrong(self) -> int | None:
        """The first step that is labelled wrong, from 0; None where none is."""
        return first_wrong([1.0 if label is None else label for label in self.labels], 0.5)

    @property
    def places_error(self) -> bool:
        """Whether the labels tell where the solution first goes wrong, or that it does not: they do unless a step
        before that has none."""
        return all(label is not None for label in self.labels[: self.first_wrong])

    def named(self, threshold: float) -> int | None:
        """The first step that the model calls wrong, from 0; None where it calls none so."""
        return first_wrong(self.scores, threshold)


def step_figures(solutions: Sequence[ScoredSteps], threshold: float = 0.5) -> dict[str, Any]:
    """All that step_results.json says of the solutions. A step whose score is `threshold` or less is called wrong."""
    return {
        **of_steps(solutions, threshold),
        **of_first_errors(solutions, threshold),
        "by_steps": [
            {"steps": [low, high], **_short(some, threshold)}
            for low, high in SIZES
            if (some := [s for s in solutions if low <= len(s.labels) <= (high or len(s.labels))])
        ],
    }


def of_steps(solutions: Sequence[ScoredSteps], threshold: float) -> dict[str, Any]:
    """Of all labelled steps. accuracy: the share that is called what it is. balanced_accuracy: the mean of the shares
    among the right and among the wrong. wrong_precision, wrong_recall, wrong_f1: of calling a step wrong. auc: of the
    scores. None where a class is missing."""
    pairs = [(s, x > 0.5) for one in solutions for s, x in zip(one.scores, one.labels, strict=True) if x is not None]
    scores, right = np.array([s for s, _ in pairs]), np.array([x for _, x in pairs], bool)
    called_right = scores > threshold
    wrong, called_wrong = int((~right).sum()), int((~called_right).sum())
    caught = int((~right & ~called_right).sum())
    spared = _share(int((right & called_right).sum()), len(right) - wrong)
    precision, recall = _share(caught, called_wrong), _share(caught, wrong)
    return {
        "steps": len(pairs),
        "wrong_steps": wrong,
        "accuracy": _share(int((right == called_right).sum()), len(pairs)),
        "balanced_accuracy": _known((spared + recall) / 2) if spared is not None and recall is not None else None,
        "wrong_precision": precision,
        "wrong_recall": recall,
        # 2 caught / (wrong + called wrong): 0, not undefined, where none is caught
        "wrong_f1": _share(2 * caught, wrong + called_wrong) if wrong else None,
        "auc": _known(auc(scores, right)) if len(pairs) else None,
    }


def of_first_errors(solutions: Sequence[ScoredSteps], threshold: float) -> dict[str, Any]:
    """ProcessBench's measure, arXiv:2412.06559, of the solutions whose labels say where the first error is.

        found   of those with a wrong step the share of which the very first one is named
        spared  of those without the share of which no step is called wrong
        first_error_f1 = 2 found spared / (found + spared)

    The intervals (95 %) are a Bayesian bootstrap over problems with one more that nobody has seen, as best_of's of the
    AUC: it has as many solutions of both kinds as the others have on average, all wrong for the lower bound, and right
    for the upper one."""
    known = [s for s in solutions if s.places_error]
    number = {problem: i for i, problem in enumerate(dict.fromkeys(s.problem for s in known))}
    hits, counts = (
        np.zeros((2, len(number))),
        np.zeros((2, len(number))),
    )  # of those with a wrong step; of those without
    for s in known:
        kind = 0 if s.first_wrong is not None else 1
        counts[kind, number[s.problem]] += 1
        hits[kind, number[s.problem]] += s.named(threshold) == s.first_wrong
    with_error, without = counts.sum(axis=1).astype(int).tolist()
    found, spared = (_share(float(h), n) for h, n in zip(hits.sum(axis=1), (with_error, without), strict=True))
    f = None if found is None or spared is None else f1(found, spared)
    result = {"solutions": len(solutions), "with_error": with_error, "without_error": without}
    result["left_out"] = len(solutions) - len(known)
    bounds = _bounds(hits, counts)
    for name, value in {"found": found, "spared": spared, "first_error_f1": f}.items():
        result |= {name: value, f"{name}_interval": None if value is None else bounds[name]}
    return result


def _bounds(hits: Floats, counts: Floats, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """hits, counts: (2, P). Where a kind of solution is missing its numbers mean nothing."""
    problems = counts.shape[1]
    weights = np.random.RandomState(0).standard_exponential((RESAMPLES, problems + 1))
    seen, unseen = weights[:, :problems], weights[:, problems:]
    of_unseen = unseen * counts.sum(axis=1) / max(problems, 1)  # (R, 2)
    whole = np.maximum(seen @ counts.T + of_unseen, 1e-300)
    low, high = seen @ hits.T / whole, (seen @ hits.T + of_unseen) / whole
    tail = (1 - level) / 2
    ends = []
    for shares, at in ((low, tail), (high, 1 - tail)):
        total = np.maximum(shares.sum(axis=1), 1e-300)
        columns = np.column_stack([shares, 2 * shares[:, 0] * shares[:, 1] / total])
        ends.append(np.quantile(columns, at, axis=0).round(DECIMALS).tolist())
    return dict(zip(("found", "spared", "first_error_f1"), zip(*ends, strict=True), strict=True))


def _short(solutions: Sequence[ScoredSteps], threshold: float) -> Mapping[str, Any]:
    steps, errors = of_steps(solutions, threshold), of_first_errors(solutions, threshold)
    return {
        "solutions": len(solutions),
        **{key: steps[key] for key in ("accuracy", "auc")},
        **{key: errors[key] for key in ("found", "spared", "first_error_f1")},
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
