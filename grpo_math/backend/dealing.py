"""Which rows of a batch which rank computes, so that every rank has as many forward passes as the others.

Where weights or gradients are split over ranks each pass is a meeting of all of them: one pass too few on one rank and
the rest wait for ever. Left out: the passes themselves (deepspeed.py).
"""

# a micro-batch is what a rank computes in one pass

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from grpo_math.batch import Batch


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch; `extra` where another rank has them already and this one only keeps step with it."""

    rows: list[int]
    extra: bool = False


def deal(batch: Batch, token_budget: int, ranks: int, packing: bool = False) -> list[list[MicroBatch]]:
    """Every rank's micro-batches, the same number for each: [rank][pass]. Each row of the batch is in exactly one that
    is not extra, with all of its unit; the size of each, as Batch.size has it, is at most `token_budget`, or that of a
    single unit. An empty batch has none.

    Passes that meet are of similar size, since all wait for the longest; and ranks take turns at the larger ones."""

    def size(micro_batch: MicroBatch) -> int:
        return batch.size(micro_batch.rows, packing)

    micro_batches = [MicroBatch(rows) for rows in batch.micro_batches(token_budget, packing)]
    while len(micro_batches) % ranks:
        largest = max(micro_batches, key=lambda m: (len(batch.in_units(m.rows)) > 1, size(m)))
        units = batch.in_units(largest.rows)
        if len(units) > 1:
            half = len(units) // 2
            micro_batches.remove(largest)
            micro_batches += [MicroBatch(list(chain.from_iterable(some))) for some in (units[:half], units[half:])]
        else:
            every_unit = [MicroBatch(unit, extra=True) for unit in batch.in_units(range(len(batch)))]
            micro_batches.append(min(every_unit, key=size))
    micro_batches.sort(key=size, reverse=True)
    dealt: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for start in range(0, len(micro_batches), ranks):
        turn = start // ranks
        for place, micro_batch in enumerate(micro_batches[start : start + ranks]):
            dealt[(place + turn) % ranks].append(micro_batch)
    return dealt
