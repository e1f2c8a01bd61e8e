"""The unit behind a number: found, spelled in one way, converted, and told apart from words that change the answer.

A unit is spelled "cm^2" or "km h^-1". Any noun can be one (5 eggs per day); which words cannot is a table below. What
follows from a unit that only one side writes, or from two different ones, is decided in compare.py.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.names import FUNCTIONS, GREEK, NOT_UNITS
from grpo_math.verifiers._math.tree import Node

DOLLAR = "¤"  # what `clean` makes of \$, so that it is no math delimiter

# canonical unit -> (dimension, how many base units it is, its other spellings). Exact; temperatures are left out, for
# their zeros differ.
_UNITS: dict[str, tuple[str, str, str]] = {
    "m": ("length", "1", "meter metre"),
    "cm": ("length", "1/100", "centimeter centimetre"),
    "mm": ("length", "1/1000", "millimeter millimetre"),
    "km": ("length", "1000", "kilometer kilometre"),
    "nm": ("length", "1e-9", "nanometer nanometre"),
    "in": ("length", "0.0254", "inch inches"),
    "ft": ("length", "0.3048", "foot feet"),
    "yd": ("length", "0.9144", "yard"),
    "mi": ("length", "1609.344", "mile"),
    "g": ("mass", "1", "gram gm"),
    "kg": ("mass", "1000", "kilogram kgs"),
    "mg": ("mass", "1/1000", "milligram"),
    "lb": ("mass", "453.59237", "lbs pound"),
    "oz": ("mass", "28.349523125", "ounce"),
    "ton": ("mass", "1000000", "tonne"),
    "s": ("time", "1", "sec secs second"),
    "ms": ("time", "1/1000", "millisecond"),
    "min": ("time", "60", "mins minute"),
    "h": ("time", "3600", "hr hrs hour"),
    "day": ("time", "86400", "days"),
    "week": ("time", "604800", "weeks wk wks"),
    "l": ("volume", "1", "L liter litre"),
    "ml": ("volume", "1/1000", "mL milliliter millilitre"),
    "cent": ("money", "1", "cents ¢"),
    "dollar": ("money", "100", "dollars USD usd bucks"),
    "''": ("", "1", "arcsec arcseconds arcsecond"),
    "'": ("", "1", "arcmin arcminutes arcminute"),
    "rad": ("", "1", "rads radian radians"),
    "yr": ("", "1", "yrs year"),
    "Hz": ("", "1", "hertz hz"),
    "N": ("", "1", "newton"),
    "J": ("", "1", "joule"),
    "kJ": ("", "1", "kilojoule"),
    "W": ("", "1", "watt"),
    "kW": ("", "1", "kilowatt"),
    "V": ("", "1", "volt"),
    "A": ("", "1", "amp amps ampere"),
    "K": ("", "1", "kelvin"),
    "Pa": ("", "1", "pascal"),
    "kPa": ("", "1", "kilopascal"),
    "eV": ("", "1", "ev"),
    "keV": ("", "1", "kev"),
    "MeV": ("", "1", "mev"),
    "kcal": ("", "1", "kilocalorie"),
    "mol": ("", "1", "mole"),
    "sq": ("", "1", ""),
    "egg": ("", "1", "eggs"), "cup": ("", "1", "cups"), "bag": ("", "1", "bags"), "box": ("", "1", "boxes"),
    "man": ("", "1", "men"), "way": ("", "1", "ways"), "pie": ("", "1", "pies"), "bit": ("", "1", "bits"),
    "cow": ("", "1", "cows"), "dog": ("", "1", "dogs"), "cat": ("", "1", "cats"), "hen": ("", "1", "hens"),
    "pen": ("", "1", "pens"), "car": ("", "1", "cars"), "bus": ("", "1", "buses"), "boy": ("", "1", "boys"),
    "kid": ("", "1", "kids"), "toy": ("", "1", "toys"), "set": ("", "1", "sets"), "row": ("", "1", "rows"),
}  # fmt: skip
_CANONICAL = {name: unit for unit, (_, _, others) in _UNITS.items() for name in (unit, *others.split())}
_COMPOUND = {"mph": [("mi", 1), ("h", -1)], "kph": [("km", 1), ("h", -1)], "kmh": [("km", 1), ("h", -1)]}
_NO_UNIT = {"unit", "units", "total", "altogether", "each", "only", "in", "of", "the",
            "a", "an", "sq", "exactly"}  # fmt: skip
_SCALES = {
    "dozen": 12, "dozens": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "quadrillion": 10**15, "quintillion": 10**18, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip

_LETTERS = {"e", "i", "j", "x"}  # which are numbers or variables, and no units
_NO_NOUN = re.compile(r"illions?$|fold$|[^aeiou]ish$|(?:at|ifi|ert|ect|ud|uc)ed$|^un[a-z]+ed$")  # 5 tenfold, 5 rejected
_POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
_RAISED = re.compile(r" ?\^ ?(?:\{ ?(-?\d) ?\}|(-?\d))$")
_TEXT = re.compile(r"\\text ?\{((?:[^{}]|\{[^{}]*\})*)\}$")
_BARE = re.compile(rf"(?:(?<=[\d}})])|(?<=\\pi))( ?)([A-Za-z¢]+{_POWER}(?:(?: ?[/*] ?| )[A-Za-z]+{_POWER})*)$")
_DEGREE = re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ|o|\{ ?o ?\}) ?(?:\\text ?\{ ?)?([CFK]?)(?: ?\})?$")
_PRIMES = re.compile(r"(?<=\d) ?\^? ?\{? ?('(?: ?')?) ?\}?$")  # minutes and seconds of arc, feet and inches
_FUNCTION = re.compile("|".join(rf"\\{name}" for name in sorted(FUNCTIONS)))
_CURRENCY = re.compile(
    rf"(-? ?)(?:US ?)?(?:{DOLLAR}|USD(?![A-Za-z])|\\text ?\{{ ?(?:USD|{DOLLAR}) ?\}}) ?(?=[\d.\\(-])"
)
_TOKEN = re.compile(r"([A-Za-z¢]+)\.?(?: ?\^ ?\{? ?(-?\d) ?\}?|(-?\d)(?!\d))?|([/*])|[ ,.()'-]+")
_MAX_UNITS = 4

Token = tuple[str, int]  # a unit and its power


def split_unit(text: str) -> tuple[str, str, int]:
    """(what stands before the unit, the unit in one spelling, the factor of a word such as million).

    Raises Unreadable where the words behind the number are no unit.
    """
    tokens: list[Token] = []
    factor = 1
    if currency := _CURRENCY.match(text):
        text = currency[1] + text[currency.end() :]
        tokens.append(("dollar", 1))
    for _ in range(_MAX_UNITS):
        rest, found = _last_unit(text)
        if found is None or not rest.strip():
            break
        text = rest.rstrip()
        if text.endswith("/"):
            text, found = text[:-1].rstrip(), [(name, -power) for name, power in found]
        for name, power in found:
            if name in _SCALES:
                factor *= _SCALES[name]
            else:
                tokens.append((name, power))
    return text, _spelled(tokens), factor


def _spelled(tokens: list[Token]) -> str:
    powers: dict[str, int] = {}
    for name, power in tokens:
        if name in powers and name in ("%", "°", "'", "''"):
            raise Unreadable(f"{name} twice")
        powers[name] = powers.get(name, 0) + power
    if powers.keys() >= {"dollar"} and len(tokens) > 1 and tokens[0] == tokens[-1]:
        powers["dollar"] = 1  # $5 dollars
    return " ".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()) if power)


def _last_unit(text: str) -> tuple[str, list[Token] | None]:
    if text.endswith("%"):
        return text[:-1], [("%", 1)]
    if text.endswith(DOLLAR):
        return text[:-1], [("dollar", 1)]
    if (match := _DEGREE.search(text)) and not _FUNCTION.search(text):  # the degrees of cos 60° are not the answer's
        return text[: match.start()], [("°" + match[1], 1)]
    if match := _PRIMES.search(text):
        return text[: match.start()], [(match[1].replace(" ", ""), 1)]
    raised = _RAISED.search(text)
    body, power = (text[: raised.start()], int(raised[1] or raised[2])) if raised else (text, 1)
    if match := _TEXT.search(body):
        if len(match[1].strip()) == 1 and match[1].strip() not in _CANONICAL:
            return text, None  # \mathrm{e}, \mathrm{i}: a letter, not a unit
        tokens = _tokens(match[1])
        if power != 1 and tokens:
            tokens[-1] = (tokens[-1][0], tokens[-1][1] * power)
        return body[: match.start()], tokens
    match = _BARE.search(text)
    if match is not None and _is_bare_unit(match[2], spaced=bool(match[1])):
        return text[: match.start()], _tokens(match[2])
    return text, None


def _tokens(words: str) -> list[Token]:
    """The units in "miles per hour", "m/s^2", "square feet" or "eggs". Raises Unreadable."""
    tokens: list[Token] = []
    at, sign, prefix = 0, 1, 1
    while at < len(words):
        match = _TOKEN.match(words, at)
        if match is None:
            raise Unreadable(f"{words!r} behind a number is not a unit")
        at = match.end()
        if match[4] == "/":
            sign = -1
        word = match[1]
        if not word:
            continue
        power = int(match[2] or match[3] or 1)
        plain = word.lower()
        if word not in _CANONICAL and (word in FUNCTIONS or word in GREEK or plain == "pi"):
            raise Unreadable(f"{words.strip()!r} behind a number is not a unit")
        if (
            plain not in _SCALES
            and (plain in NOT_UNITS or _NO_NOUN.search(plain) or word in _LETTERS)
            and not (plain in ("squared", "cubed") and tokens)
        ):
            raise Unreadable(f"{words.strip()!r} behind a number is not a unit")
        if plain in ("square", "sq", "cubic", "squared", "cubed"):
            raising = 2 if plain in ("square", "sq", "squared") else 3
            if plain.endswith("ed"):
                tokens[-1] = (tokens[-1][0], tokens[-1][1] * raising)
            else:
                prefix = raising
        elif plain == "per":
            sign = -1
        elif word in _COMPOUND:
            tokens += _COMPOUND[word]
        elif plain in ("percent", "pct", "percentage"):
            tokens.append(("%", 1))
        elif plain in ("degree", "degrees", "deg"):
            tokens.append(("°", 1))
        elif plain not in _NO_UNIT or (word == "in" and power == 1 and words.strip().startswith("in")):
            tokens.append((_canonical(word), sign * power * prefix))
            prefix = 1
        if (match[2] or match[3]) and word not in _CANONICAL:
            raise Unreadable(f"{words.strip()!r} behind a number is not a unit")
    return tokens


def _canonical(word: str) -> str:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in _CANONICAL:
            return _CANONICAL[name]
    return word.lower() if word.lower() in _SCALES else word.lower().removesuffix("s") if len(word) > 3 else word


def _is_bare_unit(words: str, spaced: bool) -> bool:
    """Without \\text around it a unit is a known one, or after a space any long word: 24abcd and 5 m are products."""
    parts = re.findall(r"[A-Za-z¢]+", words)
    if any(part in FUNCTIONS or part in GREEK or part in ("pi", "oo") for part in parts):
        return False
    known = [part in _CANONICAL or part in _COMPOUND or part.lower().removesuffix("s") in _CANONICAL for part in parts]
    if all(len(part) == 1 for part in parts):
        return spaced and "/" in words and all(known)
    if not spaced:
        known = [
            k or part in ("percent", "pct", "percentage", "degrees", "degree", "deg")
            for k, part in zip(known, parts, strict=True)
        ]
        return all(known) and all(len(part) > 1 for part in parts[:1]) and (len(parts) == 1 or "/" in words)
    noun = [len(part) > 3 or part.lower() in ("per", "sq", "pct", "deg", "rad", *_NO_UNIT) for part in parts]
    if "per" in parts:
        noun = [True] * len(parts)
    return all(a or b for a, b in zip(known, noun, strict=True))


def in_base_units(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """({"length": 1, "time": -1}, 5/18) of "km h^-1", or None where one of the units has no known size."""
    dimensions: dict[str, int] = {}
    factor = Fraction(1)
    for token in unit.split():
        name, _, raised = token.partition("^")
        dimension, size, _ = _UNITS.get(name, ("", "", ""))
        if not dimension:
            return None
        power = int(raised or 1)
        dimensions[dimension] = dimensions.get(dimension, 0) + power
        factor *= Fraction(size) ** power
    return {dimension: power for dimension, power in dimensions.items() if power}, factor


def as_letters(unit: str) -> Node | None:
    """The product of variables that "m^2" may have been meant as, or None for a unit of many letters."""
    factors: list[Node] = []
    for token in unit.split():
        name, _, raised = token.partition("^")
        if not name.isalpha() or len(name) > 3 or (raised and len(name) > 1):
            return None
        power: Node = ("num", Fraction(int(raised or 1)))
        factors += [("pow", ("sym", letter), power) for letter in name]
    return ("mul", *factors) if factors else None
