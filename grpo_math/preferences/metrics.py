"""What to watch while preferences are learnt: implicit rewards, their margin, and the likelihoods behind them.

A falling logprobs/chosen beside a rising margin is the well-known way in which the DPO family goes wrong.
"""

# P pairs, B completions

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences import rewards
from grpo_math.preferences.inputs import Pairs, Singles
from grpo_math.preferences.table import PREFERENCES
from grpo_math.preferences.unpaired import bco_logits, kto_logits, single_rewards

# Where the reward that a loss compares is another than rewards.relative
REWARDS: dict[str, Callable[[Pairs, PreferenceLoss], tuple[Tensor, Tensor]]] = {
    "ipo": rewards.mean_relative,
    "dpo_norm": rewards.mean_relative,
    "simpo": rewards.mean_absolute,
    "orpo": rewards.mean_absolute,
    "cpo": rewards.absolute,
    "sft": rewards.mean_logprobs,
}
LOGITS: dict[str, Callable[[Singles, Tensor, PreferenceLoss], Tensor]] = {"kto": kto_logits, "bco": bco_logits}


def pair_metrics(pairs: Pairs, cfg: PreferenceLoss) -> dict[str, Tensor]:
    """implicit/{chosen,rejected,margin,accuracy} and logprobs/{chosen,rejected}, (P,) each, detached, to be averaged.

    The reward is what the method compares: beta * log(pi / pi_ref) for most; per token for ipo, dpo_norm, simpo, orpo
    and sft; without a reference for simpo, orpo, cpo and sft. Of a mix it is that of the first loss that has a
    reference, else of the first. TRL differs for ipo and dpo_norm, which it sums, and leaves the divergence out.

    accuracy: 1 where the chosen completion's reward is the higher one. logprobs: summed over tokens, in nats."""
    with torch.no_grad():
        chosen, rejected = _shown(cfg)(pairs, cfg)
    metrics = {
        "implicit/chosen": chosen,
        "implicit/rejected": rejected,
        "implicit/margin": chosen - rejected,
        "implicit/accuracy": (chosen > rejected).to(chosen.dtype),
        "logprobs/chosen": pairs.chosen.detach(),
        "logprobs/rejected": pairs.rejected.detach(),
    }
    return metrics if pairs.ref_chosen is None else metrics | changes(pairs)


def changes(pairs: Pairs) -> dict[str, Tensor]:
    """logprobs/{chosen,rejected}_change: log pi - log pi_ref of the completion, in nats; (P,) each, detached."""
    with torch.no_grad():
        chosen, rejected = rewards.log_ratios(pairs)
        return {"logprobs/chosen_change": chosen, "logprobs/rejected_change": rejected}


def single_metrics(singles: Singles, baseline: Tensor, cfg: PreferenceLoss) -> dict[str, Tensor]:
    """implicit/{chosen,rejected,accuracy}, logprobs/{chosen,rejected} and their _change; (B,) each, detached.

    NaN in `chosen` for an undesirable completion and in `rejected` for a desirable one: average with nanmean, as the
    two classes have means of their own. accuracy: 1 where the reward is on its label's side of the baseline."""
    with torch.no_grad():
        reward = single_rewards(singles, cfg)
        desirable, change = singles.label.bool(), singles.logprobs - singles.ref_logprobs
        logits = LOGITS[cfg.name](singles, baseline, cfg)
        right = torch.where(desirable, logits > 0, logits < 0)
        return {
            "implicit/chosen": reward.masked_fill(~desirable, torch.nan),
            "implicit/rejected": reward.masked_fill(desirable, torch.nan),
            "implicit/accuracy": right.to(reward.dtype),
            "logprobs/chosen": singles.logprobs.masked_fill(~desirable, torch.nan),
            "logprobs/rejected": singles.logprobs.masked_fill(desirable, torch.nan),
            "logprobs/chosen_change": change.masked_fill(~desirable, torch.nan),
            "logprobs/rejected_change": change.masked_fill(desirable, torch.nan),
        }


def _shown(cfg: PreferenceLoss) -> Callable[[Pairs, PreferenceLoss], tuple[Tensor, Tensor]]:
    names = list(cfg.weights)
    with_reference = [name for name in names if PREFERENCES[name].reference]
    return REWARDS.get((with_reference or names)[0], rewards.relative)
