"""What goes wrong in silence when preferences are learnt: masks, padding, splits, and KTO's reference point."""

from __future__ import annotations

import pytest
import torch

from grpo_math import config
from grpo_math.backend.torch import TorchBackend
from grpo_math.examples.example import Labelled, Pair
from grpo_math.recipes.objectives import Paired, Unpaired, mismatched
from tests.tiny import completion, prompt, tiny_policy


@pytest.fixture(scope="module")
def policy():
    return tiny_policy(sharp=3.0)


def pair(policy, question: str, chosen: list[int], rejected: list[int]) -> Pair:
    return Pair(prompt(policy, question), completion(chosen), completion(rejected))


@pytest.fixture
def pairs(policy) -> list[Pair]:
    return [
        pair(policy, "1+1=", [9, 8, 7, 2], [9, 3]),
        pair(policy, "a much longer prompt than the others have", [5, 6], [5, 7, 9, 9, 9, 9, 9, 9]),
        pair(policy, "2", [4], [6, 4, 2]),
    ]


def trained(policy, objective: Paired, pairs: list[Pair], reference: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The gradient of every parameter."""
    policy.model.zero_grad()
    batch = objective.batch(pairs)
    loss = objective.loss(pairs, batch, None if reference is None else lambda _: reference, lambda _: torch.zeros(0))
    value, _ = loss(policy.logprobs(batch, 1.0, 64)[0], None, batch)
    value.backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters()} | {"loss": value.detach()}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-6, rtol=1e-4)


def test_a_sum_is_that_of_the_completion_tokens_alone(policy, pairs):
    """Against plain transformers, one completion at a time: the prompt has no part in it, and padding neither."""
    objective = Paired(config.PreferenceLoss(), policy.pad_id)
    sums = policy.logprobs(objective.batch(pairs), 1.0, 64)[0].sum(1)
    rows = [(p.prompt.token_ids, c.token_ids) for p in pairs for c in (p.chosen, p.rejected)]
    for (asked, said), value in zip(rows, sums, strict=True):
        logits = policy.model(torch.tensor([asked + said])).logits[0].log_softmax(-1)
        by_hand = sum(logits[len(asked) + t - 1, token] for t, token in enumerate(said))
        torch.testing.assert_close(value, by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "rpo", "ipo"])
def test_neither_company_nor_order_nor_splits_change_a_pair(policy, pairs, name):
    objective = Paired(config.PreferenceLoss(name=name), policy.pad_id)
    reference = torch.linspace(-9, -3, 6) if objective.method.reference else None
    whole = trained(policy, objective, pairs, reference)
    parts = [trained(policy, objective, [p], None if reference is None else reference[2 * i : 2 * i + 2])
             for i, p in enumerate(pairs)]  # fmt: skip
    assert_close(whole, {key: torch.stack([part[key] for part in parts]).mean(0) for key in whole})
    turned = None if reference is None else reference.view(-1, 2).flip(0).flatten()
    assert_close(whole, trained(policy, objective, pairs[::-1], turned))


def test_micro_batches_keep_pairs_together_and_change_nothing(pairs):
    after = []
    for budget in (8, 40, 4000):
        policy = tiny_policy(sharp=3.0)
        backend = TorchBackend(
            policy,
            config.Backend(),
            config.Optimizer(learning_rate=1e-2, eps=1e-4),
            10,
            micro_batch_tokens=budget,
            temperature=1.0,
        )
        objective = Paired(config.PreferenceLoss(), policy.pad_id)
        batch = objective.batch(pairs)
        for rows in batch.micro_batches(budget):
            assert [row // 2 for row in rows[0::2]] == [row // 2 for row in rows[1::2]]
            assert all(row % 2 == 0 for row in rows[0::2])
        for _ in range(3):
            loss = objective.loss(pairs, batch, lambda _: torch.full((6,), -20.0), lambda _: torch.zeros(0))
            metrics = backend.step(batch, loss)
        after.append((metrics, torch.cat([p.detach().flatten() for p in policy.model.parameters()])))
    for metrics, weights in after[1:]:
        assert metrics == pytest.approx(after[0][0], rel=1e-4, abs=1e-5)
        torch.testing.assert_close(weights, after[0][1], atol=2e-5, rtol=1e-4)


def test_ktos_reference_point_is_of_mismatched_pairs_and_has_no_gradient(policy):
    """z0 is of each prompt with another's completion, over the whole step; were it of the matching ones, or did the
    gradient go through it, the loss would push against itself."""
    examples = [
        Labelled(prompt(policy, "1+1="), completion([9, 8]), True),
        Labelled(prompt(policy, "2+2="), completion([7, 7, 2]), False),
        Labelled(prompt(policy, "3"), completion([4]), True),
    ]
    settings = config.PreferenceLoss(name="kto", beta=0.5, desirable_weight=1.5)
    objective = Unpaired(settings, policy.pad_id, room=128)
    batch = objective.batch(examples)
    asked = []

    def sums(rows):
        asked.append([tuple(row[: int(n)].tolist()) for row, n in zip(rows.token_ids, rows.lengths, strict=True)])
        return policy.logprobs(rows, 1.0, 64)[0].sum(1).detach()

    ref = torch.tensor([-12.0, -20.0, -7.0])
    loss = objective.loss(examples, batch, lambda rows: ref - float(len(asked) > 0), sums)
    others = [
        p.prompt.token_ids + c.completion.token_ids for p, c in zip(examples, examples[1:] + examples[:1], strict=True)
    ]
    assert asked == [others]

    logprobs = policy.logprobs(batch, 1.0, 64)[0]
    value, _ = loss(logprobs, None, batch)
    now = logprobs.sum(1)
    rows = objective.rows(mismatched(examples, 128))
    z0 = (policy.logprobs(rows, 1.0, 64)[0].sum(1).detach() - (ref - 1)).mean().clamp(min=0)
    ratio = 0.5 * (now - ref - z0)
    sign, weight = torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.5, 1.0, 1.5])
    by_hand = (weight * (1 - torch.sigmoid(sign * ratio))).mean()
    torch.testing.assert_close(value, by_hand)
    (grad,) = torch.autograd.grad(value, logprobs, retain_graph=True)
    (expected,) = torch.autograd.grad(by_hand, logprobs)
    torch.testing.assert_close(grad, expected)


def test_the_metrics_of_labelled_examples_are_means_of_their_class_whatever_the_split(policy):
    examples = [Labelled(prompt(policy, str(i)), completion([5 + i, 2]), i % 3 == 0) for i in range(5)]
    objective = Unpaired(config.PreferenceLoss(name="bco"), policy.pad_id, room=128)
    batch = objective.batch(examples)
    now = policy.logprobs(batch, 1.0, 64)[0].detach()
    loss = objective.loss(examples, batch, lambda _: torch.full((5,), -11.0), lambda rows: now.sum(1))
    totals: dict[str, float] = {}
    for rows in ([0, 4], [2], [1, 3]):
        part = batch.rows(rows)
        for name, value in loss(now[rows][:, : part.token_ids.shape[1]], None, part)[1].items():
            totals[name] = totals.get(name, 0.0) + float(value)
    good = torch.tensor([e.label for e in examples])
    assert totals["logprobs/chosen"] == pytest.approx(float(now.sum(1)[good].mean()), rel=1e-5)
    assert totals["logprobs/rejected"] == pytest.approx(float(now.sum(1)[~good].mean()), rel=1e-5)
    assert totals["implicit/chosen"] == pytest.approx(0.1 * (float(now.sum(1)[good].mean()) + 11), rel=1e-4)


def test_rows_that_only_keep_step_with_other_ranks_have_no_weight(policy, pairs):
    objective = Paired(config.PreferenceLoss(), policy.pad_id)
    batch = objective.batch(pairs).scale_weights(0.0)
    loss = objective.loss(pairs, batch, lambda _: torch.zeros(6), lambda _: torch.zeros(0))
    value, metrics = loss(policy.logprobs(batch, 1.0, 64)[0], None, batch)
    assert float(value) == 0
    assert all(float(part) == 0 for part in metrics.values())


def test_a_mismatch_is_of_another_prompt_and_no_longer_than_the_model_reads(policy):
    one, other = prompt(policy, "1+1="), prompt(policy, "a prompt of thirty characters!")
    examples = [
        Labelled(one, completion([9]), True),
        Labelled(one, completion([8]), False),
        Labelled(other, completion([7] * 40), True),
    ]
    pairs = mismatched(examples, room=36)
    assert [(p, c.token_ids) for p, c in pairs] == [(one, (7,) * 32), (one, (7,) * 32), (other, (9,))]
    assert mismatched(examples[:2], room=36) == []
    objective = Unpaired(config.PreferenceLoss(name="kto"), policy.pad_id, room=36)
    batch = objective.batch(examples[:2])
    loss = objective.loss(examples[:2], batch, lambda rows: torch.zeros(2), lambda rows: torch.zeros(0))
    assert bool(loss(policy.logprobs(batch, 1.0, 64)[0], None, batch)[0].isfinite())


def test_a_class_that_a_step_lacks_has_no_metrics(policy):
    examples = [Labelled(prompt(policy, str(i)), completion([5 + i, 2]), False) for i in range(2)]
    objective = Unpaired(config.PreferenceLoss(name="kto"), policy.pad_id, room=128)
    batch = objective.batch(examples)
    loss = objective.loss(examples, batch, lambda rows: torch.full((2,), -11.0), lambda rows: torch.full((2,), -11.0))
    _, metrics = loss(policy.logprobs(batch, 1.0, 64)[0], None, batch)
    assert {"logprobs/rejected", "implicit/rejected", "implicit/accuracy"} <= metrics.keys()
    assert not any("chosen" in name or name == "implicit/margin" for name in metrics)
