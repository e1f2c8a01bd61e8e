"""Run a program against its tests, and gather what came out. Leaves out rewards and where the program comes from."""

from __future__ import annotations

import ast
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from grpo_math.sandbox.client import Sandbox, SandboxError
from grpo_math.sandbox.isolation import open_sandbox
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.stdio import mismatch
from grpo_math.sandbox.tester import BLAME, NOT_RUN, PASSED, Job
from grpo_math.types import Reason
from grpo_math.verifiers._code.extract import parses
from grpo_math.verifiers._code.verdicts import died, judged, stopped, unlucky

_ERRORS_SHOWN = 200  # characters of the last line of standard error
_here = threading.local()


class Judged(NamedTuple):
    """results: of each test. reason and detail: of the first that failed. unlucky: the machine may be to blame."""

    results: Sequence[str]
    reason: Reason
    detail: str = ""
    unlucky: bool = False


def judge(program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool) -> Judged:
    """Once more where the sandbox breaks down: it has been replaced by then. Raises SandboxError."""
    try:
        return _judge(program, prompt, tests, limits, all_or_nothing)
    except SandboxError:
        return _judge(program, prompt, tests, limits, all_or_nothing)


def _judge(program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool) -> Judged:
    if tests["type"] == "stdio":
        return _scripts(with_helpers(program, str(tests.get("prompt") or "")), tests, limits, all_or_nothing)
    return _calls(program, prompt, tests, limits, all_or_nothing)


def with_helpers(program: str, helpers: str) -> str:
    """A script behind what is to run before it, its imports from __future__ first: Python wants them at the top."""
    if not helpers or not parses(helpers):
        return program
    row, column = _end_of_futures(program)
    lines = program.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # at those that ast counts, and no others
    line = lines[row - 1].encode("utf-8", "surrogatepass")  # of which ast counts the bytes
    head, rest = (part.decode("utf-8", "surrogatepass") for part in (line[:column], line[column:]))
    rest = rest.lstrip(" \t\f").removeprefix(";").lstrip(" \t\f") if head else rest
    return "\n".join([*lines[: row - 1], head, helpers, rest, *lines[row:]])


def _end_of_futures(program: str) -> tuple[int, int]:
    """Line, from 1, and column at which the last import from __future__ ends; (1, 0) where there is none."""
    if "__future__" not in program or not parses(program):  # one that does not parse fails either way
        return 1, 0
    imports = (node for node in ast.parse(program).body if isinstance(node, ast.ImportFrom))
    ends = [(node.end_lineno, node.end_col_offset) for node in imports if node.module == "__future__"]
    return cast(tuple[int, int], ends[-1]) if ends else (1, 0)


def _calls(program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool) -> Judged:
    """Load the program as a module, and let the tests call it."""
    # a prompt that ends in the head of a function has to have a docstring to be a source of its own
    before = [prompt] if prompt and not program.startswith(prompt.rstrip()) and parses(prompt) else []
    sources = [*before, program, *([tests["epilogue"]] if tests.get("epilogue") else [])]
    own = {**tests, "prompt": prompt if parses(prompt) else ""} if tests["type"] == "check" else tests
    run = sandbox_of(limits).judge(Job(own, sources, all_or_nothing), limits)
    results, reason, detail = judged(run, total(tests), limits)
    if run.outcome is not None and run.outcome.own_word and reason == "correct":
        detail = "low assurance: the tests compare the program's own objects, by the program's own word"
    return Judged(results, reason, detail, unlucky(run))


def _scripts(program: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool) -> Judged:
    """Run the program once for each case."""
    results = [NOT_RUN] * len(tests["cases"])
    first = Judged(results, "correct")
    for number, case in enumerate(tests["cases"]):
        failed = _case(program, case, tests, limits)
        results[number] = PASSED if failed is None else f"{failed.reason}: {failed.detail}"
        if failed is None:
            continue
        if first.reason == "correct":
            first = Judged(results, failed.reason, f"case {number + 1}: {failed.detail}", failed.unlucky)
        if all_or_nothing or failed.reason in ("timeout", "error"):  # the others would take as long
            break
    return first


def _case(program: str, case: Mapping[str, Any], tests: Mapping[str, Any], limits: Limits) -> Judged | None:
    """What is wrong with how the program deals with one input, or None."""
    run = sandbox_of(limits).script(program, case["input"].encode("utf-8", "surrogatepass"), limits)
    if (halt := stopped(run.end, limits)) is not None:
        return Judged((), *halt, unlucky(run))
    if max(len(run.output), len(run.errors)) >= limits.output_mb << 20:
        return Judged((), "output_limit", f"it wrote {limits.output_mb} MiB")
    if run.end.status != 0:
        last = run.errors.decode(errors="replace").strip().rpartition("\n")[2][:_ERRORS_SHOWN]
        reason, detail = died(run.end)
        named = next((r for kind, r in BLAME.items() if last.startswith(kind.__name__)), reason)
        return Judged((), named, f"{detail} ({last})" if last else detail, unlucky(run))
    if tests.get("checker"):
        return _checked(tests["checker"], case, run.output, limits)
    said = mismatch(run.output, case["output"], tests.get("tolerance"), tests.get("case_sensitive", True))
    return None if said is None else Judged((), "wrong", said)


def _checked(checker: str, case: Mapping[str, Any], output: bytes, limits: Limits) -> Judged | None:
    """Ask the checker, which is the data set's code and runs in the sandbox like any other, after the program. One that
    fails over an output has not accepted it; one that fails over the expected output too is of no use."""
    try:
        text = output.decode()
    except UnicodeDecodeError as error:
        return Judged((), "wrong", f"the output is no UTF-8 (byte {error.start})")
    said, detail = _says(checker, case, text, limits)
    if said == "correct":
        return None
    if said != "wrong" and "output" in case and _says(checker, case, case["output"], limits)[0] != "correct":
        return Judged((), "error", f"the checker does not accept the expected output either: {said}: {detail}")
    return Judged((), "wrong", f"the checker says no ({detail or said})")


def _says(checker: str, case: Mapping[str, Any], output: str, limits: Limits) -> tuple[Reason, str]:
    given = {"args": [case["input"], output, case.get("output", "")], "expected": True}
    tests = {"type": "function", "entry_point": "check", "cases": [given]}
    _, reason, detail = judged(sandbox_of(limits).judge(Job(tests, [checker], True), limits), 1, limits)
    return reason, detail


def total(tests: Mapping[str, Any]) -> int:
    """How many tests there are; a check counts as one."""
    return len(tests.get("asserts") or tests.get("cases") or "1")


def sandbox_of(limits: Limits) -> Sandbox:
    """This thread's, of the best level that works here. Raises SandboxError where that is below limits.require."""
    opened: dict[tuple[str, str], Sandbox] = _here.__dict__.setdefault("opened", {})
    levels = (limits.require, limits.at_most)
    if levels not in opened:
        opened[levels] = open_sandbox(*levels)[0]
    return opened[levels]


def close_all() -> None:
    """End this thread's sandboxes."""
    for sandbox in _here.__dict__.pop("opened", {}).values():
        sandbox.close()
