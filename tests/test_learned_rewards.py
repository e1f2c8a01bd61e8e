"""What becomes of reward models' scores in the reward: normalised, weighed beside a verifier, over ranks."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import pytest
import torch

from grpo_math import config
from grpo_math.learned.make import make_learned
from grpo_math.learned.normalise import Running, used
from grpo_math.learned.rewards import LearnedRewards, combined
from grpo_math.ranks import Ranks
from grpo_math.recipes.records import completion_records, group_metrics
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Group, Problem, UserError
from tests.learned import group_of, save_outcome, save_process
from tests.tiny import tiny_policy

T = TypeVar("T")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_outcome(tmp_path_factory.mktemp("outcome"))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_process(tmp_path_factory.mktemp("process"))


def test_running_statistics_are_those_of_all_numbers() -> None:
    numbers = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1e4
    parts = [numbers[:1], torch.tensor([math.nan]), numbers[1:40], numbers[40:40], numbers[40:]]
    seen = Running()
    for part in parts:
        seen = Running.of(json.loads(json.dumps(seen.add(part).state())))
    assert seen.count == 100
    assert (seen.mean, seen.std) == pytest.approx((float(numbers.mean()), float(numbers.std())), rel=1e-12)
    assert (Running().std, Running().add(numbers[:1]).std) == (0.0, 0.0)


def test_what_is_used_of_a_score_by_hand() -> None:
    nan = math.nan
    scores = torch.tensor([[1.0, 3.0, nan], [2.0, 2.0, 2.0]], dtype=torch.float64)
    lengths = torch.tensor([[10, 20, 5], [10, 20, 30]])
    seen = Running().add(torch.tensor([0.0, 4.0]))  # mean 2, std sqrt(8)
    r = 1 / math.sqrt(8)
    for how, clip, penalty, expected in [
        ("none", None, 0.0, [[1, 3, nan], [2, 2, 2]]),
        ("none", 1.5, 0.1, [[1 - 1, 1.5 - 2, nan], [1.5 - 1, 1.5 - 2, 1.5 - 3]]),
        ("running", None, 0.0, [[-r, r, nan], [0, 0, 0]]),
        ("running", 0.1, 0.01, [[-0.1 - 0.1, 0.1 - 0.2, nan], [-0.1, -0.2, -0.3]]),
        ("group", None, 0.0, [[-1 / math.sqrt(2), 1 / math.sqrt(2), nan], [0, 0, 0]]),
    ]:
        found = used(scores, lengths, how, seen, clip, penalty)
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0, equal_nan=True
        )
    terms = [torch.tensor([[1.0, 2.0, nan]]), torch.tensor([[3.0, -1.0, 0.0]])]
    torch.testing.assert_close(combined(terms, "sum"), torch.tensor([[4.0, 1.0, nan]]), equal_nan=True)
    torch.testing.assert_close(combined(terms, "min"), torch.tensor([[1.0, -1.0, nan]]), equal_nan=True)


def learned_for(
    outcome: str, process: str, ranks: Ranks | None = None, **keys: Any
) -> tuple[config.GRPO, LearnedRewards]:
    keys["rewards"] = [
        {"verifier": "math", "weight": 2},
        {"model": outcome, "weight": 0.5, "normalise": "running", "clip": 1.5},
        {"model": process, "kind": "process", "weight": 3, "length_penalty": 0.01},
        {"model": outcome, "name": "watched", "weight": 0},
    ]
    keys |= {"run_dir": "r", "model": "m", "task": "arithmetic"}
    cfg = config.GRPO(**keys)
    parts: Any = SimpleNamespace(policy=tiny_policy(), ranks=ranks or Ranks())
    made = make_learned(cfg, parts)
    assert made is not None
    return cfg, made


GROUPS = [
    group_of(["1", "12\n3", "x" * 200], [1.0, 0.0, 0.0]),
    group_of(["7\n8\n9", "7\n8\n9", "4"], [0.0, 0.0, None], number=1),
]


def test_models_are_weighed_beside_the_verifier(outcome: str, process: str) -> None:
    cfg, learned = learned_for(outcome, process)
    groups = learned.score(GROUPS)
    scores = [score for group in groups for score in group.scores]
    raw = torch.tensor([s.parts["outcome"].reward or math.nan for s in scores], dtype=torch.float64)
    known = raw[~raw.isnan()]
    for place, score in enumerate(scores):
        before = GROUPS[place // 3].scores[place % 3]
        assert score.verdict is before.verdict
        assert list(score.parts) == ["math", "outcome", "process", "watched"]
        assert score.parts["watched"] == score.parts["outcome"]
        if place in (2, 5):  # too long for the models; without a verified reward
            assert score.reward is None
            continue
        z = min(max((float(raw[place]) - float(known.mean())) / float(known.std()), -1.5), 1.5)
        steps = score.parts["process"]
        assert steps.reward is not None
        assert steps.step_rewards is not None
        length = len(GROUPS[place // 3].completions[place % 3].token_ids)
        expected = (before.reward or 0.0) + 0.5 * z + 3 * (steps.reward - 0.01 * length)
        assert score.reward == pytest.approx(expected, abs=1e-5)
    assert scores[3].reward == pytest.approx(scores[4].reward or 0.0, abs=0)  # the same text
    assert learned.metrics["reward/outcome"] == pytest.approx(float(known.mean()))
    assert learned.metrics["learned/process/unscored"] == pytest.approx(1 / 6)
    # accuracy and the verifier's mean are as if there were no models
    assert group_metrics(groups, cfg.rewards or []) == group_metrics(GROUPS, cfg.rewards or [])
    record = completion_records(1, groups, [], None, None)[0]
    assert record["reason"] == "correct"
    assert record["verifier"] == "math"
    assert record["parts"]["process"] == scores[0].parts["process"].reward


def test_the_least_of_several_models_counts(outcome: str, process: str) -> None:
    _, summed = learned_for(outcome, process)
    _, least = learned_for(outcome, process, combine_rewards="min")
    for a, b in zip(summed.score(GROUPS[:1])[0].scores[:2], least.score(GROUPS[:1])[0].scores[:2], strict=True):
        assert a.reward is not None
        assert b.reward is not None
        verified = 2 * (a.verdict.reward or 0.0)
        length = 1 if a.verdict.reward else 4
        process_term = 3 * ((a.parts["process"].reward or 0.0) - 0.01 * length)
        outcome_term = a.reward - verified - process_term
        assert b.reward - verified == pytest.approx(min(process_term, outcome_term), abs=1e-9)


def test_a_run_goes_on_where_it_was_saved(outcome: str, process: str) -> None:
    steps = [[group_of([f"{i}", f"{i}+{i}\n{2 * i}", "9"], [1.0, 0.0, 0.0], i)] for i in range(4)]

    def go(learned: LearnedRewards, some: Sequence[list[Group]]) -> list[Any]:
        found = []
        for step in some:
            scored = learned.score(step)
            found.append((scored, learned.metrics, learned.watch.look(scored, 0.1)))
        return found

    _, whole = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    expected = go(whole, steps)
    _, first = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    begun = go(first, steps[:2])
    _, second = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + go(second, steps[2:]) == expected


def test_a_model_that_can_score_nothing_ends_the_run(outcome: str, process: str) -> None:
    _, learned = learned_for(outcome, process)
    with pytest.raises(
        UserError, match=r"can score none of 2 completions; the first: 2.. tokens are more than the 128"
    ):
        learned.score([group_of(["1" * 250, "2" * 260], [0.0, 0.0])])
    assert learned.score([]) == []


class Together(Ranks):
    """Two ranks in two threads."""

    mail: ClassVar[list[Any]] = [None, None]
    barrier: ClassVar[threading.Barrier] = threading.Barrier(2, timeout=30)

    def gather(self, mine: Sequence[T]) -> list[T]:
        Together.mail[self.rank] = mine
        self.barrier.wait()
        found = [item for part in Together.mail for item in part]
        self.barrier.wait()
        return found


def test_ranks_share_the_texts_and_agree(outcome: str, process: str) -> None:
    _, alone = learned_for(outcome, process)
    expected = alone.score(GROUPS)
    found: dict[int, list[Group]] = {}
    read: dict[int, int] = {}

    def go(rank: int) -> None:
        learned = made[rank]
        model = learned.models[0]
        verdicts = model.verdicts
        model.verdicts = lambda texts: read.__setitem__(rank, len(texts)) or verdicts(texts)  # type: ignore
        found[rank] = learned.score(GROUPS)

    # made one after the other: while it loads a model, transformers changes torch for the whole process, and what two
    # threads do so at once stays changed
    made = [learned_for(outcome, process)[1] for _ in range(2)]
    for rank, learned in enumerate(made):
        learned.ranks = Together(rank, 2)
    threads = [threading.Thread(target=go, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert read == {0: 2, 1: 3}  # of five texts that differ
    for group, other in zip(found[0], expected, strict=True):
        rewards = [[s.reward or 0.0 for s in g.scores] for g in (group, other)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def test_a_verifier_of_weight_0_is_only_looked_at(tmp_path: Path) -> None:
    (tmp_path / "unsure.py").write_text(
        '"""Cannot tell."""\nfrom grpo_math.types import Verdict\nEXAMPLES = []\n'
        "def verify(problem, completion):\n    return Verdict(None, 'unknown')\n"
    )
    reward = config.Reward(verifier=str(tmp_path / "unsure.py"), weight=0)
    item = (Problem("p", "t", "q", "1"), Completion((5,), (0.0,), "x", "stop", 0))
    for weight, expected in ((0.0, 0.0), (1.0, None)):
        with Scorer([reward.model_copy(update={"weight": weight})], config.Scoring(workers=1)) as scorer:
            assert scorer.score([item])[0].reward == expected
