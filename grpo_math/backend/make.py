"""The configured backend, and the policy in the form that it trains. Each part is imported only where it is used."""

from __future__ import annotations

from collections.abc import Callable

import torch

from grpo_math import config
from grpo_math.backend.base import TrainBackend
from grpo_math.policy import Policy, load_policy, make_policy, pick_device
from grpo_math.ranks import Ranks
from grpo_math.small_model import character_tokenizer, small_model


def starting_policy(cfg: config.Common) -> Policy:
    """The model of model.path, or one made from model.new."""
    device = pick_device(cfg.backend.device)
    if cfg.model.new is None:
        chosen = cfg.backend.deepspeed
        zero = chosen.zero if cfg.backend.name == "deepspeed" else 0
        return load_policy(cfg.model, device, weights_dtype(cfg), zero, chosen.offload_parameters)
    tokenizer = character_tokenizer()
    return make_policy(small_model(cfg.model.new, tokenizer, cfg.seed).to(device), tokenizer)


def weights_dtype(cfg: config.Common) -> torch.dtype:
    """float32 where the optimizer works on the weights themselves; bfloat16 where it has a float32 copy of its own, or
    where the weights are frozen below an adapter."""
    if cfg.backend.dtype == "bfloat16" and (cfg.backend.name == "deepspeed" or cfg.model.lora.rank):
        return torch.bfloat16
    return torch.float32


def make_backend(cfg: config.Common, policy: Policy, updates: int, ranks: Ranks) -> TrainBackend:
    """updates: how many the whole run has, which the learning-rate schedule needs."""
    return BACKENDS[cfg.backend.name](cfg, policy, updates, ranks)


def _torch(cfg: config.Common, policy: Policy, updates: int, ranks: Ranks) -> TrainBackend:
    from grpo_math.backend.torch import TorchBackend

    assert ranks.size == 1, "plan.check_ranks_fit"
    return TorchBackend(policy, cfg.backend, cfg.optimizer, updates, cfg.micro_batch_tokens, cfg.trained_temperature)


def _deepspeed(cfg: config.Common, policy: Policy, updates: int, ranks: Ranks) -> TrainBackend:
    from grpo_math.backend.deepspeed import DeepSpeedBackend

    return DeepSpeedBackend(
        policy, cfg.backend, cfg.optimizer, updates, cfg.micro_batch_tokens, cfg.trained_temperature, ranks
    )


BACKENDS: dict[str, Callable[[config.Common, Policy, int, Ranks], TrainBackend]] = {
    "torch": _torch,
    "deepspeed": _deepspeed,
}
