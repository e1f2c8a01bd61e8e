"""One task of an evaluation: its problems, how they are put, who judges them; checked before a model is loaded.

And how tasks are named on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_math import config
from grpo_math.find import find_task, find_verifier, list_tasks, verifier_of
from grpo_math.forms import Form, form_of
from grpo_math.preflight import check_task
from grpo_math.problems import load_problems
from grpo_math.scoring import check_options
from grpo_math.types import Problem, UserError


@dataclass(frozen=True)
class Job:
    """label: the task's name in tables and files. refused: (id, complaint) of problems whose own answer is of no use to
    the verifier. missing: problems that a file has no samples of. too_long: those that were left
    out when it was made, since their prompts did not fit."""

    label: str
    task: config.Task
    module: ModuleType
    form_name: str
    form: Form
    reward: config.Reward
    problems: tuple[Problem, ...]
    refused: tuple[tuple[str, str], ...]
    missing: int = 0
    too_long: int = 0


def make_job(label: str, task: config.Task, verifier: str | None, options: Mapping[str, Any]) -> Job:
    """Raises UserError: no such task or file, options that it does not take, problems without an end."""
    module = find_task(task.name)
    reward = config.Reward(verifier=verifier_of(task.name, verifier), options=dict(options))
    check_options(reward)
    form_name, form = form_of(task, module)
    source = load_problems(task, getattr(find_verifier(reward.verifier), "check", None))
    if source.problems is None:
        raise UserError(f"task {label}, split {task.split!r}, has no end; say how many problems of it with --limit")
    refused = tuple((problem.id, complaint) for problem, complaint in source.refused)
    return Job(label, task, module, form_name, form, reward, tuple(source.problems), refused)


def split_label(text: str) -> tuple[str, str | None]:
    """reasoning_gym:chain_sum -> ("reasoning_gym", "chain_sum"): a task, and the value for its option VARIANT."""
    name, colon, variant = text.rpartition(":")
    return (name, variant) if colon and "/" not in variant else (text, None)


def label_of(text: str) -> str:
    """gsm8k for gsm8k, mine for ./mine.py."""
    name, variant = split_label(text)
    stem = Path(name).stem if name.endswith(".py") else name
    return stem if variant is None else f"{stem}:{variant}"


def options_for(given: Mapping[str, Any], labels: list[str]) -> dict[str, dict[str, Any]]:
    """The options of each label: KEY is for all of them, LABEL.KEY for one and goes before it."""
    for_all = {key: value for key, value in given.items() if key.partition(".")[0] not in labels or "." not in key}
    return {
        label: for_all | {key.removeprefix(f"{label}."): v for key, v in given.items() if key.startswith(f"{label}.")}
        for label in labels
    }


def names_of(flag: str, given: str) -> list[str]:
    """The tasks of a list with commas. Raises UserError: there is none, or one that is in it twice."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise UserError(f"{flag} {given!r} names no task; give one, such as gsm8k")
    labels = [label_of(name) for name in names]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise UserError(f"{flag} {given}: {', '.join(repeated)} is in it more than once; name each task once")
    return names


def for_labels(given: Sequence[str], labels: list[str]) -> dict[str, list[str]]:
    """Of each label the values given for it alone, as LABEL=VALUE, or else those given for all."""
    own: dict[str, list[str]] = {label: [] for label in labels}
    for_all = []
    for text in given:
        label, mark, value = text.partition("=")
        if mark and label in own:
            own[label].append(value)
        elif mark and label in list_tasks():
            raise UserError(f"{text} is for the task {label}, which is not among {', '.join(labels)}; leave it out")
        else:
            for_all.append(text)
    return {label: values or for_all for label, values in own.items()}


def task_of(
    name: str, split: str, paths: Sequence[str], options: Mapping[str, Any], flag: str = "--path", **more: Any
) -> config.Task:
    """NAME or NAME:VARIANT, with its problems from a file where `flag` gives one, in whose path {task} is filled in.

    Raises UserError for a task that there is not, options that it does not take, a file that is not there."""
    plain, variant = split_label(name)
    chosen = dict(options) if variant is None else {**options, variant_option(plain): variant}
    path = one_of(flag, name, paths)
    path = None if path is None else path.replace("{task}", label_of(plain))
    task = config.Task(name=plain, split=split, path=path, options=chosen, **more)
    check_task(task, flag)
    return task


def variant_option(task: str) -> str:
    """The option that NAME:VARIANT sets, which the task's module calls VARIANT."""
    option = getattr(find_task(task), "VARIANT", None)
    if option is None:
        raise UserError(f"task {task} has no variants; leave out what is behind the colon")
    return str(option)


def one_of(flag: str, label: str, given: Sequence[str]) -> str | None:
    if len(given) > 1:
        raise UserError(f"{flag} is given twice for task {label}: {', '.join(given)}; give one")
    return given[0] if given else None
