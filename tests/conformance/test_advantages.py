"""CONFORMANCE.md, section "Advantages": one test a row, named after the property, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import pytest
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.advantages import (
    ADVANTAGES,
    gpg,
    group_center,
    group_norm,
    group_norm_batch_scale,
    leave_one_out,
    maxrl,
    pass_at_k,
    reinforce_pp,
    reinforce_pp_baseline,
)

PER_GROUP = sorted(set(ADVANTAGES) - {"reinforce_pp"})  # those that look at the siblings


def rewards_of(*groups: Sequence[float]) -> Tensor:
    return torch.tensor(groups, dtype=torch.float32)


def random_rewards(seed: int, holes: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(6, 5, generator=generator)
    return rewards.masked_fill(torch.rand(6, 5, generator=generator) < 0.3, nan) if holes else rewards


def test_table_holds_what_the_configuration_can_name() -> None:
    assert list(ADVANTAGES) == list(config.AdvantageName.__args__)  # type: ignore[attr-defined]


def test_scale_by_group_batch_or_none() -> None:
    rewards = rewards_of([0, 1], [0, 10])
    half = 0.70711
    torch.testing.assert_close(group_norm(rewards), rewards_of([-half, half], [-half, half]), atol=1e-5, rtol=0)
    assert group_center(rewards).tolist() == [[-0.5, 0.5], [-5, 5]]
    std = (70.75 / 3) ** 0.5  # of 0, 1, 0, 10, whose mean is 2.75
    by_batch = rewards_of([-0.5, 0.5], [-5, 5]) / std
    torch.testing.assert_close(group_norm_batch_scale(rewards), by_batch, atol=1e-5, rtol=0)


def test_one_right_answer_of_four() -> None:
    rewards = rewards_of([1, 0, 0, 0])

    def first_two(advantages: Tensor) -> list[float]:
        assert advantages.shape == (1, 4)
        assert advantages[0, 1] == advantages[0, 2] == advantages[0, 3]
        return advantages[0, :2].tolist()

    assert first_two(group_norm(rewards, eps=1e-4)) == pytest.approx([1.4997, -0.4999], abs=1e-4)  # TRL
    assert first_two(group_norm(rewards)) == pytest.approx([1.499997, -0.499999], abs=1e-6)  # verl, slime, SkyRL
    assert first_two(group_norm(rewards, ddof=0)) == pytest.approx([1.7320, -0.5773], abs=1e-4)
    assert first_two(leave_one_out(rewards)) == pytest.approx([1, -0.3333], abs=1e-4)
    assert first_two(maxrl(rewards)) == pytest.approx([3, -1], abs=2e-5)
    assert first_two(gpg(rewards)) == pytest.approx([3, -1], abs=1e-6)
    assert first_two(group_center(rewards)) == [0.75, -0.25]


def test_one_right_answer_of_eight() -> None:
    rewards = rewards_of([1] + [0] * 7)
    assert group_norm(rewards, eps=0)[0, 0].item() == pytest.approx(2.4749, abs=1e-4)
    assert group_norm(rewards, eps=0, ddof=0)[0, 0].item() == pytest.approx(2.6458, abs=1e-4)


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("value", [0.95, 0.1, -0.3, 0.0, 1e8])
def test_constant_group_is_exactly_zero(name: str, value: float) -> None:
    assert (ADVANTAGES[name](rewards_of([value] * 7)) == 0).all()
    assert (ADVANTAGES[name](rewards_of([value] * 7 + [nan])) == 0).all()
    if name in PER_GROUP:
        beside = ADVANTAGES[name](rewards_of([value] * 7, [1, 0, 0, 0, 0, 0, 0]))
        assert (beside[0] == 0).all()
        assert beside[1, 0] > 0
    assert (group_norm_batch_scale(rewards_of([value] * 7)) == 0).all()


def test_uneven_groups_are_normalised_by_their_own_siblings() -> None:
    rewards = rewards_of([1, 0, 0, 0], [1, nan, 0, 0], [0, 1, 1, 0])
    advantages = group_norm(rewards, eps=0)
    assert advantages[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])
    third = (1 / 3) ** 0.5  # std of 1, 0, 0
    assert advantages[1].tolist() == pytest.approx([2 / 3 / third, 0, -1 / 3 / third, -1 / 3 / third])
    assert advantages[2].tolist() == pytest.approx([-0.8660254, 0.8660254, 0.8660254, -0.8660254])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_missing_score_is_not_zero(name: str) -> None:
    advantage = ADVANTAGES[name]
    missing = advantage(rewards_of([2, 1, nan], [4, 0, 3]))
    zero = advantage(rewards_of([2, 1, 0], [4, 0, 3]))
    assert missing[0, 2] == 0
    assert missing.isfinite().all()
    assert not torch.equal(missing[0, :2], zero[0, :2])
    # left out means: as if the completion had never been drawn
    without = advantage(rewards_of([2, 1], [nan, nan]))
    assert torch.equal(advantage(rewards_of([2, 1, nan], [nan, nan, nan]))[0, :2], without[0])


@pytest.mark.parametrize("name", ADVANTAGES)
def test_constant_group_is_exactly_zero_in_float64_too(name: str) -> None:
    rewards = torch.full((1, 7), 0.1, dtype=torch.float64)  # whose mean is not .1
    assert (rewards - rewards.sum() / 7 != 0).any()
    assert (ADVANTAGES[name](rewards) == 0).all()


@pytest.mark.parametrize("name", PER_GROUP)
def test_a_group_with_fewer_than_two_scores_teaches_nothing(name: str) -> None:
    advantages = ADVANTAGES[name](rewards_of([nan, 3, nan], [nan, nan, nan], [1, 0, 0]))
    assert (advantages[:2] == 0).all()
    assert (advantages[2] != 0).any()


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("seed", range(5))
def test_order_does_not_matter(name: str, seed: int) -> None:
    rewards = random_rewards(seed, holes=True)
    generator = torch.Generator().manual_seed(seed)
    groups, siblings = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    shuffled = ADVANTAGES[name](rewards[groups][:, siblings])
    torch.testing.assert_close(shuffled, ADVANTAGES[name](rewards)[groups][:, siblings], atol=1e-6, rtol=1e-6)
    assert shuffled.dtype == torch.float32
    assert shuffled.shape == rewards.shape


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"pass_at_k"}))
def test_advantages_of_a_batch_add_up_to_zero(name: str) -> None:
    advantages = ADVANTAGES[name](random_rewards(0, holes=True))
    assert (advantages.sum() if name == "reinforce_pp" else advantages.sum(1).abs().sum()).item() == pytest.approx(
        0, abs=1e-5
    )


def test_the_inputs_stay_as_they_were() -> None:
    rewards = random_rewards(0, holes=True)
    before = rewards.clone()
    for advantage in ADVANTAGES.values():
        advantage(rewards)
    assert torch.equal(rewards.nan_to_num(7), before.nan_to_num(7))


def test_reinforce_pp_is_whitened_over_the_batch() -> None:
    advantages = reinforce_pp(rewards_of([1, 1], [0, 0]), eps=0)
    assert advantages.tolist() == [pytest.approx([0.8660254] * 2), pytest.approx([-0.8660254] * 2)]


def test_reinforce_pp_baseline_centres_the_group_and_scales_by_the_batch() -> None:
    advantages = reinforce_pp_baseline(rewards_of([0, 1], [0, 10]), eps=0)
    std = ((0.5 + 50) / 3) ** 0.5  # of -.5, .5, -5, 5
    torch.testing.assert_close(advantages, rewards_of([-0.5, 0.5], [-5, 5]) / std)


def test_pass_at_k_pays_the_best_for_its_margin() -> None:
    advantages = pass_at_k(rewards_of([1, 5, 2, 2], [1, 1, 0, 0], [nan, -1, -3, nan]), eps=0)
    assert advantages[0].tolist() == pytest.approx([0, 3 / 3**0.5, 0, 0])  # std of 1, 5, 2, 2 is sqrt(9 / 3)
    assert advantages[1].tolist() == [0, 0, 0, 0]  # two right answers: neither is missed if it goes
    assert advantages[2].tolist() == pytest.approx([0, 2**0.5, 0, 0])


def test_gpg_scales_by_the_share_of_rewarded_completions() -> None:
    advantages = gpg(rewards_of([1, 0, 0, 0], [0, 0, nan, 0]))
    assert advantages[0].tolist() == pytest.approx([0.75 * 7, -0.25 * 7, -0.25 * 7, -0.25 * 7])  # 7 scored, 1 not 0
    assert (advantages[1] == 0).all()


def test_maxrl_never_turns_the_sign_round() -> None:
    assert (maxrl(rewards_of([0.5, -1, -1, -1])) == 0).all()
