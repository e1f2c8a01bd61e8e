"""The progress of a run in the terminal. Left out: everything that is kept, which is in log.py."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

LONG = 200  # items from which a progress bar is worth its flicker
LOSS_NOTE = (
    "note: a loss of 0 is expected here and is no fault. On the first update after sampling every ratio is 1 and the "
    "advantages of a group sum to 0; the gradient is not 0. Watch reward and accuracy instead."
)

FALLING_NOTE = (
    "note: the chosen completions have become less likely than under the reference. The loss only asks that the "
    "rejected ones fall faster. loss=rpo, apo_zero or nca hold the chosen ones up; a lower learning rate helps too."
)
ALARM = "guard/alarm/"  # metrics that are 1 while a guard's alarm rings, 0 else
ALARM_NOTES = {
    "gap": "the reward models' scores rise, and the verified reward does not keep up",
    "correlation": "the reward models no longer prefer what the verifier finds right",
    "length_correlation": "the reward models' scores go with the length of the completions",
    "above_p99": "the reward models' scores lie where hardly any of their training data did",
}
ALARM_REMEDY = (
    "The policy may be learning to please the model. Train the reward model on the newest samples, give it less weight "
    "or a clip, raise kl.coefficient, or go back to an earlier checkpoint; see docs/learned_rewards.md."
)
FALLING = -1.0  # nats a completion, from which it is worth that note

# what the line shows, from which metric, and how; a metric that is absent (KL that is off) takes no room
PARTS = (
    ("reward", "reward/mean", "{:.2f}"),
    ("acc", "reward/accuracy", "{:.2f}"),
    ("kl", "kl/ref", "{:.4f}"),
    ("entropy", "policy/entropy", "{:.2f}"),
    ("length", "completion/length", "{:.0f}"),
    ("no-signal", "groups/no_signal", "{:.0%}"),
    ("margin", "implicit/margin", "{:+.3f}"),
    ("preferred", "implicit/accuracy", "{:.2f}"),
    ("chosen", "logprobs/chosen_change", "{:+.2f}"),
    ("rejected", "logprobs/rejected_change", "{:+.2f}"),
    ("kept", "round/kept", "{:.0f}"),
    ("acc", "score/accuracy", "{:.2f}"),
    ("auc", "score/auc", "{:.2f}"),
    ("eval acc", "eval/accuracy", "{:.2f}"),
    ("eval auc", "eval/auc", "{:.2f}"),
    ("eval f1", "eval/first_error_f1", "{:.2f}"),
)
TIMES = (("gen", "time/generate"), ("verify", "time/verify"), ("update", "time/update"))


class Progress:
    """The progress of a run: one line per step, or on a terminal one line that is kept up to date."""

    def __init__(self, steps: int, first_step: int = 0, stream: TextIO | None = None) -> None:
        """steps: of the whole run. first_step: how many of them were done before by the run that this continues."""
        self.steps = steps
        self.first_step = first_step
        self.stream = stream or sys.stderr
        self.began = time.monotonic()
        self.explained: set[str] = set()
        self._live: Any = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            # no refreshing thread: the scoring workers are forked off this process
            self._live = Live(console=Console(file=self.stream), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show step `step` (from 1), and on the first one with a loss of 0 say why that is as it should be."""
        elapsed = time.monotonic() - self.began
        line = progress_line(step, self.steps, metrics, elapsed, done=step - self.first_step)
        if self._live:
            from rich.text import Text

            self._live.update(Text(_fold(line, self._live.console.width)), refresh=True)
        else:
            print(line, file=self.stream, flush=True)
        # not at a step that trains nothing, a critic's warm-up or one without signal: 0 is another thing there
        trained = "loss/total" in metrics and metrics.get("groups/no_signal", 0.0) < 1
        first_reward = "reward/mean" in metrics and trained and LOSS_NOTE not in self.explained
        if first_reward and abs(metrics["loss/total"] or 0.0) < 1e-3:
            self.note(LOSS_NOTE)
        if metrics.get("logprobs/chosen_change", 0.0) < FALLING and FALLING_NOTE not in self.explained:
            self.note(FALLING_NOTE)
            self.explained.add(FALLING_NOTE)
        if first_reward:
            self.explained.add(LOSS_NOTE)
        new = [name for name in ringing(metrics) if name not in self.explained]
        if new:
            what = "; ".join(f"{ALARM_NOTES.get(name, name)} ({alarm(name, metrics)})" for name in new)
            self.note(f"alarm at step {step}: {what}. {ALARM_REMEDY}")
        self.explained = {*self.explained.difference(ALARM_NOTES), *ringing(metrics)}

    def note(self, text: str) -> None:
        """A line that stays, above the one that changes."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)


def bar(total: int) -> Callable[[int], None]:
    """Shows on a terminal how many of `total` items are done, and is gone at the end. Nothing for what is quick."""
    if total < LONG or not sys.stderr.isatty():
        return lambda done: None
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if done == total:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        elif done - shown >= total // 100:
            shown = done
            print(f"\r[{'#' * (40 * done // total):<40}] {done:,}/{total:,}", end="", file=sys.stderr, flush=True)

    return show


def progress_line(step: int, steps: int, metrics: Mapping[str, Any], elapsed: float, done: int | None = None) -> str:
    """step 12/100  reward 0.62  acc 0.60  ...  gen 0.8s verify 0.1s update 1.2s  eta 2m10s

    elapsed: seconds that the last `done` steps took (all `step` of them where None), for the time left. A run without
    rewards (sft) shows its loss in their place. None and NaN, a mean of nothing, show as "-".
    """
    parts = [f"step {step}/{steps}"]
    shown = PARTS if "reward/mean" in metrics else (("loss", "loss/total", "{:.3f}"), *PARTS)
    parts += [f"{label} {_number(metrics[key], form)}" for label, key, form in shown if key in metrics]
    parts += [f"ALARM {alarm(name, metrics)}" for name in ringing(metrics)]
    times = [f"{label} {_number(metrics[key], '{:.1f}s')}" for label, key in TIMES if key in metrics]
    parts += [" ".join(times)] if times else []
    done = step if done is None else done
    if step < steps and done > 0:
        parts.append(f"eta {duration(elapsed / done * (steps - step))}")
    return "  ".join(parts)


def ringing(metrics: Mapping[str, Any]) -> list[str]:
    """The guards whose alarm rings."""
    return [key.removeprefix(ALARM) for key, value in metrics.items() if key.startswith(ALARM) and value]


def alarm(name: str, metrics: Mapping[str, Any]) -> str:
    return f"{name} {_number(metrics.get(f'guard/{name}'), '{:.2f}')}"


def _fold(line: str, width: int) -> str:
    """Break between parts, never inside one."""
    rows: list[str] = []
    for part in line.split("  "):
        if rows and len(rows[-1]) + 2 + len(part) <= width:
            rows[-1] += f"  {part}"
        else:
            rows.append(part)
    return "\n".join(rows)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s" if m else f"{s}s"
