"""Labelled answers, written by people who did not see the verifier: what is known of its mistakes, and nothing more."""

from pathlib import Path

import pytest

from grpo_math.pairs import read_pairs
from grpo_math.verifiers import math as verifier

CASES = Path(__file__).parent / "cases"

# Right answers that are not accepted, and what it would take.
MISSED = {
    "T_interval/": "]2,5] for (2,5], and |x - 5/2| <= 9/2 for [-2,7]: French brackets, and solving for a modulus",
    "T_union/": "R without [2,3]: differences of intervals",
    "T_date/": "March 14 with th as an exponent",
    "T_word/": "even function for even",
}


def judged(name):
    broken = []
    pairs = list(read_pairs(CASES / name, verifier.from_row, broken))
    assert broken == []
    return [(pair, verifier.verify(*pair.job[:2])) for pair in pairs]


def test_labelled_answers():
    """3,585 answers in 150 categories. False accepts are none, false rejects are those of MISSED."""
    verdicts = judged("math.jsonl")
    assert [pair.id for pair, verdict in verdicts if verdict.reward == 1.0 and not pair.expected] == []
    rejected = [pair.id for pair, verdict in verdicts if verdict.reward != 1.0 and pair.expected]
    assert [id for id in rejected if not id.startswith(tuple(MISSED))] == []
    assert len(rejected) <= 6


@pytest.mark.parametrize("reward", [1.0])
def test_no_hostile_answer_is_accepted(reward):
    """664 inputs that a policy might try: none gets the reward, and none is an error of ours."""
    verdicts = judged("math_hostile.jsonl")
    assert [(pair.id, pair.job[1]) for pair, verdict in verdicts if verdict.reward == reward] == []
    assert [(pair.id, verdict.detail) for pair, verdict in verdicts if verdict.reason == "error"] == []
