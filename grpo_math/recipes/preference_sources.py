"""Where the examples of a preference run come from: files, stage by stage, or the policy's own completions, paired.

Left out: batches and losses (objectives.py), and what surrounds an update (preference.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

from grpo_math import config
from grpo_math.backend.base import Metrics
from grpo_math.examples.example import Pair
from grpo_math.examples.stream import ExampleStream
from grpo_math.filtering.pairs import Terms, pair_up
from grpo_math.filtering.rules import UNDECIDED, apply, rules_of
from grpo_math.filtering.settings import Settings
from grpo_math.progress import bar
from grpo_math.recipes.objectives import Objective, Sums
from grpo_math.recipes.parts import Parts, Stopwatch, Stream, step_seed
from grpo_math.recipes.records import completion_records, group_metrics
from grpo_math.recipes.rounds import as_candidates, completions_of, draw, read_round, sample_round
from grpo_math.types import Completion, Group, Scored

KNOWN_FILE = "reference.json"
READ_AT_ONCE = 64  # pairs whose reference log-probabilities are one phase to the watchdog


@dataclass(frozen=True)
class Taken:
    """What a step learns from: Pairs or Labelled. records: completions that were sampled for it."""

    examples: list[Any]
    metrics: Metrics = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    @property
    def stream(self) -> Stream: ...

    def samples_in(self, step: int) -> bool: ...

    def take(self, step: int, watch: Stopwatch) -> Taken: ...

    def save(self, path: Path) -> dict[str, Any]: ...

    def load(self, path: Path, state: dict[str, Any]) -> None: ...


class FromFiles:
    """prompts_per_step examples a step. With stages, each has a part of them, and steps / stages steps.

    With a precomputed reference, `sums` (the policy's log-probabilities) reads all of a stage when it begins."""

    def __init__(
        self, cfg: config.Preference, parts: Parts, stream: ExampleStream[Any], objective: Objective, sums: Sums
    ) -> None:
        self.cfg, self.parts, self.stream = cfg, parts, stream
        self.objective, self.sums = objective, sums
        self.known: dict[str, tuple[float, float]] = {}  # file:line -> the reference's of chosen and rejected

    def take(self, step: int, watch: Stopwatch) -> Taken:
        stage = (step - 1) * self.cfg.stages // self.cfg.steps
        first = (step - 1) % (self.cfg.steps // self.cfg.stages) == 0
        if self.cfg.stages > 1:
            self.stream.part = stage
        precomputed = self.cfg.chosen_reference == "precomputed"
        if precomputed and first:
            self.known = self.read_all(watch, given=stage == 0)
        examples = self.stream.take(self.cfg.prompts_per_step)
        if precomputed:
            examples = [replace(pair, ref=self.known[pair.where]) for pair in examples]
        return Taken(examples, {"data/epoch": float(self.stream.epoch), "data/stage": float(stage + 1)})

    def read_all(self, watch: Stopwatch, given: bool) -> dict[str, tuple[float, float]]:
        """The reference's log-probabilities of every pair of the stage: those that the file has (`given`), or else the
        policy's as it is now."""
        known: dict[str, tuple[float, float]] = {}
        every = cast("ExampleStream[Pair]", self.stream).everything()
        total = len(self.stream.rows) // self.cfg.stages
        show = bar(total) if self.parts.ranks.first else lambda done: None
        while pairs := list(islice(every, READ_AT_ONCE)):
            missing = [pair for pair in pairs if pair.ref is None or not given]
            read = with_references(missing, self.objective, self.sums, watch)
            known |= {pair.where: pair.ref for pair in [*pairs, *read] if pair.ref is not None}
            show(min(len(known), total))
        show(total)
        return known

    def samples_in(self, step: int) -> bool:
        return False

    def save(self, path: Path) -> dict[str, Any]:
        if self.parts.ranks.first:
            (path / KNOWN_FILE).write_text(json.dumps(self.known), encoding="utf-8")
        return {}

    def load(self, path: Path, state: dict[str, Any]) -> None:
        known = json.loads((path / KNOWN_FILE).read_text(encoding="utf-8"))
        self.known = {where: (chosen, rejected) for where, (chosen, rejected) in known.items()}


class FromPolicy:
    """The policy's own completions, sampled, verified and paired every online.every steps, over which the pairs are
    spread evenly. A round without a pair, all problems being solved always or never, leaves its steps empty."""

    def __init__(self, cfg: config.Preference, parts: Parts, objective: Objective, sums: Sums) -> None:
        assert cfg.online is not None
        self.cfg, self.parts, self.online = cfg, parts, cfg.online
        self.objective, self.sums = objective, sums
        self.problems = cfg.prompts_per_step * cfg.online.every
        self.number, self.pairs = -1, list[Pair]()  # the round, and its pairs
        self.references: list[tuple[float, float]] = []  # of the round that a checkpoint is in the middle of

    @property
    def stream(self) -> Stream:
        assert self.parts.stream is not None
        return self.parts.stream

    def samples_in(self, step: int) -> bool:
        return (step - 1) % self.online.every == 0

    def take(self, step: int, watch: Stopwatch) -> Taken:
        cfg, online = self.cfg, self.online
        number, within = divmod(step - 1, online.every)
        metrics: Metrics = {}
        records: list[dict[str, Any]] = []
        if within == 0:
            groups = sample_round(cfg, self.parts, self.problems, number, step, watch)
            metrics = group_metrics(groups, cfg.rewards or [])
            records = completion_records(step, groups, [], None, None, temperature=cfg.sampling.temperature)
            self.pairs = paired(groups, online, step_seed(cfg.seed, "pairs", number))
            if cfg.chosen_reference == "round":
                self.pairs = with_references(self.pairs, self.objective, self.sums, watch)
            if not self.pairs:
                print(
                    f"step {step}: none of {len(groups):,} problems has a pair; nothing is learnt until the next round"
                )
        elif self.number != number:  # the run goes on in the middle of a round
            groups = read_round(cfg, self.problems, number)
            self.pairs = paired(groups, online, step_seed(cfg.seed, "pairs", number))
            if self.references:
                self.pairs = [replace(p, ref=ref) for p, ref in zip(self.pairs, self.references, strict=True)]
        self.number = number
        count, seed = len(self.pairs), step_seed(cfg.seed, "order", number)
        order = [place for epoch in range(online.passes) for place in draw(count, count, epoch, seed)]
        start, end = (len(order) * i // online.every for i in (within, within + 1))
        metrics |= {"round/number": float(number + 1), "round/pairs": float(count)}
        return Taken([self.pairs[place] for place in order[start:end]], metrics, records)

    def save(self, path: Path) -> dict[str, Any]:
        return {"references": [pair.ref for pair in self.pairs if pair.ref is not None]}

    def load(self, path: Path, state: dict[str, Any]) -> None:
        self.references = [(chosen, rejected) for chosen, rejected in state["references"]]


def with_references(pairs: Sequence[Pair], objective: Objective, sums: Sums, watch: Stopwatch) -> list[Pair]:
    """The pairs with what `sums` says of them as their reference."""
    read: list[Pair] = []
    for start in range(0, len(pairs), READ_AT_ONCE):
        some = pairs[start : start + READ_AT_ONCE]
        with watch("reference"):
            both = sums(objective.batch(some)).view(-1, 2).tolist()
        read += [replace(pair, ref=(chosen, rejected)) for pair, (chosen, rejected) in zip(some, both, strict=True)]
    return read


def paired(groups: Sequence[Group], online: config.Online, seed: int) -> list[Pair]:
    """The pairs that `grpo-math filter --to pairs` would make of these completions."""
    settings = Settings("pairs", pair=online.pair, gap=online.gap, seed=seed).resolved()
    pool, _ = apply([UNDECIDED], as_candidates(groups))
    kept, _ = apply(rules_of(settings, pool), pool) if pool else ([], [])
    terms = Terms(gap=online.gap, limit=online.pairs_per_problem)
    found = pair_up(kept, online.pair, terms, seed).pairs if kept else []
    every = completions_of(groups)
    return [as_pair(every[chosen.line], every[rejected.line]) for chosen, rejected in found]


def as_pair(better: tuple[Group, Completion, Scored], worse: tuple[Group, Completion, Scored]) -> Pair:
    """Two siblings as training takes them, with what their sampler and their verifier said."""
    (group, chosen, good), (_, rejected, bad) = better, worse
    assert good.reward is not None
    assert bad.reward is not None
    return Pair(
        group.prompt,
        chosen,
        rejected,
        behaviour=(sum(chosen.logprobs), sum(rejected.logprobs)),
        rewards=(good.reward, bad.reward),
        where=f"problem {group.prompt.problem.id}",
    )
