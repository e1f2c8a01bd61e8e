"""Which settings make two commands the same run, and so let the second go on where the first stopped."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import yaml

from grpo_math import config
from grpo_math.config_file import dump_config, flat
from grpo_math.log import CHECKPOINTS
from grpo_math.types import UserError

# what may change between the parts of one run: none of it changes what a step computes, but for rounding
FREE_TO_CHANGE = (
    "run_dir",
    "checkpoint.",
    "evaluation.",
    "scoring.",
    "sandbox.require",
    "sandbox.at_most",
    "phase_timeout_s",
    "guards.",
    "micro_batch_tokens",
    "rollout.max_rows",
    "backend.logprob_chunk",
    "backend.gradient_checkpointing",
    "backend.packing",
    "backend.deepspeed.",
    "held_out.every",
    "held_out.limit",
    "rollout.vllm.",
    "rollout.server.",
)
# where a reward model scores, and how many texts at once
SCORED_WHERE = re.compile(r"rewards\.\d+\.(url|device|offload|micro_batch_tokens)")


def free_keys(cfg: config.Common) -> tuple[str, ...]:
    """What may change in a run of this kind."""
    # rest compares each round's score with those before, and ends by it
    free = tuple(k for k in FREE_TO_CHANGE if not (isinstance(cfg, config.REST) and k == "evaluation."))
    length = key_of_length(cfg)
    return (*free, length, "steps") if length else free


def key_of_length(cfg: config.Common) -> str | None:
    """What to raise so that a run goes on beyond its end; None where a longer run would have begun otherwise."""
    if isinstance(cfg, config.REST):
        return "rounds" if cfg.start == "base" or cfg.optimizer.schedule == "constant" else None
    if isinstance(cfg, config.RewardCommon) and cfg.epochs is not None:
        return "epochs" if cfg.optimizer.schedule == "constant" else None
    staged = isinstance(cfg, config.Preference) and cfg.stages > 1
    # a schedule that falls towards the last step changes with it, and so do parts that are cut by the number of steps
    return "steps" if cfg.optimizer.schedule == "constant" and not staged else None


def identity(tree: Any, free: tuple[str, ...]) -> dict[str, Any]:
    """The settings that must stay, by dotted key."""
    settings = flat(tree).items()
    return {key: value for key, value in settings if not key.startswith(free) and not SCORED_WHERE.fullmatch(key)}


def fingerprint(cfg: config.Common) -> int:
    """The same for the parts of one run."""
    return zlib.crc32(repr(sorted(identity(yaml.safe_load(dump_config(cfg)), free_keys(cfg)).items())).encode())


def refuse_another_run(cfg: config.Common, fresh: bool) -> None:
    """A folder that holds a run with other settings is not gone on with in silence."""
    written = Path(cfg.run_dir) / "config.yaml"
    if fresh or not any((Path(cfg.run_dir) / CHECKPOINTS).glob("step-*")):
        return
    try:
        tree = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(
            f"{written} is missing or damaged, so it cannot be told whether this is the same run; put it back, or give "
            "another run_dir, or --fresh to throw that run away"
        )
    free = free_keys(cfg)
    before, now = identity(tree, free), identity(yaml.safe_load(dump_config(cfg)), free)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        lines = "\n".join(f"  {key}: was {before.get(key)}, now {now.get(key)}" for key in changed)
        raise UserError(
            f"run_dir={cfg.run_dir} holds a run with other settings:\n{lines}\n"
            "Give another run_dir, the old settings, or --fresh to throw that run away"
        )
