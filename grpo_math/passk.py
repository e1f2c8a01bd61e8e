"""What is reported of n samples a problem: pass@k, majority accuracy, and intervals.

Pure functions of counts and rewards. Left out: sampling and scoring. Which interval for what:

    interval, intervals     the mean over problems of values within 0..1: pass@k, accuracy, majority
    exact_interval          a share of independent trials: the right ones of one problem's samples
    bootstrap_interval      what others report: too narrow with few problems, see its docstring
"""

# P problems, K values of k; n samples of a problem, c of them right

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

CHUNK = 1 << 20  # resampled values held at once, 8 MB
DECIMALS = 6  # of an interval's bounds: past the resampling's own error, short of what processors round differently


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of the n samples, drawn without replacement, hold a right one.

    n samples, c of them right. Unbiased, unlike 1 - (1 - c/n)^k; Chen et al. 2021, arXiv:2107.03374, eq. 1, in its
    product form, which needs no large factorials. Raises ValueError for k > n: that many were not sampled.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c={c} right of n={n} samples is impossible; c must be within 0..n")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from n={n} samples; k must be within 1..n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """The mean of pass@k over problems, each given as (n samples, c right). Raises ValueError where there is none."""
    if not counts:
        raise ValueError("pass@k of no problems; evaluate at least one")
    return math.fsum(pass_at_k(n, c, k) for n, c in counts) / len(counts)


def majority(answers: Sequence[str | None], rewards: Sequence[float | None]) -> float:
    """The reward of the most frequent answer (Wang et al. 2022, arXiv:2203.11171); tied winners are averaged.

    answers: what the verifier read from each sample, None where there was nothing, which is no vote. rewards: of the
    same samples, None where the verifier failed. No votes at all: 0.0, or NaN where no sample has a score. A winner
    without any score is left out; NaN where that leaves none, since a missing score is not a zero.
    """
    votes: dict[str, list[float | None]] = defaultdict(list)
    for answer, reward in zip(answers, rewards, strict=True):
        if answer is not None:
            votes[answer].append(reward)
    if not votes:
        return math.nan if all(reward is None for reward in rewards) else 0.0
    most = max(map(len, votes.values()))
    scored = [[r for r in rs if r is not None] for rs in votes.values() if len(rs) == most]
    winners = [math.fsum(rs) / len(rs) for rs in scored if rs]
    return math.fsum(winners) / len(winners) if winners else math.nan


def interval(
    values: ArrayLike,
    level: float = 0.95,
    support: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """An interval for the mean of `values` (P,), one per problem, none of which can leave `support`.

    A Bayesian bootstrap over problems (Rubin 1981): each resample weighs the problems by Dirichlet(1, ..., 1), with one
    more problem that nobody has seen, at the support's low end for the lower bound, at its high end for the upper one;
    the bounds are the resampled means' quantiles. Gaffke 2005; Learned-Miller and Thomas 2019, arXiv:1905.06208, who
    conjecture that it never covers less than `level`. benchmarks/intervals.py finds the same, and that the percentile
    bootstrap, BCa and Student's t fall far below with few problems or with most of them at one end.

    Which one it comes to: where every value is at an end (one sample a problem; 0 of 30 solved) these quantiles are
    Clopper and Pearson's bounds, and exact_interval gives them without resampling. So it has never width 0.

    It is for the mean over all problems of which these are a sample: other problems, other samples. Problems are
    resampled, never their samples: those of one problem are not independent. The order of the values is of no effect.
    Bounds are rounded to six decimals. Raises ValueError for no values, and for one outside the support, NaN included.
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    return intervals(column, level, support, seed, resamples)[0]


def intervals(
    values: NDArray[np.float64],
    level: float = 0.95,
    support: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    resamples: int = 10_000,
) -> list[tuple[float, float]]:
    """`interval` for each column of `values` (P, K), with the same weights: K intervals for little more than one."""
    low, high = support
    if len(values) == 0:
        raise ValueError("an interval for no problems; evaluate at least one")
    inside = (values >= low) & (values <= high)  # false for NaN
    if not inside.all():
        raise ValueError(
            f"a problem's value of {values[~inside][0]} is outside {low}..{high}; leave out what has no score"
        )
    problems = len(values)
    at_high = (values == high).sum(axis=0)
    at_ends = (values == low).sum(axis=0) + at_high == problems
    tails = (1 - level) / 2, (1 + level) / 2
    bounds = np.empty((2, values.shape[1]))
    # With c values at the high end, Dirichlet weights add up to Beta(c, P - c + 1) for the lower bound and to
    # Beta(c + 1, P - c) for the upper one, whose quantiles are Clopper and Pearson's bounds. They hold for other values
    # within 0..1 too where all come out 0: such a value of mean m is at most 1 and 0 otherwise, so m <= P(value > 0),
    # and P values are all 0 with a chance of at most (1 - m)^P; that is less than (1 - level) / 2 for every m above the
    # bound 1 - ((1 - level) / 2)^(1 / P). All 1 is the mirror image.
    for column in np.flatnonzero(at_ends):
        bounds[:, column] = exact_interval(int(at_high[column]), problems, level)
    bounds[:, at_ends] = low + (high - low) * bounds[:, at_ends]
    if not at_ends.all():
        lower, upper = _weighted_means(np.sort(values[:, ~at_ends], axis=0), support, seed, resamples)
        bounds[:, ~at_ends] = np.quantile(lower, tails[0], axis=0), np.quantile(upper, tails[1], axis=0)
    return [(float(left), float(right)) for left, right in bounds.T.round(DECIMALS)]


def _weighted_means(
    values: NDArray[np.float64], support: tuple[float, float], seed: int, resamples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two (resamples, K): means of `values` (P, K) with the unseen problem at either end of the support."""
    # numpy freezes the streams of RandomState, and no other ones, for good (NEP 19): old files keep their digits
    rng = np.random.RandomState(seed)
    problems, rows = len(values), max(1, CHUNK // (len(values) + 1))
    means = []
    for start in range(0, resamples, rows):
        weights = rng.standard_exponential((min(rows, resamples - start), problems + 1))
        weights /= weights.sum(axis=1, keepdims=True)  # exponentials over their sum are Dirichlet(1, ..., 1)
        seen = weights[:, :problems] @ values
        means.append([seen + end * weights[:, problems:] for end in support])
    lower, upper = map(np.concatenate, zip(*means, strict=True))
    return lower, upper


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap's interval for the mean of `values`, one per problem; Efron 1979.

    For values without known ends, such as tokens, and for differences, whose ends -1 and 1 are so far off that
    `interval` is needlessly wide. It covers too little where the problems are few (30: some 92 %) or most values equal,
    and has width 0 where all are; interval(differences, support=(-1, 1)) is the honest one there.
    """
    if len(values) == 0:
        raise ValueError("an interval for no problems; evaluate at least one")
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // len(data))
    means = np.concatenate(
        [
            data[rng.integers(len(data), size=(min(rows, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's (1934) interval for a share of independent trials, such as one sample per problem.

    The bounds p are where the binomial tails P(X >= successes | p) and P(X <= successes | p) are (1 - level) / 2.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials is impossible; give 0..trials of at least one")
    alpha = (1 - level) / 2
    low = 0.0 if successes == 0 else _tail_root(successes, trials, alpha)
    high = 1.0 if successes == trials else _tail_root(successes + 1, trials, 1 - alpha)
    return low, high


@lru_cache(maxsize=4096)
def _tail_root(least: int, trials: int, tail: float) -> float:
    """The p at which P(X >= least) of Binomial(trials, p) is `tail`, by bisection: it rises with p."""
    x = np.arange(least, trials + 1, dtype=np.float64)
    log_choose = math.lgamma(trials + 1) - np.array([math.lgamma(i + 1) + math.lgamma(trials - i + 1) for i in x])
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        above = np.exp(log_choose + x * math.log(p) + (trials - x) * math.log1p(-p)).sum()
        low, high = (p, high) if above < tail else (low, p)
    return (low + high) / 2
