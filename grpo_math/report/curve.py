"""A run's curves as one picture: accuracy large, and small panels for what tells a good run from a broken one.

Reads metrics.jsonl (and config.yaml for the title), of a run that has ended or is still going. Several runs are laid
over one another. Left out: intervals, and completions, which are for reading.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
import yaml

from grpo_math.log import METRICS
from grpo_math.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which the colour-blind tell apart; a dash pattern each, for prints in grey
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")
GREY = "#5a5a5a"
SMOOTH = 20  # the drawn mean spans one step in so many
EVALUATION = re.compile(r"eval/(pass@\d+|accuracy)")


@dataclass(frozen=True)
class Panel:
    """One metric over the steps. share: it lies between 0 and 1, and so does the axis."""

    title: str
    key: str
    share: bool = False


ACCURACY = Panel("Accuracy (share of the sampled completions that are correct)", "reward/accuracy", share=True)
LOSS = Panel("Loss", "loss/total")
REWARD = Panel("Reward (mean)", "reward/mean")
HELD_OUT = Panel("Accuracy on held-out problems (share)", "", share=True)  # points only
SMALL = (
    REWARD,
    Panel("Completion length (tokens)", "completion/length"),
    Panel("Entropy (nats a token)", "policy/entropy"),
    Panel("Groups without signal (share)", "groups/no_signal", share=True),
    Panel("KL to the reference (nats a token)", "kl/ref"),
)


@dataclass(frozen=True)
class Run:
    """What one run folder says. rows: a dictionary for each step, in order."""

    name: str
    about: str
    rows: list[dict[str, Any]]

    def keys(self) -> set[str]:
        """The metrics with a number in some step."""
        return {key for row in self.rows for key, value in row.items() if _is_number(value)}

    def column(self, key: str) -> NDArray[np.float64]:
        """(steps,), NaN where a step has no such number."""
        values = (row.get(key) for row in self.rows)
        return np.array([float(value) if _is_number(value) else np.nan for value in values])


def curve(run_dir: Path | Sequence[Path], out: Path) -> Path:
    """Draw the run, or the runs, to `out`, whose name ends in .png, .svg or .pdf; returns `out`.

    Raises UserError: no metrics.jsonl, none with a whole step in it, no matplotlib, a file that cannot be written."""
    folders = [run_dir] if isinstance(run_dir, Path) else list(run_dir)
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {out}: the name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    names = [folder.resolve().name for folder in folders]
    runs = [
        Run(str(folder) if names.count(name) > 1 else name, about(folder), read_metrics(folder))
        for folder, name in zip(folders, names, strict=True)
    ]
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'grpo-math[plot]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style may have a dark background
        figure = draw(runs)
        write_figure(figure, out)
    return out


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, without a last line that is still being written or that a kill has torn."""
    path = folder / METRICS
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{METRICS}"))
        hint = f"did you mean {' or '.join(inside[:5])}?" if inside else "give the folder of a run, its run_dir"
        raise UserError(f"{path} cannot be read ({error.strerror}); {hint}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}:{number} is not a step's metrics; delete the line") from error
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no whole step in it yet; wait for the first one")
    return rows


def about(folder: Path) -> str:
    """What was run, in a line, from the run's config.yaml; empty where there is none that says it."""
    try:
        cfg = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        text = f"{cfg.get('algorithm', cfg['recipe'])} on {cfg['task']['name']}, seed {cfg['seed']}"
        size = f"{cfg['prompts_per_step']} prompts"
        return f"{text}, {size} x {cfg['group_size']} completions a step" if "group_size" in cfg else text
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return ""


def draw(runs: Sequence[Run]) -> Figure:
    from matplotlib.figure import Figure

    known = set().union(*(run.keys() for run in runs))
    main = ACCURACY if ACCURACY.key in known else LOSS
    small = [panel for panel in SMALL if panel.key in known]
    if all(_same(run, REWARD.key, ACCURACY.key) for run in runs):
        small = [panel for panel in small if panel is not REWARD]
    evaluations = sorted((key for key in known if EVALUATION.fullmatch(key)), key=lambda key: (len(key), key))
    if evaluations and main is not ACCURACY:  # a loss has another scale
        small.append(HELD_OUT)

    columns = max(1, len(small) if len(small) <= 4 else 3)
    height = -(-len(small) // columns)
    figure = Figure(figsize=(10, 4.2 + 2.3 * height), dpi=130, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(1 + height, columns, height_ratios=[1.9] + [1.0] * height)
    window = min(_window(len(run.rows)) for run in runs)
    axes = {main: figure.add_subplot(grid[0, :])}
    for i, panel in enumerate(small):
        axes[panel] = figure.add_subplot(grid[1 + i // columns, i % columns])
    for panel in axes:
        _lines(axes[panel], panel, runs, window, width=2.2 if panel is main else 1.5)
    note = f"   (thin: each step; thick: the mean over {window} steps)" if window > 1 else ""
    axes[main].set_xlabel(f"step{note}", color=GREY, fontsize=9)
    _points(axes.get(HELD_OUT, axes[main]), runs, evaluations)
    if len(runs) > 1:
        names = [f"{run.name}: {run.about}" if run.about else run.name for run in runs]
        lines = [{"color": _of(COLOURS, i), "linestyle": _of(DASHES, i), "linewidth": 2.2} for i in range(len(runs))]
        _legend(axes[main], "lower right", names, lines)
    title = f"{runs[0].name}   {runs[0].about}" if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(title.strip(), x=0.01, ha="left", fontsize=11, parse_math=False)
    return figure


def _lines(axes: Axes, panel: Panel, runs: Sequence[Run], window: int, width: float) -> None:
    last = max(row["step"] for run in runs for row in run.rows)
    axes.set_title(panel.title, loc="left", fontsize=9.5, color="#222222")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8.5)
    axes.set_xlim(0, 1.01 * last)
    axes.locator_params(axis="x", integer=True)
    lowest = 0.0
    for i, run in enumerate(runs):
        steps, values = run.column("step"), run.column(panel.key)
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        lowest = min(lowest, float(known.min()))
        if window > 1:
            axes.plot(steps, values, color=_of(COLOURS, i), linewidth=0.7, alpha=0.35)
        marker = "o" if len(known) == 1 else ""  # a line of one point would not be seen
        style = {"color": _of(COLOURS, i), "linestyle": _of(DASHES, i), "linewidth": width, "marker": marker}
        axes.plot(steps, _mean_over(values, window), **style)  # type: ignore[arg-type]
    if panel.share:
        axes.set_ylim(0, 1.02)
    elif lowest >= 0:
        axes.set_ylim(bottom=0)


def _points(axes: Axes, runs: Sequence[Run], keys: Sequence[str]) -> None:
    """The evaluations: a marker for each kind, in the run's colour."""
    marks = [{"linestyle": "", "marker": _of(MARKERS, i), "markerfacecolor": "white"} for i in range(len(keys))]
    for key, mark in zip(keys, marks, strict=True):
        for i, run in enumerate(runs):
            steps, values, edge = run.column("step"), run.column(key), _of(COLOURS, i)
            axes.plot(steps, values, **mark, markeredgecolor=edge, markeredgewidth=1.5, clip_on=False, zorder=3)  # type: ignore[arg-type]
    if keys:
        edge = COLOURS[0] if len(runs) == 1 else GREY
        names = [f"{key.removeprefix('eval/')}, held-out problems" for key in keys]
        _legend(axes, "upper left", names, [mark | {"markeredgecolor": edge} for mark in marks])


def _legend(
    axes: Axes, place: Literal["lower right", "upper left"], names: Sequence[str], styles: Sequence[dict[str, Any]]
) -> None:
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for style in styles]
    # a space in front: matplotlib leaves out names that begin with an underscore
    legend = Legend(axes, handles, [f" {name}" for name in names], loc=place, fontsize=8.5, edgecolor="white")
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.add_artist(legend)  # not axes.legend, which has room for one


def write_figure(figure: Figure, out: Path) -> None:
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            figure.savefig(temporary, format=out.suffix.lower().removeprefix("."))
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}); give another file") from error


def _window(steps: int) -> int:
    """How many steps the thick line is the mean of; odd, so that it has a middle."""
    return steps // SMOOTH // 2 * 2 + 1


def _mean_over(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """The mean of the numbers up to window // 2 steps away, of fewer at the ends; NaN where there is none."""
    ones, known = np.ones(window), np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), ones, "same")
    count = np.convolve(known.astype(float), ones, "same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _same(run: Run, one: str, other: str) -> bool:
    return bool(np.allclose(run.column(one), run.column(other), equal_nan=True))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of(styles: Sequence[str], number: int) -> str:
    return styles[number % len(styles)]
