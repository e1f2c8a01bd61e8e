"""The steps of a run, whatever the recipe: logging, evaluation, checkpoints, and an end in good order.

Left out: what happens before the first step (run.py) and in one (grpo.py, sft.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math import checkpoint, config
from grpo_math.backend.base import Metrics
from grpo_math.groups import TooManyErrors
from grpo_math.log import Progress, RunFolder
from grpo_math.recipes.held_out import HeldOut
from grpo_math.recipes.parts import Parts, Recipe, StepResult, Stopwatch
from grpo_math.recipes.records import completion_records
from grpo_math.recipes.same_run import key_of_length
from grpo_math.recipes.signals import stop_signals
from grpo_math.types import EngineError

STATE_FILE = "run.json"
MODEL_LINK = "model"  # run_dir/model is always the newest checkpoint, an ordinary Hugging Face folder


@dataclass(frozen=True)
class Done:
    """Where the run stands after a step."""

    step: int
    stream: dict[str, Any]
    random: dict[str, Any]


class Loop:
    """Steps from the checkpoint, or from 1, to the last."""

    folder: RunFolder

    def __init__(self, cfg: config.Common, parts: Parts, recipe: Recipe) -> None:
        self.cfg, self.parts, self.recipe = cfg, parts, recipe
        self.done = Done(0, recipe.stream.state(), checkpoint.random_states())
        self.saving = False
        self.held_out = HeldOut(cfg, parts) if cfg.evaluation.every else None

    def go(self, folder: RunFolder, found: tuple[int, Path] | None) -> None:
        cfg, start, self.folder = self.cfg, 0, folder
        if found is not None:
            start = found[0]
            with Stopwatch(self.parts.watchdog)("load"):
                ended = self.restore(found[1], start)
            if ended:
                longer = key_of_length(cfg) if start >= cfg.steps else None  # else it has ended early, by itself
                more = f"raise {longer} to go on, or use" if longer else "use"
                print(f"{cfg.run_dir}: finished at step {start}; {more} --fresh to start over")
                return
            print(f"{cfg.run_dir}: continuing after step {start}")
        self.folder.truncate_after(start)
        self.mark(start, self.recipe.stream.state())
        self.saved = start
        self.parts.watchdog.rescue = self.rescue
        # the other ranks' standard output goes nowhere, see run.py
        stream = sys.stderr if self.parts.ranks.first else sys.stdout
        with Progress(cfg.steps, start, stream) as progress, stop_signals() as stop:
            self.phase("sync", lambda: self.recipe.sync(start))
            if not self.recipe.samples_in(start + 1):
                self.parts.engine.sleep()
            for step in range(start + 1, cfg.steps + 1):
                result = self.train(step)
                self.folder.log_completions(step, result.completions)
                metrics = result.metrics | {"prompts/too_long": float(result.stream["too_long"])}
                try:
                    metrics |= self.after(step)
                finally:
                    self.folder.log_metrics(step, metrics)
                progress.step(step, metrics)
                # a signal that one rank has got is a signal to all
                stop.signal = self.parts.ranks.any(stop.signal)
                last = result.finished or step == cfg.steps
                due = cfg.checkpoint.every and step % cfg.checkpoint.every == 0
                if last or stop.signal or result.stopped or result.worth_saving or due:
                    self.phase("checkpoint", lambda: self.save(last))  # noqa: B023 -- called at once
                if last or stop.signal or result.stopped:
                    break
        if result.stopped and not last:
            print(f"{cfg.run_dir}: stopped after step {self.saved}: {result.stopped}")
        if stop.signal:
            self.parts.ranks.wait()  # a launcher ends the other ranks as soon as one has left
            print(f"{cfg.run_dir}: saved after step {self.saved}; the same command goes on from there")
            raise SystemExit(128 + stop.signal)

    def train(self, step: int) -> StepResult:
        try:
            result = self.recipe.step(step)
        except TooManyErrors as error:
            self.folder.log_completions(
                step, completion_records(step, error.groups, [], None, None, temperature=self.cfg.sampling.temperature)
            )
            raise
        except EngineError as error:
            raise EngineError(f"{error}\n{self.rescue(together=True)}") from error
        except Exception:
            if self.parts.ranks.size == 1:  # of several ranks perhaps only this one is here
                print(self.rescue(), file=sys.stderr)
            raise
        self.mark(step, result.stream)
        return result

    def after(self, step: int) -> Metrics:
        """The sampler gets the new weights, and is measured with them, where either is due."""
        samples = self.recipe.samples_in(step + 1)
        measured = self.held_out if self.held_out and step % self.cfg.evaluation.every == 0 else None
        watch = Stopwatch(self.parts.watchdog)
        metrics: Metrics = {}
        try:
            if samples or measured:
                with watch("sync"):
                    self.recipe.sync(step)
            if measured:
                with watch("evaluate"):
                    metrics |= measured.measure()
                if not samples:
                    self.parts.engine.sleep()
        except EngineError as error:
            raise EngineError(f"{error}\n{self.rescue(together=True)}") from error
        return metrics | watch.metrics()

    def phase(self, name: str, work: Callable[[], None]) -> None:
        """Under the watchdog's eye."""
        with Stopwatch(self.parts.watchdog)(name):
            work()

    def mark(self, step: int, stream: dict[str, Any]) -> None:
        """What a checkpoint of this step needs beside the weights, should it be made only when the next one fails."""
        self.done = Done(step, stream, checkpoint.random_states())
        self.recipe.between_updates = True

    def rescue(self, together: bool = False) -> str:
        """Save the last whole step, if the weights are still those after it. together: every rank is at this point;
        otherwise only a rank that is alone can save."""
        step, where = self.done.step, self.cfg.run_dir
        if step == self.saved == 0:
            return f"{where}: no step was done, so that nothing is lost"
        if step == self.saved:
            return f"{where}: the checkpoint of step {step} is the newest there can be"
        if self.saving or not self.recipe.between_updates or (self.parts.ranks.size > 1 and not together):
            return f"{where}: the run goes on from the checkpoint of step {self.saved}"
        self.save(False)
        return f"{where}: saved after step {step}; the same command goes on from there"

    def save(self, finished: bool) -> None:
        done, first = self.done, self.parts.ranks.first

        def write(path: Path) -> None:
            self.parts.backend.save(path)
            recipe = self.recipe.save(path)
            if first:
                state = {
                    "step": done.step,
                    "finished": finished,
                    "steps": self.cfg.steps,
                    "recipe": recipe,
                    "stream": done.stream,
                    "random": done.random,
                }
                (path / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

        def use(path: Path) -> None:
            link, fresh = self.folder.path / MODEL_LINK, self.folder.path / f".{MODEL_LINK}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(path.relative_to(self.folder.path))
            fresh.replace(link)

        self.saving = True
        try:
            keep = self.cfg.checkpoint.keep
            checkpoint.save(self.folder.checkpoints, done.step, write, keep, use, self.parts.ranks)
        finally:
            self.saving = False
        self.saved = done.step

    def restore(self, path: Path, step: int) -> bool:
        """Whether the run had reached its end: its last step, or what the recipe was asked for."""
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state["finished"] and (state["step"] < state["steps"] or self.cfg.steps <= state["step"]):
            return True
        self.parts.backend.load(path)
        self.recipe.load(path, state["recipe"], step)
        self.recipe.stream.restore(state["stream"])
        checkpoint.restore_random_states(state["random"])
        return False
