"""Losses of reward models: of comparisons, and of labels in [0, 1].

Each is a pure function with one value for each pair, completion or step; how they are weighed is the recipes' business
(recipes/reward_objectives.py), and how well a model does is measured in reward_metrics.py.
"""

# P pairs, K completions of one prompt, N completions or steps; r is a reward model's score, s the sigmoid

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-(1 - e) log s(d) - e log s(-d),  d = r+ - r- - m; (P,) scores and margins -> (P,).

    e = m = 0 is the model of Bradley and Terry 1952, as InstructGPT has it (arXiv:2203.02155, eq. 1). m >= 0: by how
    much the chosen one is better; Llama 2, arXiv:2307.09288, eq. 2, and the column `margin` of TRL's RewardTrainer.
    label_smoothing: e, the share of pairs thought to be the wrong way round (cDPO's, Mitchell 2023); the loss then has
    its least value at s(d) = 1 - e, and scores do not grow without end."""
    d = chosen - rejected - margin
    return -(1 - label_smoothing) * logsigmoid(d) - label_smoothing * logsigmoid(-d)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r+ + r-)^2; (P,) -> (P,). A comparison leaves open where zero is; this draws the mean of a pair there.

    Eisenstein et al. 2023, arXiv:2312.09244; TRL's center_rewards_coefficient is the weight of its mean."""
    return (chosen + rejected) ** 2


def better_and_worse(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs (i, j) with rewards[i] > rewards[j] of (K,): their indices, int64, two of the same length.

    So one pass over K completions learns from up to K (K - 1) / 2 comparisons, and the loss of a prompt is the mean
    over those that there are (InstructGPT, arXiv:2203.02155, eq. 1). Equal rewards make no pair; NaN makes none."""
    better, worse = (rewards[:, None] > rewards[None, :]).nonzero(as_tuple=True)
    return better, worse


def cross_entropy(
    scores: Tensor, labels: Tensor, right_weight: Tensor | float = 1.0, wrong_weight: Tensor | float = 1.0
) -> Tensor:
    """-a y log s(r) - b (1 - y) log s(-r); (N,) scores and labels y in [0, 1] -> (N,), 0 where the label is NaN.

    Of a verifier's verdict on a completion (labels as in Cobbe et al. 2021, arXiv:2110.14168), of a step's label
    (Lightman et al. 2023, arXiv:2305.20050), or of its Monte-Carlo value, hard or soft (Math-Shepherd,
    arXiv:2312.08935, eq. 2). For two logits with r their difference it is the usual cross-entropy of two classes.
    right_weight, wrong_weight: a and b, see `balance`."""
    known = ~labels.isnan()
    y = labels.nan_to_num()
    loss = -right_weight * y * logsigmoid(scores) - wrong_weight * (1 - y) * logsigmoid(-scores)
    return torch.where(known, loss, torch.zeros_like(loss))


def balance(labels: Tensor) -> tuple[float, float]:
    """(a, b) = (N / 2 sum y, N / 2 sum(1 - y)) of the N labels that are not NaN: each class has half of the weight, and
    the mean weight is 1. A score is then the logit of a label drawn from as many right as wrong ones."""
    known = labels[~labels.isnan()].double()
    right, total = float(known.sum()), float(len(known))
    assert 0 < right < total, "whoever reads the labels refuses those of one class alone"
    return total / (2 * right), total / (2 * (total - right))
