"""A tiny policy, prompts and groups for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from grpo_math import config
from grpo_math.policy import Policy, make_policy
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Completion, Group, Problem, Prompt, Scored, Verdict

TINY = config.NewModel(hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=64, context=128)


def tiny_policy(seed: int = 0, sharp: float = 1.0, context: int = 128) -> Policy:
    """sharp > 1 scales the weights so that the distributions are far from uniform."""
    tokenizer = character_tokenizer()
    model = small_model(TINY.model_copy(update={"context": context}), tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharp)
    return make_policy(model, tokenizer)


def save_tiny(path: Path, seed: int = 0, context: int = 128) -> Path:
    policy = tiny_policy(seed, context=context)
    policy.model.save_pretrained(path)
    policy.tokenizer.save_pretrained(path)
    return path


def prompt(policy: Policy, text: str, name: str | None = None) -> Prompt:
    ids = tuple(policy.tokenizer(text)["input_ids"])
    return Prompt(Problem(name or text, "test", text, "1"), ids, text)


def completion(ids: Sequence[int], logprobs: Sequence[float] | None = None, reason: str = "stop") -> Completion:
    values = tuple(logprobs) if logprobs is not None else (-1.0,) * len(ids)
    return Completion(tuple(ids), values, "", reason, 0)  # type: ignore[arg-type]


def group(
    rewards: Sequence[float | None], lengths: Sequence[int], prompt_length: int = 3, reason: str = "stop"
) -> Group:
    """Completions of token 5, of these lengths and rewards."""
    asked = Prompt(Problem("p", "test", "q", "1"), tuple(range(4, 4 + prompt_length)), "q")
    scores = []
    for reward in rewards:
        verdict = Verdict(reward, "error" if reward is None else "correct" if reward else "wrong")
        scores.append(Scored(reward, verdict, {"math": verdict}))
    return Group(asked, tuple(completion([5] * n, reason=reason) for n in lengths), tuple(scores))
