"""Choosing among samples: the formulas against counting every subset by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from grpo_math.best_of import SUBSETS, auc, auc_interval, best_of_k, majority_of_k, sigmoid, subsets
from grpo_math.passk import majority, pass_at_k
from grpo_math.reward_metrics import auc as torch_auc

NAN = math.nan


def counted_best(scores: list[float], right: list[float], k: int) -> float:
    """Every subset, its best ones by hand."""
    found = []
    for chosen in combinations(range(len(scores)), k):
        known = [-math.inf if math.isnan(scores[i]) else scores[i] for i in chosen]
        best = [right[i] for i, score in zip(chosen, known, strict=True) if score == max(known)]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


def test_best_of_k_by_hand() -> None:
    # of the six pairs of 4 the best-scored one holds in three, the second in two, the third in one
    assert best_of_k([4, 3, 2, 1], [1, 0, 1, 0], 2) == pytest.approx((3 * 1 + 2 * 0 + 1 * 1) / 6)
    assert best_of_k([4, 3, 2, 1], [0, 1, 1, 1], 4) == 0.0
    assert best_of_k([1, 1, 0], [1, 0, 1], 2) == pytest.approx((0.5 + 1 + 0) / 3)  # {0,1} tied, {0,2}, {1,2}
    assert best_of_k([NAN, 0.1], [1, 0], 2) == 0.0
    assert best_of_k([NAN, NAN], [1, 0], 2) == 0.5


@pytest.mark.parametrize("seed", range(6))
def test_best_of_k_equals_counting_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 9
    scores = rng.integers(0, 4, n) / 3.0  # with many ties
    scores[rng.random(n) < 0.2] = NAN
    right = rng.integers(0, 2, n).astype(float)
    for k in range(1, n + 1):
        assert best_of_k(scores, right, k) == pytest.approx(counted_best(scores.tolist(), right.tolist(), k), abs=1e-12)


def test_what_best_of_k_comes_to_at_its_ends() -> None:
    right = [1.0, 0, 0, 1, 0, 0, 0]
    for k in range(1, 8):
        assert best_of_k(right, right, k) == pytest.approx(pass_at_k(7, 2, k))  # no score is better than the verdict
        assert best_of_k([5.0] * 7, right, k) == pytest.approx(2 / 7)  # a score that says nothing
    many = np.arange(2000.0)
    assert best_of_k(many, many % 2, 1000) == pytest.approx(2 / 3, abs=1e-3)  # 1/2 + 1/8 + 1/32 + ...: no overflow
    for k in (0, 8):
        with pytest.raises(ValueError, match=f"best of {k} cannot"):
            best_of_k(right, right, k)


def test_weighted_majority_by_hand() -> None:
    answers, right = ["1", "2", "2", None], [1.0, 0, 0, 0]
    assert majority_of_k(answers, right, 4) == 0.0
    assert majority_of_k(answers, right, 4, [0.9, 0.4, 0.4, 1.0]) == 1.0
    assert majority_of_k(answers, right, 4, [0.75, 0.25, 0.5, 1.0]) == 0.5  # tied, and shared
    assert majority_of_k(answers, right, 4, [0.3, 0.1, 0.2, 1.0]) == 0.5  # tied but for the rounding of 0.1 + 0.2
    assert majority_of_k(answers, right, 4, [0.9, 0.5, NAN, 1.0]) == 1.0
    assert majority_of_k(answers, right, 4, [0.0, 0.0, NAN, 0.0]) == 0.5  # weightless votes are votes
    assert majority_of_k(answers, right, 4, [NAN, NAN, NAN, 1.0]) == 0.0
    assert majority_of_k([None, None], [0, 0], 1) == 0.0
    with pytest.raises(ValueError, match=r"a weight of -0\.5"):
        majority_of_k(answers, right, 4, [1, 1, -0.5, 1])


@pytest.mark.parametrize("seed", range(6))
def test_majority_of_k_equals_counting_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 8
    answers = [None if a == 3 else str(a) for a in rng.integers(0, 4, n)]
    right = [float(a == "1") for a in answers]
    copies = rng.integers(0, 4, n)  # a weight of w is w copies of a vote
    for k in range(1, n + 1):
        plain, weighted = [], []
        for chosen in combinations(range(n), k):
            plain.append(majority([answers[i] for i in chosen], [right[i] for i in chosen]))
            voters = [i for i in chosen for _ in range(copies[i])]
            ballot = [answers[i] for i in voters]
            if any(ballot):
                weighted.append(majority(ballot, [right[i] for i in voters]))
            else:  # all votes are weightless: each answer has as much
                given = sorted({answers[i] for i in chosen} - {None}, key=str)
                weighted.append(float(np.mean([a == "1" for a in given])) if given else 0.0)
        assert majority_of_k(answers, right, k) == pytest.approx(np.mean(plain), abs=1e-12)
        assert majority_of_k(answers, right, k, copies) == pytest.approx(np.mean(weighted), abs=1e-12)


def test_many_subsets_are_drawn_and_always_the_same() -> None:
    rng = np.random.default_rng(0)
    answers = [str(a) for a in rng.integers(0, 3, 16)]
    right = [float(a == "0") for a in answers]
    exact = majority_of_k(answers, right, 8, most=math.comb(16, 8))
    drawn = majority_of_k(answers, right, 8)
    assert drawn == pytest.approx(exact, abs=3 * 0.5 / math.sqrt(SUBSETS))
    assert drawn != exact
    assert majority_of_k(answers, right, 8) == drawn
    rows = subsets(16, 8)
    assert rows.shape == (SUBSETS, 16)
    assert set(rows.sum(axis=1)) == {8.0}
    assert len(subsets(16, 16)) == 1


def test_auc_counts_pairs_and_is_that_of_the_reward_models_training() -> None:
    torch = pytest.importorskip("torch")
    assert math.isnan(auc([], []))
    assert auc([3, 1, 2, 2], [1, 0, 1, 0]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert math.isnan(auc([1, 2], [1, 1]))
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 9, 200) / 8.0, rng.integers(0, 2, 200)
    ahead = [(s > t) + (s == t) / 2 for s in scores[right == 1] for t in scores[right == 0]]
    assert auc(scores, right) == pytest.approx(sum(ahead) / len(ahead), abs=1e-12)
    assert torch_auc(torch.tensor(scores), torch.tensor(right).bool()) == auc(scores, right)


def test_sigmoids_by_hand() -> None:
    assert sigmoid([0.0, math.log(3), -1e4, 1e4]).tolist() == pytest.approx([0.5, 0.75, 0.0, 1.0])
    assert sigmoid(-40.0) == pytest.approx(math.exp(-40), rel=1e-12)  # a product of such ones is not yet 0
    assert math.isnan(sigmoid(NAN))


def test_the_interval_of_an_auc_is_wide_for_few_problems_and_never_nothing() -> None:
    rng = np.random.default_rng(0)

    def drawn(problems: int) -> tuple[float, float, float]:
        right = rng.integers(0, 2, problems * 4)
        scores = right + rng.normal(size=problems * 4)
        bounds = auc_interval(scores, right, np.repeat(np.arange(problems), 4))
        assert bounds is not None
        low, high = bounds
        return low, auc(scores, right), high

    few, many = drawn(10), drawn(400)
    for low, value, high in (few, many):
        assert 0 <= low < value < high <= 1
    assert many[2] - many[0] < 0.1 < few[2] - few[0]
    assert many[0] < 0.760 < many[2]  # two normals one apart: Phi(1 / sqrt 2)
    low, high = auc_interval([2, 1, 2, 1], [1, 0, 1, 0], [0, 0, 1, 1]) or (0, 0)
    assert low < 0.9
    assert high == 1.0
    assert auc_interval([1, 2], [0, 0], [0, 1]) is None
