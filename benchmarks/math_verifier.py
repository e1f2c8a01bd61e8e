"""The math verifier and Math-Verify on the same answers, in one run: how often right, how fast, what gets past them.

    pip install 'math-verify[antlr4_13_2]==0.9.0'
    python -m benchmarks.math_verifier --pairs ../shared/cases/math_dev.jsonl tests/cases/math.jsonl \
        --hostile tests/cases/math_hostile.jsonl

Both run in the same worker processes with the same deadline (grpo_math/scoring_pool.py), one after the other. calls/s
includes their start. Left out: a verdict on the labels, which are those of the files.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_math import config
from grpo_math.find import find_verifier
from grpo_math.pairs import Pair, agreement, judge, quantile, read_pairs
from grpo_math.types import UserError, Verdict

PEERS = {"grpo-math": "math", "Math-Verify": "benchmarks.with_math_verify"}


@dataclass(frozen=True)
class Measured:
    """What one verifier made of one set of pairs."""

    verdicts: list[Verdict]
    milliseconds: list[float]  # sorted
    wall_s: float


def measure(verifier: str, pairs: Sequence[Pair], scoring: config.Scoring) -> Measured:
    reward = config.Reward(verifier=verifier)
    judge(pairs[: 2 * scoring.workers], reward, scoring, io.StringIO())  # what is compiled and cached on disk is warm
    began = time.perf_counter()
    results = judge(pairs, reward, scoring, io.StringIO())
    wall_s = time.perf_counter() - began
    return Measured([verdict for verdict, _ in results], sorted(1e3 * seconds for _, seconds in results), wall_s)


def row(name: str, pairs: Sequence[Pair], measured: Measured) -> list[str]:
    ms = measured.milliseconds
    return [
        name,
        *agreement(list(zip(pairs, measured.verdicts, strict=True))),
        f"{sum(ms) / len(ms):.2f} / {quantile(ms, 0.5):.2f} / {quantile(ms, 0.99):.1f}",
        f"{len(pairs) / measured.wall_s:,.0f}",
        str(sum(verdict.reason == "timeout" for verdict in measured.verdicts)),
    ]


def load(paths: Sequence[Path]) -> list[Pair]:
    from_row: Callable[..., object] = find_verifier("math").from_row
    broken: list[str] = []
    pairs = [pair for path in paths for pair in read_pairs(path, from_row, broken)]  # type: ignore[arg-type]
    broken += [f"{pair.id}: has no expected" for pair in pairs if pair.expected is None]
    if broken:
        raise UserError(f"{len(broken)} lines cannot be used, the first: {broken[0]}")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True, help="JSON lines with `expected`")
    parser.add_argument("--hostile", type=Path, nargs="*", default=[], help="JSON lines of which none may be accepted")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=6.0)
    arguments = parser.parse_args()
    scoring = config.Scoring(workers=arguments.workers, timeout_s=arguments.timeout)
    for title, paths in (("labelled", arguments.pairs), ("hostile", arguments.hostile)):
        if not paths:
            continue
        pairs = load(paths)
        print(f"\n{title}: {len(pairs):,} answers from {', '.join(map(str, paths))}, {arguments.workers} workers\n")
        print(
            "| verifier | right | false accepts | false rejects | ms mean / median / p99 | calls/s | killed |\n"
            "| --- | --- | --- | --- | --- | --- | --- |"
        )
        for name, verifier in PEERS.items():
            print("| " + " | ".join(row(name, pairs, measure(verifier, pairs, scoring))) + " |", flush=True)


if __name__ == "__main__":
    main()
