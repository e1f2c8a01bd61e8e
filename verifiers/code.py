"""Does the program in a completion pass the problem's tests? Judged from outside; the program runs in a sandbox.

The tests, what they expect, the comparison and the clock are in trusted processes. The program answers calls with plain
data, or reads standard input and writes standard output; nothing else of what it does counts (docs/code_verifier.md).
`metadata["tests"]` has the tests, a mapping with `type`:

    asserts    `asserts`, a list of statements; `setup`, run before them; `epilogue`, run after the program, beside it
    check      `test`, source that defines check(candidate); `entry_point`; `prompt`, source of helpers
    function   `entry_point`, in `class_name` if given; `cases` of `args`, `kwargs`, `expected`; `tolerance`
    stdio      `cases` of `input`, `output`; `tolerance`; `case_sensitive`; or `checker`, source that defines
               check(input, output, expected) -> bool

Beside them `prompt`, the head of a function that a completion may go on with, or what runs before a script (behind its
imports from __future__), and `limits` (timeout_s, memory_mb).
Leaves out other languages than Python.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from grpo_math.sandbox.client import GRACE_S, START_S, SandboxError, wall_limit
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.tester import NOT_RUN
from grpo_math.types import Problem, RunAlone, UserError, Verdict
from grpo_math.verifiers._code.extract import program_of
from grpo_math.verifiers._code.judge import close_all, judge, sandbox_of, total
from grpo_math.verifiers._code.problems import complaint, limits_of, wanted_names
from grpo_math.verifiers._code.verdicts import REWARDS, verdict_of

CACHED = 1 << 12  # verdicts that a worker remembers
_cache: OrderedDict[bytes, Verdict] = OrderedDict()


def verify(problem: Problem, completion: str, *, reward: str = "all", sandbox: Limits | None = None) -> Verdict:
    """Run the completion's program against `metadata["tests"]`.

    reward: `all` (1 if every test passes), `share` (of the tests), `bonus` (half for the share, half for all). What is
    wrong, too slow, too large or up to something has the reward 0 or its share. A reward of None is our fault: tests
    that are of no use, or a machine that cannot run programs. metadata["limits"] may change timeout_s and memory_mb.

    Raises RunAlone where a program did not get to use its time, UserError for limits that there are not."""
    tests = problem.metadata.get("tests")
    pickled = pickle.dumps(tests)
    if (said := _complaint(pickled)) is not None:
        return Verdict(None, "error", f"tests of {problem.id}: {said}")
    assert isinstance(tests, Mapping)
    limits = limits_of(problem, sandbox)
    prompt = _prompt(problem, tests)
    program, where = (completion, "") if _is_program(problem) else program_of(completion, prompt, wanted_names(tests))
    if program is None or not program.strip():
        return Verdict(0.0, "no_answer", where or "the program is empty", tests=(NOT_RUN,) * total(tests))
    digest = hashlib.sha256(program.encode("utf-8", "surrogatepass")).hexdigest()
    key = hashlib.sha256(pickle.dumps((program, pickled, prompt, limits, reward))).digest()
    if (known := _cache.get(key)) is not None:
        _cache.move_to_end(key)
        return known
    try:
        found = judge(program, prompt, tests, limits, reward == "all")
    except SandboxError as error:
        return Verdict(None, "error", str(error))
    verdict = replace(verdict_of(reward, found.results, found.reason, found.detail), answer=f"program {digest[:16]}")
    if found.unlucky:
        raise RunAlone(verdict)
    if verdict.reason not in ("timeout", "error"):
        _cache[key] = verdict
        if len(_cache) > CACHED:
            _cache.popitem(last=False)
    return verdict


@lru_cache(256)
def _complaint(pickled: bytes) -> str | None:
    """`complaint`, once for all programs of a problem."""
    return complaint(pickle.loads(pickled))


def _is_program(problem: Problem) -> bool:
    return bool(problem.metadata.get("bare_program"))


def _prompt(problem: Problem, tests: Mapping[str, Any]) -> str:
    """The head of a function that the completion may go on with, and the helpers above it; a script has no head."""
    if tests.get("type") == "stdio":
        return ""
    return str(problem.metadata.get("prompt") or tests.get("prompt") or "")


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
    runs = len(tests.get("cases") or ()) * (3 if tests.get("checker") else 1) if tests.get("type") == "stdio" else 1
    return START_S + max(1, runs) * (wall_limit(limits_of(problem, sandbox)) + 3 * GRACE_S)


def warm_up(sandbox: Limits | None = None) -> None:
    """Start the sandbox, so that the first program need not wait for it. Raises UserError where there can be none."""
    try:
        sandbox_of(sandbox or Limits()).warm_up()
    except SandboxError as error:
        raise UserError(str(error)) from error


def shut_down() -> None:
    """End this thread's sandboxes."""
    close_all()


def explain(
    problem: Problem, completion: str, *, reward: str = "all", sandbox: Limits | None = None
) -> list[tuple[str, str]]:
    """Where the program was found, and how each test went, for a person to see."""
    tests = problem.metadata.get("tests")
    if (said := complaint(tests)) is not None:
        return [("tests", f"{said}; problems of a task or of --pairs have them")]
    assert isinstance(tests, Mapping)
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
    return Problem(str(row.get("id")), "pairs", "", "", {**metadata, "bare_program": given[0] == "program"}), row[
        given[0]
    ]


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
