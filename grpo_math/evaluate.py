"""pass@k of a model on a task: sample n completions a problem, score them, and say how sure the figures are.

Left out: the estimators themselves (passk.py) and several benchmarks in one command.
"""

# P problems, n completions of each

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table

from grpo_math import config
from grpo_math.log import write_whole
from grpo_math.passk import bootstrap_interval, majority, pass_at_k
from grpo_math.types import Group, Sampling, UserError

MAX_TOKENS = 512


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over problems with a bootstrap interval over problems: completions of one problem are not independent."""
    low, high = bootstrap_interval(values)
    return Estimate(sum(values) / len(values), low, high)


def summarise(groups: Sequence[Group], ks: Sequence[int]) -> dict[str, Any]:
    """The figures of an evaluation. A completion without a reward (unknown, time-out, error) is left out of its
    problem's count and reported beside it; a problem with fewer than k rewards is left out of pass@k, and counted. A
    program whose own time was up has a reward: it is wrong, and no time-out."""
    counts = []
    for group in groups:
        judged = [s for s in group.scores if s.verdict.reward is not None]
        counts.append((len(judged), sum(s.verdict.reason == "correct" for s in judged)))
    completions = [c for group in groups for c in group.completions]
    verdicts = [s.verdict for group in groups for s in group.scores]
    total = len(verdicts)
    result: dict[str, Any] = {"problems": len(groups), "completions": total}
    # of each problem first: a completion without a verdict must not make the others of its problem weigh more
    shares = [c / n for n, c in counts if n]
    result["accuracy"] = sum(shares) / len(shares) if shares else math.nan
    for k in ks:
        known = [pass_at_k(n, c, k) for n, c in counts if n >= k]
        if known:
            figure = estimate(known)
            result[f"pass@{k}"] = figure.mean
            result[f"pass@{k}_interval"] = [figure.low, figure.high]
        result[f"pass@{k}_left_out"] = len(counts) - len(known)
    majorities = [m for m in map(_majority, groups) if not math.isnan(m)]
    result["majority"] = sum(majorities) / len(majorities) if majorities else math.nan
    result["format_rate"] = sum(v.reason != "no_answer" and v.answer is not None for v in verdicts) / total
    result["truncated"] = sum(c.finish_reason == "length" for c in completions) / total
    result["mean_tokens"] = sum(len(c.token_ids) for c in completions) / total
    result["unknown"] = sum(v.reason == "unknown" for v in verdicts)
    result["timeouts"] = sum(v.reason == "timeout" and v.failed for v in verdicts)
    result["errors"] = sum(v.reason == "error" for v in verdicts)
    return result


def _majority(group: Group) -> float:
    """1 or 0 for a majority that is right or wrong; a verdict that is missing is neither."""
    verdicts = [s.verdict for s in group.scores]
    right = [None if v.reward is None else float(v.reason == "correct") for v in verdicts]
    return majority([v.answer for v in verdicts], right)


def sample_records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One JSON record for each completion."""
    return [
        {
            "problem": group.prompt.problem.id,
            "prompt": group.prompt.text,
            "gold": group.prompt.problem.answer,
            "completion": completion.text,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "answer": score.verdict.answer,
            "reward": score.verdict.reward,
            "reason": score.verdict.reason,
            "detail": score.verdict.detail,
        }
        for group in groups
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]


def evaluate_command(
    *,
    model: str,
    task: config.Task,
    n: int,
    k: Sequence[int],
    limit: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    max_tokens: int | None,
    seed: int,
    out: Path,
    verifier: str | None,
    options: Mapping[str, Any],
    workers: int,
    timeout_s: float,
    sandbox: config.Sandbox,
    max_rows: int,
    dtype: Literal["float32", "bfloat16"],
    device: str,
) -> dict[str, Any]:
    """Load the model, sample, score, print a table; results.json and samples.jsonl go to `out`. Returns the results.

    max_tokens None is as many as the model's context leaves beside the longest prompt, at most MAX_TOKENS."""
    # here and not above: what only summarises groups should not load a model library
    from grpo_math.backend.torch import DTYPES
    from grpo_math.find import find_task, find_verifier, verifier_of
    from grpo_math.groups import score_groups
    from grpo_math.policy import load_policy, pick_device
    from grpo_math.problems import load_problems
    from grpo_math.prompts import prompt_maker
    from grpo_math.rollout.hf import HFEngine
    from grpo_math.scoring import Scorer

    began = time.perf_counter()
    reward = config.Reward(verifier=verifier or verifier_of(task.name), options=dict(options))
    if limit is not None:
        task = task.model_copy(update={"limit": min(limit, task.limit or limit)})
    source = load_problems(task, getattr(find_verifier(reward.verifier), "check", None))
    if source.problems is None:
        raise UserError(
            f"task {task.name}, split {task.split!r}, has no end; say how many problems to evaluate with --limit"
        )
    policy = load_policy(config.Model(path=model), pick_device(device))
    make = prompt_maker(task, find_task(task.name), policy.tokenizer)
    prompts = [make(problem) for problem in source.problems]
    if max_tokens is None:
        max_tokens = max(1, min(MAX_TOKENS, policy.context - max(len(prompt.token_ids) for prompt in prompts)))
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) + max_tokens <= policy.context]
    if not fitting:
        raise UserError(
            f"no prompt fits: the shortest has {min(len(p.token_ids) for p in prompts)} tokens, and with --max-tokens "
            f"{max_tokens} that is more than the model's context of {policy.context}; lower --max-tokens"
        )
    engine = HFEngine(policy, max_rows, DTYPES[dtype])
    sampling = Sampling(n, max_tokens, temperature, top_p, top_k, seed)
    groups = []
    scoring = config.Scoring(workers=workers, timeout_s=timeout_s, max_error_share=1.0)
    with Scorer([reward], scoring, sandbox) as scorer:
        per_block = max(1, max_rows // n)
        for start in track(range(0, len(fitting), per_block), description=f"{task.name}", transient=True):
            block = fitting[start : start + per_block]
            groups += score_groups(scorer, block, engine.generate(block, sampling))
    failed = [s.verdict for group in groups for s in group.scores if s.verdict.reward is None]
    if len(failed) == len(fitting) * n:
        raise UserError(
            f"verifier {reward.verifier} failed on all {len(failed)} completions, so there is nothing to report; the "
            f"first: {failed[0].reason}: {failed[0].detail.strip()}"
        )
    results = {
        "model": model,
        "task": task.name,
        "split": task.split,
        "verifier": reward.verifier,
        "verifier_options": reward.options,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_tokens,
        "seed": seed,
        "refused_answers": len(source.refused),
        "prompts_too_long": len(prompts) - len(fitting),
        **summarise(groups, k),
        "seconds": time.perf_counter() - began,
    }
    write_results(out, results, groups)
    print_results(results, k, out)
    return results


def write_results(out: Path, results: dict[str, Any], groups: Sequence[Group]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "samples.jsonl", "".join(json.dumps(r) + "\n" for r in sample_records(groups)))
        write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}); give another folder") from error


def print_results(results: dict[str, Any], ks: Sequence[int], out: Path) -> None:
    table = Table(title=f"{results['model']} on {results['task']} ({results['split']}), n={results['n']}")
    table.add_column("")
    table.add_column("", justify="right")
    for k in ks:
        if f"pass@{k}" in results:
            low, high = results[f"pass@{k}_interval"]
            table.add_row(f"pass@{k}", f"{results[f'pass@{k}']:.3f}  [{low:.3f}, {high:.3f}]")
    shown = (
        "accuracy",
        "majority",
        "format_rate",
        "truncated",
        "mean_tokens",
        "unknown",
        "timeouts",
        "errors",
        "problems",
        "seconds",
    )
    for key in shown:
        value = results[key]
        table.add_row(key.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
    for key in ("refused_answers", "prompts_too_long"):
        if results[key]:
            table.add_row(key.replace("_", " "), str(results[key]))
    console = Console()
    console.print(table)
    console.print(f"results.json and samples.jsonl are in {out}", highlight=False)
