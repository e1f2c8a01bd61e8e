"""A small grammar for the formulas that stand in answers: text from `clean` -> tree of tuples. Nothing is evaluated.

Implicit multiplication binds like explicit multiplication, from left to right; digits never multiply by standing side
by side. Leaves out integrals, limits, infinite sums and whatever else an answer seldom needs: those are Unsupported.

Size is bounded before anything is built: characters, nesting, parts, and in literals.py digits.
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math.literals import Unreadable, Unsupported, read_number
from grpo_math.verifiers._math.names import (
    ACCENTS,
    DENIALS,
    FUNCTIONS,
    GREEK,
    GREEK_WORDS,
    INVERTIBLE,
    SAME_FUNCTION,
    UNSUPPORTED,
)
from grpo_math.verifiers._math.tree import Node, spelling

MAX_CHARS, MAX_DEPTH, MAX_ATOMS = 1500, 40, 400

DIGITS = frozenset("0123456789")
_NUMERIC = DIGITS | {"."}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_WORD = re.compile(r"[A-Za-z]+")
_TEXT = re.compile(r"\s*\{\s*([A-Za-z]+)\s*\}")
_SUBSCRIPT = re.compile(r"_ ?(?:\{((?:[^{}]|\{[^{}]*\})*)\}|([A-Za-z0-9]|\\[A-Za-z]+))")
MARKUP = re.compile(r"\\text|[ {}]")
_VALUE = re.compile(r" ?\( ?(\d+) ?\)")
_CIRC = re.compile(r" ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))")
_ABOVE = re.compile(r" ?\^")
_INDEX = re.compile(r" ?_ ?\{ ?([A-Za-z]) ?= ?")
_INFIX = re.compile(r" ?\\(over|choose)(?![A-Za-z])")
_OF = re.compile(r" ?\\of(?![A-Za-z])")
_POWER = re.compile(r"\d+ ?\^")
_MINUS = re.compile(r" ?-")
_PRIMES = re.compile(r" ?(?:'|\^ ?\{ ?'+ ?\})+")

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_FUNCTION_WORD = re.compile(r"\\?([A-Za-z]+)")
_MINUS_ONE: Node = ("neg", ("num", Fraction(1)))
_CLOSING = (r"\rfloor", r"\rceil", r"\over", r"\choose", r"\of")
_STARTS_ATOM = re.compile(r"[\dA-Za-z.(\[{\\]")


def parse(text: str) -> Node:
    """The tree of the whole text. Raises Unreadable."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"longer than {MAX_CHARS} characters")
    parser = _Parser(text)
    node = parser.expression()
    if rest := parser.peek():
        raise (Unsupported if rest == "…" else Unreadable)(f"cannot read from {text[parser.at : parser.at + 20]!r} on")
    return node


class _Parser:
    """Recursive descent over the characters: LaTeX's own rule for arguments, one character or a group, needs them."""

    def __init__(self, text: str):
        self.text = text
        self.at = self.depth = self.atoms = self.bars = 0
        self.index = ""  # of the sum or product whose term is read

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, expected: str) -> None:
        if (found := self.peek()) != expected:
            raise (Unsupported if found == "…" else Unreadable)(
                f"expected {expected!r} before {self.text[self.at : self.at + 20]!r}"
            )
        self.at += 1

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def expression(self) -> Node:
        """A sum, or plain TeX's {a \\over b} and {n \\choose k}."""
        node = self.sum()
        infix = self.match(_INFIX)
        if infix is None:
            return node
        return ("div" if infix[1] == "over" else "binom", node, self.sum())

    def sum(self) -> Node:
        terms = [self.product()]
        while self.peek() in ("+", "-"):
            terms.append(self.product())  # which reads its own sign
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def product(self) -> Node:
        factors = [self.signed()]
        while operator := self.peek():
            if operator in "*/":
                self.at += 1
                right = self.signed()
                factors.append(("inv", right) if operator == "/" else right)
            elif self.starts_factor(operator, factors[-1][0] == "pow"):
                factors.append(self.power())
            else:
                break
        return factors[0] if len(factors) == 1 else ("mul", *factors)

    def starts_factor(self, character: str, after_power: bool = False) -> bool:
        if character == "|":
            return not self.bars
        if not _STARTS_ATOM.match(character) or self.text.startswith(_CLOSING, self.at):
            return False
        before = self.text[: self.at]
        if after_power and before.endswith(" ") and _POWER.match(self.text, self.at):
            return True  # 2^6 3^5, a prime factorisation
        if character in DIGITS and (before[-1] == "}" or before.rstrip()[-1] in _NUMERIC):
            raise Unreadable(f"two numbers side by side before {self.text[self.at : self.at + 20]!r}")
        return True

    def signed(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.text[self.at] == "-"
            self.at += 1
        node = self.power()
        return ("neg", node) if negative else node

    def power(self) -> Node:
        base = self.atom()
        last = ""
        while (operator := self.peek()) in ("!", "^"):
            if last == "^" or last == operator:
                raise (Unreadable if operator == "^" else Unsupported)("a power of a power, or a double factorial")
            last = operator
            self.at += 1
            if operator == "!":
                base = ("fact", base)
            else:
                base = ("degree", base) if self.match(_CIRC) else ("pow", base, self.exponent())
        return base

    def exponent(self) -> Node:
        sign = self.match(_MINUS)
        node = self.group("{", "}") if self.peek() == "{" else self.atom(single=True)
        return ("neg", node) if sign else node

    def group(self, opening: str, closing: str) -> Node:
        bars, self.bars = self.bars, 0
        self.take(opening)
        node = self.expression()
        self.take(closing)
        self.bars = bars
        return node

    def argument(self) -> Node:
        """What \\frac reads: a group, or one digit, letter or command."""
        character = self.peek()
        if character == "{":
            return self.group("{", "}")
        if character in DIGITS:
            self.at += 1
            return ("num", Fraction(int(character)))
        return self.atom(single=True)

    def atom(self, single: bool = False) -> Node:
        self.depth += 1
        self.atoms += 1
        if self.depth > MAX_DEPTH or self.atoms > MAX_ATOMS:
            raise Unreadable(f"nested deeper than {MAX_DEPTH}, or of more than {MAX_ATOMS} parts")
        node = self.any_atom(single)
        self.depth -= 1
        return node

    def any_atom(self, single: bool) -> Node:
        character = self.peek()
        if character and character in _NUMERIC:
            return self.number(mixed=not single)
        if character and character in _PAIRS:
            return self.group(character, _PAIRS[character])
        if character == "|":
            return self.absolute()
        if character == "\\":
            return self.command()
        if character == "∞":
            self.at += 1
            return ("inf",)
        if character.isalpha() and character.isascii():
            return self.word(single)
        if character == "…":
            raise Unsupported("a formula with dots")
        raise Unreadable(f"cannot read from {self.text[self.at : self.at + 20]!r} on")

    def number(self, mixed: bool) -> Node:
        value, self.at = read_number(self.text, self.at, mixed)
        return ("num", value)

    def absolute(self) -> Node:
        self.take("|")
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.take("|")
        return ("abs", node)

    def word(self, single: bool) -> Node:
        match = _WORD.match(self.text, self.at)
        assert match is not None
        name = match.group()
        if not single and name in FUNCTIONS:
            self.at = match.end()
            return self.function(name)
        if not single and name == "pi":
            self.at = match.end()
            return ("const", "pi")
        if name.lower() in DENIALS:
            raise Unreadable(f"{name!r} in a formula")
        if not single and name in GREEK_WORDS:
            self.at = match.end()
            return self.symbol(name)
        self.at += 1
        return self.symbol(name[0])

    def symbol(self, name: str, primes: int = 0) -> Node:
        subscript = self.match(_SUBSCRIPT)
        if subscript:
            inside = subscript[1] if subscript[1] is not None else subscript[2]
            name += "_" + MARKUP.sub("", inside)
        if marks := self.match(_PRIMES):
            primes += marks.group().count("'")
        name += "'" * primes
        if name in ("e", "i") and name != self.index:
            return ("const", name)
        if value := self.match(_VALUE):  # I(0) is no product, or it would be 0
            name += f"({value[1]})"
        return ("sym", name)

    def command(self) -> Node:
        match = self.match(_COMMAND)
        if match is None:
            raise Unreadable(f"cannot read from {self.text[self.at : self.at + 20]!r} on")
        name = match[1]
        if name == "text" and (word := self.match(_TEXT)):
            if word[1] in FUNCTIONS:
                return self.function(word[1])
            if len(word[1]) > 1:
                raise Unreadable(f"the word {word[1]!r} in a formula")
            return self.symbol(word[1])
        if name in ("frac", "binom"):
            top = self.argument()
            return ("div" if name == "frac" else "binom", top, self.argument())
        if name == "sqrt":
            degree = self.group("[", "]") if self.peek() == "[" else ("num", Fraction(2))
            return ("root", self.argument_or_number(), degree)
        if name == "root":
            degree = self.argument_or_number()
            if not self.match(_OF):
                raise Unreadable(r"\root without \of")
            return ("root", self.argument_or_number(), degree)
        if name in ("lfloor", "lceil"):
            node = self.sum()
            closing = self.match(_COMMAND) if self.peek() else None
            if closing is None or closing[1] != name.replace("l", "r", 1):
                raise Unreadable(rf"\{name} is not closed")
            return (name[1:], node)
        if name in FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return ("const", "pi")
        if name in GREEK:
            return self.symbol(name)
        if name in ("mathcal", "mathscr", "mathfrak") and self.peek() == "{":
            return self.group("{", "}")
        if name in ("dot", "ddot") and self.peek() == "{" and (letter := self.group("{", "}"))[0] == "sym":
            return self.symbol(letter[1], primes=len(name) - 2)  # the derivative that x' is as well
        if name in ACCENTS and self.peek() == "{":
            return self.symbol(f"{name} {spelling(self.group('{', '}'))}")
        if name in ("sum", "prod"):
            return self.series(name)
        raise (Unsupported if name in UNSUPPORTED else Unreadable)(rf"cannot read \{name}")

    def series(self, name: str) -> Node:
        """\\sum_{k=1}^{n} with the product behind it."""
        above = self.exponent() if self.match(_ABOVE) else None
        index = self.match(_INDEX)
        if index is None or self.index:
            raise Unsupported(rf"cannot read this \{name}")
        low = self.sum()
        self.take("}")
        if above is None:
            self.take("^")
        high = above or self.exponent()
        if ("inf",) in (low, high):
            raise Unsupported(rf"cannot read an infinite \{name}")
        self.index = index[1]
        term = self.product()
        self.index = ""
        return (name, index[1], low, high, term)

    def argument_or_number(self) -> Node:
        return self.number(mixed=False) if self.peek() in _NUMERIC else self.argument()

    def function(self, name: str) -> Node:
        name = SAME_FUNCTION.get(name, name)
        base: Node | None = None
        exponent: Node | None = None
        if self.peek() == "_":
            self.at += 1
            base = self.argument_or_number()
        if self.peek() == "^":
            self.at += 1
            exponent = self.exponent()
        argument = self.function_argument()
        if exponent == _MINUS_ONE and name in INVERTIBLE:
            return ("call:a" + name, argument)
        node = self.call(name, base, argument)
        return node if exponent is None else ("pow", node, exponent)

    @staticmethod
    def call(name: str, base: Node | None, argument: Node) -> Node:
        if name == "lg" and base is None:
            return ("log", argument, ("num", Fraction(10)))
        if base is not None:
            if name != "log":
                raise Unreadable(f"{name} with a subscript")
            return ("log", argument, base)
        if name == "sqrt":
            return ("root", argument, ("num", Fraction(2)))
        return (name, argument) if name in ("abs", "floor", "ceil") else ("call:" + name, argument)

    def function_argument(self) -> Node:
        """A bracket, or the atoms that follow up to an operator or the next function: sin 2x cos x."""
        if self.peek() in ("(", "["):
            return self.atom()  # cos(x)^2 is the square of the cosine
        if self.peek() == "{":
            return self.power()
        factors = [self.signed()]
        while (operator := self.peek()) and operator not in "([|" and self.starts_factor(operator):
            word = _FUNCTION_WORD.match(self.text, self.at)
            if word and word[1] in FUNCTIONS:
                break
            factors.append(self.power())
        return factors[0] if len(factors) == 1 else ("mul", *factors)
