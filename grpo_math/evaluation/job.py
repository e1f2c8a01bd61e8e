"""One task of an evaluation: its problems, how they are put, who judges them; checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_math import config
from grpo_math.find import find_task, find_verifier, verifier_of
from grpo_math.forms import Form, form_of
from grpo_math.problems import load_problems
from grpo_math.scoring import check_options
from grpo_math.types import Problem, UserError

EXAMPLE = "gsm8k,math500"


@dataclass(frozen=True)
class Job:
    """label: the task's name in tables and files. refused: (id, complaint) of problems whose own answer is of no use to
    the verifier. missing: problems that a file has no samples of."""

    label: str
    task: config.Task
    module: ModuleType
    form_name: str
    form: Form
    reward: config.Reward
    problems: tuple[Problem, ...]
    refused: tuple[tuple[str, str], ...]
    missing: int = 0


def make_job(label: str, task: config.Task, verifier: str | None, options: Mapping[str, Any]) -> Job:
    """Raises UserError: no such task or file, options that it does not take, problems without an end."""
    module = find_task(task.name)
    reward = config.Reward(verifier=verifier_of(task.name, verifier), options=dict(options))
    check_options(reward)
    form_name, form = form_of(task, module)
    source = load_problems(task, getattr(find_verifier(reward.verifier), "check", None))
    if source.problems is None:
        raise UserError(
            f"task {label}, split {task.split!r}, has no end; say how many problems to evaluate with --limit"
        )
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
