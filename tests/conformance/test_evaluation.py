"""CONFORMANCE.md, Evaluation: unbiased pass@k."""

from __future__ import annotations

import pytest

from grpo_math.passk import mean_pass_at_k, pass_at_k


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
