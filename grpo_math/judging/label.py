"""`grpo-math label`: samples -> pairs of a better and a worse completion, as a judge prefers them (RLAIF).

Constitutional AI, arXiv:2212.08073, section 4; RLAIF, arXiv:2309.00267, section 2.1. Left out: how the judge is asked
(verdict.py), and training on the pairs (recipes/).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from grpo_math import __version__
from grpo_math.evaluation.sampler import DIGITS
from grpo_math.filtering.candidate import Candidate, by_problem, normalised
from grpo_math.filtering.write import UNKNOWN, Row, known_columns, refuse_out, write_rows, write_summary
from grpo_math.judging.judge import Arguments, Judge, hold_all, judge_of, spending
from grpo_math.judging.ledger import BudgetSpent
from grpo_math.judging.samples import Samples, read_samples, texts_of
from grpo_math.judging.template import Template
from grpo_math.judging.verdict import Preference, Reading, prefer
from grpo_math.types import Problem, UserError

Pair = tuple[Candidate, Candidate]


@dataclass(frozen=True)
class Labelling:
    """pairs_per_problem: comparisons of a problem. tie: preferences nearer than this to 1/2 are dropped. partial: write
    what there is when the budget is spent."""

    pairs_per_problem: int = 1
    tie: float = 0.05
    seed: int = 0
    partial: bool = False


@dataclass(frozen=True)
class Labelled:
    """found: by place in pairs; a comparison that the budget did not reach has none."""

    pairs: list[Pair]
    found: dict[int, Preference]
    spent: BudgetSpent | None

    def decided(self, tie: float) -> list[tuple[Candidate, Candidate, Preference, float]]:
        """(chosen, rejected, preference, probability that the chosen is better), in the order of the samples."""
        rows = []
        for place, (a, b) in enumerate(self.pairs):
            preference = self.found.get(place)
            if preference is None or preference.probability is None or abs(preference.probability - 0.5) <= tie:
                continue
            p = preference.probability
            rows.append((a, b, preference, p) if p > 0.5 else (b, a, preference, 1.0 - p))
        return rows


def label_command(
    paths: Sequence[Path], arguments: Arguments, template: Template, reading: Reading, labelling: Labelling, out: Path,
    problems: Sequence[Problem] = (),
) -> str:  # fmt: skip
    """Write `out` and its summary; what to show. Raises UserError, also where no pair is left."""
    refuse_out(out, paths)
    samples = read_samples(paths, problems)
    pairs = comparisons(samples.candidates, labelling.pairs_per_problem, labelling.seed)
    if not pairs:
        raise UserError("no problem has two different completions to compare; sample several of each (-n)")
    with judge_of(arguments, out) as (judge, desk):
        labelled = compare(judge, samples, pairs, template, reading)
        identity, spent = judge.identity, spending(desk)
    if labelled.spent is not None and not labelling.partial:
        raise UserError(
            f"{labelled.spent}\n{len(labelled.found):,} of {len(pairs):,} comparisons are made; --partial writes those"
        )
    counts = counts_of(labelled, labelling.tie)
    rows = labelled.decided(labelling.tie)
    if not rows:
        raise UserError(f"no pair is left: {_told(counts)}. {_why_none(labelled)}")
    lines, sha256 = write_rows(out, pair_rows(rows))
    summary = write_summary(out, {
        "grpo_math": __version__,
        "settings": asdict(labelling),
        "judge": {"engine": arguments.engine, **identity, **template.identity(), **asdict(reading)},
        "inputs": [asdict(each) for each in samples.inputs],
        "made": counts,
        "output": {"path": str(out), "lines": lines, "sha256": sha256},
    })  # fmt: skip
    told = [f"{lines:,} pairs -> {out} ({summary.name} beside it)", _told(counts), spent]
    told += [str(labelled.spent)] if labelled.spent is not None else []
    return "\n".join([*told, _why_none(labelled)] if counts["failed"] else told)


def comparisons(candidates: Sequence[Candidate], per_problem: int, seed: int) -> list[Pair]:
    """Of each problem, at most so many pairs of different texts, drawn at random among all there are. They depend on
    the seed and the problem's completions alone."""
    pairs: list[Pair] = []
    for asked, siblings in by_problem(candidates).items():
        ordered = sorted(texts_of(siblings, normalised), key=lambda c: c.completion)
        rng = random.Random("\0".join((str(seed), *asked)))
        rng.shuffle(ordered)
        every = list(combinations(ordered, 2))
        pairs += every if len(every) <= per_problem else rng.sample(every, per_problem)
    return pairs


def compare(judge: Judge, samples: Samples, pairs: list[Pair], template: Template, reading: Reading) -> Labelled:
    """Ask about every pair, in both orders."""
    talks = (prefer(template, samples.subject(a).values, a.completion, b.completion, reading) for a, b in pairs)
    outcomes = hold_all(judge, talks, len(pairs))
    return Labelled(pairs, outcomes.by_place, outcomes.spent)


def counts_of(labelled: Labelled, tie: float) -> dict[str, Any]:
    """first_shown: the mean probability that what is shown first is better; 0.5 without a bias for a position.
    contradicted: comparisons whose two orders prefer different completions."""
    orders = [p.orders for p in labelled.found.values() if p.orders is not None]
    decided = len(labelled.decided(tie))
    return {
        "comparisons": len(labelled.pairs),
        "pairs": decided,
        "ties": len(orders) - decided,
        "failed": len(labelled.found) - len(orders),
        "not_asked": len(labelled.pairs) - len(labelled.found),
        "contradicted": sum((first - 0.5) * (second - 0.5) < 0 for first, second in orders),
        "first_shown": round(sum((1.0 + first - second) / 2 for first, second in orders) / len(orders), 6)
        if orders
        else None,
    }


def pair_rows(rows: Sequence[tuple[Candidate, Candidate, Preference, float]]) -> Iterator[Row]:
    """prompt, chosen, rejected as TRL takes them; probability that the chosen is better. As rewards of the two that
    probability and its rest; the verifier's, where all samples have one, under another name."""
    candidates = [c for chosen, rejected, _, _ in rows for c in (chosen, rejected)]
    columns = known_columns(candidates)
    verified = all(c.reward is not None for c in candidates)
    for chosen, rejected, preference, probability in rows:
        assert preference.orders is not None
        yield {
            "prompt": chosen.prompt,
            "chosen": chosen.completion,
            "rejected": rejected.completion,
            **({"task": chosen.task} if "task" in columns else {}),
            "problem": chosen.problem,
            "probability": round(probability, DIGITS),
            "orders_differ": round(abs(preference.orders[0] - preference.orders[1]), DIGITS),
            **_side("chosen", chosen, probability, columns, verified),
            **_side("rejected", rejected, 1.0 - probability, columns, verified),
        }


def _side(side: str, c: Candidate, reward: float, columns: Sequence[str], verified: bool) -> Row:
    known = {
        "model": c.model,
        "policy_version": c.policy_version,
        "finish_reason": "length" if c.truncated else c.finish_reason,
    }
    row: Row = {"reward": round(reward, DIGITS), "source": c.source}
    row |= {name: UNKNOWN[name] if value is None else value for name, value in known.items() if name in columns}
    row |= {"logps": c.logprob} if "logps" in columns else {}
    row |= {"verified": c.reward} if verified else {}
    return {f"{side}_{name}": value for name, value in row.items()}


def _told(counts: dict[str, Any]) -> str:
    told = f"{counts['comparisons']:,} comparisons: {counts['pairs']:,} pairs, {counts['ties']:,} ties"
    told += "".join(f", {counts[name]:,} {name.replace('_', ' ')}" for name in ("failed", "not_asked") if counts[name])
    if counts["first_shown"] is None:
        return told
    return (
        f"{told}; {counts['contradicted']:,} contradicted by the other order; the first shown is preferred with "
        f"{counts['first_shown']:.2f}"
    )


def _why_none(labelled: Labelled) -> str:
    why = next((p.why for _, p in sorted(labelled.found.items()) if p.why), "")
    if why:
        return f"the first that failed: {why}"
    return "all are nearer to 1/2 than --tie; lower it" if labelled.found else str(labelled.spent)
