"""Sampling ahead of training: which weights each step is sampled with, in what order, and what stops it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml

from grpo_math import config
from grpo_math.backend.make import starting_policy
from grpo_math.config import GRPO
from grpo_math.problems import load_problems
from grpo_math.ranks import Ranks
from grpo_math.recipes import grpo
from grpo_math.recipes.parts import build_parts
from grpo_math.reference import copy_policy
from grpo_math.rollout import hf
from grpo_math.types import EngineError, UserError
from tests.tiny import save_tiny


class Apart(hf.HFEngine):
    """With weights of its own, as a server has, and a note of who samples."""

    def __init__(self, policy, *rest, shares_weights):
        super().__init__(copy_policy(policy), *rest)
        self.threads: list[str] = []
        self.lost = False

    def generate(self, prompts, sampling):
        self.threads.append(threading.current_thread().name)
        if self.lost:
            raise EngineError("no server is left")
        return super().generate(prompts, sampling)


@pytest.fixture
def make(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hf, "HFEngine", Apart)
    model = save_tiny(tmp_path / "model")

    def recipe(staleness: int, steps: int = 5) -> grpo.GRPO:
        cfg = GRPO.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "model": str(model),
                "task": {"name": "arithmetic", "options": {"min_digits": 1, "max_digits": 1}},
                "steps": steps,
                "prompts_per_step": 2,
                "group_size": 4,
                "optimizer": {"learning_rate": 1e-2},
                "sampling": {"max_tokens": 6},
                "scoring": {"workers": 1},
                "rewards": ["math"],
                "correction": "token_truncate",
            }
        ).model_copy(update={"run": config.Run(staleness=staleness)})
        source = load_problems(cfg.task)
        parts = build_parts(cfg, starting_policy(cfg), 5, source, Ranks())
        made.append(parts)
        return grpo.GRPO(cfg, parts)

    made: list = []
    yield recipe
    for parts in made:
        parts.scorer.close()


def go(recipe: grpo.GRPO, steps: int = 5) -> list[tuple[list, dict]]:
    results = []
    for step in range(1, steps + 1):
        result = recipe.step(step)
        recipe.sync(step)
        results.append((result.completions, result.metrics, result.stream))
    recipe.close()
    return results


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_a_step_is_sampled_with_weights_that_are_exactly_so_many_updates_old(make, staleness):
    results = go(make(staleness))
    versions = [{row["policy_version"] for row in rows} for rows, _, _ in results]
    assert versions == [{max(0, step - 1 - staleness)} for step in range(1, 6)]
    behind = [metrics["sampler/staleness"] for _, metrics, _ in results]
    assert behind == [min(staleness, step - 1) for step in range(1, 6)]


def test_the_order_of_the_problems_and_the_place_in_them_do_not_depend_on_staleness(make):
    one, other = go(make(0)), go(make(2))
    assert [[row["problem"] for row in rows] for rows, _, _ in one] == [
        [row["problem"] for row in rows] for rows, _, _ in other
    ]
    assert [stream for *_, stream in one] == [stream for *_, stream in other]


def test_a_stale_run_can_be_repeated(make):
    one, other = go(make(1)), go(make(1))
    assert [rows for rows, *_ in one] == [rows for rows, *_ in other]
    kept = [{k: v for k, v in metrics.items() if not k.startswith("time/")} for _, metrics, _ in one]
    assert kept == [{k: v for k, v in metrics.items() if not k.startswith("time/")} for _, metrics, _ in other]


def test_sampling_ahead_is_done_by_a_thread_of_its_own(make):
    recipe = make(1)
    go(recipe)
    assert set(recipe.parts.engine.threads) == {"sampler"}
    assert len(recipe.parts.engine.threads) == 5  # nothing is sampled beyond the last step


def test_an_engine_that_fails_while_sampling_ahead_ends_the_step_that_needs_its_samples(make):
    recipe = make(1)
    recipe.step(1)
    recipe.sync(1)
    recipe.parts.engine.lost = True
    recipe.step(2)  # was sampled before
    with pytest.raises(EngineError, match="no server is left"):
        recipe.step(3)
    recipe.close()


def test_samples_older_than_the_bound_end_the_run(make):
    recipe = make(1)
    recipe.step(1)
    recipe.sync(1)
    recipe.parts.engine.update_weights = lambda weights, version: None
    recipe.step(2)
    recipe.sync(2)
    recipe.step(3)  # sampled with the weights of step 1: one behind
    recipe.sync(3)
    with pytest.raises(RuntimeError, match=r"step 4: 8 of 8 completions .* step 1, 2 updates behind, .*staleness=1"):
        recipe.step(4)
    recipe.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": {"staleness": 1}}, r"run\.staleness=1 .* engine hf .* rollout\.engine=vllm_server"),
        (
            {
                "run": {"staleness": 1},
                "rollout": {"engine": "vllm_server", "server": {"urls": ["http://localhost:8000"]}},
            },
            r"correction=token_truncate",
        ),
        ({"rollout": {"engine": "vllm_server"}}, r"grpo-math serve"),
        ({"rollout": {"server": {"urls": ["localhost:8000"]}}}, r"no URL"),
        ({"model": {"path": "x", "lora": {"rank": 4}}, "kl": {"coefficient": 0.1, "reference": "ema"}}, r"adapter off"),
        ({"model": {"path": "x", "load_in_4bit": True}}, r"lora\.rank=16"),
        ({"backend": {"name": "deepspeed", "deepspeed": {"zero": 2, "offload_parameters": True}}}, r"zero=3"),
        (
            {
                "backend": {"name": "deepspeed", "dtype": "bfloat16"},
                "kl": {"coefficient": 0.1, "reference": "ema"},
            },
            r"kl\.reference=refresh",
        ),
        ({"model": {"path": "x", "lora": {"rank": 4, "sync": "adapter"}}}, r"sync=adapter is for vLLM"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, message):
    from grpo_math.config_file import load_config

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"run_dir": "r", "model": "x", "task": "gsm8k"} | changes))
    with pytest.raises(UserError, match=message):
        load_config(path)
