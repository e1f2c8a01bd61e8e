"""Find the final answer in a completion: the last balanced \\boxed{} after the thinking. One pass, no backtracking.

Leaves out every other way of announcing an answer ("The answer is", "####"): in training the box is the format.
"""

from __future__ import annotations

import re

# An escaped character is taken as a whole so that \{ and \} never count as braces.
_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*\{|\\.|[{}]", re.DOTALL)
_END_OF_TEXT = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end)\|>|</s>")
# What may stand between two boxes that are one answer: "$\boxed{1}$ and $\boxed{2}$".
_JOINT = re.compile(r"(?:[\s$,;]|\\[()\[\]]|\\text\s*\{\s*(?:and|or)\s*\}|\\q?quad|\b(?:and|or)\b)*")
_MAX_JOINT = 40


def final_answer(completion: str) -> tuple[str | None, str]:
    """(answer, "") or (None, why there is none).

    Boxes that follow each other with nothing but "and", "or" or a comma between them are read as one list: hedging
    between two answers is then as wrong as "1 or 2" in one box, and two solutions in two boxes are as right.
    """
    text = said(completion)
    if text is None:
        return None, "the thinking never ends"
    boxes, unclosed = find_boxes(text)
    if unclosed:
        return None, "the last box is not closed"
    if not boxes:
        return None, "no \\boxed{}"
    first = len(boxes) - 1
    while first and _joined(text[boxes[first - 1][2] : boxes[first][0]]):
        first -= 1
    answers = [text[content : end - 1].strip() for _, content, end in boxes[first:]]
    answer = ", ".join(dict.fromkeys(answers))  # the same answer boxed twice is one answer
    return (answer, "") if answer else (None, "the box is empty")


def said(completion: str) -> str | None:
    """What follows the thinking, up to an end-of-text token spelled out; None where the thinking never ends."""
    if "</think>" in completion:
        completion = completion[completion.rfind("</think>") + len("</think>") :]
    elif "<think>" in completion:
        return None
    end = _END_OF_TEXT.search(completion)
    return completion[: end.start()] if end else completion


def find_boxes(text: str) -> tuple[list[tuple[int, int, int]], bool]:
    """The outermost balanced boxes as (start, start of the content, end), and whether a box after them stays open."""
    start = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if start < 0:
        return [], False
    boxes: list[tuple[int, int, int]] = []
    open_braces: list[tuple[int, int] | None] = []
    for token in _TOKEN.finditer(text, start):
        brace = token.group()
        if brace == "{":
            open_braces.append(None)
        elif brace == "}":
            opened = open_braces.pop() if open_braces else None
            if opened is not None:
                while boxes and boxes[-1][0] > opened[0]:  # those inside this one
                    boxes.pop()
                boxes.append((*opened, token.end()))
        elif brace[-1] == "{" and len(brace) > 2:
            open_braces.append((token.start(), token.end()))
    last = boxes[-1][2] if boxes else 0
    return boxes, any(opened is not None and opened[0] >= last for opened in open_braces)


def _joined(between: str) -> bool:
    return len(between) <= _MAX_JOINT and _JOINT.fullmatch(between) is not None
