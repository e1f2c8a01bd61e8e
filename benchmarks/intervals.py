"""How often a 95 % interval for pass@k holds the true value: ours beside the usual ones, by simulation.

    python -m benchmarks.intervals                     a minute or two; the tables of RESULTS.md
    python -m benchmarks.intervals --problems 164      another size of benchmark

A benchmark is drawn as life draws it: a rate of success for each problem, from a Beta distribution, then n samples of
it, then the unbiased pass@k. What must be held is the mean of pass@k over all problems of that distribution, which is
known in closed form. The seed is fixed: the same command gives the same digits. Left out: problems that come in
families, which no interval over problems knows of.
"""

# P problems, R simulated evaluations, B resamples. An interval here is two (R,): lower and upper bounds

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import described, table
from grpo_math.passk import intervals, pass_at_k

Array = NDArray[np.float64]
Bounds = tuple[Array, Array]

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL = NormalDist()
# (a, b) of a Beta distribution
RATES: Mapping[str, tuple[float, float]] = {
    "never or always": (0.3, 0.3),
    "hard": (0.2, 2.0),
    "very hard": (0.1, 3.0),
    "easy": (3.0, 0.3),
    "middling": (5.0, 5.0),
}
SAMPLES_AND_K = ((1, 1), (4, 1), (4, 2), (16, 1), (16, 8))
TOGETHER = 200  # evaluations that share their resampling weights, as our fixed seed has all of them do


@dataclass(frozen=True)
class Cell:
    """What is simulated: so many problems with rates from RATES[rates], n samples each, pass@k of them."""

    problems: int
    rates: str
    n: int
    k: int

    def truth(self) -> float:
        """E[1 - (1 - p)^k] for p ~ Beta(a, b): one less the product of (b + j) / (a + b + j) over j < k."""
        a, b = RATES[self.rates]
        return 1 - math.prod((b + j) / (a + b + j) for j in range(self.k))

    def draw(self, evaluations: int, rng: np.random.Generator) -> Array:
        """(R, P): pass@k of each problem."""
        rates = rng.beta(*RATES[self.rates], size=(evaluations, self.problems))
        by_right = np.array([pass_at_k(self.n, right, self.k) for right in range(self.n + 1)])
        return by_right[rng.binomial(self.n, rates)]


@dataclass(frozen=True)
class Kept:
    """below, above: the share of intervals that lie wholly so, which are the misses; width: their mean width."""

    below: float
    above: float
    width: float

    @property
    def coverage(self) -> float:
        return 1 - self.below - self.above


@dataclass(frozen=True)
class Resampled:
    """What the methods share. values: (R, P); means, deviations: (B, R), of each resample.

    reweighed: (B, R), means with Dirichlet weights; a problem unseen at either end weighs half as much as one seen."""

    values: Array
    means: Array
    deviations: Array
    reweighed: Array

    @classmethod
    def of(cls, values: Array, resamples: int, rng: np.random.Generator) -> Resampled:
        problems = values.shape[1]
        weights = rng.multinomial(problems, np.full(problems, 1 / problems), size=resamples) / problems
        means = weights @ values.T
        variances = np.maximum(weights @ (values**2).T - means**2, 0) * problems / (problems - 1)
        gammas = rng.standard_gamma([1.0] * problems + [0.5, 0.5], size=(resamples, problems + 2))
        reweighed = (gammas[:, :-2] @ values.T + gammas[:, -1:]) / gammas.sum(axis=1, keepdims=True)
        return cls(values, means, np.sqrt(variances), reweighed)


def ours(of: Resampled) -> Bounds:
    low, high = np.array(intervals(of.values.T, LEVEL)).T
    return low, high


def percentile(of: Resampled) -> Bounds:
    low, high = np.quantile(of.means, [TAIL, 1 - TAIL], axis=0)
    return low, high


def bca(of: Resampled) -> Bounds:
    """Bias-corrected and accelerated; Efron 1987, eq. 2.3. Ties with the mean count half."""
    mean = of.values.mean(axis=1)
    below = ((of.means < mean - 1e-12).mean(axis=0) + (of.means <= mean + 1e-12).mean(axis=0)) / 2
    edge = 1 / len(of.means)
    bias = np.array([NORMAL.inv_cdf(share) for share in below.clip(edge, 1 - edge)])
    away = of.values - mean[:, None]
    spread = (away**2).sum(axis=1)
    skew = (away**3).sum(axis=1) / np.maximum(6 * spread**1.5, 1e-12)
    order = np.sort(of.means, axis=0)
    return _moved(order, NORMAL.inv_cdf(TAIL), bias, skew), _moved(order, NORMAL.inv_cdf(1 - TAIL), bias, skew)


def _moved(order: Array, z: float, bias: Array, skew: Array) -> Array:
    levels = [NORMAL.cdf(b + (b + z) / (1 - a * (b + z))) for b, a in zip(bias, skew, strict=True)]
    return order[np.rint(np.array(levels) * (len(order) - 1)).astype(int), np.arange(order.shape[1])]


def student(of: Resampled) -> Bounds:
    """mean -+ t s / sqrt(P), cut to 0..1."""
    problems = of.values.shape[1]
    half = t_quantile(problems - 1) * of.values.std(axis=1, ddof=1) / math.sqrt(problems)
    mean = of.values.mean(axis=1)
    return (mean - half).clip(0, 1), (mean + half).clip(0, 1)


def studentised(of: Resampled) -> Bounds:
    """Bootstrap-t, cut to 0..1. A resample of equal values has no deviation: its t is infinite."""
    mean, deviation = of.values.mean(axis=1), of.values.std(axis=1, ddof=1)
    away = of.means - mean
    infinite = np.where(np.abs(away) < 1e-12, 0.0, np.sign(away) * 1e9)
    ts = np.where(of.deviations > 1e-9, away / np.maximum(of.deviations, 1e-9), infinite)
    low, high = np.quantile(ts, [TAIL, 1 - TAIL], axis=0)
    return (mean - high * deviation).clip(0, 1), (mean - low * deviation).clip(0, 1)


def half_unseen(of: Resampled) -> Bounds:
    """Bayesian bootstrap with half an unseen problem at each end: of 0s and 1s, Jeffreys' interval."""
    low, high = np.quantile(of.reweighed, [TAIL, 1 - TAIL], axis=0)
    return np.where((of.values == 0).all(axis=1), 0.0, low), np.where((of.values == 1).all(axis=1), 1.0, high)


def t_quantile(freedom: int) -> float:
    """Student's t at 1 - TAIL: Cornish and Fisher's expansion, right to 1e-3 from 10 degrees of freedom on."""
    z = NORMAL.inv_cdf(1 - TAIL)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


METHODS: Mapping[str, Callable[[Resampled], Bounds]] = {
    "ours": ours,
    "half unseen": half_unseen,
    "percentile": percentile,
    "BCa": bca,
    "Student's t": student,
    "bootstrap-t": studentised,
}


def simulate(
    cell: Cell, evaluations: int, resamples: int, methods: Mapping[str, Callable[[Resampled], Bounds]] = METHODS
) -> dict[str, Kept]:
    """How each method fares in one cell. Where all values are 0, or all 1, every method is lent our bounds there: a
    width of 0 would be no contest."""
    rng = np.random.default_rng([cell.problems, list(RATES).index(cell.rates), cell.n, cell.k])
    truth = cell.truth()
    kept: dict[str, list[Kept]] = {name: [] for name in methods}
    for _ in range(-(-evaluations // TOGETHER)):
        values = cell.draw(TOGETHER, rng)
        of = Resampled.of(values, resamples, rng)
        edge = 1 - TAIL ** (1 / cell.problems)
        for name, method in methods.items():
            low, high = method(of)
            low = np.where((values == 1).all(axis=1), 1 - edge, low)
            high = np.where((values == 0).all(axis=1), edge, high)
            below, above = float((high < truth).mean()), float((low > truth).mean())
            kept[name].append(Kept(below, above, float((high - low).mean())))
    return {
        name: Kept(*(fmean(getattr(part, field) for part in parts) for field in ("below", "above", "width")))
        for name, parts in kept.items()
    }


def cells(problems: int) -> list[Cell]:
    return [Cell(problems, rates, n, k) for rates in RATES for n, k in SAMPLES_AND_K]


def cell_table(results: Mapping[Cell, Mapping[str, Kept]]) -> str:
    """Coverage in per cent, and the mean width; one row a cell."""
    rows = [
        [cell.rates, f"{cell.n}", f"pass@{cell.k}", f"{cell.truth():.3f}"]
        + [f"{100 * kept.coverage:.1f} ({kept.width:.3f})" for kept in result.values()]
        for cell, result in results.items()
    ]
    return table(["rates", "n", "", "truth", *METHODS], rows)


def summary_table(results: Mapping[Cell, Mapping[str, Kept]]) -> str:
    """For each size of benchmark and method: lowest and mean coverage over the cells, and the mean width."""
    rows = []
    for problems in sorted({cell.problems for cell in results}):
        of_size = [result for cell, result in results.items() if cell.problems == problems]
        row = [f"{problems:,}"]
        for name in METHODS:
            shares = [100 * result[name].coverage for result in of_size]
            width = fmean(result[name].width for result in of_size)
            row.append(f"{min(shares):.1f}, {fmean(shares):.1f} ({width:.3f})")
        rows.append(row)
    return table(["problems", *METHODS], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--problems", type=int, nargs="+", default=[15, 30, 100, 500], help="11 at least")
    add("--detail", type=int, default=30, help="the size of benchmark of which each cell is shown")
    add("--evaluations", type=int, default=1000, help=f"simulated in each cell, rounded up to {TOGETHER}s")
    add("--resamples", type=int, default=2000, help="of the other methods; ours has its own 10,000")
    given = parser.parse_args(arguments)
    if min(given.problems) < 11 or given.evaluations < 1 or given.resamples < 100:
        parser.error("--problems must be 11 or more, --evaluations 1 or more, --resamples 100 or more")
    print(described(1, "numpy"))
    error = math.sqrt(LEVEL * (1 - LEVEL) / given.evaluations)
    print(
        f"\n{given.evaluations:,} evaluations in each cell: a coverage of 95 % is known to +-{196 * error:.1f} points."
    )
    results = {
        cell: simulate(cell, given.evaluations, given.resamples) for size in given.problems for cell in cells(size)
    }
    print(f"\nLowest and mean coverage over the cells, per cent (mean width)\n\n{summary_table(results)}")
    detail = {cell: result for cell, result in results.items() if cell.problems == given.detail}
    if detail:
        print(f"\n{given.detail} problems: coverage, per cent (mean width)\n\n{cell_table(detail)}")


if __name__ == "__main__":
    main()
