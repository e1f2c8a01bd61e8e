"""From how a program ran to what is said of it. Leaves out the running."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from grpo_math.sandbox.client import Run
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.tester import NOT_RUN, PASSED
from grpo_math.sandbox.zygote import End
from grpo_math.types import Reason, Verdict

STARVED = 0.05  # the share of a core above which a program was at work
BONUS = 0.5  # of the reward that only a program without a failure gets, where a share is rewarded too


def reward_of(mode: str, passed: int, total: int) -> float:
    """all: 1 for all tests passed, else 0. share: the share that passed. bonus: half for the share, half for all."""
    return REWARDS[mode](passed / total, float(passed == total))


REWARDS = {
    "all": lambda share, whole: whole,
    "share": lambda share, whole: share,
    "bonus": lambda share, whole: (1 - BONUS) * share + BONUS * whole,
}


def verdict_of(mode: str, results: Sequence[str], reason: Reason, detail: str) -> Verdict:
    """Of a program that was judged: its reward is a number, whatever it did. Without one where the fault is ours."""
    if reason == "error":
        return Verdict(None, "error", detail, tests=tuple(results) or None)
    passed = sum(result == PASSED for result in results)
    assert (reason == "correct") == (passed == len(results) > 0), (reason, results)
    return Verdict(reward_of(mode, passed, len(results)), reason, detail, tests=tuple(results))


def stopped(end: End, limits: Limits) -> tuple[Reason, str] | None:
    """The limit at which a program was stopped, if it was."""
    if end.killed in _KILLED:
        return _KILLED[end.killed]
    if end.killed == "cpu" or _signal(end) == signal.SIGXCPU:
        return "timeout", f"it took {limits.timeout_s:g} s of CPU time"
    if end.killed == "wall":
        return "timeout", f"it was not done after {end.wall_s:.1f} s, {end.cpu_s:.1f} s of CPU time"
    return None


_KILLED: dict[str, tuple[Reason, str]] = {
    "disk": ("output_limit", "it filled its folder"),
    "threads": ("forbidden", "it started too many threads"),
}


def unlucky(run: Run) -> bool:
    """Whether the machine may be to blame: program or tests were too late by the clock and may have been kept waiting
    (who sleeps uses no CPU time), or it was killed by somebody else, as the kernel does where memory runs out."""
    end, busy_s = run.end, 0.0 if run.outcome is None else run.outcome.busy_s
    late = end.killed == "wall" and end.cpu_s + busy_s > STARVED * end.wall_s
    return late or run.tests_late or (end.killed == "" and _signal(end) == signal.SIGKILL)


def died(end: End) -> tuple[Reason, str]:
    """How a program came to its end where nobody stopped it."""
    number = _signal(end)
    if number is None:
        return "crashed", f"it left with exit code {os.waitstatus_to_exitcode(end.status)}"
    if number == signal.SIGSYS:
        return "forbidden", "it made a forbidden system call"
    if number == signal.SIGXFSZ:
        return "output_limit", "it wrote too much"
    return "crashed", f"it was killed by {signal.Signals(number).name}"


def _signal(end: End) -> int | None:
    return os.WTERMSIG(end.status) if os.WIFSIGNALED(end.status) else None


def judged(run: Run, total: int, limits: Limits) -> tuple[list[str], Reason, str]:
    """(result of each test, reason, detail) of a program whose tests called it."""
    halt, outcome = stopped(run.end, limits), run.outcome
    results = outcome.results if outcome is not None and outcome.results else [NOT_RUN] * total
    if outcome is not None and outcome.reason != "crashed" and (halt is None or outcome.reason == "correct"):
        return results, outcome.reason, outcome.detail  # type: ignore[return-value]
    if halt is not None:
        return _first_failed(results, halt[0]), *halt
    if outcome is None:
        late = "what it answered kept the tests busy until their time was up"
        return _first_failed(results, "timeout"), "timeout", late
    if not outcome.gone or run.end.killed == "stop":  # how it ended, after the tests were over, tells nothing
        return results, "crashed", outcome.detail
    reason, detail = died(run.end)
    return results, reason, f"{outcome.detail}; {detail}" if outcome.detail else detail


def _first_failed(results: Sequence[str], why: str) -> list[str]:
    """A test was running when the program was stopped: the first that has neither passed nor given a wrong value."""
    failed = list(results)
    at = next((i for i, result in enumerate(failed) if result != PASSED and not result.startswith("wrong")), None)
    if at is not None:
        failed[at] = why
    return failed
