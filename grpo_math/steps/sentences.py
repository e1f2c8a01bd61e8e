"""Where sentences end in a text with decimals, abbreviations and formulas. Rules, no model; English, mostly.

Left out: what a step is (split.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

CLOSERS = "\"'\u201d\u2019)\\]}*_"
# a full stop with white space behind it (in 3.14 there is none), or one of the languages without spaces
STOP = re.compile(rf"(?:\.+|[!?\u2026]+)[{CLOSERS}]*(?=\s|$)|[\u3002\uff01\uff1f]+[{CLOSERS}]*|\n")
# at most 2,000 letters, for the end of one that never ends would be looked for through all of the text; a dollar sign
# before a price opens no formula: in "$5 and $6" the second one would close behind a space
FORMULA = re.compile(
    r"\$\$.{1,2000}?\$\$|(?<!\\)\$(?=[^\s$])[^$\n]*?(?<=[^\s\\])\$(?!\d)|\\\[.{1,2000}?\\\]|\\\(.{1,2000}?\\\)"
    r"|\\begin\{(\w+\*?)\}.{1,2000}?\\end\{\1\}",
    re.DOTALL,
)
ENDS_IN_STOP = re.compile(r"[.!?]\s*(?:\$+|\\\]|\\\)|\\end\{\w+\*?\})$")  # of a formula: "so $x = 3.$ Then"
NUMBER_OF_A_LINE = re.compile(r"(?:^|\n)[ \t]*(?:\d{1,3}|[A-Za-z])$")  # of a list: "2. Add", "b. Add"
# words before a full stop that ends no sentence; or none where a digit follows, or where a small letter does
ABBREVIATION = re.compile(
    r"(?<![A-Za-z.])(?:mrs?|ms|dr|prof|st|figs?|eqs?|sec|ch|thm|prop|lem|cor|def|ex|cf|vs|viz|approx|resp|e\.g|i\.e"
    r"|w\.r\.t|s\.t)$",
    re.IGNORECASE,
)
BEFORE_DIGIT = re.compile(r"(?<![A-Za-z.])(?:nos?|pp?|vol)$", re.IGNORECASE)
BEFORE_SMALL = re.compile(
    r"(?<![A-Za-z.])(?:etc|al|inc|co|jr|sr|in|ft|yd|mi|oz|lbs?|hrs?|mins?|sq|cu|[ap]\.m|u\.[sk])$", re.IGNORECASE
)


def sentence_ends(text: str) -> Iterator[int]:
    """The places behind sentences, and behind line breaks, rising; none within a formula."""
    start = 0
    for formula in FORMULA.finditer(text):
        yield from _stops(text, start, formula.start())
        start = formula.end()
        if ENDS_IN_STOP.search(formula.group()) and (start == len(text) or text[start].isspace()):
            yield start
    yield from _stops(text, start, len(text))


def _stops(text: str, start: int, end: int) -> Iterator[int]:
    for match in STOP.finditer(text, start, end):
        # finditer takes `end` for the end of the text: there may be a formula right behind
        if match.end() == end < len(text) and match.group()[-1] in CLOSERS + ".!?\u2026":
            continue
        if _ends_sentence(text, match.start(), match.group(), text[match.end() : match.end() + 80].lstrip()[:1]):
            yield match.end()


def _ends_sentence(text: str, place: int, stop: str, following: str) -> bool:
    """stop: at `place` of the text. following: the next letter; "" at the end."""
    if stop.startswith(("..", "\u2026")) or stop.startswith("!"):  # 1 + 2 + ... + 9, or 5! = 120
        return not following or following.isupper()
    if not stop.startswith("."):
        return True
    before = text[max(0, place - 40) : place]
    if ABBREVIATION.search(before) or NUMBER_OF_A_LINE.search(before):
        return False
    follows = BEFORE_DIGIT if following.isdigit() else BEFORE_SMALL if following.islower() else None
    return follows is None or not follows.search(before)
