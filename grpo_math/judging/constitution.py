"""The principles of --constitution: a text file with one a line, or a YAML or JSON list.

An entry of a list is a text, or a mapping with `critique` and `revision` (what each of the two turns is to go by), as
in the constitution of arXiv:2212.08073. Left out: which one is drawn (revise.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grpo_math.types import UserError

LISTS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Principle:
    critique: str
    revision: str


@dataclass(frozen=True)
class Constitution:
    """sha256: of the file, or of the template's own principles."""

    name: str
    principles: tuple[Principle, ...]
    sha256: str


def read_constitution(path: Path) -> Constitution:
    """Raises UserError, which names the file and the entry or line."""
    try:
        raw = path.read_bytes()
        text = raw.decode()
        entries = yaml.safe_load(text) if path.suffix in LISTS else _lines(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--constitution {path} cannot be read: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--constitution {path} has no principles; write one a line, or a list in {', '.join(LISTS)}")
    principles = tuple(_principle(f"--constitution {path}, entry {i}", each) for i, each in enumerate(entries, 1))
    return Constitution(str(path), principles, hashlib.sha256(raw).hexdigest())


def of_template(name: str, principles: tuple[str, ...]) -> Constitution:
    """Raises UserError for a template that brings none."""
    if not principles:
        raise UserError(
            f"template {name} brings no principles of its own; give --constitution FILE, one principle a line"
        )
    digest = hashlib.sha256("\n".join(principles).encode()).hexdigest()
    return Constitution(name, tuple(Principle(p, p) for p in principles), digest)


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _principle(where: str, entry: Any) -> Principle:
    if isinstance(entry, str) and entry.strip():
        return Principle(entry.strip(), entry.strip())
    if isinstance(entry, dict) and set(entry) == {"critique", "revision"}:
        texts = [value.strip() if isinstance(value, str) else "" for value in (entry["critique"], entry["revision"])]
        if all(texts):
            return Principle(*texts)
    raise UserError(f"{where}: {str(entry)[:60]!r}; write a text, or a mapping with critique and revision")
