"""Run the tests of one problem against one program, on the trusted side: what decides is here, never in the sandbox.

A process of its own (main), which forks for every job: what a program answers can make an honest test hang, fill memory
or crash, and a test may change what is global. Its owner kills it at a deadline and starts another. Leaves out what the
names in the tests mean (names.py), programs that read standard input (stdio.py), and rewards.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from grpo_math.lifeline import die_with_parent
from grpo_math.sandbox import wire
from grpo_math.sandbox.codec import CodecError
from grpo_math.sandbox.equality import equal
from grpo_math.sandbox.kernel import die_with_thread
from grpo_math.sandbox.names import Reading, compiled, namespace_of, prepare, reading
from grpo_math.sandbox.remote import Gone, Session, TestsError
from grpo_math.sandbox.stand_in import Refused, StandIn, forward_dataclasses
from grpo_math.types import Reason

PASSED, NOT_RUN = "passed", "not run"
MEMORY_BYTES = 2 << 30
RECURSION = 10_000
MAX_SHOWN = 200  # characters of a value or a statement in a message


class Job(NamedTuple):
    """The tests of a problem, and the sources of the program in the order in which they run."""

    tests: Mapping[str, Any]
    sources: Sequence[str]
    all_or_nothing: bool


@dataclass
class Outcome:
    """results: per test PASSED, NOT_RUN or what was wrong. reason: types.Reason of the first that failed. own_word: the
    program's own comparisons decided something. gone: the program ended, or made no sense, before the tests did.
    busy_s: CPU seconds of the tests themselves."""

    results: list[str]
    reason: str = "correct"
    detail: str = ""
    own_word: bool = False
    gone: bool = False
    busy_s: float = field(default=0.0, compare=False)


Step = tuple[str, Callable[[], None]]  # what it is, for people; raises where the program fails it


class Wrong(Exception):
    """A value that is not the expected one."""


def run_job(job: Job, channel: socket.socket) -> Outcome:
    """Never raises for what the program does. A fault of the tests is the reason `error`."""
    session = Session(channel)
    try:
        steps = KINDS[job.tests["type"]](job.tests, session)
        count = next(steps)
    except (TestsError, SyntaxError, LookupError, TypeError, ValueError) as error:
        return Outcome([], "error", f"the tests are of no use: {type(error).__name__}: {error}")
    if count == 0:
        return Outcome([], "error", "there are no tests")
    outcome = Outcome([NOT_RUN] * count)
    try:
        session.load(job.sources)
    except BaseException as error:
        outcome.reason, outcome.detail = _why(error, session, "it does not load: ")
    else:
        _run_steps(steps, session, outcome, job.all_or_nothing)
    outcome.own_word, outcome.gone = session.own_word, session.gone is not None
    if outcome.reason == "correct" and any(result != PASSED for result in outcome.results):
        outcome.reason, outcome.detail = "error", "not every test was run"
    return outcome


def _run_steps(steps: Iterator[Any], session: Session, outcome: Outcome, all_or_nothing: bool) -> None:
    random.seed(0)
    for number in range(len(outcome.results)):
        try:
            label, step = next(steps)
        except BaseException as error:
            outcome.reason, outcome.detail = _why(error, session, "before the tests: ")
            return
        _run(number, label, step, session, outcome)
        if session.gone is not None or (all_or_nothing and outcome.reason != "correct"):
            return


def _run(number: int, label: str, step: Callable[[], None], session: Session, outcome: Outcome) -> None:
    try:
        step()
    except BaseException as error:  # of the program, of the test that it made fail, or of our own
        reason, detail = _why(error, session)
    else:
        if session.gone is None:  # a test may have swallowed it
            outcome.results[number] = PASSED
            return
        reason, detail = _why(Gone(session.gone), session)
    outcome.results[number] = f"{reason}: {detail}" if detail else reason
    if outcome.reason == "correct":
        outcome.reason, outcome.detail = reason, f"{label}: {detail}" if detail else label


def _why(error: BaseException, session: Session, where: str = "") -> tuple[str, str]:
    """The reason and what to tell of it."""
    if session.gone is not None or isinstance(error, Gone):
        return ("output_limit" if session.too_large else "crashed"), f"{where}{session.gone or error}"
    if isinstance(error, TestsError):
        return "error", f"{where}{error}"
    if isinstance(error, Wrong):
        return "wrong", f"{where}{error}"
    said = f"{where}{type(error).__name__}: {_text(error)}".rstrip(": ")
    if any(error is raised for raised in session.raised):
        return BLAME.get(type(error), "crashed"), said
    if (
        isinstance(error, MemoryError | RecursionError | Refused | CodecError)
        or getattr(error, "name", "") == "solution"
    ):
        return ("memory" if isinstance(error, MemoryError) else "wrong"), said
    raiser = _raiser(error)
    if raiser.startswith(OURS) or (isinstance(error, ImportError) and raiser == "tests.py"):
        return "error", said
    return "wrong", "" if type(error) is AssertionError else said


# reasons of their own, among what a program may raise
BLAME: dict[type[BaseException], Reason] = {MemoryError: "memory", PermissionError: "forbidden"}


OURS = os.path.dirname(__file__) + os.sep


def _raiser(error: BaseException) -> str:
    """The file in which it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def _text(error: BaseException) -> str:
    try:
        return shown(str(error))
    except BaseException:  # its arguments are the program's, and may do anything when asked how they look
        return ""


def shown(value: object) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # an int of too many digits, or an object of the program's that does not want to be shown
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


# Kinds of tests. Each yields first how many there are, then, once the program is loaded, one Step after the other.


def asserts(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """Statements that share a namespace with the set-up, and see the program's globals as stand-ins."""
    read = _read(tests)
    codes = [compiled(source) for source in (tests.get("setup") or "", *tests["asserts"])]
    yield len(tests["asserts"])
    namespace = namespace_of(read, session)
    exec(codes[0], namespace)
    for source, code in zip(tests["asserts"], codes[1:], strict=True):
        yield shown(source), lambda code=code: exec(code, namespace)


def _read(tests: Mapping[str, Any]) -> Reading:
    return reading(tests.get("setup") or "", tuple(tests["asserts"]), tests.get("entry_point"))


def check(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """HumanEval's: check(candidate). The prompt's helpers are ours, so that the program cannot redefine an oracle."""
    prompt, source, entry = tests.get("prompt") or "", tests["test"], tests["entry_point"]
    codes = compiled(prompt), compiled(f"{source}\n")
    yield 1
    session.class_named = entry[:1].isupper()
    candidate = _attribute(session.names([entry]), entry)
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(codes[0], namespace)
    namespace[entry] = candidate
    exec(codes[1], namespace)
    if "check" not in namespace:
        raise TestsError("the tests define no check(candidate)")
    yield "check(candidate)", lambda: namespace["check"](candidate)


def function(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """Calls with plain arguments, whose plain results are compared here."""
    entry, class_name, tolerance = tests["entry_point"], tests.get("class_name"), tests.get("tolerance")
    cases = [(pickle.dumps((c.get("args", ()), c.get("kwargs", {}))), c["expected"]) for c in tests["cases"]]
    yield len(cases)
    found = _attribute(session.names([class_name or entry]), class_name or entry)

    def case(arguments: bytes, expected: Any) -> None:
        args, kwargs = pickle.loads(arguments)  # fresh ones: the program may change them
        value = _method(found, class_name, entry)(*args, **kwargs)
        try:
            same = equal(value, expected, tolerance)
        except (ValueError, ArithmeticError):  # such as an array's truth, or a signalling NaN
            same = False
        if not same:
            got = "an object of its own" if isinstance(value, StandIn) else shown(value)
            raise Wrong(f"got {got}, not {shown(expected)}")

    for number, (arguments, expected) in enumerate(cases, 1):
        yield f"case {number}", lambda arguments=arguments, expected=expected: case(arguments, expected)


def _method(found: Any, class_name: str | None, entry: str) -> Any:
    """What to call: the function, or the method of a new object."""
    owner = found() if class_name and isinstance(found, StandIn) else found
    method = getattr(owner, entry) if class_name and isinstance(owner, StandIn) else owner
    if not callable(method):
        raise Wrong(f"{class_name or entry} of the program cannot be called")
    return method


def _attribute(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise Wrong(f"the program has no {name}")
    return found[name]


KINDS: dict[str, Callable[[Mapping[str, Any], Session], Iterator[Any]]] = {
    "asserts": asserts,
    "check": check,
    "function": function,
}


def warm(tests: Mapping[str, Any]) -> None:
    """Prepare once what every program is tested by. What is wrong with the tests is told when they are run."""
    with contextlib.suppress(SyntaxError, LookupError, TypeError, ValueError, ImportError):
        if tests["type"] == "asserts":
            prepare(_read(tests))
        for source in (tests.get("setup"), *tests.get("asserts", ()), tests.get("prompt"), f"{tests.get('test')}\n"):
            compiled(source or "")


def main() -> None:
    """Serve jobs until the owner hangs up: a file descriptor with the job's channel, then the pickled job."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what tests print is for nobody)
    sys.setrecursionlimit(RECURSION)
    warnings.simplefilter("ignore")
    forward_dataclasses()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    _serve(control)


def _serve(control: socket.socket) -> None:
    """One job after the other, each problem's in a process of its own: a test may change what is global, and what a
    program answers may crash it."""
    prepared, child = b"", None
    while True:
        mark, fds = wire.receive_packet(control)
        if not mark:
            if child is not None:
                child.close()
            return
        tests, run = pickle.loads(wire.receive_bytes(control))
        if child is None or tests != prepared:
            if child is not None:
                child.close()
            prepared, child = tests, Child(pickle.loads(tests), control)
        outcome = child.judge(run, fds[0])
        os.close(fds[0])
        if outcome is None:
            child.close()
            child, outcome = None, json.dumps(vars(Outcome([], "wrong", "what it answered made the tests crash")))
        wire.send(control, outcome)


class Child:
    """A forked process that has the tests of one problem prepared."""

    def __init__(self, tests: Mapping[str, Any], owner: socket.socket) -> None:
        warm(tests)
        self.control, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_thread(signal.SIGKILL)
            self.control.close()
            owner.close()  # or the owner would not hear of our parent's end
            _answer(tests, theirs)
        theirs.close()

    def judge(self, run: tuple[Sequence[str], bool], channel: int) -> str | None:
        """The outcome as JSON; None where it ended instead."""
        try:
            wire.send_packet(self.control, b"j", (channel,))
            wire.send_bytes(self.control, pickle.dumps(run))
            return wire.receive(self.control)
        except OSError:
            return None

    def close(self) -> None:
        self.control.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _answer(tests: Mapping[str, Any], control: socket.socket) -> NoReturn:
    try:
        while fds := wire.receive_packet(control)[1]:
            sources, all_or_nothing = pickle.loads(wire.receive_bytes(control))
            with socket.socket(fileno=fds[0]) as channel:
                began = time.process_time()
                outcome = run_job(Job(tests, sources, all_or_nothing), channel)
                outcome.busy_s = time.process_time() - began
            wire.send(control, json.dumps(vars(outcome)))
    finally:
        os._exit(1)


def packed(job: Job) -> bytes:
    """What `main` reads: the tests by themselves, so that the same ones are known again."""
    return pickle.dumps((pickle.dumps(dict(job.tests)), (list(job.sources), job.all_or_nothing)))
