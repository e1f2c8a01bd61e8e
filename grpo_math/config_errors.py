"""What is wrong with a configuration, in the words of the file: where, key=value, and what to write instead.

Translates pydantic's errors, of which nothing but the facts is shown. Left out: reading the file (config_file.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import Tag, ValidationError

from grpo_math import config
from grpo_math.find import nearest

Key = tuple[str, ...]  # ("optimizer", "learning_rate"); list positions as text
TAG = re.compile(r"\(\w+\)")  # in pydantic's keys: which kind of section a list's item is, such as (model)

# pydantic's error types end in how a value was wrong; what is right is the same
PHRASES = {
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be finite",
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text; put it in quotes",
    "list": "must be a list, such as [a, b]",
    "tuple": "must be a list, such as [a, b]",
    "dict": "must be a mapping of keys to values",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
}
EXAMPLES = {
    "run_dir": "run_dir: runs/my_run",
    "model": "model: {path: FOLDER_OR_HUB_ID}",
    "task": "task: gsm8k",
    "name": "name: gsm8k",
    "verifier": "verifier: math",
}
# what other trainers call it
ELSEWHERE = {
    "batch_size": "prompts_per_step",
    "beta": "kl.coefficient",
    "dataset": "task.name",
    "epsilon": "loss.clip_low",
    "epsilon_high": "loss.clip_high",
    "lr": "optimizer.learning_rate",
    "max_completion_length": "sampling.max_tokens",
    "max_new_tokens": "sampling.max_tokens",
    "max_steps": "steps",
    "model_name_or_path": "model.path",
    "num_generations": "group_size",
    "num_iterations": "passes",
    "output_dir": "run_dir",
    "per_device_train_batch_size": "prompts_per_step",
}


@dataclass
class Source:
    """Where each key was written: its line in the file, or the override on the command line."""

    path: Path
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)

    def at(self, key: Key, value: object) -> str:
        """Where, and key=value as it was written there."""
        for given, text in self.overrides.items():
            if given[: len(key)] == key:
                return f"command line: {text}"
        return f"{self.where(key)}: {'.'.join(key)}={show(value)}"

    def where(self, key: Key) -> str:
        for given in self.overrides:
            if key and (given == key[: len(given)] or key == given[: len(key)]):
                return "command line"
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return str(self.path)


def explain(error: ValidationError, recipe: type[config.Section], source: Source) -> list[str]:
    """One line for each thing that is wrong."""
    return [_line(item, recipe, source) for item in error.errors(include_url=False)]


def unknown_name(what: str, value: object, known: Mapping[str, object] | tuple[Any, ...]) -> str:
    guess = nearest(str(value), map(str, known))
    return f"unknown {what}{f'; did you mean {guess}?' if guess else ''} (known: {', '.join(map(str, known))})"


def show(value: object) -> str:
    """A value as YAML would have it on one line, cut where it is long."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError):
        text = str(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line(item: Mapping[str, Any], recipe: type[config.Section], source: Source) -> str:
    tagged = tuple(str(part) for part in item["loc"])
    key = tuple(part for part in tagged if not TAG.fullmatch(part))
    dotted, kind, value = ".".join(key), item["type"], item["input"]
    if kind == "missing":
        example = EXAMPLES.get(key[-1])
        return f"{source.where(key)}: {dotted} is missing{f'; add for example  {example}' if example else ''}"
    if kind == "value_error":
        return _own_message(key, str(item["ctx"]["error"]), value, source)
    if kind == "invalid_key" or key[-1] == "[key]":
        where = source.where(key if kind == "invalid_key" else key[:-2])
        return f"{where}: {dotted.removesuffix('.[key]')}: keys must be text; put {show(value)} in quotes"
    at = source.at(key, value)
    if kind == "extra_forbidden":
        return f"{at}: unknown key {key[-1]}{_meant(tagged, recipe)}"
    if kind == "literal_error":
        return f"{at}: {unknown_name('value', value, _choices(recipe, tagged))}"
    if kind in ("model_type", "model_attributes_type"):
        section = section_in(_annotation(recipe, tagged))
        return f"{at}: must be a section with keys of its own, or left out (keys: {', '.join(_fields(section))})"
    phrase = PHRASES.get(kind) or PHRASES.get(kind.split("_")[0])
    return f"{at}: {phrase.format(**item.get('ctx', {})) if phrase else item['msg']}"


def _own_message(key: Key, message: str, value: object, source: Source) -> str:
    """The messages of config.py name the keys themselves where they speak of more than one."""
    named = re.match(r"([\w.]+)(=| is missing)", message)
    where = source.where((*key, *named[1].split(".")) if named else key)
    if named or isinstance(value, dict):
        return f"{where}: {'.'.join(key)}: {message}" if key else f"{where}: {message}"
    return f"{where}: {'.'.join(key)} {message}" if isinstance(value, list) else f"{source.at(key, value)} {message}"


def _meant(key: Key, recipe: type[config.Section]) -> str:
    *parents, name = key
    prefix = "".join(f"{parent}." for parent in parents if not TAG.fullmatch(parent))
    own = _fields(section_in(_annotation(recipe, tuple(parents))) if parents else recipe)
    everywhere = list(_dotted(recipe))
    exact = [k for k in everywhere if k.rsplit(".", 1)[-1] == name and k != f"{prefix}{name}"]
    if close := nearest(name, own, cutoff=0.8):
        return f"; did you mean {prefix}{close}?"
    if (other := ELSEWHERE.get(name)) in everywhere:
        return f"; did you mean {other}?"
    if exact:  # those that lie deepest are seldom meant
        depth = min(k.count(".") for k in exact)
        return f"; did you mean {' or '.join([k for k in exact if k.count('.') == depth][:3])}?"
    if not parents and (owners := [r for r, c in config.RECIPES.items() if name in c.model_fields]):
        if len(owners) > 1:
            return f", which the recipes {', '.join(owners)} have; leave it out, or set recipe to one of them"
        return f", which only the recipe {owners[0]} has; leave it out, or set recipe: {owners[0]}"
    if close := nearest(name, own):
        return f"; did you mean {prefix}{close}?"
    if near := nearest(name, {k.rsplit(".", 1)[-1] for k in everywhere}):
        return f"; did you mean {next(k for k in everywhere if k.rsplit('.', 1)[-1] == near)}?"
    return f" (keys{' of ' + prefix.removesuffix('.') if parents else ''}: {', '.join(own)})"


def section_in(annotation: Any) -> type[config.Section] | None:
    """The section that a field holds, alone or in a list; of several kinds the first."""
    if isinstance(annotation, type) and issubclass(annotation, config.Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part))), None)


def tagged_in(annotation: Any, tag: str) -> Any:
    """The part of an annotation that pydantic calls by this tag."""
    if get_origin(annotation) is Annotated and Tag(tag) in annotation.__metadata__:
        return annotation
    return next((found for part in get_args(annotation) if (found := tagged_in(part, tag))), None)


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) or any(map(is_list, get_args(annotation)))


def _annotation(recipe: type[config.Section], key: Key) -> Any:
    annotation: Any = recipe
    for part in key:
        if TAG.fullmatch(part):
            annotation = tagged_in(annotation, part)
            continue
        section = section_in(annotation)
        if section is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
        elif not part.isdigit():
            return None
    return annotation


def _choices(recipe: type[config.Section], key: Key) -> tuple[Any, ...]:
    annotation = _annotation(recipe, key)
    nested = [get_args(part) for part in get_args(annotation) if get_args(part)]
    return nested[0] if nested else get_args(annotation)


def _fields(section: type[config.Section] | None) -> list[str]:
    return list(section.model_fields) if section else []


def _dotted(section: type[config.Section], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield f"{prefix}{name}"
        if inner := section_in(info.annotation):
            yield from _dotted(inner, f"{prefix}{name}.{'0.' if is_list(info.annotation) else ''}")
