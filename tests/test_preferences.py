"""Preference losses: values and gradients worked out by hand, at initialisation, at extremes, and split into parts."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_math.config_preference import READS, UNPAIRED, PreferenceLoss
from grpo_math.preferences.inputs import Pairs, Singles
from grpo_math.preferences.table import PREFERENCES, make_preference
from grpo_math.preferences.unpaired import RunningMean, bco_baseline, class_weights, kto_baseline
from tests.preference_pairs import (
    PAIRED,
    every_setting,
    four_singles,
    loss_and_gradients,
    preference,
    random_pairs,
    tensor,
    two_pairs,
)

# By hand: two_pairs() with beta 0.5. s is the sigmoid, nls(x) = -log s(x), whose derivative is -s(-x).


def s(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    return log(1 + exp(-x))


def of_difference(*values: tuple[float, float], scale: float = 0.5) -> list[tuple[float, float, float]]:
    """(loss, its derivative by d = r_chosen - r_rejected) of each pair -> gradients by the two log-probabilities."""
    return [(value, slope * scale, -slope * scale) for value, slope in values]


def discopop_by_hand(d: float) -> tuple[float, float]:
    gate = s(d / 0.5)
    gate_slope = gate * (1 - gate) / 0.5
    return (1 - gate) * nls(d) + gate * exp(-d), gate_slope * (exp(-d) - nls(d)) - (1 - gate) * s(-d) - gate * exp(-d)


def exo_by_hand(d: float) -> tuple[float, float]:
    # log s(d) - log s(-d) = d, and the derivatives of p log p's second factors cancel
    return s(d) * (log(s(d)) - log(0.9)) + s(-d) * (log(s(-d)) - log(0.1)), s(d) * s(-d) * (d - log(9))


def log_odds(m: float) -> float:
    return log(exp(m) / (1 - exp(m)))


# Rewards: r_chosen 0.5 and -0.5, r_rejected -0.5 and 0, hence d = 1 and -0.5. Means of log-ratios: 0.5, -0.25 and
# -0.2, 0. Means of logprobs: -1, -1.5 and -1, -2. p3o: a = 1 - 0.5 * 1.95 = 0.025 and 0.5 + 0.5 * 1.3 = 1.15.
BY_HAND: list[tuple[str, dict[str, Any], list[tuple[float, float, float]]]] = [
    ("dpo", {}, of_difference((nls(1), -s(-1)), (nls(-0.5), -s(0.5)))),
    ("rso", {}, of_difference((nls(1), -s(-1)), (nls(-0.5), -s(0.5)))),
    (
        "cdpo",
        {"label_smoothing": 0.1},
        of_difference((0.9 * nls(1) + 0.1 * nls(-1), s(1) - 0.9), (0.9 * nls(-0.5) + 0.1 * nls(0.5), s(-0.5) - 0.9)),
    ),
    (
        "robust",
        {"label_smoothing": 0.1},
        of_difference(
            ((0.9 * nls(1) - 0.1 * nls(-1)) / 0.8, (-0.9 * s(-1) - 0.1 * s(1)) / 0.8),
            ((0.9 * nls(-0.5) - 0.1 * nls(0.5)) / 0.8, (-0.9 * s(0.5) - 0.1 * s(-0.5)) / 0.8),
        ),
    ),
    # h = 0.7 and -0.25 against 1 / (2 beta) = 1
    ("ipo", {}, [(0.09, -0.6 / 2, 0.6 / 5), (1.5625, -2.5 / 4, 2.5 / 2)]),
    ("slic", {"margin": 0.3}, of_difference((0, 0), (0.8, -1))),
    (
        "dpo_norm",
        {},
        [
            (nls(0.35), -0.5 * s(-0.35) / 2, 0.5 * s(-0.35) / 5),
            (nls(-0.125), -0.5 * s(0.125) / 4, 0.5 * s(0.125) / 2),
        ],
    ),
    ("discopop", {"discopop_tau": 0.5}, of_difference(discopop_by_hand(1), discopop_by_hand(-0.5))),
    ("exo_pair", {"label_smoothing": 0.1}, of_difference(exo_by_hand(1), exo_by_hand(-0.5))),
    # dpo + 2 * (2 / 2), dpo + 2 * (6 / 4)
    (
        "rpo",
        {"sft_weight": 2.0},
        [
            (nls(1) + 2, -0.5 * s(-1) - 1, 0.5 * s(-1)),
            (nls(-0.5) + 3, -0.5 * s(0.5) - 0.5, 0.5 * s(0.5)),
        ],
    ),
    (
        "apo_zero",
        {},
        [
            (2 * s(-0.5), -0.5 * s(0.5) * s(-0.5), 0.5 * s(0.5) * s(-0.5)),
            (s(0.5) + 0.5, -0.5 * s(0.5) * s(-0.5), 0.5 * 0.25),
        ],
    ),
    (
        "apo_down",
        {},
        [
            (s(0.5) + s(-1), 0.5 * (s(0.5) * s(-0.5) - s(1) * s(-1)), 0.5 * s(1) * s(-1)),
            (s(-0.5) + s(0.5), 0.0, 0.5 * s(0.5) * s(-0.5)),
        ],
    ),
    ("bco_pair", {}, [(2 * nls(0.5), -0.5 * s(-0.5), 0.5 * s(-0.5)), (nls(-0.5) + log(2), -0.5 * s(0.5), 0.25)]),
    (
        "nca",
        {},
        [
            (nls(0.5) + (nls(-0.5) + nls(0.5)) / 2, 0.5 * (s(0.5) / 2 - s(-0.5)), 0.25 * s(-0.5)),
            (nls(-0.5) + (nls(0.5) + log(2)) / 2, 0.5 * (s(-0.5) / 2 - s(0.5)), 0.125),
        ],
    ),
    # targets 1 and -1: (1 - 1)^2 + (-1 + 1)^2 and (-1 - 1)^2 + (0 + 1)^2
    ("sppo_hard", {}, [(0, 0, 0), (5, -4, 2)]),
    # d = -0.5 + 0.5 - 0.3 and -0.75 + 1 - 0.3
    (
        "simpo",
        {"margin": 0.3},
        [
            (nls(-0.3), -0.5 * s(0.3) / 2, 0.5 * s(0.3) / 5),
            (nls(-0.05), -0.5 * s(0.05) / 4, 0.5 * s(0.05) / 2),
        ],
    ),
    # the first pair is equally likely per token; d log_odds / d log p = 1 / (1 - p)
    (
        "orpo",
        {},
        [
            (1 + 0.5 * log(2), -0.5 - 0.25 / (1 - exp(-1)) / 2, 0.25 / (1 - exp(-1)) / 5),
            (
                1.5 + 0.5 * nls(log_odds(-1.5) - log_odds(-2)),
                -0.25 - 0.5 * s(log_odds(-2) - log_odds(-1.5)) / (1 - exp(-1.5)) / 4,
                0.5 * s(log_odds(-2) - log_odds(-1.5)) / (1 - exp(-2)) / 2,
            ),
        ],
    ),
    (
        "cpo",
        {"sft_weight": 2.0},
        [(nls(1.5) + 2, -0.5 * s(-1.5) - 1, 0.5 * s(-1.5)), (nls(-1) + 3, -0.5 * s(1) - 0.5, 0.5 * s(1))],
    ),
    ("sft", {}, [(1, -1 / 2, 0), (1.5, -1 / 4, 0)]),
    # first pair: inside the range, the two terms cancel in value. Second: chosen is clipped at 1.2, rejected is not
    (
        "p3o",
        {"clipping": "separate"},
        [
            (0, -0.025 * exp(0.15) / 2, 0.025 * exp(0.15) / 2),
            (-1.15 * (1.2 * exp(0.1) - exp(0.5)) / 2, 0, 1.15 * exp(0.5) / 2),
        ],
    ),
    # log quotients 0.05 and 0.3, the second clipped at log 1.2
    (
        "p3o",
        {"clipping": "joint"},
        [
            (-exp(0.15) * 0.025 * 0.05 / 2, -0.025 * exp(0.15) / 2, 0.025 * exp(0.15) / 2),
            (-exp(0.5) * 1.15 * log(1.2) / 2, 0, 0),
        ],
    ),
]


@pytest.mark.parametrize(("name", "values", "wanted"), BY_HAND, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BY_HAND)])
def test_values_and_gradients_by_hand(
    name: str, values: dict[str, Any], wanted: list[tuple[float, float, float]]
) -> None:
    cfg = preference(name, **values, **({"beta": 0.5} if "beta" in READS[name] else {}))
    found = torch.stack(loss_and_gradients(two_pairs(), cfg), 1)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_every_paired_method_is_worked_out_by_hand() -> None:
    assert {name for name, _, _ in BY_HAND} == set(PAIRED)


def test_unpaired_by_hand() -> None:
    # kto: u = 0.5 * (1, -1, -1, 0) - 0.5 * 0.4; bco: v = 0.5 * (1, -1, -1, 0) - 0.2. Both (0.3, -0.7, -0.7, -0.2)
    weights = {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 2.0}
    wanted = {
        "kto": (0.4, [(-1.5, 0.3), (-1.5, -0.7), (2, -0.7), (2, -0.2)]),
        "bco": (0.2, [(-1.5, 0.3), (-1.5, -0.7), (2, -0.7), (2, -0.2)]),
    }
    assert set(wanted) == set(UNPAIRED)
    for name, (baseline, signed) in wanted.items():
        singles = four_singles()
        loss = PREFERENCES[name].loss(singles, tensor(baseline).squeeze(), preference(name, **weights))
        (grad,) = torch.autograd.grad(loss.sum(), singles.logprobs)
        for i, (signed_weight, u) in enumerate(signed):
            wrong = math.copysign(1, signed_weight) * u  # above 0 on the wrong side of the baseline
            value, slope = (s(wrong), s(u) * s(-u)) if name == "kto" else (nls(-wrong), s(wrong))
            assert loss[i].item() == pytest.approx(abs(signed_weight) * value, rel=1e-9)
            assert grad[i].item() == pytest.approx(signed_weight * 0.5 * slope, rel=1e-9)


def test_baselines_and_class_weights() -> None:
    assert kto_baseline(tensor(3, -1, 1)).item() == 1
    assert kto_baseline(tensor(-3, 1)).item() == 0
    assert not kto_baseline(tensor(1, 2).requires_grad_()).requires_grad
    state = bco_baseline(bco_baseline(RunningMean(), tensor(1, 2)), tensor(0.5))
    assert state == RunningMean(mean=1.0, steps=2)  # of 1.5 and 0.5: each step counts once
    cfg = preference("kto", desirable_weight=3.0)
    assert class_weights(torch.tensor([True, False]), cfg).tolist() == [3, 1]


# what follows when the policy is the reference and every log-ratio is 0, with the defaults
AT_START = {
    "dpo": log(2), "cdpo": log(2), "robust": log(2), "ipo": 25.0, "slic": 1.0, "rso": log(2), "dpo_norm": log(2),
    "discopop": (log(2) + 1) / 2, "exo_pair": log(0.5) - (log(0.999) + log(0.001)) / 2, "apo_zero": 1.0,
    "apo_down": 1.0, "bco_pair": 2 * log(2), "nca": 2 * log(2), "sppo_hard": 50.0, "p3o": 0.0,
}  # fmt: skip
# the sign of the chosen completion's gradient where it is not -1 (up); discopop's docstring says more
PUSHES = {"apo_down": 0, "discopop": 1}


def test_at_initialisation() -> None:
    pairs = random_pairs()
    start = replace(pairs, ref_chosen=pairs.chosen.detach(), ref_rejected=pairs.rejected.detach())
    start = replace(start, old_chosen=start.ref_chosen, old_rejected=start.ref_rejected)
    for name, value in AT_START.items():
        loss, chosen, rejected = loss_and_gradients(start, preference(name))
        torch.testing.assert_close(loss, torch.full_like(loss, value), msg=name)
        if name == "p3o":  # on policy: minus a / 2
            assert start.chosen_reward is not None
            assert start.rejected_reward is not None
            torch.testing.assert_close(chosen, (start.rejected_reward - start.chosen_reward) / 2)
            torch.testing.assert_close(rejected, -chosen)
        else:
            assert chosen.sign().unique().tolist() == [PUSHES.get(name, -1)], name
    for beta in (0.01, 0.3):
        loss, *_ = loss_and_gradients(start, preference("ipo", beta=beta))
        torch.testing.assert_close(loss, torch.full_like(loss, 1 / (4 * beta**2)))
    singles = replace(four_singles(), ref_logprobs=tensor(-2, -6, -5, -4))
    for name, value in (("kto", 0.5), ("bco", log(2))):
        loss = PREFERENCES[name].loss(singles, tensor(0).squeeze(), preference(name))
        torch.testing.assert_close(loss, torch.full_like(loss, value))


def test_splitting_the_pairs_changes_nothing() -> None:
    for cfg in every_setting():
        pairs = random_pairs()
        whole = torch.stack(loss_and_gradients(pairs, cfg))
        parts = [
            torch.stack(loss_and_gradients(some(pairs, part), cfg)) for part in (slice(0, 1), slice(1, 4), slice(4, 5))
        ]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12, msg=str(cfg))


def some(pairs: Pairs, part: slice) -> Pairs:
    """These pairs alone, as leaves of a graph of their own."""
    values: dict[str, Tensor] = {field.name: getattr(pairs, field.name) for field in fields(Pairs)}
    return Pairs(**{name: v.detach()[part].requires_grad_(v.requires_grad) for name, v in values.items()})


def test_extreme_log_ratios_stay_finite() -> None:
    ends = torch.tensor([[-500.0, -500.0], [-500.0, 0.0], [0.0, -500.0], [0.0, 0.0]])
    for cfg in every_setting():
        for ref in (ends, -500 - ends):  # log-ratios of 0, and of +-500
            chosen, rejected = (column.clone().requires_grad_() for column in ends.unbind(1))
            ref_chosen, ref_rejected = ref.unbind(1)
            tokens = torch.full((4,), 3.0), torch.full((4,), 7.0)
            reward = torch.ones(4), torch.zeros(4)
            pairs = Pairs(
                chosen, rejected, ref_chosen, ref_rejected, *tokens, ref_chosen, ref_rejected, *reward
            )  # fmt: skip
            for found in loss_and_gradients(pairs, cfg):
                assert bool(found.isfinite().all()), cfg
    for name in UNPAIRED:
        logprobs = torch.tensor([-500.0, 0.0, -500.0, 0.0], requires_grad=True)
        singles = Singles(logprobs, -500 - logprobs.detach(), torch.ones(4), torch.tensor([True, True, False, False]))
        loss = PREFERENCES[name].loss(singles, torch.tensor(0.0), preference(name))
        assert bool(loss.isfinite().all() and torch.autograd.grad(loss.sum(), logprobs)[0].isfinite().all())


def test_a_mix_is_the_weighted_sum() -> None:
    cfg = PreferenceLoss(mix={"dpo": 0.8, "bco_pair": 0.2, "sft": 1.0})
    method, pairs = make_preference(cfg), random_pairs()
    parts = [weight * PREFERENCES[name].loss(pairs, cfg) for name, weight in cfg.weights.items()]
    torch.testing.assert_close(method.loss(pairs, cfg), sum(parts))
    assert (method.paired, method.reference, method.behaviour) == (True, True, False)
    free = make_preference(PreferenceLoss(mix={"simpo": 1.0, "sft": 0.1}))
    assert (free.paired, free.reference, free.behaviour) == (True, False, False)
    assert make_preference(PreferenceLoss(mix={"sft": 0.1, "p3o": 1.0})).behaviour
