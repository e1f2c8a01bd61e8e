"""Scores of reward models for all completions of an evaluation, block by block into its journal.

Left out: which models (reward_models.py), one model's scores (learned/score.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from grpo_math.evaluation.journal import Journal, JudgedBlock
from grpo_math.evaluation.prepare import Plan
from grpo_math.evaluation.reward_models import KEY, RewardSpec
from grpo_math.evaluation.sampler import Asked, Sample
from grpo_math.evaluation.show import Line
from grpo_math.learned.make import load_reward_model
from grpo_math.learned.reading import Asked as Text
from grpo_math.learned.score import RewardModel
from grpo_math.types import UserError, Verdict

BLOCK = 256  # completions that are scored together, those of whole problems


def score_missing(spec: RewardSpec, plans: Sequence[Plan], journal: Journal) -> None:
    """Until the journal has the model's scores of all completions. The model is loaded only where some are missing.

    Which completions are read side by side depends on their places alone: after an interruption they round alike.
    Raises UserError where it can score none of them."""
    missing = {plan.job.label: blocks_without_scores(plan, journal, spec) for plan in plans}
    if any(missing.values()):
        model = load(spec)
        with Line() as line:
            for label, blocks in missing.items():
                total = sum(map(len, blocks))
                done = 0
                for block in blocks:
                    journal.scored(spec.digest, label, scored(model, block, journal.samples[label]))
                    done += len(block)
                    line.show(f"{label}  scored by {spec.name}: {done:,}/{total:,} problems")
        model.model.close()
        del model
        torch.cuda.empty_cache()  # torch would keep the room for itself, and the next model could not have it
    refuse_nothing(spec, plans, journal)


def load(spec: RewardSpec, key: str = KEY) -> RewardModel:
    """Raises UserError: a model without a trained head, a device that is not there."""
    return load_reward_model(spec.reward, key, torch.device("cpu"), spec.dtype, spec.micro_batch_tokens)


def blocks_without_scores(plan: Plan, journal: Journal, spec: RewardSpec) -> list[list[Asked]]:
    """Of all problems in their order, cut where it depends on nothing else: a block was scored whole, or not at all."""
    have = journal.scores.get((spec.digest, plan.job.label), {})
    most = max(map(len, journal.samples[plan.job.label].values()))
    each = max(1, BLOCK // max(most, 1))
    blocks = [[a for _, a in some] for _, some in groupby(enumerate(plan.asked), lambda item: item[0] // each)]
    return [block for block in blocks if any(a.number not in have for a in block)]


def scored(model: RewardModel, block: Sequence[Asked], samples: dict[int, list[Sample]]) -> JudgedBlock:
    """Equal completions of a problem are scored once. What could not be sampled has no score."""
    texts = {
        (asked.number, i): Text(asked.problem.question, asked.text, sample.text, sample.finish_reason)
        for asked in block
        for i, sample in enumerate(samples[asked.number])
        if sample.failed is None
    }
    unique = list(dict.fromkeys(texts.values()))
    verdicts = dict(zip(unique, model.verdicts(unique), strict=True))
    absent = Verdict(None, "unknown", "not sampled")
    return [
        (
            asked.number,
            [
                verdicts[texts[asked.number, i]] if (asked.number, i) in texts else absent
                for i in range(len(samples[asked.number]))
            ],
        )
        for asked in block
    ]


def refuse_nothing(spec: RewardSpec, plans: Sequence[Plan], journal: Journal) -> None:
    """Raises UserError where the model could score nothing at all: figures of it would be of chance."""
    found = [
        verdict
        for plan in plans
        for some in journal.scores[spec.digest, plan.job.label].values()
        for verdict in some
        if verdict.detail != "not sampled"
    ]
    if found and all(verdict.reward is None for verdict in found):
        raise UserError(
            f"--reward-model {spec.reward.model} can score none of {len(found):,} completions; the first: "
            f"{found[0].detail}. What was sampled is kept: the same command with another --reward-model goes on from "
            "here"
        )
