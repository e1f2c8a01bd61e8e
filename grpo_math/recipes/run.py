"""What surrounds every recipe's step: the run folder, resuming, checkpoints, evaluation, progress, and signals.

Left out: anything about the algorithm, which is in grpo.py and sft.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
import yaml

from grpo_math import checkpoint, config
from grpo_math.config_file import dump_config
from grpo_math.evaluate import summarise
from grpo_math.groups import TooManyErrors
from grpo_math.log import CHECKPOINTS, COMPLETIONS, METRICS, Progress, RunFolder
from grpo_math.plan import isolation_of, preflight, resolve_rewards
from grpo_math.policy import Policy, load_policy, make_policy, pick_device
from grpo_math.problems import load_problems
from grpo_math.recipes.grpo import GRPO
from grpo_math.recipes.parts import (
    Parts,
    Recipe,
    StepResult,
    Stopwatch,
    build_parts,
    gold_check,
    held_out_prompts,
    step_seed,
)
from grpo_math.recipes.records import completion_records
from grpo_math.recipes.sft import SFT
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Prompt, Sampling, UserError

Resume = Literal["auto", "must", "never"]
STATE_FILE = "run.json"
MODEL_LINK = "model"  # run_dir/model is always the newest checkpoint, an ordinary Hugging Face folder
# what may change between the parts of one run: none of it changes what a step computes, but for rounding
FREE_TO_CHANGE = (
    "run_dir",
    "checkpoint.",
    "evaluation.",
    "scoring.",
    "sandbox.require",
    "sandbox.at_most",
    "phase_timeout_s",
    "micro_batch_tokens",
    "rollout.max_rows",
    "backend.logprob_chunk",
)


def run(cfg: config.Common, resume: Resume = "auto") -> None:
    """Train. `auto` goes on from the newest checkpoint in run_dir if there is one, `must` insists on one, `never`
    starts over. SIGTERM and Ctrl-C finish the step, save and leave with 128 + the signal's number."""
    preflight(cfg)
    cfg = cfg.model_copy(update={"rewards": resolve_rewards(cfg)})
    refuse_another_run(cfg, resume)
    found = newest(cfg, resume)
    pick_device(cfg.backend.device)
    source = load_problems(cfg.task, gold_check(cfg))
    source.require(cfg.prompts_per_step)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(cfg.seed)
    parts = build_parts(cfg, starting_policy(cfg), updates_of(cfg), source)
    recipe: Recipe = GRPO(cfg, parts) if isinstance(cfg, config.GRPO) else SFT(cfg, parts)  # type: ignore[arg-type]
    loop = Loop(cfg, parts, recipe)
    # nothing is written, and of an earlier run nothing thrown away, before all that can be wrong has been seen
    with RunFolder(cfg.run_dir, dump_config(cfg), cfg.seed) as folder, parts.scorer, parts.watchdog:
        if resume == "never":
            clear(folder)
        report_refused(parts)
        report_isolation(cfg)
        loop.go(folder, found)


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
    """Optimizer updates of the whole run, which the learning-rate schedule stretches over."""
    return cfg.steps * (cfg.updates_per_step * cfg.passes if isinstance(cfg, config.GRPO) else 1)


def starting_policy(cfg: config.Common) -> Policy:
    """The model of model.path, or one made from model.new."""
    device = pick_device(cfg.backend.device)
    if cfg.model.new is None:
        return load_policy(cfg.model, device)
    tokenizer = character_tokenizer()
    return make_policy(small_model(cfg.model.new, tokenizer, cfg.seed).to(device), tokenizer)


class Loop:
    """Steps from the checkpoint, or from 1, to the last."""

    folder: RunFolder

    def __init__(self, cfg: config.Common, parts: Parts, recipe: Recipe) -> None:
        self.cfg, self.parts, self.recipe = cfg, parts, recipe
        self.held_out: list[Prompt] = []
        if cfg.evaluation.every:
            task = cfg.evaluation.task or held_out_task(cfg.task)
            if cfg.evaluation.limit and not task.limit:
                task = task.model_copy(update={"limit": cfg.evaluation.limit})
            self.held_out = held_out_prompts(task, cfg, parts.policy)

    def go(self, folder: RunFolder, found: tuple[int, Path] | None) -> None:
        cfg, start, self.folder = self.cfg, 0, folder
        if found is not None:
            start = found[0]
            if self.restore(found[1], start):
                more = "raise steps to go on, or use" if cfg.optimizer.schedule == "constant" else "use"
                print(f"{cfg.run_dir}: finished at step {start}; {more} --fresh to start over")
                return
            print(f"{cfg.run_dir}: continuing after step {start}")
        self.folder.truncate_after(start)
        saved = start
        with Progress(cfg.steps, start) as progress, stop_signals() as stop:
            for step in range(start + 1, cfg.steps + 1):
                result = self.step(step)
                self.folder.log_completions(step, result.completions)
                self.folder.log_metrics(step, result.metrics)
                progress.step(step, result.metrics)
                last = result.finished or step == cfg.steps
                if last or stop.signal or (cfg.checkpoint.every and step % cfg.checkpoint.every == 0):
                    self.save(step, last)
                    saved = step
                if last or stop.signal:
                    break
        if stop.signal:
            print(f"{cfg.run_dir}: saved after step {saved}; the same command goes on from there")
            raise SystemExit(128 + stop.signal)

    def step(self, step: int) -> StepResult:
        try:
            result = self.recipe.step(step)
        except TooManyErrors as error:
            self.folder.log_completions(step, completion_records(step, error.groups, [], None, None))
            raise
        metrics = dict(result.metrics)
        if self.cfg.evaluation.every and step % self.cfg.evaluation.every == 0:
            watch = Stopwatch(self.parts.watchdog)
            with watch("evaluate"):
                metrics |= self.evaluate(step)
            metrics |= watch.metrics()
        metrics["prompts/too_long"] = float(self.parts.stream.too_long)
        return replace(result, metrics=metrics)

    def evaluate(self, step: int) -> dict[str, float]:
        chosen = self.cfg.evaluation
        temperature = self.cfg.sampling.temperature if chosen.temperature is None else chosen.temperature
        seed = step_seed(self.cfg.seed, "evaluate")
        sampling = Sampling(chosen.n, self.cfg.sampling.max_tokens, temperature, seed=seed)
        groups = self.parts.score(self.held_out, self.parts.engine.generate(self.held_out, sampling))
        summary = summarise(groups, chosen.k)
        return {f"eval/{name}": float(value) for name, value in summary.items() if isinstance(value, int | float)}

    def save(self, step: int, finished: bool) -> None:
        def write(path: Path) -> None:
            self.parts.backend.save(path)
            state = {
                "step": step,
                "finished": finished,
                "steps": self.cfg.steps,
                "recipe": self.recipe.save(path),
                "stream": self.parts.stream.state(),
                "random": checkpoint.random_states(),
            }
            (path / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

        def use(path: Path) -> None:
            link, fresh = self.folder.path / MODEL_LINK, self.folder.path / f".{MODEL_LINK}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(path.relative_to(self.folder.path))
            fresh.replace(link)

        checkpoint.save(self.folder.checkpoints, step, write, self.cfg.checkpoint.keep, use)

    def restore(self, path: Path, step: int) -> bool:
        """Whether the run had reached its end: its last step, or what the recipe was asked for."""
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state["finished"] and (state["step"] < state["steps"] or self.cfg.steps <= state["step"]):
            return True
        self.parts.backend.load(path)
        self.recipe.load(path, state["recipe"], step)
        self.parts.stream.restore(state["stream"])
        checkpoint.restore_random_states(state["random"])
        return False


def held_out_task(task: config.Task) -> config.Task:
    """The test split of the training task, which a single file does not have."""
    if task.path is not None and "{split}" not in task.path:
        raise UserError(
            f"evaluation.every is set, but task.path={task.path} is one file and evaluation would be on the training "
            "problems; write the split into it, as in DIR/gsm8k_{split}.jsonl, or set evaluation.task"
        )
    return task.model_copy(update={"split": "test"})


def refuse_another_run(cfg: config.Common, resume: Resume) -> None:
    """A folder that holds a run with other settings is not gone on with in silence."""
    written = Path(cfg.run_dir) / "config.yaml"
    if resume == "never" or not any((Path(cfg.run_dir) / CHECKPOINTS).glob("step-*")):
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
    before = flat(tree)
    now = flat(yaml.safe_load(dump_config(cfg)))
    # a schedule that falls towards the last step changes with it
    free = FREE_TO_CHANGE + (("steps",) if cfg.optimizer.schedule == "constant" else ())
    differing = (key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = sorted(key for key in differing if not key.startswith(free))
    if changed:
        lines = "\n".join(f"  {key}: was {before.get(key)}, now {now.get(key)}" for key in changed)
        raise UserError(
            f"run_dir={cfg.run_dir} holds a run with other settings:\n{lines}\n"
            "Give another run_dir, the old settings, or --fresh to throw that run away"
        )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v for name, value in tree.items() for k, v in flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def clear(folder: RunFolder) -> None:
    """Throw away what an earlier run left, and nothing that is not a run's."""
    for name in (CHECKPOINTS, "tensorboard"):
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for name in (METRICS, COMPLETIONS, MODEL_LINK):
        (folder.path / name).unlink(missing_ok=True)


def report_refused(parts: Parts) -> None:
    refused = parts.stream.problems.source.refused
    if refused:
        problem, complaint = refused[0]
        where = problem.metadata.get("source", problem.id)
        print(
            f"{len(refused)} problems left out, their answers being of no use to the verifier; the first: "
            f"{where}: {complaint}"
        )


@dataclass
class StopSignal:
    signal: int = 0


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """SIGINT, SIGTERM and SIGHUP are noted; the loop looks after each step. A second one stops without saving."""
    stop = StopSignal()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number
        # os.write, not print: the signal may have come in the middle of one
        os.write(2, b"\nfinishing this step, then saving; once more to leave at once\n")

    # a closed terminal is an end like any other, unless nohup has said that it is none
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
