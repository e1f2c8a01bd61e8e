"""The section `loss` of the preference recipe, and what is shown while preferences are learnt."""

from __future__ import annotations

import math
from dataclasses import replace
from math import exp
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

from grpo_math.config_preference import READS, REVERSE_KL_ONLY, UNPAIRED, DivergenceName, PreferenceLoss, PreferenceName
from grpo_math.preferences.divergences import DIVERGENCES
from grpo_math.preferences.metrics import LOGITS, REWARDS, pair_metrics, single_metrics
from grpo_math.preferences.table import PREFERENCES
from tests.preference_pairs import PAIRED, every_setting, four_singles, preference, random_pairs, tensor, two_pairs


def test_names_and_parameters_are_those_of_the_table() -> None:
    assert get_args(PreferenceName) == tuple(PREFERENCES) == tuple(READS)
    assert get_args(DivergenceName) == tuple(DIVERGENCES)
    assert set(UNPAIRED) == set(PREFERENCES) - set(PAIRED) == set(LOGITS)
    alone = {n for n, method in PREFERENCES.items() if method.reference and "divergence" not in READS[n]}
    assert set(REVERSE_KL_ONLY) == alone
    assert set(REWARDS) <= set(PAIRED)
    without = replace(random_pairs(), ref_chosen=None, ref_rejected=None)
    for name in PAIRED:
        if PREFERENCES[name].reference:
            with pytest.raises(AssertionError, match="reference"):
                PREFERENCES[name].loss(without, preference(name))
        else:
            assert PREFERENCES[name].loss(without, preference(name)).shape == (5,)
            assert pair_metrics(without, preference(name))["implicit/chosen"].shape == (5,)


# a value beside the default for each parameter
OTHER: dict[str, Any] = {
    "beta": 0.7, "label_smoothing": 0.2, "margin": 0.4, "sft_weight": 0.3, "divergence": "js", "alpha": 0.3,
    "discopop_tau": 0.4, "desirable_weight": 1.3, "undesirable_weight": 1.4, "clip": 0.05, "clipping": "joint",
}  # fmt: skip


def test_what_is_read_changes_the_loss_and_what_is_not_is_refused() -> None:
    assert set(OTHER) == set(PreferenceLoss.model_fields) - {"name", "mix"}
    for name, method in PREFERENCES.items():
        inputs = (random_pairs(),) if method.paired else (four_singles(), tensor(0.1).squeeze())
        for parameter in OTHER.keys() - {"alpha"}:
            if parameter in READS[name]:
                default = method.loss(*inputs, preference(name))
                other = method.loss(*inputs, preference(name, **{parameter: OTHER[parameter]}))
                assert not torch.allclose(default, other), (name, parameter)
            else:
                with pytest.raises(ValidationError, match=f"{parameter}.* leave (it|{parameter}) out"):
                    preference(name, **{parameter: OTHER[parameter]})
        with pytest.raises(ValidationError, match=r"alpha=0\.3 is read with divergence=alpha only"):
            preference(name, alpha=0.3)


def test_what_is_written_out_reads_back() -> None:
    for cfg in every_setting() + [preference(name) for name in UNPAIRED]:
        assert PreferenceLoss.model_validate(cfg.model_dump(mode="json")) == cfg
    assert preference("simpo").model_dump() == {"name": "simpo", "beta": 2.0, "margin": 1.0}
    assert PreferenceLoss.model_validate("kto").name == "kto"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "dpo", "margin": 1.0}, "margin=1.0 is read by slic and simpo only, and not by dpo; leave it out"),
        ({"name": "nca", "divergence": "js"}, "divergence=js: nca scores a completion by itself.*leave divergence out"),
        ({"name": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ({"name": "exo_pair", "label_smoothing": 0.0}, "label_smoothing=0.0 makes exo_pair infinite.*set.*0.001"),
        ({"beta": 0}, "greater than 0"),
        ({"name": "dpo", "mix": {"sft": 1}}, "name=dpo and mix say twice.*leave name out"),
        ({"mix": {}}, "names no loss"),
        ({"mix": {"dpoo": 1}}, "mix.dpoo=1: unknown name; did you mean dpo"),
        ({"mix": {"dpo": 0}}, "greater than 0"),
        ({"mix": {"dpo": 1, "kto": 1}}, "mix.kto=1: kto learns from single completions"),
        ({"mix": {"dpo": 1, "simpo": 1}}, r"beta is missing.*\(dpo 0.1, simpo 2.0\).*set for example beta=0.1"),
        ({"mix": {"dpo": 1, "bco_pair": 1}, "divergence": "js"}, "bco_pair scores a completion by itself"),
        ({"mix": {"dpo": 1, "sft": 1}, "margin": 1}, "not by dpo and sft; leave it out"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreferenceLoss.model_validate(values)


@pytest.mark.parametrize(
    ("cfg", "chosen", "rejected"),
    [
        (preference("dpo", beta=0.5), (0.5, -0.5), (-0.5, 0)),
        (preference("dpo_norm", beta=0.5), (0.25, -0.125), (-0.1, 0)),
        (preference("cpo", beta=0.5), (-1, -3), (-2.5, -2)),
        (preference("simpo", beta=0.5), (-0.5, -0.75), (-0.5, -1)),
        (preference("sft"), (-1, -1.5), (-1, -2)),
        # 0.5 * (1 - exp(-log_ratio))
        (
            preference("dpo", beta=0.5, divergence="forward_kl"),
            (0.5 - exp(-1) / 2, 0.5 - exp(1) / 2),
            (0.5 - exp(1) / 2, 0),
        ),
        (PreferenceLoss.model_validate({"mix": {"sft": 1, "dpo": 1}, "beta": 0.5}), (0.5, -0.5), (-0.5, 0)),
    ],
)  # fmt: skip
def test_pair_metrics(cfg: PreferenceLoss, chosen: tuple[float, ...], rejected: tuple[float, ...]) -> None:
    found = pair_metrics(two_pairs(), cfg)
    wanted = {
        "implicit/chosen": tensor(*chosen),
        "implicit/rejected": tensor(*rejected),
        "implicit/margin": tensor(*chosen) - tensor(*rejected),
        "implicit/accuracy": (tensor(*chosen) > tensor(*rejected)).double(),
        "logprobs/chosen": tensor(-2, -6),
        "logprobs/rejected": tensor(-5, -4),
        "logprobs/chosen_change": tensor(1, -1),
        "logprobs/rejected_change": tensor(-1, 0),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
        assert not found[name].requires_grad


def test_single_metrics() -> None:
    nan = math.nan
    wanted = {
        "implicit/chosen": tensor(0.5, -0.5, nan, nan),
        "implicit/rejected": tensor(nan, nan, -0.5, 0),
        "implicit/accuracy": tensor(1, 0, 1, 1),
        "logprobs/chosen": tensor(-2, -6, nan, nan),
        "logprobs/rejected": tensor(nan, nan, -5, -4),
        "logprobs/chosen_change": tensor(1, -1, nan, nan),
        "logprobs/rejected_change": tensor(nan, nan, -1, 0),
    }
    found = single_metrics(four_singles(), tensor(0.1).squeeze(), preference("kto", beta=0.5))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, equal_nan=True, msg=name)
        assert not found[name].requires_grad
