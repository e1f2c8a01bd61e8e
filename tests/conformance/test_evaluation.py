"""CONFORMANCE.md, Evaluation: unbiased pass@k, and intervals that are not certain of what they cannot know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.passk import interval, mean_pass_at_k, pass_at_k


def test_fewer_wrong_samples_than_k_is_one() -> None:
    assert pass_at_k(4, 1, 4) == 1.0


@pytest.mark.parametrize(
    ("n", "c", "k"), [(2, 0, 5), (2, 3, 1), (2, -1, 1), (2, 1, 0), (2, 1, -1), (0, 0, 1), (-1, -1, 1)]
)
def test_what_was_not_sampled_raises(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be within"):
        pass_at_k(n, c, k)


def test_k_of_one_is_the_mean() -> None:
    for n in range(1, 65):
        for c in range(n + 1):
            assert pass_at_k(n, c, 1) == pytest.approx(c / n, abs=1e-14)
    assert mean_pass_at_k([(8, 2), (8, 6), (4, 4)], 1) == pytest.approx((0.25 + 0.75 + 1) / 3)


def test_it_is_not_the_biased_estimate() -> None:
    # 2 of 4 right, k = 2: 1 - C(2,2)/C(4,2) = 5/6; the biased 1 - (1 - c/n)^k gives 3/4
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)


def test_it_is_the_estimator_of_humaneval() -> None:
    # Chen et al. 2021, arXiv:2107.03374, figure 3, as its authors evaluate it with numpy
    for n in range(1, 33):
        for c in range(n + 1):
            for k in range(1, n + 1):
                published = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
                assert pass_at_k(n, c, k) == pytest.approx(published, abs=1e-14)


@given(st.integers(1, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.floats(0, 1))
def test_its_mean_over_all_outcomes_is_what_it_estimates(n_and_k: tuple[int, int], p: float) -> None:
    n, k = n_and_k
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = math.fsum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("problems", [1, 30, 164, 1319])
def test_problems_that_all_fail_or_all_succeed_leave_a_doubt(problems: int) -> None:
    # the rate at which as many in a row have a chance of 2.5 %
    unseen = 1 - 0.025 ** (1 / problems)
    assert interval([0.0] * problems) == pytest.approx((0, unseen), abs=1e-6)
    assert interval([1.0] * problems) == pytest.approx((1 - unseen, 1), abs=1e-6)


def test_the_same_values_have_the_same_interval() -> None:
    values = [pass_at_k(16, c, 4) for c in (0, 0, 1, 3, 7, 12, 16, 16)]
    assert interval(values) == interval(list(reversed(values)))
