"""Find the final answer in a completion, where it says which one it is. One pass a format, no backtracking.

Only what follows the thinking counts, up to an end-of-text token spelled out. A box always decides: where there is one,
no other way of announcing an answer is looked at.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence

from grpo_math.verifiers._math.conventions import ANNOUNCED
from grpo_math.verifiers._math.literals import plain_number
from grpo_math.verifiers._math.words import PLAIN_TEXT, denies

Found = tuple[str | None, str]  # (answer, where it was) or (None, why there is none)

# An escaped character is taken as a whole so that \{ and \} never count as braces.
_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^\s${}]+)")  # \\boxed 5
_END_OF_TEXT = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eot|end_of_text|end)\|>|</s>|<end_of_turn>|<｜end▁of▁sentence｜>"
)
# What may stand between two boxes that are one answer: "$\boxed{1}$ and $\boxed{2}$".
_JOINT = re.compile(
    r"(?:[\s$,;]|\\[()\[\]]|\\text\s*\{\s*(?:and|or)\s*\}|\\q?quad|\b(?:and|or)\b|[A-Za-z](?:_(?:\w|\{\w+\}))?\s*=)*"
)
_MAX_JOINT = 40
_SAYS = re.compile(
    r"\b(?:answer|correct option|correct choice)"
    r"(?: is| would be| must be| should be|[*_ ]{0,4}:|(?=[*_ ]{0,4}(?:\$|\\[\[(]))|[*_ ]{0,4}\s*\n)",
    re.IGNORECASE,
)
# "The final answer is 6" behind a box takes the box back; "checking our answer: 3 + 3 = 6" does not.
_FINALLY = re.compile(
    r"(?:^|\n)\W{0,6}(?:final )?answer\W{0,4}:|\b(?:the|my|final|correct) (?:(?:final|correct) )?answer is\b",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"[\s:*]{0,8}\$")
# "this is not the final answer: 5" in the same sentence, "possibly the answer is 5" in the same clause
_HEDGED = re.compile(
    r"(?:(?:\b(?:not|never|wrong|false|fake|incorrect|example|sample|previous|old|rejected|ignore|candidate|non)\b|n't\b)"
    r"[^.!?;\n]*"
    r"|\b(?:possibly|possible|maybe|perhaps|might|could|if|suppose|assume|guess|earlier|check\w*|verify)\b[^.,!?;\n]*)$",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"\b(?:less|more|fewer|than|least|most|about|approximately|between|over|under|below|above|minus|or)\b"
)
_DENIED = re.compile(  # "the answer cannot be \\boxed{5}": right before the box
    r"(?:\bnot|\b(?:is|was|are|wo|ca|could|would)n't(?: be)?|\bcannot be|\bimpossible that|\bdoubt that"
    r"|≠|\\neq?(?![A-Za-z])|!=)(?:[\s$]|\\[\[(]|\b(?:equal to|it is|the answer is)\b|[A-Za-z] ?=)*$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(  # "\\boxed{5} is wrong", "\\boxed{5}? No, it is 6", "\\boxed{5}. Wait, that is not right"
    r"[\s$.,?!)\]\\]{0,12}(?:(?:which |(?:wait|oops|hmm|but)\b,? )?(?:that |it )?(?:is|was|seems) (?:\w+ )?"
    r"(?:wrong|incorrect|false|impossible|not (?:right|correct|possible|the (?:\w+ )?answer))\b"
    r"|isn't (?:right|correct|the)\b|no\b[,.]? (?:it|that|the|wait)|(?:oops|sorry)\b)",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"(?:\s|\*\*|__|:|,|=|\b(?:therefore|thus|then|simply|just|definitely|clearly|equal to|given by)\b)*", re.IGNORECASE
)
_SENTENCE_END = re.compile(
    r"\n|[.!](?:\s|$|\*\*)|\*\*|(?<!\\),? (?:because|since|so|as|which)\b|, not\b| \((?=not |i\.e|that |which )"
)
_STATEMENT = re.compile(
    r"(?:(?:so|therefore|thus|hence),? )?(?:the|its|their|our|a|an|total|number)\b[^=]* (?:is|are|equals) ",
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*(?:[,;/(?%]|and\b|or\b|\\text|\. ?sorry)\s*\S", re.IGNORECASE)
_DISPLAY = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
_NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?|\.\d+)")
_HASHED = re.compile(  # no heading such as "#### 1. Count"
    r"####[ \t]*(?:(?:final )?answer:?[ \t]*)?(?!\d+[.)][ \t])([-+(\[{.]{0,3}[\d\\$][^\n]*)", re.IGNORECASE
)
_MAX_SAID, MAX_ANNOUNCEMENTS = 2000, 32
MAX_TEXT = 200_000  # characters at the end that are searched


def final_answer(completion: str, formats: Sequence[str] = ANNOUNCED) -> Found:
    """The answer as it is written, by the first of `formats` (conventions.FORMATS) that is there."""
    text = said(completion)
    if text is None:
        return None, "the thinking never ends"
    text = text[-MAX_TEXT:]
    if formats[0] == "boxed" and has_box(text):
        return boxed(text, taken_back="says" in formats)
    missing = []
    for name in formats:
        answer, where = _FORMATS[name](text) if name in _FORMATS else tagged(text, name.partition(":")[2])
        if answer is not None:
            return answer, where
        missing.append(where)
    return None, ", ".join(missing)


def has_box(text: str) -> bool:
    return "\\boxed" in text or "\\fbox" in text


def said(completion: str) -> str | None:
    """What follows the thinking, up to an end-of-text token spelled out; None where the thinking never ends."""
    if "</think>" in completion:
        completion = completion[completion.rfind("</think>") + len("</think>") :]
    elif "<think>" in completion:
        return None
    end = _END_OF_TEXT.search(completion)
    return completion[: end.start()] if end else completion


def boxed(text: str, taken_back: bool = True) -> Found:
    """The last balanced \\boxed{} or \\fbox{}.

    Boxes that follow each other with nothing but "and", "or" or a comma between them are read as one list: hedging
    between two answers is then as wrong as "1 or 2" in one box, and two solutions in two boxes are as right.
    taken_back: whether "the answer is 6" behind the box counts instead.
    """
    boxes, unclosed = find_boxes(text)
    if unclosed:
        return None, "the last box is not closed"
    if not boxes:
        bare_boxes = _BARE_BOX.findall(text)
        return (bare_boxes[-1], "the last box") if bare_boxes else (None, "no \\boxed{}")
    start, end = boxes[-1][0], boxes[-1][2]
    if _DENIED.search(text[max(0, start - 50) : start]) or _TAKEN_BACK.match(text, end):
        return None, "the last box is what the answer is not"
    if taken_back and (later := _plain_announcement(text, end)):
        return later, "an answer announced behind the last box"
    first = len(boxes) - 1
    while first and _joined(text[boxes[first - 1][2] : boxes[first][0]]):
        first -= 1
    answers = [text[content : end - 1].strip() for _, content, end in boxes[first:]]
    answer = ", ".join(dict.fromkeys(answers))  # the same answer boxed twice is one answer
    return (answer, "the last box") if answer else (None, "the box is empty")


def _plain_announcement(text: str, start: int) -> str | None:
    """A number or formula, nothing else, that is called the answer behind the last box: it takes the box back."""
    for match in _announcements(text, start, _FINALLY):
        answer, _ = _announced(text, match)
        if answer is not None and (plain_number(answer) is not None or _FORMULA.match(text, match.end())):
            return answer
    return None


def _announcements(text: str, start: int = 0, pattern: re.Pattern[str] = _SAYS) -> list[re.Match[str]]:
    """The last few, the last one first, without those that are denied or hedged in their sentence."""
    last = deque(pattern.finditer(text, start), maxlen=MAX_ANNOUNCEMENTS)
    return [match for match in reversed(last) if not _HEDGED.search(text, max(0, match.start() - 60), match.start())]


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


def tagged(text: str, name: str) -> Found:
    """What the last closed <name>...</name> holds."""
    end = text.rfind(f"</{name}>")
    start = text.rfind(f"<{name}>", 0, end) if end >= 0 else -1
    answer = text[start + len(name) + 2 : end].strip() if start >= 0 else ""
    return (answer, f"the last <{name}>") if answer else (None, f"no <{name}>...</{name}>")


def hashed(text: str) -> Found:
    """What follows the last #### up to the end of the line, as GSM8K has it; a heading of that depth is none."""
    answers = _HASHED.findall(text)
    return (answers[-1].strip(), "behind the last ####") if answers else (None, "no ####")


def spoken(text: str) -> Found:
    """What follows the last "answer is" or "answer:", up to the end of the sentence or of the formula."""
    announcements = _announcements(text)
    return _announced(text, announcements[0]) if announcements else (None, 'no "answer is"')


def _announced(text: str, announcement: re.Match[str]) -> Found:
    filler = _FILLER.match(text, announcement.end())
    start = filler.end() if filler else announcement.end()
    rest = text[start : start + _MAX_SAID]
    for opening, closing in _DISPLAY.items():
        if rest.startswith(opening):
            end = rest.find(closing, len(opening))
            while end > 0 and rest[end - 1] == "\\" and closing[0] == "$":
                end = rest.find(closing, end + 1)
            if end >= 0 and _TAKEN_BACK.match(rest, end + len(closing)):
                return None, 'what stands behind "answer is" is taken back'
            if end >= 0 and not _more(rest[end + len(closing) :]):
                return rest[len(opening) : end].strip() or None, 'behind "answer is"'
            break
    if number := _only_number(rest.partition("\n")[0]):
        return number, 'behind "answer is"'
    end_of_sentence = _SENTENCE_END.search(rest)
    if end_of_sentence and _TAKEN_BACK.match(rest, end_of_sentence.start()):
        return None, 'what stands behind "answer is" is taken back'
    answer = (rest[: end_of_sentence.start()] if end_of_sentence else rest).strip(" *_")
    if (statement := _STATEMENT.match(answer)) and not denies(answer[: statement.end()]):
        answer = answer[statement.end() :].strip()  # "Answer: the largest n is 34"
    return (answer, 'behind "answer is"') if answer else (None, 'nothing behind "answer is"')


def _only_number(line: str) -> str | None:
    """The number of "Lloyd makes **$294** per week", where there is one and nothing denies it."""
    if not line[:1].isalpha() or "\\" in line or denies(line) or _HEDGED.search(line) or _BOUND.search(line):
        return None
    numbers = set(_NUMBER.findall(line))
    return numbers.pop() if len(numbers) == 1 and line.count(" ") >= 2 else None


def _more(after: str) -> bool:
    """Whether the sentence goes on behind a formula with something that belongs to the answer."""
    return _GOES_ON.match(after.partition("\n")[0]) is not None


def bare(text: str) -> Found:
    """The text, where it is nothing but one number or formula."""
    text = text.strip()
    math = re.fullmatch(r"(?:\$\$?|\\\(|\\\[)([^$]{1,200})(?:\$\$?|\\\)|\\\])\.?", text)
    answer = math[1].strip() if math else text if plain_number(text) is not None else ""
    return (answer, "the whole text") if answer else (None, "no bare answer")


def last_number(text: str) -> Found:
    """For evaluation only: a policy that is rewarded for it learns to end in numbers."""
    numbers = _NUMBER.findall(text)
    return (numbers[-1], "the last number") if numbers else (None, "no number")


def whole(text: str) -> Found:
    """The text is the answer; of a worked solution, what it boxes, has behind ####, or calls the answer."""
    if has_box(text):
        return boxed(text)
    if "####" in text:
        return hashed(text)
    if "nswer" in text and (announcements := _announcements(prose := PLAIN_TEXT.sub(r"\1", text))):
        return _announced(prose, announcements[0])
    if (statement := _STATEMENT.match(text)) and not denies(text):
        text = text[statement.end() :]
    return (text.strip(), "the whole text") if text.strip() else (None, "the answer is empty")


_FORMATS: dict[str, Callable[[str], Found]] = {
    "boxed": boxed,
    "hash": hashed,
    "says": spoken,
    "bare": bare,
    "last_number": last_number,
    "whole": whole,
}
