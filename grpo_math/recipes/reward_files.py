"""The files of a reward model's run -> what it learns from, and what it is measured on and never learns from.

Left out: reading one file (examples/read.py, steps/read.py), and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_math import config
from grpo_math.examples.judged import dealt
from grpo_math.examples.raw import RawCompletion, RawExample
from grpo_math.examples.read import kind_of, read_examples
from grpo_math.steps.example import StepExample
from grpo_math.steps.formats import Reading
from grpo_math.steps.read import read_steps
from grpo_math.types import UserError

Rows = list[RawExample]


def reward_examples(cfg: config.RewardCommon) -> tuple[Rows, Rows]:
    """(learnt from, held out). Raises UserError, with file:line."""
    learnt, held_out = _split(cfg)
    check_labels(cfg, learnt, held_out)
    return learnt, held_out


def check_labels(cfg: config.RewardCommon, learnt: Rows, held_out: Rows) -> None:
    """Raises UserError where all labels to learn from are 1, or all 0: the model would learn to say that of everything,
    and loss.balance has no other class to weigh. Comparisons have no labels."""
    if isinstance(cfg, config.RewardModel) and cfg.loss.name != "binary":
        return
    labels = labels_of(learnt)
    if set(labels) not in ({0.0}, {1.0}):
        return
    said, other = ("right", "wrong") if labels[0] else ("wrong", "right")
    files = ", ".join(cfg.data.files)
    if cfg.held_out.files is None and set(labels_of(held_out)) - set(labels):
        raise UserError(
            f"data.files={files}: held_out.share={cfg.held_out.chosen_share:g} takes all that is {other} away, and of "
            f"{len(labels):,} labels {said} alone nothing is learnt, with loss.balance or without; hold out other "
            "prompts (another seed), give held_out.files, or set held_out.every=0"
        )
    raise UserError(
        f"data.files={files}: all {len(labels):,} labels are {said}, of which nothing is learnt, with loss.balance or "
        f"without; add files in which some are {other}"
    )


def labels_of(rows: Rows) -> list[float]:
    """Of completions, or of steps: those that there are."""
    steps = [label for row in rows for _, label in row.steps if label is not None]
    return steps or [c.reward for row in rows for c in row.completions if c.reward is not None]


def _split(cfg: config.RewardCommon) -> tuple[Rows, Rows]:
    read = READERS[type(cfg)]
    rows, files = read(cfg, cfg.data), cfg.held_out.files
    if files is None:
        return held_out_share(rows, cfg.held_out, cfg.seed)
    if not cfg.held_out.every:
        return rows, []
    held_out = read(cfg, cfg.data.model_copy(update={"files": files}))
    learnt = {_asked(row) for row in rows}
    if shared := sum(_asked(row) in learnt for row in held_out):
        print(f"held_out.files: {shared:,} of {len(held_out):,} examples have a prompt that is learnt from too")
    return rows, held_out[: cfg.held_out.limit]


def held_out_share(rows: Rows, settings: config.HeldOut, seed: int) -> tuple[Rows, Rows]:
    """All examples of a prompt are on one side: a model that has seen a problem's answers knows the others."""
    if not settings.chosen_share:
        return rows, []
    of_prompt: dict[str, Rows] = {}
    for row in rows:
        of_prompt.setdefault(_asked(row), []).append(row)
    prompts = list(of_prompt)
    if len(prompts) < 2:
        raise UserError(
            "held_out: all examples have one prompt, of which none can be held out; give held_out.files, or set "
            "held_out.every=0 to measure nothing"
        )
    count = min(max(1, round(settings.chosen_share * len(prompts))), len(prompts) - 1)
    chosen: dict[str, Rows] = {}
    for i in np.random.default_rng((seed, len(prompts))).permutation(len(prompts))[:count]:
        if chosen and sum(map(len, chosen.values())) + len(of_prompt[prompts[i]]) > settings.limit:
            break
        chosen[prompts[i]] = of_prompt[prompts[i]]
    return [row for row in rows if _asked(row) not in chosen], [row for some in chosen.values() for row in some]


def with_length(cfg: config.Common, examples: Sequence[RawExample]) -> config.Common:
    """With as many steps as its epochs take."""
    if not isinstance(cfg, config.RewardCommon) or cfg.epochs is None:
        return cfg
    return cfg.model_copy(update={"steps": max(1, math.ceil(cfg.epochs * len(examples) / cfg.prompts_per_step))})


def _outcomes(cfg: config.RewardModel, data: config.Data) -> Rows:
    found = read_examples(data, kind_of(cfg))
    if found.report:
        print(found.report)
    if cfg.loss.name == "bradley_terry":
        _check_margins(cfg, found.rows)
    return [part for row in found.rows for part in dealt(row, cfg.loss.completions)]


def _steps(cfg: config.ProcessRewardModel, data: config.Data) -> Rows:
    found = read_steps(data.files, Reading(cfg.neutral, cfg.separator))
    if found.unused:
        print(f"{found.unused:,} of {found.lines:,} lines have no label of use")
    return [with_steps(example) for example in found.examples]


READERS: dict[type[config.Common], Callable[[Any, config.Data], Rows]] = {
    config.RewardModel: _outcomes,
    config.ProcessRewardModel: _steps,
}


def with_steps(example: StepExample) -> RawExample:
    text = [{"role": "assistant", "content": example.text}] if example.chat else example.text
    return RawExample(
        example.where,
        example.prompt,
        (RawCompletion(text),),
        problem=example.problem,
        task=example.task,
        steps=tuple(zip(example.ends, example.labels, strict=True)),
    )


def _check_margins(cfg: config.RewardModel, rows: Rows) -> None:
    """Raises UserError where the margin that was asked for is not there for all, or is no margin."""
    if cfg.loss.margin == "rewards":
        for row in rows:
            chosen, rejected = (completion.reward for completion in row.completions)
            if chosen is None or rejected is None:
                raise UserError(
                    f"{row.where} lacks chosen_reward and rejected_reward, whose difference loss.margin=rewards is of; "
                    "make the file with grpo-math filter --to pairs, which writes them, or set loss.margin=none"
                )
            if chosen <= rejected:
                raise UserError(
                    f"{row.where}: chosen_reward={chosen:g} is not above rejected_reward={rejected:g}, and "
                    "loss.margin=rewards takes their difference; mend the line, or set loss.margin=none"
                )
    if cfg.loss.margin == "column":
        given = [row.margin is not None for row in rows]
        if any(given) and not all(given):
            raise UserError(
                f"{rows[given.index(False)].where} lacks the column 'margin', which {rows[given.index(True)].where} "
                "has; write it for every pair, or set loss.margin=none"
            )
        low = next((row for row in rows if (row.margin or 0.0) < 0), None)
        if low is not None:
            raise UserError(
                f"{low.where}: margin={low.margin:g} would have the rejected one score higher; give 0 or more, swap "
                "the two, or set loss.margin=none"
            )


def _asked(row: RawExample) -> str:
    return row.prompt if isinstance(row.prompt, str) else repr(row.prompt)
