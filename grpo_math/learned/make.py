"""The reward models of a configuration, loaded or found on their servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer

from grpo_math import config
from grpo_math.config_learned import LearnedReward
from grpo_math.learned.checks import Trained, check_learned, trained
from grpo_math.learned.local import Local, device_of
from grpo_math.learned.reading import Reader, reader
from grpo_math.learned.rewards import LearnedRewards
from grpo_math.learned.score import RewardModel
from grpo_math.learned.server import Served
from grpo_math.learned.watch import Watch
from grpo_math.loading import check_tokenizer, end_ids
from grpo_math.types import UserError
from grpo_math.value_model import head_of, load_value_model

if TYPE_CHECKING:
    from grpo_math.recipes.parts import Parts


def make_learned(cfg: config.GRPO, parts: Parts) -> LearnedRewards | None:
    """None where `rewards` has verifiers alone. Every rank must call it. Raises UserError."""
    numbered = [(n, reward) for n, reward in enumerate(cfg.rewards or ()) if isinstance(reward, LearnedReward)]
    if not numbered:
        return None
    models = parts.ranks.together(
        lambda: [
            load_reward_model(
                reward,
                f"rewards.{number}",
                parts.policy.device,
                dtype_of(cfg, reward),
                reward.micro_batch_tokens or cfg.micro_batch_tokens,
            )
            for number, reward in numbered
        ]
    )
    p99 = {model.reward.called: model.p99 for model in models}
    return LearnedRewards(models, cfg.combine_rewards, parts.ranks, Watch(cfg.guards, p99))


def dtype_of(cfg: config.GRPO, reward: LearnedReward) -> str:
    """Of its weights, which in torch's own AdamW are trained in float32."""
    if cfg.retraining is not None and reward.kind == "outcome":
        return "bfloat16" if cfg.backend.name == "deepspeed" and cfg.backend.dtype == "bfloat16" else "float32"
    return cfg.backend.dtype if reward.dtype == "auto" else reward.dtype


def load_reward_model(
    reward: LearnedReward, key: str, device: torch.device, dtype: str = "float32", micro_batch_tokens: int = 16384
) -> RewardModel:
    """key: rewards.N, for messages. device: where `auto` is. Raises UserError: a model without a trained head, or of
    the wrong kind; a device or server that is not there."""
    check_learned(reward, key)
    how = said_by(reward, key)
    if reward.url is not None:
        return served(reward, key, how)
    where = f"{key}.model"
    at = device_of(reward.device, device, f"{key}.device")
    spec = config.Model(path=reward.model)
    model = load_value_model(spec, reward.kind, at, getattr(torch, dtype), key=where)
    if not any(bool(weight.any()) for weight in head_of(model.model).parameters()):
        raise UserError(
            f"{where}={reward.model}: its head is all zeros, so that every text has the same score: the files lack it, "
            "or it was never trained; give a trained reward model"
        )
    model.model.requires_grad_(False)
    read = with_key(where, reward, lambda: reader(model.tokenizer, model.eos_ids, reward, how))
    return RewardModel(reward, read, Local(model, micro_batch_tokens, reward.offload), how, key)


def served(reward: LearnedReward, key: str, how: Trained) -> RewardModel:
    """Scores come from the server; the tokens from the tokenizer of reward.model, as here."""
    where = f"{key}.model={reward.model}"
    check_tokenizer(Path(reward.model).expanduser(), where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(reward.model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}: its tokenizer could not be loaded: {error}\nTexts for {key}.url are made into tokens here; save "
            "the tokenizer beside its config.json with tokenizer.save_pretrained(folder)"
        ) from error
    settings = AutoConfig.from_pretrained(reward.model)
    ends = end_ids(getattr(settings.get_text_config(), "eos_token_id", None), tokenizer)
    read = with_key(f"{key}.model", reward, lambda: reader(tokenizer, ends, reward, how))
    return RewardModel(reward, read, Served(reward, key), how, key)


def said_by(reward: LearnedReward, key: str) -> Trained:
    """What its config.json says, before its weights are read."""
    return trained(settings_of(reward.model, key), reward, key)


def settings_of(path: str, key: str) -> dict[str, Any]:
    """The config.json of a folder or Hub id; _commit_hash is of a Hub id. Raises UserError."""
    try:
        found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}.model={path} could not be loaded: {error}\nGive a folder made by save_pretrained, or a Hub id that "
            "this machine can reach or has in its cache"
        ) from error
    return {**found.to_dict(), "_commit_hash": getattr(found, "_commit_hash", None)}


def with_key(where: str, reward: LearnedReward, make: Callable[[], Reader]) -> Reader:
    """With the key in what it complains of."""
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}={reward.model}: {error}") from None
