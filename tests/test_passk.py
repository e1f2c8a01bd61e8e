"""pass@k, majority and intervals against hand values and brute force."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.passk import bootstrap_interval, exact_interval, majority, mean_pass_at_k, pass_at_k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_equals_the_share_of_all_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    right = [1] * c + [0] * (n - c)
    subsets = list(combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-12)


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


def test_exact_interval_of_ten_thousand_trials() -> None:
    low, high = exact_interval(5_000, 10_000)
    assert (low, high) == pytest.approx((0.5 - 0.00985, 0.5 + 0.00985), abs=1e-4)


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_shares_raise(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        exact_interval(successes, trials)
