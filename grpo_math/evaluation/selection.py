"""What reward models are good for, as figures of an evaluation: which of k samples they choose, how they weigh votes,
and how well they tell right from wrong. Pure functions; the estimators themselves are in best_of.py.

Left out: pass@k and what needs no reward model (summary.py).
"""

# P problems, n completions of each

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_math.best_of import Floats, auc, auc_interval, best_of_k, majority_of_k, sigmoid
from grpo_math.config_learned import LearnedKind
from grpo_math.evaluation.summary import Judged, estimates

# What a vote weighs, of the score. A process model's is a probability already. An outcome model's is a logit, of any
# sign, and a sum of those would have an answer lose by being found again: sigma(r) is the probability of being right
# that the model was trained for with verifier labels. Of one trained on comparisons alone only differences mean
# something, so that its weights depend on where its scores happen to lie (loss.centre holds them at 0).
WEIGHTS: dict[LearnedKind, Callable[[Floats], Floats]] = {"outcome": sigmoid, "process": lambda p: p}


def selection(
    problems: Sequence[Sequence[Judged]], ks: Sequence[int], kinds: Mapping[str, LearnedKind]
) -> dict[str, Any]:
    """majority@k, and under reward_models the figures of each model, as plain JSON; None stands for a mean of nothing.

    kinds: of each model by its name. Of completions with a verdict alone, and of problems that have k of them, as
    pass@k; k = 1 leaves no choice. A completion that a model could not score is its last choice, and no vote."""
    groups = [[c for c in group if c.verdict.reward is not None] for group in problems]
    wanted = [k for k in ks if k > 1]
    result: dict[str, Any] = {}
    columns = {f"majority@{k}": [majority_of_k(answers(g), right(g), k) for g in groups if len(g) >= k] for k in wanted}
    for name, (mean, bounds) in estimates(columns).items():
        result |= {name: mean, f"{name}_interval": bounds}
    return {**result, "reward_models": {name: of_model(groups, wanted, name, kind) for name, kind in kinds.items()}}


def of_model(groups: Sequence[Sequence[Judged]], ks: Sequence[int], name: str, kind: LearnedKind) -> dict[str, Any]:
    """auc: of all completions together, so that it also counts to know which problems are easy. auc_within: the mean
    over the problems that have both right and wrong completions of the AUC among their own, which is what choosing
    needs."""
    scores = [np.array([math.nan if c.scores[name] is None else c.scores[name] for c in g], np.float64) for g in groups]
    weights = [WEIGHTS[kind](some) for some in scores]
    columns: dict[str, list[float]] = {}
    for k in ks:
        of_k = [i for i, g in enumerate(groups) if len(g) >= k]
        columns[f"best_of@{k}"] = [best_of_k(scores[i], right(groups[i]), k) for i in of_k]
        columns[f"weighted_majority@{k}"] = [
            majority_of_k(answers(groups[i]), right(groups[i]), k, weights[i]) for i in of_k
        ]
    known = [~np.isnan(some) for some in scores]
    within = [auc(s[here], right(g)[here]) for s, g, here in zip(scores, groups, known, strict=True) if here.any()]
    columns["auc_within"] = [value for value in within if not math.isnan(value)]
    result: dict[str, Any] = {"kind": kind}
    for column, (mean, bounds) in estimates(columns).items():
        result |= {column: mean, f"{column}_interval": bounds}
    return {
        **result,
        **pooled(scores, [right(g) for g in groups]),
        "auc_within_problems": len(columns["auc_within"]),
        "unscored": sum(int((~here).sum()) for here in known),
    }


def pooled(scores: Sequence[Floats], rights: Sequence[Floats]) -> dict[str, Any]:
    """The AUC of all scores there are."""
    flat, hits = np.concatenate(scores or [np.empty(0)]), np.concatenate(rights or [np.empty(0)])
    owner = np.repeat(np.arange(len(scores)), [len(some) for some in scores])
    known = ~np.isnan(flat)
    if not 0 < hits[known].sum() < known.sum():
        return {"auc": None, "auc_interval": None}
    # numbered anew: a problem of which nothing was scored is none
    _, numbers = np.unique(owner[known], return_inverse=True)
    return {"auc": auc(flat[known], hits[known]), "auc_interval": auc_interval(flat[known], hits[known], numbers)}


def answers(group: Sequence[Judged]) -> list[str | None]:
    return [c.verdict.answer for c in group]


def right(group: Sequence[Judged]) -> Floats:
    """(n,), 1 or 0."""
    return np.array([float(c.verdict.reason == "correct") for c in group])
