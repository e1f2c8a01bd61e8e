"""How well scores tell good from bad: of comparisons, of labels, and of where a solution first goes wrong.

Pure functions of a whole step or a whole held-out set. What is not defined, such as the AUC of one class alone, is NaN.
"""

# P pairs, N completions or steps, S solutions

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo_math import best_of

BINS = 10
Labels = Sequence[float]  # of a solution's steps, in [0, 1]; NaN: unlabelled
NAN = float("nan")


def summary(scores: Tensor) -> dict[str, float]:
    """mean and std (ddof=1, 0 for a single one) of (N,)."""
    spread = float(scores.std()) if len(scores) > 1 else 0.0
    return {"mean": float(scores.mean()), "std": spread}


def comparison(chosen: Tensor, rejected: Tensor, weights: Tensor) -> dict[str, float]:
    """accuracy: share of pairs with r+ > r-, a tie counting as wrong, as in TRL and RewardBench (arXiv:2403.13787).
    margin: mean r+ - r-. (P,) each."""
    gap, weights = (chosen - rejected).double(), weights.double()
    share = weights / weights.sum()
    return {"accuracy": float(((gap > 0) * share).sum()), "margin": float((gap * share).sum())}


def auc(scores: Tensor, right: Tensor) -> float:
    """best_of.auc of tensors: (N,) scores, (N,) bool; NaN where either class is empty."""
    return best_of.auc(scores.double().cpu().numpy(), right.cpu().numpy())


def calibration_error(scores: Tensor, labels: Tensor) -> float:
    """sum over bins of n / N |mean s(r) - mean y|, bins of equal width over s(r) in [0, 1]; Naeini et al. 2015, as Guo
    et al. 2017 (arXiv:1706.04599, eq. 3) have it. (N,) each, labels in [0, 1]."""
    chance = scores.double().sigmoid()
    bins = (chance * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, chance - labels.double())
    return float(gaps.abs().sum()) / max(len(scores), 1)


def labelling(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy: share with s(r) > 1/2 exactly where y > 1/2; auc; calibration; right: share with y > 1/2.

    (N,) each; NaN labels are left out. A soft label of 1/2 or less counts as wrong."""
    known = ~labels.isnan()
    scores, labels = scores[known], labels[known]
    right = labels > 0.5
    return {
        "accuracy": float(((scores > 0) == right).double().mean()),
        "auc": auc(scores, right),
        "calibration": calibration_error(scores, labels),
        "right": float(right.double().mean()),
    }


def first_wrong(values: Sequence[float], threshold: float) -> int | None:
    """The first step whose value is at most `threshold`, from 0; None where all are above."""
    return next((i for i, value in enumerate(values) if value <= threshold), None)


def first_errors(scores: Sequence[Sequence[float]], labels: Sequence[Labels]) -> dict[str, float]:
    """How often the first step with s(r) <= 1/2 is the first wrong one; as ProcessBench has it, arXiv:2412.06559.

    found: of the solutions with a wrong step, the share whose first one is named. spared: of those without, the share
    of which no step is called wrong. f1: the harmonic mean of both. S solutions; one whose steps are not all labelled
    up to its first wrong one does not say where that is, and is left out."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for values, known in zip(scores, labels, strict=True):
        wrong = first_wrong(known, 0.5)
        if any(label != label for label in known[:wrong]):
            continue
        # a step after the first wrong one may be unlabelled; before it there is none
        hits[wrong is not None].append(first_wrong(values, 0.0) == wrong)
    found, spared = (sum(some) / len(some) if some else NAN for some in (hits[True], hits[False]))
    return {"found": found, "spared": spared, "first_error_f1": f1(found, spared)}


def f1(found: float, spared: float) -> float:
    """2 a b / (a + b); 0 where both are, NaN where either is."""
    return 2 * found * spared / (found + spared) if found + spared else 0.0
