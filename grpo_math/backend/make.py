"""The configured backend, and the policy in the form that it trains. Each part is imported only where it is used."""

from __future__ import annotations

from collections.abc import Callable

import torch

from grpo_math import config
from grpo_math.actor_critic import with_value_head
from grpo_math.backend.base import TrainBackend
from grpo_math.policy import Policy, load_policy, make_policy, pick_device
from grpo_math.ranks import Ranks
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.token_model import TokenModel
from grpo_math.value_model import ValueKind, ValueModel, load_value_model

VALUES: dict[type[config.Common], ValueKind] = {config.RewardModel: "outcome", config.ProcessRewardModel: "process"}


def starting_policy(cfg: config.Common) -> Policy | ValueModel:
    """The model of model.path, or one made from model.new; as a model of values where the recipe trains one."""
    device = pick_device(cfg.backend.device)
    if cfg.model.new is None:
        chosen = cfg.backend.deepspeed
        zero = chosen.zero if cfg.backend.name == "deepspeed" else 0
        if (kind := VALUES.get(type(cfg))) is not None:
            return load_value_model(cfg.model, kind, device, weights_dtype(cfg), zero, chosen.offload_parameters)
        return load_policy(cfg.model, device, weights_dtype(cfg), zero, chosen.offload_parameters)
    tokenizer = character_tokenizer()
    return make_policy(small_model(cfg.model.new, tokenizer, cfg.seed).to(device), tokenizer)


def value_model_of(cfg: config.Common, path: str | None, kind: ValueKind, key: str = "model.path") -> ValueModel:
    """A model of values to train by the run's back end. key: what an error calls the path."""
    same = path == cfg.model.path
    spec = config.Model(
        path=path,
        revision=cfg.model.revision if same else None,
        trust_remote_code=cfg.model.trust_remote_code,
        attention=cfg.model.attention,
    )
    chosen = cfg.backend.deepspeed
    zero = chosen.zero if cfg.backend.name == "deepspeed" else 0
    device = pick_device(cfg.backend.device)
    # all of its weights learn, whatever adapter the policy has
    dtype = weights_dtype(cfg.model_copy(update={"model": spec}))
    return load_value_model(spec, kind, device, dtype, zero, chosen.offload_parameters, key)


def with_optimizer_of(cfg: config.GRPO, own: config.Critic | config.Retraining) -> config.GRPO:
    """The same run, for a model that learns beside the policy at a rate of its own."""
    rates = {"learning_rate": own.learning_rate, "max_grad_norm": own.max_grad_norm}
    return cfg.model_copy(update={"optimizer": cfg.optimizer.model_copy(update=rates)})


def weights_dtype(cfg: config.Common) -> torch.dtype:
    """float32 where the optimizer works on the weights themselves; bfloat16 where it has a float32 copy of its own, or
    where the weights are frozen below an adapter."""
    if cfg.backend.dtype == "bfloat16" and (cfg.backend.name == "deepspeed" or cfg.model.lora.rank):
        return torch.bfloat16
    return torch.float32


def make_backend(cfg: config.Common, policy: TokenModel, updates: int, ranks: Ranks) -> TrainBackend:
    """updates: how many the whole run has, which the learning-rate schedule needs."""
    if isinstance(cfg, config.GRPO) and cfg.critic.shared and isinstance(policy, Policy):
        policy = with_value_head(policy)
    return BACKENDS[cfg.backend.name](cfg, policy, updates, ranks)


def _torch(cfg: config.Common, policy: TokenModel, updates: int, ranks: Ranks) -> TrainBackend:
    from grpo_math.backend.torch import TorchBackend

    assert ranks.size == 1, "preflight.check_ranks_fit"
    return TorchBackend(policy, cfg.backend, cfg.optimizer, updates, cfg.micro_batch_tokens, cfg.trained_temperature)


def _deepspeed(cfg: config.Common, policy: TokenModel, updates: int, ranks: Ranks) -> TrainBackend:
    from grpo_math.backend.deepspeed import DeepSpeedBackend

    return DeepSpeedBackend(
        policy, cfg.backend, cfg.optimizer, updates, cfg.micro_batch_tokens, cfg.trained_temperature, ranks
    )


BACKENDS: dict[str, Callable[[config.Common, TokenModel, int, Ranks], TrainBackend]] = {
    "torch": _torch,
    "deepspeed": _deepspeed,
}
