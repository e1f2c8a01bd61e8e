"""A YAML file and dotted overrides -> one validated configuration, and back.

The preset of `algorithm` lies lowest, the file over it, the overrides on top, merged key by key. Left out: what the
keys mean (config.py) and how a mistake is worded (config_errors.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from grpo_math import config
from grpo_math.algorithms import PRESETS
from grpo_math.config_errors import Key, Source, explain, is_list, section_in, show, unknown_name
from grpo_math.find import nearest
from grpo_math.types import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> config.Common:
    """The configuration of a file, with `key.sub=value` overrides. Raises UserError with a line for each mistake."""
    path = Path(path)
    tree, lines = _parse(_read(path), path)
    source = Source(path, lines)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds {show(tree)} where `key: value` lines belong")

    given = [(*_split(text), text) for text in overrides]
    source.overrides = {key: text for key, _, text in given}
    name = next((raw for key, raw, _ in reversed(given) if key == ("recipe",)), tree.get("recipe", "grpo"))
    if not isinstance(name, str) or name not in config.RECIPES:
        raise UserError(f"{source.at(('recipe',), name)}: {unknown_name('recipe', name, config.RECIPES)}")
    recipe = config.RECIPES[name]
    tree = _expand(recipe, tree)
    for rivals in recipe.either:  # what the command line says is said in the file's place
        if chosen := rivals & {key[0] for key, raw, _ in given if parse_value(raw)}:
            tree = {key: value for key, value in tree.items() if key not in rivals - chosen}
    # another task first: it drops the file's options for the old one, but not what the command line says of the new
    for key, raw, text in sorted(given, key=lambda one: one[0][-1] != "task"):
        tree = _put(recipe, tree, key, raw, text)

    wrong: list[str] = []
    if "algorithm" in recipe.model_fields:
        algorithm, presets = tree.get("algorithm", recipe.model_fields["algorithm"].default), PRESETS[name]
        if isinstance(algorithm, str) and algorithm in presets:
            tree = _merge(_expand(recipe, presets[algorithm]), tree)
        else:
            wrong.append(f"{source.at(('algorithm',), algorithm)}: {unknown_name('algorithm', algorithm, presets)}")
            tree = {key: value for key, value in tree.items() if key != "algorithm"}
    try:
        cfg = recipe.model_validate(tree)
    except ValidationError as error:
        # without the cause: pydantic's own wording of the same would only bury ours
        raise UserError("\n".join(wrong + explain(error, recipe, source))) from None
    if wrong:
        raise UserError("\n".join(wrong))
    return cfg


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": [{"d": 2}], "e": [3, 4]} -> {"a.b": 1, "c.0.d": 2, "e": [3, 4]}; a list of mappings is gone
    into, as overrides name its items, and one of values is a value."""
    if isinstance(tree, list) and tree and all(isinstance(item, Mapping) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    inside = [flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in tree.items()]
    return {key: value for part in inside for key, value in part.items()}


def dump_config(cfg: config.Common) -> str:
    """YAML with every key written out, which loads to an equal object."""
    values = cfg.model_dump(mode="json")
    first = {key: values.pop(key) for key in ("recipe", "algorithm") if key in values}
    return yaml.dump(first | values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: 1e-6 is a number, a date is text, and a key stands once in a mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        assert isinstance(node, yaml.MappingNode)
        first: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in first:
                problem = f"{key.value} is given a second time (first in line {first[key.value]}); keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what _Loader would not read as text."""


_FLOAT = r"""[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
            |[0-9][0-9_]*\.[0-9_]*|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"""
_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _REPLACED]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _class.add_implicit_resolver(_REPLACED[0], re.compile(f"^(?:{_FLOAT})$", re.VERBOSE), list("-+0123456789."))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if "=" in path.name:
            raise UserError(f"{path}: is an override; the configuration file comes first") from None
        known = _yaml_files(path.parent)
        guess = nearest(path.name, known)
        meant = f"; did you mean {path.parent / guess}?" if guess else ""
        raise UserError(f"{path}: there is no such file{meant}{_listing(path.parent, known)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder{_listing(path, _yaml_files(path))}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _yaml_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*") if p.suffix in (".yaml", ".yml")) if folder.is_dir() else []


def _listing(folder: Path, names: list[str]) -> str:
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    return f" (YAML files in {folder}: {', '.join(names) or 'none'})"


def _parse(text: str, path: Path | str) -> tuple[Any, dict[Key, int]]:
    """What the text says, and the line of each key."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None, {}) if node is None else (loader.construct_document(node), dict(_lines(node)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with spaces" if "'\\t'" in (error.problem or "") else ""
        # PyYAML blames the line after an unclosed bracket or quote; where it was opened is the better place to look
        opened = f" ({error.context}, line {error.context_mark.line + 1})" if error.context_mark else ""
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {(error.problem or '').removeprefix('but ')}{hint}{opened}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error


def _lines(node: yaml.Node, key: Key = ()) -> list[tuple[Key, int]]:
    found: list[tuple[Key, int]] = []
    if len(key) > 8:  # an alias may point at itself
        return found
    pairs: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(k.value), k, v) for k, v in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(str(i), v, v) for i, v in enumerate(node.value)]
    for name, place, value in pairs:
        found.append(((*key, name), place.start_mark.line + 1))
        found += _lines(value, (*key, name))
    return found


def _split(text: str) -> tuple[Key, str]:
    name, equals, raw = text.partition("=")
    key = tuple(name.strip().split("."))
    if not equals:
        raise UserError(f"command line: {text!r} is not an override; write key.sub=value, for example group_size=16")
    if not all(key):
        raise UserError(
            f"command line: {text!r}: {name!r} is no key; write key.sub=value, for example kl.coefficient=0.01"
        )
    return key, raw


def _expand(annotation: Any, value: Any) -> Any:
    """Write every shorthand out (`task: gsm8k`, `rewards: math`), so that merging meets one shape only."""
    section = section_in(annotation)
    if section is None:
        return value
    if is_list(annotation):
        several = [value] if isinstance(value, str | dict) else value
        return [_expand(section, item) for item in several] if isinstance(several, list) else several
    if isinstance(value, str) and section.shorthand:
        return _expand(section, {section.shorthand: value})
    if not isinstance(value, dict):
        return value
    return {key: _expand(_field(section, key), item) for key, item in value.items()}


def _field(section: type[config.Section], key: Any) -> Any:
    return section.model_fields[key].annotation if key in section.model_fields else None


def _merge(low: Any, high: Any) -> Any:
    """`high` over `low`: mappings key by key, everything else as a whole."""
    if not (isinstance(low, dict) and isinstance(high, dict)):
        return copy.deepcopy(high)
    return copy.deepcopy(low) | {key: _merge(low.get(key), value) for key, value in high.items()}


def _put(annotation: Any, node: Any, key: Key, raw: str, text: str) -> Any:
    """`node` with the value of `raw` at `key`."""
    if not key:
        value = _value(annotation, raw, text)
        if section_in(annotation) is config.Task and isinstance(value, str) and isinstance(node, dict):
            node = node if node.get("name") == value else None  # options, path and template are another task's
        return _merge(node, _expand(annotation, value))
    head, *rest = key
    if is_list(annotation):
        items = list(node) if isinstance(node, list) else []
        if not head.isdigit() or int(head) > len(items):
            positions = f"0 to {len(items)}" if items else "0"
            raise UserError(f"command line: {text}: {head!r} is no position in this list; use {positions}")
        i = int(head)
        return [
            *items[:i],
            _put(_item(annotation), items[i] if i < len(items) else None, tuple(rest), raw, text),
            *items[i + 1 :],
        ]
    section = section_in(annotation)
    if section is None and annotation is not None and get_origin(annotation) is not dict:
        parent = text.partition("=")[0].removesuffix("." + ".".join(key))
        raise UserError(
            f"command line: {text}: {parent} is a single value without keys of its own; write {parent}=VALUE"
        )
    inside = node if isinstance(node, dict) else {}
    below = _field(section, head) if section else None
    old = inside.get(head)
    if old is None and rest and section and is_list(below):
        default = section.model_fields[head].get_default()  # `optimizer.betas.1=0.95` changes one of the default's two
        old = list(default) if default else None
    return {**inside, head: _put(below, old, tuple(rest), raw, text)}


def _item(annotation: Any) -> Any:
    """The type of a list's entries."""
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0]
    return next(_item(part) for part in get_args(annotation) if is_list(part))


def parse_value(raw: str) -> Any:
    """A value as it would be read in the file, or the text itself where that is not YAML."""
    try:
        return _parse(raw, "")[0]
    except UserError:
        return raw


def _value(annotation: Any, raw: str, text: str) -> Any:
    """YAML, except that a field of text takes what YAML would not read as text as it stands: `revision=0123`."""
    is_text = annotation is not None and str in _leaves(annotation)
    try:
        value, _ = _parse(raw, "command line")
    except UserError:
        if is_text:
            return raw
        raise UserError(
            f"command line: {text}: {raw!r} is not a YAML value; is a bracket or a quote missing?"
        ) from None
    listed = isinstance(value, list) and is_list(annotation)
    return raw if is_text and not listed and not isinstance(value, str | None) else value


def _leaves(annotation: Any) -> set[Any]:
    if get_origin(annotation) is dict:
        return {dict}
    return {annotation}.union(*map(_leaves, get_args(annotation))) if get_args(annotation) else {annotation}
