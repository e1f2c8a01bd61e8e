"""The implicit rewards that the losses compare: what the policy says a completion is worth.

Each is (pairs, config) -> (chosen, rejected), both (P,). They are also what the metrics show. Left out: losses.
"""

from __future__ import annotations

from torch import Tensor

from grpo_math.config_preference import PreferenceLoss
from grpo_math.preferences.divergences import DIVERGENCES
from grpo_math.preferences.inputs import Pairs


def log_ratios(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """log pi(y|x) - log pi_ref(y|x) of both completions, (P,) each."""
    assert pairs.ref_chosen is not None, "this method needs the reference's logprobs of the chosen completions"
    assert pairs.ref_rejected is not None, "this method needs the reference's logprobs of the rejected completions"
    return pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected


def scores(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """f'(pi / pi_ref) of both completions, the log-ratios for divergence=reverse_kl; (P,) each."""
    transform = DIVERGENCES[cfg.divergence]
    chosen, rejected = log_ratios(pairs)
    return transform(chosen, cfg), transform(rejected, cfg)


def mean_scores(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """scores / tokens: per token of the completion, so that a long one is not worth more for being long."""
    chosen, rejected = scores(pairs, cfg)
    return chosen / pairs.chosen_tokens, rejected / pairs.rejected_tokens


def mean_logprobs(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """log pi(y|x) / tokens: log-likelihood per token, without beta; the reward that sft shows."""
    return pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens


def relative(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """beta * scores; with the reverse KL beta * log(pi / pi_ref), DPO's reward, arXiv:2305.18290, eq. 5."""
    chosen, rejected = scores(pairs, cfg)
    return cfg.beta * chosen, cfg.beta * rejected


def mean_relative(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """beta * scores / tokens; length-normalised DPO."""
    chosen, rejected = mean_scores(pairs, cfg)
    return cfg.beta * chosen, cfg.beta * rejected


def absolute(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """beta * log pi: no reference, as a uniform one would cancel; CPO, arXiv:2401.08417."""
    return cfg.beta * pairs.chosen, cfg.beta * pairs.rejected


def mean_absolute(pairs: Pairs, cfg: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """beta * log pi / tokens; SimPO, arXiv:2405.14734, eq. 4."""
    chosen, rejected = mean_logprobs(pairs, cfg)
    return cfg.beta * chosen, cfg.beta * rejected
