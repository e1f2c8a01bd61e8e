"""Labelled answers, written by people who had not seen the verifier: what it gets wrong is known, and does not grow.

math.jsonl was mended against until next to nothing was left; the other two sets came later, and hold what is still out
of reach (GSM8K's solutions that end in prose, congruences, functions by cases, sets by a parameter).
"""

from pathlib import Path

import pytest

from grpo_math.pairs import read_pairs
from grpo_math.verifiers import math as verifier
from grpo_math.verifiers._math.exact import BUDGET

CASES = Path(__file__).parent / "cases"

# file: (how many lines, right answers that are not accepted, wrong answers that are)
KNOWN = {
    "math.jsonl": (3585, 5, []),
    "math_completions.jsonl": (959, 15, []),
    "math_pairs.jsonl": (2367, 85, ["pairs-2144"]),  # 1/7 % for 0.142857...: what percent=either says
}


def judged(name):
    broken = []
    pairs = list(read_pairs(CASES / name, verifier.from_row, broken))
    assert broken == []
    return [(pair, verifier.verify(*pair.job[:2])) for pair in pairs]


@pytest.mark.parametrize("name", KNOWN)
def test_labelled_answers(name):
    lines, missed, accepted = KNOWN[name]
    verdicts = judged(name)
    assert len(verdicts) == lines
    assert [pair.id for pair, verdict in verdicts if verdict.reward == 1.0 and not pair.expected] == accepted
    assert sum(verdict.reward != 1.0 for pair, verdict in verdicts if pair.expected) <= missed


def test_no_hostile_answer_is_accepted():
    """668 inputs that a policy might try: none gets the reward, and none is an error of ours."""
    verdicts = judged("math_hostile.jsonl")
    assert [(pair.id, pair.job[1]) for pair, verdict in verdicts if verdict.reward == 1.0] == []
    assert [(pair.id, verdict.detail) for pair, verdict in verdicts if verdict.reason == "error"] == []


SLOW = [
    "5\\text{" + "." * 1900 + "!}", "\\sum_{k=1}^{2000}\\sin\\frac k9+\\frac x0", "\\sum_{k=1}^{2500}k!+n/0",
    ",".join(f"\\sum_{{k=1}}^{{2000}}k!+{i}" for i in range(60)), "\\{" * 18 + "5" + "\\}" * 18, "$" + " " * 398 + "x",
    " " * 1900 + "x", "+".join(f"\\sin({i}x)" for i in range(100)), ",".join(f"\\sin({i}x)" for i in range(64)),
    "\\{" + ",".join(f"\\sqrt{{{i}}}" for i in range(60)) + "\\}", "\\begin{pmatrix}" + "1&" * 900 + "\\end{pmatrix}",
    "=".join(f"{i}-{i - 1}" for i in range(100, 300)), "(x+1)^{2000}", "A. " * 660, "the point " * 190, "1\\pm" * 400,
    "\\prod_{k=1}^{2500}\\sqrt2", "+".join(["\\sum_{k=1}^{2000}k^{1400}"] * 40), "+".join(["x^x"] * 190) + "+1/0",
    "0_" * 900, "\\text{for all x} " * 100, "k∈\\mathbb{Z}," * 120, "1{,}000" * 280, "5 " + "a/" * 900, "9" * 1990,
]  # fmt: skip


@pytest.mark.parametrize("answer", SLOW, ids=lambda answer: answer[:24])
def test_no_answer_needs_more_than_its_budget_of_work(answer):
    """Found by an attacker, at seconds to minutes each. Counted, for a time would depend on the machine."""
    for gold in ("17", "\\sqrt{2}+x", answer):
        assert verifier.equivalent(gold, answer) in (True, False, None)
        assert BUDGET.spent <= BUDGET.limit + 10_000


@pytest.mark.parametrize(
    "part",
    ["answer is ", "\\boxed{", "{", "\\boxed{5}, ", "answer: $5$ ", "not ", "the answer is not 5. ", "\\boxed 5 "],
)
def test_a_completion_of_megabytes_is_read_at_its_end(part):
    assert verifier.verify(verifier.EXAMPLES[0][0], part * (2_000_000 // len(part)) + "\\boxed{18}").reward in (
        1.0,
        0.0,
    )
