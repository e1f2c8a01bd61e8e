"""Every row of the tables in docs/math_verifier.md is what the verifier does, and every option is in them."""

import re
from pathlib import Path

import pytest

from grpo_math.types import Problem, UserError
from grpo_math.verifiers import math as verifier
from grpo_math.verifiers._math.conventions import ANNOUNCED, CHOICES, DEFAULT, NAMES

DOC = (Path(__file__).parents[1] / "docs" / "math_verifier.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| `(.+)` \| `(.+)` \| (yes|no) \|$", re.MULTILINE)
ROWS = ROW.findall(DOC)


def value(text):
    return text == "true" if text in ("true", "false") else float(text) if text[0].isdigit() else text


def options(setting):
    match = re.match(r"(\w+)=([\w.]+)( \(default\))?$", setting)
    return {match[1]: value(match[2])} if match else {}


@pytest.mark.parametrize(("setting", "gold", "candidate", "same"), ROWS)
def test_a_row_of_the_table(setting, gold, candidate, same):
    assert verifier.equivalent(gold, candidate, **options(setting)) is (same == "yes")
    if "default" in setting:
        assert verifier.equivalent(gold, candidate) is (same == "yes")


def test_the_table_has_every_option_and_choice_and_the_right_defaults():
    said = {setting for setting, *_ in ROWS}
    for name, choices in CHOICES.items():
        if name == "unknown":  # no row: it changes the reward, not the verdict
            continue
        assert getattr(DEFAULT, name) == choices[0]
        assert f"{name}={choices[0]} (default)" in said
        assert all(f"{name}={choice}" in said for choice in choices[1:])
    assert {match[1] for setting in said if (match := re.match(r"(\w+)=", setting))} == set(NAMES) - {
        "answer_format",
        "unknown",
    }
    assert "`unknown=zero`" in DOC
    assert "default is `" + ",".join(ANNOUNCED) + "`" in " ".join(DOC.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"percents": "either"}, ["percents", "known: answer_format, percent"]),
        ({"percent": "both"}, ["percent=both", "either, fraction, number"]),
        ({"percent": ["either"]}, ["percent", "either, fraction, number"]),
        ({"tolerance": 2}, ["tolerance=2", "share"]),
        ({"tolerance": "0.1"}, ["tolerance=0.1", "share"]),
        ({"tolerance": True}, ["tolerance=True"]),
        ({"decimal_comma": "yes"}, ["decimal_comma=yes", "true or false"]),
        ({"answer_format": "box"}, ["answer_format=box", "boxed"]),
        ({"answer_format": "tag:"}, ["answer_format=tag:"]),
        ({"answer_format": []}, ["answer_format"]),
        ({"answer_format": 5}, ["answer_format=5"]),
        ({"units": {"a": 1}}, ["units"]),
    ],
)
def test_a_wrong_option_is_named_with_what_it_could_be(options, words):
    with pytest.raises(UserError) as error:
        verifier.check_options(options)
    assert all(word in str(error.value) for word in words)


def test_unknown_can_be_made_a_zero():
    problem = Problem("p", "t", "", "x^2")
    assert verifier.verify(problem, "\\boxed{\\int 2x dx}").reward is None
    verdict = verifier.verify(problem, "\\boxed{\\int 2x dx}", unknown="zero")
    assert (verdict.reward, verdict.reason) == (0.0, "unknown")


def test_a_problem_s_own_conventions_go_before_the_run_s():
    problem = Problem("p", "t", "", "3.14", {"conventions": {"tolerance": 0.01}})
    assert verifier.verify(problem, "\\boxed{3.15}").reward == 1.0
    assert verifier.verify(problem, "\\boxed{3.15}", tolerance=0.0).reward == 1.0
    assert verifier.verify(Problem("p", "t", "", "3.14"), "\\boxed{3.15}", tolerance=0.01).reward == 1.0
    assert verifier.check(Problem("p", "t", "", "3.14", {"conventions": {"tolerence": 0.01}})) is not None


@pytest.mark.parametrize(
    ("formats", "completion", "answer"),
    [
        ("boxed", "The answer is 5.", None),
        ("says", "\\boxed{4} The answer is 5.", "5"),
        ("hash,boxed", "\\boxed{4}\n#### 5", "5"),
        ("tag:result", "<answer>4</answer><result>5</result>", "5"),
        ("boxed,last_number", "She has 1,200 apples and 5/6 of a pear.", "5/6"),
        ("boxed,last_number", "She has none.", None),
        ("whole", " 5 ", "5"),
    ],
)
def test_answer_formats(formats, completion, answer):
    assert verifier.verify(Problem("p", "t", "", "5"), completion, answer_format=formats).answer == answer
