"""From the arguments of `grpo-math evaluate` to an evaluation: tasks, what samples, where it goes.

All that can be wrong with the arguments is found here, before a model is loaded. `grpo-math sample` has the same ones
and asks in the same way (sample.py). Left out: the typer command (cli_evaluate.py) and the evaluation itself (run.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from grpo_math import config
from grpo_math.arguments import parse_options, whole_numbers
from grpo_math.evaluation.files import SAMPLES
from grpo_math.evaluation.foreign import FileSampler, SampleFile, read_samples
from grpo_math.evaluation.gold import GoldSampler
from grpo_math.evaluation.job import Job, for_labels, label_of, make_job, names_of, one_of, options_for, task_of
from grpo_math.evaluation.jobs_beside import jobs_of_file
from grpo_math.evaluation.reward_models import (
    Chosen,
    RewardSpec,
    named_paths,
    on_device,
    refuse_idle_flags,
    reward_specs,
)
from grpo_math.evaluation.run import Wanted, evaluate
from grpo_math.evaluation.sampler import Sampler
from grpo_math.evaluation.show import table
from grpo_math.evaluation.show_prompt import prompts_shown
from grpo_math.evaluation.write import speeds
from grpo_math.preflight import check_model, check_writable
from grpo_math.types import Sampling, UserError

MODEL_LINK = "model"  # of a run's folder: its newest checkpoint
OF_TASKS = ("option", "path", "prompt", "limit", "chat")  # arguments that speak of tasks named beside them


@dataclass(frozen=True)
class Arguments:
    """Those of the command, by their names there; `grpo-math evaluate --help` tells what they mean."""

    model: str | None = None
    task: str | None = None
    split: str = "test"
    n: int = 8
    k: str | None = None
    limit: int | None = None
    path: Sequence[str] = ()
    option: Sequence[str] = ()
    prompt: Sequence[str] = ()
    chat: bool | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None
    seed: int = 0
    engine: Literal["hf", "vllm", "openai"] = "hf"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 32
    request_s: float = 600.0
    retries: int = 6
    samples: Path | None = None
    partial: bool = False
    gold: bool = False
    show_prompt: bool = False
    out: Path | None = None
    fresh: bool = False
    verifier: str | None = None
    verifier_options: Sequence[str] = ()
    workers: int = 2
    timeout_s: float = 2.0
    sandbox: config.Sandbox = field(default_factory=config.Sandbox)
    max_rows: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    reward_model: Sequence[str] = ()
    reward: Chosen = field(default_factory=Chosen)


def command(arguments: Arguments) -> None:
    """Evaluate as asked and print the table; or print prompts. Raises UserError, at the end where nothing of a task
    could be judged."""
    refuse_idle(arguments)
    path = path_of(arguments)
    file = None if arguments.samples is None else read_samples(arguments.samples)
    jobs = make_jobs(arguments, file)
    if arguments.show_prompt:
        print(prompts_shown(jobs, path))
        return
    sampling = sampling_of(arguments)
    ks = ks_of(arguments, file)
    out = arguments.out or default_out(arguments, jobs, "evaluate")
    check_writable(out, "--out")
    if file is not None and (out / SAMPLES).exists() and (out / SAMPLES).samefile(file.path):
        raise UserError(f"--out {out} is the folder of --samples, which would be overwritten; give another one")
    rewards = rewards_of(arguments)
    sampler, jobs = make_sampler(arguments, path, jobs, file)
    wanted = replace(wanted_of(arguments, jobs, path, sampling, ks, out), rewards=rewards)
    with closing(sampler):
        results = evaluate(wanted, sampler)
    print(f"{wanted.model}\n\n{table(results, speeds(out))}\n\nall of it is in {out}")
    refuse_nothing(results, out)


def wanted_of(
    arguments: Arguments, jobs: Sequence[Job], path: str | None, sampling: Sampling | None, ks: Sequence[int], out: Path
) -> Wanted:
    return Wanted(
        jobs=jobs,
        model=arguments.model or (f"--samples {arguments.samples}" if arguments.samples else "--gold"),
        path=path,
        sampling=sampling,
        max_tokens=arguments.max_tokens,
        ks=ks,
        scoring=config.Scoring(workers=arguments.workers, timeout_s=arguments.timeout_s, max_error_share=1.0),
        sandbox=arguments.sandbox,
        out=out,
        fresh=arguments.fresh,
    )


def rewards_of(arguments: Arguments) -> list[RewardSpec]:
    """Raises UserError: no reward model, a device that is not there."""
    if not arguments.reward_model:
        return []
    paths = {name: model_path(path, "--reward-model") for name, path in named_paths(arguments.reward_model).items()}
    return reward_specs(paths, on_device(arguments.reward, arguments.device, "--reward-device"))


def refuse_nothing(results: Mapping[str, Any], out: Path) -> None:
    """Raises UserError where nothing of a task could be judged: no figure of it would be one of the model."""
    if nothing := [label for label, found in results["tasks"].items() if found["accuracy"] is None]:
        raise UserError(
            f"nothing of {', '.join(nothing)} could be judged; {out / SAMPLES} says why, completion by completion"
        )


def refuse_idle(arguments: Arguments) -> None:
    """Arguments that would say nothing."""
    idle = [name for name in OF_TASKS if getattr(arguments, name) not in (None, [], ())]
    if arguments.samples is not None and arguments.task is None and idle:
        raise UserError(f"--{idle[0]} says how --task is meant; give --task too, or leave it out")
    if arguments.partial and arguments.samples is None:
        raise UserError("--partial speaks of --samples; leave it out")
    if arguments.engine_options and arguments.engine != "vllm":
        raise UserError("--engine-option is for --engine vllm; leave it out")
    if not arguments.reward_model:
        refuse_idle_flags(arguments.reward)


def path_of(arguments: Arguments) -> str | None:
    """Where the weights are; None where none are loaded here."""
    if arguments.model is None or arguments.engine == "openai":
        return None
    return model_path(arguments.model)


def model_path(model: str, key: str = "MODEL") -> str:
    """A run's folder stands for its newest checkpoint. Raises UserError for a folder that is no model; key: what it
    calls it."""
    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / "config.json").exists() and (folder / MODEL_LINK).is_dir():
        folder = folder / MODEL_LINK
    if folder.is_dir():
        model = str(folder)
    check_model(model, key)
    return model


# ---- tasks


def make_jobs(arguments: Arguments, file: SampleFile | None) -> list[Job]:
    if arguments.task is None:
        if file is None:
            raise UserError("--task is missing: say what to evaluate on, such as --task gsm8k,math500")
        return jobs_of_file(file, arguments.verifier, parse_options("--set", arguments.verifier_options))
    names = names_of("--task", arguments.task)
    labels = [label_of(name) for name in names]
    options = options_for(parse_options("--option", arguments.option), labels)
    paths, prompts = for_labels(arguments.path, labels), for_labels(arguments.prompt, labels)
    verifier_options = parse_options("--set", arguments.verifier_options)
    jobs = []
    for name, label in zip(names, labels, strict=True):
        task = task_of(
            name,
            arguments.split,
            paths[label],
            options[label],
            limit=arguments.limit,
            prompt=one_of("--prompt", label, prompts[label]),
            chat=arguments.chat,
        )
        jobs.append(make_job(label, task, arguments.verifier, verifier_options))
    return jobs


# ---- sampling


def sampling_of(arguments: Arguments) -> Sampling | None:
    """None where the completions exist already. max_tokens is decided task by task."""
    if arguments.samples is not None or arguments.gold:
        return None
    return Sampling(
        arguments.n, arguments.max_tokens or 1, arguments.temperature, arguments.top_p, arguments.top_k, arguments.seed
    )


def ks_of(arguments: Arguments, file: SampleFile | None) -> list[int]:
    """Raises UserError for a k above n, or above what some problem of a file has."""
    n, name = arguments.n, f"-n {arguments.n}"
    if arguments.gold:
        n, name = 1, "--gold, which has one answer a problem"
    if file is not None:
        counts: dict[tuple[str | None, str], int] = {}
        for row in file.rows:
            counts[row.task, row.problem] = counts.get((row.task, row.problem), 0) + 1
        n = min(counts.values())
        name = f"--samples {file.path}, where some problem has {n}"
    if arguments.k is None:
        return sorted({1, n})
    ks = whole_numbers("--k", arguments.k)
    if ks[0] < 1 or ks[-1] > n:
        raise UserError(
            f"--k {arguments.k}: pass@k needs k from 1 to n, which is {n} ({name}); choose smaller ones"
            + (f", or set -n {ks[-1]}" if file is None and not arguments.gold and ks[0] > 0 else "")
        )
    return ks


def make_sampler(
    arguments: Arguments, path: str | None, jobs: list[Job], file: SampleFile | None, tokens: bool = False
) -> tuple[Sampler, list[Job]]:
    """The jobs too, since a file may have no samples of some problems. tokens: with their log-probabilities, where the
    sampler can tell."""
    if file is not None:
        sampler = FileSampler(file, jobs, arguments.partial)
        return sampler, [with_samples(job, sampler) for job in jobs]
    if arguments.gold:
        return GoldSampler({job.label: job.module for job in jobs}), jobs
    if arguments.engine == "openai":
        from grpo_math.evaluation.openai import OpenAISampler
        from grpo_math.evaluation.openai_http import key_from

        assert arguments.base_url is not None
        assert arguments.model is not None
        server = OpenAISampler(
            arguments.base_url,
            arguments.model,
            key=key_from(arguments.key_env),
            key_name=arguments.key_env,
            concurrency=arguments.concurrency,
            request_s=arguments.request_s,
            retries=arguments.retries,
            chat=arguments.chat,
        )
        server.introduce()
        return server, jobs
    assert path is not None
    if arguments.engine == "vllm":
        from grpo_math.evaluation.vllm import VLLMSampler

        return VLLMSampler(path, arguments.max_rows, arguments.dtype, arguments.engine_options, tokens), jobs
    from grpo_math.evaluation.hf import HFSampler

    return HFSampler(path, arguments.max_rows, arguments.dtype, arguments.device, tokens), jobs


def with_samples(job: Job, sampler: FileSampler) -> Job:
    problems = tuple(problem for problem in job.problems if sampler.has(job.label, problem))
    if not problems:
        raise UserError(f"--samples {sampler.file.path} has no samples of task {job.label}; leave it out of --task")
    return replace(job, problems=problems, missing=len(job.problems) - len(problems))


def default_out(arguments: Arguments, jobs: Sequence[Job], command: str) -> Path:
    """runs/COMMAND/MODEL-TASK, or of a file its own name."""
    if arguments.samples is not None:
        model = f"{arguments.samples.parent.name}-{arguments.samples.name.partition('.')[0]}".strip("-")
    else:
        model = (arguments.model or "gold").strip("./").replace("/", "--")
    return Path("runs") / command / f"{model}-{'-'.join(job.label.replace(':', '-') for job in jobs)}"
