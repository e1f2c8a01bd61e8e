"""What a model's config.json says of it as a reward model, and whether that fits the configuration.

Imports neither torch nor transformers: `grpo-math plan` answers from it. Left out: loading (make.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grpo_math.config_learned import LearnedKind, LearnedReward
from grpo_math.steps.split import boundary
from grpo_math.types import UserError

DEFAULT_BOUNDARY = "newline"
OURS = "grpo_math"  # the key of config.json under which our own training writes what it was trained with
SUFFIXES: dict[str, LearnedKind] = {"ForSequenceClassification": "outcome", "ForTokenClassification": "process"}
RECIPES: dict[LearnedKind, str] = {"outcome": "reward_model", "process": "process_reward_model"}


@dataclass(frozen=True)
class Trained:
    """How a reward model was trained, where it says so. plain: on prompt + completion as plain text. p99: the 99th
    percentile of its scores on its training data."""

    plain: bool = False
    boundary: str | None = None
    p99: float | None = None


def check_learned(reward: LearnedReward, key: str) -> None:
    """What can be seen before anything is loaded. key: rewards.N, for messages. Raises UserError."""
    if reward.boundary is not None:
        try:
            boundary(reward.boundary)
        except UserError as error:
            raise UserError(f"{key}.boundary={reward.boundary}: {error}") from None
    if reward.url is not None:
        parts = urlsplit(reward.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{key}.url={reward.url} is no address of a server; give one like http://localhost:8001, where "
                "`vllm serve MODEL --runner pooling` listens"
            )
    written = Path(reward.model) / "config.json"
    if written.is_file():
        try:
            settings = json.loads(written.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{key}.model={reward.model}: its config.json is damaged ({error}); copy it again"
            ) from None
        trained(settings, reward, key)


def trained(settings: Mapping[str, Any], reward: LearnedReward, key: str) -> Trained:
    """What config.json tells of the training. Raises UserError where it is another kind of model: without a head its
    scores would be random numbers."""
    ours, (kind, architecture) = ours_in(settings), kind_in(settings)
    where = f"{key}.model={reward.model}"
    if kind is None:
        raise UserError(
            f"{where} is {architecture}, which has no head that says how good a text is; train one from it "
            f"(recipe: {RECIPES[reward.kind]}), or give a model saved with AutoModelForSequenceClassification (kind: "
            "outcome) or AutoModelForTokenClassification (kind: process)"
        )
    if kind != reward.kind:
        remedy = f"set {key}.kind={kind}" if kind in RECIPES else f"train one with recipe: {RECIPES[reward.kind]}"
        raise UserError(f"{where} is of kind {kind} ({architecture}), and {key}.kind={reward.kind}; {remedy}")
    return Trained(ours.get("input") == "text", ours.get("boundary"), ours.get("score_p99"))


def kind_in(settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """(kind, architecture) of a config.json: outcome, process, or critic; None for a model without a head."""
    architecture = next(iter(settings.get("architectures") or ()), "a model without an architecture in its config.json")
    by_name = next((kind for end, kind in SUFFIXES.items() if architecture.endswith(end)), None)
    return ours_in(settings).get("kind") or by_name, architecture


def ours_in(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What our own training wrote into a config.json."""
    said = settings.get(OURS)
    return said if isinstance(said, dict) else {}
