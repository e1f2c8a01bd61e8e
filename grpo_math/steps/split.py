"""Where the steps of a solution end, in characters of its text.

Each function of BOUNDARIES returns the ends of the steps: they rise, the last is len(text), and the slices between them
join to the text. No step is empty or white space alone; a text of white space has none. A step has the line breaks that
follow it, and the next one the spaces, as tokenizers have them. Left out: what a sentence is (sentences.py), and tokens
(places.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

from grpo_math.find import nearest
from grpo_math.steps.sentences import sentence_ends
from grpo_math.types import UserError

Split = Callable[[str], tuple[int, ...]]

MARK = "\u043a\u0438"  # Math-Shepherd's, arXiv:2312.08935
BREAKS = re.compile(r"(?:[ \t]*\r?\n)*")
BLANK_LINE = re.compile(r"\n(?:[ \t]*\r?\n)+")
# at the beginning of a line "Step 2:", "**Step 2**", "### step 2. Add"; within a line "Step 2:" alone
STEP = re.compile(r"^[ \t]*[#*_>]*[ \t]*[Ss][Tt][Ee][Pp] *\d+(?= *[:.)*_\-]| *\r?$)|(?<=\s)Step \d+:", re.MULTILINE)


def blank_line(text: str) -> tuple[int, ...]:
    """A blank line ends a step: steps are paragraphs."""
    return _ends(text, (match.end() for match in BLANK_LINE.finditer(text)))


def newline(text: str) -> tuple[int, ...]:
    """A line break ends a step."""
    return _ends(text, (place + 1 for place, letter in enumerate(text) if letter == "\n"))


def step(text: str) -> tuple[int, ...]:
    """ "Step 2:" begins a step. What comes before the first of them is a step too."""
    starts = (match.start() for match in STEP.finditer(text))
    return _ends(text, (len(text[:start].rstrip(" \t")) for start in starts))


def sentence(text: str) -> tuple[int, ...]:
    """A sentence or a line break ends a step, though not within a formula."""
    return _ends(text, sentence_ends(text))


def marker(text: str, mark: str = MARK) -> tuple[int, ...]:
    """A marker ends a step, and is a part of it; a line break behind it is the next step's."""
    return _kept(text, (match.end() for match in re.finditer(re.escape(mark), text)))


BOUNDARIES: dict[str, Split] = {
    "blank_line": blank_line,
    "newline": newline,
    "step": step,
    "sentence": sentence,
    "marker": marker,
}


def boundary(name: str) -> Split:
    """By its name in BOUNDARIES; "marker:TEXT" for a marker other than Math-Shepherd's. Raises UserError."""
    kind, colon, mark = name.partition(":")
    if kind == "marker" and colon:
        if not mark.strip():
            raise UserError(
                f"boundary {name!r} has no marker behind the colon; write marker:TEXT, such as marker:{MARK}"
            )
        return partial(marker, mark=mark)
    if name in BOUNDARIES:
        return BOUNDARIES[name]
    near = nearest(name, BOUNDARIES)
    raise UserError(
        f"unknown boundary {name!r}{f'; did you mean {near!r}?' if near else ''}; "
        f"known: {', '.join(BOUNDARIES)}, marker:TEXT"
    )


def pieces(text: str, ends: Iterable[int]) -> list[str]:
    """The steps themselves."""
    start, steps = 0, []
    for end in ends:
        steps.append(text[start:end])
        start = end
    return steps


def _ends(text: str, places: Iterable[int]) -> tuple[int, ...]:
    """With the line breaks that follow."""
    breaks = (BREAKS.match(text, place) for place in places)
    return _kept(text, (match.end() for match in breaks if match is not None))


def _kept(text: str, places: Iterable[int]) -> tuple[int, ...]:
    """Those of the rising places that leave something other than white space on both sides, and the text's end."""
    if not text.strip():
        return ()
    last = len(text.rstrip())
    ends: list[int] = []
    start = 0
    for place in places:
        if start < place < last and not text[start:place].isspace():
            ends.append(place)
            start = place
    return (*ends, len(text))
