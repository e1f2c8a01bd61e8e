"""Judge a file of labelled or unlabelled answers: JSON lines in, one verdict a line out, in the same order.

A line that cannot be used is named and skipped. Left out: what the lines mean, which is the verifier's `from_row`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from grpo_math import config
from grpo_math.find import find_verifier, user_code
from grpo_math.progress import bar
from grpo_math.scoring import check_options, with_sandbox
from grpo_math.scoring_pool import Job, Pool
from grpo_math.types import Problem, UserError, Verdict

SHOWN = 20  # broken lines that are named, of however many

FromRow = Callable[[Mapping[str, Any]], tuple[Problem, str]]


@dataclass(frozen=True)
class Pair:
    """A line of the file: what to judge, and what it is known to be."""

    id: Any
    job: Job
    expected: bool | None
    category: str
    kind: str = ""


def verify_pairs(
    verifier: str,
    source: Path,
    out: Path,
    options: Mapping[str, Any],
    workers: int,
    timeout_s: float,
    sandbox: config.Sandbox,
) -> bool:
    """Write a verdict a line to `out`; print a table where lines carry `expected`. True if every line could be used.

    Each has id, reward, reason, detail, answer and seconds; where the verdict is of tests, also how many passed of how
    many in total. Interrupted, `out`.partial has those up to there. Raises UserError: no such file or verifier, options
    that it does not take, an `out` that cannot be written.
    """
    module = find_verifier(verifier)
    reward = config.Reward(verifier=verifier, options=dict(options))
    check_options(reward)
    reward = with_sandbox(reward, sandbox)
    from_row: FromRow = getattr(module, "from_row", completion_row)
    check_out(source, out)
    broken: list[str] = []
    pairs = list(read_pairs(source, from_row, broken))
    for complaint in broken[:SHOWN]:
        print(f"skipped {complaint}", file=sys.stderr)
    if len(broken) > SHOWN:
        print(f"skipped {len(broken) - SHOWN:,} more lines", file=sys.stderr)
    if not pairs:
        raise UserError(f"{source} has no line that can be used; what is missing is told above")
    with written(out) as stream:
        results = judge(pairs, reward, config.Scoring(workers=workers, timeout_s=timeout_s), stream)
    print(summary(pairs, results, broken, out))
    return not broken


def check_out(source: Path, out: Path) -> None:
    """Raises UserError where `out` cannot take the verdicts, before anything is judged."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; give a file, such as {out / 'verdicts.jsonl'}")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the file that --pairs reads; give another one")


@contextmanager
def written(out: Path) -> Iterator[TextIO]:
    """A stream into OUT.partial, which becomes `out` at the end; a device or pipe is written as it is. Within, an
    OSError is taken for one of that stream."""
    whole = not out.exists() or out.is_file()
    partial = out.with_name(f"{out.name}.partial") if whole else out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stream = partial.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); give another file") from error
    try:
        with stream:
            yield stream
    except KeyboardInterrupt:
        print(f"the verdicts up to here are in {partial}", file=sys.stderr)
        raise
    except OSError as error:
        saved = f"; the verdicts up to there are in {partial}" if whole else ""
        raise UserError(
            f"--out {out}: cannot be written any more ({error.strerror}){saved}; free some space on its disk, or give "
            "another file"
        ) from error
    if whole:
        os.replace(partial, out)


def completion_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """A line for a verifier that says nothing of its own: answer and completion; all else is the problem's metadata."""
    for key in ("answer", "completion"):
        if not isinstance(row.get(key), str):
            raise UserError(f"{key}={row.get(key)!r}: give a string")
    rest = {key: value for key, value in row.items() if key not in ("id", "answer", "completion", "question")}
    return Problem(str(row.get("id")), "pairs", str(row.get("question", "")), row["answer"], rest), row["completion"]


def read_pairs(source: Path, from_row: FromRow, broken: list[str]) -> Iterator[Pair]:
    """The lines that can be used; what is wrong with the others is added to `broken`."""
    try:
        with source.expanduser().open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield read_pair(line, from_row)
                except UserError as error:
                    broken.append(f"{source}:{number}: {error}")
    except OSError as error:
        raise UserError(f"--pairs {source}: cannot be read ({error.strerror}); give a file of JSON lines") from error


def read_pair(line: bytes, from_row: FromRow) -> Pair:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"is a JSON {type(row).__name__}; give an object")
    if "id" not in row:
        raise UserError("has no id")
    expected = row.get("expected")
    if expected is not None and not isinstance(expected, bool):
        raise UserError(f"expected={expected!r}: give true or false")
    with user_code("the verifier's from_row"):
        problem, text = from_row(row)
    return Pair(row["id"], (problem, text, 0), expected, str(row.get("category", "")), str(row.get("kind", "")))


def judge(
    pairs: Sequence[Pair], reward: config.Reward, scoring: config.Scoring, stream: TextIO
) -> list[tuple[Verdict, float]]:
    """(verdict, seconds) of each pair. Written as soon as those before it are."""
    results: dict[int, tuple[Verdict, float]] = {}
    written = 0
    show = bar(len(pairs))

    def done(number: int, verdict: Verdict, seconds: float) -> None:
        nonlocal written
        results[number] = (verdict, seconds)
        while written in results:
            stream.write(line_of(pairs[written].id, *results[written]) + "\n")
            written += 1
        show(len(results))

    pool = Pool([reward], scoring)
    try:
        pool.run([pair.job for pair in pairs], done)
    finally:
        pool.close()
    return [results[number] for number in range(len(pairs))]


def line_of(id: Any, verdict: Verdict, seconds: float) -> str:
    line = {
        "id": id,
        "reward": verdict.reward,
        "reason": verdict.reason,
        "detail": verdict.detail,
        "answer": verdict.answer,
        "seconds": round(seconds, 6),
    }
    if verdict.tests is not None:
        line |= {"passed": verdict.tests.count("passed"), "total": len(verdict.tests)}
    return json.dumps(line)


def summary(pairs: Sequence[Pair], results: Sequence[tuple[Verdict, float]], broken: Sequence[str], out: Path) -> str:
    """What was judged and how long it took; where the truth is known, how often the verdict agrees with it."""
    reasons: dict[str, int] = defaultdict(int)
    for verdict, _ in results:
        reasons[verdict.reason] += 1
    milliseconds = sorted(1e3 * seconds for _, seconds in results)
    lines = [
        f"{len(results):,} lines judged"
        + (f", {len(broken):,} skipped" if broken else "")
        + f" -> {out}: "
        + ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])),
        f"ms a line: mean {sum(milliseconds) / len(milliseconds):.2f}, median {quantile(milliseconds, 0.5):.2f}, "
        f"p99 {quantile(milliseconds, 0.99):.2f}, largest {milliseconds[-1]:.2f}",
    ]
    labelled = [(pair, verdict) for pair, (verdict, _) in zip(pairs, results, strict=True) if pair.expected is not None]
    if labelled:
        lines += ["", *table(labelled)]
    return "\n".join(lines)


def table(labelled: Sequence[tuple[Pair, Verdict]]) -> list[str]:
    """A row per kind, or per category where no line has a kind, and one for all. A verdict other than `correct` does
    not accept."""
    by = "kind" if any(pair.kind for pair, _ in labelled) else "category"
    parts: dict[str, list[tuple[Pair, Verdict]]] = defaultdict(list)
    for pair, verdict in labelled:
        parts[getattr(pair, by)].append((pair, verdict))
    rows: list[tuple[str, ...]] = [(by, "lines", "right", "false accept", "false reject", "unknown")]
    rows += [_row(name or "-", items) for name, items in parts.items() if len(parts) > 1]
    rows.append(_row("all", labelled))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _row(name: str, items: Sequence[tuple[Pair, Verdict]]) -> tuple[str, ...]:
    unknown = sum(verdict.reward is None for _, verdict in items)
    return (name, f"{len(items):,}", *agreement(items), str(unknown))


def agreement(items: Sequence[tuple[Pair, Verdict]]) -> tuple[str, str, str]:
    """The share that is right, the false accepts, the false rejects."""
    right = sum(bool(pair.expected) for pair, _ in items)
    accepted = sum(verdict.reason == "correct" for pair, verdict in items if not pair.expected)
    rejected = sum(verdict.reason != "correct" for pair, verdict in items if pair.expected)
    agreed = (len(items) - accepted - rejected) / len(items)
    return f"{agreed:.2%}", share(accepted, len(items) - right), share(rejected, right)


def share(count: int, total: int) -> str:
    """3 of 60 (5.00%)"""
    return f"{count} of {total} ({count / total:.2%})" if total else "-"


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
