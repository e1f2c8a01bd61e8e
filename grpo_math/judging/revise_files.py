"""The files of `grpo-math revise`: revisions to imitate, and pairs of a revision and what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_math import __version__
from grpo_math.filtering.candidate import Candidate, normalised
from grpo_math.filtering.write import Row, refuse_out, write_rows, write_summary
from grpo_math.judging.constitution import of_template, read_constitution
from grpo_math.judging.judge import Arguments, judge_of, spending
from grpo_math.judging.revise import Revised, Revising, Revisions, revise_all
from grpo_math.judging.samples import Samples, read_samples
from grpo_math.judging.template import Template
from grpo_math.types import Problem, UserError


def revise_command(
    paths: Sequence[Path], constitution: Path | None, arguments: Arguments, template: Template, settings: Revising,
    out: Path, pairs: Path | None, problems: Sequence[Problem] = (),
) -> str:  # fmt: skip
    """Write `out`, `pairs` and a summary beside each; what to show. Raises UserError, also where nothing is revised."""
    refuse_out(out, paths)
    if pairs is not None:
        if pairs.absolute() == out.absolute():
            raise UserError(f"--pairs {pairs} is --out too; give each a file of its own")
        refuse_out(pairs, paths)
    law = of_template(template.name, template.principles) if constitution is None else read_constitution(constitution)
    samples = read_samples(paths, problems)
    with judge_of(arguments, out) as (judge, desk):
        revisions = revise_all(judge, samples, law.principles, template, settings)
        identity, spent = judge.identity, spending(desk)
    counts = counts_of(revisions)
    if revisions.spent is not None and not settings.partial:
        raise UserError(
            f"{revisions.spent}\n{len(revisions.found):,} of {len(revisions.chosen):,} completions are revised; "
            "--partial writes those"
        )
    done = revised(revisions)
    why = next((r.why for _, r in sorted(revisions.found.items()) if r.why), "")
    if not done:
        raise UserError(f"nothing is revised, of {counts['completions']:,} completions: {why or 'there are none'}")
    summary = {
        "grpo_math": __version__,
        "settings": asdict(settings),
        "judge": {"engine": arguments.engine, **identity, **template.identity()},
        "constitution": {"name": law.name, "principles": len(law.principles), "sha256": law.sha256},
        "inputs": [asdict(each) for each in samples.inputs],
        "made": counts,
    }
    told = [_written(out, sft_rows(done, samples), "revisions", summary)]
    if pairs is not None:
        told.append(_written(pairs, pair_rows(done), "pairs", summary))
    told.append(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count))
    told.append(spent)
    told += [str(revisions.spent)] if revisions.spent is not None else []
    return "\n".join([*told, f"the first that failed: {why}"] if why else told)


def revised(revisions: Revisions) -> list[tuple[Candidate, Revised]]:
    """Those of which every round came about, in the order of the samples."""
    return [(revisions.chosen[i], r) for i, r in sorted(revisions.found.items()) if r.text is not None]


def counts_of(revisions: Revisions) -> dict[str, int]:
    done = revised(revisions)
    return {
        "completions": len(revisions.chosen),
        "revised": len(done),
        "unchanged": sum(not changed(c, r) for c, r in done),
        "failed": len(revisions.found) - len(done),
        "not_asked": len(revisions.chosen) - len(revisions.found),
    }


def changed(candidate: Candidate, found: Revised) -> bool:
    return normalised(found.text or "") != normalised(candidate.completion)


def sft_rows(done: Sequence[tuple[Candidate, Revised]], samples: Samples) -> Iterator[Row]:
    """prompt, completion, and how it came about. With problem and completion in it, `grpo-math evaluate --samples`
    judges it by the task's verifier, and `grpo-math filter` takes what that writes."""
    for c, found in done:
        yield {
            "prompt": c.prompt,
            "completion": found.text,
            **_asked(c),
            "gold": samples.subject(c).gold,
            "original": c.completion,
            "principles": [r.principle.critique for r in found.rounds],
            "critiques": [r.critique for r in found.rounds],
            "source": c.source,
        }


def pair_rows(done: Sequence[tuple[Candidate, Revised]]) -> Iterator[Row]:
    """prompt, chosen (the revision), rejected (the original); without those that are as they were."""
    for c, found in done:
        if changed(c, found):
            row = {"prompt": c.prompt, "chosen": found.text, "rejected": c.completion, **_asked(c)}
            yield {**row, "rejected_source": c.source}


def _asked(c: Candidate) -> Row:
    return {**({"task": c.task} if c.task else {}), "problem": c.problem}


def _written(path: Path, rows: Iterator[Row], what: str, summary: dict[str, Any]) -> str:
    lines, sha256 = write_rows(path, rows)
    beside = write_summary(path, {**summary, "output": {"path": str(path), "lines": lines, "sha256": sha256}})
    return f"{lines:,} {what} -> {path} ({beside.name} beside it)"
