"""Iterative GRPO: the reward model goes on learning, from what the verifier says of the policy's newest samples.

    after every M steps:  reward model <- trained on (1 - replay) newest + replay older samples;  reference <- policy

DeepSeekMath, arXiv:2402.03300, algorithm 1. So it is asked about texts like those it has seen, wherever the policy has
gone. Left out: the reference, which kl.reference=refresh moves, and the loss (reward_losses.py).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_math import config
from grpo_math.backend.base import LossFn, Metrics
from grpo_math.backend.make import make_backend, with_optimizer_of
from grpo_math.batch import Batch
from grpo_math.learned.checks import OURS
from grpo_math.learned.local import Local
from grpo_math.learned.normalise import Running
from grpo_math.learned.reading import Asked, Steps
from grpo_math.learned.rewards import LearnedRewards
from grpo_math.recipes.parts import Parts, step_seed
from grpo_math.reward_losses import cross_entropy
from grpo_math.reward_metrics import auc
from grpo_math.types import Group
from grpo_math.value_input import batch_of

FOLDER = "reward_model"  # in a checkpoint: a model of its own, with its optimizer and the samples it has yet to learn
SAMPLES = "samples.json"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sample that the reward model can read, and whether the verifier found it correct: 1 or 0."""

    asked: Asked
    label: float


class Retraining:
    """newest: of the steps since it last learnt. older: drawn from all before them, each with the same chance."""

    def __init__(self, cfg: config.GRPO, parts: Parts, learned: LearnedRewards) -> None:
        assert cfg.retraining is not None
        self.cfg, self.settings, self.parts, self.learned = cfg, cfg.retraining, parts, learned
        (self.reward,) = (model for model in learned.models if model.reward.kind == "outcome")
        assert isinstance(self.reward.model, Local), "config refuses a server"
        self.value = value = self.reward.model.model
        value.model.requires_grad_(True)
        # scored on every rank from the whole weights, which ZeRO-3 would split
        zero = min(cfg.backend.deepspeed.zero, 2)
        backend = cfg.backend.model_copy(
            update={"deepspeed": cfg.backend.deepspeed.model_copy(update={"zero": zero, "offload_parameters": False})}
        )
        settings = with_optimizer_of(cfg, self.settings).model_copy(update={"backend": backend})
        updates = cfg.steps // self.settings.every * self.settings.updates
        self.backend = make_backend(settings, value, max(updates, 1), parts.ranks)
        self.pad_id = value.pad_id
        self.newest: list[Labelled] = []
        self.older: list[Labelled] = []
        self.passed = 0  # samples that `older` was drawn from

    def learn(self, groups: Sequence[Group], step: int) -> Metrics:
        """Remember a step's samples; when it is time, learn from them."""
        self.newest += [
            Labelled(Asked.of(group.prompt, completion), float(score.verdict.reason == "correct"))
            for group in groups
            for completion, score in zip(group.completions, group.scores, strict=True)
            if score.verdict.reward is not None and score.parts[self.reward.reward.called].reward is not None
        ]
        if step % self.settings.every or not self.newest:
            return {}
        name = self.reward.reward.called
        # what it made of samples that it has not learnt from
        known = [
            (score, s.verdict.reason == "correct")
            for group in groups
            for s in group.scores
            if s.verdict.reward is not None and (score := s.parts[name].reward) is not None
        ]
        metrics = {"retraining/auc": auc(*(torch.tensor(column) for column in zip(*known, strict=True)))}
        losses = [self.update(step, number) for number in range(self.settings.updates)]
        self.put_away(step)
        # from here on scores are another model's, also for whoever takes it from the checkpoint
        self.learned.seen[name] = Running()
        self.learned.watch.begin_anew(name)
        forget_scores(self.value.model)
        return metrics | {
            "retraining/loss": sum(r["loss/total"] for r in losses) / len(losses),
            "retraining/grad_norm": sum(r["optim/grad_norm"] for r in losses) / len(losses),
        }

    def update(self, step: int, number: int) -> Metrics:
        rng = random.Random(step_seed(self.cfg.seed, "retraining", step, number))
        replayed = min(round(self.settings.replay * self.settings.examples), len(self.older))
        fresh = min(self.settings.examples - replayed, len(self.newest))
        chosen = rng.sample(self.newest, fresh) + rng.sample(self.older, replayed)
        reads = [self.reward.read(sample.asked) for sample in chosen]
        batch = batch_of([steps.read for steps in reads if isinstance(steps, Steps)], self.pad_id)
        batch = replace(batch, weights=batch.loss_mask / len(chosen), units=torch.arange(len(chosen)))
        return self.backend.step(batch, loss_of(torch.tensor([sample.label for sample in chosen])))

    def put_away(self, step: int) -> None:
        """The newest become older ones, of which a random sample is kept (reservoir sampling, Vitter 1985)."""
        rng = random.Random(step_seed(self.cfg.seed, "replay", step))
        for sample in self.newest:
            self.passed += 1
            if len(self.older) < self.settings.remembered:
                self.older.append(sample)
            elif (place := rng.randrange(self.passed)) < self.settings.remembered:
                self.older[place] = sample
        self.newest = []

    def save(self, path: Path) -> None:
        folder = path / FOLDER
        folder.mkdir(exist_ok=True)
        self.backend.save(folder)
        if self.parts.ranks.first:
            samples = {name: [asdict(s) for s in getattr(self, name)] for name in ("newest", "older")}
            (folder / SAMPLES).write_text(json.dumps(samples | {"passed": self.passed}), encoding="utf-8")

    def load(self, path: Path) -> None:
        self.backend.load(path / FOLDER)
        said = json.loads((path / FOLDER / SAMPLES).read_text(encoding="utf-8"))
        self.passed = said["passed"]
        for name in ("newest", "older"):
            setattr(self, name, [Labelled(Asked(**s["asked"]), s["label"]) for s in said[name]])

    def close(self) -> None:
        self.backend.close()


def forget_scores(model: PreTrainedModel) -> None:
    """What its config.json says of the scores of its training data is no longer so."""
    said = getattr(model.config, OURS, None)
    if isinstance(said, dict):
        setattr(model.config, OURS, {key: value for key, value in said.items() if not key.startswith("score")})


def loss_of(labels: Tensor) -> LossFn:
    """The mean cross-entropy of a step's labels (B,); rows are known by their unit."""

    def loss(values: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert part.units is not None
        mine = labels[part.units.cpu()].to(values.device)
        each = cross_entropy(values[part.loss_mask], mine)
        return (each * part.weights[part.loss_mask]).sum(), {}

    return loss
