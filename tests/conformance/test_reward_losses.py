"""Losses and measures of reward models: hand-computed values and gradients, and equality with TRL where it has them."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.recipes.reward_examples import Judged
from grpo_math.recipes.reward_objectives import Labelling, Ranking, StepLabelling
from grpo_math.reward_losses import balance, better_and_worse, bradley_terry, centring, cross_entropy
from grpo_math.reward_metrics import auc, calibration_error, comparison, f1, first_errors, labelling, summary

NAN = math.nan
LN2 = math.log(2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def with_gradient(scores: Tensor, loss: Any) -> tuple[float, list[float]]:
    scores = scores.clone().double().requires_grad_(True)
    value = loss(scores)
    value.backward()
    assert scores.grad is not None
    return float(value.detach()), scores.grad.tolist()


def example(*targets: float, margin: float | None = None) -> Judged:
    return Judged((), targets, margin)


# Comparisons


def test_bradley_terry_by_hand() -> None:
    """-log s(2 - 1) = 0.31326, its gradient -/+ s(-1); a margin of 1 makes it ln 2; and -log s at 1 - 3 = -2."""
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 3.0])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([0.313262, 2.126928], abs=1e-6)
    assert bradley_terry(chosen, rejected, torch.tensor([1.0, -2.0])).tolist() == pytest.approx([LN2, LN2])
    _, gradient = with_gradient(torch.tensor([2.0, 1.0]), lambda r: bradley_terry(r[:1], r[1:]).sum())
    assert gradient == pytest.approx([-sigmoid(-1), sigmoid(-1)])


def test_label_smoothing_weighs_both_ways_round_and_has_its_least_value_where_s_is_1_minus_e() -> None:
    d = 1.5
    by_hand = 0.9 * -math.log(sigmoid(d)) + 0.1 * -math.log(sigmoid(-d))
    assert bradley_terry(torch.tensor(d), torch.tensor(0.0), 0.0, 0.1).item() == pytest.approx(by_hand)
    least = math.log(0.9 / 0.1)
    _, gradient = with_gradient(torch.tensor([least, 0.0]), lambda r: bradley_terry(r[:1], r[1:], 0.0, 0.1).sum())
    assert gradient == pytest.approx([0, 0], abs=1e-7)
    assert bradley_terry(torch.tensor(60.0), torch.tensor(0.0), 0.0, 0.1).item() == pytest.approx(6.0)  # not infinite


def test_centring_pulls_the_sum_of_a_pair_to_zero() -> None:
    value, gradient = with_gradient(torch.tensor([2.0, 1.0]), lambda r: centring(r[:1], r[1:]).sum())
    assert value == 9
    assert gradient == [6, 6]
    assert centring(torch.tensor(1.5), torch.tensor(-1.5)).item() == 0


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("centre", [None, 0.01, 1.0])
def test_the_loss_of_pairs_is_that_of_trl(margins: bool, centre: float | None) -> None:
    pytest.importorskip("trl", reason="equality with TRL is checked where TRL is installed")
    from trl.trainer.reward_trainer import RewardTrainer

    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, generator=generator) * 3
    margin = torch.rand(6, generator=generator) if margins else None
    trainer: Any = object.__new__(RewardTrainer)
    trainer.args = SimpleNamespace(center_rewards_coefficient=centre)
    trainer.accelerator = SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x)
    names = ("num_tokens", "min_reward", "mean_reward", "max_reward", "accuracy", "margin")
    trainer._metrics = {"train": {name: [] for name in names}}
    trainer._total_train_tokens, trainer._tp_size = 0, 1

    class Model:
        training = True  # of the trainer's own, which asks whether it trains

        def __call__(self, **inputs: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=inputs["input_ids"][:, None])

    trainer.model = Model()

    def theirs(r: Tensor) -> Tensor:
        # TRL has all chosen ones before all rejected ones
        inputs = {"input_ids": torch.cat([r[0::2], r[1::2]]), "attention_mask": torch.ones(12, 1)}
        loss: Tensor = trainer.compute_loss(Model(), inputs | ({"margin": margin} if margins else {}))
        return loss

    ranking = Ranking(config.RewardLoss(centre=centre or 0.0))
    pairs = [example(1.0, 0.0, margin=None if margin is None else float(margin[i])) for i in range(6)]
    ours = with_gradient(scores, lambda r: ranking.loss(pairs, r, torch.full((12,), 1 / 6)))
    expected = with_gradient(scores, theirs)
    assert ours[0] == pytest.approx(expected[0], rel=1e-6)
    assert ours[1] == pytest.approx(expected[1], rel=1e-5)
    metrics = ranking.metrics(pairs, scores)
    assert metrics["accuracy"] == pytest.approx(trainer._metrics["train"]["accuracy"][0])
    assert metrics["margin"] == pytest.approx(trainer._metrics["train"]["margin"][0], rel=1e-5)
    assert metrics["mean"] == pytest.approx(trainer._metrics["train"]["mean_reward"][0], rel=1e-5)


def test_a_tie_of_scores_is_no_right_answer() -> None:
    found = comparison(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]))
    assert found == {"accuracy": 0.5, "margin": 1.0}


# K completions of a prompt


def test_all_pairs_in_one_pass_are_the_mean_of_k_choose_2_passes() -> None:
    """K = 4 without ties: value and gradient are the mean of those of the six pairs, each by itself."""
    rewards, scores = [0.5, 2.0, -1.0, 1.0], torch.tensor([0.3, -0.2, 1.1, 0.7])
    settings = config.RewardLoss(name="ranked", label_smoothing=0.1, centre=0.05)
    whole = with_gradient(scores, lambda r: Ranking(settings).loss([example(*rewards)], r, torch.ones(4)))
    value, gradient = 0.0, torch.zeros(4, dtype=torch.float64)
    pairs = [(i, j) for i, j in itertools.permutations(range(4), 2) if rewards[i] > rewards[j]]
    assert len(pairs) == math.comb(4, 2)
    for i, j in pairs:
        part, slope = with_gradient(
            scores[[i, j]], lambda r: Ranking(settings).loss([example(1.0, 0.0)], r, torch.ones(2))
        )
        value += part / 6
        gradient[[i, j]] += torch.tensor(slope, dtype=torch.float64) / 6
    assert whole[0] == pytest.approx(value)
    assert whole[1] == pytest.approx(gradient.tolist())


def test_ties_make_no_pair_and_the_mean_is_over_those_that_there_are() -> None:
    better, worse = better_and_worse(torch.tensor([1.0, 0.0, 1.0]))
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (2, 1)]
    assert len(better_and_worse(torch.tensor([NAN, 1.0]))[0]) == 0
    scores = torch.tensor([2.0, 1.0, 3.0])
    loss = Ranking(config.RewardLoss(name="ranked")).loss([example(1.0, 0.0, 1.0)], scores, torch.ones(3))
    assert loss.item() == pytest.approx((0.313262 + 0.126928) / 2, abs=1e-6)


def test_margins_come_from_the_column_or_from_the_rewards_or_not_at_all() -> None:
    scores = torch.tensor([2.0, 0.5])
    given = example(3.0, 1.0, margin=1.5)
    expected = {"column": 2.0 - 0.5 - 1.5, "rewards": 2.0 - 0.5 - 0.25 * 2.0, "none": 1.5}
    for source, d in expected.items():
        scale = {"margin_scale": 0.25} if source == "rewards" else {}
        settings = config.RewardLoss.model_validate({"margin": source, **scale})
        loss = Ranking(settings).loss([given], scores, torch.ones(2))
        assert loss.item() == pytest.approx(-math.log(sigmoid(d)))


def test_prompts_have_equal_weight_however_many_pairs_they_have() -> None:
    ranking = Ranking(config.RewardLoss(name="ranked"))
    some = [example(1.0, 0.0), example(3.0, 2.0, 1.0)]
    scores = torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0])
    weights = torch.tensor([weight for each in ranking.weights(some) for weight in each])
    first = -math.log(sigmoid(1))
    second = sum(-math.log(sigmoid(d)) for d in (2, 1, -1)) / 3
    assert ranking.loss(some, scores, weights).item() == pytest.approx((first + second) / 2)
    apart = sum(
        ranking.loss([one], part, w)
        for one, part, w in zip(some, scores.split([2, 3]), weights.split([2, 3]), strict=True)
    )
    assert float(apart) == pytest.approx((first + second) / 2)


# Labels


def test_cross_entropy_of_hard_and_soft_labels_by_hand() -> None:
    """Its gradient is s(r) - y; a step without a label has none, and is not counted."""
    scores, labels = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 0.0, 0.25, NAN])
    by_hand = [LN2, -math.log(sigmoid(-1)), -0.25 * math.log(sigmoid(2)) - 0.75 * math.log(sigmoid(-2)), 0]
    assert cross_entropy(scores, labels).tolist() == pytest.approx(by_hand)
    weights = torch.tensor(Labelling().weights([example(*labels.tolist())])[0])
    assert weights.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    value, gradient = with_gradient(
        scores, lambda r: Labelling().loss([example(*labels.tolist())], r, weights.double())
    )
    assert value == pytest.approx(sum(by_hand) / 3)
    assert gradient == pytest.approx([(0.5 - 1) / 3, sigmoid(1) / 3, (sigmoid(2) - 0.25) / 3, 0])


def test_it_is_the_cross_entropy_of_two_classes_that_token_classifiers_are_trained_by() -> None:
    """With r = logit_right - logit_wrong; steps without a label are transformers' -100."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, 2, generator=generator)
    labels = torch.randint(0, 2, (20,), generator=generator)
    labels[[3, 7]] = -100
    theirs = torch.nn.functional.cross_entropy(logits, labels)
    targets = torch.where(labels < 0, NAN, labels.float())
    some = [example(*part.tolist()) for part in targets.split([5, 15])]
    weights = torch.tensor([weight for each in Labelling().weights(some) for weight in each])
    assert Labelling().loss(some, logits[:, 1] - logits[:, 0], weights).item() == pytest.approx(theirs.item())


def test_balanced_labels_have_half_of_the_weight_each() -> None:
    labels = [1.0, 0.0, 0.0, 0.0, NAN]
    assert list(balance(torch.tensor(labels))) == pytest.approx([2, 2 / 3])
    balanced, scores = Labelling(labels), torch.zeros(5)
    weights = torch.tensor(balanced.weights([example(*labels)])[0])
    assert balanced.loss([example(*labels)], scores, weights).item() == pytest.approx(LN2)
    value, gradient = with_gradient(scores, lambda r: balanced.loss([example(*labels)], r, weights.double()))
    assert gradient[0] == pytest.approx(-sum(gradient[1:4]))
    assert value == pytest.approx(LN2)
    assert list(balance(torch.tensor([0.75, 0.75]))) == pytest.approx([2 / 3, 2])  # soft: the mass of each class


# Measures


def test_auc_is_the_share_of_pairs_in_order_with_ties_one_half() -> None:
    scores, right = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert auc(scores, right) == (1 + 1 + 0 + 0.5) / 4
    assert auc(scores, ~right) == 1 - 2.5 / 4
    assert auc(torch.zeros(4), right) == 0.5
    assert math.isnan(auc(scores, torch.ones(4, dtype=torch.bool)))
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(0, 6, (60,), generator=generator).float()
    good = torch.rand(60, generator=generator) < 0.3
    gaps = values[good][:, None] - values[~good][None, :]
    assert auc(values, good) == pytest.approx(float(((gaps > 0) + 0.5 * (gaps == 0)).double().mean()))


def test_labels_are_measured_where_there_are_some() -> None:
    scores, labels = torch.tensor([2.0, -1.0, 0.5, 9.0]), torch.tensor([1.0, 0.25, 0.5, NAN])
    found = labelling(scores, labels)
    assert found["accuracy"] == pytest.approx(2 / 3)  # 0.5 is wrong, and its score is above 0
    assert found["auc"] == 1
    assert found["right"] == pytest.approx(1 / 3)
    by_hand = (abs(sigmoid(2) - 1) + abs(sigmoid(-1) - 0.25) + abs(sigmoid(0.5) - 0.5)) / 3  # each in a bin of its own
    assert found["calibration"] == pytest.approx(by_hand)
    assert calibration_error(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])) == 0
    assert summary(torch.tensor([1.0, 3.0])) == {"mean": 2.0, "std": pytest.approx(math.sqrt(2))}
    assert summary(torch.tensor([4.0])) == {"mean": 4.0, "std": 0.0}


def test_where_a_solution_first_goes_wrong_by_hand() -> None:
    """Four with a wrong step, of which one is found, and two without, of which one is spared; one does not say."""
    labels = [
        (1.0, 0.0, 0.0),  # found
        (1.0, 0.0, NAN),  # called wrong too early
        (0.0, 0.0, 0.0),  # missed
        (1.0, 1.0, 0.0),  # called wrong too late is not possible; here not at all
        (1.0, 1.0),  # spared
        (1.0, 1.0),  # accused
        (NAN, 0.0),  # its first step may be wrong
    ]
    scores: list[list[float]] = [[1.0, -1, -1], [-1, 1, 1], [1, -1, -1], [1, 1, 1], [1, 2], [2, -1], [1, -1]]
    found = first_errors(scores, labels)
    assert found == {"found": 0.25, "spared": 0.5, "first_error_f1": pytest.approx(2 * 0.25 * 0.5 / 0.75)}
    assert f1(0.0, 0.0) == 0
    assert math.isnan(first_errors([[1.0]], [(1.0,)])["first_error_f1"])
    flat = torch.tensor([float(score) for some in scores for score in some])
    assert StepLabelling().metrics([example(*some) for some in labels], flat)["found"] == 0.25
