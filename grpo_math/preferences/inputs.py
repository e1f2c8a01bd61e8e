"""What a preference loss reads. Log-probabilities are those of whole completions, summed over their tokens, in nats."""

# P pairs, B completions

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """P pairs of completions of the same prompt; every field (P,), in one float type.

    chosen, rejected: sum_t log pi(y_t | x, y_<t) over the completion's tokens, with the policy's gradient.
    ref_chosen, ref_rejected: the same under the reference; None where the method needs none.
    chosen_tokens, rejected_tokens: lengths of the completions, at least 1.
    old_chosen, old_rejected: the same under the policy that sampled them (p3o); else None.
    chosen_reward, rejected_reward: the verifier's rewards (p3o); else None.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    old_chosen: Tensor | None = None
    old_rejected: Tensor | None = None
    chosen_reward: Tensor | None = None
    rejected_reward: Tensor | None = None


@dataclass(frozen=True)
class Singles:
    """B completions that are good or bad by themselves; every field (B,).

    logprobs: sum over the completion's tokens, with the policy's gradient. ref_logprobs: the reference's. tokens:
    lengths. label: True for a desirable completion.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    tokens: Tensor
    label: Tensor
