"""HumanEval and MBPP through the code verifier: their own solutions are accepted, and what is changed in them is judged
as plain execution judges it.

Needs the data in ../shared. Left out: programs that mean harm (test_code_programs.py).
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_math.sandbox import isolation
from grpo_math.sandbox.client import SandboxError
from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.tasks import humaneval, mbpp
from grpo_math.types import Problem, RunAlone, Verdict
from grpo_math.verifiers import code

pytestmark = pytest.mark.slow
THREADS = 2


@pytest.fixture(scope="module")
def limits() -> Limits:
    try:
        level = isolation.report(LEVELS[0]).level
    except SandboxError as error:
        pytest.skip(f"no program can be run here: {error}")
    return Limits(require=level, at_most=level)


@pytest.fixture(scope="module")
def functions(shared: Path) -> list[Problem]:
    return humaneval.load("test", str(shared / "data" / "humaneval.jsonl"))


@pytest.fixture(scope="module")
def programs(shared: Path) -> list[Problem]:
    path = str(shared / "data" / "mbpp.jsonl")
    return [problem for split in mbpp.SPLITS for problem in mbpp.load(split, path)]


def block(source: str) -> str:
    return f"```python\n{source}\n```"


def verdicts(pairs: Sequence[tuple[Problem, str]], limits: Limits) -> dict[str, Verdict]:
    """By the problem's id. In threads, each with a sandbox of its own; those that want it are asked again alone."""
    code._cache.clear()
    waiting, alone, found = iter(pairs), [], {}

    def work() -> None:
        try:
            for problem, completion in waiting:
                try:
                    found[problem.id] = code.verify(problem, completion, sandbox=limits)
                except RunAlone:
                    alone.append((problem, completion))
        finally:
            code.shut_down()

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work) for _ in range(THREADS)]:
            done.result()
    for problem, completion in alone:
        try:
            found[problem.id] = code.verify(problem, completion, sandbox=limits)
        except RunAlone as late:
            found[problem.id] = late.verdict
    code.shut_down()
    return found


def not_correct(found: dict[str, Verdict]) -> dict[str, str]:
    return {id: f"{v.reason}: {v.detail}" for id, v in found.items() if (v.reward, v.reason) != (1.0, "correct")}


def test_all_of_humaneval_is_accepted(functions: list[Problem], limits: Limits) -> None:
    found = verdicts([(problem, humaneval.gold_completion(problem)) for problem in functions], limits)
    assert len(found) == 164
    assert not_correct(found) == {}


def test_all_of_humaneval_is_accepted_as_the_rest_of_the_prompt(functions: list[Problem], limits: Limits) -> None:
    found = verdicts([(problem, problem.answer) for problem in functions[::4]], limits)
    assert not_correct(found) == {}


def test_all_of_mbpp_is_accepted(programs: list[Problem], limits: Limits) -> None:
    assert {p.id for p in programs if "epilogue" in p.metadata["tests"]} == {"mbpp/367", "mbpp/927"}
    found = verdicts([(problem, mbpp.gold_completion(problem)) for problem in programs], limits)
    assert len(found) == 974
    assert not_correct(found) == {}


@pytest.mark.parametrize(("body", "reasons"), [("return None", {"wrong"}), ("raise ValueError", {"crashed"})])
def test_a_function_without_its_body_is_refused(
    body: str, reasons: set[str], functions: list[Problem], limits: Limits
) -> None:
    found = verdicts([(p, block(f"{p.metadata['prompt']}    {body}\n")) for p in functions], limits)
    assert {(v.reward, v.reason) for v in found.values()} == {(0.0, reason) for reason in reasons}


# ---- one operator changed

CHANGED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

# Mutants that pass all tests of their problem, with plain execution as in the sandbox. Which of the two lists one
# belongs to was found by calling both programs with thousands of arguments at random.
EQUIVALENT = {
    "HumanEval/18",  # range(len + len + 1): slices behind the end are shorter than the substring
    "HumanEval/50",  # the change is in the prompt's helper, of which the tests have the original
    "HumanEval/129",  # val = n * n + 1 is overwritten, since some cell is 1
    "mbpp/134",  # the sum's sign does not change whether it is even
    "mbpp/188",  # range(2, n - 1): n - 1 and n are no factors of a product of two squares
    "mbpp/303",  # -maxsize + 1 is still below every element
    "mbpp/318",  # the range is longer by sides of which none is above 0
    "mbpp/348",  # C(2n, n) is its own mirror image
    "mbpp/395",  # a count that falls from 1 is never 1 again either
    "mbpp/428",  # the gap starts at twice the length, and is halved all the same
    "mbpp/486",  # C(n, r) = C(n, n - r)
    "mbpp/511",  # i + i <= num: what is left behind the root is a prime
    "mbpp/520",  # Euclid's algorithm swaps the two by itself
    "mbpp/683",  # more candidates, none of which fits
    "mbpp/698",  # another order of keys, which == of dicts does not see
    "mbpp/702",  # start = i - 1: that an element is near itself removes none
    "mbpp/714",  # i + i <= m: what is left behind the root is a prime
    "mbpp/836",  # -maxsize + 1 is still below every sum
    "mbpp/876",  # counts up from the smaller of the two: longer, to the same end
    "mbpp/899",  # arr[i] - arr[i] is never below 0, so that g is never 1
    "mbpp/916",  # range(0, n + 2): the loops inside are empty there
    "mbpp/952",  # C(n, r) = C(n, n - r)
}
UNTESTED = {
    "HumanEval/40",  # range(i - 1): no test has an element that, taken twice, makes a sum of zero
    "mbpp/20",  # n // 2 == 0: only 1 differs
    "mbpp/39",  # "+ 2 > len" for "* 2 > len": no test has a letter too many
    "mbpp/72",  # n // 4 != 2 agrees at 5, 10 and 15
    "mbpp/76",  # the swap where m <= n: the tests have m > n, or equal sides
    "mbpp/160",  # i + a <= n agrees on three small cases
    "mbpp/164",  # i + i <= n adds divisors twice, of both numbers or of neither
    "mbpp/177",  # 2 + L <= R agrees on all three
    "mbpp/189",  # the list always has a 1, and something else
    "mbpp/195",  # high = n + 1: what is looked for is always there
    "mbpp/223",  # n + 1: no test asks for what is not there
    "mbpp/227",  # no test has the first number as the smallest
    "mbpp/311",  # n & n - 1: no test has a power of two
    "mbpp/347",  # the swap where m <= n agrees on these three
    "mbpp/355",  # 2 + r and 2 * r count alike for the radius 0 to 2
    "mbpp/438",  # range(idx - 1): the pairs that it adds do not match
    "mbpp/509",  # only odd numbers above 1 are asked for
    "mbpp/543",  # the sum and the difference have as many digits
    "mbpp/575",  # the loop breaks before the end of its range
    "mbpp/602",  # no letter comes twice in a row
    "mbpp/658",  # the most frequent one is also what a wrong choice ends with
    "mbpp/661",  # sum[0] is part of none of these maxima
    "mbpp/733",  # high = len + 1: what is looked for is always there
    "mbpp/751",  # 2 + i + 2 agrees for heaps of six
    "mbpp/793",  # high = n + 1: what is looked for is always there
    "mbpp/799",  # n >> 32 + d and n >> 32 - d are both 0 for small n
    "mbpp/803",  # i + i <= n: only 1 differs
    "mbpp/904",  # 13.5, 0 and -9 agree
    "mbpp/950",  # (year + 2000) % 12: none of these years is the Dragon's either way
    "mbpp/953",  # the loop breaks before its index is out of range
    "mbpp/968",  # min(B + 1, N) is N in all three
}
# Mutants that take over five seconds, if they end at all.
ENDLESS = {"HumanEval/10", "HumanEval/75", "mbpp/179", "mbpp/485", "mbpp/547"}


def mutant(source: str) -> str | None:
    """The source with its first operator of those that can be changed changed; None where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MBPP has programs with "\d"
        tree = ast.parse(source)
    found = [(_place(node), node) for node in ast.walk(tree) if _operator(node) in CHANGED]
    if not found:
        return None
    node = min(found, key=lambda pair: pair[0])[1]
    new = CHANGED[_operator(node)]()
    if isinstance(node, ast.Compare):
        node.ops[0] = new  # type: ignore[call-overload]
    else:
        node.op = new  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _operator(node: ast.AST) -> type[ast.AST]:
    return type(node.ops[0] if isinstance(node, ast.Compare) else getattr(node, "op", None))  # type: ignore[arg-type]


def _place(node: ast.AST) -> tuple[int, int]:
    """Where the operator stands: behind its left side."""
    match node:
        case ast.BoolOp(values=[left, *_]) | ast.AugAssign(target=left):
            pass
        case ast.BinOp(left=left) | ast.Compare(left=left):
            pass
        case _:
            return node.lineno, node.col_offset  # type: ignore[attr-defined]
    return left.end_lineno or 0, left.end_col_offset or 0


# Reads jobs, runs each in a forked process of its own, and prints 0 for what passes, null for what is late. A job: the
# program; then what the tests see beside it (an entry point), or nothing, for what they see within it; then the tests.
PLAIN = """
import json, os, random, resource, signal, sys
results = []
for program, helpers, entry_point, tests in json.load(sys.stdin):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (5, 6))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        signal.alarm(20)
        null = os.open(os.devnull, os.O_RDWR)
        for place in (0, 1, 2):
            os.dup2(null, place)
        random.seed(0)
        names = {"__name__": "solution"}
        try:
            exec(program, names)
            if entry_point:
                found = names[entry_point]
                names = {"__name__": "tests"}
                exec(helpers, names)
                names[entry_point] = found
            for test in tests:
                exec(test, names)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    results.append(None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status))
print(json.dumps(results))
"""

Plain = tuple[str, str, str, list[str]]


def plainly(problems: Sequence[tuple[Problem, str]]) -> dict[str, bool | None]:
    """Whether each program passes its tests where both are simply executed; None for what takes over five seconds."""
    pairs = [pair for pair in problems if pair[0].id not in ENDLESS]
    jobs = [_job(problem, program) for problem, program in pairs]
    halves = [jobs[i::THREADS] for i in range(THREADS)]

    def run(half: list[Plain]) -> list[int | None]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PLAIN],
            input=json.dumps(half),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found: list[int | None] = json.loads(done.stdout)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(run, halves))
    said = {pair[0].id: results[i % THREADS][i // THREADS] for i, pair in enumerate(pairs)}
    return {id: None if result is None else result == 0 for id, result in said.items()}


def _job(problem: Problem, program: str) -> Plain:
    tests = problem.metadata["tests"]
    if tests["type"] == "check":
        entry = tests["entry_point"]
        return program, tests["prompt"], entry, [tests["test"], f"check({entry})"]
    return program, "", "", [tests.get("epilogue", ""), *tests["asserts"]]


def _solution(problem: Problem) -> str:
    return f"{problem.metadata.get('prompt', '')}{problem.answer}"


@pytest.fixture(scope="module")
def mutants(functions: list[Problem], programs: list[Problem]) -> list[tuple[Problem, str]]:
    changed = [(problem, mutant(_solution(problem))) for problem in [*functions, *programs]]
    return [(problem, program) for problem, program in changed if program is not None]


def test_which_operator_is_changed() -> None:
    assert mutant("def f(x):\n    return -x if x >= 0 and x < 5 or x else x + 1") == (
        "def f(x):\n    return -x if x < 0 and x < 5 or x else x + 1"
    )
    assert mutant("y = (a and b) % 2\ny += 1") == "y = (a or b) % 2\ny += 1"
    assert mutant("y += 1") == "y -= 1"
    assert mutant("y = x ** 2, not x, x in y") is None


def test_every_mutant_is_judged_as_plain_execution_judges_it(
    mutants: list[tuple[Problem, str]], limits: Limits
) -> None:
    assert Counter(problem.task for problem, _ in mutants) == {"humaneval": 142, "mbpp": 691}
    plain = plainly(mutants)
    found = verdicts([(problem, block(program)) for problem, program in mutants if problem.id not in ENDLESS], limits)
    assert {v.reward for v in found.values()} == {0.0, 1.0}
    different = {id: (plain[id], v) for id, v in found.items() if plain[id] not in (None, v.reward == 1.0)}
    assert different == {}
    assert {id for id, v in found.items() if v.reward == 1.0} == EQUIVALENT | UNTESTED
    assert not EQUIVALENT & UNTESTED


def test_endless_mutants_are_late(mutants: list[tuple[Problem, str]], limits: Limits) -> None:
    endless = [(problem, block(program)) for problem, program in mutants if problem.id in ENDLESS]
    found = verdicts(endless, replace(limits, timeout_s=0.5))
    assert {id: (v.reward, v.reason) for id, v in found.items()} == dict.fromkeys(ENDLESS, (0.0, "timeout"))
