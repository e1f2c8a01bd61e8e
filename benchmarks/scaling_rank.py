"""One process of a measurement of benchmarks/scaling.py: the loop's own step, timed, started by torch.distributed.run.

A part takes as long as it takes on the slowest rank. Left out: settings and tables.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.models import endless
from benchmarks.setting import Setting, memory, reset_peak
from grpo_math import config
from grpo_math.backend.make import starting_policy
from grpo_math.problems import load_problems
from grpo_math.ranks import Ranks, join, leave
from grpo_math.recipes.grpo import GRPO
from grpo_math.recipes.parts import Parts, build_parts, gold_check
from grpo_math.recipes.run import updates_of
from grpo_math.types import Completion

BACKENDS = {
    "torch": ("backend.name=torch",),
    "zero2": ("backend.name=deepspeed", "backend.deepspeed.zero=2"),
    "zero3": ("backend.name=deepspeed", "backend.deepspeed.zero=3"),
}


@dataclass(frozen=True)
class Work:
    """One measurement. world: processes. threads: of each."""

    model: str
    prompts: int
    group_size: int
    max_tokens: int
    steps: int
    micro_batch_tokens: int
    threads: int
    warmup: int = 1
    world: int = 1
    backend: str = "torch"

    def config(self) -> config.GRPO:
        given = (*BACKENDS[self.backend], f"micro_batch_tokens={self.micro_batch_tokens}", "scoring.workers=1")
        return Setting(
            self.model,
            prompts=self.prompts,
            group_size=self.group_size,
            max_tokens=self.max_tokens,
            steps=self.steps,
            warmup=self.warmup,
            overrides=given,
        ).config()


@dataclass
class Cost:
    """Seconds of each timed step and of its parts, sampled tokens, losses; memory in bytes, of the largest process.

    gather: the completions of a step from the ranks that sampled them to all. sync: what the loop does for the sampler
    to have the new weights. weights: reading all of them out whole, which is what a sampler with weights of its own
    waits for at least."""

    seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak: int = 0
    growth: int = 0


def measure(work: Work, ranks: Ranks) -> Cost:
    torch.set_num_threads(work.threads)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    cfg = work.config()
    source = load_problems(cfg.task, gold_check(cfg))
    parts = build_parts(cfg, starting_policy(cfg), updates_of(cfg), source, ranks)
    cost = Cost()
    assert parts.scorer is not None
    with parts.scorer, parts.watchdog:
        recipe = GRPO(cfg, parts)
        sampled = never_ending(parts)
        baseline = reset_peak()
        for step in range(1, cfg.steps + 1):
            seconds, metrics = slowest(ranks, lambda step=step: recipe.step(step).metrics)
            took = {name: max(ranks.gather([metrics[f"time/{name}"]])) for name in ("generate", "verify", "update")}
            took["sync"], _ = slowest(ranks, lambda step=step: recipe.sync(step))
            took["gather"], _ = slowest(ranks, lambda: ranks.gather(ranks.share(sampled[-1])))
            took["weights"], _ = slowest(ranks, lambda: copy_all(parts))
            if step > work.warmup:
                cost.seconds.append(seconds + took["sync"])
                cost.tokens.append(sum(len(c.token_ids) for group in sampled[-1] for c in group))
                cost.losses.append(metrics["loss/total"])
                for name, value in took.items():
                    cost.phases.setdefault(name, []).append(value)
        peaks = ranks.gather([(memory("VmHWM"), memory("VmHWM") - baseline)])
        cost.peak, cost.growth = (max(values) for values in zip(*peaks, strict=True))
        recipe.close()
    parts.engine.close()
    return cost


def slowest(ranks: Ranks, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until every rank has done it, all having begun together, and what it gave here."""
    ranks.wait()
    began = time.perf_counter()
    result = work()
    return max(ranks.gather([time.perf_counter() - began])), result


def never_ending(parts: Parts) -> list[list[list[Completion]]]:
    """Has the engine sample all tokens of every completion; where it will put what it sampled."""
    engine: Any = parts.engine
    inner = getattr(engine, "engine", engine)  # each rank's own below the shared one
    inner.policy = endless(inner.policy)
    sampled: list[list[list[Completion]]] = []
    generate = engine.generate

    def noted(prompts: Any, sampling: Any) -> list[list[Completion]]:
        sampled[:] = [generate(prompts, sampling)]
        return sampled[-1]

    engine.generate = noted
    return sampled


def copy_all(parts: Parts) -> None:
    for _, tensor in parts.backend.weights():
        tensor.clone()


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))
    ranks = join(deadline_s=240.0)
    try:
        cost = measure(work, ranks)
        if ranks.first:
            Path(sys.argv[2]).write_text(json.dumps(asdict(cost)))
        ranks.wait()
    finally:
        leave()


if __name__ == "__main__":
    main()
