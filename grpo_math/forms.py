"""Named, versioned ways of putting a task's problems to a model.

A task module lists its own in PROMPTS, from the name to the Form, the first of which is the default. A name ends in
@VERSION, and words that have been published with a result never change under a name: another wording is @2. Left out:
tokens and chat templates (prompts.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from grpo_math.types import Problem, UserError

if TYPE_CHECKING:
    from grpo_math import config

NAME = re.compile(r"[^@]+@\d+")


@dataclass(frozen=True, slots=True)
class Form:
    """How a problem is put to a model.

    template: {question} in it is the problem's question, {prompt} its metadata["prompt"], the head of a program to go
    on with; examples for base models stand in it as they are. chat: None for a chat template where the tokenizer has
    one, False for words that are to be continued. stop: a completion ends before the first of these. source: where the
    words were published.
    """

    template: str
    system: str | None = None
    chat: bool | None = None
    stop: tuple[str, ...] = ()
    source: str = ""

    def text(self, problem: Problem) -> str:
        """What the user says. Raises UserError where the template wants a {prompt} that the problem does not have."""
        # replace, not str.format: templates are full of \boxed{}; the question last, for it may have {prompt} in it
        text = self.template
        if "{prompt}" in text:
            if "prompt" not in problem.metadata:
                raise UserError(
                    f"the template {self.template[:60]!r} has {{prompt}} in it, and problem {problem.id} has no "
                    'metadata["prompt"]; write {question}'
                )
            text = text.replace("{prompt}", str(problem.metadata["prompt"]))
        return text.replace("{question}", problem.question)

    def plain(self, problem: Problem) -> str:
        """All that is read where there is no chat."""
        return self.text(problem) if self.system is None else f"{self.system}\n\n{self.text(problem)}"


def forms_of(module: ModuleType) -> Mapping[str, Form]:
    """The forms of a task by their full names. A task with a TEMPLATE alone has one, called `default@1`."""
    if forms := getattr(module, "PROMPTS", None):
        for name in forms:
            if not NAME.fullmatch(name):
                raise UserError(f"{module.__name__}: PROMPTS has {name!r}; write NAME@VERSION, such as boxed@1")
        return dict(forms)
    template, system = getattr(module, "TEMPLATE", "{question}"), getattr(module, "SYSTEM", None)
    return {"default@1": Form(str(template), system)}


def form_of(task: config.Task, module: ModuleType) -> tuple[str, Form]:
    """The form that `task.prompt` names, with or without its version (then the newest), or else the task's first; what
    else the configuration sets goes before it. Raises UserError."""
    forms = forms_of(module)
    name = next(iter(forms)) if task.prompt is None else _full_name(task.name, task.prompt, forms)
    form = forms[name]
    if "{question}" not in form.template and "{prompt}" not in form.template:
        raise UserError(
            f"task {task.name}: its template {name} lacks {{question}}, so no prompt would show the problem: "
            f"{form.template!r}"
        )
    changed = {key: getattr(task, key) for key in ("template", "system", "chat") if getattr(task, key) is not None}
    if not changed:
        return name, form
    merged = Form(
        changed.get("template", form.template),
        changed.get("system", form.system),
        changed.get("chat", form.chat),
        form.stop,
        form.source,
    )
    return f"{name}+{'+'.join(changed)}", merged


def _full_name(task: str, name: str, forms: Mapping[str, Form]) -> str:
    if name in forms:
        return name
    versions = sorted((full for full in forms if full.partition("@")[0] == name), key=_version)
    if not versions:
        raise UserError(f"task.prompt={name!r}: task {task} has the prompts {', '.join(forms)}; choose one of them")
    return versions[-1]


def _version(name: str) -> int:
    return int(name.partition("@")[2])
