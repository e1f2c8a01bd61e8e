"""Texts of the command line -> values. Plain functions, without typer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from grpo_math.types import UserError


def parse_options(flag: str, given: Sequence[str] | None) -> dict[str, Any]:
    """["max_digits=3"] -> {"max_digits": 3}; values are read as YAML."""
    from grpo_math.config_file import parse_value

    pairs = [(text.partition("="), text) for text in given or []]
    for (key, equals, _), text in pairs:
        if not key or not equals:
            raise UserError(f"{flag} {text}: write KEY=VALUE, for example {flag} max_digits=3")
    return {key: parse_value(value) for (key, _, value), _ in pairs}


def whole_numbers(flag: str, text: str) -> list[int]:
    """1,8 -> [1, 8], each once and in order."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"{flag} {text}: give whole numbers with commas between them, such as {flag} 1,8") from None


# what the command line calls the keys of a configuration; the first that fits goes before the others
FLAGS = (
    ("task.options.", "--option "),
    ("task.path", "--path"),
    ("task.split", "--split"),
    ("task.prompt", "--prompt"),
    ("task.limit", "--limit"),
    ("task.chat", "--chat"),
    ("backend.device", "--device"),
    ("model.path", "MODEL"),
    ("reward-model.model=", "--reward-model "),
    ("reward-model.boundary=", "--boundary "),
    ("reward-model.dtype=", "--reward-dtype "),
    ("reward-model.device=", "--reward-device "),
    ("reward-model.dtype", "--reward-dtype"),
    ("reward-model.chat=", "--reward-chat "),
    ("process-model.model", "MODEL"),
    ("process-model.dtype=", "--dtype "),
    ("process-model.dtype", "--dtype"),
)


@contextmanager
def named_by_flags() -> Iterator[None]:
    """Errors of what also reads configurations speak of the command's own flags."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for key, flag in FLAGS:
            text = text.replace(key, flag)
        raise UserError(text) from error
