"""Learned rewards on arithmetic, from one base model: does the circle close?

    python -m benchmarks.learned --base runs/quickstart/base          after `make train`
    python -m benchmarks.learned --base ... --only prm evaluate       some of the stages
    python -m benchmarks.learned --base ... --only runs --arms ppo    some of the runs: another process may do others

    samples     the base model's own solutions, usual and strange ones          grpo-math sample
    labels      which step is right, from continuations and the verifier        grpo-math label-steps
    backbone    the base model with two more layers, what the process model starts from
    prm         a process reward model                                          launch/arithmetic_prm.yaml
    orm         an outcome reward model, which starts from that one             launch/arithmetic_orm.yaml
    evaluate    best of 8 and weighted majority beside plain majority; the first wrong step against the exact one
    runs        GRPO, process GRPO, PPO, GRPO on the outcome model alone        launch/arithmetic_*.yaml, some seeds

Each stage is a command that a user would give, printed before it is run; one whose result is there is passed over, and
`--fresh` begins anew. Prints tables and draws docs/learned.png. Left out: how good any of it can be when tuned further.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import described, table
from grpo_math.log import write_whole
from grpo_math.report.curve import COLOURS, DASHES, GREY, read_metrics, write_figure
from grpo_math.tasks.arithmetic import addition
from grpo_math.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = Path("docs/learned.png")
TASK = ("--task", "arithmetic", "--option", "max_digits=3", "--option", "operations=+", "--max-tokens", "64")
LEARNT = ("--split", "train", "--option", "seed=5000")  # problems that neither the base model nor GRPO has learnt from
TEMPERATURES = {"usual": 1.0, "strange": 1.5}  # mistakes that the policy makes now, and some that it may come to
MORE_LAYERS = 2  # a value is read where the next token would be predicted, and must compare what was with what is


@dataclass(frozen=True)
class Arm:
    """A way of training the policy: its launch file, and what is changed of it."""

    label: str
    file: str
    changes: tuple[str, ...] = ()
    seeds: bool = False


WATCHED = ("evaluation.every=20", "evaluation.n=4", "evaluation.k=[1]", "evaluation.limit=200")
ARMS = {
    "outcome": Arm("GRPO", "launch/arithmetic_grpo.yaml", seeds=True),
    "process": Arm("process GRPO", "launch/arithmetic_process.yaml", seeds=True),
    "ppo": Arm("PPO", "launch/arithmetic_ppo.yaml"),
    "orm_alone": Arm("GRPO on the outcome model alone", "launch/arithmetic_learned.yaml"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.fresh:
        shutil.rmtree(given.out, ignore_errors=True)
    if not (given.base / "model").exists():
        raise UserError(f"--base {given.base} has no model in it; run `make train`, or give another run folder")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        STAGES[name](given)
    print(f"\n{described(torch.get_num_threads(), 'torch', 'transformers')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base", type=Path, default=Path("runs/quickstart/base"), help="run folder of the base model")
    add("--out", type=Path, default=Path("runs/learned"), help="where everything goes")
    add("--only", nargs="+", choices=STAGES, default=list(STAGES))
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which of the runs")
    add("--seeds", type=int, default=3, help="of the two kinds of GRPO")
    add("--problems", type=int, default=4000, help="whose solutions the reward models learn from, 4 of each")
    add("--fresh", action="store_true", help="throw away what is there")
    return parser.parse_args(arguments)


def grpo_math(*words: object) -> None:
    """A command, as a user would give it."""
    line = [str(word) for word in words]
    print(f"\n$ grpo-math {' '.join(line)}", flush=True)
    subprocess.run([sys.executable, "-m", "grpo_math", *line], check=True)


def samples(given: argparse.Namespace) -> None:
    for name, temperature in TEMPERATURES.items():
        out = given.out / name
        if not (out / "results.json").exists():
            grpo_math("sample", given.base, *TASK, *LEARNT, "--limit", given.problems, "-n", 4,
                      "--temperature", temperature, "--out", out)  # fmt: skip


def labels(given: argparse.Namespace) -> None:
    for name, limit in (("usual", ()), ("strange", ("--limit", 5000))):
        out, learnt = given.out / f"{name}.jsonl", given.out / name / "samples.jsonl"
        if not out.exists():
            grpo_math("label-steps", learnt, "--model", given.base, *TASK, *LEARNT, "-n", 8, "--out", out, *limit)


def backbone(given: argparse.Namespace) -> None:
    """The base model with more layers on top, which change nothing until they have learnt: what they add is 0."""
    out = given.out / "backbone"
    if out.exists():
        return
    path = given.base / "model"
    base = AutoModelForCausalLM.from_pretrained(path)
    settings = copy.deepcopy(base.config)
    settings.num_hidden_layers += MORE_LAYERS
    settings.layer_types = [*settings.layer_types, *settings.layer_types[-1:] * MORE_LAYERS]
    torch.manual_seed(0)
    deeper = AutoModelForCausalLM.from_config(settings)
    deeper.load_state_dict(base.state_dict(), strict=False)
    for layer in deeper.model.layers[-MORE_LAYERS:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    deeper.save_pretrained(out)
    AutoTokenizer.from_pretrained(path).save_pretrained(out)


def train(file: str, *changes: object) -> None:
    """What is finished already says so and ends at once."""
    grpo_math("train", file, *changes)


def prm(given: argparse.Namespace) -> None:
    """First on the policy's usual mistakes, then on strange ones too, which it would otherwise find for itself."""
    out, file = given.out, "launch/arithmetic_prm.yaml"
    train(file, f"run_dir={out}/prm_usual", f"model.path={out}/backbone", f"data={out}/usual.jsonl")
    data = f"data=[{out}/usual.jsonl,{out}/strange.jsonl]"
    train(file, f"run_dir={out}/prm", f"model.path={out}/prm_usual/model", data, "epochs=2")


def orm(given: argparse.Namespace) -> None:
    out = given.out
    data = f"data=[{out}/usual/samples.jsonl,{out}/strange/samples.jsonl]"
    train("launch/arithmetic_orm.yaml", f"run_dir={out}/orm", f"model.path={out}/prm_usual/model", data)


def evaluate(given: argparse.Namespace) -> None:
    """On the task's test problems: what the reward models choose of 8 solutions, and whether the process model names
    the first wrong step."""
    out = given.out / "test"
    models = [f"--reward-model={name}={given.out / name}" for name in ("prm", "orm")]
    if not (out / "results.json").exists():
        grpo_math("evaluate", given.base, *TASK, "--split", "test", "--limit", 400, "-n", 8, "--k", "1,8", "--out", out,
                  *models)  # fmt: skip
    exact = given.out / "exact.jsonl"
    with (out / "samples.jsonl").open(encoding="utf-8") as stream:
        rows = list(exactly_labelled(map(json.loads, stream)))
    write_whole(exact, "".join(json.dumps(row) + "\n" for row in rows))
    grpo_math("evaluate-steps", given.out / "prm", exact, "--out", given.out / "steps")


def exactly_labelled(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each text once, with the true labels of its steps: a line is right if it, and all before it, are those of the
    worked solution."""
    seen = set()
    for row in rows:
        text, asked = row["completion"], row["prompt"]
        if (asked, text) in seen or row["finish_reason"] != "stop":
            continue
        seen.add((asked, text))
        a, b = map(int, asked.strip().removesuffix("=?").split("+"))
        wanted = [*addition(a, b, lambda value, _: value)[0], f"\\boxed{{{a + b}}}"]
        steps = text.splitlines(keepends=True)
        right = [step.strip() == line for step, line in zip(steps, wanted, strict=False)]
        right += [False] * (len(steps) - len(right))
        labels = [all(right[: i + 1]) for i in range(len(steps))]
        if all(step.strip() for step in steps):
            yield {"prompt": asked, "completions": steps, "labels": labels, "separator": "", "problem": row["problem"]}


def runs(given: argparse.Namespace) -> None:
    for name in given.arms:
        arm = ARMS[name]
        for seed in range(given.seeds if arm.seeds else 1):
            changes = [f"run_dir={given.out}/{name}-{seed}", f"seed={seed}", f"task.options.seed={1000 + seed}"]
            changes.append(f"model.path={given.base}/model")
            train(arm.file, *changes, *WATCHED, *rewards_of(name, given.out))
    curves = {name: [curve(given.out / f"{name}-{seed}") for seed in range(given.seeds)] for name in ARMS}
    print(f"\n{runs_table(curves)}\n\n{picture(curves, PICTURE)}")


def rewards_of(name: str, out: Path) -> list[str]:
    """Where the reward model of an arm is, as its launch file lists it."""
    return {"process": [f"rewards.1.model={out}/prm/model"], "orm_alone": [f"rewards.0.model={out}/orm/model"]}.get(
        name, []
    )


def curve(folder: Path) -> list[tuple[int, float, float]]:
    """(completions drawn, held-out accuracy, gap of learned and verified reward) of a run, as it was measured; empty
    where there is no such run."""
    if not (folder / "metrics.jsonl").exists():
        return []
    points, drawn = [], 0
    for row in read_metrics(folder):
        drawn += int(row["completion/count"])
        if row.get("eval/accuracy") is not None:
            points.append((drawn, row["eval/accuracy"], row.get("guard/gap") or 0.0))
    return points


def runs_table(curves: Mapping[str, Sequence[Sequence[tuple[int, float, float]]]]) -> str:
    """Samples to 0.95 and to 0.98, and the end, of each seed."""
    rows = []
    for name, seeds in curves.items():
        for seed, points in enumerate(seeds):
            if points:
                reached = [
                    next((f"{n:,}" for n, accuracy, _ in points if accuracy >= goal), "-") for goal in (0.95, 0.98)
                ]
                rows.append([ARMS[name].label, str(seed), *reached, f"{points[-1][1]:.3f}", f"{points[-1][2]:.2f}"])
    return table(("", "seed", "samples to 0.95", "samples to 0.98", "accuracy at the end", "gap at the end"), rows)


def picture(curves: Mapping[str, Sequence[Sequence[tuple[int, float, float]]]], path: Path) -> Path:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style may have a dark background
        write_figure(draw(curves), path)
    return path


def draw(curves: Mapping[str, Sequence[Sequence[tuple[int, float, float]]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for i, (name, seeds) in enumerate(curves.items()):
        for seed, points in enumerate(seeds):
            label = ARMS[name].label if seed == 0 else None
            axes.plot([n for n, *_ in points], [accuracy for _, accuracy, _ in points], label=label,
                      color=COLOURS[i], linestyle=DASHES[i], linewidth=1.6)  # fmt: skip
    axes.set_xlabel("completions drawn to learn from", color=GREY, fontsize=9)
    axes.set_ylabel("held-out accuracy", color=GREY, fontsize=9)
    axes.set_ylim(0.5, 1.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)
    axes.legend(loc="lower right", fontsize=8.5, framealpha=0)
    return figure


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "samples": samples,
    "labels": labels,
    "backbone": backbone,
    "prm": prm,
    "orm": orm,
    "evaluate": evaluate,
    "runs": runs,
}

if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
