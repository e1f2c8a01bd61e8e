"""Does the completion end in exactly one box? Reward 1 or 0, whatever the box says.

Looks at the completion alone: a box or a tag in the prompt earns nothing. Leaves out whether the answer is right.
"""

from __future__ import annotations

import re

from grpo_math.types import Problem, Verdict
from grpo_math.verifiers._math.extract import find_boxes, said

# What may still follow the last thing said: closing mathematics, punctuation, white space, markdown.
_CLOSING = re.compile(r"(?:[\s$.!*]|\\[)\]])*")


def verify(problem: Problem, completion: str) -> Verdict:
    """correct 1.0 for one balanced \\boxed{...} with something in it and no word after it, else wrong 0.0.

    Boxes in the thinking, before the last </think>, are the model's own business.
    """
    text = said(completion)
    if text is None:
        return Verdict(0.0, "no_answer", "the thinking never ends")
    boxes, unclosed = find_boxes(text)
    if unclosed:
        return Verdict(0.0, "wrong", "the last box is not closed")
    if not boxes:
        return Verdict(0.0, "no_answer", "no \\boxed{}")
    if len(boxes) > 1:
        return Verdict(0.0, "wrong", f"{len(boxes)} boxes")
    _, content, end = boxes[0]
    answer = text[content : end - 1].strip()
    if not answer:
        return Verdict(0.0, "no_answer", "the box is empty")
    if not _CLOSING.fullmatch(text, end):
        return Verdict(0.0, "wrong", "the box is not the last thing said", answer)
    return Verdict(1.0, "correct", "", answer)


_PROBLEM = Problem("example", "example", "Put your answer in \\boxed{}.", "5")

EXAMPLES = [
    (_PROBLEM, "2 + 3 = 5, so the answer is $\\boxed{5}$.", 1.0),
    (_PROBLEM, "\\boxed{6}", 1.0),
    (_PROBLEM, "The answer is 5.", 0.0),
    (_PROBLEM, "\\boxed{5} or \\boxed{6}", 0.0),
    (_PROBLEM, "\\boxed{5} is my answer", 0.0),
    (_PROBLEM, "\\boxed{5", 0.0),
]
