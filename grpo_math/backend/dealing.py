"""Which rows of a batch which rank computes, so that every rank has as many forward passes as the others.

Where weights or gradients are split over ranks each pass is a meeting of all of them: one pass too few on one rank and
the rest wait for ever. Left out: the passes themselves (deepspeed.py).
"""

# R ranks; a hand is what a rank computes in one pass

from __future__ import annotations

from dataclasses import dataclass

from grpo_math.batch import Batch


@dataclass(frozen=True)
class Hand:
    """Rows of a batch; `extra` where another rank has them already and this one only keeps step with it."""

    rows: list[int]
    extra: bool = False


def deal(batch: Batch, token_budget: int, ranks: int) -> list[list[Hand]]:
    """Every rank's hands, the same number for each: [rank][pass]. Each row of the batch is in exactly one hand that is
    not extra; the padded size of a hand is at most `token_budget`, or that of a single row. An empty batch has none.

    Passes that meet are of similar size, since all wait for the longest; and ranks take turns at the larger ones."""
    hands = [Hand(rows) for rows in batch.micro_batches(token_budget)]
    while len(hands) % ranks:
        largest = max(hands, key=lambda hand: (len(hand.rows) > 1, _size(batch, hand)))
        if len(largest.rows) > 1:
            half = len(largest.rows) // 2
            hands.remove(largest)
            hands += [Hand(largest.rows[:half]), Hand(largest.rows[half:])]
        else:
            shortest = min(range(len(batch)), key=lambda row: int(batch.lengths[row]))
            hands.append(Hand([shortest], extra=True))
    hands.sort(key=lambda hand: _size(batch, hand), reverse=True)
    dealt: list[list[Hand]] = [[] for _ in range(ranks)]
    for start in range(0, len(hands), ranks):
        turn = start // ranks
        for place, hand in enumerate(hands[start : start + ranks]):
            dealt[(place + turn) % ranks].append(hand)
    return dealt


def _size(batch: Batch, hand: Hand) -> int:
    """Padded tokens."""
    return len(hand.rows) * max(int(batch.lengths[row]) for row in hand.rows)
