"""The picture of pass@k over k: what it shows, where its labels stand, and what stops it."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.report.curve import COLOURS
from grpo_math.report.pass_curve import apart, draw, pass_curve, ticks, top_of
from grpo_math.types import UserError

pytest.importorskip("matplotlib", reason="needs the extra plot")

ROOT = Path(__file__).parents[1]
EASY = {1: (0.5, 0.45, 0.55), 2: (0.75, 0.7, 0.8), 4: (0.9, 0.86, 0.93), 8: (0.95, 0.92, 0.97)}
HARD = {k: (mean / 5, low / 5, high / 5) for k, (mean, low, high) in EASY.items()}


def coloured(path: Path, colour: str) -> int:
    from matplotlib.image import imread

    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    image: np.ndarray[Any, Any] = imread(path)[:, :, :3]
    return int((np.abs(image - wanted).max(2) < 0.02).sum())


def test_each_task_has_a_line_in_a_light_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    out = tmp_path / "deep" / "curve.png"
    assert pass_curve({"gsm8k": EASY, "aime24": HARD}, out) == out
    assert [p.name for p in out.parent.iterdir()] == ["curve.png"]
    image = imread(out)
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert (image[:, :, :3] > 0.99).all(2).mean() > 0.7
    assert min(coloured(out, colour) for colour in COLOURS[:2]) > 1000
    assert coloured(out, COLOURS[2]) == 0


def test_line_band_and_label_are_the_figures() -> None:
    (axes,) = draw({"gsm8k": EASY}).axes
    (line,) = axes.lines
    assert np.asarray(line.get_xydata()).tolist() == [[1, 0.5], [2, 0.75], [4, 0.9], [8, 0.95]]
    (band,) = axes.collections
    corners = {(x, round(y, 9)) for x, y in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert corners == {(k, bound) for k, (_, *bounds) in EASY.items() for bound in bounds}
    assert [text.get_text() for text in axes.texts] == ["gsm8k  0.950"]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    assert axes.get_ylim() == (0, 1.02)


def test_labels_do_not_touch_though_the_lines_end_together() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = draw(
        {f"task_{i}": {k: (mean - i / 1000, low, high) for k, (mean, low, high) in EASY.items()} for i in range(14)}
    )
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    # Text's own box: an annotation's holds its line too
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
    assert list(boxes) == [f"task_{i}  {0.95 - i / 1000:.3f}" for i in range(14)]
    # the upper line has the upper label, and all stand right of the axes and inside the picture
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes.values()))
    assert all(axes.get_window_extent().x1 < box.x0 < box.x1 <= figure.bbox.x1 for box in boxes.values())
    assert all(0 <= box.y0 < box.y1 <= figure.bbox.y1 for box in boxes.values())


def test_one_k_alone_is_a_bar_for_each_task_side_by_side() -> None:
    (axes,) = draw({"a": {1: (0.5, 0.4, 0.6)}, "b": {1: (0.5, 0.3, 0.7)}}).axes
    bars = [collection.get_segments()[0].tolist() for collection in axes.collections]  # type: ignore[attr-defined]
    assert [[y for _, y in bar] for bar in bars] == [[0.4, 0.6], [0.3, 0.7]]
    assert bars[0][0][0] < 1 < bars[1][0][0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1"]


def test_tasks_may_have_other_ks_than_each_other(tmp_path: Path) -> None:
    figures = {"a": EASY, "b": {1: (0.2, 0.1, 0.3)}, "none": {}, "$x_1": {1: (0.0, 0.0, 0.1), 3: (0.0, 0.0, 0.1)}}
    assert pass_curve(figures, tmp_path / "a.png").stat().st_size > 10_000


def test_the_same_figures_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (pass_curve({"a": EASY}, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert one == other


@pytest.mark.parametrize(
    ("ks", "shown"),
    [
        ([1], [1]),
        ([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64]),
        ([1, 2, 4, 5, 8, 10, 16], [1, 2, 4, 5, 8, 10, 16]),
        ([1, 2, 3, 4, 7, 8, 15, 16, 17], [1, 2, 3, 4, 7, 8, 17]),  # 16 would run into 17, the last one
        (range(1, 65), [1, 2, 3, 4, 5, 8, 10, 13, 16, 20, 25, 32, 39, 48, 64]),
    ],
)
def test_numbers_on_the_axis(ks: list[int], shown: list[int]) -> None:
    assert ticks(ks) == shown


def test_low_figures_fill_the_axis_and_zeros_have_one() -> None:
    assert top_of(0.9) == top_of(1.0) == 1.02
    assert top_of(0.1) == pytest.approx(0.11)
    assert top_of(0.0) > 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_heights_come_apart_in_their_order(heights: list[float]) -> None:
    moved = apart(heights, 0.05, 1.02)
    order = sorted(range(len(heights)), key=heights.__getitem__)
    gaps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert min(gaps, default=1.0) >= 0.05 - 1e-12
    assert max(moved) <= 1.02


def test_heights_with_room_stay() -> None:
    assert apart([0.9, 0.1, 0.5], 0.05, 1.02) == [0.9, 0.1, 0.5]


def test_no_figures_are_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task has a pass@k"):
        pass_curve({"a": {}}, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"curve\.png cannot be written"):
        pass_curve({"a": EASY}, tmp_path / "file" / "curve.png")


def test_without_matplotlib_the_remedy_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from grpo_math.report.pass_curve import pass_curve\n"
        "pass_curve({'a': {1: (0.5, 0.4, 0.6)}}, Path(sys.argv[1]) / 'a.png')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert "UserError: a picture needs matplotlib: pip install 'grpo-math[plot]'" in done.stderr
    assert not list(tmp_path.iterdir())
