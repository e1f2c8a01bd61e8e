"""How a run begins: checks, the checkpoint to go on from, the parts, the folder.

Left out: the steps (loop.py), and anything about the algorithm, which is in grpo.py and sft.py.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from grpo_math import checkpoint, config
from grpo_math.backend.make import starting_policy
from grpo_math.config_file import dump_config
from grpo_math.log import CHECKPOINTS, COMPLETIONS, METRICS, ReadOnlyFolder, RunFolder
from grpo_math.policy import pick_device
from grpo_math.preflight import all_rewards, check_packages, isolation_of, preflight
from grpo_math.problems import load_problems
from grpo_math.rank_checks import check_ranks
from grpo_math.ranks import Ranks, join, leave
from grpo_math.recipes.from_files import examples_of, learns_from_files
from grpo_math.recipes.grpo import GRPO
from grpo_math.recipes.loop import MODEL_LINK, Loop
from grpo_math.recipes.parts import Parts, Recipe, Stopwatch, build_parts, gold_check
from grpo_math.recipes.preference import Preference
from grpo_math.recipes.process_reward_model import process_reward_model
from grpo_math.recipes.rest import REST
from grpo_math.recipes.reward_files import with_length
from grpo_math.recipes.reward_model import reward_model
from grpo_math.recipes.rounds import ROUNDS
from grpo_math.recipes.same_run import refuse_another_run
from grpo_math.recipes.sft import SFT
from grpo_math.recipes.watchdog import Watchdog
from grpo_math.types import UserError

Resume = Literal["auto", "must", "never"]
RECIPES: dict[type[config.Common], Callable[[Any, Parts], Recipe]] = {
    config.GRPO: GRPO,
    config.SFT: SFT,
    config.Preference: Preference,
    config.REST: REST,
    config.RewardModel: reward_model,
    config.ProcessRewardModel: process_reward_model,
}


def run(cfg: config.Common, resume: Resume = "auto") -> None:
    """Train. `auto` goes on from the newest checkpoint in run_dir if there is one, `must` insists on one, `never`
    starts over. SIGTERM and Ctrl-C finish the step, save and leave with 128 + the signal's number.

    Under torchrun or the deepspeed launcher every rank calls it; the first one writes and speaks for all."""
    # later than the watchdog, which names the phase
    ranks = join(cfg.phase_timeout_s + 60.0)
    try:
        with redirect_stdout(sys.stdout if ranks.first else open(os.devnull, "w")):
            _run(cfg, resume, ranks)
    finally:
        leave()


def _run(cfg: config.Common, resume: Resume, ranks: Ranks) -> None:
    ranks.tell(lambda: preflight(cfg, ranks.size))
    check_packages(cfg)
    check_ranks(ranks, cfg)
    cfg = cfg.model_copy(update={"rewards": all_rewards(cfg) or None})
    ranks.tell(lambda: refuse_another_run(cfg, fresh=resume == "never"))
    found = ranks.tell(lambda: newest(cfg, resume))
    pick_device(cfg.backend.device)
    source = None if cfg.task is None else load_problems(cfg.task, gold_check(cfg))
    if source is not None and not learns_from_files(cfg):
        source.require(cfg.prompts_per_step)
    examples, held_out = ranks.together(lambda: examples_of(cfg))
    written, cfg = cfg, with_length(cfg, examples)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(cfg.seed)
    with Watchdog(cfg.phase_timeout_s, Path(cfg.run_dir) / f"stacks-{ranks.rank}.txt") as watchdog:
        with Stopwatch(watchdog)("load"):
            policy, updates = starting_policy(cfg), updates_of(cfg)
            parts = build_parts(cfg, policy, updates, source, ranks, watchdog, examples, held_out)
            recipe = make_recipe(cfg, parts)
            loop = Loop(cfg, parts, recipe)
        # nothing is written, and of an earlier run nothing thrown away, before all that can be wrong has been seen
        with (
            closing(parts.backend),
            closing(parts.engine),
            closing(recipe),
            open_folder(written, ranks) as folder,
            parts.scorer or nullcontext(),
        ):
            if resume == "never" and ranks.first:
                clear(folder)
            report_refused(parts)
            report_isolation(cfg)
            loop.go(folder, found)


def make_recipe(cfg: config.Common, parts: Parts) -> Recipe:
    return RECIPES[type(cfg)](cfg, parts)


def open_folder(cfg: config.Common, ranks: Ranks) -> RunFolder:
    """The first rank writes; the others know where."""
    return ranks.together(
        lambda: RunFolder(cfg.run_dir, dump_config(cfg), cfg.seed) if ranks.first else ReadOnlyFolder(cfg.run_dir)
    )


def report_isolation(cfg: config.Common) -> None:
    """Say which walls are around programs that the model writes, where any are run."""
    if (report := isolation_of(cfg)) is not None:
        print("programs run at isolation", "\n  ".join(report.lines()))


def newest(cfg: config.Common, resume: Resume) -> tuple[int, Path] | None:
    """The checkpoint to go on from, None where the run begins."""
    run_dir = Path(cfg.run_dir)
    if resume == "never":
        if cfg.model.path and Path(cfg.model.path).resolve().is_relative_to(run_dir.resolve()):
            raise UserError(
                f"model.path={cfg.model.path} lies in run_dir={cfg.run_dir}, which is emptied; give another run_dir"
            )
        return None
    found = checkpoint.latest(run_dir / CHECKPOINTS)
    if found is None and resume == "must":
        raise UserError(f"--resume: run_dir={cfg.run_dir} has no checkpoint; leave --resume out to start there")
    if found is None and any((run_dir / CHECKPOINTS).glob("step-*")):
        raise UserError(
            f"run_dir={cfg.run_dir}: every checkpoint is damaged (see above); put a good copy back, or use --fresh "
            "to throw the run away"
        )
    return found


def updates_of(cfg: config.Common) -> int:
    """Optimizer updates that the learning-rate schedule stretches over: those of the whole run, or of a round that
    begins anew."""
    if isinstance(cfg, config.GRPO):
        return (cfg.steps - cfg.critic.warmup_steps) * cfg.updates_per_step * cfg.passes
    return cfg.steps_per_round if isinstance(cfg, config.REST) and cfg.start == "base" else cfg.steps


def clear(folder: RunFolder) -> None:
    """Throw away what an earlier run left, and nothing that is not a run's."""
    for name in (CHECKPOINTS, ROUNDS, "tensorboard"):
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in (METRICS, COMPLETIONS, MODEL_LINK):
        (folder.path / name).unlink(missing_ok=True)


def report_refused(parts: Parts) -> None:
    refused = parts.stream.problems.source.refused if parts.stream else []
    if refused:
        problem, complaint = refused[0]
        where = problem.metadata.get("source", problem.id)
        print(
            f"{len(refused)} problems left out, their answers being of no use to the verifier; the first: "
            f"{where}: {complaint}"
        )
