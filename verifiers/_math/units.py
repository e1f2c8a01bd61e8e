"""The unit behind a number: found, spelled in one way, converted, and told apart from words that change the answer.

What follows from a unit that only one side writes, or from two different ones, is decided in compare.py.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.names import FUNCTIONS, GREEK

_POWER = re.compile(r" ?\^ ?(?:\{ ?-?\d ?\}|\d)$")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}$")
_BARE = re.compile(r"(?<=[\d})]) ?([A-Za-z]{2,}(?:[ /][A-Za-z]+){0,3})$")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ) ?([CFK]?)$")
_PRIMES = re.compile(r"(?<=\d) ?\^? ?\{? ?('(?: ?')?) ?\}?$")  # minutes and seconds of arc, feet and inches
_FUNCTION = re.compile("|".join(rf"\\{name}" for name in sorted(FUNCTIONS)))
_UNIT_WORDS = re.compile(
    r"[A-Za-z .,/()'%°-]*(?:(?<=[A-Za-z)] )?-?\d(?![\d.]))?[A-Za-z .,/()'%°^-]*(?:-?\d(?![\d.]))?[ .,)]*"
)
_MAX_UNITS = 4

# Words that are never a unit: with one of them behind it a number is another answer, or no answer.
_NOT_UNITS = {
    "and", "or", "not", "no", "nor", "none", "is", "isn", "are", "was", "if", "than", "then", "minus", "plus",
    "negative", "times", "but", "except", "maybe", "wrong", "false", "unknown", "unless", "error", "incorrect",
    "otherwise", "instead", "neither", "either", "versus", "vs", "without", "excluding", "never", "cannot",
    "approximately", "about", "least", "most", "more", "less", "to", "over", "divided", "mod", "factorial", "squared",
    "cubed",
}  # fmt: skip
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SHORT = {
    "cm", "mm", "km", "ft", "in", "yd", "mi", "kg", "mg", "lb", "oz", "ml", "hr", "min", "sec", "mph", "kph", "sq",
    "lbs", "hrs", "yrs", "day", "egg", "cup", "bag", "box", "man", "men", "ton", "am", "pm", "hz", "pct",
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


# unit -> (dimension, how many base units it is), exactly; temperatures have no common zero and are left out.
_BASE_UNITS: dict[str, tuple[str, Fraction]] = {
    unit: (dimension, Fraction(size))
    for dimension, sizes in {
        "length": {"m": "1", "cm": "1/100", "mm": "1/1000", "km": "1000", "in": "0.0254", "ft": "0.3048",
                   "yd": "0.9144", "mi": "1609.344", "nm": "1e-9"},
        "mass": {"g": "1", "kg": "1000", "mg": "1/1000", "lb": "453.59237", "oz": "28.349523125", "ton": "1000000"},
        "time": {"s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800", "ms": "1/1000"},
        "volume": {"l": "1", "ml": "1/1000"},
        "money": {"cent": "1", "dollar": "100"},
    }.items()
    for unit, size in sizes.items()
}  # fmt: skip


def in_base_units(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """({"length": 1, "time": -1}, 5/18) of "km/h", or None where one of the units is not known."""
    dimensions: dict[str, int] = {}
    factor, sign = Fraction(1), 1
    words = unit.split()
    for at, word in enumerate(words):
        if word in ("/", "per"):
            sign = -1
        elif word in _BASE_UNITS:
            dimension, size = _BASE_UNITS[word]
            following = words[at + 1] if at + 1 < len(words) else ""
            power = sign * (int(following) if re.fullmatch(r"-?\d", following) else 1)
            dimensions[dimension] = dimensions.get(dimension, 0) + power
            factor *= size**power
        elif not re.fullmatch(r"-?\d", word):
            return None
    return {dimension: power for dimension, power in dimensions.items() if power}, factor


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
    if match := _PRIMES.search(text):
        return text[: match.start()], match[1].replace(" ", "")
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
    if not _UNIT_WORDS.fullmatch(words):
        raise Unreadable(f"{words!r} behind a number is not a unit")
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
    for word in re.findall(r"[A-Za-z%°']+|-?\d+|/", unit):
        plain = word.lower() if len(word) > 2 else word
        plain = plain[:-1] if len(plain) > 3 and plain.endswith("s") else plain
        words.append(_SPELLINGS.get(plain, plain))
    for prefix, power in (("sq", "2"), ("cu", "3")):
        if prefix in words:
            words = [word for word in words if word != prefix] + [power]
    return " ".join(word for word in words if word)
