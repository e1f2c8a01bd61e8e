"""Find the program in a completion: the last fenced block, or the rest of the function that the prompt began.

One pass over the lines: what a model writes may be long and hostile. Leaves out whether it is a good program: what is
found may not even parse.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from grpo_math.verifiers._math.extract import said

MAX_CHARS = 1 << 20
_PYTHON = ("python", "python3", "py", "py3", "python2")
_CUTS = 5  # times that prose is taken off the end of a program


@dataclass(frozen=True)
class Block:
    """A fenced block: the first word behind the fence, and what is in it."""

    tag: str
    text: str


def program_of(completion: str, prompt: str, names: tuple[str, ...]) -> tuple[str | None, str]:
    """(the program, where it was found); None where there is none.

    names: what the tests will look for, a function or class; of several blocks the last that defines one counts.
    prompt: the head of a function, which a completion without a fence may go on with."""
    if len(completion) > MAX_CHARS:
        return None, f"the completion is longer than {MAX_CHARS:,} characters"
    text = said(completion.replace("\r\n", "\n"))
    if text is None:
        return None, "the thinking never ends"
    blocks = list(fenced(text.split("\n")))
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


def fenced(lines: list[str]) -> Iterator[Block]:
    """The blocks between lines that begin with three or more ` or ~. A block that is not closed goes to the end."""
    fence, tag, body = "", "", list[str]()
    for line in lines:
        mark = _mark(line)
        if not fence:
            if mark and "`" not in line.lstrip()[len(mark) :]:
                words = line.lstrip()[len(mark) :].split()
                fence, tag, body = mark, words[0].lower() if words else "", []
        elif mark[:1] == fence[0] and len(mark) >= len(fence) and line.strip() == mark:
            yield Block(tag, "\n".join(body))
            fence = ""
        elif len(fence) == 3 and line.rstrip().endswith(fence) and not mark:  # closed at the end of its last line
            yield Block(tag, "\n".join([*body, line.rstrip()[:-3]]))
            fence = ""
        else:
            body.append(line)
    if fence:
        yield Block(tag, "\n".join(body))


def _mark(line: str) -> str:
    """The ` or ~ that a line begins with, where there are three or more."""
    bare = line.lstrip(" \t")
    mark = bare[: len(bare) - len(bare.lstrip(bare[0]))] if bare[:1] in ("`", "~") else ""
    return mark if len(mark) >= 3 else ""


def _of_blocks(blocks: list[Block], prompt: str, names: tuple[str, ...]) -> tuple[str | None, str]:
    tagged = [block for block in blocks if block.tag in _PYTHON]
    python = tagged or [block for block in blocks if not block.tag] or blocks
    chosen = ([block for block in python if any(defines(block.text, name) for name in names)] or python)[-1]
    where = f"fenced block {1 + max(i for i, block in enumerate(blocks) if block is chosen)} of {len(blocks)}"
    body = dedented(chosen.text)
    if not body.strip():
        return None, f"{where} is empty"
    if prompt and names and not any(defines(body, name) for name in names) and _is_rest(chosen.text):
        return f"{prompt.rstrip()}\n{_body(chosen.text)}", f"{where}, the rest of the prompt's function"
    return body, where


def defines(text: str, name: str) -> bool:
    """Whether a line binds the name: def, class, an assignment or an import. A look at the text, not a parse."""
    binds = re.compile(
        rf"(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|{re.escape(name)}[ \t]*(?::[^=]*)?=(?!=)"
    )
    word = re.compile(rf"\b{re.escape(name)}\b")
    return any(
        binds.match(line) or (line.startswith(("import ", "from ")) and word.search(line))
        for line in map(str.lstrip, text.split("\n"))
        if name in line
    )


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
        if line.strip() and line[0] not in " \t#)]}" and not re.match(r"(?:async +)?def |class |import |from |@", line):
            break
        kept.append(line)
    return "\n".join(kept)


def _up_to_prose(text: str) -> str:
    """A text that defines what is wanted, without the explanation behind it, where that keeps it from parsing."""
    lines = text.split("\n")
    for _ in range(_CUTS):
        try:
            ast.parse("\n".join(lines))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = min((getattr(error, "lineno", None) or 1) - 1, len(lines) - 1)
            while at > 0 and lines[at][:1] in ("", " ", "\t"):
                at -= 1
            if at <= 0:
                return text
            lines = lines[:at]
        else:
            return "\n".join(lines)
    return text
