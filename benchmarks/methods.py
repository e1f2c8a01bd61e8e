"""Six ways of learning from verified samples, from one base model: pass@1, and what it cost.

    python -m benchmarks.methods                                     a quarter of an hour on two idle cores
    python -m benchmarks.methods --base runs/quickstart/base         the base model that `make train` has made
    python -m benchmarks.methods --only rest_em online_dpo           some of them

Each method is its launch file, run as `grpo-math train` runs it. All models are then measured by the code of `make
train`, on the same held-out problems. Prints a table and draws docs/methods.png. What was interrupted goes on; a
method whose run is finished is only measured again. Left out: how good a method can be, or how cheap, when tuned
further; each was tuned a little, to reach its best in a few minutes.
"""

# samples drawn: to learn from; those of evaluations are not in it. trained on: completions, one as often as updates saw
# it. seconds: those that the steps took to sample, verify and update; without start-up and evaluations

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.machine import described, table
from grpo_math import config, quickstart
from grpo_math.config_file import load_config
from grpo_math.log import COMPLETIONS, write_whole
from grpo_math.recipes.run import Resume, run
from grpo_math.report.curve import COLOURS, DASHES, GREY, MARKERS, read_metrics, write_figure
from grpo_math.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAUNCH = Path("launch")
PICTURE = Path("docs/methods.png")
SFT = LAUNCH / "arithmetic_sft.yaml"  # makes the base model
WATCHED = ("evaluation.every=20", "evaluation.n=4", "evaluation.k=[1]", "evaluation.limit=200")


@dataclass(frozen=True)
class Method:
    """changes: to the launch file, where it does not measure the run on its way."""

    label: str
    file: str
    changes: tuple[str, ...] = ()


METHODS = {
    "grpo": Method("GRPO", "arithmetic_grpo.yaml", WATCHED),
    "rest": Method("ReST", "arithmetic_rest.yaml"),
    "rest_em": Method("ReST-EM", "arithmetic_rest_em.yaml"),
    "best_of_n": Method("best of n", "arithmetic_best_of_n.yaml"),
    "iterative_dpo": Method("iterative DPO", "arithmetic_iterative_dpo.yaml"),
    "online_dpo": Method("online DPO", "arithmetic_online_dpo.yaml"),
}

# How many completions an update learned from, by a row of metrics.jsonl. A group without a signal teaches GRPO nothing.
TRAINED: dict[type[config.Common], Callable[[Any, Mapping[str, Any]], float]] = {
    config.GRPO: lambda cfg, row: row["completion/count"] * (1 - row["groups/no_signal"]),
    config.REST: lambda cfg, row: min(cfg.prompts_per_step, row["round/kept"]),
    config.Preference: lambda cfg, row: 2 * row["data/examples"],
}


@dataclass(frozen=True)
class Point:
    """How good a run was, and what it had cost until then."""

    samples: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Outcome:
    """What a run cost, how it came along, and what its model was in the end worth (the figures of an evaluation)."""

    label: str
    samples: int
    trained: int
    updates: int
    seconds: float
    way: tuple[Point, ...]
    scores: Mapping[str, Any]

    @property
    def points(self) -> tuple[Point, ...]:
        """The way, with the better measured end in place of its own."""
        before = tuple(point for point in self.way if point.seconds < self.seconds)
        return (*before, Point(self.samples, self.seconds, self.scores["pass@1"]))


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    resume: Resume = "never" if given.fresh else "auto"
    base = base_run(given, resume)
    configurations = {name: configured(METHODS[name], name, base, given) for name in given.only}
    task = next(iter(configurations.values())).task
    assert task is not None
    start = quickstart.measure(base, task, given.out / "base-evaluation", given.seed)
    outcomes = []
    for name, cfg in configurations.items():
        print(f"\n{METHODS[name].label}: {cfg.run_dir}", flush=True)
        run(cfg, resume)
        scores = quickstart.measure(cfg, task, Path(cfg.run_dir) / "evaluation", given.seed)
        outcomes.append(outcome(METHODS[name].label, cfg, scores))
    results = {"base": start} | {one.label: one.scores for one in outcomes}
    write_whole(given.out / "results.json", json.dumps(results, indent=1) + "\n")
    print(f"\n{described(torch.get_num_threads(), 'torch', 'transformers')}\n\n{methods_table(start, outcomes)}")
    print(f"\n{picture(start['pass@1'], outcomes, given.picture)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=Path, help="run folder of the base model; left out, one is made as `make train` does")
    add("--out", type=Path, default=Path("runs/methods"), help="where the runs and results.json go")
    add("--only", nargs="+", choices=METHODS, default=list(METHODS))
    add("--seed", type=int, default=0, help="of the problems and the samples")
    add("--fresh", action="store_true", help="throw away the runs that are there")
    add("--threads", type=int, help="of torch; left out, as many as it takes")
    add("--picture", type=Path, default=PICTURE)
    return parser.parse_args(arguments)


def base_run(given: argparse.Namespace, resume: Resume) -> config.Common:
    """The run whose model all begin from, which is made where none is given."""
    folder = given.base or given.out / "base"
    changes = [f"seed={given.seed}", f"task.options.seed={given.seed}", f"run_dir={folder}"]
    cfg = load_config(SFT, changes)
    if given.base is None:
        run(cfg, resume)
    elif not (folder / "model").exists():
        raise UserError(f"--base {folder} has no model in it; give a run folder, such as runs/quickstart/base")
    return cfg


def configured(method: Method, name: str, base: config.Common, given: argparse.Namespace) -> config.Common:
    """A method's launch file, from this base model; other seeds have other problems too."""
    path = LAUNCH / method.file
    shipped = load_config(path)
    assert shipped.task is not None
    changes = [
        f"seed={given.seed}",
        f"task.options.seed={shipped.task.options['seed'] + given.seed}",
        f"run_dir={given.out / name}",
        f"model.path={base.run_dir}/model",
    ]
    return load_config(path, [*changes, *method.changes])


def outcome(label: str, cfg: config.Common, scores: Mapping[str, Any]) -> Outcome:
    """What the folder of a finished run says of it."""
    folder = Path(cfg.run_dir)
    with (folder / COMPLETIONS).open(encoding="utf-8") as stream:
        drawn = Counter(json.loads(line)["step"] for line in stream)
    samples, trained, updates, seconds = 0, 0.0, 0, 0.0
    way = []
    for row in read_metrics(folder):
        samples += drawn[row["step"]]
        seconds += sum(row[key] for key in row if key.startswith("time/") and key != "time/evaluate")
        trained += TRAINED[type(cfg)](cfg, row)
        updates += "loss/total" in row
        if row.get("eval/accuracy") is not None:
            way.append(Point(samples, seconds, row["eval/accuracy"]))
    return Outcome(label, samples, round(trained), updates, seconds, tuple(way), scores)


def methods_table(start: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    header = ("", "pass@1", "pass@8", "samples drawn", "trained on", "updates", "seconds")
    rows = [["base model", *shown(start), "", "", "", ""]]
    for one in outcomes:
        cost = [f"{one.samples:,}", f"{one.trained:,}", f"{one.updates:,}", f"{one.seconds:.0f}"]
        rows.append([one.label, *shown(one.scores), *cost])
    return table(header, rows)


def shown(scores: Mapping[str, Any]) -> tuple[str, str]:
    low, high = scores["pass@1_interval"]
    return f"{scores['pass@1']:.3f} [{low:.3f}, {high:.3f}]", f"{scores['pass@8']:.3f}"


def picture(start: float, outcomes: Sequence[Outcome], path: Path) -> Path:
    """Draw pass@1 over samples and over seconds to `path`, a .png, .svg or .pdf; returns `path`."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'grpo-math[plot]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style may have a dark background
        write_figure(draw(start, outcomes), path)
    return path


def draw(start: float, outcomes: Sequence[Outcome]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=150, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, start, outcomes, lambda point: point.samples)
    _panel(right, start, outcomes, lambda point: point.seconds)
    left.set_xlabel("completions drawn to learn from", color=GREY, fontsize=9)
    right.set_xlabel("seconds to sample, verify and learn", color=GREY, fontsize=9)
    figure.suptitle("pass@1 on held-out arithmetic, and what it cost", x=0.01, ha="left", fontsize=11, color="#222222")
    right.legend(loc="lower right", fontsize=8.5, labelspacing=0.35, framealpha=0)
    return figure


def _panel(axes: Axes, start: float, outcomes: Sequence[Outcome], cost: Callable[[Point], float]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8.5)
    axes.axhline(start, color=GREY, linestyle=":", linewidth=1.2)
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": GREY, "fontsize": 8.5}
    axes.text(0.01, start - 0.015, f"base model  {start:.3f}", va="top", **beside)
    for i, one in enumerate(outcomes):
        x, y = [cost(point) for point in one.points], [point.accuracy for point in one.points]
        colour: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "clip_on": False, "zorder": 3}
        axes.plot(x, y, linestyle="", marker="o", markersize=3, **colour)
        # the end is measured on more problems than the way, and shown so
        end: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 8, "markevery": [-1]}
        line: dict[str, Any] = {
            "linestyle": DASHES[i % len(DASHES)],
            "linewidth": 1.8,
            "label": f"{one.label}  {y[-1]:.3f}",
        }
        axes.plot(x, y, **line, **end, **colour)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
