"""The unit behind a number: found, spelled in one way, and told apart from words that change the answer.

A unit that only one side writes is forgiven; two different ones are not (compare.py). Leaves out conversion: 100 cm is
not 1 m.
"""

from __future__ import annotations

import re

from grpo_math.verifiers._math.grammar import FUNCTIONS, GREEK
from grpo_math.verifiers._math.literals import Unreadable

_POWER = re.compile(r" ?\^ ?(?:\{ ?-?\d ?\}|\d)$")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}$")
_BARE = re.compile(r"(?<=[\d})]) ?([A-Za-z]{2,}(?:[ /][A-Za-z]+){0,3})$")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ) ?([CFK]?)$")
_FUNCTION = re.compile("|".join(rf"\\{name}" for name in sorted(FUNCTIONS)))
_MAX_UNITS = 4

# Words that are never a unit: with one of them behind it a number is another answer, or no answer.
_NOT_UNITS = {
    "and", "or", "not", "no", "nor", "none", "is", "isn", "are", "was", "if", "than", "then", "minus", "plus",
    "negative", "times", "but", "except", "maybe", "wrong", "false", "unknown", "approximately", "about", "least",
    "most", "more", "less", "to", "over", "divided", "mod", "factorial", "squared", "cubed",
}  # fmt: skip
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SHORT = {
    "cm", "mm", "km", "ft", "in", "yd", "mi", "kg", "mg", "lb", "oz", "ml", "hr", "min", "sec", "mph", "kph", "sq",
    "lbs", "hrs", "yrs", "day", "egg", "cup", "bag", "box", "man", "men", "ton", "am", "pm", "hz",
    "ev", "kev", "mev", "pa", "kpa",
}  # fmt: skip
_SPELLINGS = {
    "degree": "°", "deg": "°", "percent": "%", "pct": "%", "percentage": "%", "dollar": "", "usd": "", "unit": "",
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "kilometer": "km",
    "kilometre": "km", "meter": "m", "metre": "m", "inche": "in", "inch": "in", "feet": "ft", "foot": "ft",
    "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "ounce": "oz", "liter": "l",
    "litre": "l", "hour": "h", "hr": "h", "minute": "min", "second": "s", "sec": "s", "square": "sq", "cube": "cu",
    "cubic": "cu",
}  # fmt: skip


def split_unit(text: str) -> tuple[str, str, int]:
    """(what stands before the unit, the unit in one spelling, power of ten of a word such as million).

    Raises Unreadable where the words behind the number are no unit.
    """
    units: list[str] = []
    scale = 0
    for _ in range(_MAX_UNITS):
        rest, unit = _last_unit(text)
        if not rest.strip() or not unit:
            break
        text, word = rest.rstrip(), unit
        if word.lower() in _SCALES:
            scale += _SCALES[word.lower()]
        else:
            units.insert(0, word)
    return text, " ".join(word for word in map(_one_spelling, units) if word), scale


def _last_unit(text: str) -> tuple[str, str]:
    if text.endswith("%"):
        return text[:-1], "%"
    if (match := _DEGREE.search(text)) and not _FUNCTION.search(text):  # the degrees of cos 60° are not the answer's
        return text[: match.start()], "°" + match[1]
    body, power = text, ""
    if raised := _POWER.search(text):
        body, power = text[: raised.start()], raised.group().strip("^{} ")
    if match := _TEXT.search(body):
        words = match[1].strip()
        return body[: match.start()], (_allowed(words) + power if words else " ")
    match = _BARE.search(body)
    if match and _is_bare_unit(match[1]):
        return body[: match.start()], _allowed(match[1]) + power
    return text, ""


def _allowed(words: str) -> str:
    for word in re.split(r"[^A-Za-z]+", words.lower()):
        if word in _NOT_UNITS:
            raise Unreadable(f"{words!r} behind a number is not a unit")
    return words


def _is_bare_unit(words: str) -> bool:
    """Without \\text around it a unit is a known short one or a whole word: 2xy is a product."""
    parts = re.split(r"[ /]", words)
    if any(part in FUNCTIONS or part in GREEK or part == "pi" for part in parts):
        return False
    if "per" in parts:
        parts = parts[: parts.index("per")]
    return all(len(part) > 3 or part.lower() in _SHORT for part in parts)


def _one_spelling(unit: str) -> str:
    """Plural, full name and abbreviation of the common units are one; of all others the plural s goes."""
    words = []
    for word in re.findall(r"[A-Za-z%°]+|-?\d+|/", unit):
        plain = word.lower() if len(word) > 2 else word
        plain = plain[:-1] if len(plain) > 3 and plain.endswith("s") else plain
        words.append(_SPELLINGS.get(plain, plain))
    for prefix, power in (("sq", "2"), ("cu", "3")):
        if prefix in words:
            words = [word for word in words if word != prefix] + [power]
    return " ".join(word for word in words if word)
