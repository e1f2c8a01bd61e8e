"""Run verifiers on what they should accept and refuse: their own examples, and every gold answer of a task.

All of it goes through scoring.Scorer, so that a verifier that hangs is killed like in training. Left out: judging a
model's completions (evaluate.py, pairs.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from grpo_math import config
from grpo_math.evaluation.gold import gold_completion
from grpo_math.find import find_task, find_verifier, verifier_of
from grpo_math.problems import PEEK, load_problems
from grpo_math.progress import bar
from grpo_math.scoring import DEFAULT_SANDBOX, Scorer, with_sandbox
from grpo_math.types import Completion, Problem, Verdict


def verify_examples(
    names: Sequence[str], workers: int, timeout_s: float, sandbox: config.Sandbox = DEFAULT_SANDBOX
) -> bool:
    """Print, for each verifier, the examples whose reward is not the one its file states. True if there are none."""
    good = True
    for name in names:
        module = find_verifier(name)
        examples: list[tuple[Problem, str, float]] | None = getattr(module, "EXAMPLES", None)
        if not examples:
            print(f"{name}: no EXAMPLES; add a list of (Problem, completion text, reward) to {module.__file__}")
            good = False
            continue
        # examples need no ids of their own, but the scorer tells problems apart by them
        items = [(replace(p, id=f"example {i}"), completion_of(text)) for i, (p, text, _) in enumerate(examples, 1)]
        verdicts = _score(config.Reward(verifier=name), items, workers, timeout_s, sandbox)
        failed = [
            f"  FAILED example {i}: reward {verdict.reward}, not {expected} ({_why(verdict)})\n"
            f"    answer {problem.answer!r}, completion {_short(text)}"
            for i, ((problem, text, expected), verdict) in enumerate(zip(examples, verdicts, strict=True), 1)
            if verdict.reward is None or abs(verdict.reward - expected) > 1e-9
        ]
        print(
            "\n".join([f"{name}: {len(examples) - len(failed)} of {len(examples)} examples as they should be", *failed])
        )
        good = good and not failed
    return good


def verify_gold(
    task: config.Task,
    verifier: str | None,
    workers: int,
    timeout_s: float,
    options: Mapping[str, Any] | None = None,
    sandbox: config.Sandbox = DEFAULT_SANDBOX,
) -> bool:
    """Print how many of a task's own answers its verifier accepts, and each refused one. True if none is refused."""
    module, verifier = find_task(task.name), verifier_of(task.name, verifier)
    check: Callable[[Problem], str | None] | None = getattr(find_verifier(verifier), "check", None)
    source = load_problems(task)
    problems = source.problems
    if problems is None:
        problems = list(islice(source.start(), PEEK))
        print(f"task {task.name} has no end: taking its first {PEEK:,} problems (--limit changes that)")
    gold = gold_completion(module)
    began = time.monotonic()
    reward = config.Reward(verifier=verifier, options=dict(options or {}))
    verdicts = _score(reward, [(p, completion_of(gold(p))) for p in problems], workers, timeout_s, sandbox)
    refused = []
    for problem, verdict in zip(problems, verdicts, strict=True):
        complaint = None if verdict.reason == "correct" else _why(verdict)
        if check is not None and not _hung(verdict) and (said := check(problem)) is not None:
            complaint = f"left out of training: {said}"
        if complaint is not None:
            where = problem.metadata.get("source", problem.id)
            refused.append(f"  REFUSED {where}: answer {_short(problem.answer)}: {complaint}")
    accepted = len(problems) - len(refused)
    figures = f"{accepted:,} of {len(problems):,} gold answers accepted in {time.monotonic() - began:.1f} s"
    print("\n".join([f"task {task.name}, split {task.split}, verifier {verifier}: {figures}", *refused]))
    return not refused


def verify_one(
    verifier: str,
    answer: str,
    completion: str,
    options: Mapping[str, Any],
    timeout_s: float,
    sandbox: config.Sandbox = DEFAULT_SANDBOX,
) -> str:
    """The verdict on one completion, given the right answer, and how the verifier came to it where it can say so."""
    module = find_verifier(verifier)
    problem = Problem("command line", "command line", "", answer)
    reward = config.Reward(verifier=verifier, options=dict(options))
    verdict = _score(reward, [(problem, completion_of(completion))], 1, timeout_s, sandbox)[0]
    rows = [(key, str(getattr(verdict, key))) for key in ("reward", "reason", "answer", "detail")]
    explain: Callable[..., list[tuple[str, str]]] | None = getattr(module, "explain", None)
    if explain is not None and not _hung(verdict):
        rows += explain(problem, completion, **with_sandbox(reward, sandbox).options)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def completion_of(text: str) -> Completion:
    """A completion that nobody sampled, as far as a verifier can tell."""
    return Completion((), (), text, "stop", 0)


def _hung(verdict: Verdict) -> bool:
    """Whether the verifier had to be killed: what did not end in a worker would not end in this process."""
    return verdict.reason == "timeout" and verdict.failed


def _score(
    reward: config.Reward,
    items: Sequence[tuple[Problem, Completion]],
    workers: int,
    timeout_s: float,
    sandbox: config.Sandbox,
) -> list[Verdict]:
    # the share of errors that stops a run would hide which items they are
    scoring = config.Scoring(workers=workers, timeout_s=timeout_s, max_error_share=1.0)
    with Scorer([reward], scoring, sandbox) as scorer:
        scored = scorer.score(items, bar(len(items)))
    return [item.verdict for item in scored]


def _why(verdict: Verdict) -> str:
    read = f", read {_short(verdict.answer)}" if verdict.answer is not None else ""
    return f"{verdict.reason}{read}{': ' + verdict.detail if verdict.detail else ''}"


def _short(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
