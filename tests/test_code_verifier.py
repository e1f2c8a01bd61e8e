"""The code verifier: which program it finds, what reward and reason it gives, and whose fault a missing reward is.

The programs run in the best sandbox that works here. Left out: attacks (test_code_programs.py), and what the sandbox
does with its processes (test_sandbox_life.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from grpo_math.sandbox import isolation
from grpo_math.sandbox.client import GRACE_S, START_S, Sandbox, SandboxError, wall_limit
from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.types import Problem, RunAlone, UserError
from grpo_math.verifiers import code
from grpo_math.verifiers._code.extract import program_of
from grpo_math.verifiers._code.verdicts import reward_of


@pytest.fixture(scope="module")
def limits() -> Iterator[Limits]:
    try:
        sandbox, found = isolation.open_sandbox(LEVELS[0])
    except SandboxError as error:
        pytest.skip(f"no program can be run here: {error}")
    sandbox.close()
    yield Limits(timeout_s=5.0, require=found.level, at_most=found.level)
    code.shut_down()


def problem(tests: object, **metadata: Any) -> Problem:
    return Problem("p", "t", "", "", {"tests": tests, **metadata})


def block(source: str, tag: str = "python") -> str:
    return f"```{tag}\n{source}\n```"


def function(*cases: tuple[list[Any], Any], **tests: Any) -> dict[str, Any]:
    given = [{"args": args, "expected": expected} for args, expected in cases]
    return {"type": "function", "entry_point": "f", "cases": given, **tests}


def stdio(*cases: tuple[str, str], **tests: Any) -> dict[str, Any]:
    return {"type": "stdio", "cases": [{"input": i, "output": o} for i, o in cases], **tests}


ADD = function(([2, 3], 5), ([0, 0], 0), ([-1, 1], 0), ([10, 5], 15))

# ---- which program

F = "def f(x):\n    return x"
HEAD = 'import math\n\ndef f(x):\n    """Head."""\n'
FOUND = [
    # completion, prompt, names, program
    (block(F), "", ("f",), F + "\n"),
    (f"Here:\n{block(F)}\nIt works.", "", ("f",), F + "\n"),
    (block(F, ""), "", ("f",), F + "\n"),
    (block(F, "Python3"), "", ("f",), F + "\n"),
    (f"~~~python\n{F}\n~~~", "", ("f",), F + "\n"),
    (f"````python\n{F}\n````", "", ("f",), F + "\n"),
    (f"```python\n{F}", "", ("f",), F + "\n"),  # cut off, or never closed
    (block("def f(): 1") + "\nBetter:\n" + block("def f(): 2"), "", ("f",), "def f(): 2\n"),
    (block("def f(): 1") + "\nUse it:\n" + block("print(f())"), "", ("f",), "def f(): 1\n"),
    (block("def g(): 1") + "\n" + block("class f: pass"), "", ("f",), "class f: pass\n"),
    (block("a = 1") + "\n" + block("b = 2"), "", (), "b = 2\n"),
    (block("f = lambda x: x") + "\n" + block("f(1)"), "", ("f",), "f = lambda x: x\n"),
    (block("from math import floor as f") + "\n" + block("f(1)"), "", ("f",), "from math import floor as f\n"),
    (block("def f(): 1") + "\n" + block("$ python a.py", "bash"), "", (), "def f(): 1\n"),
    (block("echo 1", "bash"), "", (), "echo 1\n"),
    ("1. So:\n   ```python\n   def f(x):\n       return x\n   ```", "", ("f",), F + "\n"),
    (f"<think>{block('def f(): 1')}</think>\n{block(F)}", "", ("f",), F + "\n"),
    (F, "", ("f",), F),
    (F + "\n\nThis returns x.", "", ("f",), F + "\n"),
    ("print(1)", "", (), "print(1)"),
    ("    return x", HEAD, ("f",), HEAD.rstrip() + "\n    return x"),
    ("    return x\n\nf(1)\nprint(f(2))", HEAD, ("f",), HEAD.rstrip() + "\n    return x\n"),
    ("    return g(x)\n\ndef g(x):\n    return x\nDone.", HEAD, ("f",),
     HEAD.rstrip() + "\n    return g(x)\n\ndef g(x):\n    return x"),
    (block("    return x"), HEAD, ("f",), HEAD.rstrip() + "\n    return x\n"),
    (block(HEAD + "    return x"), HEAD, ("f",), HEAD + "    return x\n"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "prompt", "names", "program"), FOUND, ids=range(len(FOUND)))
def test_the_program_is_found(completion: str, prompt: str, names: tuple[str, ...], program: str) -> None:
    found, where = program_of(completion, prompt, names)
    assert found is not None, where
    assert found.strip("\n") == program.strip("\n")


@pytest.mark.parametrize(
    ("completion", "names", "why"),
    [
        ("", (), "the completion is empty"), ("  \n", ("f",), "the completion is empty"),
        ("I cannot.",
         ("f",), "no fenced block, and no f"), ("I cannot do that.", (), "no fenced block, and no program"),
        ("<think>\n```python\ndef f(): 1\n```",
         ("f",), "the thinking never ends"), (block(""), (), "fenced block 1 of 1 is empty"),
        (block(F) + "\n" + block(" "),
         (), "fenced block 2 of 2 is empty"), ("The function f(x) returns x.", ("f",), "no fenced block, and no f"),
    ],
)  # fmt: skip
def test_there_is_no_program(completion: str, names: tuple[str, ...], why: str) -> None:
    assert program_of(completion, "", names) == (None, why)
    tests = function(([], 1)) if names else stdio(("", ""))
    verdict = code.verify(problem(tests), completion)
    assert (verdict.reward, verdict.reason, verdict.detail, verdict.tests) == (0.0, "no_answer", why, ("not run",))


def test_the_prompts_helpers_are_there_for_a_whole_function(limits: Limits) -> None:
    prompt = "from math import floor\ndef half(x):\n    return floor(x / 2)\n\ndef f(x):\n    'Half of x.'\n"
    asked = problem(function(([7], 3)), prompt=prompt)
    for completion in (
        block("def f(x):\n    return half(x)"),
        "    return half(x)",
        block(prompt + "    return half(x)"),
    ):
        assert code.verify(asked, completion, sandbox=limits).reward == 1.0
    assert code.verify(asked, block("def f(x):\n    return half(x) + 1"), sandbox=limits).reason == "wrong"


# ---- rewards, results, reasons


@pytest.mark.parametrize(("asked", "completion", "reward"), code.EXAMPLES, ids=range(len(code.EXAMPLES)))
def test_examples(asked: Problem, completion: str, reward: float, limits: Limits) -> None:
    assert code.verify(asked, completion, sandbox=limits).reward == reward


@pytest.mark.parametrize(
    ("mode", "passed", "total", "reward"),
    [
        ("all", 4, 4, 1.0), ("all", 3, 4, 0.0), ("all", 0, 4, 0.0), ("share", 4, 4, 1.0), ("share", 3, 4, 0.75),
        ("share", 0, 4, 0.0),
         ("bonus", 4, 4, 1.0), ("bonus", 3, 4, 0.375), ("bonus", 0, 4, 0.0), ("bonus", 1, 3, 1 / 6),
    ],
)  # fmt: skip
def test_rewards_by_hand(mode: str, passed: int, total: int, reward: float) -> None:
    assert reward_of(mode, passed, total) == reward


@pytest.mark.parametrize(("mode", "reward"), [("all", 0.0), ("share", 0.5), ("bonus", 0.25)])
def test_each_test_counts(mode: str, reward: float, limits: Limits) -> None:
    verdict = code.verify(problem(ADD), block("def f(a, b): return a + b if a > 0 else 9"), reward=mode, sandbox=limits)
    stopped = ("passed", "wrong: got 9, not 0", "not run", "not run")
    assert verdict.tests == (stopped if mode == "all" else (*stopped[:2], "wrong: got 9, not 0", "passed"))
    assert (verdict.reward, verdict.reason, verdict.detail) == (reward, "wrong", "case 2: got 9, not 0")
    verdict = code.verify(problem(ADD), block("def f(a, b): return a + b"), reward=mode, sandbox=limits)
    assert (verdict.reward, verdict.reason, verdict.tests) == (1.0, "correct", ("passed",) * 4)


REASONS = [
    ("def f(): return 2", "wrong", "case 1: got 2, not 1"),
    ("def g(): return 1", "wrong", "before the tests: the program has no f"),
    ("f = 1", "wrong", "cannot be called"),
    ("def f(): raise KeyError('x')", "crashed", "KeyError: 'x'"),
    ("def f(: return 1", "crashed", "it does not load: SyntaxError"),
    ("import no_such_module\ndef f(): return 1", "crashed", "it does not load: ModuleNotFoundError"),
    ("raise SystemExit(0)\ndef f(): return 1", "crashed", "it does not load: SystemExit: 0"),
    ("import os\ndef f(): os._exit(0)", "crashed", "it stopped talking"),
    ("import os\nos._exit(0)", "crashed", "it stopped talking"),
    ("import os\ndef f(): os._exit(7)", "crashed", "it stopped talking"),
    ("import os\ndef f(): os.abort()", "crashed", "it stopped talking"),
    ("import ctypes\ndef f(): ctypes.string_at(0)", "crashed", "it stopped talking"),
    ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()", "crashed|memory|timeout", ""),
    ("def f(): return f()", "crashed", "RecursionError"),
    ("def f():\n    while True: pass", "timeout", "of CPU time"),
    ("while True: pass", "timeout", "of CPU time"),
    ("def f(): return 'x' * (1 << 33)", "memory", "MemoryError"),
    ("def f():\n    x = []\n    while True: x.append('y' * (1 << 20) + str(len(x)))", "memory", "MemoryError"),
    ("x = bytearray(1 << 33)", "memory", "it does not load: MemoryError"),
    ("def f(): return 'x' * (65 << 20)", "output_limit", ""),
    ("def f(): return open('/etc/passwd', 'a') and 1", "forbidden|crashed", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "reason", "detail"), REASONS, ids=lambda text: text[:40].replace("\n", " "))
def test_reasons(source: str, reason: str, detail: str, limits: Limits) -> None:
    if reason.startswith("forbidden") and limits.require == "process":
        pytest.skip("at the level process a program may do what its user may")
    own = {"timeout_s": 1 if reason == "timeout" else 20}  # a busy machine is slow to fill its memory
    verdict = code.verify(problem(function(([], 1)), limits=own), block(source), sandbox=limits)
    assert verdict.reward == 0.0
    assert verdict.reason in reason.split("|"), verdict.detail
    assert detail in verdict.detail
    assert verdict.tests is not None
    assert verdict.tests[0] != "passed"


def test_what_was_passed_before_the_end_counts_for_a_share(limits: Limits) -> None:
    tests = function(([0], 0), ([1], 1), ([2], 2), ([3], 3))
    for deed, reason in (("os._exit(0)", "crashed"), ("while True: pass", "timeout")):
        source = f"import os\ndef f(x):\n    if x == 2:\n        {deed}\n    return x"
        verdict = code.verify(problem(tests, limits={"timeout_s": 1}), block(source), reward="share", sandbox=limits)
        assert (verdict.reward, verdict.reason) == (0.5, reason)
        assert verdict.tests is not None
        assert verdict.tests[:2] == ("passed", "passed")
        assert verdict.tests[2].startswith(reason)
        assert verdict.tests[3] == "not run"


def test_asserts_with_set_up_and_epilogue(limits: Limits) -> None:
    """The set-up is the tests'; the epilogue runs beside the program, whose class it needs."""
    tests = {
        "type": "asserts",
        "setup": "bias = 1",
        "epilogue": "root = Node(3)\nroot.left = Node(4)",
        "asserts": ["assert total(root) + bias == 8", "assert total(root.left) == 4", "assert total(None) == 0"],
    }
    source = (
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def total(n): return n.v + total(n.left) if n else 0"
    )
    assert code.verify(problem(tests), block(source), sandbox=limits).reward == 1.0
    verdict = code.verify(problem(tests), block(source.replace(" 0", " 1")), reward="share", sandbox=limits)
    assert (verdict.tests, verdict.reward) == (("wrong", "wrong", "wrong"), 0.0)
    assert "NameError" in code.verify(problem(tests), block("def total(n): return 0"), sandbox=limits).detail


def test_the_programs_own_word_is_told(limits: Limits) -> None:
    source = "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x"
    tests = {"type": "asserts", "asserts": ["assert P(1) == P(1)"]}
    verdict = code.verify(problem(tests), block(source), sandbox=limits)
    assert verdict.reward == 1.0
    assert verdict.detail.startswith("low assurance")
    tests = {"type": "asserts", "asserts": ["assert P(1).x == 1"]}
    assert code.verify(problem(tests), block(source), sandbox=limits).detail == ""


# ---- programs that read and write

READS = "a, b = map(int, input().split())\nprint(a + b)"
SCRIPTS = [
    # program, input, output, options, reason
    (READS, "2 3\n", "5\n", {}, "correct"), (READS, "2 3", "5", {}, "correct"), (READS, "2 3\n", "6\n", {}, "wrong"),
    ("print('5 ', '', sep='\\n')", "", "5", {}, "correct"), ("print(' 5')", "", "5", {}, "wrong"),
    ("print('a\\n\\nb')",
     "", "a\nb", {}, "wrong"), ("print('a')", "", "a\nb", {}, "wrong"), ("print('a\\nb')", "", "a", {}, "wrong"),
    ("pass", "", "", {}, "correct"), ("pass", "", "0", {}, "wrong"), ("print('YES')", "", "yes", {}, "wrong"),
    ("print('YES')", "", "yes", {"case_sensitive": False}, "correct"), ("print(0.3333)", "", "0.3334", {}, "wrong"),
    ("print(0.3333)",
     "", "0.3334", {"tolerance": 1e-3}, "correct"), ("print(0.33)", "", "0.3334", {"tolerance": 1e-3}, "wrong"),
    ("print('nan')", "", "1", {"tolerance": 1e9}, "wrong"), ("print('1_0')", "", "10", {"tolerance": 1e-3}, "wrong"),
    ("import sys\nprint(len(sys.stdin.read()))", "é\n字", "3", {}, "correct"),
    ("print('字🙂')", "", "字🙂", {}, "correct"),
    ("import sys\nprint(sum(1 for _ in sys.stdin))", "a\nb\n", "2", {}, "correct"),
    ("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])", "ab", "ba", {}, "correct"),
    ("import sys\nsys.stdout.buffer.write(b'\\xff')", "", "\xff", {}, "wrong"),
    ("import sys\nprint('5')\nprint('6', file=sys.stderr)",
     "", "5", {}, "correct"), ("print(input())", "", "", {}, "crashed"),
    ("print(5)\nraise ValueError('late')",
     "", "5", {}, "crashed"), ("print(5)\nimport sys\nsys.exit(1)", "", "5", {}, "crashed"),
    ("print(5)\nimport sys\nsys.exit()", "", "5", {}, "correct"), ("print(5)\nexit(0)", "", "5", {}, "correct"),
    ("import os\nprint(5, flush=True)\nos._exit(0)", "", "5", {}, "correct"),
    ("import os\nprint(5, flush=True)\nos.abort()", "", "5", {}, "crashed"),
    ("if __name__ == '__main__':\n    print(5)", "", "5", {}, "correct"),
    ("import atexit\natexit.register(print, 6)\nprint(5)", "", "5\n6", {}, "correct"),
    ("import threading\nthreading.Thread(target=lambda: print(5)).start()", "", "5", {}, "correct"),
    ("def main(:\n    pass", "", "", {}, "crashed"), ("print(open('/dev/stdin').read())", "7", "7", {}, "correct"),
    ("print(open(0).read())", "7", "7", {}, "correct"), ("while True: pass", "", "", {}, "timeout"),
    ("x = bytearray(1 << 33)", "", "", {}, "memory"), ("while True: print('x' * 1000)", "", "", {}, "output_limit"),
    ("print('x' * ((1 << 20) - 1))", "", "x" * ((1 << 20) - 1), {}, "output_limit"),
    ("print('x' * ((1 << 20) - 2))", "", "x" * ((1 << 20) - 2), {}, "correct"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "given", "wanted", "options", "reason"), SCRIPTS, ids=[repr(row[0])[:40] for row in SCRIPTS]
)
def test_scripts(source: str, given: str, wanted: str, options: dict[str, Any], reason: str, limits: Limits) -> None:
    if "/dev/stdin" in source and limits.require != "namespaces":
        pytest.skip("/dev/stdin needs /proc, or a /dev of the program's own")
    small = replace(limits, output_mb=1, timeout_s=1.0)
    verdict = code.verify(problem(stdio((given, wanted), **options)), block(source), sandbox=small)
    assert verdict.reason == reason, verdict.detail
    assert verdict.reward == float(reason == "correct")


USE = "print(double(int(input())))"
BEHIND = [
    # a right program with the helper `double`, by where its imports from __future__ stand
    USE,
    f"from __future__ import annotations\n{USE}",
    f"\n# A remark.\n'Words.'\nfrom __future__ import annotations\nfrom __future__ import division\n{USE}",
    f"from __future__ import (\n    annotations,\n    division,\n)  # both\n{USE}",
    f"'é'; from __future__ import annotations ; {USE}",
    f"from __future__ import annotations; \\\n{USE}",
    f"from __future__ import annotations\r\n{USE}\r\n",
    f"from __future__ import annotations\nx: Nowhere = '\u2028 \\x0c \x0c'\n{USE}",
    f"s = 'from __future__ import annotations'\n{USE}",  # words in a string
    f's = """\nfrom __future__ import annotations\n"""\n{USE}',
    f"# from __future__ import annotations\n{USE}",
]


@pytest.mark.parametrize("source", BEHIND, ids=range(len(BEHIND)))
def test_helpers_run_before_a_script_and_behind_its_imports_from_the_future(source: str, limits: Limits) -> None:
    asked = problem(stdio(("4\n", "8\n"), prompt="def double(x):\n    return 2 * x\n"))
    assert code.verify(asked, block(source), sandbox=limits).reason == "correct"
    bare = problem(stdio(("4\n", "8\n")))
    assert code.verify(bare, block(source), sandbox=limits).reason != "correct"


def test_an_import_from_the_future_that_comes_late_is_the_programs_fault(limits: Limits) -> None:
    asked = problem(stdio(("", "1\n"), prompt="y = 1\n"))
    verdict = code.verify(asked, block("x = 1\nfrom __future__ import annotations\nprint(y)"), sandbox=limits)
    assert (verdict.reward, "SyntaxError" in verdict.detail) == (0.0, True)


@pytest.mark.parametrize(("mode", "reward"), [("all", 0.0), ("share", 0.5), ("bonus", 0.25)])
def test_each_case_is_a_run_of_its_own(mode: str, reward: float, limits: Limits) -> None:
    source = "import os\nassert not os.path.exists('left')\nopen('left', 'w')\nx = int(input())\n"
    source += "print(1 / x if x < 3 else x)"
    tests = stdio(("3", "3"), ("2", "2"), ("0", "0"), ("4", "4"))
    verdict = code.verify(problem(tests), block(source), reward=mode, sandbox=limits)
    assert (verdict.reward, verdict.reason) == (reward, "wrong")
    assert verdict.detail == "case 2: line 1 is '0.5', not '2'"
    assert verdict.tests is not None
    assert verdict.tests[:2] == ("passed", "wrong: line 1 is '0.5', not '2'")
    if mode == "all":
        assert verdict.tests[2:] == ("not run", "not run")
    else:
        assert verdict.tests[2].startswith("crashed: it left with exit code 1 (ZeroDivisionError")
        assert verdict.tests[3] == "passed"


CHECKER = "def check(input, output, expected):\n    a, b = map(int, output.split())\n    return a * b == int(input)"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("print(3, 4)", "correct"), ("print(2, 6)", "correct"), ("print(2, 5)", "wrong"), ("print('no')", "wrong"),
        ("print()", "wrong"), ("1 / 0", "crashed"), ("import sys\nsys.stdout.buffer.write(b'\\xff')", "wrong"),
    ],
)  # fmt: skip
def test_a_checker_decides(source: str, reason: str, limits: Limits) -> None:
    tests = {"type": "stdio", "cases": [{"input": "12"}], "checker": CHECKER}
    assert code.verify(problem(tests), block(source), sandbox=limits).reason == reason


def test_a_checker_is_told_what_was_expected_and_has_to_say_true(limits: Limits) -> None:
    def reason(body: str) -> str:
        checker = f"def check(input, output, expected):\n    {body}"
        return code.verify(problem(stdio(("1", "2"), checker=checker)), block("print(3)"), sandbox=limits).reason

    assert reason("return (input, output, expected) == ('1', '3\\n', '2')") == "correct"
    assert reason("print('noise'); return True") == "correct"
    assert reason("return False") == "wrong"
    assert reason("return None") == "wrong"
    assert reason("return 'yes'") == "wrong"
    assert reason("assert output == expected; return True") == "wrong"


@pytest.mark.parametrize(
    "checker",
    [
        "def check(input, output, expected):\n    while True: pass",
        "def other(): pass",
        "import no_such_module\ndef check(input, output, expected): return True",
        "1 / 0\ndef check(input, output, expected): return True",
    ],
)
def test_a_checker_that_does_not_work_is_not_the_programs_fault(checker: str, limits: Limits) -> None:
    asked = problem(stdio(("1", "2"), checker=checker), limits={"timeout_s": 0.5})
    verdict = code.verify(asked, block("print(2)"), sandbox=limits)
    assert (verdict.reward, verdict.reason) == (None, "error"), verdict.detail


# ---- limits


def test_a_problem_may_have_limits_of_its_own(limits: Limits) -> None:
    tests, slow = (
        function(([], 1)),
        block("import time\ndef f():\n    while time.process_time() < 1.2: pass\n    return 1"),
    )
    assert code.verify(problem(tests), slow, sandbox=limits).reason == "correct"
    assert code.verify(problem(tests, limits={"timeout_s": 0.3}), slow, sandbox=limits).reason == "timeout"
    large = block("def f(): return len(bytearray(300 << 20)) >> 28")
    assert code.verify(problem(tests), large, sandbox=limits).reason == "correct"
    assert code.verify(problem(tests, limits={"memory_mb": 200}), large, sandbox=limits).reason == "memory"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"timeout": 5}, "limits.timeout=5: known are timeout_s, memory_mb"), ({"timeout_s": 0}, "of 0.01 to 86,400"),
        ({"timeout_s": "5"}, "of 0.01 to 86,400"), ({"timeout_s": float("inf")}, "of 0.01 to 86,400"),
        ({"memory_mb": 0.5}, "a whole number of 32"), ({"timeout_s": float("nan")}, "of 0.01 to 86,400"),
        ({"timeout_s": True}, "of 0.01 to 86,400"), ({"require": "process"}, "known are"), ([5], "give a mapping"),
    ],
)  # fmt: skip
def test_limits_that_there_are_not(given: object, says: str) -> None:
    asked = problem(ADD, limits=given)
    assert says in (code.check(asked) or "")
    with pytest.raises(UserError, match="limits"):
        code.verify(asked, block(F))


def test_patience_by_hand() -> None:
    """START_S, and for each run the wall's limit of 2 * 10 + 1 seconds with three times GRACE_S."""
    one = 21.0 + 3 * GRACE_S
    assert wall_limit(Limits()) == 21.0
    assert code.patience(problem(ADD)) == START_S + one
    assert code.patience(problem(stdio(("", ""), ("", ""), ("", "")))) == START_S + 3 * one
    assert code.patience(problem(stdio(("", ""), ("", ""), checker=CHECKER))) == START_S + 6 * one
    assert code.patience(problem(ADD), sandbox=Limits(timeout_s=1)) == START_S + 3 + 3 * GRACE_S
    assert (
        code.patience(problem(ADD, limits={"timeout_s": 2}), sandbox=Limits(timeout_s=1)) == START_S + 5 + 3 * GRACE_S
    )
    assert code.patience(problem(None)) == START_S + one


# ---- what is remembered


@pytest.fixture
def runs(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever a program is run."""
    seen: list[str] = []
    judge = Sandbox.judge

    def counted(self: Sandbox, job: Any, given: Limits) -> Any:
        seen.append(job.sources[0])
        return judge(self, job, given)

    monkeypatch.setattr(Sandbox, "judge", counted)
    code._cache.clear()
    return seen


def test_a_verdict_is_remembered_by_all_that_decides_it(runs: list[str], limits: Limits) -> None:
    source = block("def f(x): return x")
    tests = function(([1], 1), ([True], True))
    first = code.verify(problem(tests), source, sandbox=limits)
    assert code.verify(problem(function(([1], 1), ([True], True))), source, sandbox=limits) == first
    assert code.verify(replace(problem(tests), id="other"), f"Again:\n{source}", sandbox=limits) == first
    assert len(runs) == 1
    others: list[tuple[Problem, str, dict[str, Any]]] = [
        (problem(tests), block("def f(x): return  x"), {}),
        (problem(function(([1], 1), ([True], 1))), source, {}),
        (problem(function(([1], 1), ([1.0], 1))), source, {}),
        (problem({**tests, "tolerance": 0.1}), source, {}),
        (problem(tests, limits={"timeout_s": 4}), source, {}),
        (problem(tests, prompt="x = 1"), source, {}),
        (problem(tests), source, {"reward": "share"}),
    ]
    for number, (asked, completion, options) in enumerate(others, 2):
        assert code.verify(asked, completion, sandbox=limits, **options).reason == "correct"
        assert len(runs) == number


def test_a_time_out_is_not_remembered(runs: list[str], limits: Limits) -> None:
    asked = problem(function(([], 1)), limits={"timeout_s": 0.2})
    for number in (1, 2):
        assert code.verify(asked, block("while True: pass"), sandbox=limits).reason == "timeout"
        assert len(runs) == number


def test_only_so_many_are_remembered(runs: list[str], limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "CACHED", 2)
    tests = function(([], 1))
    for text in "abca":
        assert code.verify(problem(tests), block(f"{text} = 1\ndef f(): return 1"), sandbox=limits).reward == 1.0
    assert len(runs) == 4
    assert len(code._cache) == 2


# ---- whose fault

NO_USE: list[tuple[object, str]] = [
    (None, "give a mapping"),
     ([], "give a mapping"), ({}, "tests.type=None"), ({"type": "unit"}, "give one of asserts, check"),
    ({"type": "asserts"}, "tests.asserts"),
     ({"type": "asserts", "asserts": []}, "at least one"), ({"type": "asserts", "asserts": "assert 1"}, "list"),
    ({"type": "asserts",
     "asserts": ["assert f("]}, "does not compile"), ({"type": "asserts", "asserts": [" "]}, "give Python source"),
    ({"type": "asserts", "asserts": ["f()"], "setup": "("}, "tests.setup does not compile"),
    ({"type": "asserts", "asserts": ["f()"], "epilogue": 5}, "tests.epilogue"),
    ({"type": "check",
     "test": "def check(c): pass"}, "tests.entry_point"), ({"type": "check", "entry_point": "f"}, "tests.test"),
    ({"type": "function",
     "entry_point": "f"}, "tests.cases"), ({"type": "function", "entry_point": "f", "cases": []}, "at least one"),
    ({"type": "function",
     "cases": [{"expected": 1}]}, "tests.entry_point"), (function(([], 1), tolerance=-1), "tests.tolerance"),
    ({"type": "function", "entry_point": "f", "cases": [{"args": []}]}, "tests.cases[0] has no expected"),
    (function(([], 1), tolerance=float("nan")),
     "tests.tolerance"), (function(([], 1), tolerance=True), "tests.tolerance"),
    ({"type": "stdio",
     "cases": [{"input": ""}]}, "tests.cases[0] has no output"), ({"type": "stdio", "cases": [{}]}, "has no input"),
    (stdio(("",
     ""), checker="def"), "tests.checker does not compile"), ({"type": "stdio",
     "cases": [{"input": 5, "output": ""}]}, "strings"),
]  # fmt: skip


@pytest.mark.parametrize(("tests", "says"), NO_USE, ids=lambda value: str(value)[:40])
def test_tests_of_no_use_give_no_reward(tests: object, says: str) -> None:
    assert says in (code.check(problem(tests)) or "")
    verdict = code.verify(problem(tests), block(F))
    assert (verdict.reward, verdict.reason) == (None, "error")
    assert verdict.detail.startswith("tests of p: ")


def test_good_tests_have_no_complaint() -> None:
    for asked, _, _ in code.EXAMPLES:
        assert code.check(asked) is None
    assert code.check(problem({"type": "stdio", "cases": [{"input": ""}], "checker": CHECKER})) is None


def test_tests_that_fail_by_themselves_give_no_reward(limits: Limits) -> None:
    tests = {"type": "asserts", "asserts": ["import no_such_module_of_the_tests"]}
    verdict = code.verify(problem(tests), block(F), sandbox=limits)
    assert (verdict.reward, verdict.reason) == (None, "error")


def test_a_machine_that_runs_no_program_gives_no_reward(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SandboxError("no process to be had")

    tests = (function(([], 1)), stdio(("", "5")))
    for method in ("start", "_start_tester"):
        code.shut_down()
        code._cache.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, method, refuse)
            for given in tests[: 2 if method == "start" else 1]:
                verdict = code.verify(problem(given), block("print(5)\ndef f(): return 1"), sandbox=limits)
                assert (verdict.reward, verdict.reason) == (None, "error")
                assert "no process to be had" in verdict.detail
    for given in tests:  # and none of it is remembered
        assert code.verify(problem(given), block("print(5)\ndef f(): return 1"), sandbox=limits).reward == 1.0


def test_options() -> None:
    for mode in ("all", "share", "bonus"):
        code.check_options({"reward": mode})
    code.check_options({})
    with pytest.raises(UserError, match=r"reward='some': the verifier code gives all, share, bonus"):
        code.check_options({"reward": "some"})


# ---- lines of a file, and people


def test_a_line_of_a_file(limits: Limits) -> None:
    asked, text = code.from_row(
        {"id": 7, "tests": ADD, "program": "def f(a, b):\n    return a + b", "limits": {"timeout_s": 2}}
    )
    assert (asked.id, asked.metadata["limits"]) == ("7", {"timeout_s": 2})
    assert code.verify(asked, text, sandbox=limits).reward == 1.0
    asked, text = code.from_row({"tests": ADD, "completion": f"So:\n{block('def f(a, b): return a + b')}"})
    assert code.verify(asked, text, sandbox=limits).reward == 1.0
    asked, text = code.from_row({"tests": ADD, "program": block("def f(a, b): return a + b")})
    assert code.verify(asked, text, sandbox=limits).reason == "crashed"  # taken as source, which a fence is not
    asked, text = code.from_row({"tests": ADD, "completion": "    return a + b", "prompt": "def f(a, b):\n"})
    assert code.verify(asked, text, sandbox=limits).reward == 1.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"tests": ADD}, "either program or completion"), ({"tests": ADD, "program": "", "completion": ""}, "either"),
        ({"tests": ADD, "program": 5}, "program=5: give a string"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_judged(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        code.from_row(row)


@pytest.mark.parametrize(("tests", "says"), [(None, "give a mapping"), ({"type": "x"}, "tests.type='x'")])
def test_a_line_with_tests_of_no_use_has_a_verdict_all_the_same(tests: object, says: str) -> None:
    verdict = code.verify(*code.from_row({"tests": tests, "program": "x = 1"}))
    assert (verdict.reward, verdict.reason) == (None, "error")
    assert says in verdict.detail


def test_explain_shows_the_program_and_each_test(limits: Limits) -> None:
    rows = code.explain(problem(ADD), block("def f(a, b):\n    return a + b if a else 9"), sandbox=limits)
    assert rows == [
        ("found", "fenced block 1 of 1"),
        ("program", "def f(a, b):"),
        ("", "    return a + b if a else 9"),
        ("test 1", "passed"),
        ("test 2", "wrong: got 9, not 0"),
        ("test 3", "passed"),
        ("test 4", "passed"),
    ]
    assert code.explain(problem(ADD), "No.", sandbox=limits) == [("found", "no fenced block, and no f")]
    late = code.explain(problem(ADD, limits={"timeout_s": 0.1}), block("import time\ntime.sleep(99)"), sandbox=limits)
    assert late[-1][0] == "test 4"


SLEEPS = block("import time\ndef f(x):\n    time.sleep(99 * x)\n    return x")
WAITS = block(  # at work for a fifth of the clock's time, as where five programs share a core
    "import time\nbegan = time.monotonic()\ndef f(x):\n    while x:\n        time.sleep(0.01)\n"
    "        while time.process_time() < (time.monotonic() - began) / 5: pass\n    return x"
)


def test_one_that_slept_keeps_the_share_it_earned(limits: Limits) -> None:
    asked = problem(function(([0], 0), ([1], 1)), limits={"timeout_s": 0.2})
    verdict = code.verify(asked, SLEEPS, reward="share", sandbox=limits)
    assert (verdict.reward, verdict.reason, verdict.tests) == (0.5, "timeout", ("passed", "timeout"))


def test_one_that_was_kept_waiting_is_asked_again_alone(limits: Limits) -> None:
    asked = problem(function(([0], 0), ([1], 1)), limits={"timeout_s": 0.5})
    with pytest.raises(RunAlone) as late:
        code.verify(asked, WAITS, sandbox=limits)
    verdict = late.value.verdict
    assert (verdict.reward, verdict.reason, verdict.tests) == (0.0, "timeout", ("passed", "timeout"))


def test_one_that_was_kept_waiting_keeps_the_share_it_earned(limits: Limits) -> None:
    asked = problem(function(([0], 0), ([1], 1)), limits={"timeout_s": 0.5})
    with pytest.raises(RunAlone) as late:
        code.verify(asked, WAITS, reward="share", sandbox=limits)
    assert late.value.verdict.reward == 0.5


def test_it_starts_again_after_it_was_shut_down(limits: Limits) -> None:
    code.warm_up(limits)
    code.shut_down()
    code.shut_down()
    assert code.verify(problem(function(([], 2))), block("def f(): return 2"), sandbox=limits).reward == 1.0
