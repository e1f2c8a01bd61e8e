"""pass@k over k as one picture: a line and its 95 % band for each task of an evaluation.

Left out: the estimates and their intervals (passk.py), and which ks are drawn, which is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.report.curve import COLOURS, DASHES, GREY, write_figure
from grpo_math.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Estimates = Mapping[int, tuple[float, float, float]]  # k: mean, low, high

WIDTH, LEAST_HEIGHT = 8.0, 4.6  # inches
ROOM = 0.15  # left and right of the ks, in powers of two
LABEL = 0.21  # inches of height that a line's label needs
TICK_APART = 0.045  # numbers that are closer, as a share of the axis, would run into each other


def pass_curve(figures: Mapping[str, Estimates], path: Path) -> Path:
    """Draw the tasks' pass@k (mean, low, high for each k) to `path`, a .png, .svg or .pdf; returns `path`.

    The same figures give the same bytes of a .png. Raises UserError: no task with figures, no matplotlib, a
    file that cannot be written."""
    shown = {task: estimates for task, estimates in figures.items() if estimates}
    if not shown:
        raise UserError("no task has a pass@k to draw; see results.json for what became of its samples")
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("a picture needs matplotlib: pip install 'grpo-math[plot]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style may have a dark background
        write_figure(draw(shown), path)
    return path


def draw(figures: Mapping[str, Estimates]) -> Figure:
    from matplotlib.figure import Figure

    height = max(LEAST_HEIGHT, 1.6 + LABEL * len(figures))
    figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    ks = {k for estimates in figures.values() for k in estimates}
    top = top_of(max(high for estimates in figures.values() for _, _, high in estimates.values()))
    _frame(axes, ks, top)
    ends = [estimates[max(estimates)][0] for estimates in figures.values()]
    gap = LABEL / (height - 1.1) * top  # what is not axes takes 1.1 inches
    heights = apart(ends, gap, top)
    for i, (task, estimates) in enumerate(figures.items()):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        # of one k alone there is no line, but a bar for each task: side by side
        shift = 2 ** (ROOM * (2 * i + 1 - len(figures)) / len(figures)) if len(ks) == 1 else 1.0
        _line(axes, estimates, shift, colour, dash, faint=len(figures) > 4)
        _label(axes, f"{task}  {ends[i]:.3f}", (max(estimates) * shift, ends[i]), heights[i], colour)
    return figure


def _frame(axes: Axes, ks: Collection[int], top: float) -> None:
    axes.set_title(
        "pass@k: share of problems solved by at least one of k samples",
        loc="left",
        fontsize=11,
        color="#222222",
        pad=10,
    )
    axes.set_xlabel("k, samples of a problem  (band: 95 % interval over problems)", color=GREY, fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ks) / 2**ROOM, max(ks) * 2**ROOM)
    shown = ticks(ks)
    axes.set_xticks(shown, labels=[f"{k}" for k in shown])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=8.5)


def _line(axes: Axes, estimates: Estimates, shift: float, colour: str, dash: str, faint: bool) -> None:
    ks = sorted(estimates)
    means, lows, highs = zip(*(estimates[k] for k in ks), strict=True)
    at = [k * shift for k in ks]
    if len(ks) == 1:
        axes.vlines(at, lows, highs, color=colour, linewidth=6, alpha=0.3)
    else:
        axes.fill_between(at, lows, highs, color=colour, alpha=0.09 if faint else 0.18, linewidth=0)
    marked = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white", "markeredgewidth": 1.5}
    axes.plot(at, means, color=colour, linestyle=dash, linewidth=2, clip_on=False, zorder=3, **marked)  # type: ignore[arg-type]


def _label(axes: Axes, text: str, end: tuple[float, float], height: float, colour: str) -> None:
    """`text` right of the axes at `height`, with a thin line to the curve's end."""
    thin = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "relpos": (0, 0.5)}
    note = axes.annotate(
        text,
        xy=end,
        xytext=(1.03, height),
        textcoords=axes.get_yaxis_transform(),  # x as a share of the axes, y in figures
        color=colour,
        fontsize=9.5,
        va="center",
        annotation_clip=False,
        arrowprops=thin | {"shrinkA": 1, "shrinkB": 4},
    )
    note.set_parse_math(False)


def ticks(ks: Collection[int]) -> list[int]:
    """The ks to write on the axis: least, largest, powers of two, then whichever others have room."""
    wanted = sorted(set(ks), key=lambda k: (k not in (min(ks), max(ks)), k & (k - 1) != 0, k))
    room = TICK_APART * math.log2(max(ks) / min(ks))
    shown: list[int] = []
    for k in wanted:
        if all(abs(math.log2(k / other)) > room for other in shown):
            shown.append(k)
    return sorted(shown)


def top_of(highest: float) -> float:
    """The upper end of the axis: 1 where that wastes little room, else a little above the highest bound."""
    return 1.02 if highest > 0.6 else max(1.1 * highest, 0.01)


def apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """The heights, moved as little as keeps them `gap` apart, below `top` where that is possible."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = [heights[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    ceiling = top
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], ceiling)
        ceiling = moved[i] - gap
    placed = dict(zip(order, moved, strict=True))
    return [placed[i] for i in range(len(heights))]
