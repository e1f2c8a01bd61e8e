"""The words that a judge is asked with: built-in ones by name, or a YAML file of your own.

A template's words have placeholders as str.format has them: {question}, and {{ for a brace. What is put in for one is
never read again, so braces in a completion do no harm. Left out: when which words are asked (verdict.py, revise.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from grpo_math.find import nearest
from grpo_math.types import UserError

FOLDER = Path(__file__).parent / "templates"
SUFFIXES = (".yaml", ".yml")
LARGEST_SCALE = 20  # a server tells the probabilities of so many tokens


@dataclass(frozen=True)
class Kind:
    """What a template of a kind has. words: its texts, and the placeholders that each must have. may: those that any
    may have besides. settings: keys that are no texts."""

    words: Mapping[str, tuple[str, ...]]
    may: tuple[str, ...]
    settings: tuple[str, ...] = ()


KINDS = {
    "score": Kind(
        {"prompt": ("question", "completion"), "reason": (), "verdict": (), "text": ()},
        ("question", "gold", "answer", "completion", "rubric", "lowest", "highest"),
        ("rubric", "scale"),
    ),
    "preference": Kind(
        {"prompt": ("question", "completion_a", "completion_b"), "reason": (), "verdict": (), "text": ()},
        ("question", "gold", "answer", "completion_a", "completion_b", "rubric"),
        ("rubric",),
    ),
    "revision": Kind(
        {"critique": ("question", "completion", "principle"), "revise": ()},
        ("question", "gold", "answer", "completion", "principle"),
        ("principles", "extract"),
    ),
}
EXTRACTS = ("tag", "whole")


@dataclass(frozen=True)
class Template:
    """words: its texts by key, `system` among them. sha256: of the file. scale: lowest and highest score. principles:
    those of a template that brings its own. extract: whether a revision is what stands between <revision> tags, or the
    whole answer."""

    name: str
    kind: str
    words: Mapping[str, str]
    sha256: str
    rubric: str = ""
    scale: tuple[int, int] = (1, 10)
    principles: tuple[str, ...] = ()
    extract: str = "tag"

    def fill(self, key: str, values: Mapping[str, str]) -> str:
        """The text of `key` with its placeholders filled. Raises UserError for a {gold} that there is not."""
        text = []
        for literal, name, _, _ in Formatter().parse(self.words[key]):
            text.append(literal)
            if name is None:
                continue
            value = values.get("gold" if name == "answer" else name, "")
            if not value and name in ("gold", "answer", "question"):
                raise UserError(
                    f"{self.name}: its {key} has {{{name}}} in it, and there is none for this problem; give samples "
                    "with it, or --task, or a template without it"
                )
            text.append(value)
        return "".join(text).strip()

    def identity(self) -> dict[str, str]:
        rubric = hashlib.sha256(self.rubric.encode()).hexdigest()
        return {"template": self.name, "template_sha256": self.sha256, "rubric_sha256": rubric}


def rubric_of(path: str | None) -> str | None:
    """What counts, from a text file. Raises UserError for one that is not there or empty."""
    if path is None:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"rubric {path} cannot be read: {error}") from error
    if not text.strip():
        raise UserError(f"rubric {path} is empty; write what counts into it")
    return text.strip()


def builtin(kind: str | None = None) -> list[str]:
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return [name for name in names if kind is None or load_template(name).kind == kind]


def load_template(name: str, kind: str | None = None, rubric: str | None = None) -> Template:
    """A built-in template, or that of a file. kind: the one that is needed. rubric: in the place of its own.

    Raises UserError, which names the file, for one that is not there or not of this kind, for keys and placeholders
    that it lacks, and for those that there are not."""
    is_file = name.endswith(SUFFIXES)
    path = Path(name).expanduser() if is_file else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = builtin(kind)
        guess = None if is_file else nearest(name, known)
        meant = f"did you mean {guess}?" if guess else f"there are {', '.join(known)}, or write a file NAME.yaml"
        raise UserError(f"template {name}: there is no such {'file' if is_file else 'template'}; {meant}")
    try:
        raw = path.read_bytes()
        content = yaml.safe_load(raw)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"template {name} is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"template {name}: it is no mapping; write kind: score and the keys that docs/judges.md lists")
    found = content.get("kind")
    if found not in KINDS:
        raise UserError(f"template {name}: kind={found!r}; choose one of {', '.join(KINDS)}")
    if kind is not None and found != kind:
        raise UserError(
            f"template {name}: it is of kind {found}, and {kind} is needed; choose {', '.join(builtin(kind))}"
        )
    template = _checked(name, KINDS[found], content, hashlib.sha256(raw).hexdigest(), rubric)
    uses = {p for text in template.words.values() for p in _placeholders(name, "", text)}
    if rubric is not None and "rubric" not in uses:
        raise UserError(
            f"template {name}: it has no {{rubric}} for the rubric to stand in; add that, or give no rubric"
        )
    if "rubric" in uses and not template.rubric.strip():
        raise UserError(f"template {name}: it has {{rubric}} in it and no rubric; give one, or write it under rubric:")
    return template


def _checked(name: str, kind: Kind, content: Mapping[str, Any], sha256: str, rubric: str | None) -> Template:
    known = ["kind", "system", *kind.words, *kind.settings]
    for key in content:
        if key not in known:
            guess = nearest(str(key), known)
            mend = f"did you mean {guess}?" if guess else f"it may have {', '.join(known)}"
            raise UserError(f"template {name}: there is no key {key!r}; {mend}")
    words = {}
    for key in ("system", *kind.words):
        text = content.get(key, "" if key == "system" else None)
        if not isinstance(text, str) or (key != "system" and not text.strip()):
            raise UserError(f"template {name}: {key}={text!r}; write the words there, as text")
        there = _placeholders(name, key, text)
        for placeholder in there:
            if placeholder not in kind.may:
                guess = nearest(placeholder, kind.may)
                mend = f"did you mean {{{guess}}}?" if guess else f"there are {', '.join(kind.may)}"
                raise UserError(
                    f"template {name}: {key} has {{{placeholder}}} in it, which is no placeholder; {mend} A brace "
                    "itself is written {{"
                )
        for placeholder in kind.words.get(key, ()):
            if placeholder not in there:
                raise UserError(
                    f"template {name}: {key} lacks {{{placeholder}}}, so the judge would not see it; add it"
                )
        words[key] = text
    own_rubric = content.get("rubric") or ""
    if not isinstance(own_rubric, str):
        raise UserError(f"template {name}: rubric={own_rubric!r}; write it as text")
    return Template(
        name, str(content["kind"]), words, sha256, own_rubric if rubric is None else rubric,
        _scale(name, content.get("scale", [1, 10])), _principles(name, content.get("principles", [])),
        _extract(name, content.get("extract", "tag")),
    )  # fmt: skip


def _placeholders(name: str, key: str, text: str) -> list[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"template {name}: {key}: {error}; write {{{{ and }}}} for braces that are meant") from error
    for _, placeholder, form, conversion in parts:
        if placeholder is not None and (form or conversion or not placeholder):
            raise UserError(
                f"template {name}: {key} has {{{placeholder}{'!' + conversion if conversion else ''}"
                f"{':' + form if form else ''}}} in it; write {{NAME}} alone, and {{{{ and }}}} for braces"
            )
    return [placeholder for _, placeholder, _, _ in parts if placeholder]


def _scale(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(end) is int for end in value):
        raise UserError(f"template {name}: scale={value!r}; write the lowest and the highest score, such as [1, 10]")
    low, high = value
    if not 0 <= low < high < low + LARGEST_SCALE:
        raise UserError(
            f"template {name}: scale={value!r}; give whole numbers from 0, the higher one last, and at most "
            f"{LARGEST_SCALE} of them"
        )
    return low, high


def _principles(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
        raise UserError(f"template {name}: principles={value!r}; write a list of texts")
    return tuple(each.strip() for each in value)


def _extract(name: str, value: Any) -> str:
    if value not in EXTRACTS:
        raise UserError(f"template {name}: extract={value!r}; choose one of {', '.join(EXTRACTS)}")
    return str(value)
