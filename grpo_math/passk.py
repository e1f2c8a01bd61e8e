"""What is reported of n samples a problem: pass@k, majority accuracy, and intervals.

Pure functions of counts and rewards. Left out: sampling and scoring, which are in evaluate.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 20  # resampled values held at once, 8 MB


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


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """The percentile bootstrap's interval for the mean of `values`, one per problem; Efron 1979.

    Problems are resampled, never their samples: the samples of one problem are not independent of each other. Equal
    values give an interval of width 0; exact_interval is the honest one for a plain share near 0 or 1.
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
