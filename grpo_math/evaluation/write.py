"""The files of an evaluation's folder, each whole or not there. Left out: the journal, and what is in the figures."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_math.evaluation.files import CURVE, PROMPTS, RESULTS, RUN, SAMPLES
from grpo_math.evaluation.journal import NAME as JOURNAL
from grpo_math.evaluation.journal import Journal
from grpo_math.evaluation.manifest import prompt_lines
from grpo_math.evaluation.prepare import Plan
from grpo_math.evaluation.reward_models import RewardSpec
from grpo_math.evaluation.sampler import Asked, Sample
from grpo_math.log import write_whole
from grpo_math.report.pass_curve import pass_curve
from grpo_math.types import UserError, Verdict

Line = dict[str, Any]
Fields = Callable[[Plan, Sample], Line]  # what a line of samples.jsonl has besides those of sample_lines

log = logging.getLogger(__name__)


def finished(out: Path) -> dict[str, Any] | None:
    """What an evaluation that ended left in `out`."""
    try:
        found = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{out / RESULTS} is not JSON ({error}); give --fresh, or another --out") from error
    if not isinstance(found, dict) or "manifest" not in found:
        raise UserError(f"{out / RESULTS} is not of this command; give another --out")
    return found


def refuse_samples_of_others(out: Path) -> None:
    if (out / SAMPLES).exists() and not (out / JOURNAL).exists() and not (out / RESULTS).exists():
        raise UserError(f"--out {out} has a {SAMPLES} that is not of this command; give another --out")


def begin(out: Path, plans: Sequence[Plan]) -> None:
    """Without what an evaluation that is discarded left; it would be taken for the outcome of this one."""
    try:
        for name in (RESULTS, SAMPLES, RUN, CURVE):
            (out / name).unlink(missing_ok=True)
        write_lines(out / PROMPTS, (line for plan in plans for line in prompt_lines(plan.job.label, plan.asked)))
    except OSError as error:
        raise unwritable(out, error) from error


def write_samples(
    out: Path, plans: Sequence[Plan], journal: Journal, fields: Fields, rewards: Sequence[RewardSpec] = ()
) -> None:
    try:
        write_lines(out / SAMPLES, (line for plan in plans for line in sample_lines(plan, journal, fields, rewards)))
    except OSError as error:
        raise unwritable(out, error) from error


def sample_lines(plan: Plan, journal: Journal, fields: Fields, rewards: Sequence[RewardSpec] = ()) -> Iterator[Line]:
    problem, number = None, 0
    for asked, sample, verdict, scores in rows_of(plan, journal, rewards):
        number = number + 1 if asked.problem.id == problem else 0
        problem = asked.problem.id
        yield {
            "task": plan.job.label,
            "problem": problem,
            "sample": number,
            "prompt": asked.text,
            "completion": sample.text,
            "tokens": sample.tokens,
            "finish_reason": sample.finish_reason,
            "gold": asked.problem.answer,
            "answer": verdict.answer,
            "failed": sample.failed,
            **({"program": True} if asked.problem.metadata.get("bare_program") else {}),
            "reward": verdict.reward,
            "reason": verdict.reason,
            "detail": verdict.detail,
            **fields(plan, sample),
            **score_fields(scores),
        }


def score_fields(scores: Mapping[str, Verdict]) -> Line:
    """scores: of each reward model by name, None where it could not score the completion; unscored: why not.
    step_scores: of a process model, (end of the step in characters, probability that it is right) of each step."""
    if not scores:
        return {}
    steps = {name: v.step_rewards for name, v in scores.items() if v.step_rewards is not None}
    without = {name: v.detail for name, v in scores.items() if v.reward is None}
    return {
        "scores": {name: v.reward for name, v in scores.items()},
        **({"step_scores": steps} if steps else {}),
        **({"unscored": without} if without else {}),
    }


def rows_of(
    plan: Plan, journal: Journal, rewards: Sequence[RewardSpec] = ()
) -> Iterator[tuple[Asked, Sample, Verdict, dict[str, Verdict]]]:
    """In the order of the problems, whatever the order in which they were done. Each with what the reward models say,
    by their names."""
    label = plan.job.label
    samples, verdicts = journal.samples[label], journal.verdicts[label]
    scores = {spec.name: journal.scores[spec.digest, label] for spec in rewards}
    for asked in plan.asked:
        for i, (sample, verdict) in enumerate(zip(samples[asked.number], verdicts[asked.number], strict=True)):
            yield asked, sample, verdict, {name: found[asked.number][i] for name, found in scores.items()}


def write_results(
    out: Path, plans: Sequence[Plan], journal: Journal, results: Mapping[str, Any], seconds: float
) -> None:
    """results.json last: where it is, all else is. A picture of the curves, where the figures have any."""
    run = {
        "command": shlex.join(["grpo-math", *sys.argv[1:]]),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "tasks": {plan.job.label: speed(plan.job.label, journal) for plan in plans if plan.sampling is not None},
    }
    curves = {label: drawn(found["curve"]) for label, found in results["tasks"].items() if "curve" in found}
    try:
        if curves:
            pass_curve(curves, out / CURVE)
    except UserError as error:  # the figures are in results.json all the same
        log.warning("no %s: %s", CURVE, error)
    try:
        write_whole(out / RUN, json.dumps(run, indent=1) + "\n")
        write_whole(out / RESULTS, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise unwritable(out, error) from error


def drawn(curve: Mapping[str, Sequence[float]]) -> dict[int, tuple[float, float, float]]:
    return {int(k): (mean, low, high) for k, (mean, low, high) in curve.items()}


def speed(label: str, journal: Journal) -> dict[str, float | None]:
    """Seconds that sampling took, those of interrupted parts too, and sampled tokens a second."""
    tokens = sum(sample.tokens or 0 for samples in journal.samples[label].values() for sample in samples)
    seconds = journal.seconds.get(label, 0.0)
    return {"seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 1) if seconds and tokens else None}


def speeds(out: Path) -> dict[str, Any]:
    """Of each task, where run.json still is what was written."""
    try:
        return dict(json.loads((out / RUN).read_text(encoding="utf-8"))["tasks"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, each made as it is written: with tokens and log-probabilities a file can be larger than the memory
    that its samples take."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"--out {out} cannot be written ({error.strerror or error}); free some space on its disk or give another "
        "folder. What was sampled is kept: the same command goes on from here"
    )
