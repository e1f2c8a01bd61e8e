"""Guards against a policy that pleases a reward model and no longer solves the problems."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from grpo_math.config_learned import Guards
from grpo_math.learned import guards
from grpo_math.learned.checks import Trained
from grpo_math.learned.watch import FIRST_STEPS, Watch
from grpo_math.progress import Progress, progress_line
from grpo_math.types import Group, Scored, Verdict
from tests.learned import asked, group_of, load, save_process


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_process(tmp_path_factory.mktemp("process"))


def test_guards_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert guards.correlation(a, b) == pytest.approx(0.8)
    assert guards.correlation(a, -a) == pytest.approx(-1.0)
    assert math.isnan(guards.correlation(a, torch.full((4,), 0.1)))
    assert math.isnan(guards.correlation(a[:1], b[:1]))
    assert guards.rise(3.0, 1.0, 4.0) == 0.5
    assert guards.rise(1.0, 1.0, 0.0) == 0.0
    assert guards.gap(1.5, 0.5) == 1.0
    assert guards.share_above([1.0, 2.0, 3.0], 1.5) == pytest.approx(2 / 3)
    assert math.isnan(guards.share_above([1.0], None))
    assert guards.score_per_kl(2.0, 4.0) == 0.5
    assert math.isnan(guards.score_per_kl(2.0, 0.0))
    assert not guards.beyond("gap", math.nan, 0.5)
    assert guards.beyond("length_correlation", -0.6, 0.5)
    assert guards.beyond("correlation", 0.1, 0.2)
    assert not guards.beyond("correlation", 0.3, 0.2)


def step_of(scores: Sequence[float], verified: Sequence[float], name: str = "outcome") -> list[Group]:
    """One group; completion i has i + 1 tokens."""
    verdicts = [Verdict(v, "correct" if v else "wrong") for v in verified]
    group = group_of(["x" * (i + 1) for i in range(len(scores))], verified)
    parts = [
        Scored(v.reward, v, {"math": v, name: Verdict(s, "unknown")}) for s, v in zip(scores, verdicts, strict=True)
    ]
    return [replace(group, scores=tuple(parts))]


def test_an_alarm_rings_when_only_the_model_is_pleased() -> None:
    watch = Watch(Guards(gap=0.5, above_p99=0.4, length_correlation=0.9, patience=2, stop=True), {"outcome": 3.0})
    for _ in range(FIRST_STEPS):
        calm = watch.look(step_of([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]), kl=0.5)
    assert calm["guard/gap"] == pytest.approx(0.0)
    assert calm["guard/correlation"] == pytest.approx(1.0)
    assert calm["guard/length_correlation"] == pytest.approx(1 / math.sqrt(5))
    assert (calm["guard/above_p99"], calm["guard/alarms"], calm["guard/score_per_kl"]) == (0.0, 0.0, 0.0)
    # the scores rise by 3 with the length, and no more is right than before
    first = watch.look(step_of([2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 0.0, 1.0]), kl=0.5)
    every = torch.tensor([0.0, 1.0] * 2 * FIRST_STEPS + [2.0, 3.0, 4.0, 5.0])
    assert first["guard/gap"] == pytest.approx(3.0 / float(every.std()))
    assert first["guard/score_per_kl"] == pytest.approx(3.0 / (0.5 * 2.5))
    assert first["guard/above_p99"] == 0.5
    assert first["guard/length_correlation"] == pytest.approx(1.0)
    assert (first["guard/alarms"], watch.stopped) == (0.0, None)
    second = watch.look(step_of([2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 0.0, 1.0]))
    assert (second["guard/alarms"], second["guard/alarm/gap"]) == (3.0, 1.0)
    assert math.isnan(second["guard/score_per_kl"])
    assert "guard/above_p99 is 0.5, past guards.above_p99=0.4 for 2 steps" in str(watch.stopped)
    # where the verified reward rises as well there is no gap
    fine = Watch(Guards(gap=0.5), {"outcome": None})
    for scores, verified in [([0.0, 1.0], [0.0, 0.0])] * FIRST_STEPS + [([1.0, 2.0], [1.0, 1.0])]:
        found = fine.look(step_of(scores, verified))
    assert found["guard/gap"] < 0
    assert math.isnan(found["guard/above_p99"])


def test_a_model_that_has_learnt_since_is_watched_anew() -> None:
    watch = Watch(Guards(gap=0.5, patience=1), {"outcome": 3.0})
    watch.look(step_of([0.0, 1.0], [0.0, 1.0]))
    assert watch.look(step_of([8.0, 9.0], [0.0, 1.0]))["guard/gap"] > 0.5
    watch.begin_anew("outcome")
    watch.restore(json.loads(json.dumps(watch.state())))
    found = watch.look(step_of([8.0, 9.0], [0.0, 1.0]))
    assert (found["guard/gap"], found["guard/alarms"]) == (0.0, 0.0)
    assert math.isnan(found["guard/above_p99"])


def test_of_several_models_the_worst_is_shown() -> None:
    watch = Watch(Guards(), {"a": 0.5, "b": 1.5})
    [group] = step_of([0.0, 1.0, 2.0], [0.0, 1.0, 1.0], "a")
    other = [
        replace(s, parts={**s.parts, "b": Verdict(-(s.parts["a"].reward or 0.0), "unknown")}) for s in group.scores
    ]
    found = watch.look([replace(group, scores=tuple(other))])
    assert found["guard/correlation"] == found["guard/b/correlation"] == pytest.approx(-math.sqrt(3) / 2)
    assert found["guard/above_p99"] == found["guard/a/above_p99"] == pytest.approx(2 / 3)
    assert found["guard/b/above_p99"] == 0.0


def test_the_training_scores_of_steps_are_compared_with_steps(process: str) -> None:
    model = load(model=process, kind="process")
    assert model.how == Trained(plain=True, boundary="newline", p99=0.0)
    assert model.p99 == 0.5  # a logit of 0
    verdicts = model.verdicts([asked("1\n2\n3"), asked("4\n5")])
    steps = [p for v in verdicts for _, p in v.step_rewards or ()]
    scored = tuple(Scored(0.0, Verdict(0.0, "wrong"), {"process": v}) for v in verdicts)
    group = replace(group_of(["1\n2\n3", "4\n5"], [0.0, 0.0]), scores=scored)
    found = Watch(Guards(), {"process": model.p99}).look([group])
    assert found["guard/above_p99"] == pytest.approx(sum(p > 0.5 for p in steps) / 5)


def test_an_alarm_is_on_the_progress_line_and_explained_once() -> None:
    metrics = {"reward/mean": 0.5, "guard/gap": 1.234, "guard/alarm/gap": 1.0, "guard/alarm/above_p99": 0.0}
    assert "ALARM gap 1.23" in progress_line(3, 9, metrics, 3.0)
    quiet = metrics | {"guard/alarm/gap": 0.0}
    assert "ALARM" not in progress_line(3, 9, quiet, 3.0)
    shown = io.StringIO()
    with Progress(9, stream=shown) as progress:
        for step, some in enumerate([quiet, metrics, metrics, quiet, metrics], 1):
            progress.step(step, some)
    notes = [line for line in shown.getvalue().splitlines() if line.startswith("alarm")]
    assert [line.partition(":")[0] for line in notes] == ["alarm at step 2", "alarm at step 5"]
    assert "the verified reward does not keep up (gap 1.23)" in notes[0]
    two = metrics | {"guard/above_p99": 0.5, "guard/alarm/above_p99": 1.0}
    shown = io.StringIO()
    with Progress(9, stream=shown) as progress:
        progress.step(1, two)
    [note] = [line for line in shown.getvalue().splitlines() if line.startswith("alarm")]
    assert "(gap 1.23); the reward models' scores lie where" in note
