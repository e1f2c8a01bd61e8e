"""`grpo-math filter`: read, apply the rules, pair up or label, write, and tell what each rule dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from grpo_math import __version__
from grpo_math.filtering.candidate import NEAR, Candidate, by_problem
from grpo_math.filtering.pairs import Terms, pair_up
from grpo_math.filtering.read import Input, read_candidates
from grpo_math.filtering.rules import UNDECIDED, Count, apply, good_reward, rules_of
from grpo_math.filtering.settings import Settings
from grpo_math.filtering.write import Row, kto_rows, pair_rows, refuse_out, sft_rows, write_rows, write_summary
from grpo_math.types import UserError


@dataclass
class Result:
    """rows: what is to be written, made as they are asked for. made: figures of it by name. notes: what a user should
    know of it."""

    rows: Iterable[Row]
    made: dict[str, int]
    notes: list[str] = field(default_factory=list)


@dataclass
class Filtered:
    """What the rules made of the samples of `inputs`. settings: with the defaults filled in."""

    settings: Settings
    inputs: list[Input]
    counts: list[Count]
    result: Result

    @property
    def made(self) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in self.result.made.items())


def filter_command(paths: Sequence[Path], settings: Settings, out: Path) -> str:
    """Write `out` and its summary; what to show. Raises UserError, also where nothing is left."""
    s = settings.resolved()
    refuse_out(out, paths)
    found = filtered(paths, s)
    lines, sha256 = write_rows(out, found.result.rows)
    summary = write_summary(out, summary_of(found, out, lines, sha256))
    made = f"{found.made} -> {out} ({summary.name} beside it)"
    return "\n".join([table(found.counts), "", made, *found.result.notes])


def filtered(paths: Sequence[Path], settings: Settings) -> Filtered:
    """Read the samples and apply the rules; nothing is written. Raises UserError, also where nothing is left."""
    s = settings.resolved()
    candidates, inputs = read_candidates(paths)
    read = Count("read", 0, len(candidates), len(by_problem(candidates)))
    pool, counts = apply([UNDECIDED], candidates)
    kept = pool
    if pool:
        kept, more = apply(rules_of(s, pool), pool)
        counts += more
    counts = [read, *counts]
    if not kept:
        raise UserError(emptied(counts, pool) + "\n" + table(counts))
    result = TARGETS[s.to](kept, s, good_reward(s, pool))
    result.notes = [*several_prompts(candidates), *idle_quantile(s, pool), *result.notes, *without_logps(kept)]
    return Filtered(s, inputs, counts, result)


def sft(kept: Sequence[Candidate], s: Settings, good: float | None) -> Result:
    return Result(
        sft_rows(kept), {"completions": len(kept), "problems": len(by_problem(kept))}, cut(kept, "completions")
    )


def pairs(kept: Sequence[Candidate], s: Settings, good: float | None) -> Result:
    """Raises UserError where no two completions make a pair."""
    terms = Terms(
        gap=s.gap or 0.0,
        chosen_from=-math.inf if good is None else good,
        rejected_to=math.inf if s.max_reward is None else s.max_reward,
        limit=s.pairs_per_problem,
        temperature=s.temperature or Terms.temperature,
        candidates=s.candidates or Terms.candidates,
    )
    assert s.pair is not None
    found = pair_up(kept, s.pair, terms, s.seed)
    without = [
        f"{count:,} problems have no pair: {why}"
        for count, why in (
            (
                found.flat,
                "their rewards are all the same, or nearer than --gap, or outside --min-reward and --max-reward",
            ),
            (found.alike, "only completions with one answer or text differ in reward, or the draw took none that do"),
        )
        if count
    ]
    if not found.pairs:
        raise UserError(
            f"--pair {s.pair} finds no pair among {len(kept):,} completions: {'; '.join(without)}. Sample more "
            "completions of each problem, or problems that are sometimes solved (--pass-rate tells which)"
        )
    notes = without + cut([chosen for chosen, _ in found.pairs], "chosen completions")
    return Result(
        pair_rows(found.pairs),
        {"pairs": len(found.pairs), "problems": found.problems - found.flat - found.alike},
        notes,
    )


def kto(kept: Sequence[Candidate], s: Settings, good: float | None) -> Result:
    """Raises UserError where one class is missing: KTO weighs the one against the other."""
    assert good is not None
    true = [c for c in kept if c.score >= good - NEAR]
    false = len(kept) - len(true)
    if not true or not false:
        raise UserError(
            f"kto needs both classes, and {len(true):,} completions have a reward of {good:g} or more (true) "
            f"and {false:,} one of {s.max_reward:g} or less (false); change --min-reward or --max-reward, or sample "
            "other problems"
        )
    made = {"completions": len(kept), "true": len(true), "false": false, "problems": len(by_problem(kept))}
    return Result(kto_rows(kept, good), made, cut(true, "completions labelled true"))


TARGETS: dict[str, Callable[[Sequence[Candidate], Settings, float | None], Result]] = {
    "sft": sft,
    "pairs": pairs,
    "kto": kto,
}


def cut(imitated: Sequence[Candidate], what: str) -> list[str]:
    count = sum(c.truncated for c in imitated)
    if not count:
        return []
    return [f"{count:,} {what} were cut at their token limit: a model learns to stop there; --finished drops them"]


def several_prompts(candidates: Sequence[Candidate]) -> list[str]:
    prompts = Counter(asked[:2] for asked in by_problem(candidates))
    count = sum(n > 1 for n in prompts.values())
    if not count:
        return []
    return [f"{count:,} problems were asked with more than one prompt; each prompt counts as a problem by itself"]


def without_logps(kept: Sequence[Candidate]) -> list[str]:
    count = sum(c.reshaped for c in kept)
    if not count:
        return []
    return [
        f"logps is not written: {count:,} completions were drawn at another temperature than 1, or with top_p or "
        "top_k, and their log-probabilities are not the model's own"
    ]


def idle_quantile(s: Settings, pool: Sequence[Candidate]) -> list[str]:
    """With rewards of 0 and 1 and few of 1, most quantiles are 0: what was meant to keep the best keeps all."""
    lowest = min(c.score for c in pool)
    good = good_reward(s, pool)
    if s.to != "sft" or s.quantile is None or good is None or good > lowest + NEAR:
        return []
    return [f"--quantile {s.quantile:g} is the lowest reward of all, {lowest:g}, and drops nothing; add --min-reward"]


def emptied(counts: Sequence[Count], pool: Sequence[Candidate]) -> str:
    last = counts[-1]
    text = f"the rule '{last.rule}' drops the last {last.dropped:,} of {counts[0].left:,} completions"
    if not pool:
        return text + ": no verdict has a reward; look at the field 'detail', and mend the verifier or its time limit"
    rewards = [c.score for c in pool]
    return text + f" (rewards are from {min(rewards):g} to {max(rewards):g}); loosen it, or give more samples"


def table(counts: Sequence[Count]) -> str:
    """rule, dropped, left, problems left: a line for each rule, in the order in which they were applied."""
    rows = [("rule", "dropped", "left", "problems")]
    rows += [(c.rule, f"{c.dropped:,}" if i else "", f"{c.left:,}", f"{c.problems:,}") for i, c in enumerate(counts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "   ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def summary_of(found: Filtered, out: Path, lines: int, sha256: str) -> dict[str, Any]:
    """All that decides the file, and what became of it; nothing that changes from one time to the next."""
    return {
        "grpo_math": __version__,
        "settings": {name: value for name, value in asdict(found.settings).items() if value is not None},
        "inputs": [asdict(each) for each in found.inputs],
        "rules": [asdict(count) for count in found.counts],
        "made": found.result.made,
        "notes": found.result.notes,
        "output": {"path": str(out), "lines": lines, "sha256": sha256},
    }
