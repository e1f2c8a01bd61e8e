"""The picture of a run: what it reads, what it shows, and what it does with files that are not as they should be."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo_math.report import curve as module
from grpo_math.report.curve import COLOURS, REWARD, Run, curve, draw, read_metrics
from grpo_math.types import UserError

pytest.importorskip("matplotlib", reason="needs the extra plot")

ROOT = Path(__file__).parents[1]


def row(step: int, accuracy: float | None, **more: float | None) -> dict[str, Any]:
    shown = {"completion/length": 30.0, "policy/entropy": 0.5 / step, "groups/no_signal": 0.25}
    return {"step": step, "reward/accuracy": accuracy, "reward/mean": accuracy, "loss/total": 0.0, **shown, **more}


def rising(steps: int) -> list[dict[str, Any]]:
    return [row(step, 1 - math.exp(-3 * step / steps)) for step in range(1, steps + 1)]


def save(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + tail)
    return folder


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """(height, width, 3) within 0..1."""
    from matplotlib.image import imread

    image = imread(path)
    assert image.ndim == 3
    return image[:, :, :3]


def coloured(image: np.ndarray[Any, Any], colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(2) < 0.02).sum())


def titles(rows: list[dict[str, Any]]) -> list[str]:
    return [axes.get_title(loc="left") for axes in draw([Run("a", "", rows)]).axes]


def test_it_is_a_picture_of_the_run(tmp_path: Path) -> None:
    out = curve(save(tmp_path / "a", rising(60)), tmp_path / "deep" / "a.png")
    image = pixels(out)
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert (image > 0.99).all(2).mean() > 0.8  # light
    assert coloured(image, COLOURS[0]) > 1000
    # the line rises: blue in the upper right of the large panel, none in its upper left
    top = image[: image.shape[0] // 4]
    half = image.shape[1] // 2
    assert coloured(top[:, half:], COLOURS[0]) > 100
    assert coloured(top[:, : half // 2], COLOURS[0]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["a.png"]


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    whole = read_metrics(save(tmp_path / "whole", rising(5)))
    for tail in ('{"step": 6, "reward/acc', '{"step": 6', "{", "\x00\x00\n", "7\n", "{}"):
        assert read_metrics(save(tmp_path / "torn", rising(5), tail)) == whole
    assert curve(tmp_path / "torn", tmp_path / "a.png").stat().st_size > 10_000


def test_several_runs_lie_over_one_another(tmp_path: Path) -> None:
    runs = [save(tmp_path / name / "run", rising(steps)) for name, steps in (("a", 40), ("b", 60), ("_c", 7))]
    image = pixels(curve(runs, tmp_path / "all.png"))
    for colour in COLOURS[:3]:
        assert coloured(image, colour) > 100
    figure = draw([Run(str(run), "", read_metrics(run)) for run in runs])
    named = [text.get_text() for text in figure.axes[0].findobj(match=lambda a: hasattr(a, "get_text"))]
    assert all(any(str(run) in name for name in named) for run in runs)


def test_the_name_of_a_run_is_not_mathematics(tmp_path: Path) -> None:
    runs = [save(tmp_path / name, rising(3)) for name in ("a$\\frac$", "_$x")]
    assert curve(runs, tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    curve(runs[0], tmp_path / "b.svg")


def test_a_panel_for_each_thing_that_is_there() -> None:
    plain = rising(30)
    names = ["Accuracy", "Completion length", "Entropy", "Groups without signal"]
    assert [t.partition(" (")[0] for t in titles(plain)] == names
    with_kl = [r | {"kl/ref": 0.01} for r in plain]
    assert titles(with_kl)[-1].startswith("KL")
    shaped = [r | {"reward/mean": 2 * r["reward/accuracy"]} for r in plain]
    assert titles(shaped)[1] == REWARD.title  # the same curve twice tells nothing
    sft = [{"step": i, "loss/total": 1 / i, "eval/accuracy": 0.1 if i % 5 == 0 else None} for i in range(1, 11)]
    assert titles(sft) == ["Loss", "Accuracy on held-out problems (share)"]
    assert titles([{"step": 1}]) == ["Loss"]


def test_evaluations_are_points(tmp_path: Path) -> None:
    rows = [r | ({"eval/pass@1": 0.5, "eval/pass@8": 0.75, "eval/pass@1_left_out": 0} if r["step"] % 10 == 0 else {})
            for r in rising(30)]  # fmt: skip
    axes = draw([Run("a", "", rows)]).axes[0]
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    for line, value in zip(points, (0.5, 0.75), strict=True):
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert x[np.isfinite(y)].tolist() == [10, 20, 30]
        assert set(y[np.isfinite(y)]) == {value}


def test_the_mean_is_over_the_steps_around_and_missing_ones_are_left_out() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    assert module._mean_over(values, 1)[[0, 1, 3, 4]].tolist() == [1, 2, 4, 9]
    assert np.isnan(module._mean_over(values, 1)[2])
    np.testing.assert_allclose(module._mean_over(values, 3), [1.5, 1.5, 3.0, 6.5, 6.5])
    assert [module._window(steps) for steps in (1, 39, 40, 60, 200)] == [1, 1, 3, 3, 11]


def test_steps_without_a_number_leave_a_gap(tmp_path: Path) -> None:
    rows = [row(1, None), row(2, 0.5), row(3, None, **{"kl/ref": None})]
    assert not any(t.startswith("KL") for t in titles(rows))
    assert np.isfinite(Run("a", "", rows).column("reward/accuracy")).tolist() == [False, True, False]
    curve(save(tmp_path / "a", rows), tmp_path / "a.png")


def test_the_title_says_what_was_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "a", rising(2))
    assert module.about(folder) == ""
    (folder / "config.yaml").write_text(
        "recipe: grpo\nalgorithm: dapo\nseed: 3\ntask: {name: gsm8k}\nprompts_per_step: 32\ngroup_size: 16\n"
    )
    assert module.about(folder) == "dapo on gsm8k, seed 3, 32 prompts x 16 completions a step"
    for broken in ("- a\n", "a: [", "recipe: sft\n"):
        (folder / "config.yaml").write_text(broken)
        assert module.about(folder) == ""


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read .*give the folder of a run"):
        curve(tmp_path / "nowhere", tmp_path / "a.png")
    run = save(tmp_path / "runs" / "a", rising(3))
    with pytest.raises(UserError, match=r"did you mean .*runs/a"):
        curve(tmp_path / "runs", tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot be read"):
        curve(run / "metrics.jsonl", tmp_path / "a.png")
    with pytest.raises(UserError, match="no whole step"):
        curve(save(tmp_path / "empty", [], '{"st'), tmp_path / "a.png")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1 is not"):
        curve(save(tmp_path / "broken", [{"no": 1}, *rising(3)]), tmp_path / "a.png")
    for name in ("a.jpeg", "a"):
        with pytest.raises(UserError, match=r"must end in \.png, \.svg or \.pdf"):
            curve(run, tmp_path / name)
    with pytest.raises(UserError, match="cannot be written"):
        curve(run, run / "metrics.jsonl" / "a.png")


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'grpo-math\[plot\]'"):
        curve(save(tmp_path / "a", rising(3)), tmp_path / "a.png")


def test_drawing_needs_no_torch_and_leaves_the_users_style_alone(tmp_path: Path) -> None:
    run = save(tmp_path / "a", rising(3))
    code = (
        "import sys; from pathlib import Path; from grpo_math.report.curve import curve\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; matplotlib.rcParams['axes.facecolor'] = 'black'\n"
        f"curve(Path({str(run)!r}), Path({str(tmp_path / 'a.png')!r}))\n"
        "assert matplotlib.rcParams['axes.facecolor'] == 'black'\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert pixels(tmp_path / "a.png").mean() > 0.8
