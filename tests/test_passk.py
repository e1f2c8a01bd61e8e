"""pass@k, majority and intervals against hand values and brute force."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import intervals as simulation
from grpo_math import passk
from grpo_math.passk import (
    bootstrap_interval,
    exact_interval,
    interval,
    intervals,
    majority,
    mean_pass_at_k,
    pass_at_k,
)

# 600 simulated evaluations tell a coverage of 95 % to within 3 standard errors of this; the seeds are fixed
TOLERATED = 0.95 - 3 * math.sqrt(0.95 * 0.05 / 600)
DIGITS = (0.144147, 0.811396)
SHARES = st.lists(st.sampled_from([0.0, 0.0625, 0.25, 0.5, 1.0]), min_size=1, max_size=40)


def counts(largest: int) -> st.SearchStrategy[tuple[int, int, int]]:
    """n samples, c of them right, k of them drawn."""
    return st.integers(1, largest).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(counts(9))
def test_equals_the_share_of_all_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    right = [1] * c + [0] * (n - c)
    subsets = list(combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-12)


@given(counts(400))
def test_equals_the_closed_form_in_exact_fractions(case: tuple[int, int, int]) -> None:
    n, c, k = case
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


@given(counts(200))
def test_more_right_ones_and_more_tries_never_lower_it(case: tuple[int, int, int]) -> None:
    n, c, k = case
    here = pass_at_k(n, c, k)
    assert 0 <= here <= 1
    assert (here == 0) == (c == 0)
    assert c == n or pass_at_k(n, c + 1, k) >= here
    assert k == n or pass_at_k(n, c, k + 1) >= here - 1e-14  # another number of factors rounds otherwise


def test_large_counts_neither_overflow_nor_lose_digits() -> None:
    exact = 1 - math.comb(99_000, 100) / math.comb(100_000, 100)  # Python's integers are exact
    assert pass_at_k(100_000, 1_000, 100) == pytest.approx(exact, rel=1e-9)


def test_mean_over_problems() -> None:
    assert mean_pass_at_k([(4, 1), (4, 0), (2, 2)], 2) == pytest.approx((0.5 + 0 + 1) / 3)
    with pytest.raises(ValueError, match="no problems"):
        mean_pass_at_k([], 1)


@pytest.mark.parametrize(
    ("answers", "rewards", "expected"),
    [
        (["7", "7", "8"], [1.0, 1.0, 0.0], 1.0),
        (["7", "8", "8"], [1.0, 0.0, 0.0], 0.0),
        (["7", "8"], [1.0, 0.0], 0.5),
        (["7", "8", "9"], [1.0, 0.0, 0.0], 1 / 3),
        (["7", None, None, None], [1.0, 0.0, 0.0, 0.0], 1.0),
        ([None, None], [0.0, 0.0], 0.0),
        (["7", "7"], [None, 1.0], 1.0),
        (["7", "8"], [None, 0.5], 0.5),
        ([None, None], [None, 0.0], 0.0),
    ],
)
def test_majority(answers: list[str | None], rewards: list[float | None], expected: float) -> None:
    assert majority(answers, rewards) == pytest.approx(expected)


def test_a_majority_without_a_score_is_not_a_zero() -> None:
    assert math.isnan(majority(["7", "7", "8"], [None, None, 0.0]))


def test_majority_needs_a_reward_for_each_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        majority(["7", "8"], [1.0])


def test_bootstrap_agrees_with_the_normal_interval_and_is_seeded() -> None:
    values = np.random.default_rng(3).random(400)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert bootstrap_interval(values.tolist()) == (low, high)
    assert bootstrap_interval(values.tolist(), seed=1) != (low, high)
    inner = bootstrap_interval(values.tolist(), level=0.5)
    assert low < inner[0] < inner[1] < high


def test_bootstrap_is_the_same_in_one_chunk_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 0.25, 1.0, 1.0]
    whole = bootstrap_interval(values, resamples=999)
    monkeypatch.setattr("grpo_math.passk.CHUNK", 40)
    assert bootstrap_interval(values, resamples=999) == whole


def test_bootstrap_at_the_edges() -> None:
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_interval([])


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # no success: 1 - (alpha/2)^(1/n), and its mirror image
        (0, 10, 0.0, 1 - 0.025**0.1),
        (10, 10, 0.025**0.1, 1.0),
        # R 4.3: binom.test(8, 10), binom.test(1, 20)
        (8, 10, 0.4439045, 0.9747893),
        (1, 20, 0.00126509, 0.2487328),
        (1, 1, 0.025, 1.0),
        # Clopper and Pearson's interval of 4 of 10 as textbooks print it
        (4, 10, 0.1215523, 0.7376219),
        # scipy 1.17: beta.ppf(0.025, x, n - x + 1), beta.ppf(0.975, x + 1, n - x)
        (0, 30, 0.0, 0.1157033),
        (3, 64, 0.0097731, 0.1309357),
        (63, 64, 0.9159897, 0.9996045),
        (17, 1319, 0.0075255, 0.0205558),
        (5_000, 10_000, 0.4901514, 0.5098486),
    ],
)
def test_exact_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert exact_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(0.02, 0.98))
def test_exact_interval_covers_what_it_says(trials: int, share: float) -> None:
    covered = 0.0
    for x in range(trials + 1):
        low, high = exact_interval(x, trials, level=0.9)
        assert 0 <= low <= x / trials <= high <= 1
        covered += math.comb(trials, x) * share**x * (1 - share) ** (trials - x) * (low <= share <= high)
    assert covered >= 0.9 - 1e-9


def test_exact_interval_agrees_with_scipy() -> None:
    beta = pytest.importorskip("scipy.stats", reason="compares with scipy").beta
    for trials in (1, 2, 7, 64, 1319):
        for x in {0, 1, trials // 3, trials - 1, trials}:
            low = beta.ppf(0.025, x, trials - x + 1) if x else 0.0
            high = beta.ppf(0.975, x + 1, trials - x) if x < trials else 1.0
            assert exact_interval(x, trials) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_shares_raise(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        exact_interval(successes, trials)


@pytest.mark.parametrize(("right", "problems"), [(0, 1), (0, 30), (1, 30), (12, 30), (30, 30), (700, 1319)])
def test_one_sample_a_problem_has_clopper_and_pearsons_interval(right: int, problems: int) -> None:
    values = [1.0] * right + [0.0] * (problems - right)
    low, high = interval(values)
    assert (low, high) == pytest.approx(exact_interval(right, problems), abs=5.1e-7)  # six decimals
    assert low < high


def test_none_solved_of_thirty_is_not_a_certain_zero() -> None:
    assert interval([0.0] * 30) == (0.0, 0.115703)  # 1 - 0.025^(1/30)
    assert interval([1.0] * 30) == (0.884297, 1.0)


@pytest.mark.parametrize("right", [0, 1, 12, 30])
def test_resampling_comes_to_clopper_and_pearsons_bounds(right: int) -> None:
    # what interval() passes over for values of 0 and 1, because the result is known; 0.01 is the resampling's own error
    values = np.array([[0.0]] * (30 - right) + [[1.0]] * right)
    lower, upper = passk._weighted_means(values, (0.0, 1.0), seed=0, resamples=40_000)
    found = np.quantile(lower, 0.025), np.quantile(upper, 0.975)
    assert found == pytest.approx(exact_interval(right, 30), abs=0.01)


def test_the_digits_are_these_with_every_numpy_and_for_ever() -> None:
    assert interval([0.0, 0.25, 0.5, 0.5, 1.0]) == DIGITS
    assert interval([1.0, 0.5, 0.0, 0.25, 0.5]) == DIGITS  # the order of the problems is of no effect
    assert interval([0.0, 0.25, 0.5, 0.5, 1.0], seed=1) != DIGITS


def test_many_problems_have_the_normal_interval() -> None:
    values = np.random.default_rng(3).random(4_000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


@settings(max_examples=50, deadline=None)
@given(SHARES)
def test_an_interval_holds_the_mean_and_has_a_width(values: list[float]) -> None:
    low, high = interval(values, resamples=2_000)
    assert 0 <= low <= math.fsum(values) / len(values) <= high <= 1
    assert high - low > 0.05
    inner = interval(values, level=0.5, resamples=2_000)
    assert low <= inner[0] < inner[1] <= high


@settings(max_examples=25, deadline=None)
@given(SHARES)
def test_differences_have_an_interval_too(values: list[float]) -> None:
    shares, (low, high) = np.array(values), interval(values, resamples=500)
    stretched = interval(2 * shares - 1, support=(-1.0, 1.0), resamples=500)
    assert stretched == pytest.approx((2 * low - 1, 2 * high - 1), abs=2e-6)


def test_columns_have_the_intervals_that_each_has_alone() -> None:
    rng = np.random.default_rng(5)
    right = rng.binomial(8, rng.beta(0.4, 0.6, size=60)).tolist()
    values = np.array([[pass_at_k(8, c, k) for k in range(1, 9)] for c in right])
    together = intervals(values)
    assert together == [interval(column) for column in values.T]
    # the same weights for all: the bounds rise with k as the values do. The last ones are 0 or 1, so not resampled
    for bounds in zip(*together[:-1], strict=True):
        assert all(fewer < more for fewer, more in pairwise(bounds))


def test_an_interval_is_the_same_in_one_chunk_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 0.25, 1.0, 1.0]
    whole = interval(values, resamples=999)
    monkeypatch.setattr(passk, "CHUNK", 40)
    assert interval(values, resamples=999) == whole


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "no problems"),
        ([0.5, math.nan], "a problem's value of nan is outside 0.0..1.0; leave out what has no score"),
        ([0.5, -0.1], "-0.1 is outside"),
        ([1.5], "1.5 is outside"),
    ],
)
def test_values_without_an_interval_raise(values: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        interval(values)


@pytest.mark.parametrize(
    "cell",
    [simulation.Cell(30, "easy", 16, 8), simulation.Cell(30, "middling", 16, 8), simulation.Cell(15, "hard", 4, 1)],
)
def test_what_it_covers_where_the_percentile_bootstrap_fails(cell: simulation.Cell) -> None:
    methods = {name: simulation.METHODS[name] for name in ("ours", "percentile")}
    kept = simulation.simulate(cell, evaluations=600, resamples=1_000, methods=methods)
    assert kept["ours"].coverage >= TOLERATED
    assert kept["percentile"].coverage < 0.9


@pytest.mark.parametrize("n_and_k", [(1, 1), (4, 2), (16, 1)])
def test_what_it_covers_is_not_bought_with_width(n_and_k: tuple[int, int]) -> None:
    methods = {name: simulation.METHODS[name] for name in ("ours", "Student's t")}
    cell = simulation.Cell(100, "never or always", *n_and_k)
    kept = simulation.simulate(cell, evaluations=600, resamples=1_000, methods=methods)
    assert kept["ours"].coverage >= TOLERATED
    assert kept["ours"].width < 1.05 * kept["Student's t"].width


@pytest.mark.parametrize("rates", simulation.RATES)
def test_the_simulations_truth_is_the_mean_of_what_it_draws(rates: str) -> None:
    for n, k in simulation.SAMPLES_AND_K:
        cell = simulation.Cell(500, rates, n, k)
        means = cell.draw(400, np.random.default_rng(1)).mean(axis=1)
        assert means.mean() == pytest.approx(cell.truth(), abs=4 * means.std() / math.sqrt(len(means)))


@pytest.mark.parametrize(("freedom", "quantile"), [(10, 2.228), (14, 2.145), (29, 2.045), (99, 1.984)])
def test_the_simulations_quantiles_of_t_are_those_of_tables(freedom: int, quantile: float) -> None:
    assert simulation.t_quantile(freedom) == pytest.approx(quantile, abs=1e-3)


def test_the_simulation_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    simulation.main(["--problems", "11", "--detail", "11", "--evaluations", "1", "--resamples", "100"])
    printed = capsys.readouterr().out
    assert "| problems | ours | half unseen | percentile | BCa | Student's t | bootstrap-t |" in printed
    assert printed.count("pass@8") == len(simulation.RATES)
