"""The reward models of an evaluation, from --reward-model to what is loaded; all that can be wrong with the arguments
is found before anything is sampled. Left out: the scores (reward_scores.py) and what is made of them (selection.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from grpo_math.config_learned import Aggregate, LearnedKind, LearnedReward
from grpo_math.evaluation.manifest import model_manifest, sha256
from grpo_math.learned.checks import DEFAULT_BOUNDARY, RECIPES, SUFFIXES, check_learned, kind_in, trained
from grpo_math.types import UserError

KEY = "reward-model"  # what errors of learned/ call it; arguments.FLAGS puts the command's flags in its place


@dataclass(frozen=True)
class Chosen:
    """What the flags say of all reward models. aggregate, boundary: of the process models; None: each one's own."""

    aggregate: Aggregate | None = None
    boundary: str | None = None
    chat: bool | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batch_tokens: int = 16384


@dataclass(frozen=True)
class RewardSpec:
    """A reward model that is to score. name: in tables and files. manifest: all that decides its scores, as plain
    JSON. digest: of the manifest, which tells its scores in the journal from another one's."""

    name: str
    reward: LearnedReward
    manifest: Mapping[str, Any] = field(hash=False)
    digest: str
    dtype: Literal["float32", "bfloat16"]
    device: str
    micro_batch_tokens: int


FLAGS = {
    "aggregate": "--aggregate",
    "boundary": "--boundary",
    "chat": "--reward-chat",
    "device": "--reward-device",
    "dtype": "--reward-dtype",
    "micro_batch_tokens": "--reward-batch-tokens",
}


def refuse_idle_flags(chosen: Chosen) -> None:
    """Raises UserError for what is said of reward models where there are none."""
    idle = [flag for name, flag in FLAGS.items() if getattr(chosen, name) != getattr(Chosen(), name)]
    if idle:
        raise UserError(f"{idle[0]} says how --reward-model is meant; give --reward-model too")


def on_device(chosen: Chosen, own: str, flag: str) -> Chosen:
    """With `auto` as the device that `own` means. Raises UserError for one that is not there."""
    from grpo_math.learned.local import device_of
    from grpo_math.policy import pick_device

    return replace(chosen, device=str(device_of(chosen.device, pick_device(own), flag)))


def named_paths(given: Sequence[str], flag: str = "--reward-model") -> dict[str, str]:
    """DIR or NAME=DIR -> the folders or Hub ids by name; without a name it is the folder's. Raises UserError."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).resolve().name if Path(text).is_dir() else Path(text).name, text
        if not name or not path:
            raise UserError(f"{flag} {text}: write DIR, or NAME=DIR")
        if name in found:
            raise UserError(
                f"{flag} {text}: {name} is the name of {found[name]} too; tell them apart, such as {flag} other={path}"
            )
        found[name] = path
    return found


def reward_specs(paths: Mapping[str, str], chosen: Chosen, key: str = KEY) -> list[RewardSpec]:
    """Each with what its config.json says of it. Raises UserError: no reward model, a boundary that there is not, or
    one for a model that reads no steps."""
    specs = [_spec(name, path, chosen, key) for name, path in paths.items()]
    for flag, value in (("--aggregate", chosen.aggregate), ("--boundary", chosen.boundary)):
        if value is not None and not any(spec.reward.kind == "process" for spec in specs):
            raise UserError(
                f"{flag} {value} speaks of the steps that a process model scores, and there is none; leave it out"
            )
    return specs


def _spec(name: str, path: str, chosen: Chosen, key: str) -> RewardSpec:
    from grpo_math.learned.make import settings_of

    settings = settings_of(path, key)
    kind = kind_of(settings, path, key)
    steps = kind == "process"
    try:
        reward = LearnedReward(
            model=path,
            kind=kind,
            aggregate=(chosen.aggregate or "min") if steps else None,
            boundary=chosen.boundary if steps else None,
            chat=chosen.chat,
            device=chosen.device,
        )
    except ValidationError as error:
        raise UserError(f"{key}.model={path}: {error.errors()[0]['msg']}") from None
    check_learned(reward, key)
    how = trained(settings, reward, key)
    manifest = {
        **model_manifest(path, path),
        "revision": settings.get("_commit_hash"),  # of a Hub id
        "kind": kind,
        "aggregate": reward.aggregate,
        "boundary": (reward.boundary or how.boundary or DEFAULT_BOUNDARY) if steps else None,
        "chat": chosen.chat,
        "dtype": chosen.dtype,
        "device": chosen.device,
        "micro_batch_tokens": chosen.micro_batch_tokens,  # texts that are read together round together
    }
    digest = sha256(json.dumps(manifest, sort_keys=True))
    return RewardSpec(name, reward, manifest, digest, chosen.dtype, chosen.device, chosen.micro_batch_tokens)


def kind_of(settings: Mapping[str, Any], path: str, key: str) -> LearnedKind:
    """Of a model, from its config.json. Raises UserError for a policy, a critic, or any other."""
    kind, architecture = kind_in(settings)
    for known in RECIPES:
        if known == kind:
            return known
    raise UserError(
        f"{key}.model={path} is {f'a {kind}, ' if kind else ''}{architecture}, which does not say how good a text is; "
        f"give a model trained with recipe: {' or '.join(RECIPES.values())}, or one saved with "
        f"{' or '.join(f'AutoModel{end}' for end in SUFFIXES)}"
    )
