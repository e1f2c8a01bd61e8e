"""Learning from comparisons: DPO and its family, online and iterative DPO, KTO. One step, from top to bottom.

    1. take      pairs (or labelled completions), of files or of the policy's own samples     preference_sources.py
    2. compare   log-probabilities of both under a reference: who the policy was, or nobody
    3. update    minimise the mean of  loss(log pi(y+ | x), log pi(y- | x), ...)     objectives.py, preferences/

Which source, reference and loss is chosen once, in __init__. Left out: what surrounds a step (loop.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.recipes.from_files import example_stream, room_of
from grpo_math.recipes.objectives import Objective, Paired, Sums, Unpaired
from grpo_math.recipes.parts import Parts, StepResult, Stopwatch, Stream
from grpo_math.recipes.preference_sources import FromFiles, FromPolicy, Source


class Preference:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.Preference, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.between_updates = True
        unpaired = bool(cfg.losses.intersection(config.UNPAIRED))
        self.objective: Objective = (
            Unpaired(cfg.loss, parts.policy.pad_id, room_of(cfg, parts))
            if unpaired
            else Paired(cfg.loss, parts.policy.pad_id)
        )
        # held in memory only where it must be: a reference that the policy once was is read while it is
        self.model = parts.backend.reference(config.KL()) if cfg.chosen_reference == "fixed" else None
        self.source: Source
        if cfg.data is None:
            self.source = FromPolicy(cfg, parts, self.objective, self.policy_sums)
        else:
            stream = example_stream(cfg, parts, cfg.data, cfg.stages)
            self.source = FromFiles(cfg, parts, stream, self.objective, self.policy_sums)

    @property
    def stream(self) -> Stream:
        return self.source.stream

    def step(self, step: int) -> StepResult:
        watch = Stopwatch(self.parts.watchdog)
        taken = self.source.take(step, watch)
        metrics = taken.metrics | {"data/examples": float(len(taken.examples))}
        if taken.examples:
            self.between_updates = False
            with watch("update"):
                batch = self.objective.batch(taken.examples)
                if self.model is not None:
                    batch = replace(batch, ref_logprobs=self.model.logprobs(batch))
                reference = self.reference_of(taken.examples)
                loss = self.objective.loss(taken.examples, batch, reference, self.policy_sums)
                metrics |= self.parts.backend.step(batch, loss)
            metrics["completion/length"] = float(batch.loss_mask.sum()) / len(batch)
        return StepResult(metrics | watch.metrics(), taken.records, stream=self.stream.state())

    def policy_sums(self, batch: Batch) -> Tensor:
        """log pi(y | x) of each row (B,), in nats, by the policy as it is."""
        return self.parts.backend.logprobs(batch).sum(1)

    def reference_of(self, examples: Sequence[Any]) -> Sums | None:
        """What compares with these examples."""
        known = {"precomputed": "ref", "round": "ref", "behaviour": "behaviour"}.get(self.cfg.chosen_reference)
        if known is None:
            return None if self.model is None else self.model_sums
        return lambda _: torch.tensor([getattr(pair, known) for pair in examples]).flatten()

    def model_sums(self, batch: Batch) -> Tensor:
        """log pi_ref(y | x) of each row (B,), in nats."""
        assert self.model is not None
        known = batch.ref_logprobs
        return (self.model.logprobs(batch) if known is None else known).sum(1)

    def samples_in(self, step: int) -> bool:
        return self.source.samples_in(step)

    def sync(self, step: int) -> None:
        self.parts.engine.update_weights(self.parts.backend.weights(), version=step)

    def save(self, path: Path) -> dict[str, Any]:
        return {"source": self.source.save(path), "objective": self.objective.state()}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        self.source.load(path, state["source"])
        self.objective.restore(state["objective"])

    def close(self) -> None:
        pass
