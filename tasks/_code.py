"""What several of the tasks with programs share: JSON within rows, tests, words of prompts.

The leading underscore keeps it out of `grpo-math list tasks`. Left out: what the fields of one benchmark mean.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Sequence
from typing import Any

from grpo_math.forms import Form
from grpo_math.types import UserError

# Where a base model that goes on with a function is cut: Chen et al. 2021, arXiv:2107.03374, section 2.1.
CODEX_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
EVALPLUS = "EvalPlus, Liu et al. 2023, arXiv:2305.01210, evalplus/codegen.py"
# For chat models: `question` is the head of the function, without the blank lines around it.
EVALPLUS_CHAT = Form(
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    "\n```\n{question}\n```\n",
    source=f"{EVALPLUS} and evalplus/provider/utility.py, make_raw_chat_prompt; left out: the beginning of the answer, "
    "which EvalPlus writes for the model",
)

MAX_DIGITS = 4000  # Python reads no decimal number of over 4,300 at once


# ---- JSON within rows


def parsed(source: str, field: str, text: object) -> Any:
    """The JSON value that a field holds as text. Raises UserError that names the row."""
    if not isinstance(text, str):
        raise UserError(f"{source}: {field!r} is {text!r:.60}, where JSON as a string is expected; mend the row")
    try:
        return json.loads(text, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: {field!r} holds broken JSON ({error}); mend or delete the row") from error


def whole(digits: str) -> int:
    """int(digits), however many there are: APPS has numbers of 9,000 digits, and int() stops at 4,300."""
    sign, digits = (-1, digits[1:]) if digits.startswith("-") else (1, digits)
    value = 0
    for start in range(0, len(digits), MAX_DIGITS):
        part = digits[start : start + MAX_DIGITS]
        value = value * 10 ** len(part) + int(part)
    return sign * value


# ---- tests


def readable(source: str) -> str:
    """Python source whose very long numbers are written in base 16, of which Python reads any length."""
    if not re.search(rf"\d{{{MAX_DIGITS}}}", source):
        return source  # nearly always, and a tokenizer takes seconds for the largest tests
    lines = source.splitlines(keepends=True)
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        if token.type == tokenize.NUMBER and len(token.string) > MAX_DIGITS and token.string.isdecimal():
            (row, start), (_, end) = token.start, token.end
            lines[row - 1] = lines[row - 1][:start] + hex(whole(token.string)) + lines[row - 1][end:]
    return "".join(lines)


def entry_point(code: str, asserts: Sequence[str], source: str) -> str | None:
    """The one function of the program that every assert calls, or None. Raises UserError that names the row."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # programs with "\d" and the like are MBPP's, not the user's
            defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
            trees = [ast.parse(statement) for statement in asserts]
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{source}: code or test_list is not valid Python ({error}); mend or delete the row") from error
    called = [{node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} for tree in trees]
    names = [name for name in dict.fromkeys(defined) if all(name in names for names in called)]
    return names[0] if len(names) == 1 else None


# How LiveCodeBench compares what a program wrote: line by line without white space around, and numbers by value.
# Decimal, since floats of 17 digits and more are equal to their neighbours.
_CHECKER = """
from decimal import Decimal, InvalidOperation

def lines(text):
    return [line.strip() for line in text.strip().split("\\n")]

def numbers(line):
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None

def close(got, wanted):
    if got == wanted or not (got.is_finite() and wanted.is_finite()):
        return got == wanted
    if wanted.as_tuple().exponent >= 0:
        return False  # a whole number is that number
    return abs(got - wanted) <= TOLERANCE * max(1, abs(wanted))

def same(got, wanted):
    if got == wanted:
        return True
    left, right = numbers(got), numbers(wanted)
    return None not in (left, right) and len(left) == len(right) and all(map(close, left, right))

def check(input, output, expected):
    got, wanted = lines(output), lines(expected)
    return len(got) == len(wanted) and all(map(same, got, wanted))
"""


def stdio_tests(
    inputs: Sequence[str], outputs: Sequence[str], prompt: str = "", tolerance: str = "0"
) -> dict[str, Any]:
    """Tests of a program that reads standard input, with `prompt` run before it.

    Lines are compared without white space around them, and where both are numbers by value; what is expected with a
    decimal point may be off by `tolerance`, absolute or relative."""
    cases = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    checker = f"from decimal import Decimal\nTOLERANCE = Decimal({tolerance!r})\n{_CHECKER}"
    return {"type": "stdio", "cases": cases, "checker": checker, "prompt": prompt}


# ---- text


def newlines(text: str) -> str:
    """MBPP's programs end their lines in CR LF, four of them in CR, which a model should not learn."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


# ---- MBPP's words: Austin et al. 2021, arXiv:2108.07732, and the README of google-research/mbpp

MBPP_QUESTION = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
)


def mbpp_question(text: str, asserts: Sequence[str]) -> str:
    return MBPP_QUESTION.replace("{text}", text) + "\n".join(asserts)


# task_id 2, 3 and 4 of the split `prompt`, which the paper shows; MBPP is licensed CC-BY-4.0. Line ends as `newlines`
# makes them, and no white space at the end of a line.
_EXAMPLES = (
    (
        "Write a function to find the similar elements from the given two tuple lists.",
        (
            "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
            "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
            "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
        ),
        "def similar_elements(test_tup1, test_tup2):\n  res = tuple(set(test_tup1) & set(test_tup2))\n  return (res)",
    ),
    (
        "Write a python function to identify non-prime numbers.",
        (
            "assert is_not_prime(2) == False",
            "assert is_not_prime(10) == True",
            "assert is_not_prime(35) == True",
        ),
        "import math\n"
        "def is_not_prime(n):\n"
        "    result = False\n"
        "    for i in range(2,int(math.sqrt(n)) + 1):\n"
        "        if n % i == 0:\n"
        "            result = True\n"
        "    return result",
    ),
    (
        "Write a function to find the largest integers from a given list of numbers using heap queue algorithm.",
        (
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65]",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75]",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]",
        ),
        "import heapq as hq\n"
        "def heap_queue_largest(nums,n):\n"
        "  largest_nums = hq.nlargest(n, nums)\n"
        "  return largest_nums",
    ),
)
# The README has no word on what stands between examples: a blank line, as in lm-evaluation-harness.
MBPP_SHOTS = "".join(
    f"{mbpp_question(text, asserts)}\n[BEGIN]\n{code}\n[DONE]\n\n" for text, asserts, code in _EXAMPLES
)
