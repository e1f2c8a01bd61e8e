"""Process reward models: a score for each step of a completion, from labels of the steps.

Left out: the steps of the run (reward_training.py), and where the labels come from (steps/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from grpo_math import config
from grpo_math.examples.raw import RawExample
from grpo_math.recipes.parts import Parts
from grpo_math.recipes.reward_examples import ENCODE
from grpo_math.recipes.reward_objectives import StepLabelling
from grpo_math.recipes.reward_training import RewardTraining, Task, spread
from grpo_math.steps.split import BOUNDARIES, boundary
from grpo_math.value_input import ValueReader

LOOKED_AT = 1000  # examples that tell what ends a step


def process_reward_model(cfg: config.ProcessRewardModel, parts: Parts) -> RewardTraining:
    reader = ValueReader(parts.policy.tokenizer, parts.policy.eos_ids)
    encode = partial(ENCODE["steps"], reader)
    labels = [math.nan if label is None else label for row in parts.examples for _, label in row.steps]
    said = {"kind": "process", "input": "text", "boundary": cfg.boundary or boundary_of(parts.examples)}
    objective = StepLabelling(labels if cfg.loss.balance else None)
    # only tokens tell whether two steps end within one of them
    return RewardTraining(cfg, parts, Task(objective, encode, encode, said, cfg.loss.every_token))


def boundary_of(rows: Sequence[RawExample]) -> str | None:
    """The boundary that splits the completions into the very steps that they have; None where none does."""
    looked_at = [(text_of(row), tuple(end for end, _ in row.steps)) for row in spread(rows, LOOKED_AT)]
    fitting = (name for name in BOUNDARIES if all(boundary(name)(text) == ends for text, ends in looked_at))
    return next(fitting, None)


def text_of(row: RawExample) -> str:
    text = row.completions[0].text
    return text if isinstance(text, str) else str(text[0]["content"])
