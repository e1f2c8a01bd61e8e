"""The countdown task and verifier: exact values, the numbers used, hostile text, solvable problems, no leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.config import Task
from grpo_math.forms import form_of
from grpo_math.problems import load_problems
from grpo_math.tasks import countdown as task
from grpo_math.tasks.countdown import held_out, key, load, solve
from grpo_math.types import Problem, UserError
from grpo_math.verifiers import countdown as verifier
from grpo_math.verifiers.countdown import MAX_CHARS, MAX_DEPTH, Unreadable, check, check_options, fault, parse, verify

PUZZLE = Problem("p", "countdown", "", "(25-4)*3", {"numbers": [3, 4, 25], "target": 63})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("8/(3-8/3)", 24),
        ("10-4-3", 3),
        ("24/4/3", 2),
        ("-3+5", 2),
        ("2*-3", -6),
        ("--4", 4),
        ("-(2+3)*4", -20),
        ("1/3", Fraction(1, 3)),
        ("3 × 4 ÷ 2 − 1", 5),
        ("$3 \\times 4 \\div 2 \\cdot 5$", 30),
        ("\\left( 7 - 2 \\right)\\, \\cdot 3", 15),
        ("\\frac{3 + 5}{2} - \\dfrac{1}{4}", Fraction(15, 4)),
        ("\\(\\frac{\\frac{12}{3}}{2}\\)", 2),
        ("(25 - 4) * 3 = 63.", 63),
        ("3 - 5 = -2", -2),
    ],
)
def test_values_by_hand(text: str, value: Fraction) -> None:
    assert parse(text).value == value


Tree = tuple[str, Fraction, list[int]]


def joined(left: Tree, right: Tree, sign: str) -> Tree:
    """The same operation of Python's own fractions, and the text in full parentheses."""
    if sign == "/" and right[1] == 0:
        sign = "+"
    values: dict[str, Callable[[], Fraction]] = {
        "+": lambda: left[1] + right[1],
        "-": lambda: left[1] - right[1],
        "*": lambda: left[1] * right[1],
        "/": lambda: left[1] / right[1],
    }
    return f"({left[0]} {sign} {right[0]})", values[sign](), left[2] + right[2]


TREES = st.recursive(
    st.integers(0, 999).map(lambda n: (str(n), Fraction(n), [n])),
    lambda inner: st.one_of(
        st.builds(joined, inner, inner, st.sampled_from("+-*/")),
        inner.map(lambda tree: (f"-{tree[0]}", -tree[1], tree[2])),
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_printed_expression_reads_back_with_its_value_and_its_numbers(tree: Tree) -> None:
    text, value, numbers = tree
    assert parse(text) == (value, tuple(numbers))


@given(st.text(alphabet="0123456789+-*/() ", max_size=12))
def test_what_is_read_has_the_value_that_python_gives_it(text: str) -> None:
    try:
        value = parse(text).value
    except Unreadable:
        return
    terms = "".join(f"Fraction({part})" if part.isdigit() else part for part in _pieces(text.rstrip(".")))
    assert value == eval(terms, {"Fraction": Fraction})  # ours alone: digits, signs and parentheses


def _pieces(text: str) -> list[str]:
    """Digits together, without the leading zeros that Python refuses."""
    pieces: list[str] = []
    for char in text:
        if char.isdigit() and pieces and pieces[-1].isdigit():
            pieces[-1] += char
        else:
            pieces.append(char)
    return [str(int(piece)) if piece.isdigit() else piece for piece in pieces]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(25-4)*3", None),
        ("3*25-3*4", "number 3 used twice, given once"),
        ("25+4*3", "its value is 37, not 63"),
        ("25*3", "number 4 not used, given once"),
        ("25*3-12", "12 is none of the numbers"),
        ("(25-4)*3=64", "it says = 64, but its value is 63"),
        ("63=(25-4)*3", "what follows = is no whole number"),
        ("25-4=21*3=63", "more than one ="),
        ("25/(4-4)", "a division by zero"),
        ("\\frac{25}{3-3}", "a division by zero"),
        ("(25-4*3", "a ) is missing"),
        ("25-4)*3", ") where + - * or / should be"),
        ("3(25-4)", "( where + - * or / should be"),
        ("25 4 3", "4 where + - * or / should be"),
        ("3**4", "* where a number should be"),
        ("25//4", "/ where a number should be"),
        ("+25", "+ where a number should be"),
        ("", "its end where a number should be"),
        ("1234567890+1", "a number of over 9 digits"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str | None) -> None:
    assert fault(text, [3, 4, 25], 63) == says


def test_each_number_once_or_at_most_once() -> None:
    assert fault("7+7", [7, 7, 2], 14) == "number 2 not used, given once"
    assert fault("7+7", [7, 7, 2], 14, use="some") is None
    assert fault("7*2", [7, 7, 2], 14) == "number 7 used once, given twice"
    assert fault("7+7+7", [7, 7, 2], 21, use="some") == "number 7 used 3 times, given twice"
    assert verify(PUZZLE, "\\boxed{25+3}").reward == verify(PUZZLE, "\\boxed{25*3}", use="some").reward == 0.0
    with pytest.raises(UserError, match="use='each': the verifier countdown takes all or some"):
        check_options({"use": "each"})


HOSTILE = [
    "²", "٣", "25-4²", "(٢٥-٤)*٣", "２５", "1_000", "1e3", "0x10", "2.5", "63.0", "1,000", "3!", "25%4", "63j", "nan",
    "__import__('os').system('true')", "(25-4)*3 if 1 else 0", "[63][0]", "lambda: 63", "63 # (25-4)*3", "\x00", "inf",
    "9" * 100_000, "(" * 100_000, "-" * 100_000 + "3", "(" * 200 + "25-4" + ")" * 200 + "*3", "=" * 400, "\ud800",
    "9**9**9", "\\boxed{", "{25-4}*3", "25-4*3or63",
    "\\frac{" * 400, "\\frac12", "25 - 4 \\times 3 \\approx 63", "target",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
@pytest.mark.parametrize("use", ["all", "some"])
def test_hostile_text_is_wrong_and_nothing_else(text: str, use: str) -> None:
    for completion in (f"<answer>{text}</answer>", f"\\boxed{{{text}}}"):
        verdict = verify(PUZZLE, completion, use=use)
        assert verdict.reward == 0.0
        assert verdict.reason in ("wrong", "no_answer")
        assert len(verdict.answer or "") <= MAX_CHARS


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    assert verify(PUZZLE, f"<answer>{text}</answer>").reward in (0.0, 1.0)


def test_the_bound_on_depth_is_where_it_is_said_to_be() -> None:
    assert parse("(" * MAX_DEPTH + "5" + ")" * MAX_DEPTH).value == 5
    with pytest.raises(Unreadable, match=f"nested deeper than {MAX_DEPTH}"):
        parse("(" * (MAX_DEPTH + 1) + "5" + ")" * (MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("25-4=21 </think> <answer> (25 - 4) * 3 </answer>", "correct"),
        ("<answer>1</answer> no: <answer>3*(25-4)</answer>", "correct"),
        ("<answer>$\\boxed{3*(25-4)}$</answer>", "correct"),
        ("so $\\boxed{3 \\times (25-4) = 63}$.", "correct"),
        ("\\boxed{3*25} then \\boxed{3*(25-4)}", "correct"),
        ("<answer>3*(25-4)</answer> or <answer>3</answer>", "wrong"),
        ("3*(25-4)", "no_answer"),
        ("<think> \\boxed{3*(25-4)}", "no_answer"),
        ("<answer></answer>", "no_answer"),
    ],
)
def test_where_the_answer_is_looked_for(completion: str, reason: str) -> None:
    assert verify(PUZZLE, completion).reason == reason


def test_problems_without_numbers_have_those_of_their_answer() -> None:
    bare = Problem("command line", "command line", "", "36*2-19")
    assert verify(bare, "<answer>2*36-19</answer>").reward == 1.0
    assert verify(bare, "<answer>36-19</answer>").detail == "number 2 not used, given once"
    broken = verify(Problem("b", "", "", "6*"), "<answer>6</answer>")
    assert (broken.reward, broken.reason) == (None, "error")
    assert ("value", "53") in verifier.explain(bare, "<answer>2*36-19</answer>")


def test_check_refuses_a_problem_whose_own_answer_is_wrong() -> None:
    assert check(PUZZLE) is None
    wrong = Problem("p", "countdown", "", "25-4*3", PUZZLE.metadata)
    assert check(wrong) == "its own answer is no solution: its value is 13, not 63"
    assert "nothing is known that makes 63 of 3, 4, 25" in str(check(Problem("p", "", "", "", PUZZLE.metadata)))


def test_examples() -> None:
    assert [verify(problem, text).reward for problem, text, _ in verifier.EXAMPLES] == [
        reward for _, _, reward in verifier.EXAMPLES
    ]


def test_a_line_of_pairs() -> None:
    problem, text = verifier.from_row({"nums": [3, 4, 25], "target": 63, "completion": "\\boxed{3*(25-4)}"})
    assert verify(problem, text).reward == 1.0
    with pytest.raises(UserError, match="completion=None: give a string"):
        verifier.from_row({"nums": [3], "target": 3})


def test_every_problem_is_solved_and_within_what_was_asked_for() -> None:
    for problem in islice(load("train", seed=3, min_numbers=2, max_numbers=5, max_number=50, max_target=100), 3000):
        numbers, target = problem.metadata["numbers"], problem.metadata["target"]
        assert check(problem) is None
        assert 2 <= len(numbers) <= 5
        assert all(1 <= n <= 50 for n in numbers)
        assert 1 <= target <= 100
        *steps, box = problem.metadata["solution"].split("\n")
        assert len(steps) == len(numbers) - 1
        assert all(parse(step).value >= 1 for step in steps)  # each is right, as it says = so and so
        assert steps[-1].endswith(f"={target}")
        assert box == f"\\boxed{{{problem.answer}}}"


def test_operations_and_seeds() -> None:
    assert not any(set(p.answer) & set("*/") for p in islice(load("train", operations="+-"), 500))
    same, other = (list(islice(load("train", seed=seed), 50)) for seed in (0, 1))
    assert same == list(islice(load("train"), 50))
    assert same != other


def test_no_training_problem_is_a_test_problem_in_another_order() -> None:
    options = {"min_numbers": 2, "max_numbers": 3, "max_number": 12}
    test = [key(p.metadata["numbers"], p.metadata["target"]) for p in load("test", **options)]
    assert len(test) == len(set(test)) > 200
    for seed in range(3):
        train = {
            key(p.metadata["numbers"], p.metadata["target"]) for p in islice(load("train", seed=seed, **options), 1000)
        }
        assert not train & set(test)
    assert len(list(load("test"))) == 1000
    assert held_out([1, 2, 3], 6) == held_out([3, 1, 2], 6)


@pytest.mark.parametrize(
    ("split", "options", "named"),
    [
        ("dev", {}, r"task\.split=dev"),
        ("train", {"operations": "^"}, r"operations='\^'"),
        ("train", {"min_numbers": 1}, "min_numbers=1"),
        ("train", {"max_numbers": 7}, "max_numbers=7"),
        ("train", {"max_target": 0}, "max_target=0"),
    ],
)
def test_bad_options_name_the_key_and_the_remedy(split: str, options: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        load(split, **options)


def test_options_that_allow_no_problem_end_with_a_message() -> None:
    for split in ("train", "test"):
        with pytest.raises(UserError, match="raise max_target or max_number"):
            list(islice(load(split, max_target=1, operations="+", max_number=1), 3))


def test_a_file_of_puzzles(tmp_path: Path) -> None:
    file = tmp_path / "c_test.jsonl"
    rows = [{"nums": [3, 4, 25], "target": 63}, {"numbers": [3, 3, 8, 8], "target": 24}, {"nums": [1, 1], "target": 9}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_problems(Task(name="countdown", split="test", path=str(tmp_path / "c_{split}.jsonl")), check)
    assert [fault(p.answer, p.metadata["numbers"], p.metadata["target"]) for p in source.problems or ()] == [None, None]
    assert [problem.id for problem, _ in source.refused] == ["countdown/test/3"]
    assert source.problems is not None
    assert source.problems[0].question == "Using the numbers [3, 4, 25], create an equation that equals 63."
    assert source.problems[0].metadata["source"] == f"{file}:1"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"target": 3}, "a.jsonl:1: it needs numbers (or nums) and target, and has 'target'; mend or delete the row"),
        ({"nums": ["3"], "target": 3}, "a.jsonl:1: nums=['3']: give a list"),
        ({"nums": [-3], "target": 3}, "a.jsonl:1: nums=[-3]: give a list"),
        ({"nums": [3], "target": "3"}, "a.jsonl:1: target='3': give a whole number, without quotes"),
        ({"nums": [1] * 7, "target": 3}, "a.jsonl:1: 7 numbers; countdown takes up to 6"),
        ([1], "a.jsonl:1 is a list, not an object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: object, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError) as caught:
        load("test", str(tmp_path / "a.jsonl"))
    assert says in str(caught.value)


def test_solutions_are_found_where_there_are_some() -> None:
    for problem in islice(load("train", seed=5), 200):
        assert solve(problem.metadata["numbers"], problem.metadata["target"]) is not None
    assert solve([1, 1, 1], 100) is None


def test_the_prompts_say_what_they_should() -> None:
    problem = next(iter(load("train")))
    name, form = form_of(Task(name="countdown"), task)
    assert name == "boxed@1"
    assert form.text(problem).startswith(problem.question)
    _, tiny = form_of(Task(name="countdown", prompt="tinyzero"), task)
    assert tiny.text(Problem("", "", task.question([1, 2], 3), "")) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer."
        "\nUser: Using the numbers [1, 2], create an equation that equals 3. You can use basic arithmetic operations "
        "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the "
        "final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.\n"
        "Assistant: Let me solve this step by step.\n<think>"
    )
