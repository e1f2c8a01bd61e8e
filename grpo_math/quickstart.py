"""`make train`: a small model from scratch, taught arithmetic, then GRPO, then both measured on problems neither saw.

Runs launch/arithmetic_sft.yaml and launch/arithmetic_grpo.yaml just as `grpo-math train` does, and `grpo-math evaluate`
on each of the two models. A run that was interrupted goes on; one that was finished starts over.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from grpo_math import checkpoint, config
from grpo_math.config_file import load_config
from grpo_math.evaluation.hf import HFSampler
from grpo_math.evaluation.job import make_job
from grpo_math.evaluation.run import Wanted, evaluate
from grpo_math.log import write_whole
from grpo_math.recipes.run import Resume, run
from grpo_math.types import Sampling, UserError

LAUNCH = Path("launch")
PROBLEMS, SAMPLES = 400, 8
ROWS = (  # what the table shows, from which key of results.json
    ("pass@1", "pass@1"),
    ("pass@8", "pass@8"),
    ("majority of 8", "majority"),
    ("answers in \\boxed{}", "format_rate"),
    ("mean tokens", "mean_tokens"),
)


def quickstart(
    seed: Annotated[int, typer.Option(help="Seed of the model, the problems and the samples.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the runs and results.json go.")] = Path("runs/quickstart"),
) -> None:
    """Teach, reinforce, measure; print a table and write results.json."""
    console = Console()
    began = time.perf_counter()
    # problems too are other ones with another seed, and in each stage
    base = load_config(
        LAUNCH / "arithmetic_sft.yaml", [f"seed={seed}", f"task.options.seed={seed}", f"run_dir={out}/base"]
    )
    trained = load_config(
        LAUNCH / "arithmetic_grpo.yaml",
        [
            f"seed={seed}",
            f"task.options.seed={1000 + seed}",
            f"run_dir={out}/trained",
            f"model.path={out}/base/model",
        ],
    )
    resume: Resume = "auto" if interrupted(out, seed) else "never"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").unlink(missing_ok=True)
        write_whole(out / "seed", f"{seed}\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}); give another folder") from error

    console.rule("1/3  a base model, taught until it is right about three times in ten")
    run(base, resume)
    console.rule("2/3  GRPO: the same model, rewarded by the math verifier alone")
    run(trained, resume if checkpoint.latest(out / "trained" / "checkpoints") else "never")
    console.rule(f"3/3  both on the same {PROBLEMS} problems, on which neither was trained")
    results: dict[str, Any] = {}
    assert trained.task is not None
    for name, cfg in (("base", base), ("trained", trained)):
        results[name] = measure(cfg, trained.task, out / name / "evaluation", seed)
    results["seconds"] = time.perf_counter() - began
    results["seed"] = seed
    write_whole(out / "results.json", json.dumps(results, indent=1) + "\n")
    console.print(table(results))
    console.print(f"{results['seconds']:.0f} s in all. Runs and samples: {out}/  figures: {out}/results.json")


def interrupted(out: Path, seed: int) -> bool:
    """Whether an earlier quickstart with this seed began here and did not end."""
    mark = out / "seed"
    return mark.is_file() and mark.read_text().strip() == str(seed) and not (out / "results.json").exists()


def measure(cfg: config.Common, task: config.Task, out: Path, seed: int) -> dict[str, Any]:
    """The newest model of a run on the test split, drawn with a seed of its own."""
    options = {**task.options, "seed": 2000 + seed}
    task = task.model_copy(update={"split": "test", "limit": PROBLEMS, "options": options})
    model = f"{cfg.run_dir}/model"
    wanted = Wanted(
        jobs=[make_job(task.name, task, None, {})],
        model=model,
        path=model,
        sampling=Sampling(SAMPLES, cfg.sampling.max_tokens, seed=seed),
        max_tokens=cfg.sampling.max_tokens,
        ks=[1, SAMPLES],
        scoring=cfg.scoring.model_copy(update={"max_error_share": 1.0}),
        sandbox=cfg.sandbox,
        out=out,
        fresh=True,
    )
    with closing(HFSampler(model, cfg.rollout.max_rows, cfg.backend.dtype, cfg.backend.device)) as sampler:
        return evaluate(wanted, sampler)["tasks"][task.name]


def table(results: dict[str, Any]) -> Table:
    shown = Table(title="Arithmetic, sampled at temperature 1; 95 % intervals over problems")
    shown.add_column("")
    for name in ("base", "trained"):
        shown.add_column(name, justify="right")
    for label, key in ROWS:
        cells = []
        for name in ("base", "trained"):
            value, interval = results[name][key], results[name].get(f"{key}_interval")
            cells.append(f"{value:.3f}" + (f"  [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
        shown.add_row(label, *cells)
    return shown


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(quickstart)
    try:
        app()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
