"""Groups -> Batch: rows of prompt + completion, the mask of trained tokens, and a weight for each of them.

The weights are those of the whole step, computed here before any split, so micro-batches and ranks only add.
Left out: how a reduction weighs tokens (losses.py) and where advantages come from (advantages.py).
"""

# B completions, T tokens of the longest prompt + completion

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from grpo_math.types import Completion, Group, Prompt

Reduction = Callable[[Tensor, int], Tensor]  # (loss_mask (B, T), constant_length) -> weights (B, T)


@dataclass(frozen=True)
class Batch:
    """Everything an update reads, aligned with token_ids: position t speaks of the token at t. All are (B, T).

    token_ids: int64, prompt then completion, padded on the right. lengths: (B,) tokens that are not padding.
    loss_mask: bool, the completion tokens that are trained. weights: float32, 0 where loss_mask is.
    advantages, sampler_logprobs: float32. old_logprobs: the trainer's own before the step's first update; None while
    they would equal the current ones. ref_logprobs: None where no reference is in the loss. copies: (B,) how many equal
    completions a row stands for, None where each stands for itself. units: (B,) int64, of rows that are computed
    together, such as a pair's two, each the number of their unit; None where each row is one by itself. old_values,
    returns: what a critic said before the step's first update and what it should have said; None without one."""

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    weights: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    copies: Tensor | None = None
    units: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def rows(self, index: Sequence[int] | Tensor) -> Batch:
        """These rows, cut to the longest of them."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.token_ids.device)
        width = int(self.lengths[index].max()) if len(index) else 0
        return self._map(lambda t: t[index] if t.dim() == 1 else t[index, :width])

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda t: t.to(device, non_blocking=True))

    def with_advantages(self, advantages: Tensor) -> Batch:
        """advantages: (B,), one for all tokens of a completion, or (B, T), one for each."""
        spread = advantages[:, None] if advantages.dim() == 1 else advantages
        return replace(self, advantages=spread.float() * self.loss_mask)

    def scale_weights(self, factor: float) -> Batch:
        return replace(self, weights=self.weights * factor)

    def shares(self, count: int) -> list[Batch]:
        """The rows of each of `count` updates, in their order."""
        bounds = [round(i * len(self) / count) for i in range(count + 1)]
        return [self.rows(range(a, b)) for a, b in pairwise(bounds) if a < b]

    def micro_batches(self, token_budget: int, packing: bool = False) -> list[list[int]]:
        """Row numbers in groups of similar length of at most token_budget `size` each (or a single unit)."""
        lengths = self.lengths.tolist()
        units = self.in_units(range(len(self)))
        groups: list[list[int]] = []
        for unit in sorted(units, key=lambda unit: max(lengths[row] for row in unit), reverse=True):
            if groups and _size([lengths[row] for row in groups[-1] + unit], packing) <= token_budget:
                groups[-1] += unit
            else:
                groups.append(list(unit))
        return groups

    def size(self, rows: Sequence[int], packing: bool = False) -> int:
        """Tokens that a forward pass of these rows computes: each padded to the longest, or packed without padding."""
        return _size(self.lengths[rows].tolist(), packing)

    def in_units(self, rows: Iterable[int]) -> list[list[int]]:
        """These rows, those of one unit together and in their order."""
        if self.units is None:
            return [[row] for row in rows]
        numbers = self.units.tolist()
        units: dict[int, list[int]] = {}
        for row in rows:
            units.setdefault(numbers[row], []).append(row)
        return list(units.values())

    def once(self, score: Callable[[Batch], Tensor]) -> Tensor:
        """score of the batch, (B, T), computed once for rows that say the same: they then have the very same numbers,
        which in other company could differ by rounding."""
        first, place = _distinct(self.token_ids, self.loss_mask)
        return score(self.rows(first))[place]

    def merge_copies(self) -> Batch:
        """One row for siblings that say the same and have the same advantage, with the sum of their weights.

        Loss and gradient are linear in the weights, so this changes them by nothing but rounding. A model that is sure
        of itself, as a small one soon is, repeats itself in most of a group."""
        first, place = _distinct(self.token_ids, self.loss_mask, self.advantages, self.sampler_logprobs)
        where = torch.tensor(place, dtype=torch.long)
        weights = torch.zeros(len(first), self.weights.shape[1]).index_add_(0, where, self.weights)
        merged = replace(self, copies=None).rows(first)
        return replace(merged, weights=weights[:, : merged.weights.shape[1]], copies=where.bincount().float())

    def _map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        def on(value: Tensor | None) -> Any:
            return None if value is None else f(value)

        return Batch(**{item.name: on(getattr(self, item.name)) for item in fields(self)})


def _distinct(*tables: Tensor) -> tuple[list[int], list[int]]:
    """The rows that are the first of their kind, and for each row which of these it equals, in every table."""
    parts = [table.numpy() for table in tables]
    kinds: dict[bytes, int] = {}
    first: list[int] = []
    place: list[int] = []
    for row in range(len(parts[0])):
        kind = kinds.setdefault(b"".join(part[row].tobytes() for part in parts), len(first))
        if kind == len(first):
            first.append(row)
        place.append(kind)
    return first, place


def _size(lengths: Sequence[int], packing: bool) -> int:
    return sum(lengths) if packing else len(lengths) * max(lengths)


def make_batch(
    groups: Sequence[Group], reduction: Reduction, constant_length: int, pad_id: int, mask_truncated: bool
) -> Batch:
    """The batch of a step, still without advantages. Its rows are the scored completions in the order of the groups.

    A completion without a score has no row; one that was cut at max_tokens keeps its row but, with mask_truncated, none
    of its tokens is trained."""
    rows = [(g.prompt, c) for g in groups for c, s in zip(g.completions, g.scores, strict=True) if s.reward is not None]
    trained = [not (mask_truncated and completion.finish_reason == "length") for _, completion in rows]
    batch = pad_rows(rows, trained, pad_id)
    return replace(batch, weights=reduction(batch.loss_mask, constant_length))


def pad_rows(rows: Sequence[tuple[Prompt, Completion]], trained: Iterable[bool], pad_id: int) -> Batch:
    """Rows of prompt + completion without weights or advantages. The end-of-sequence token is trained like any other:
    the mask comes from the lengths, never from comparing tokens with pad_id, which often is the same token."""
    lengths = torch.tensor([len(p.token_ids) + len(c.token_ids) for p, c in rows], dtype=torch.long)
    shape = (len(rows), int(lengths.max()) if rows else 0)
    token_ids = torch.full(shape, pad_id, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    sampler = torch.zeros(shape, dtype=torch.float32)
    for i, ((prompt, completion), train) in enumerate(zip(rows, trained, strict=True)):
        start, end = len(prompt.token_ids), int(lengths[i])
        token_ids[i, :end] = torch.tensor(prompt.token_ids + completion.token_ids)
        mask[i, start:end] = train
        sampler[i, start:end] = torch.tensor(completion.logprobs)
    zeros = torch.zeros(shape, dtype=torch.float32)
    return Batch(token_ids, lengths, mask, zeros, zeros, sampler)
