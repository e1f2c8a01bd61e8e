"""Scores of an update's examples -> its loss and its metrics: from comparisons (Ranking), or from labels (Labelling).

A loss is weighed by the whole step, before any split. Left out: the equations (reward_losses.py, reward_metrics.py).
"""

# E examples, N places of all of them, P pairs of all of them

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import Metrics
from grpo_math.recipes.reward_examples import Judged
from grpo_math.reward_losses import balance, better_and_worse, bradley_terry, centring, cross_entropy
from grpo_math.reward_metrics import comparison, first_errors, labelling, summary


class Objective(Protocol):
    def weights(self, examples: Sequence[Judged]) -> list[list[float]]:
        """Of each place of each example, such that the loss is a mean over the step."""

    def loss(self, examples: Sequence[Judged], scores: Tensor, weights: Tensor) -> Tensor:
        """The sum to minimise over some of a step's examples. scores, weights: (N,), in the order of their places."""

    def metrics(self, examples: Sequence[Judged], scores: Tensor) -> Metrics:
        """Of a whole step, or of what is held out; scores: (N,)."""


@dataclass(frozen=True)
class Compared:
    """Pairs of several examples. better, worse: (P,) int64, places among all of theirs; margins: (P,); shares: (P,), of
    the mean over its example's pairs."""

    better: Tensor
    worse: Tensor
    margins: Tensor
    shares: Tensor


class Ranking:
    """The mean over examples of the mean over their pairs."""

    def __init__(self, settings: config.RewardLoss) -> None:
        self.settings = settings

    def weights(self, examples: Sequence[Judged]) -> list[list[float]]:
        return [[1 / len(examples)] * len(example.targets) for example in examples]

    def loss(self, examples: Sequence[Judged], scores: Tensor, weights: Tensor) -> Tensor:
        cfg, pairs = self.settings, self.pairs(examples, scores.device)
        chosen, rejected = scores[pairs.better], scores[pairs.worse]
        each = bradley_terry(chosen, rejected, pairs.margins, cfg.label_smoothing)
        if cfg.centre:
            each = each + cfg.centre * centring(chosen, rejected)
        return (each * weights[pairs.better] * pairs.shares).sum()

    def pairs(self, examples: Sequence[Judged], device: torch.device) -> Compared:
        found: list[tuple[Tensor, ...]] = []
        start = 0
        for example in examples:
            targets = torch.tensor(example.targets)
            better, worse = better_and_worse(targets)
            margins = self.margins(example, targets[better] - targets[worse])
            found.append((start + better, start + worse, margins, torch.full(margins.shape, 1 / len(better))))
            start += len(example.targets)
        return Compared(*(torch.cat(column).to(device) for column in zip(*found, strict=True)))

    def margins(self, example: Judged, gaps: Tensor) -> Tensor:
        """gaps: of the two targets of each pair."""
        if self.settings.margin == "rewards":
            return self.settings.margin_scale * gaps
        known = example.margin if self.settings.margin == "column" else None
        return torch.full(gaps.shape, known or 0.0)

    def metrics(self, examples: Sequence[Judged], scores: Tensor) -> Metrics:
        pairs = self.pairs(examples, scores.device)
        return summary(scores) | comparison(scores[pairs.better], scores[pairs.worse], pairs.shares)


class Labelling:
    """The mean over all labels, of completions or of steps."""

    def __init__(self, learnt: Sequence[float] | None = None) -> None:
        """learnt: all labels of the run, which are to be balanced; None where they count as they are."""
        self.right, self.wrong = (1.0, 1.0) if learnt is None else balance(torch.tensor(learnt))

    def weights(self, examples: Sequence[Judged]) -> list[list[float]]:
        known = [[float(target == target) for target in example.targets] for example in examples]
        total = max(sum(map(sum, known)), 1.0)
        return [[one / total for one in some] for some in known]

    def loss(self, examples: Sequence[Judged], scores: Tensor, weights: Tensor) -> Tensor:
        labels = labels_of(examples).to(scores.device)
        return (cross_entropy(scores, labels, self.right, self.wrong) * weights).sum()

    def metrics(self, examples: Sequence[Judged], scores: Tensor) -> Metrics:
        return summary(scores) | labelling(scores, labels_of(examples))


class StepLabelling(Labelling):
    def metrics(self, examples: Sequence[Judged], scores: Tensor) -> Metrics:
        by_example = scores.split([len(example.targets) for example in examples])
        found = first_errors([s.tolist() for s in by_example], [example.targets for example in examples])
        return super().metrics(examples, scores) | found


def labels_of(examples: Sequence[Judged]) -> Tensor:
    """(N,), NaN where there is none."""
    return torch.tensor([target for example in examples for target in example.targets])
