"""Choosing among n samples of a problem: by a score, by votes, by weighted votes; and how well a score can tell.

Pure functions of one problem's samples, or for the AUC of all problems'. Left out: intervals of what is a mean over
problems (passk.py), and where the scores come from (learned/).
"""

# P problems; n samples of a problem, k of them drawn without replacement; N samples of all problems; S subsets of k

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SUBSETS = 1000  # of each problem, for votes among k < n; then its own error is at most 0.016, the mean's far less
CHUNK = 1 << 20  # resampled values held at once, 8 MB
ROUNDING = 1e-9  # of sums of weights: the same weights in another order are a tie
RESAMPLES = 2000
DECIMALS = 6


def best_of_k(scores: ArrayLike, right: ArrayLike, k: int) -> float:
    """The chance that the best-scored of k samples is right, over all subsets of k of the n; exact, in O(n log n).

        sum over distinct scores s of  (C(#{<= s}, k) - C(#{< s}, k)) / C(n, k)  *  mean of right where the score is s

    The difference counts the subsets whose highest score is s. Within one, those that share it are as good as drawn, so
    that all with that score are equally often the one chosen. With equal scores it is the mean of right, with
    right for the scores pass@k. Lightman et al. 2023, arXiv:2305.20050, section 2.1, choose so, and draw the subsets.

    scores: (n,), NaN where there is none, which is chosen only where the others have none either. right: (n,), 0 or 1.
    Raises ValueError for a k that is not within 1..n."""
    found, values = np.asarray(scores, np.float64), np.asarray(right, np.float64)
    n = len(found)
    if not 1 <= k <= n:
        raise ValueError(f"best of {k} cannot be estimated from n={n} samples; k must be within 1..n")
    _, place, counts = np.unique(np.where(np.isnan(found), -np.inf, found), return_inverse=True, return_counts=True)
    means = np.bincount(place, values) / counts
    subsets = [math.comb(int(upto), k) for upto in (0, *counts.cumsum())]
    # of whole numbers, which may be huge: only their quotient is rounded
    shares = [(upto - below) / subsets[-1] for below, upto in pairwise(subsets)]
    return math.fsum(share * mean for share, mean in zip(shares, means.tolist(), strict=True))


def majority_of_k(
    answers: Sequence[str | None], right: ArrayLike, k: int, weights: ArrayLike | None = None, most: int = SUBSETS
) -> float:
    """How often the answer with the largest sum of weights among k samples is right:

        mean over subsets S of  right(argmax_a  sum_{i in S: answer_i = a} w_i)

    With w = 1 the plain majority (Wang et al. 2022, arXiv:2203.11171), with a model's probability that a solution is
    right the weighted one (Li et al. 2022, arXiv:2206.02336, section 3.2; Wang et al. 2023, arXiv:2312.08935).

    All subsets where there are no more than `most`, so always at k = n; else `most` random ones, the same for
    all problems and all weights, so that what is compared differs in nothing but the weights. Tied answers share.

    answers: n, equal where the verifier read the same; None is no vote. right: (n,), 0 or 1. weights: (n,), at least 0;
    NaN is no vote. No votes at all: 0. Raises ValueError for a k that is not within 1..n, and for a weight below 0."""
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"a majority of {k} cannot be estimated from n={n} samples; k must be within 1..n")
    found = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if (found < 0).any():
        raise ValueError(f"a vote with a weight of {np.nanmin(found)}; weights are at least 0")
    names = sorted({answer for answer in answers if answer is not None})
    number = {answer: i for i, answer in enumerate(names)}
    votes = np.zeros((n, len(names)))
    for i, answer in enumerate(answers):
        if answer is not None and not np.isnan(found[i]):
            votes[i, number[answer]] = 1.0
    if not votes.any():
        return 0.0
    chosen = subsets(n, k, most)
    count = chosen @ votes  # (S, answers)
    weight = chosen @ (votes * np.nan_to_num(found)[:, None])
    rights = chosen @ (votes * np.asarray(right, np.float64)[:, None])
    weight[count == 0] = -1.0  # an answer that nobody gave does not win, whatever the others weigh
    largest = weight.max(axis=1, keepdims=True)
    won = (weight >= largest - ROUNDING * np.abs(largest)) & (count > 0)
    shares = np.divide(rights, count, out=np.zeros_like(rights), where=won)
    winners = won.sum(axis=1)
    return float(np.divide(shares.sum(axis=1), winners, out=np.zeros(len(winners)), where=winners > 0).mean())


@lru_cache(maxsize=256)
def subsets(n: int, k: int, most: int = SUBSETS) -> Floats:
    """(S, n) of 0 and 1, each row k of the n: all subsets, or `most` random ones where there are more; always the same.
    Not to be written to."""
    if math.comb(n, k) <= most:
        places = np.array(list(combinations(range(n), k)))
    else:
        # numpy freezes the streams of RandomState, and no other ones, for good (NEP 19): old files keep their digits
        places = np.random.RandomState(0).random_sample((most, n)).argsort(axis=1)[:, :k]
    rows = np.zeros((len(places), n))
    np.put_along_axis(rows, places, 1.0, axis=1)
    rows.flags.writeable = False
    return rows


def sigmoid(scores: ArrayLike) -> Floats:
    """1 / (1 + e^-x) of each, without overflow: the probability that a score is the logit of. NaN stays NaN."""
    x = np.asarray(scores, np.float64)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def auc(scores: ArrayLike, right: ArrayLike) -> float:
    """P(s+ > s-) + P(s+ = s-) / 2 of a right and a wrong sample drawn at random (Mann and Whitney 1947).

    scores, right: (N,), no NaN; right is 0 or 1. NaN where all are right, or all wrong, or there is none."""
    values = np.asarray(right, np.float64)
    if not 0 < values.sum() < len(values):
        return math.nan
    return float(_weighted_auc(*_by_score(scores), np.ones((1, len(values))), values)[0])


def auc_interval(
    scores: ArrayLike, right: ArrayLike, problems: ArrayLike, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """An interval for `auc` over all problems of which these are a sample; None where auc is NaN.

    A Bayesian bootstrap over problems, as passk.interval is: each resample weighs the problems, with all of their
    samples, by Dirichlet(1, ..., 1), and with one more problem that nobody has seen. That has as many right and wrong
    samples as the others have on average, and for the lower bound the model ranks all of them the wrong way round, for
    the upper one rightly. So it has never width 0, and few problems make it wide.

    scores, right: as for auc. problems: (N,), from 0, whose sample each is. Rounded to six decimals."""
    values, owner = np.asarray(right, np.float64), np.asarray(problems, np.int64)
    if not 0 < values.sum() < len(values):
        return None
    order, starts = _by_score(scores)
    count, number = int(owner.max()) + 1, len(values)
    good, bad = values.sum() / count, (1 - values).sum() / count  # of the unseen problem
    rng = np.random.RandomState(seed)
    rows = max(1, CHUNK // number)
    low, high = [], []
    for start in range(0, RESAMPLES, rows):
        weights = rng.standard_exponential((min(rows, RESAMPLES - start), count + 1))
        each, unseen = weights[:, owner], weights[:, count]
        plus, minus = each @ values, each @ (1 - values)
        pairs = (plus + unseen * good) * (minus + unseen * bad)
        seen = _weighted_auc(order, starts, each, values)
        wins = np.where(plus * minus > 0, np.nan_to_num(seen), 0.0) * plus * minus
        low.append(wins / pairs)
        high.append((pairs - plus * minus + wins) / pairs)
    tail = (1 - level) / 2
    return (
        round(float(np.quantile(np.concatenate(low), tail)), DECIMALS),
        round(float(np.quantile(np.concatenate(high), 1 - tail)), DECIMALS),
    )


def _by_score(scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The samples in the order of their scores, and where among them each distinct score begins."""
    found = np.asarray(scores, np.float64)
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return order, begins


def _weighted_auc(order: NDArray[np.int64], starts: NDArray[np.int64], weights: Floats, right: Floats) -> Floats:
    """sum_{i right, j wrong} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) over the sum of all w_i w_j, for each row of
    weights (R, N); order, starts: of _by_score. right: (N,)."""
    plus = np.add.reduceat((weights * right)[:, order], starts, axis=1)  # of each distinct score
    minus = np.add.reduceat((weights * (1 - right))[:, order], starts, axis=1)
    below = minus.cumsum(axis=1) - minus
    wins = (plus * (below + minus / 2)).sum(axis=1)
    pairs = plus.sum(axis=1) * minus.sum(axis=1)
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
