"""The process in which verifiers run: reads jobs, writes one verdict after the other. Started by scoring_pool.py.

Leaves out deadlines: the parent has those, since a verifier that hangs inside C cannot be stopped from within. Never
imports torch.
"""

from __future__ import annotations

import math
import numbers
import os
import pickle
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, get_args

from grpo_math.find import find_verifier
from grpo_math.lifeline import die_with_parent
from grpo_math.types import Problem, Reason, RunAlone, UserError, Verdict

HEADER = struct.Struct("<I")  # the length of the pickled message that follows
MAX_DETAIL = 1000
NO_REWARD = ("unknown", "timeout", "error")  # the reasons that may come without one

# a Verdict's, plain: they pickle in a third of the time
Fields = tuple[float | None, Reason, str, str | None, Any, tuple[str, ...] | None]


def main() -> None:
    """Serve until the parent closes the pipe. argv is the parent's sys.path (see scoring_pool.Worker)."""
    # Ctrl-C and a scheduler's end are the parent's to handle. A handler, since what a verifier starts inherits SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a verifier prints goes to stderr, not between the messages
    lifeline, names, options, memory_mb = pickle.load(requests)
    die_with_parent(lifeline)
    limit_memory(memory_mb)
    try:
        verifiers = [find_verifier(name) for name in names]
        for verifier, given in zip(verifiers, options, strict=True):  # what the first problem would have to wait for
            own = {"sandbox": given["sandbox"]} if "sandbox" in given else {}
            getattr(verifier, "warm_up", lambda **_: None)(**own)
    except UserError as error:
        send(replies, ("failed", str(error)))
        return
    send(replies, ("ready",))
    while True:
        try:
            jobs = pickle.load(requests)
        except EOFError:
            for verifier in verifiers:
                getattr(verifier, "shut_down", lambda: None)()
            return
        except (AttributeError, ImportError, pickle.UnpicklingError) as error:
            send(
                replies, ("failed", f"a problem's metadata cannot be sent to another process: {error}; use plain data")
            )
            return
        send(replies, ("start", time.monotonic()))
        for number, which, problem, text in jobs:
            began = time.monotonic()
            alone, fields = judge(names[which], verifiers[which], options[which], problem, text)
            ended = time.monotonic()  # after judging: the next job's deadline counts from here
            send(replies, (number, ended, ended - began, alone, *fields))


def limit_memory(megabytes: int) -> None:
    """Have an allocation beyond this raise MemoryError. Address space, which is what the kernel counts."""
    if sys.platform == "linux":  # macOS takes the limit and does not keep it
        limit, hard = megabytes << 20, resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        # the soft limit alone: a verifier may need another for the processes that it starts
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def send(file: int, message: tuple[Any, ...]) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    data = HEADER.pack(len(data)) + data
    while data:
        data = data[os.write(file, data) :]


def judge(
    name: str, verifier: ModuleType, options: Mapping[str, Any], problem: Problem, text: str
) -> tuple[bool, Fields]:
    """The verifier's verdict, or an `error` that says what is wrong with the verifier. Never a reward of our own.

    With it, whether the verifier wants to be asked again with nothing else running."""
    alone = False
    try:
        verdict = verifier.verify(problem, text, **options)
    except RunAlone as asked:
        alone, verdict = True, asked.verdict
    except (Exception, SystemExit) as error:  # whatever a user's code raises is an error by name, not a zero reward
        return False, _error(f"{name}: {describe(error, verifier.__file__)}")
    complaint = nonsense(verdict, len(text))
    if complaint:
        return False, _error(f"{name}: {complaint}")
    reward = None if verdict.reward is None else float(verdict.reward)
    return alone, (reward, verdict.reason, verdict.detail, verdict.answer, verdict.step_rewards, verdict.tests)


def describe(error: BaseException, file: str | None) -> str:
    """Type, message and the last line of the verifier's own file that ran."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without judge itself
    own = [frame for frame in frames if frame.filename == file] or frames
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return "".join(traceback.format_exception_only(error)).strip() + where


def nonsense(verdict: object, length: int) -> str | None:
    """What makes this no Verdict that training could use, or None. length: characters of the text that it judges."""
    if not isinstance(verdict, Verdict):
        return f"returned {_show(verdict)}, not a Verdict"
    if verdict.reason not in get_args(Reason):
        return f"returned the reason {_show(verdict.reason)}; known: {', '.join(get_args(Reason))}"
    reward = verdict.reward
    if reward is None:
        if verdict.reason not in NO_REWARD:
            return f"returned no reward with the reason {verdict.reason!r}; that is for {', '.join(NO_REWARD)}"
    elif not _is_number(reward):
        return f"returned the reward {_show(reward)}; return a finite float"
    elif verdict.reason == "error":
        return f"returned the reward {reward} with the reason 'error'; with this reason it is None"
    if not isinstance(verdict.detail, str) or not isinstance(verdict.answer, str | None):
        return "returned a detail or answer that is not a string"
    if verdict.tests is not None and not _are_strings(verdict.tests):
        return f"returned the tests {_show(verdict.tests)}; return a tuple of strings, or None"
    return None if verdict.step_rewards is None else _nonsense_steps(verdict.step_rewards, length)


def _nonsense_steps(steps: object, length: int) -> str | None:
    if not isinstance(steps, Sequence) or not all(isinstance(s, Sequence) and len(s) == 2 for s in steps):
        return f"returned the step_rewards {_show(steps)}; return ((end, reward), ...)"
    ends = [end for end, _ in steps]
    if not all(isinstance(end, int) for end in ends) or ends != sorted(ends):
        return f"returned step_rewards with the ends {_show(ends)}; they are rising character offsets"
    if ends and not 0 < ends[0] <= ends[-1] <= length:
        return f"returned step_rewards with the ends {_show(ends)}, and the text has {length} characters"
    if not all(_is_number(reward) for _, reward in steps):
        return f"returned step_rewards with a reward that is not a finite float: {_show(steps)}"
    return None


def _are_strings(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _show(value: object) -> str:
    return f"{type(value).__name__} {repr(value)[:80]}"


def _error(detail: str) -> Fields:
    return None, "error", detail[:MAX_DETAIL], None, None, None
