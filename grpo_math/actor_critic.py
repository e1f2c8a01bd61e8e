"""A policy with a value head on its last hidden states: actor and critic in one network, read in one pass.

The head is a linear layer of the model's own, called value_head, so that whoever trains, splits or saves the model's
weights has it too; sampling engines are not given it, and it is saved beside the model and not in it, so that the
folder stays an ordinary one. Left out: the loss of the two (recipes/critic.py).
"""

# B rows, T tokens

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.lora import VALUE_HEAD
from grpo_math.packing import Layout
from grpo_math.policy import Policy
from grpo_math.token_model import TokenModel, scatter


@dataclass(frozen=True)
class ActorCritic:
    """A token_model.TokenModel that says two numbers of each token: its log-probability, and the value before it."""

    policy: Policy
    outputs: int = 2

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.policy.tokenizer

    @property
    def lora(self) -> config.LoRA:
        return self.policy.lora

    @property
    def layout(self) -> Layout:
        return self.policy.layout

    @property
    def device(self) -> torch.device:
        return self.policy.device

    @property
    def packing(self) -> bool:
        return self.policy.packing

    def with_packing(self, packing: bool) -> ActorCritic:
        return replace(self, policy=self.policy.with_packing(packing))

    def check(self) -> None:
        self.policy.check()

    def per_token(
        self,
        batch: Batch,
        temperature: float,
        chunk: int,
        autocast: torch.dtype | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, 2): log-probability and value; and the entropy, or None."""
        states = self.policy.states(batch, autocast)
        logprobs, entropy = self.policy.of_states(states, batch, temperature, chunk, with_entropy)
        head: torch.nn.Linear = self.model.get_submodule(VALUE_HEAD)  # type: ignore[assignment]
        values = scatter(batch.loss_mask, head(states.to(head.weight.dtype)).float().squeeze(-1))
        return torch.stack([logprobs, values], dim=-1), entropy


def policy_in(model: TokenModel) -> Policy:
    """The policy of an actor, with or without a critic on it."""
    policy = model.policy if isinstance(model, ActorCritic) else model
    assert isinstance(policy, Policy), "only a policy has a reference"
    return policy


def with_value_head(policy: Policy) -> ActorCritic:
    """Adds the head, which says 0 of everything until it has learnt."""
    size = policy.model.config.get_text_config().hidden_size
    head = torch.nn.Linear(size, 1, device=policy.device, dtype=policy.model.dtype)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    policy.model.add_module(VALUE_HEAD, head)
    return ActorCritic(policy)
