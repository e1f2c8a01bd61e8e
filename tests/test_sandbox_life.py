"""The sandbox's processes: what they are like for a program, what is left of them when one is killed, and what is said
when the machine cannot go on.

Processes are killed here by their number, and are always descendants of this test's own. Left out: what a program may
not do (test_sandbox_layers.py, test_code_programs.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_math.sandbox import client, isolation
from grpo_math.sandbox.client import Run, Sandbox, SandboxError
from grpo_math.sandbox.isolation import LAYERS, NEEDED, open_sandbox
from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.sandbox.tester import PASSED, Job
from grpo_math.types import Problem, RunAlone
from grpo_math.verifiers import code
from grpo_math.verifiers._code.verdicts import judged

ROOT = Path(__file__).parents[1]
SECONDS = 15.0  # to end a hang; nothing here takes long
LIMITS = Limits(timeout_s=5.0)
LINUX = sys.platform.startswith("linux")
needs_proc = pytest.mark.skipif(not LINUX, reason="needs /proc")

STARTED: dict[str, Sandbox | str] = {}


def started(level: str) -> Sandbox:
    """One sandbox of each level for all tests of this file; skips where the machine has no such level."""
    if level not in STARTED:
        try:
            STARTED[level] = open_sandbox(level, level)[0]
        except SandboxError as error:
            STARTED[level] = str(error)
    found = STARTED[level]
    if isinstance(found, str):
        pytest.skip(f"no {level} here: {found}")
    return found


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    code.shut_down()
    for sandbox in STARTED.values():
        if isinstance(sandbox, Sandbox):
            sandbox.close()


@pytest.fixture(params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return started(request.param)


@pytest.fixture
def best() -> Sandbox:
    """Of the best level that works here."""
    for level in reversed(LEVELS):
        with contextlib.suppress(pytest.skip.Exception):
            return started(level)
    pytest.skip("no program can be run here")


@pytest.fixture
def fresh(best: Sandbox) -> Iterator[Sandbox]:
    """Of the best level, not yet started, for tests that break it."""
    made = Sandbox(best.level)
    yield made
    made.close()


def said(sandbox: Sandbox, source: str, stdin: str = "", limits: Limits = LIMITS) -> Any:
    """What a script prints, as JSON."""
    run = sandbox.script(f"import json, os, sys\n{source}", stdin.encode(), limits)
    assert (run.end.status, run.errors) == (0, b""), run
    return json.loads(run.output)


def judge(sandbox: Sandbox, source: str, *asserts: str, limits: Limits = LIMITS) -> Run:
    tests = {"type": "asserts", "asserts": list(asserts) or ["assert f() == 1"]}
    return sandbox.judge(Job(tests, [source], False), limits)


def reason(run: Run) -> str | None:
    return None if run.outcome is None else run.outcome.reason


def works(sandbox: Sandbox) -> bool:
    """Whether programs are judged, right ones and wrong ones, of both kinds."""
    return (
        reason(judge(sandbox, "def f(): return 1")) == "correct"
        and reason(judge(sandbox, "def f(): return 2")) == "wrong"
        and sandbox.script("print(input())", b"5", LIMITS).output == b"5\n"
    )


# ---- what a program finds


def test_programs_are_judged(sandbox: Sandbox) -> None:
    assert works(sandbox)
    run = judge(sandbox, "def f(x): return x * x", "assert f(3) == 9", "assert f(2) == 5", "assert f(1) == 1")
    assert run.outcome is not None
    assert run.outcome.results == [PASSED, "wrong", PASSED]
    assert run.end.killed in ("", "stop")
    assert run.end.unconfined == ""


def test_the_environment_is_ours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a sandbox that was started with a token in the environment."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    other = Sandbox(sandbox.level)
    try:
        for started_before in (sandbox, other):
            found, folder = said(started_before, "print(json.dumps([dict(os.environ), os.getcwd()]))")
            assert found == {**client.ENVIRONMENT, "HOME": folder, "TMPDIR": folder}
            source = "import os\ndef f(): return dict(os.environ)"
            assert reason(judge(started_before, source, f"assert f() == {found!r}")) == "correct"
    finally:
        other.close()
    assert not [name for name in client.ENVIRONMENT if "TOKEN" in name or "KEY" in name]


def test_a_script_is_the_main_program(sandbox: Sandbox) -> None:
    found = said(sandbox, "print(json.dumps([sys.argv, __name__, sys.path.count('')]))")
    assert found == [["solution.py"], "__main__", 0]
    assert str(ROOT) not in said(sandbox, "print(json.dumps(sys.path))")


OPEN = """
found = []
for fd in range(256):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
"""


def test_no_descriptor_of_ours_is_open(sandbox: Sandbox) -> None:
    assert said(sandbox, f"{OPEN}\nprint(json.dumps(found))") == [0, 1, 2]
    source = f"import os\n{OPEN}\ndef f(): return found"
    assert reason(judge(sandbox, source, "assert f() == [0, 1, 2, 3]")) == "correct"  # 3 is where it answers


FIXED = """
import locale, random, time, datetime
found = [
    hash("x"), random.random(), time.tzname[0], datetime.datetime.fromtimestamp(0).hour,
    locale.setlocale(locale.LC_ALL, ""), sys.getrecursionlimit(), sys.getfilesystemencoding(),
    list({"a", "b", "c", "d", "e"}),
]
"""


def test_what_could_differ_is_fixed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    script = f"{FIXED}\nprint(json.dumps(found))"
    first = said(sandbox, script)
    assert first[1:7] == [random.Random(0).random(), "UTC", 0, "C.UTF-8", 1000, "utf-8"]
    assert said(sandbox, script) == first
    run = judge(sandbox, f"import sys\n{FIXED}\ndef f(): return found", f"assert f() == {first!r}")
    assert reason(run) == "correct"


def test_the_hash_seed_is_the_same_in_every_sandbox(best: Sandbox, fresh: Sandbox) -> None:
    script = "print(json.dumps([hash('x'), list({'a', 'b', 'c', 'd', 'e'})]))"
    assert said(best, script) == said(fresh, script)


def test_the_folder_is_empty_and_in_memory(sandbox: Sandbox) -> None:
    fill = "open('left', 'w').write('x')\nos.mkdir('folder')\nopen('folder/x', 'w').close()\n"
    for _ in range(2):
        assert said(sandbox, f"before = os.listdir('.')\n{fill}print(json.dumps(before))") in ([], [".stdin"])
        source = f"import os\nbefore = os.listdir('.')\n{fill}def f(): return before"
        assert reason(judge(sandbox, source, "assert f() == []")) == "correct"
    where, size = said(sandbox, "s = os.statvfs('.')\nprint(json.dumps([os.getcwd(), s.f_blocks * s.f_frsize]))")
    if sandbox.level == "namespaces":
        assert size == 64 << 20
    elif os.access("/dev/shm", os.W_OK):
        assert where.startswith("/dev/shm/grpo-math-")


def test_the_folder_is_bounded(sandbox: Sandbox) -> None:
    fill = "for i in range(30):\n    open(f'{i}', 'wb').write(bytes(8 << 20))\n"
    run = sandbox.script(f"{fill}import time\ntime.sleep(9)", b"", LIMITS)
    assert run.end.killed == "disk" or b"No space left" in run.errors
    assert works(sandbox)


def test_nothing_is_shared_between_two_programs(sandbox: Sandbox) -> None:
    spoil = (
        "import os, sys, math, random, builtins, signal, gc\nmath.pi = 3\nbuiltins.left = 1\nos.environ['LEFT'] = '1'\n"
        "sys.modules['left'] = math\nrandom.seed(5)\nopen('left', 'w').close()\nos.chdir('/')\nos.umask(0)\n"
        "sys.setrecursionlimit(50)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ngc.disable()\n"
    )
    look = (
        "import os, sys, math, random, builtins, signal, gc\nfound = [math.pi, hasattr(builtins, 'left'),"
        " 'LEFT' in os.environ, 'left' in sys.modules, random.random(), os.path.exists('left'), os.umask(0),"
        " sys.getrecursionlimit(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN, gc.isenabled(), os.getcwd()]\n"
    )
    first = said(sandbox, f"{look}print(json.dumps(found))")
    assert first[:4] == [3.141592653589793, False, False, False]
    for _ in range(2):
        assert sandbox.script(spoil, b"", LIMITS).end.status == 0
        assert said(sandbox, f"{look}print(json.dumps(found))") == first
        assert reason(judge(sandbox, f"{spoil}def f(): return 1")) == "correct"
        assert reason(judge(sandbox, f"{look}def f(): return found", f"assert f() == {first!r}")) == "correct"


# ---- clocks


def test_cpu_time_is_bounded(sandbox: Sandbox) -> None:
    short = replace(LIMITS, timeout_s=0.3)
    assert sandbox.script("while True: pass", b"", short).end.killed == "cpu"
    assert judge(sandbox, "def f():\n    while True: pass", limits=short).end.killed == "cpu"
    assert judge(sandbox, "while True: pass", limits=short).end.killed == "cpu"
    assert works(sandbox)


def test_cpu_time_is_that_of_all_threads(sandbox: Sandbox) -> None:
    """Each thread stays below the limit; together they do not."""
    source = (
        "import threading, time\ndef work():\n    while time.thread_time() < 0.5: pass\n"
        "threads = [threading.Thread(target=work) for _ in range({})]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\nprint('done')"
    )
    assert sandbox.script(source.format(6), b"", replace(LIMITS, timeout_s=1.0)).end.killed == "cpu"
    assert sandbox.script(source.format(1), b"", replace(LIMITS, timeout_s=1.0)).output == b"done\n"


def test_a_sleeper_meets_the_wall(sandbox: Sandbox) -> None:
    short = replace(LIMITS, timeout_s=0.2)
    for run in (
        sandbox.script("import time\ntime.sleep(99)", b"", short),
        judge(sandbox, "import time\ndef f(): time.sleep(99)", limits=short),
    ):
        assert run.end.killed == "wall"
        assert run.end.cpu_s < short.timeout_s
    assert works(sandbox)


def test_a_sleeper_is_late_and_one_that_was_kept_waiting_is_judged_again_alone(best: Sandbox) -> None:
    short = replace(LIMITS, timeout_s=0.5, require=best.level, at_most=best.level)
    slept = "import time\ntime.sleep(99)"
    # at work for a fifth of the clock's time, as on a machine with five programs for each core
    waited = (
        "import time\nbegan = time.monotonic()\nwhile True:\n"
        "    while time.process_time() < (time.monotonic() - began) / 5: pass\n    time.sleep(0.01)"
    )
    for problem in both_kinds():
        verdict = code.verify(problem, f"```python\n{slept}\n```", sandbox=short)
        assert (verdict.reward, verdict.reason) == (0.0, "timeout")
        with pytest.raises(RunAlone) as late:
            code.verify(problem, f"```python\n{waited}\n```", sandbox=short)
        assert (late.value.verdict.reward, late.value.verdict.reason) == (0.0, "timeout")


@pytest.mark.parametrize("answer", ["range(10**14)", "__import__('itertools').count()"])
def test_an_answer_that_keeps_the_tests_busy_meets_a_deadline(best: Sandbox, answer: str) -> None:
    run = judge(best, f"def f(): return {answer}", "assert max(f()) == 3", limits=replace(LIMITS, timeout_s=0.3))
    assert reason(run) != "correct"
    assert run.outcome is None or run.outcome.reason != "correct"
    assert works(best)


def test_an_answer_that_fills_the_memory_of_the_tests_is_refused(best: Sandbox) -> None:
    run = judge(best, "def f(): return range(10**12)", "assert list(f()) == []", "assert f()[5] == 5")
    assert run.outcome is not None
    assert run.outcome.results[0] != PASSED
    assert run.outcome.results[1] == PASSED
    assert works(best)


# ---- one program after the other

BATCH = [
    ("def f(): return 1", "correct"), ("def f(): return 2", "wrong"), ("def f(): raise KeyError", "crashed"),
    ("import os\nos._exit(0)", "crashed"), ("x = bytearray(1 << 34)", "memory"), ("def f(: pass", "crashed"),
    ("f = {1}.pop", "correct"), ("import random\ndef f(): return random.random() > 0.8", "correct"),
    ("def f(): return int(list({'a', 'b', 'c'}) == list({'a', 'b', 'c'}))", "correct"), ("def f(): f()", "crashed"),
]  # fmt: skip


def test_the_same_verdict_alone_and_in_a_batch_of_a_hundred(best: Sandbox) -> None:
    alone = []
    for source, expected in BATCH:
        one = Sandbox(best.level)
        run = judge(one, source)
        one.close()
        assert reason(run) == expected
        assert run.outcome is not None
        alone.append((run.outcome, judged(run, 1, LIMITS)[:2]))
    for number in random.Random(1).choices(range(len(BATCH)), k=100):
        run = judge(best, BATCH[number][0])
        assert (run.outcome, judged(run, 1, LIMITS)[:2]) == alone[number], BATCH[number]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@needs_proc
def test_descriptors_are_flat_over_two_hundred_programs(fresh: Sandbox) -> None:
    """Of this process by count; of the zygote and the tester by a limit that even one a program would reach."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 60, hard))
    try:
        assert works(fresh)
        before = descriptors()
        for number in range(100):
            assert reason(judge(fresh, *BATCH[number % 3][:1])) == BATCH[number % 3][1]
            assert fresh.script("print(input())", b"7", LIMITS).output == b"7\n"
        assert descriptors() == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_proc
def test_descriptors_are_flat_over_restarts(best: Sandbox) -> None:
    def whole() -> None:
        one = Sandbox(best.level)
        assert reason(judge(one, "def f(): return 1")) == "correct"
        one.close()

    whole()
    before = descriptors()
    for _ in range(3):
        whole()
    assert descriptors() == before


def test_it_may_be_started_and_closed_again_and_again(fresh: Sandbox) -> None:
    report = fresh.start()
    assert fresh.start() is report
    assert works(fresh)
    fresh.close()
    fresh.close()
    assert works(fresh)
    fresh.warm_up()
    assert fresh.start() == report


# ---- killed


def descendants(pid: int) -> set[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, at = set(), [pid]
    while at:
        children = parents.get(at.pop(), [])
        found.update(children)
        at += children
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], object]) -> bool:
    """Whether it comes to hold."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def settled(look: Callable[[], set[int]], least: int) -> set[int]:
    """What is seen once there are so many, and for a while no others."""
    deadline = time.monotonic() + SECONDS
    seen: list[set[int]] = []
    while len(seen) < 10 or any(found != seen[-1] for found in seen[-10:]) or len(seen[-1]) < least:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        seen.append(look())
    return seen[-1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that sandboxes of this process make from here on."""
    paths: list[str] = []
    new = client._new_folder
    monkeypatch.setattr(client, "_new_folder", lambda: paths.append(new()) or paths[-1])
    return paths


def gone(paths: list[str]) -> bool:
    return not any(map(os.path.exists, paths))


OWNER = """
import sys
from grpo_math.sandbox.client import Sandbox
from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.tester import Job
sandbox = Sandbox(sys.argv[1])
sandbox.warm_up()
print(sandbox._folder, flush=True)
if sys.argv[2] == "script":
    sandbox.script("open('left', 'w').close()\\nwhile True: pass", b"", Limits(timeout_s=900))
else:
    source = "open('left', 'w').close()\\ndef f():\\n    while True: pass"
    sandbox.judge(Job({"type": "asserts", "asserts": ["f()"]}, [source], True), Limits(timeout_s=900))
"""


@needs_proc
@pytest.mark.parametrize("kind", ["script", "judge"])
@pytest.mark.parametrize("level", LEVELS)
def test_when_the_owner_is_killed_nothing_is_left(level: str, kind: str) -> None:
    started(level)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, level, kind],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert owner.stdout is not None
        folder = owner.stdout.readline().decode().strip()
        # the zygote, in its namespaces with one that waits for it, the tester, and the program
        family = settled(lambda: descendants(owner.pid), 4 if level == "namespaces" else 3)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()  # type: ignore[union-attr]
    assert until(lambda: not any(map(alive, family)))
    assert until(lambda: not os.path.exists(folder))


def in_the_middle(
    sandbox: Sandbox, kind: str, timeout_s: float = 600.0
) -> tuple[list[object], threading.Thread, set[int]]:
    """Start an endless program; gives the place of its result, its thread, and the processes of the sandbox."""
    result: list[object] = []
    others = descendants(os.getpid())
    sandbox.warm_up()
    idle = descendants(os.getpid()) - others

    def work() -> None:
        endless = replace(LIMITS, timeout_s=timeout_s)
        try:
            if kind == "script":
                result.append(sandbox.script("open('left', 'w').close()\nwhile True: pass", b"", endless))
            else:
                source = "open('left', 'w').close()\ndef f():\n    while True: pass"
                result.append(judge(sandbox, source, "f()", limits=endless))
        except SandboxError as error:
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return result, thread, settled(lambda: descendants(os.getpid()) - others, len(idle) + 1)


@needs_proc
@pytest.mark.parametrize("kind", ["script", "judge"])
@pytest.mark.parametrize("level", LEVELS)
def test_when_the_zygote_is_killed_it_is_the_machines_fault(level: str, kind: str, made: list[str]) -> None:
    started(level)
    one = Sandbox(level)
    try:
        result, thread, family = in_the_middle(one, kind)
        assert one._zygote is not None
        zygote = one._zygote.process.pid
        os.kill(zygote, signal.SIGKILL)
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert isinstance(result[0], SandboxError)
        assert "zygote" in str(result[0])
        tester = one._tester
        testers = set() if tester is None else {tester.process.pid} | descendants(tester.process.pid)
        assert until(lambda: not any(map(alive, family - testers)))
        assert works(one)
        assert said(one, "print(json.dumps(os.listdir('.')))") in ([], [".stdin"])
    finally:
        one.close()
    assert made
    assert gone(made)


@needs_proc
def test_when_the_tester_is_killed_it_is_the_machines_fault(fresh: Sandbox) -> None:
    result, thread, family = in_the_middle(fresh, "judge", timeout_s=1.5)
    assert fresh._tester is not None
    assert fresh._zygote is not None
    os.kill(fresh._tester.process.pid, signal.SIGKILL)
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert isinstance(result[0], SandboxError)
    zygotes = set() if fresh._zygote is None else {fresh._zygote.process.pid} | descendants(fresh._zygote.process.pid)
    assert until(lambda: not any(map(alive, family - zygotes)))
    assert works(fresh)
    fresh.close()
    assert until(lambda: not any(map(alive, family)))


@needs_proc
def test_closing_leaves_nothing(sandbox: Sandbox, made: list[str]) -> None:
    others = descendants(os.getpid())
    one = Sandbox(sandbox.level)
    assert works(one)
    family = descendants(os.getpid()) - others
    assert family
    one.close()
    assert until(lambda: not any(map(alive, family)))
    assert gone(made)


def test_an_interrupted_call_leaves_nothing_for_the_next(fresh: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Stop

    assert works(fresh)
    calls = {"_outcome": lambda: judge(fresh, "def f(): return 7"), "_ended": lambda: said(fresh, "print(7)")}
    for method, call in calls.items():
        with monkeypatch.context() as patch:
            patch.setattr(fresh, method, interrupt)
            with pytest.raises(Stop):
                call()
        assert works(fresh)


# ---- the machine's own failures

BROKEN = "import sys; sys.path.insert(0, sys.argv[-1]); from grpo_math.sandbox import {0} as m\n%s\nm.main()"
FAILURES = {
    "no interpreter": lambda patch: patch.setattr(sys, "executable", "/nowhere/python"),
    "no process to be had": lambda patch: patch.setattr(client.subprocess, "Popen", refused),
    "no folder to write in": lambda patch: patch.setattr(client.tempfile, "mkdtemp", refused),
    "the zygote ends at once": lambda patch: patch.setattr(client, "_BOOT", "pass"),
    "the zygote raises": lambda patch: patch.setattr(client, "_BOOT", "import sys; sys.stderr = None; 1 / 0"),
    "a wall cannot be built": lambda patch: patch.setattr(
        client,
        "_BOOT",
        BROKEN % "def no(*_): raise OSError(1, 'no wall')\nif hasattr(m, 'Zygote'): m.Zygote._layers = no",
    ),
    "fork is refused": lambda patch: patch.setattr(
        client,
        "_BOOT",
        BROKEN
        % (
            "import os\ndef no(): sys.stderr = None; raise BlockingIOError(11, 'no more processes')\n"
            "if hasattr(m, 'Zygote'):\n    serve = m.Zygote.serve\n"
            "    def served(self): os.fork = no; serve(self)\n    m.Zygote.serve = served"
        ),
    ),
    "a program cannot be confined": lambda patch: patch.setattr(
        client,
        "_BOOT",
        BROKEN
        % (
            "def no(*_): raise OSError(12, 'no limit')\nif hasattr(m, 'Zygote'):\n    serve = m.Zygote.serve\n"
            "    def served(self): m.child.limit = no; serve(self)\n    m.Zygote.serve = served"
        ),
    ),
}


def refused(*_: object, **__: object) -> None:
    raise OSError(11, "refused by the test")


def own_limits(level: str) -> Limits:
    return replace(LIMITS, require=level, at_most=level)


def both_kinds() -> list[Problem]:
    tests: list[dict[str, Any]] = [
        {"type": "asserts", "asserts": ["assert f() == 1"]},
        {"type": "stdio", "cases": [{"input": "", "output": "1"}]},
    ]
    return [Problem("p", "t", "", "", {"tests": given}) for given in tests]


RIGHT = "```python\ndef f(): return 1\nprint(f())\n```"


@needs_proc
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_of_the_machine_is_an_error_without_a_reward(
    failure: str, best: Sandbox, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = own_limits(best.level)
    code._cache.clear()
    code.shut_down()
    family = descendants(os.getpid())
    with monkeypatch.context() as patch:
        FAILURES[failure](patch)
        for problem in both_kinds():
            verdict = code.verify(problem, RIGHT, sandbox=limits)
            assert (verdict.reward, verdict.reason) == (None, "error"), verdict
            assert verdict.detail
        code.shut_down()
    assert until(lambda: descendants(os.getpid()) <= family)
    assert gone(made)
    for problem in both_kinds():
        assert code.verify(problem, RIGHT, sandbox=limits).reward == 1.0


@needs_proc
def test_a_file_for_the_input_that_cannot_be_made_is_an_error(best: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    code._cache.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", refused)
        verdict = code.verify(both_kinds()[1], RIGHT, sandbox=own_limits(best.level))
    assert (verdict.reward, verdict.reason) == (None, "error")
    assert "refused by the test" in verdict.detail


@needs_proc
def test_a_start_that_takes_too_long_is_ended(fresh: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    family = descendants(os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(client, "START_S", 0.5)
        patch.setattr(client, "_BOOT", "import time; time.sleep(999)")
        with pytest.raises(SandboxError, match="did not start within"):
            fresh.start()
        assert until(lambda: descendants(os.getpid()) <= family)
    assert works(fresh)


@needs_proc
def test_a_failed_start_leaves_no_descriptor(fresh: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = descriptors()
    for _ in range(3):
        with pytest.raises(SandboxError):
            fresh.start()
    assert descriptors() == before


def test_the_level_process_starts_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    started("process")
    monkeypatch.setattr(client, "START_S", 10.0)
    for _ in range(12):
        with contextlib.closing(Sandbox("process")) as one:
            one.start()


# ---- levels


def test_what_a_level_promises_was_tried(sandbox: Sandbox) -> None:
    report = sandbox.start()
    assert set(report) == {layer.act for layer in LAYERS}
    for act in NEEDED[sandbox.level]:
        assert report[act] is True
    assert report["memory"] is report["file"] is True


def test_the_report_tells_each_layer(best: Sandbox) -> None:
    found = isolation.report(best.level, best.level)
    lines = found.lines()
    assert lines[0] == f"level {best.level}"
    for layer, line in zip(LAYERS, lines[1:], strict=False):
        assert line.startswith(layer.name)
        assert (f"stopped: {layer.stops}" in line) == bool(found.stands[layer.act] or "not stopped" in line)
        assert ("OFF" in line) == (not found.stands[layer.act]) == (layer.remedy in line)


def machine(monkeypatch: pytest.MonkeyPatch, **levels: dict[str, bool] | str) -> list[str]:
    """A machine on which the levels start with this report, or fail with this word. Gives what was closed."""
    closed: list[str] = []

    def start(self: Sandbox) -> dict[str, bool]:
        given = levels[self.level]
        if isinstance(given, str):
            raise SandboxError(given)
        return given

    monkeypatch.setattr(Sandbox, "start", start)
    monkeypatch.setattr(Sandbox, "close", lambda self: closed.append(self.level))
    return closed


ALL = {layer.act: True for layer in LAYERS}


def test_the_best_level_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = machine(monkeypatch, namespaces=ALL, seccomp=ALL, process=ALL)
    assert [open_sandbox("process")[0].level, open_sandbox("seccomp", "seccomp")[0].level] == ["namespaces", "seccomp"]
    assert closed == []
    closed = machine(monkeypatch, namespaces="unshare: refused", seccomp=ALL, process=ALL)
    sandbox, report = open_sandbox("process")
    assert (sandbox.level, report.level, report.why) == ("seccomp", "seccomp", {"namespaces": "unshare: refused"})
    assert closed == ["namespaces"]


@pytest.mark.parametrize("act", NEEDED["seccomp"])
def test_a_level_without_one_of_its_walls_is_not_taken(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holed = {**ALL, act: False}
    machine(monkeypatch, namespaces=holed, seccomp=holed, process=holed)
    sandbox, report = open_sandbox("process")
    assert sandbox.level == "process"
    name = next(layer.name for layer in LAYERS if layer.act == act)
    assert report.why == {"namespaces": f"not stopped: {name}", "seccomp": f"not stopped: {name}"}


def test_what_is_required_and_does_not_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, namespaces="unshare: refused", seccomp={**ALL, "socket": False}, process=ALL)
    with pytest.raises(SandboxError, match=r"sandbox.require=namespaces here \(namespaces: unshare: refused\)"):
        open_sandbox("namespaces")
    with pytest.raises(SandboxError, match=r"seccomp: not stopped: network.*doctor.*sandbox.require=process"):
        open_sandbox("seccomp")
    code.shut_down()
    code._cache.clear()
    for problem in both_kinds():
        verdict = code.verify(problem, RIGHT, sandbox=replace(LIMITS, require="namespaces"))
        assert (verdict.reward, verdict.reason) == (None, "error")
        assert "sandbox.require=namespaces" in verdict.detail
