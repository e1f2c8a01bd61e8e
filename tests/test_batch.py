"""Rows, masks, micro-batches and shares of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch

from grpo_math.batch import make_batch, pad_rows
from grpo_math.losses import REDUCTIONS
from grpo_math.recipes.credit import Rewards
from grpo_math.recipes.grpo import without_signal
from grpo_math.rewards import group_rewards
from grpo_math.types import Problem, Prompt
from tests.tiny import completion, group


def rows(*lengths):
    asked = Prompt(Problem("p", "t", "q", "1"), (7, 8), "q")
    return pad_rows([(asked, completion([5] * n)) for n in lengths], [True] * len(lengths), 0)


def test_micro_batches_hold_every_row_once_within_the_budget():
    batch = rows(3, 17, 4, 9, 9, 1, 30)
    parts = batch.micro_batches(40)
    assert sorted(i for part in parts for i in part) == list(range(7))
    for part in parts:
        assert len(part) == 1 or len(part) * int(batch.lengths[part].max()) <= 40


def test_a_row_longer_than_the_budget_is_alone():
    assert rows(30, 1).micro_batches(8) == [[0], [1]]


def test_rows_are_cut_to_the_longest_of_them():
    batch = rows(3, 17)
    assert batch.rows([0]).token_ids.shape == (1, 5)
    assert batch.rows([]).token_ids.shape == (0, 0)


def test_the_weights_are_those_of_the_whole_step():
    groups = [group([1.0, 0.0], [2, 8])]
    batch = make_batch(groups, REDUCTIONS["token_mean"], 16, 0, mask_truncated=False)
    short, long = batch.rows([0]), batch.rows([1])
    assert torch.allclose(short.weights[short.loss_mask], torch.tensor(0.1))
    assert torch.allclose(long.weights[long.loss_mask], torch.tensor(0.1))


def test_advantages_reach_the_trained_tokens_only():
    batch = make_batch([group([1.0, 0.0], [2, 3])], REDUCTIONS["token_mean"], 16, 0, mask_truncated=False)
    batch = batch.with_advantages(torch.tensor([2.0, -1.0]))
    assert batch.advantages[0].tolist() == [0, 0, 0, 2, 2, 0]
    assert batch.advantages[1].tolist() == [0, 0, 0, -1, -1, -1]


def test_a_group_is_without_signal_where_no_token_has_an_advantage():
    """Whatever the rewards come from; what dynamic sampling left out counts with them."""
    groups = [
        group([1.0, 0.0], [2, 3]),
        group([1.0, 1.0], [2, 3]),
        group([None, None], [2, 3]),
        group([1.0, None], [2, 3]),
    ]
    batch = make_batch(groups, REDUCTIONS["token_mean"], 16, 0, mask_truncated=False)
    rewards = Rewards(group_rewards(groups, 16, 0, 0.0))
    by_group = batch.with_advantages(torch.tensor([0.7, -0.7, 0.0, 0.0, 0.0]))
    assert without_signal(by_group, rewards, 0) == 0.75
    assert without_signal(by_group, rewards, 4) == 0.875
    of_a_critic = batch.with_advantages(torch.tensor([0.7, -0.7, 0.1, 0.0, -0.2]))
    assert without_signal(of_a_critic, rewards, 0) == 0.25


def test_equal_siblings_are_one_row_with_their_weights_together():
    batch = rows(3, 5, 3, 3, 5)
    batch = replace(batch, weights=batch.loss_mask / 8).with_advantages(torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0]))
    merged = batch.merge_copies()
    assert merged.copies.tolist() == [2, 2, 1]  # the last short one has another advantage
    assert merged.lengths.tolist() == [5, 7, 5]
    assert merged.weights.sum(1).tolist() == [6 / 8, 10 / 8, 3 / 8]
    assert merged.advantages.abs().sum(1).tolist() == [3, 5, 3]


def test_rows_that_differ_in_a_logprob_are_not_merged():
    batch = rows(3, 3).with_advantages(torch.ones(2))
    batch.sampler_logprobs[1, -1] = -0.5
    assert batch.merge_copies().copies.tolist() == [1, 1]
    assert len(batch.rows([]).merge_copies()) == 0
