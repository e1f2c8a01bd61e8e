"""What a training step costs as groups, completions and the number of processes grow. Tiny model, CPU, float32.

    python -m benchmarks.scaling --only group      4 to 64 completions a prompt
    python -m benchmarks.scaling --only length     64 to 1,024 tokens a completion
    python -m benchmarks.scaling --only world      1, 2 and 4 processes over gloo: torch, ZeRO-2, ZeRO-3

A step is the loop's own: sample with the HF engine, score, update, sync. Every completion has exactly the tokens it is
asked for, and every group has a signal, so that a row of a table has all the work that it says. With more processes
the step stays the same and is shared: the tokens and the loss must come out equal, or nothing is printed. Each
measurement is a run of `torch.distributed.run`; the settings of a table take turns. Left out: GPUs, networks, start-up.
"""

# peak: highest resident memory of a process during the timed steps, of the largest process; growth: that less what the
# process held before its first step, libraries and model. Threads are per process: with more processes than cores they
# share those, and what is seen is the cost of sharing, not a gain

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from benchmarks.machine import described, table
from benchmarks.scaling_rank import Cost, Work
from benchmarks.setting import MIB, ROOT
from grpo_math import config
from grpo_math.small_model import character_tokenizer, small_model

PARTS = ("generate", "verify", "update", "sync", "gather", "weights")
LOSSES_AGREE = 1e-4
MEASUREMENT_S = 300


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="grpo-math-scaling-") as folder:
        work = Work(
            new_model(folder, given),
            prompts=given.prompts,
            group_size=given.group_size,
            max_tokens=given.max_tokens,
            steps=given.steps,
            micro_batch_tokens=given.micro_batch_tokens,
            threads=given.threads,
        )
        print(described(given.threads, "torch", "transformers", "deepspeed"))
        print(
            f"\nA model of {given.layers} layers of width {given.hidden}, {given.prompts} prompts a step, "
            f"micro-batches of {given.micro_batch_tokens:,} tokens; threads are per process. Medians of "
            f"{given.steps} steps x {given.rounds} rounds; ratios in brackets are to the first row."
        )
        for name, settings in tables(work, given).items():
            print(f"\n{name}\n\n{cost_table(rounds(settings, given.rounds), settings)}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", nargs="+", choices=("group", "length", "world"), default=["group", "length", "world"])
    add("--group-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    add("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    add("--worlds", type=int, nargs="+", default=[1, 2, 4])
    add("--backends", nargs="+", choices=("torch", "zero2", "zero3"), default=["torch", "zero2", "zero3"])
    add("--prompts", type=int, default=4)
    add("--group-size", type=int, default=8, help="where it is not what grows")
    add("--max-tokens", type=int, default=64, help="where it is not what grows")
    add("--micro-batch-tokens", type=int, default=4096)
    add("--hidden", type=int, default=128)
    add("--layers", type=int, default=4)
    add("--steps", type=int, default=3, help="timed steps in each measurement, after one that is not")
    add("--rounds", type=int, default=1, help="measurements of each setting, taking turns")
    add("--threads", type=int, default=1, help="of each process")
    add("--quick", action="store_true", help="small and few: only to see that it runs")
    given = parser.parse_args(arguments)
    if given.quick:
        small = {"group_sizes": [2, 4], "lengths": [8], "worlds": [2], "backends": ["zero2"], "prompts": 2}
        small |= {"group_size": 2, "max_tokens": 8, "hidden": 32, "layers": 2, "steps": 1}
        if given.only == ["group", "length", "world"]:
            small["only"] = ["group", "world"]
        for name, value in small.items():
            setattr(given, name, value)
    return given


def new_model(folder: str, given: argparse.Namespace) -> str:
    tokenizer = character_tokenizer()
    shape = config.NewModel(
        hidden_size=given.hidden,
        layers=given.layers,
        heads=4,
        kv_heads=4,
        intermediate_size=3 * given.hidden,
        context=max(*given.lengths, given.max_tokens) + 64,
    )
    for part in (small_model(shape, tokenizer, seed=0), tokenizer):
        part.save_pretrained(folder)
    return folder


def tables(work: Work, given: argparse.Namespace) -> dict[str, dict[str, Work]]:
    """Title -> {row: what to measure}."""
    growing = {
        "group": (
            f"Group size, {work.max_tokens} tokens, torch, one process",
            {str(size): replace(work, group_size=size) for size in given.group_sizes},
        ),
        "length": (
            f"Tokens of a completion, groups of {work.group_size}, torch, one process",
            {str(length): replace(work, max_tokens=length) for length in given.lengths},
        ),
        "world": (
            f"Processes, groups of {work.group_size}, {work.max_tokens} tokens, the same step for all",
            {
                f"{backend}, {world}": replace(work, backend=backend, world=world)
                for world in given.worlds
                for backend in given.backends
                if backend != "torch" or world == 1
            },
        ),
    }
    return dict(growing[name] for name in given.only)


def rounds(settings: Mapping[str, Work], count: int) -> dict[str, list[Cost]]:
    """`count` measurements of each, in turns."""
    results: dict[str, list[Cost]] = {name: [] for name in settings}
    for number in range(1, count + 1):
        for name, work in settings.items():
            cost = measure(work)
            results[name].append(cost)
            print(f"round {number}/{count}  {name:<10} {median(cost.seconds):7.3f} s", file=sys.stderr, flush=True)
    return results


def measure(work: Work) -> Cost:
    """One measurement: `work.world` processes of their own."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(work.threads),
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cost.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={work.world}"]
        command += ["-m", "benchmarks.scaling_rank", json.dumps(asdict(work)), str(out)]
        with open(Path(folder) / "log", "w+") as log:
            run = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                code = run.wait(MEASUREMENT_S)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                if run.poll() is None:
                    end(run)
            if code:
                log.seek(0)
                why = f"not within {MEASUREMENT_S} s" if code == -1 else f"code {code}"
                raise SystemExit(f"{work} ended: {why}\n{log.read()[-4000:]}")
        return Cost(**json.loads(out.read_text()))


def end(run: subprocess.Popen[bytes]) -> None:
    """The launcher ends its ranks when it is asked to; whatever is left of them goes with their group."""
    run.terminate()
    try:
        run.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def check_equal_work(results: Mapping[str, Sequence[Cost]], settings: Mapping[str, Work]) -> None:
    """Raises SystemExit where somebody sampled other than what was asked for, or where the same work had another
    loss."""
    losses: dict[tuple[int, int], tuple[str, list[float]]] = {}
    for name, of in results.items():
        work = settings[name]
        wanted = work.prompts * work.group_size * work.max_tokens
        for cost in of:
            if odd := [count for count in cost.tokens if count != wanted]:
                raise SystemExit(f"{name} sampled {odd[0]} tokens and not {wanted}")
            other, expected = losses.setdefault((work.group_size, work.max_tokens), (name, cost.losses))
            gaps = [abs(a - b) for a, b in zip(cost.losses, expected, strict=True)]
            if max(gaps) > LOSSES_AGREE:
                raise SystemExit(f"{name} had the losses {cost.losses}, and {other} {expected}, for the same work")


def cost_table(results: Mapping[str, Sequence[Cost]], settings: Mapping[str, Work]) -> str:
    """Markdown, to be pasted into RESULTS.md."""
    check_equal_work(results, settings)
    first = next(iter(results.values()))
    rows = []
    for name, of in results.items():
        times = [(median(s for c in of for s in c.seconds), median(s for c in first for s in c.seconds))]
        times += [
            (median(s for c in of for s in c.phases[p]), median(s for c in first for s in c.phases[p])) for p in PARTS
        ]
        peak, growth = (median(getattr(c, key) for c in of) / MIB for key in ("peak", "growth"))
        before = median(c.growth for c in first) / MIB
        rows.append(
            [
                name,
                f"{of[0].tokens[0]:,}",
                *(with_ratio(value, base) for value, base in times),
                f"{peak:.0f}",
                f"{growth:.0f}" + (f" ({growth / before:.2f})" if before >= 1 else ""),
            ]
        )
    head = ["", "tokens", "s/step", *PARTS, "peak MiB", "growth MiB"]
    return table(head, rows)


def with_ratio(seconds: float, base: float) -> str:
    # what takes less than a tenth of a millisecond has no ratio worth a number
    return f"{seconds:.4f} ({seconds / base:.2f})" if base >= 1e-4 else f"{seconds:.4f}"


if __name__ == "__main__":
    main()
