"""What a reward model learns from together, in tokens: the completions of a comparison, or one with its labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from grpo_math.batch import Batch
from grpo_math.examples.raw import Kind, RawExample
from grpo_math.value_input import Read, ValueReader, batch_of

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Judged:
    """reads: completions of one prompt. targets: for each place of each, in their order, what is known of its value:
    what orders the completions, or a label in [0, 1]; NaN where nothing is. margin: of a pair, by how much they should
    differ; None where the file does not say."""

    reads: tuple[Read, ...]
    targets: tuple[float, ...]
    margin: float | None = None

    def fitted(self, room: int, truncate: bool) -> Judged | None:
        """Without the completions that have no room; None where nothing can be learnt from the rest."""
        assert not truncate, "config_reward_model refuses it: a label is of the whole"
        if all(read.tokens <= room for read in self.reads):
            return self
        # of those that are compared each has one place
        kept = [(r, t) for r, t in zip(self.reads, self.targets, strict=False) if r.tokens <= room]
        if len(self.reads) == 1 or len({target for _, target in kept}) < 2:
            return None
        return replace(self, reads=tuple(r for r, _ in kept), targets=tuple(t for _, t in kept))


Encode = Callable[[RawExample], Judged]


def pair(reader: ValueReader, raw: RawExample) -> Judged:
    """The chosen one before the rejected one; targets are their rewards, where these say the same."""
    chosen, rejected = (completion.reward for completion in raw.completions)
    ordered = chosen is not None and rejected is not None and chosen > rejected
    return Judged(_outcomes(reader, raw), (_reward(chosen), _reward(rejected)) if ordered else (1.0, 0.0), raw.margin)


def rewarded(reader: ValueReader, raw: RawExample) -> Judged:
    """Each completion with its reward: ranked, or judged, where it is the label."""
    return Judged(_outcomes(reader, raw), tuple(_reward(c.reward) for c in raw.completions))


def steps(reader: ValueReader, raw: RawExample) -> Judged:
    (completion,) = raw.completions
    ends, labels = zip(*raw.steps, strict=True)
    read = reader.steps(raw.prompt, completion.text, ends, completion.finish_reason)
    return Judged((read,), tuple(NAN if label is None else label for label in labels))


ENCODE: dict[Kind, Callable[[ValueReader, RawExample], Judged]] = {
    "preference": pair,
    "ranked": rewarded,
    "judged": rewarded,
    "steps": steps,
}


def every_token(example: Judged) -> Judged:
    """A place after each token up to the last of its places, with the label of the step that the token is in; Cobbe et
    al. 2021, arXiv:2110.14168, section 4.2: a verifier that judges at every token overfits less than one that judges
    at the end. Of a single completion, whose place t is then its token t."""
    (read,) = example.reads
    places = tuple(range(read.places[-1] + 1))
    ends = iter(zip(read.places, example.targets, strict=True))
    targets, (end, target) = [], next(ends)
    for place in places:
        if place > end:
            end, target = next(ends)
        targets.append(target)
    return replace(example, reads=(replace(read, places=places),), targets=tuple(targets))


def rows_of(examples: Sequence[Judged], weights: Sequence[Sequence[float]], pad_id: int) -> Batch:
    """All completions, those of one example a unit. weights: of each place, in the order of its targets."""
    batch = batch_of([read for example in examples for read in example.reads], pad_id)
    counts = torch.tensor([len(example.reads) for example in examples])
    spread = torch.zeros(batch.loss_mask.shape)
    spread[batch.loss_mask] = torch.tensor([weight for some in weights for weight in some])
    return replace(batch, weights=spread, units=torch.arange(len(examples)).repeat_interleave(counts))


def _outcomes(reader: ValueReader, raw: RawExample) -> tuple[Read, ...]:
    return tuple(reader.outcome(raw.prompt, c.text, c.finish_reason) for c in raw.completions)


def _reward(reward: float | None) -> float:
    assert reward is not None, "whoever reads the file refuses it"
    return reward
