"""Does the program in a completion pass the problem's tests? Judged from outside; the program runs in a sandbox.

The tests, what they expect, the comparison and the clock are in trusted processes. The program answers calls with plain
data, or reads standard input and writes standard output; nothing else of what it does counts (docs/code_verifier.md).
`metadata["tests"]` has the tests, a mapping with `type`:

    asserts    `asserts`, a list of statements; `setup`, run before them; `epilogue`, run after the program, beside it
    check      `test`, source that defines check(candidate); `entry_point`; `prompt`, source of helpers
    function   `entry_point`, in `class_name` if given; `cases` of `args`, `kwargs`, `expected`; `tolerance`
    stdio      `cases` of `input`, `output`; `tolerance`; `case_sensitive`; or `checker`, source that defines
               check(input, output, expected) -> bool

Leaves out other languages than Python.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from grpo_math.sandbox.client import GRACE_S, START_S, Sandbox, SandboxError, wall_limit
from grpo_math.sandbox.isolation import open_sandbox
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.stdio import mismatch
from grpo_math.sandbox.tester import NOT_RUN, PASSED, Job
from grpo_math.types import Problem, Reason, RunAlone, UserError, Verdict
from grpo_math.verifiers._code.extract import parses, program_of
from grpo_math.verifiers._code.problems import complaint, limits_of, wanted_names
from grpo_math.verifiers._code.verdicts import REWARDS, died, judged, stopped, unlucky, verdict_of

CACHED = 1 << 14
_ERRORS_SHOWN = 200
_here = threading.local()
_cache: OrderedDict[bytes, Verdict] = OrderedDict()


def verify(problem: Problem, completion: str, *, reward: str = "all", sandbox: Limits | None = None) -> Verdict:
    """Run the completion's program against `metadata["tests"]`.

    reward: `all` (1 if every test passes), `share` (of the tests), `bonus` (half for the share, half for all). What is
    wrong, too slow, too large or up to something has the reward 0 or its share. A reward of None is our fault: tests
    that are of no use, or a machine that cannot run programs. metadata["limits"] may change timeout_s and memory_mb.

    Raises RunAlone where a program did not get to use its time, UserError for limits that there are not."""
    tests = problem.metadata.get("tests")
    if (said := complaint(tests)) is not None:
        return Verdict(None, "error", f"tests of {problem.id}: {said}")
    assert isinstance(tests, Mapping)
    limits = limits_of(problem, sandbox)
    prompt = _prompt(problem, tests)
    program, where = (completion, "") if _is_program(problem) else program_of(completion, prompt, wanted_names(tests))
    if program is None or not program.strip():
        return Verdict(0.0, "no_answer", where or "the program is empty", tests=(NOT_RUN,) * _total(tests))
    digest = hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
    key = hashlib.sha256(pickle.dumps((program, dict(tests), prompt, limits, reward))).digest()
    if (known := _cache.get(key)) is not None:
        return known
    try:
        verdict = replace(_run(program, prompt, tests, limits, reward), answer=f"program {digest[:16]}")
    except SandboxError as error:
        return Verdict(None, "error", str(error))
    if verdict.reason not in ("timeout", "error"):
        _cache[key] = verdict
        if len(_cache) > CACHED:
            _cache.popitem(last=False)
    return verdict


def _is_program(problem: Problem) -> bool:
    return bool(problem.metadata.get("bare_program"))


def _prompt(problem: Problem, tests: Mapping[str, Any]) -> str:
    """The head of a function that the completion may go on with, and the helpers above it."""
    return str(problem.metadata.get("prompt") or tests.get("prompt") or "")


def _run(program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, mode: str) -> Verdict:
    """Once more where the sandbox broke down: it has been replaced by then."""
    try:
        return _judge(program, prompt, tests, limits, mode)
    except SandboxError:
        return _judge(program, prompt, tests, limits, mode)


def _judge(program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, mode: str) -> Verdict:
    results: list[str]
    reason: Reason
    if tests["type"] == "stdio":
        results, reason, detail = _scripts(program, tests, limits, mode == "all")
    else:
        results, reason, detail = _calls(program, prompt, tests, limits, mode == "all")
    if reason == "error":
        return Verdict(None, "error", detail, tests=tuple(results) or None)
    return verdict_of(mode, results, reason, detail)


def _calls(
    program: str, prompt: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool
) -> tuple[list[str], Reason, str]:
    """Load the program as a module, and let the tests call it."""
    # a prompt that ends in the head of a function has to have a docstring to be a source of its own
    before = [prompt] if prompt and not program.startswith(prompt.rstrip()) and parses(prompt) else []
    sources = [*before, program, *([tests["epilogue"]] if tests.get("epilogue") else [])]
    own = {**tests, "prompt": prompt if parses(prompt) else ""} if tests["type"] == "check" else tests
    run = _sandbox(limits).judge(Job(own, sources, all_or_nothing), limits)
    results, reason, detail = judged(run, _total(tests), limits)
    if unlucky(run.end):
        raise RunAlone(verdict_of("all", results, reason, detail))
    if run.outcome is not None and run.outcome.own_word and reason == "correct":
        detail = "low assurance: the tests compare the program's own objects, by the program's own word"
    return results, reason, detail


def _scripts(
    program: str, tests: Mapping[str, Any], limits: Limits, all_or_nothing: bool
) -> tuple[list[str], Reason, str]:
    """Run the program once for each case."""
    cases = tests["cases"]
    results: list[str] = [NOT_RUN] * len(cases)
    first: tuple[Reason, str] | None = None
    for number, case in enumerate(cases):
        failure = _case(program, case, tests, limits)
        if failure is None:
            results[number] = PASSED
            continue
        reason, detail = failure
        results[number] = f"{reason}: {detail}"
        first = first or (reason, f"case {number + 1}: {detail}")
        if all_or_nothing or reason in ("timeout", "error"):  # the others would take as long
            break
    return results, *(first or ("correct", ""))


def _case(program: str, case: Mapping[str, Any], tests: Mapping[str, Any], limits: Limits) -> tuple[Reason, str] | None:
    """What is wrong with how the program deals with one input, or None."""
    run = _sandbox(limits).script(program, case["input"].encode("utf-8", "surrogatepass"), limits)
    if (halt := stopped(run.end, limits)) is not None:
        if unlucky(run.end):
            raise RunAlone(Verdict(0.0, *halt, tests=(NOT_RUN,) * _total(tests)))
        return halt
    if unlucky(run.end):
        raise RunAlone(Verdict(0.0, *died(run.end), tests=(NOT_RUN,) * _total(tests)))
    if max(len(run.output), len(run.errors)) >= limits.output_mb << 20:
        return "output_limit", f"it wrote {limits.output_mb} MiB"
    if run.end.status != 0:
        last = run.errors.decode(errors="replace").strip().rpartition("\n")[2][:_ERRORS_SHOWN]
        reason, detail = died(run.end)
        named = next((r for name, r in _NAMED.items() if last.startswith(name)), reason)
        return named, f"{detail} ({last})" if last else detail
    if tests.get("checker"):
        return _checked(tests["checker"], case, run.output, limits)
    said = mismatch(run.output, case["output"], tests.get("tolerance"), tests.get("case_sensitive", True))
    return None if said is None else ("wrong", said)


_NAMED: dict[str, Reason] = {"MemoryError": "memory", "PermissionError": "forbidden"}


def _checked(checker: str, case: Mapping[str, Any], output: bytes, limits: Limits) -> tuple[Reason, str] | None:
    """Ask the checker, which is the data set's code and runs in the sandbox like any other, after the program. One that
    fails over an output has not accepted it; one that fails over the expected output too is of no use."""
    try:
        text = output.decode()
    except UnicodeDecodeError as error:
        return "wrong", f"the output is no UTF-8 (byte {error.start})"
    said, detail = _says(checker, case, text, limits)
    if said == "correct":
        return None
    if said != "wrong" and "output" in case and _says(checker, case, case["output"], limits)[0] != "correct":
        return "error", f"the checker does not accept the expected output either: {said}: {detail}"
    return "wrong", f"the checker says no ({detail or said})"


def _says(checker: str, case: Mapping[str, Any], output: str, limits: Limits) -> tuple[Reason, str]:
    given = {"args": [case["input"], output, case.get("output", "")], "expected": True}
    tests = {"type": "function", "entry_point": "check", "cases": [given]}
    _, reason, detail = judged(_sandbox(limits).judge(Job(tests, [checker], True), limits), 1, limits)
    return reason, detail


def _total(tests: Mapping[str, Any]) -> int:
    return len(tests.get("asserts") or tests.get("cases") or "1")


def _sandbox(limits: Limits) -> Sandbox:
    """This thread's, of the best level that works here. Raises SandboxError where that is below limits.require."""
    opened: dict[tuple[str, str], Sandbox] = _here.__dict__.setdefault("opened", {})
    levels = (limits.require, limits.at_most)
    if levels not in opened:
        opened[levels] = open_sandbox(*levels)[0]
    return opened[levels]


def check(problem: Problem) -> str | None:
    """Why the tests of this problem are of no use, or None."""
    try:
        limits_of(problem, None)
    except UserError as error:
        return str(error)
    return complaint(problem.metadata.get("tests"))


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError."""
    if (reward := options.get("reward", "all")) not in REWARDS:
        raise UserError(f"reward={reward!r}: the verifier code gives {', '.join(REWARDS)}")


def patience(problem: Problem, *, sandbox: Limits | None = None, **_: Any) -> float:
    """Seconds within which a verdict is there, or something is broken."""
    tests = problem.metadata.get("tests") or {}
    runs = len(tests.get("cases") or ()) * (2 if tests.get("checker") else 1) if tests.get("type") == "stdio" else 1
    return START_S + max(1, runs) * (wall_limit(limits_of(problem, sandbox)) + 3 * GRACE_S)


def warm_up(sandbox: Limits | None = None) -> None:
    """Start the sandbox, so that the first program need not wait for it. Raises UserError where there can be none."""
    try:
        _sandbox(sandbox or Limits()).warm_up()
    except SandboxError as error:
        raise UserError(str(error)) from error


def shut_down() -> None:
    """End this thread's sandboxes."""
    for sandbox in _here.__dict__.pop("opened", {}).values():
        sandbox.close()


def explain(
    problem: Problem, completion: str, *, reward: str = "all", sandbox: Limits | None = None
) -> list[tuple[str, str]]:
    """Where the program was found, and how each test went, for a person to see."""
    tests = problem.metadata.get("tests") or {}
    program, where = program_of(completion, _prompt(problem, tests), wanted_names(tests))
    rows = [("found", where)]
    if program is not None:
        rows += [("program" if i == 0 else "", line) for i, line in enumerate(program.strip("\n").split("\n"))]
        try:
            verdict = verify(problem, completion, reward="share", sandbox=sandbox)
        except RunAlone as late:
            verdict = late.verdict
        rows += [(f"test {i}", result) for i, result in enumerate(verdict.tests or (), 1)]
    return rows


def from_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """The problem and the text to judge of a line with `tests`, with `program` (source) or `completion` (a model's
    text), and optionally `limits` and `prompt`. Raises UserError."""
    given = [key for key in ("program", "completion") if key in row]
    if len(given) != 1:
        raise UserError("it needs either program or completion")
    if not isinstance(row[given[0]], str):
        raise UserError(f"{given[0]}={row[given[0]]!r}: give a string")
    metadata = {key: row[key] for key in ("tests", "limits", "prompt") if key in row}
    problem = Problem(str(row.get("id")), "pairs", "", "", {**metadata, "bare_program": given[0] == "program"})
    if (said := check(problem)) is not None:
        raise UserError(said)
    return problem, row[given[0]]


_ADD = {
    "type": "function",
    "entry_point": "add",
    "cases": [{"args": [2, 3], "expected": 5}, {"args": [0, 0], "expected": 0}],
}
_SUM = {"type": "stdio", "cases": [{"input": "2 3\n", "output": "5\n"}]}


def _example(tests: Mapping[str, Any], completion: str, reward: float, **metadata: Any) -> tuple[Problem, str, float]:
    return Problem("example", "example", "", "", {"tests": tests, **metadata}), completion, reward


EXAMPLES = [
    _example(_ADD, "```python\ndef add(a, b):\n    return a + b\n```", 1.0),
    _example(_ADD, "```python\ndef add(a, b):\n    return a - b\n```", 0.0),
    _example(_ADD, "    return a + b\n", 1.0, prompt="def add(a, b):\n"),
    _example(_ADD, "I cannot do that.", 0.0),
    _example(_ADD, "```python\nimport os\nos._exit(0)\n```", 0.0),
    _example(_SUM, "```python\nprint(sum(map(int, input().split())))\n```", 1.0),
    _example(_SUM, "```python\nprint(5, 'or so')\n```", 0.0),
]
