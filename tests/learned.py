"""Reward models with random heads, texts for them, and groups that they score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from grpo_math import config
from grpo_math.config_learned import LearnedKind, LearnedReward
from grpo_math.learned.make import load_reward_model
from grpo_math.learned.reading import Asked
from grpo_math.learned.score import RewardModel
from grpo_math.types import Completion, Group, Problem, Prompt, Scored, Verdict
from grpo_math.value_model import load_value_model
from tests.tiny import save_tiny

CPU = torch.device("cpu")


def asked(completion: str, prompt: str = "1+1=", reason: Any = "stop") -> Asked:
    return Asked("what is " + prompt, prompt, completion, reason)


TEXTS = [
    asked("2"),
    asked("12\n+3\n=15", reason="length"),
    asked("x=1; y=2\nso 3", "a much longer prompt: "),
    asked(""),
]


def save_model(path: Path, base: Path, kind: LearnedKind, said: dict[str, Any] | None = None) -> str:
    """A reward model with a random head, said: what our own training would write into its config.json."""
    value = load_value_model(config.Model(path=str(base)), kind, CPU)
    torch.manual_seed(len(kind))
    for parameter in value.head.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    if said is not None:
        value.model.config.grpo_math = said
    value.model.save_pretrained(path)
    value.tokenizer.save_pretrained(path)
    return str(path)


def save_outcome(path: Path) -> str:
    said = {"kind": "outcome", "input": "text", "boundary": None, "score_p99": 0.5}
    return save_model(path / "outcome", save_tiny(path / "base"), "outcome", said)


def save_process(path: Path) -> str:
    said = {"kind": "process", "input": "text", "boundary": "newline", "score_p99": 0.0}
    return save_model(path / "process", save_tiny(path / "base"), "process", said)


def load(key: str = "rewards.1", **keys: Any) -> RewardModel:
    return load_reward_model(LearnedReward(**keys), key, CPU)


def group_of(texts: Sequence[str], rewards: Sequence[float | None], number: int = 0) -> Group:
    """One prompt's completions, a token a character, as the scorer gives them with the verifier's weight of 2."""
    prompt = Prompt(Problem(f"p{number}", "t", f"q{number}", "1"), (5, 6), f"{number}=")
    scores = [Verdict(r, "error" if r is None else "correct" if r else "wrong") for r in rewards]
    return Group(
        prompt,
        tuple(Completion((5,) * len(text), (0.0,) * len(text), text, "stop", 0) for text in texts),
        tuple(Scored(None if v.reward is None else 2 * v.reward, v, {"math": v}) for v in scores),
    )
