"""Which rows of a batch which rank computes, so that every rank has as many forward passes as the others.

Where weights or gradients are split over ranks each pass is a meeting of all of them: one pass too few on one rank and
the rest wait for ever. Left out: the passes themselves (deepspeed.py).
"""

# a micro-batch is what a rank computes in one pass

from __future__ import annotations

from dataclasses import dataclass

from grpo_math.batch import Batch


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a batch; `extra` where another rank has them already and this one only keeps step with it."""

    rows: list[int]
    extra: bool = False


def deal(batch: Batch, token_budget: int, ranks: int) -> list[list[MicroBatch]]:
    """Every rank's micro-batches, the same number for each: [rank][pass]. Each row of the batch is in exactly one that
    is not extra; the padded size of each is at most `token_budget`, or that of a single row. An empty batch has none.

    Passes that meet are of similar size, since all wait for the longest; and ranks take turns at the larger ones."""
    micro_batches = [MicroBatch(rows) for rows in batch.micro_batches(token_budget)]
    while len(micro_batches) % ranks:
        largest = max(micro_batches, key=lambda micro_batch: (len(micro_batch.rows) > 1, _size(batch, micro_batch)))
        if len(largest.rows) > 1:
            half = len(largest.rows) // 2
            micro_batches.remove(largest)
            micro_batches += [MicroBatch(largest.rows[:half]), MicroBatch(largest.rows[half:])]
        else:
            shortest = min(range(len(batch)), key=lambda row: int(batch.lengths[row]))
            micro_batches.append(MicroBatch([shortest], extra=True))
    micro_batches.sort(key=lambda micro_batch: _size(batch, micro_batch), reverse=True)
    dealt: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for start in range(0, len(micro_batches), ranks):
        turn = start // ranks
        for place, micro_batch in enumerate(micro_batches[start : start + ranks]):
            dealt[(place + turn) % ranks].append(micro_batch)
    return dealt


def _size(batch: Batch, micro_batch: MicroBatch) -> int:
    """Padded tokens."""
    return len(micro_batch.rows) * max(int(batch.lengths[row]) for row in micro_batch.rows)
