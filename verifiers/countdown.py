"""Does the completion's expression reach the target with the numbers of the problem? Reward 1 or 0.

Read by a parser of its own and computed in exact fractions: nothing of the completion is ever run, and length, depth
and digits are bounded before anything is built. Leaves out powers, decimals, digits put together to longer numbers, and
`2(3+4)` without its sign.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from grpo_math.types import Problem, UserError, Verdict
from grpo_math.verifiers._math.extract import Found, boxed, final_answer, has_box

FORMATS = ("tag:answer", "boxed")
USES = ("all", "some")
MAX_CHARS, MAX_DEPTH, MAX_DIGITS = 500, 40, 9

_SIGNS = {"×": "*", "·": "*", "⋅": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-", "–": "-"}
_SIGNS |= {"\\frac": "frac", "\\dfrac": "frac", "\\tfrac": "frac"}
_TOKEN = re.compile(r"[0-9]+|[-+*/(){}=×·⋅÷−–]|\\(?:times|cdot|div|[dt]?frac)(?![A-Za-z])")
# what LaTeX adds for the eye: white space, sizes of parentheses, the ends of a formula
_SKIPPED = re.compile(r"(?:\s|\\(?:left|right|quad|displaystyle)(?![A-Za-z])|\\[,;:! ()\[\]]|\$)*")


class Unreadable(ValueError):
    """No expression, or one without a value. The message says what is wrong."""


class Value(NamedTuple):
    """What an expression comes to, and the numbers that stand in it, in their order."""

    value: Fraction
    numbers: tuple[int, ...]


def verify(problem: Problem, completion: str, *, use: str = "all") -> Verdict:
    """correct 1.0, wrong 0.0 with what is wrong, no_answer 0.0 where there is no <answer></answer> and no \\boxed{}.

    `metadata` has `numbers` and `target`; a problem without them has those of its own answer. use: "all", each number
    exactly once, or "some", each at most once. "= 24" may follow the expression, and must then be right."""
    try:
        numbers, target = _puzzle(problem)
    except Unreadable as e:
        return Verdict(None, "error", f"answer of {problem.id}: {e}")
    text, where = _expression(completion)
    if text is None:
        return Verdict(0.0, "no_answer", where)
    complaint = fault(text, numbers, target, use)
    return Verdict(float(complaint is None), "wrong" if complaint else "correct", complaint or "", text[:MAX_CHARS])


def check(problem: Problem) -> str | None:
    """Why the problem is of no use, its own answer being no solution, or None."""
    try:
        numbers, target = _puzzle(problem)
    except Unreadable as e:
        return str(e)
    if not problem.answer:
        return f"nothing is known that makes {target} of {', '.join(map(str, numbers))}, each used once"
    complaint = fault(problem.answer, numbers, target)
    return f"its own answer is no solution: {complaint}" if complaint else None


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError."""
    if (use := options.get("use", "all")) not in USES:
        raise UserError(f"use={use!r}: the verifier countdown takes {' or '.join(USES)} of the numbers")


def explain(problem: Problem, completion: str, *, use: str = "all") -> list[tuple[str, str]]:
    """What there was to reach and what the expression comes to, as (name, text), for a person to see."""
    numbers, target = _puzzle(problem)
    text, where = _expression(completion)
    rows = [("found", where), ("numbers", f"{', '.join(map(str, numbers))} ({use})"), ("target", str(target))]
    try:
        return rows if text is None else [*rows, ("value", str(parse(text).value))]
    except Unreadable as e:
        return [*rows, ("value", f"none: {e}")]


def from_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """The problem and the text to judge of a line with `numbers` (or `nums`), `target` and `completion`.

    Raises UserError."""
    numbers, target = puzzle_of(row)
    completion = row.get("completion")
    if not isinstance(completion, str):
        raise UserError(f"completion={completion!r}: give a string")
    return Problem(str(row.get("id")), "pairs", "", "", {"numbers": numbers, "target": target}), completion


def puzzle_of(row: Mapping[str, Any]) -> tuple[list[int], int]:
    """`numbers` (in TinyZero's data set `nums`) and `target` of a row. Raises UserError, without the row's place."""
    key = next((key for key in ("numbers", "nums") if key in row), None)
    if key is None or "target" not in row:
        raise UserError(f"it needs numbers (or nums) and target, and has {', '.join(map(repr, row)) or 'no fields'}")
    numbers, target = row[key], row["target"]
    if not isinstance(numbers, list) or not numbers or not all(_is_number(n) for n in numbers):
        raise UserError(f"{key}={numbers!r}: give a list such as [3, 7], of numbers from 0 to {10**MAX_DIGITS - 1}")
    if isinstance(target, bool) or not isinstance(target, int):
        raise UserError(f"target={target!r}: give a whole number, without quotes")
    return numbers, target


def fault(text: str, numbers: Sequence[int], target: int | Fraction, use: str = "all") -> str | None:
    """What keeps `text` from reaching `target` with `numbers`, or None where it does."""
    try:
        value, used = parse(text)
    except Unreadable as e:
        return str(e)
    given, spent = Counter(numbers), Counter(used)
    for number in spent:
        if number not in given:
            return f"{number} is none of the numbers"
        if spent[number] > given[number]:
            return f"number {number} used {_times(spent[number])}, given {_times(given[number])}"
    for number in given if use == "all" else ():
        if spent[number] < given[number]:
            how = f"used {_times(spent[number])}" if spent[number] else "not used"
            return f"number {number} {how}, given {_times(given[number])}"
    return None if value == target else f"its value is {_short(value)}, not {target}"


def parse(text: str) -> Value:
    """The value and the numbers of an expression, with or without a right "= value" behind it. Raises Unreadable."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"longer than {MAX_CHARS} characters")
    expression, *said = _split(_tokens(text.strip().rstrip(".")))
    parser = _Parser(expression)
    result = parser.sum(0)
    parser.end()
    if len(said) > 1:
        raise Unreadable("more than one =")
    for right in said:
        sign, digits = (-1, right[1:]) if right[:1] == ["-"] else (1, right)
        if len(digits) != 1 or not digits[0].isdigit():
            raise Unreadable("what follows = is no whole number")
        if result.value != sign * int(digits[0]):
            raise Unreadable(f"it says = {''.join(right)}, but its value is {_short(result.value)}")
    return result


@dataclass
class _Parser:
    """sum = product {+- product}, product = factor {*/ factor}, factor = -factor | number | (sum) | frac{sum}{sum}.

    at: the place of the next token. Each function leaves it behind what it has read."""

    tokens: list[str]
    at: int = 0

    def sum(self, depth: int) -> Value:
        left = self.product(depth)
        while (sign := self.next_of("+-")) is not None:
            right = self.product(depth)
            value = left.value + right.value if sign == "+" else left.value - right.value
            left = Value(value, left.numbers + right.numbers)
        return left

    def product(self, depth: int) -> Value:
        left = self.factor(depth)
        while (sign := self.next_of("*/")) is not None:
            right = self.factor(depth)
            both = left.numbers + right.numbers
            left = _divided(left, right) if sign == "/" else Value(left.value * right.value, both)
        return left

    def factor(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        if self.next_of("-"):
            value, numbers = self.factor(depth + 1)
            return Value(-value, numbers)
        if self.next_of("("):
            return self.inside(")", depth + 1)
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        self.at += 1
        if token == "frac":
            self.require("{")
            above = self.inside("}", depth + 1)
            self.require("{")
            return _divided(above, self.inside("}", depth + 1))
        if token is None or not token.isdigit():
            raise Unreadable(f"{token or 'its end'} where a number should be")
        return Value(Fraction(int(token)), (int(token),))

    def inside(self, closing: str, depth: int) -> Value:
        value = self.sum(depth)
        self.require(closing)
        return value

    def next_of(self, signs: str) -> str | None:
        """The next token where it is one of `signs`, behind which we then are."""
        if self.at < len(self.tokens) and self.tokens[self.at] in signs:
            self.at += 1
            return self.tokens[self.at - 1]
        return None

    def require(self, sign: str) -> None:
        if not self.next_of(sign):
            raise Unreadable(f"a {sign} is missing")

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise Unreadable(f"{self.tokens[self.at]} where + - * or / should be")


def _tokens(text: str) -> list[str]:
    """Numbers, signs and parentheses, signs as Python has them. Raises Unreadable for any other character."""
    tokens, at = [], _space(text, 0)
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise Unreadable(f"{text[at : at + 10]!r} is no part of an expression")
        if len(token[0]) > MAX_DIGITS and token[0].isdigit():
            raise Unreadable(f"a number of over {MAX_DIGITS} digits")
        tokens.append(_SIGNS.get(token[0], token[0]))
        at = _space(text, token.end())
    return tokens


def _space(text: str, at: int) -> int:
    space = _SKIPPED.match(text, at)
    return space.end() if space else at


def _split(tokens: list[str]) -> list[list[str]]:
    """At the signs of equality."""
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token == "=":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _divided(above: Value, below: Value) -> Value:
    if not below.value:
        raise Unreadable("a division by zero")
    return Value(above.value / below.value, above.numbers + below.numbers)


def _expression(completion: str) -> Found:
    """What <answer></answer> holds, or a box in it, or else the last box of the completion."""
    text, where = final_answer(completion, FORMATS)
    return boxed(text) if text is not None and has_box(text) else (text, where)


def _puzzle(problem: Problem) -> tuple[Sequence[int], int | Fraction]:
    """The numbers and the target; of a problem that comes without them, those of its answer. Raises Unreadable."""
    if "numbers" in problem.metadata:
        return problem.metadata["numbers"], problem.metadata["target"]
    value, numbers = parse(problem.answer)
    return numbers, value


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**MAX_DIGITS


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _short(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_PROBLEM = Problem("example", "example", "", "(25-4)*3", {"numbers": [3, 4, 25], "target": 63})

EXAMPLES = [
    (_PROBLEM, "<think>25 - 4 = 21</think> <answer> (25 - 4) * 3 </answer>", 1.0),
    (_PROBLEM, "\\boxed{3 \\times (25 - 4) = 63}", 1.0),
    (_PROBLEM, "\\boxed{(25 - 4) * 3 = 64}", 0.0),
    (_PROBLEM, "\\boxed{21 * 3}", 0.0),
    (_PROBLEM, "\\boxed{25 + 4 + 3}", 0.0),
    (_PROBLEM, "(25 - 4) * 3", 0.0),
]
