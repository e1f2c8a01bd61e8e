"""Run the tests of one problem against one program, on the trusted side: what decides is here, never in the sandbox.

A process of its own (main), because what a program answers can make an honest test hang or fill memory: its owner kills
it at a deadline and starts another. Leaves out programs that read standard input (stdio.py), and rewards.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import math
import os
import pickle
import random
import resource
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from grpo_math.lifeline import die_with_parent
from grpo_math.sandbox import wire
from grpo_math.sandbox.remote import Gone, Session, StandIn, TestsError, forward_dataclasses, kind_of, type_of

PASSED, NOT_RUN = "passed", "not run"
MEMORY_BYTES = 2 << 30
RECURSION = 10_000
MAX_SHOWN = 200  # characters of a value or a statement in a message

# Oracles by name: a test that uses one without importing it means this one, whatever the program calls so.
ORACLES = {
    "isclose": "math",
    "approx": "pytest",
    "allclose": "numpy",
    "array_equal": "numpy",
    "assert_allclose": "numpy.testing",
}
# Where what a program has imported may be taken from on this side: functions of these act on nothing but values.
# fmt: off
PURE = frozenset(
    {
        "math", "cmath", "collections", "itertools", "functools", "operator", "fractions", "decimal", "statistics",
        "string", "datetime", "typing", "heapq", "bisect", "numbers", "enum", "abc", "re",
        "random",
    }
)
# fmt: on
ALIASES = {"np": "numpy"}


class Job(NamedTuple):
    """The tests of a problem, and the sources of the program in the order in which they run."""

    tests: Mapping[str, Any]
    sources: Sequence[str]
    all_or_nothing: bool


@dataclass
class Outcome:
    """results: per test PASSED, NOT_RUN or what was wrong. reason: types.Reason of the first that failed."""

    results: list[str]
    reason: str = "correct"
    detail: str = ""
    own_word: bool = False


Step = tuple[str, Callable[[], None]]  # what it is, for people; raises where the program fails it


class Wrong(Exception):
    """A value that is not the expected one."""


def run_job(job: Job, channel: socket.socket) -> Outcome:
    """Never raises for what the program does. A fault of the tests is the reason `error`."""
    session = Session(channel)
    try:
        steps = KINDS[job.tests["type"]](job.tests, session)
        count = next(steps)
    except (TestsError, SyntaxError, LookupError, TypeError, ValueError, ImportError) as error:
        return Outcome([], "error", f"the tests are of no use: {type(error).__name__}: {error}")
    outcome = Outcome([NOT_RUN] * count)
    if count == 0:
        return Outcome([], "error", "there are no tests")
    try:
        session.load(job.sources)
    except BaseException as error:
        outcome.reason, outcome.detail = _why(error, session, "it does not load: ")
        return outcome
    random.seed(0)
    for number, (label, step) in enumerate(_guarded(steps, session, outcome)):
        _run(number, label, step, session, outcome)
        if session.gone is not None or (job.all_or_nothing and outcome.reason != "correct"):
            break
    outcome.own_word = session.own_word
    if outcome.reason == "correct" and any(result != PASSED for result in outcome.results):
        outcome.reason, outcome.detail = "error", "not every test was run"
    return outcome


def _guarded(steps: Iterator[Any], session: Session, outcome: Outcome) -> Iterator[Step]:
    """The steps, up to where preparing the next one fails."""
    try:
        yield from steps
    except GeneratorExit:  # enough was seen
        raise
    except BaseException as error:
        outcome.reason, outcome.detail = _why(error, session, "before the tests: ")


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
    said = f"{where}{type(error).__name__}: {shown(str(error))}".rstrip(": ")
    if error is not session.raised:
        if isinstance(error, ImportError):
            return "error", said
        return ("memory" if isinstance(error, MemoryError) else "wrong"), "" if type(error) is AssertionError else said
    return _BLAME.get(type(error), "crashed"), said


_BLAME: dict[type[BaseException], str] = {MemoryError: "memory", PermissionError: "forbidden"}


def shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


# Kinds of tests. Each yields first how many there are, then, once the program is loaded, one Step after the other.


def asserts(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """Statements that share a namespace with the set-up, and see the program's globals as stand-ins."""
    setup, statements = tests.get("setup") or "", tests["asserts"]
    codes = [compiled(source) for source in (setup, *statements)]
    yield len(statements)
    sources = (setup, *statements)
    namespace = _namespace(names_used(sources), session, tests.get("entry_point") or implied_entry(sources))
    exec(codes[0], namespace)
    for source, code in zip(statements, codes[1:], strict=True):
        yield shown(source), lambda code=code: exec(code, namespace)


def check(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """HumanEval's: check(candidate). The prompt's helpers are ours, so that the program cannot redefine an oracle."""
    prompt, source, entry = tests.get("prompt") or "", tests["test"], tests["entry_point"]
    codes = compiled(prompt), compiled(f"{source}\n")
    yield 1
    candidate = _attribute(session.names([entry]), entry)
    session.class_named = kind_of(candidate) == "class"
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(codes[0], namespace)
    namespace[entry] = candidate
    exec(codes[1], namespace)
    yield "check(candidate)", lambda: namespace["check"](candidate)


def function(tests: Mapping[str, Any], session: Session) -> Iterator[Any]:
    """Calls with plain arguments, whose plain results are compared here."""
    entry, class_name, tolerance = tests["entry_point"], tests.get("class_name"), tests.get("tolerance")
    cases = [(pickle.dumps((c.get("args", ()), c.get("kwargs", {}))), c["expected"]) for c in tests["cases"]]
    yield len(cases)
    top = class_name or entry
    found = _attribute(session.names([top]), top)
    for number, (arguments, expected) in enumerate(cases, 1):
        args, kwargs = pickle.loads(arguments)  # fresh ones: the program may change them
        yield (
            f"case {number}",
            lambda args=args, kwargs=kwargs, expected=expected: compare(
                (getattr(found(), entry) if class_name else found)(*args, **kwargs), expected, tolerance
            ),
        )


KINDS: dict[str, Callable[[Mapping[str, Any], Session], Iterator[Any]]] = {
    "asserts": asserts,
    "check": check,
    "function": function,
}


def compare(value: Any, expected: Any, tolerance: float | None) -> None:
    """Raises Wrong unless the value is the expected one; see `equal`."""
    if not equal(value, expected, tolerance):
        what = "an object of its own" if isinstance(value, StandIn) else shown(value)
        raise Wrong(f"got {what}, not {shown(expected)}")


def equal(value: Any, expected: Any, tolerance: float | None) -> bool:
    """As Python's ==, but that nan is nan, and that numbers may differ by the tolerance, relative or absolute, within
    containers too. A stand-in equals nothing."""
    if isinstance(value, StandIn):
        return False
    if isinstance(value, float | int) and isinstance(expected, float | int):
        if isinstance(value, float) and isinstance(expected, float) and math.isnan(value) and math.isnan(expected):
            return True
        loose = tolerance is not None and not isinstance(value, bool) and not isinstance(expected, bool)
        return value == expected or (loose and _close(value, expected, tolerance or 0.0))
    for kind in (list, tuple):
        if isinstance(value, kind) and isinstance(expected, kind):
            return len(value) == len(expected) and all(
                equal(a, b, tolerance) for a, b in zip(value, expected, strict=True)
            )
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(equal(value[k], expected[k], tolerance) for k in expected)
    return bool(value == expected)


def _close(a: float, b: float, tolerance: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond every float
        return False


@lru_cache(1024)
def compiled(source: str) -> CodeType:
    return compile(source, "tests.py", "exec", dont_inherit=True)


@lru_cache(1024)
def names_used(sources: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    """The global names that the tests read, each with whether it is only ever the X of X.y."""
    bare: dict[str, bool] = {}
    for source in sources:
        tree = ast.parse(source)
        of = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                bare[node.id] = bare.get(node.id, True) and id(node) in of
    return tuple(bare.items())


@lru_cache(1024)
def implied_entry(sources: tuple[str, ...]) -> str | None:
    """A built-in name is the program's own where the tests call nothing else: `assert sum(10, 15) == 6` has to mean a
    function called sum."""
    if any(not hasattr(builtins, name) for name, _ in names_used(sources)):
        return None
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return next((call.func.id for call in calls if isinstance(call.func, ast.Name)), None)


def _namespace(used: Sequence[tuple[str, bool]], session: Session, entry: str | None) -> dict[str, Any]:
    """What the tests see: built-ins as they are, modules and oracles of ours, and the program's other names."""
    wanted = {name: prefix for name, prefix in used if name == entry or not hasattr(builtins, name)}
    found = session.names(list(wanted))
    namespace = Namespace(session, {name: value for name, value in found.items() if kind_of(value)}, set(found))
    for name, prefix in wanted.items():
        if (ours := _ours(name, prefix, found.get(name), entry)) is not None:
            namespace[name] = ours
    if any(name == "type" for name, _ in used):
        namespace["type"] = Type
    return namespace


class Namespace(dict[str, Any]):
    """The globals of the tests. Names that the tests do not bind are the program's: looked up anew each time where they
    are plain values, which may have become others."""

    def __init__(self, session: Session, stand_ins: Mapping[str, Any], names: set[str]) -> None:
        super().__init__({"__name__": "tests"})
        self.session, self.stand_ins, self.names = session, stand_ins, names

    def __missing__(self, name: str) -> Any:
        if name in self.stand_ins:
            return self.stand_ins[name]
        if name not in self.names:
            raise KeyError(name)
        return self.session.names([name], keep=True)[name]


class _OfType(type):
    """So that `type(x) is Money` and `isinstance(x, type)` work with the program's classes too."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return type(*args, **kwargs) if len(args) != 1 else type_of(args[0])

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, type) or kind_of(value) == "class"

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is type

    __hash__ = type.__hash__


class Type(type, metaclass=_OfType):
    """What the tests call `type`."""


def _ours(name: str, prefix: bool, theirs: Any, entry: str | None) -> Any:
    """The real thing where a name means something that the program can only have imported, or faked."""
    module = ALIASES.get(name, name)
    if (
        prefix
        and (module in sys.stdlib_module_names or name in ALIASES)
        and kind_of(theirs) in ("", f"module {module}")
    ):
        return importlib.import_module(module)
    if name in ORACLES and name != entry:
        return getattr(importlib.import_module(ORACLES[name]), name)
    kind, _, what = kind_of(theirs).partition(" ")
    source, _, attribute = what.partition(" ")
    if kind == "from" and source in PURE and name != entry:
        return getattr(importlib.import_module(source), attribute, None)
    return None


def _attribute(found: Mapping[str, Any], name: str) -> Any:
    if name not in found:
        raise Wrong(f"the program has no {name}")
    return found[name]


def main() -> None:
    """Serve jobs until the owner hangs up: a file descriptor with the job's channel, then the pickled job."""
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what tests print is for nobody)
    sys.setrecursionlimit(RECURSION)
    warnings.simplefilter("ignore")
    forward_dataclasses()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while True:
        mark, fds = wire.receive_packet(control)
        if not mark:
            return
        job = Job(*pickle.loads(wire.receive_bytes(control)))
        with socket.socket(fileno=fds[0]) as channel:
            outcome = run_job(job, channel)
        wire.send(control, json.dumps(vars(outcome)))
