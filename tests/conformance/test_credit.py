"""Advantages of tokens: GAE, rewards to go, whitening, the critic's loss, steps and vines, by hand."""

from __future__ import annotations

import pytest
import torch

from grpo_math.advantages import group_norm
from grpo_math.process import process_advantages, step_advantages, sums_from
from grpo_math.returns import explained_variance, gae, to_go, token_rewards, value_loss, whiten

MASK = torch.tensor([[False, True, True, True, False], [False, False, True, True, False]])
NOISE = torch.tensor([[9.0, 0, 0, 0, 7], [float("nan"), 9, 0, 0, 5]])  # outside the mask: never looked at


def test_the_reward_is_the_last_token_s_and_the_penalty_each_token_s():
    penalty = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0], [0, 0, 0.4, 0.5, 0]])
    given = token_rewards(torch.tensor([1.0, -1.0]), penalty + torch.where(MASK, 0.0, NOISE), MASK)
    assert torch.allclose(given, torch.tensor([[0, -0.1, -0.2, 0.7, 0], [0, 0, -0.4, -1.5, 0]]))


def test_a_completion_that_is_not_trained_has_no_rewards():
    given = token_rewards(torch.tensor([1.0]), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool))
    assert given.tolist() == [[0.0, 0.0, 0.0]]


def test_gae_by_hand():
    """gamma .9, lambda .5: delta = (0 + .9 * .4 - .2, 0 + .9 * .6 - .4, 1 - .6) = (.16, .14, .4);
    A_3 = .4, A_2 = .14 + .45 * .4 = .32, A_1 = .16 + .45 * .32 = .304."""
    rewards = torch.tensor([[0.0, 0, 0, 1, 0]])
    values = torch.tensor([[5.0, 0.2, 0.4, 0.6, 5]])
    found = gae(rewards, values, MASK[:1], gamma=0.9, lam=0.5)
    assert torch.allclose(found, torch.tensor([[0, 0.304, 0.32, 0.4, 0]]))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_is_monte_carlo_at_lambda_1_and_one_step_at_0(gamma):
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    known = torch.where(MASK, values, 0.0)
    assert torch.allclose(gae(rewards, values, MASK, gamma, 1.0), to_go(rewards, MASK, gamma) - known, atol=1e-6)
    following = torch.cat([known[:, 1:], torch.zeros(2, 1)], dim=1)
    one_step = torch.where(MASK, rewards + gamma * following - known, 0.0)
    assert torch.allclose(gae(rewards, values, MASK, gamma, 0.0), one_step, atol=1e-6)


def test_with_a_perfect_critic_every_advantage_is_zero():
    rewards = torch.tensor([[0.0, 0, 0, 1, 0]])
    assert gae(rewards, torch.ones(1, 5), MASK[:1], 1.0, 0.95).abs().max() < 1e-7


def test_rewards_to_go():
    rewards = torch.tensor([[3.0, 1, 2, 4, 3], [3, 3, 5, 7, 3]])
    assert to_go(rewards, MASK).tolist() == [[0, 7, 6, 4, 0], [0, 0, 12, 7, 0]]
    assert torch.allclose(to_go(rewards, MASK, 0.5)[0], torch.tensor([0, 1 + 1 + 1, 2 + 2, 4.0, 0]))


def test_what_lies_outside_the_mask_is_never_looked_at():
    rewards, values = torch.where(MASK, 1.0, NOISE), torch.where(MASK, 0.5, NOISE)
    for found in (gae(rewards, values, MASK), to_go(rewards, MASK), whiten(values, MASK)):
        assert bool(found.isfinite().all())
        assert not found[~MASK].any()


def test_whitening_over_all_tokens_of_the_step():
    """1, 2, 3, 4, 5: mean 3, unbiased variance 2.5."""
    advantages = torch.zeros(2, 5).masked_scatter(MASK, torch.tensor([1.0, 2, 3, 4, 5]))
    expected = (torch.tensor([1.0, 2, 3, 4, 5]) - 3) / 2.5**0.5
    assert torch.allclose(whiten(advantages, MASK)[MASK], expected)
    alone = torch.zeros(1, 3, dtype=torch.bool)
    alone[0, 1] = True
    assert whiten(torch.full((1, 3), 4.0), alone).tolist() == [[0.0, 0.0, 0.0]]
    for equal in (4.0, 0.1, 0.95):  # and not the rounding error of their mean
        assert whiten(torch.full((2, 5), equal), MASK).abs().max() == 0


def test_the_value_loss_and_its_clip():
    """V_old = 0, c = .2. Towards its target and past the bound: the value 1 counts as .2, (.2 - 1)^2 / 2 = .32 > 0, no
    gradient. Away from it: (-1 - 1)^2 / 2 = 2 against (-.2 - 1)^2 / 2 = .72: the larger, with its gradient V - R."""
    values = torch.tensor([1.0, -1.0, 0.1], requires_grad=True)
    loss = value_loss(values, torch.zeros(3), torch.ones(3), 0.2)
    assert torch.allclose(loss, torch.tensor([0.32, 2.0, 0.405]))
    loss.sum().backward()
    assert torch.allclose(values.grad, torch.tensor([0.0, -2.0, -0.9]))
    free = value_loss(values, torch.zeros(3), torch.ones(3), None)
    assert torch.allclose(free, torch.tensor([0.0, 2.0, 0.405]))


def test_explained_variance():
    mask = torch.ones(1, 4, dtype=torch.bool)
    targets = torch.tensor([[0.0, 1, 2, 3]])
    assert explained_variance(targets, targets, mask) == 1
    assert explained_variance(torch.full((1, 4), 1.5), targets, mask) == 0
    assert explained_variance(-targets, targets, mask) == -3
    assert explained_variance(targets, torch.ones(1, 4), mask) != explained_variance(targets, targets, mask)


def test_process_advantages_without_a_scale():
    """Mean 2/3: what is left of each step, and not a standard deviation of it."""
    first, second = process_advantages([[(1, 1.0), (3, 0.0)], [(2, 1.0)]], [5, 3], scale="none")
    assert first.tolist() == pytest.approx([-1 / 3, -1 / 3, -2 / 3, -2 / 3, 0])
    assert second.tolist() == pytest.approx([1 / 3] * 3)
    nearly = process_advantages([[(0, 0.98)], [(0, 0.99)]], [1, 1], scale="none")
    assert [float(a) for a in nearly] == pytest.approx([-0.005, 0.005])


def test_process_advantages_by_hand():
    """Steps of the two completions: (1, 0) and (1). R = (1, 0, 1): mean 2/3, unbiased std 1/sqrt 3.
    Normalised: 1/sqrt 3 and -2/sqrt 3; the first's tokens get -1/sqrt 3 up to the end of step 1, then -2/sqrt 3."""
    first, second = process_advantages([[(1, 1.0), (3, 0.0)], [(2, 1.0)]], [5, 3], eps=0.0)
    root = 3**-0.5
    assert torch.allclose(first, torch.tensor([-root, -root, -2 * root, -2 * root, 0]))
    assert torch.allclose(second, torch.tensor([root, root, root]))


def test_with_one_step_each_it_is_the_outcome_advantage():
    rewards = [1.0, 0.0, 0.25, 1.0]
    found = process_advantages([[(2, r)] for r in rewards], [3] * 4)
    outcome = group_norm(torch.tensor([rewards]))[0]
    assert torch.equal(torch.stack(found), outcome[:, None].expand(4, 3))


def test_steps_without_a_score_and_equal_steps():
    found = process_advantages([[(0, 1.0), (1, 1.0)], None, [(1, 1.0)]], [2, 2, 2])
    assert [a.tolist() for a in found] == [[0.0, 0.0]] * 3
    alone = process_advantages([[(1, 0.95)], None], [2, 1])
    assert [a.tolist() for a in alone] == [[0.0, 0.0], [0.0]]
    many = process_advantages([[(t, 0.95) for t in range(7)]], [7])
    assert many[0].tolist() == [0.0] * 7  # the float mean of seven .95 is not .95


def test_two_steps_that_end_in_one_token_are_added():
    assert sums_from([(1, 2.0), (1, 3.0)], 3).tolist() == [5.0, 5.0, 0.0]


def test_step_advantages_of_values():
    """V = .5, .75, (unknown), 0: the unknown one is taken for .75, so its step neither gains nor loses."""
    found = step_advantages([1, 3, 4], [0.5, 0.75, None, 0.0], 6)
    assert found.tolist() == [0.25, 0.25, 0.0, 0.0, -0.75, 0.0]
    assert step_advantages([], [0.5], 2).tolist() == [0.0, 0.0]
