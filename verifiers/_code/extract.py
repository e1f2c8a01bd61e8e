"""Find the program in a completion: the last fenced block, or the rest of the function that the prompt began.

Leaves out whether it is a good program: what is found may not even parse.
"""

from __future__ import annotations

import ast
import re

from grpo_math.verifiers._math.extract import said

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\n`]*)\n(.*?)(?:^[ \t]*\1`*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("", "python", "python3", "py", "py3", "pycon", "python 3")


def program_of(completion: str, prompt: str, names: tuple[str, ...]) -> tuple[str | None, str]:
    """(the program, where it was found); None where there is none.

    names: what the tests will look for, a function or class; of several blocks the last that defines one counts.
    prompt: the head of a function, which a completion without a fence may go on with."""
    text = said(completion)
    if text is None:
        return None, "the thinking never ends"
    blocks = [(tag.strip().lower(), body) for _, tag, body in _FENCE.findall(text + "\n")]
    if blocks:
        return _of_blocks(blocks, prompt, names)
    if not text.strip():
        return None, "the completion is empty"
    if names and any(defines(text, name) for name in names):
        return _up_to_prose(text), "the whole completion"
    if prompt and _is_rest(text):
        return f"{prompt.rstrip()}\n{_body(text)}", "the rest of the prompt's function"
    if not names and parses(text):
        return text, "the whole completion"
    return None, "no fenced block, and no " + (names[0] if names else "program")


def _of_blocks(blocks: list[tuple[str, str]], prompt: str, names: tuple[str, ...]) -> tuple[str | None, str]:
    python = [body for tag, body in blocks if tag in _PYTHON] or [body for _, body in blocks]
    chosen = [body for body in python if any(defines(body, name) for name in names)] or python
    body = dedented(chosen[-1])
    where = f"fenced block {1 + max(i for i, (_, text) in enumerate(blocks) if text == chosen[-1])} of {len(blocks)}"
    if not body.strip():
        return None, f"{where} is empty"
    if prompt and names and not any(defines(body, name) for name in names) and _is_rest(chosen[-1]):
        return f"{prompt.rstrip()}\n{_body(chosen[-1])}", f"{where}, the rest of the prompt's function"
    return body, where


def defines(text: str, name: str) -> bool:
    """Whether a line binds the name: def, class, an assignment or an import. A look at the text, not a parse."""
    name = re.escape(name)
    pattern = rf"^[ \t]*(?:(?:async[ \t]+)?def[ \t]+{name}\b|class[ \t]+{name}\b|{name}[ \t]*(?::[^=\n]+)?=(?!=)|" + (
        rf"(?:from[ \t].*)?import[ \t].*\b{name}\b)"
    )
    return re.search(pattern, text, re.MULTILINE) is not None


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def dedented(text: str) -> str:
    """A block inside a list is indented as a whole."""
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "")
    margin = first[: len(first) - len(first.lstrip(" \t"))]
    if not margin or not all(line.startswith(margin) or not line.strip() for line in lines):
        return text
    return "\n".join(line[len(margin) :] if line.strip() else "" for line in lines)


def _is_rest(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first[:1] in (" ", "\t")


def _body(text: str) -> str:
    """The indented lines with which a text begins, and what definitions and imports follow them."""
    kept: list[str] = []
    for line in text.split("\n"):
        if line.strip() and line[0] not in " \t#)]}" and not re.match(r"(async +)?def |class |import |from |@", line):
            break
        kept.append(line)
    return "\n".join(kept)


def _up_to_prose(text: str) -> str:
    """A text that defines what is wanted, without the explanation behind it, where that keeps it from parsing."""
    if parses(text):
        return text
    lines = text.split("\n")
    for end in range(len(lines) - 1, max(0, len(lines) - 200), -1):
        if lines[end].strip() and lines[end][0] not in " \t" and parses(candidate := "\n".join(lines[:end])):
            return candidate
    return text
