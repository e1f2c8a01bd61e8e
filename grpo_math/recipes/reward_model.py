"""Outcome reward models: a score for a whole completion, from pairs, from completions in an order, or from verdicts.

Left out: the steps of the run (reward_training.py), and the objectives (reward_objectives.py).
"""

from __future__ import annotations

from functools import partial

from grpo_math import config
from grpo_math.examples.read import kind_of
from grpo_math.recipes.parts import Parts
from grpo_math.recipes.reward_examples import ENCODE
from grpo_math.recipes.reward_objectives import Labelling, Objective, Ranking
from grpo_math.recipes.reward_training import RewardTraining, Task
from grpo_math.value_input import ValueReader


def reward_model(cfg: config.RewardModel, parts: Parts) -> RewardTraining:
    reader = ValueReader(parts.policy.tokenizer, parts.policy.eos_ids)
    encode = partial(ENCODE[kind_of(cfg)], reader)
    said = {"kind": "outcome", "input": "text", "boundary": None}
    task = Task(objective_of(cfg, parts), encode, reader.encoder.check, said, cfg.loss.every_token)
    return RewardTraining(cfg, parts, task)


def objective_of(cfg: config.RewardModel, parts: Parts) -> Objective:
    if cfg.loss.name != "binary":
        return Ranking(cfg.loss)
    rewards = [c.reward for row in parts.examples for c in row.completions if c.reward is not None]
    return Labelling(rewards if cfg.loss.balance else None)
