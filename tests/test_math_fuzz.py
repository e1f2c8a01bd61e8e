"""Random strings, each read or refused within its budget of work, in flat memory; 100,000 with GRPO_MATH_ALL=1."""

import json
import os
import random
import subprocess
import sys

TOKENS = [
    "\\frac", "\\dfrac", "{", "}", "(", ")", "[", "]", "0", "1", "23", "4.5", ",", "x", "n", "e", "i", "^", "_", "!",
    "-", "*", "/", " ", "\\sqrt", "\\sqrt[3]", "\\pi", "\\sin", "\\cos(", "\\log", "\\ln", "\\binom", "\\lfloor",
    "\\rfloor", "\\lceil", "\\rceil", "\\sum_{k=1}^{", "\\prod_{k=1}^{", "\\int", "\\lim", "\\text{", " or ", " and ",
    "=", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\cup", "\\cap", "\\setminus", "\\pm", "\\mp", "\\infty", "%",
    "^\\circ", "$", "\\$", "\\{", "\\}", "|", ".", ":", ";", "'", "cm", "km/h", "½", "²", "√", "∪", "≈", "≤", "−", "∞",
    "&", "\\\\", "\\boxed{", "\\begin{pmatrix}", "\\end{pmatrix}", "\\begin{cases}", "\\left(", "\\right)", "\\,", "+",
    "9" * 50, "{,}", "e9", "_8", "_{8}", "\\overline{3}", "\\mathbb{R}", "\\emptyset", "(C)", "yes", "not ", "**", "\n",
    "\\cdot", "\\times", "10^{", "1,000", "\u200b", "\ud800", "\x00", "ⅷ", "五", "x=", "x_1", "f(x)=", "\\angle ABC",
    "</think>", "\\!", "<think>", "#### ", "The answer is ", "<answer>", "</answer>",
]  # fmt: skip

FUZZ = """
import json, random, resource, sys
from grpo_math.types import Problem
from grpo_math.verifiers._math.exact import BUDGET
from grpo_math.verifiers.math import equivalent, verify

tokens, count, seed = json.load(sys.stdin)
rng = random.Random(seed)
golds = [Problem("p", "t", "What is $2+3*4$?", gold) for gold in ("17", "x+1", "\\\\sqrt{2}", "(1,2)", "\\\\{1,2\\\\}")]
most, peak = (0, ""), []
for number in range(count):
    kind = rng.random()
    if kind < 0.8:
        text = "".join(rng.choices(tokens, k=rng.randint(1, 24)))
    elif kind < 0.9:
        text = rng.randbytes(rng.randint(1, 80)).decode(rng.choice(["latin-1", "utf-8"]), "surrogateescape")
    else:
        text = rng.choice(tokens) * rng.randint(1, 400)
    verdict = verify(golds[number % 5], text if kind < 0.2 else "\\\\boxed{" + text + "}")
    assert verdict.reward in (0.0, 1.0, None), text
    assert verdict.reason != "error", (text, verdict)
    assert equivalent(text, text) in (True, None), text
    most = max(most, (BUDGET.spent, text))
    if number % (count // 4) == count // 4 - 1:
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(json.dumps({"most": most, "limit": BUDGET.limit, "peak_mb": peak}))
"""


def fuzz(count, seed):
    result = subprocess.run(
        [sys.executable, "-c", FUZZ],
        input=json.dumps([TOKENS, count, seed]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


STRINGS = 100_000 if "GRPO_MATH_ALL" in os.environ else 25_000


def test_random_strings():
    seen = fuzz(STRINGS, random.Random(0).randrange(1 << 30))
    assert seen["most"][0] <= seen["limit"] + 10_000, seen["most"]  # a fifth of the deadline of scoring.timeout_s
    assert seen["peak_mb"][-1] - seen["peak_mb"][1] < 64, seen["peak_mb"]
