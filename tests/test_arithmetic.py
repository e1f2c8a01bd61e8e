"""The arithmetic task: right answers, worked solutions that lead to them, and a test split that no training sees."""

from __future__ import annotations

from itertools import islice

import pytest

from grpo_math.tasks.arithmetic import addition, held_out, load, subtraction
from grpo_math.types import UserError


def no_slip(value: int, largest: int) -> int:
    return value


def test_worked_solutions_by_hand():
    assert addition(347, 85, no_slip) == (["7+5=12", "4+8+1=13", "3+0+1=4"], 432)
    assert addition(95, 17, no_slip) == (["5+7=12", "9+1+1=11"], 112)
    assert subtraction(432, 85, no_slip) == (["12-5=7", "13-8-1=4", "4-0-1=3"], 347)
    assert subtraction(100, 1, no_slip) == (["10-1=9", "10-0-1=9", "1-0-1=0"], 99)
    assert subtraction(50, 50, no_slip) == (["0-0=0", "5-5=0"], 0)


def test_every_solution_ends_in_its_answer():
    for problem in islice(load("train", seed=3), 3000):
        a, b = (int(n) for n in problem.question.rstrip("=?").replace("-", "+").split("+"))
        assert int(problem.answer) == (a + b if "+" in problem.question else a - b) >= 0
        assert problem.metadata["solution"].endswith(f"\\boxed{{{problem.answer}}}")


def test_slips_change_the_solution_and_never_the_answer():
    clean = list(islice(load("train", seed=3), 500))
    slipped = list(islice(load("train", seed=3, slips=0.5), 500))
    wrong = [p for p in slipped if not p.metadata["solution"].endswith(f"\\boxed{{{p.answer}}}")]
    assert 250 < len(wrong) < 500
    assert clean[0].question == slipped[0].question


def test_no_training_problem_is_a_test_problem_whatever_the_seed():
    test = {p.question for p in load("test", max_digits=2)}
    assert len(test) == 1000
    for seed in range(3):
        assert not test & {p.question for p in islice(load("train", seed=seed, max_digits=2), 3000)}
    assert all(held_out(question) for question in test)


@pytest.mark.parametrize(
    ("split", "options", "named"),
    [
        ("dev", {}, r"task\.split=dev"),
        ("train", {"operations": "*"}, "operations"),
        ("train", {"min_digits": 3, "max_digits": 2}, "max_digits=2"),
        ("train", {"slips": 1.0}, "slips=1.0"),
        ("train", {"path": "x.jsonl"}, r"task\.path"),
    ],
)
def test_bad_options_name_the_key_and_the_remedy(split, options, named):
    with pytest.raises(UserError, match=named):
        load(split, **options)
