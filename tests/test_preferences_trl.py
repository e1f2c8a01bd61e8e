"""PreferenceLoss losses against TRL's own code, on bare trainers: only the attributes that their loss reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo_math.config_preference import READS, PreferenceLoss
from grpo_math.preferences.inputs import Pairs, Singles
from grpo_math.preferences.table import PREFERENCES, make_preference
from grpo_math.preferences.unpaired import kto_baseline
from tests.preference_pairs import loss_and_gradients, preference, random_pairs

TRL_PAIRED = {
    "dpo": "sigmoid", "cdpo": "aot", "robust": "robust", "ipo": "ipo", "slic": "hinge", "rso": "sigmoid",
    "dpo_norm": "sigmoid_norm", "discopop": "discopop", "exo_pair": "exo_pair", "apo_zero": "apo_zero",
    "apo_down": "apo_down", "bco_pair": "bco_pair", "nca": "nca_pair", "sppo_hard": "sppo_hard", "sft": "sft",
}  # fmt: skip
TRL_DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


@pytest.fixture(scope="module")
def trl() -> SimpleNamespace:
    pytest.importorskip("trl", reason="equality with TRL is checked where TRL is installed")
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    return SimpleNamespace(CPO=CPOTrainer, ORPO=ORPOTrainer, DPO=DPOTrainer, KTO=KTOTrainer)


def bare(trainer: type, **attributes: Any) -> Any:
    """A trainer without its __init__, on one process."""
    made: Any = object.__new__(trainer)
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    metrics = {"train": Metrics()}
    vars(made).update({"accelerator": accelerator, "model": Outputs(), "_metrics": metrics, "aux_loss_enabled": False})
    vars(made).update({"_total_train_tokens": 0, "_tp_size": 1, "precompute_ref_logps": True}, **attributes)
    return made


class Metrics(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        return self.setdefault(key, [])


class Outputs:
    """In the model's place: the log-probabilities of the tokens, found by the identity of the input."""

    training = True

    def __init__(self) -> None:
        self.of: dict[int, Tensor] = {}

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logprobs = self.of[id(input_ids)]
        nothing = torch.zeros_like(logprobs)
        return SimpleNamespace(log_probs=logprobs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def tokenwise(logprobs: Tensor, tokens: Tensor, width: int = 8) -> tuple[Tensor, Tensor]:
    """(B, width - 1) log-probabilities spread over the first `tokens` positions, and the completion mask (B, width)."""
    mask = (torch.arange(width) > 0) & (torch.arange(width) <= tokens[:, None])
    return torch.where(mask[:, 1:], (logprobs / tokens)[:, None], 0.0), mask.long()


def trl_pair(trl: SimpleNamespace, pairs: Pairs, i: int, cfg: PreferenceLoss, loss_type: str) -> Tensor:
    """TRL's loss of pair i alone, as its batch mean: with one pair `aot` sorts nothing, and is cdpo."""
    ref_chosen, ref_rejected = reference(pairs)
    chosen, rejected = (getattr(pairs, field)[i : i + 1] for field in ("chosen", "rejected"))
    tokens = torch.stack([pairs.chosen_tokens[i], pairs.rejected_tokens[i]])
    logprobs, mask = tokenwise(torch.cat([chosen, rejected]), tokens)
    trainer = bare(
        trl.DPO,
        beta=cfg.beta, loss_types=[loss_type], loss_weights=[1.0], ld_alpha=None, label_smoothing=cfg.label_smoothing,
        f_divergence_type=TRL_DIVERGENCES.get(cfg.divergence, cfg.divergence), f_alpha_divergence_coef=cfg.alpha,
        use_weighting=False, args=SimpleNamespace(discopop_tau=cfg.discopop_tau),
    )  # fmt: skip
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": ref_chosen[i : i + 1], "ref_rejected_logps": ref_rejected[i : i + 1]}
    trainer.model.of[id(mask)] = logprobs
    return trainer._compute_loss(trainer.model, inputs, return_outputs=False)


def reference(pairs: Pairs) -> tuple[Tensor, Tensor]:
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    return pairs.ref_chosen, pairs.ref_rejected


def assert_trl(pairs: Pairs, cfg: PreferenceLoss, theirs: list[Tensor]) -> None:
    loss, *ours = loss_and_gradients(pairs, cfg)
    torch.testing.assert_close(loss, torch.stack(theirs), rtol=1e-6, atol=1e-6, msg=str(cfg))
    policy = (pairs.chosen, pairs.rejected)
    grads = torch.autograd.grad(
        torch.stack(theirs).sum(), policy, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    for mine, grad in zip(ours, grads, strict=True):
        torch.testing.assert_close(mine, grad, rtol=1e-6, atol=1e-6, msg=str(cfg))


@pytest.mark.parametrize("name", TRL_PAIRED)
def test_pairs_as_trl(trl: SimpleNamespace, name: str) -> None:
    for beta in (0.05, 0.5) if "beta" in READS[name] else (None,):
        cfg, pairs = preference(name, **({} if beta is None else {"beta": beta})), random_pairs()
        assert_trl(pairs, cfg, [trl_pair(trl, pairs, i, cfg, TRL_PAIRED[name]) for i in range(5)])


@pytest.mark.parametrize("divergence", TRL_DIVERGENCES)
def test_divergences_as_trl(trl: SimpleNamespace, divergence: str) -> None:
    for name in ("dpo", "robust", "ipo", "slic", "dpo_norm", "discopop", "exo_pair"):
        # TRL's alpha divergence knows no float64
        cfg, pairs = preference(name, divergence=divergence), random_pairs(dtype=torch.float32)
        theirs = [trl_pair(trl, pairs, i, cfg, TRL_PAIRED[name]) for i in range(5)]
        torch.testing.assert_close(make_preference(cfg).loss(pairs, cfg), torch.stack(theirs), rtol=1e-6, atol=1e-6)


def test_reference_free_as_trl(trl: SimpleNamespace) -> None:
    pairs = random_pairs()
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    for beta in (0.1, 2.0):
        cfg = preference("simpo", beta=beta, margin=0.7)
        trainer = bare(trl.CPO, beta=beta, alpha=0.0, label_smoothing=0.0, loss_type="simpo", simpo_gamma=0.7)
        assert_trl(pairs, cfg, list(trainer.cpo_loss(*means)[0]))

        cfg = preference("cpo", beta=beta, sft_weight=0.0)
        trainer = bare(trl.CPO, beta=beta, alpha=0.0, label_smoothing=0.0, loss_type="sigmoid")
        assert_trl(pairs, cfg, list(trainer.cpo_loss(pairs.chosen, pairs.rejected)[0]))

        # TRL returns beta * log sigmoid, in float32, and subtracts it from a likelihood that counts the prompt too
        cfg, trainer = preference("orpo", beta=beta), bare(trl.ORPO, beta=beta)
        likelihood = -pairs.chosen / pairs.chosen_tokens
        assert_trl(pairs, cfg, list(likelihood - trainer.odds_ratio_loss(*means)[0].double()))


def test_kto_as_trl(trl: SimpleNamespace) -> None:
    pairs = random_pairs()
    ref, other_ref = reference(pairs)
    for beta in (0.1, 0.8):
        cfg = preference("kto", beta=beta, desirable_weight=1.2, undesirable_weight=0.6)
        label = torch.tensor([True, False, True, True, False])
        logprobs, mask = tokenwise(pairs.chosen, pairs.chosen_tokens)
        other, other_mask = tokenwise(pairs.rejected, pairs.rejected_tokens)
        trainer = bare(
            trl.KTO, beta=beta, loss_type="kto", calculate_KL=True, desirable_weight=1.2, undesirable_weight=0.6
        )
        trainer.model.of = {id(mask): logprobs, id(other_mask): other}
        inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, "label": label}
        inputs |= {"KL_input_ids": other_mask, "KL_attention_mask": other_mask, "KL_completion_mask": other_mask}
        inputs |= {"ref_logps": ref, "ref_KL_logps": other_ref}
        theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False)

        singles = Singles(pairs.chosen, ref, pairs.chosen_tokens, label)
        ours = PREFERENCES["kto"].loss(singles, kto_baseline(pairs.rejected - other_ref), cfg).mean()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        mine, grad = (torch.autograd.grad(value, pairs.chosen, retain_graph=True)[0] for value in (ours, theirs))
        torch.testing.assert_close(mine, grad, rtol=1e-6, atol=1e-6)
