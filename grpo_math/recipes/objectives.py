"""Examples -> the batch of an update and its loss: pairs for the DPO family, labelled completions for KTO and BCO.

Both rows of a pair are in one micro-batch, so in one forward pass. A loss has one value per pair or completion; it is
weighed by the whole step here, before any split, and whatever else it needs of the whole step is computed here too.
Left out: the equations (preferences/), and where examples come from (preference_sources.py).
"""

# P pairs, B rows (2 P, chosen before rejected; or completions), T tokens

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import LossFn
from grpo_math.batch import Batch, pad_rows
from grpo_math.examples.example import Labelled, Pair, fit
from grpo_math.kl import k3
from grpo_math.preferences.inputs import Pairs, Singles
from grpo_math.preferences.metrics import pair_metrics, single_metrics
from grpo_math.preferences.table import make_preference
from grpo_math.preferences.unpaired import RunningMean, bco_baseline, kto_baseline, single_rewards
from grpo_math.types import Completion, Prompt

Sums = Callable[[Batch], Tensor]  # log-probabilities of whole completions (B,), without gradient


class Objective(Protocol):
    def batch(self, examples: Sequence[Any]) -> Batch:
        """The rows of an update. Weights are such that a loss is a mean over the examples."""

    def loss(self, examples: Sequence[Any], batch: Batch, reference: Sums | None, policy: Sums) -> LossFn:
        """The loss of an update. reference: None where it needs none; policy: as it is before the update."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Paired:
    """Chosen against rejected."""

    def __init__(self, settings: config.PreferenceLoss, pad_id: int) -> None:
        self.settings, self.pad_id = settings, pad_id
        self.method = make_preference(settings)

    def batch(self, examples: Sequence[Pair]) -> Batch:
        rows = [(pair.prompt, completion) for pair in examples for completion in (pair.chosen, pair.rejected)]
        batch = pad_rows(rows, [True] * len(rows), self.pad_id)
        units = torch.arange(len(examples)).repeat_interleave(2)
        return replace(batch, weights=batch.loss_mask / len(examples), units=units)

    def loss(self, examples: Sequence[Pair], batch: Batch, reference: Sums | None, policy: Sums) -> LossFn:
        known = Known.of(examples, batch, None if reference is None else reference(batch))

        def loss(logprobs: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            assert part.units is not None
            sums, weights = logprobs.sum(1), row_weights(part)[0::2]
            pairs = known.with_policy(sums[0::2], sums[1::2], part.units[0::2])
            values = self.method.loss(pairs, self.settings)
            metrics = {name: (v * weights).sum() for name, v in pair_metrics(pairs, self.settings).items()}
            return (values * weights).sum(), metrics | distance(logprobs, part)

        return loss

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Known:
    """What is known of a step's pairs before the policy has read them: (P, 2) each, chosen and rejected."""

    tokens: Tensor
    reference: Tensor | None
    behaviour: Tensor | None
    rewards: Tensor | None

    @classmethod
    def of(cls, examples: Sequence[Pair], batch: Batch, reference: Tensor | None) -> Known:
        def table(values: list[tuple[float, float] | None]) -> Tensor | None:
            return None if None in values else torch.tensor(values, dtype=torch.float32)

        return cls(
            tokens=batch.loss_mask.sum(1).view(-1, 2).float(),
            reference=None if reference is None else reference.view(-1, 2),
            behaviour=table([pair.behaviour for pair in examples]),
            rewards=table([pair.rewards for pair in examples]),
        )

    def with_policy(self, chosen: Tensor, rejected: Tensor, which: Tensor) -> Pairs:
        """which: numbers of the pairs that these sums are of."""

        def columns(table: Tensor | None) -> Sequence[Any]:
            return (None, None) if table is None else table[which.cpu()].to(chosen.device).unbind(1)

        tables = (self.reference, self.tokens, self.behaviour, self.rewards)
        return Pairs(chosen, rejected, *(column for table in tables for column in columns(table)))


class Unpaired:
    """Good completions and bad ones, each by itself, against a baseline of the whole step."""

    def __init__(self, settings: config.PreferenceLoss, pad_id: int, room: int) -> None:
        """room: tokens that a prompt and a completion may have together."""
        self.settings, self.pad_id, self.room = settings, pad_id, room
        self.method, self.baseline = make_preference(settings), BASELINES[settings.name]
        self.delta = RunningMean()  # bco's

    def batch(self, examples: Sequence[Labelled]) -> Batch:
        return self.rows([(example.prompt, example.completion) for example in examples])

    def loss(self, examples: Sequence[Labelled], batch: Batch, reference: Sums | None, policy: Sums) -> LossFn:
        assert reference is not None, "both kto and bco compare with a reference"
        labels, ref = torch.tensor([example.label for example in examples]), reference(batch)
        tokens, baseline = batch.loss_mask.sum(1).float(), self.baseline(self, examples, batch, ref, reference, policy)
        share = {name: len(examples) / max(int((labels == kind).sum()), 1) for name, kind in CLASSES.items()}

        def loss(logprobs: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            assert part.units is not None
            which, device, weights = part.units.cpu(), logprobs.device, row_weights(part)
            singles = Singles(logprobs.sum(1), *(table[which].to(device) for table in (ref, tokens, labels)))
            values = self.method.loss(singles, baseline.to(device), self.settings)
            metrics = {
                # the mean over a class, where the metric is of one alone
                name: (value.nan_to_num() * weights).sum()
                * share.get(name.rpartition("/")[2].removesuffix("_change"), 1.0)
                for name, value in single_metrics(singles, baseline.to(device), self.settings).items()
            }
            metrics["implicit/margin"] = metrics["implicit/chosen"] - metrics["implicit/rejected"]
            for name in (name for name, kind in CLASSES.items() if not bool((labels == kind).any())):
                metrics = {key: v for key, v in metrics.items() if name not in key and key != "implicit/margin"}
            return (values * weights).sum(), metrics | distance(logprobs, part)

        return loss

    def rows(self, rows: Sequence[tuple[Prompt, Completion]]) -> Batch:
        batch = pad_rows(rows, [True] * len(rows), self.pad_id)
        return replace(batch, weights=batch.loss_mask / len(rows), units=torch.arange(len(rows)))

    def reference_point(
        self, examples: Sequence[Labelled], batch: Batch, ref: Tensor, reference: Sums, policy: Sums
    ) -> Tensor:
        """KTO's z0, from each prompt with the completion of another one."""
        pairs = mismatched(examples, self.room)
        if not pairs:  # a step of one prompt alone
            return torch.tensor(0.0)
        others = self.rows(pairs)
        return kto_baseline(policy(others) - reference(others))

    def running_mean(
        self, examples: Sequence[Labelled], batch: Batch, ref: Tensor, reference: Sums, policy: Sums
    ) -> Tensor:
        """BCO's delta, with this step in it."""
        labels = torch.tensor([example.label for example in examples])
        singles = Singles(policy(batch), ref, batch.loss_mask.sum(1).float(), labels)
        self.delta = bco_baseline(self.delta, single_rewards(singles, self.settings))
        return torch.tensor(self.delta.mean)

    def state(self) -> dict[str, Any]:
        return asdict(self.delta)

    def restore(self, state: dict[str, Any]) -> None:
        self.delta = RunningMean(**state)


BASELINES: dict[str, Callable[..., Tensor]] = {"kto": Unpaired.reference_point, "bco": Unpaired.running_mean}
CLASSES = {"chosen": True, "rejected": False}  # what a metric of one class is called after


def mismatched(examples: Sequence[Labelled], room: int) -> list[tuple[Prompt, Completion]]:
    """Each prompt with the completion of the next example that has another prompt, cut to `room` tokens together; none
    for what has no such example, or no room for a token of it."""
    found = []
    for place, example in enumerate(examples):
        later = [*examples[place + 1 :], *examples[:place]]
        other = next((e for e in later if e.prompt.token_ids != example.prompt.token_ids), None)
        completion = None if other is None else fit(example.prompt, other.completion, room, truncate=True)
        if completion is not None:
            found.append((example.prompt, completion))
    return found


def distance(logprobs: Tensor, part: Batch) -> dict[str, Tensor]:
    """kl/ref per token, (B, T), where the reference's log-probabilities are known for each and not as sums alone. An
    estimate of KL(pi || pi_ref) as far as the completions are the policy's own."""
    return {} if part.ref_logprobs is None else {"kl/ref": k3(logprobs.detach(), part.ref_logprobs)}


def row_weights(part: Batch) -> Tensor:
    """(B,): the weight that all trained tokens of a row have; 0 for rows that only keep step with other ranks."""
    return part.weights.sum(1) / part.loss_mask.sum(1).clamp(min=1)
