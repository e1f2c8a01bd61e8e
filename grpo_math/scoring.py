"""Run verifiers in processes that can be killed. Not a security sandbox.

Every verifier judges every completion; the reward is the weighted sum. A verifier that raises, hangs, dies or returns
nonsense gives a `timeout` or `error` without a reward, never a zero, and above a set share it stops the run. A verifier
that runs programs is told their limits. Leaves out the processes themselves (scoring_pool.py, scoring_worker.py), and
how programs are run (sandbox/).
"""

from __future__ import annotations

import inspect
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

from grpo_math.config import Reward, Sandbox, Scoring
from grpo_math.find import find_verifier
from grpo_math.scoring_pool import Job, Pool
from grpo_math.types import Completion, Problem, Scored, UserError, Verdict

FEW = 3  # failures that are tolerated in a call whatever their share, unless nothing else is left
SHOWN = 3  # details in the message of a ScoringError
REMEMBERED = 100_000  # problems of which it is kept how long they took
SANDBOX = "sandbox"  # the option by which a verifier gets the limits of programs
DEFAULT_SANDBOX = Sandbox()


class ScoringError(RuntimeError):
    """Verifiers failed on more completions than scoring.max_error_share allows. `scored` has all of the call."""

    def __init__(self, message: str, scored: list[Scored]):
        super().__init__(message)
        self.scored = scored


class Scorer:
    """Judges completions by `rewards`, the first of which is the task's own. Works from any thread; use as a context
    manager, or close it. sandbox: the limits of programs, for the verifiers that run some.

    Raises UserError for a verifier that there is not, or that does not take its options.
    """

    def __init__(self, rewards: list[Reward], scoring: Scoring, sandbox: Sandbox = DEFAULT_SANDBOX):
        for reward in rewards:
            check_options(reward)
        self.rewards, self.scoring = list(rewards), scoring
        self._pool = Pool([with_sandbox(reward, sandbox) for reward in rewards], scoring)
        self._durations = Durations()
        self._lock = threading.Lock()

    def score(
        self, items: Sequence[tuple[Problem, Completion]], progress: Callable[[int], None] | None = None
    ) -> list[Scored]:
        """One Scored per item, in order; `progress` is told how many are done. Raises ScoringError."""
        scored = self.judge(items, progress)
        self.refuse_too_many_errors(items, scored)
        return scored

    def judge(
        self, items: Sequence[tuple[Problem, Completion]], progress: Callable[[int], None] | None = None
    ) -> list[Scored]:
        """The same, however many verifiers failed. The same text for the same problem is judged once."""
        keys = [(problem.id, completion.text) for problem, completion in items]
        copies = Counter(keys)
        unique = {key: problem for key, (problem, _) in zip(keys, items, strict=True)}
        order = list(unique)
        jobs: list[Job] = [(unique[key], key[1], which) for key in order for which in range(len(self.rewards))]
        verdicts: list[list[Verdict | None]] = [[None] * len(self.rewards) for _ in order]
        finished = 0
        # a long one that comes last is waited for by all the others
        turns = sorted(range(len(jobs)), key=lambda number: self._durations.mean(jobs[number]), reverse=True)

        def done(turn: int, verdict: Verdict, seconds: float) -> None:
            nonlocal finished
            number = turns[turn]
            self._durations.add(jobs[number], seconds)
            row, which = divmod(number, len(self.rewards))
            verdicts[row][which] = verdict
            if progress is not None and None not in verdicts[row]:
                finished += copies[order[row]]
                progress(finished)

        with self._lock:
            self._pool.run([jobs[number] for number in turns], done)
        row_of = {key: row for row, key in enumerate(order)}
        return [
            self._scored(verdicts[row_of[key]], completion) for key, (_, completion) in zip(keys, items, strict=True)
        ]

    def close(self) -> None:
        """Kill the workers. A later `score` starts new ones."""
        with self._lock:
            self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scored(self, row: Sequence[Verdict | None], completion: Completion) -> Scored:
        parts: dict[str, Verdict] = {}
        reward: float | None = 0.0
        for setting, verdict in zip(self.rewards, row, strict=True):
            assert verdict is not None
            parts[setting.verifier] = _truncated(verdict, completion)
            if reward is not None and setting.weight:  # of weight 0 it is only looked at
                reward = None if verdict.reward is None else reward + setting.weight * verdict.reward
        return Scored(reward, parts[self.rewards[0].verifier], parts)

    def _timed(self, name: str) -> bool:
        """Whether scoring.timeout_s is the verifier's limit, and not a patience of its own."""
        return name in {r.verifier for r in self.rewards} and not hasattr(find_verifier(name), "patience")

    def refuse_too_many_errors(self, items: Sequence[tuple[Problem, Completion]], scored: list[Scored]) -> None:
        """A few failures in a small call are bad luck; a share of a large one, or all of any, is a broken verifier."""
        failed = [
            (problem, s)
            for (problem, _), s in zip(items, scored, strict=True)
            if any(v.failed for v in s.parts.values())
        ]
        allowed = self.scoring.max_error_share
        if len(failed) <= allowed * len(items) or (len(failed) < FEW and len(failed) < len(items)):
            return
        bad = [(problem.id, name, v) for problem, s in failed for name, v in s.parts.items() if v.failed]
        names = Counter(name for _, name, _ in bad)
        reasons = Counter(v.reason for _, _, v in bad)
        details = dict.fromkeys(v.detail for _, _, v in bad)
        slow = ", or raise scoring.timeout_s (for programs sandbox.timeout_s) where it is only slow"
        first = {detail: next(id for id, _, v in bad if v.detail == detail) for detail in list(details)[:SHOWN]}
        raise ScoringError(
            f"verifier {', '.join(names)} failed on {len(failed)} of {len(items)} completions "
            f"({len(failed) / len(items):.0%}, scoring.max_error_share={allowed} allows {allowed:.0%}): "
            + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            + "".join(f"\n  {id}: {detail}" for detail, id in first.items())
            + "\nMend what it names, or the verifier (try it: grpo-math verify NAME)"
            + (slow if any(v.reason == "timeout" and self._timed(name) for _, name, v in bad) else ""),
            scored,
        )


class Durations:
    """The mean seconds that a verifier's verdicts on a problem took, of the REMEMBERED problems judged last."""

    def __init__(self) -> None:
        self._totals: OrderedDict[tuple[str, int], tuple[int, float]] = OrderedDict()

    def add(self, job: Job, seconds: float) -> None:
        if not seconds:  # nobody judged it
            return
        key = _key(job)
        count, total = self._totals.pop(key, (0, 0.0))
        self._totals[key] = (count + 1, total + seconds)
        if len(self._totals) > REMEMBERED:
            self._totals.popitem(last=False)

    def mean(self, job: Job) -> float:
        """Infinity where there is no record: it may be the longest."""
        count, total = self._totals.get(_key(job), (1, float("inf")))
        return total / count


def _key(job: Job) -> tuple[str, int]:
    problem, _, which = job
    return problem.id, which


def _truncated(verdict: Verdict, completion: Completion) -> Verdict:
    """A completion that was cut off and is not right is no wrong answer, and keeps the reward it got."""
    if completion.finish_reason != "length" or verdict.reason == "correct" or verdict.reward is None:
        return verdict
    return replace(verdict, reason="truncated")


def check_options(reward: Reward) -> None:
    """Raises UserError for a verifier that there is not, or that does not take its options."""
    module = find_verifier(reward.verifier)
    if SANDBOX in reward.options:
        raise UserError(
            f"rewards: verifier {reward.verifier} with {SANDBOX}={reward.options[SANDBOX]} among its options: the "
            "limits of programs are set for all verifiers; set sandbox.timeout_s, sandbox.memory_mb, "
            "sandbox.output_mb or sandbox.require"
        )
    if check := getattr(module, "check_options", None):
        check(reward.options)
    try:
        inspect.signature(module.verify).bind(None, "", **with_sandbox(reward, DEFAULT_SANDBOX).options)
    except TypeError as error:
        takes = [name for name in list(inspect.signature(module.verify).parameters)[2:] if name != SANDBOX]
        raise UserError(
            f"rewards: verifier {reward.verifier} with options={reward.options}: {error}; "
            + (f"it takes {', '.join(takes)}" if takes else "it takes no options")
        ) from error


def runs_programs(reward: Reward) -> bool:
    """Whether the verifier runs what it judges: its `verify` has a parameter `sandbox`."""
    return SANDBOX in inspect.signature(find_verifier(reward.verifier).verify).parameters


def with_sandbox(reward: Reward, sandbox: Sandbox) -> Reward:
    """With the limits of programs among the options, where the verifier runs programs."""
    if not runs_programs(reward):
        return reward
    return reward.model_copy(update={"options": {**reward.options, SANDBOX: sandbox.limits()}})
