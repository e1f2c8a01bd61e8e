"""Evaluate: sample what is missing, judge it while the next is sampled, write down every bit, sum up.

Left out: what samples (sampler.py), what is counted (summary.py), and how it is asked for (ask.py).
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.evaluation import manifest as manifests
from grpo_math.evaluation.files import CURVE, PROMPTS, RESULTS, RUN, SAMPLES
from grpo_math.evaluation.job import Job
from grpo_math.evaluation.journal import NAME as JOURNAL
from grpo_math.evaluation.journal import Block, Journal, refuse_other
from grpo_math.evaluation.sampler import Asked, Sample, Sampler
from grpo_math.evaluation.show import Progress
from grpo_math.evaluation.summary import Judged, curve, summarise
from grpo_math.log import write_whole
from grpo_math.report.pass_curve import pass_curve
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Sampling, UserError, Verdict

MAX_TOKENS = 2048  # where nothing is said, and the model's context leaves so much
LATE_BLOCK = 32  # problems, of those that an interruption left without verdicts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """sampling: None where the completions exist already. ks: of pass@k. max_tokens: None for as many as fit, at most
    MAX_TOKENS. fresh: discard what `out` has."""

    jobs: Sequence[Job]
    model: str
    path: str | None
    sampling: Sampling | None
    max_tokens: int | None
    ks: Sequence[int]
    scoring: config.Scoring
    sandbox: config.Sandbox
    out: Path
    fresh: bool = False


@dataclass(frozen=True)
class Plan:
    """A job with its prompts, those that fit. sampling: with this task's max_tokens."""

    job: Job
    asked: tuple[Asked, ...]
    sampling: Sampling | None
    too_long: int


def evaluate(wanted: Wanted, sampler: Sampler) -> dict[str, Any]:
    """The contents of results.json. Interrupted, the same call goes on where it stopped; once finished, it only reads.

    Raises UserError: `out` has another evaluation or somebody's samples, cannot be written, no prompt fits."""
    plans = [make_plan(job, sampler, wanted.sampling, wanted.max_tokens) for job in wanted.jobs]
    manifest = {
        "model": {**manifests.model_manifest(wanted.model, wanted.path), **sampler.identity()},
        "k": list(wanted.ks),
        "tasks": {
            plan.job.label: manifests.manifest_of_job(
                plan.job, plan.asked, plan.sampling, plan.too_long, wanted.scoring, wanted.sandbox
            )
            for plan in plans
        },
        "versions": manifests.versions(),
    }
    manifest = json.loads(json.dumps(manifest, default=str))  # as it is read back
    refuse_samples_of_others(wanted.out)
    if not wanted.fresh and (done := finished(wanted.out)) is not None:
        refuse_other(done["manifest"], manifest, wanted.out)
        return done
    try:
        wanted.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(wanted.out, error) from error
    journal = Journal(wanted.out, manifest, wanted.fresh)
    try:
        began = time.monotonic()
        begin(wanted.out, plans)
        for plan in plans:
            sample_and_judge(plan, sampler, journal, wanted)
        write_samples(wanted.out, plans, journal)  # first: judged by another verifier they may still be of use
        results = {"manifest": manifest, "tasks": {p.job.label: figures(p, journal, wanted.ks) for p in plans}}
        results = json.loads(json.dumps(results))  # as it is read back
        write_results(wanted.out, plans, journal, results, time.monotonic() - began)
    except BaseException:
        with suppress(OSError):
            journal.close()
        raise
    journal.remove()
    return results


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


def make_plan(job: Job, sampler: Sampler, sampling: Sampling | None, max_tokens: int | None) -> Plan:
    asked = [sampler.ask(job.label, number, problem, job.form) for number, problem in enumerate(job.problems)]
    if sampling is None:
        return Plan(job, tuple(asked), None, job.too_long)
    lengths = [len(a.token_ids or ()) for a in asked]
    if max_tokens is None:
        # not what the longest prompt leaves: then another --limit would be another evaluation
        max_tokens = min(MAX_TOKENS, (sampler.context or sys.maxsize) // 2)
    fitting = [a for a, n in zip(asked, lengths, strict=True) if n + max_tokens <= (sampler.context or sys.maxsize)]
    if not fitting:
        raise UserError(
            f"task {job.label}: no prompt fits: the shortest has {min(lengths)} tokens, and with --max-tokens "
            f"{max_tokens} that is more than the model's context of {sampler.context}; lower --max-tokens"
        )
    return Plan(job, tuple(fitting), replace(sampling, max_tokens=max_tokens), len(asked) - len(fitting))


def sample_and_judge(plan: Plan, sampler: Sampler, journal: Journal, wanted: Wanted) -> None:
    """Until the journal has all samples and verdicts of the task. Judges a block while the next is sampled."""
    label, by_number = plan.job.label, {a.number: a for a in plan.asked}
    have = journal.samples.setdefault(label, {})
    missing = [a for a in plan.asked if a.number not in have]
    late = [number for number in have if number not in journal.verdicts.get(label, {})]
    if not missing and not late:
        return
    with (
        Scorer([plan.job.reward], wanted.scoring, wanted.sandbox) as scorer,
        Progress(label, len(plan.asked), journal) as progress,
        ThreadPoolExecutor(1, "judge") as judges,
    ):
        waiting: list[Future[None]] = []

        def judge(block: Block) -> None:
            items = [(by_number[i].problem, _completion(s)) for i, samples in block for s in samples]
            scored = iter(scorer.judge(items))
            verdicts = [(i, [_verdict(s, next(scored).verdict) for s in samples]) for i, samples in block]
            journal.judged(label, verdicts)
            progress.show()

        try:
            for start in range(0, len(late), LATE_BLOCK):
                block = [(number, have[number]) for number in late[start : start + LATE_BLOCK]]
                waiting.append(judges.submit(judge, block))
            began = time.monotonic()
            with closing(sampler.sample(missing, plan.sampling or Sampling(1, 1))) as blocks:
                for block in blocks:
                    journal.sampled(label, block, time.monotonic() - began)
                    waiting.append(judges.submit(judge, block))
                    progress.show()
                    _raise_failures(waiting)
                    began = time.monotonic()
            for future in waiting:
                future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def _raise_failures(waiting: list[Future[None]]) -> None:
    while waiting and waiting[0].done():
        waiting.pop(0).result()


def _completion(sample: Sample) -> Completion:
    return Completion((), (), sample.text, sample.finish_reason, 0)


def _verdict(sample: Sample, verdict: Verdict) -> Verdict:
    """What could not be sampled is no wrong answer."""
    return verdict if sample.failed is None else Verdict(None, "error", f"not sampled: {sample.failed}")


def figures(plan: Plan, journal: Journal, ks: Sequence[int]) -> dict[str, Any]:
    groups: dict[int, list[Judged]] = {}
    for asked, sample, verdict in rows_of(plan, journal):
        one = Judged(verdict, sample.finish_reason, sample.tokens, sample.failed is None)
        groups.setdefault(asked.number, []).append(one)
    problems = list(groups.values())
    return {
        **summarise(problems, ks),
        "curve": curve(problems, ks),
        "refused_answers": len(plan.job.refused),
        "prompts_too_long": plan.too_long,
        "missing": plan.job.missing,
    }


def rows_of(plan: Plan, journal: Journal) -> list[tuple[Asked, Sample, Verdict]]:
    """In the order of the problems, whatever the order in which they were done."""
    samples, verdicts = journal.samples[plan.job.label], journal.verdicts[plan.job.label]
    return [
        (asked, sample, verdict)
        for asked in plan.asked
        for sample, verdict in zip(samples[asked.number], verdicts[asked.number], strict=True)
    ]


def sample_lines(plan: Plan, journal: Journal) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for asked, sample, verdict in rows_of(plan, journal):
        first = not lines or lines[-1]["problem"] != asked.problem.id
        lines.append(
            {
                "task": plan.job.label,
                "problem": asked.problem.id,
                "sample": 0 if first else lines[-1]["sample"] + 1,
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
            }
        )
    return lines


def refuse_samples_of_others(out: Path) -> None:
    if (out / SAMPLES).exists() and not (out / JOURNAL).exists() and not (out / RESULTS).exists():
        raise UserError(f"--out {out} has a {SAMPLES} that is not of this command; give another --out")


def begin(out: Path, plans: Sequence[Plan]) -> None:
    """Without what an evaluation that is discarded left; it would be taken for the outcome of this one."""
    lines = [line for plan in plans for line in manifests.prompt_lines(plan.job.label, plan.asked)]
    try:
        for name in (RESULTS, SAMPLES, RUN, CURVE):
            (out / name).unlink(missing_ok=True)
        write_whole(out / PROMPTS, as_lines(lines))
    except OSError as error:
        raise unwritable(out, error) from error


def write_samples(out: Path, plans: Sequence[Plan], journal: Journal) -> None:
    try:
        write_whole(out / SAMPLES, "".join(as_lines(sample_lines(plan, journal)) for plan in plans))
    except OSError as error:
        raise unwritable(out, error) from error


def write_results(
    out: Path, plans: Sequence[Plan], journal: Journal, results: Mapping[str, Any], seconds: float
) -> None:
    """results.json last: where it is, all else is."""
    run = {
        "command": shlex.join(["grpo-math", *sys.argv[1:]]),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "tasks": {plan.job.label: speed(plan.job.label, journal) for plan in plans if plan.sampling is not None},
    }
    try:
        pass_curve({label: drawn(found["curve"]) for label, found in results["tasks"].items()}, out / CURVE)
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


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def unwritable(out: Path, error: OSError) -> UserError:
    return UserError(
        f"--out {out} cannot be written ({error.strerror or error}); free some space on its disk or give another "
        "folder. What was sampled is kept: the same command goes on from here"
    )
