"""Evaluate: sample what is missing, judge it while the next is sampled, have reward models score it, write down every
bit, sum up.

Left out: what samples (sampler.py), what is counted (summary.py, selection.py), the files (write.py), and how it is
asked for (ask.py, sample.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.evaluation import manifest as manifests
from grpo_math.evaluation.job import Job
from grpo_math.evaluation.journal import Block, Journal, refuse_other
from grpo_math.evaluation.prepare import Plan, make_plan
from grpo_math.evaluation.reward_models import RewardSpec
from grpo_math.evaluation.sampler import Sample, Sampler
from grpo_math.evaluation.selection import selection
from grpo_math.evaluation.show import Progress
from grpo_math.evaluation.summary import Judged, curve, summarise
from grpo_math.evaluation.write import (
    Fields,
    begin,
    finished,
    refuse_samples_of_others,
    rows_of,
    unwritable,
    write_results,
    write_samples,
)
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Sampling, Verdict

LATE_BLOCK = 32  # problems, of those that an interruption left without verdicts


Figures = Callable[[Sequence[Sequence[Judged]], Sequence[int]], dict[str, Any]]


def pass_figures(problems: Sequence[Sequence[Judged]], ks: Sequence[int]) -> dict[str, Any]:
    return {**summarise(problems, ks), "curve": curve(problems, ks)}


def no_fields(plan: Plan, sample: Sample) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Wanted:
    """sampling: None where the completions exist already. ks: of pass@k. max_tokens: None for as many as fit, at most
    MAX_TOKENS. rewards: models that score every completion. fresh: discard what `out` has.

    What `evaluate` and `sample` do not share: figures, of one task from its problems' verdicts and the ks; fields, that
    a line of samples.jsonl has besides the usual ones; of_model, what the manifest says of the model besides."""

    jobs: Sequence[Job]
    model: str
    path: str | None
    sampling: Sampling | None
    max_tokens: int | None
    ks: Sequence[int]
    scoring: config.Scoring
    sandbox: config.Sandbox
    out: Path
    rewards: Sequence[RewardSpec] = ()
    fresh: bool = False
    figures: Figures = pass_figures
    fields: Fields = no_fields
    of_model: Mapping[str, Any] = field(default_factory=dict)


def evaluate(wanted: Wanted, sampler: Sampler) -> dict[str, Any]:
    """The contents of results.json. Interrupted, the same call goes on where it stopped; once finished, it only reads.

    Reward models score once all is sampled, and the sampler is closed: they may need its room. The journal asks only
    for what decides the samples, so that they are kept where other reward models are to score. Raises UserError: `out`
    has another evaluation or somebody's samples, cannot be written, no prompt fits, a reward model is of no use."""
    plans = [make_plan(job, sampler, wanted.sampling, wanted.max_tokens) for job in wanted.jobs]
    manifest = {
        "model": {**manifests.model_manifest(wanted.model, wanted.path), **wanted.of_model, **sampler.identity()},
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
    request = dict(manifest)
    if wanted.rewards:
        manifest["reward_models"] = {spec.name: dict(spec.manifest) for spec in wanted.rewards}
    refuse_samples_of_others(wanted.out)
    if not wanted.fresh and (done := finished(wanted.out)) is not None:
        refuse_other(done["manifest"], manifest, wanted.out)
        return done
    try:
        wanted.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(wanted.out, error) from error
    journal = Journal(wanted.out, request, wanted.fresh)
    try:
        began = time.monotonic()
        begin(wanted.out, plans)
        for plan in plans:
            sample_and_judge(plan, sampler, journal, wanted)
        if wanted.rewards:
            sampler.close()
            score(plans, journal, wanted.rewards)
        # first: judged by another verifier they may still be of use
        write_samples(wanted.out, plans, journal, wanted.fields, wanted.rewards)
        results = {"manifest": manifest, "tasks": {p.job.label: figures(p, journal, wanted) for p in plans}}
        results = json.loads(json.dumps(results))  # as it is read back
        write_results(wanted.out, plans, journal, results, time.monotonic() - began)
    except BaseException:
        with suppress(OSError):
            journal.close()
        raise
    journal.remove()
    return results


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


def score(plans: Sequence[Plan], journal: Journal, rewards: Sequence[RewardSpec]) -> None:
    """By one model after the other: there may be room for one only."""
    from grpo_math.evaluation.reward_scores import score_missing  # loads torch, which a file's samples do without

    for spec in rewards:
        score_missing(spec, plans, journal)


def _raise_failures(waiting: list[Future[None]]) -> None:
    while waiting and waiting[0].done():
        waiting.pop(0).result()


def _completion(sample: Sample) -> Completion:
    return Completion((), (), sample.text, sample.finish_reason, 0)


def _verdict(sample: Sample, verdict: Verdict) -> Verdict:
    """What could not be sampled is no wrong answer."""
    return verdict if sample.failed is None else Verdict(None, "error", f"not sampled: {sample.failed}")


def figures(plan: Plan, journal: Journal, wanted: Wanted) -> dict[str, Any]:
    groups: dict[int, list[Judged]] = {}
    for asked, sample, verdict, scored in rows_of(plan, journal, wanted.rewards):
        scores = {name: of_model.reward for name, of_model in scored.items()}
        one = Judged(verdict, sample.finish_reason, sample.tokens, sample.failed is None, scores)
        groups.setdefault(asked.number, []).append(one)
    problems = list(groups.values())
    kinds = {spec.name: spec.reward.kind for spec in wanted.rewards}
    return {
        **wanted.figures(problems, wanted.ks),
        **(selection(problems, wanted.ks, kinds) if kinds else {}),
        "refused_answers": len(plan.job.refused),
        "prompts_too_long": plan.too_long,
        "missing": plan.job.missing,
    }
