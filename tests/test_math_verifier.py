"""The math verifier: what is the same answer, what is not, what is found in a completion, and what cannot hurt."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.types import Problem
from grpo_math.verifiers import format as format_verifier
from grpo_math.verifiers import math as verifier
from grpo_math.verifiers._math.exact import BUDGET
from grpo_math.verifiers._math.extract import final_answer

SHARED = Path(__file__).parents[1].parent / "shared"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the project's ../shared folder")

SAME = [
    # integers and decimals
    ("1200", "1,200"), ("1200", r"1{,}200"), ("1200", r"\$1,200.00"), ("1200", "1 200"), ("-7", "- 7"), ("0.5", ".5"),
    ("350", "350.0"), ("18", "18 dollars"), ("18", r"\$18 per day"), ("18", r"18\text{ eggs per day}"),
    ("18", r"\textbf{18}"), ("18", r"{18}"), ("5000000", "5 million"), ("2400, 1350, 864", "1,350, 864, 2,400"),
    ("0", "-0"),
    ("3", r"\boxed{3}"), ("9", "9."), ("12", r"AB = 12"), ("12", r"\text{Total} = 12"), ("12", r"x \approx 12"),
    ("4.5e33", r"4.5 \times 10^{33}"), ("0.00001", "1e-5"), ("15", r"15\%"), ("0.15", r"15\%"),
    ("28\\%", "28 percent"), ("-3", "−3"),
    # fractions
    ("1/3", r"\frac13"), ("10/9", r"\dfrac{10}{9}"), ("-1/2", r"\frac{-1}{2}"), ("-1/2", r"\frac{1}{-2}"),
    ("7/2", r"3\frac{1}{2}"), ("7/2", "3 1/2"), ("7/2", "3½"), ("1/3", r"0.\overline{3}"), ("4/7", "8/14"),
    ("1/2", "0.50"), ("3/2", r"\frac{6}{4} = \frac{3}{2}"), ("1/3", r"\frac13 \approx 0.33"),
    # roots, constants, functions
    (r"2\sqrt{5}", r"\sqrt{20}"), (r"1+\sqrt{2}", r"\sqrt{3+2\sqrt{2}}"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"2\sqrt[3]{2}", r"\sqrt[3]{16}"), ("-2", r"\sqrt[3]{-8}"),
    (r"8\pi", r"\pi \cdot 8"), ("8\\pi", "8π"), (r"\tan^2(y)+1", r"\sec^2 y"),
    (r"2\sin b\cos a", r"\sin(a+b)-\sin(a-b)"), (r"\frac{\pi}{6}", r"\sin^{-1}(1/2)"), ("3", r"\log_2 8"),
    (r"\frac{\ln 2}{\ln 3}", r"\log_3 2"), ("e^{2t}", r"\exp(2t)"), (r"\cos 60^\circ", "1/2"),
    ("1+i", r"\frac{2}{1-i}"), (r"-8-8\sqrt{3}i", r"-8-8i\sqrt{3}"), ("5", r"|3-4i|"),
    # algebra
    ("x^2-1", "(x-1)(x+1)"), (r"\frac{1}{2n+2}", r"\frac{1}{2(n+1)}"), ("2^{n+1}", r"2 \cdot 2^n"),
    ("2^{k-n}", r"2^{k} 2^{- n}"), ("x", r"\frac{x^2}{x}"), (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}"),
    (r"\lfloor (n+1)/2 \rfloor", r"\lceil \frac{n}{2} \rceil"),
    (r"\lfloor\log_{2} n\rfloor+1", r"1+\lfloor \log_2(n) \rfloor"), ("(x^2)^3", "x^6"),
    (r"x^2\frac{1}{2}", r"\frac{x^2}{2}"), ("f(x)=2x+1", "2x+1"), ("y=2x+1", "y - 2x = 1"),
    (r"x^2/4 + y^2/3 = 1", r"x^2/16 + y^2/12 = 1/4"), ("k=1", "1"), (r"x_1 + x_2", r"x_{2}+x_{1}"), (r"\alpha", "α"),
    # several answers
    ("1,-2", r"\{-2, 1\}"), ("3, 5, 7", "3, 5, and 7"), (r"1\pm\sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"),
    ("3,5", r"x=3 \text{ or } x=5"), (r"\pm 2021", "{-2021, 2021}"), ("(1,2),(3,4)", "(3,4), (1,2)"), (r"\{5\}", "5"),
    # tuples, intervals, relations, sets
    ("(2,4)", r"\left( 2 ,\, 4 \right)"), ("(1,9/2)", "(1,4.5)"), ("(3,4)", "(x,y)=(3,4)"), ("(2,\\infty)", "x>2"),
    ("[-2,7]", r"-2 \le x \le 7"), ("(2,7]", r"7 \geq x > 2"), ("(-\\infty,0]", r"x \leqslant 0"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"), (r"\{-1\}\cup[0,7)", r"[0,7) \cup \{-1\}"),
    (r"\emptyset", r"\{\}"), (r"x \neq 3", "x != 3"), ("x+y<1", "2x+2y<2"),
    # words, choices, bases, matrices, ratios, times, units
    (r"\text{(C)}", "C"), ("(C)", r"\textbf{C}"), (r"\text{Evelyn}", "evelyn"), (r"\text{east}", "East."),
    ("52_8", r"52_{\text{eight}}"),
    (r"\begin{pmatrix}1/2\\3\end{pmatrix}", r"\begin{bmatrix} 0.5 \\ 3 \end{bmatrix}"), ("3:2", "6:4"),
    ("12:00", "12:00"), (r"15\mbox{ cm}^2", r"15 \text{ square centimeters}"), ("90^\\circ", "90 degrees"),
    ("5 \\text{ hours}", "5 hr"), ("(2,\\infty)", "2x > 4"), ("[1,\\infty)", "3 - 2x \\le 1"), ("x<1", "-x > -1"),
    ("m", "m"), ("I(0)e^{-t}", r"I\left(0\right)e^{-t}"), ("18", r"\text{18 dollars}"), ("18", r"\mathrm{18\ cm}"),
    ("9", r"\color{red}{9}"), ("9", r"\underline{9}"), ("3:2", "3.0:2"), ("5000000000000000", "5 quadrillion"),
    ("72 \\text{ km/h}", "20 m/s"), ("x = 4, y = 2", "(4, 2)"), ("mv' + bv = f", r"\frac{dv}{dt} = \frac{f - bv}{m}"),
    ("x^2 + C", "x^2 + c"), (r"2\pi k", r"2\pi n, n \in \mathbb{Z}"), (r"\mathbb{R} \setminus \{2\}", r"x \ne 2"),
    ("(0,3) \\cup (3,5)", r"(0,5) \setminus \{3\}"), ("(3,2),(3,-2),(-3,2),(-3,-2)", r"(\pm 3, \pm 2)"),
]  # fmt: skip

DIFFERENT = [
    ("5", "-5"), ("12345678901234567", "12345678901234568"), ("12", "1 2"), ("12", r"1\ 2"), ("2^{10}", "2^{1}0"),
    (r"\frac{1}{2n+2}", r"\frac1{2n}+2"), (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"8.224 \times 10^{-19}", r"8.224 \times 10^{-18}"), ("1/3", "0.33"), ("1/3", "0.3333333333333333"),
    (r"\pi", "3.14159265358979323846"), ("0.28", "28"), ("28", "28/100"), ("x", "X"), ("x", "y"), ("x+1", "x"),
    ("5", "x"), ("0", "x"), ("5", "5x"), ("2x", "x^2"), (r"\sqrt{x^2}", "x"), (r"\sqrt{2}", r"\sqrt{2} + 10^{-90}"),
    (r"e^{\pi\sqrt{163}}", "262537412640768744"), ("x", r"x+10^{-300}"), ("1", r"(1-10^{-90})"), ("5", "5, 6"),
    ("5", "5 or 6"), ("5", r"\{5,6\}"), ("5", r"\pm 5"), ("5", "not 5"), ("5", r"\text{not } 5"), ("5", "5 is wrong"),
    ("5", "4 < x < 6"), ("5", "[5,5]"), ("5", "x \\ne 5"), ("5", "5=5"), ("6", "5=6"), ("x=5", "x=x"),
    ("y=2x", "0=0"), ("5", "5 million"), ("1,2", "1,2,3"), ("1,2", "1"), ("1,1", "1,2"), ("(2,4)", "(4,2)"),
    ("(2,4)", "[2,4]"), ("(2,4)", "[2,4)"), ("(2,4)", "2,4"), ("(2,\\infty)", r"x \ge 2"), ("(2,\\infty)", "x<2"),
    ("x > 5", "x < 5"), ("x+y<1", "x+y>1"), ("x+y<1", "x+y \\le 1"), ("7 = 11a+c", "11a+c"), ("y=2x+3", "y=2x-3"),
    ("x=5", "y=5"), ("2x+z=1", "1"), ("52_8", "52_9"), ("52_8", "52"), ("52_8", "528"), ("12:00", "1:00"),
    ("3:2", "2:3"), (r"\text{(C)}", "(D)"), ("C", "c"), (r"\text{east}", r"\text{not east}"),
    (r"\text{even}", "neve"), ("5 \\text{ cm}", "5 \\text{ m}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"), ("5", ""), (r"\emptyset", ",,"),
    (r"\infty", r"-\infty"), ("5r^5", "(5r)^5"), (r"\sin x", r"\sin(-x)"), ("1", "1!!"), ("64", "2^3^2"),
    ("0", r"I(0)e^{-t}"), ("3", r"3\phantom{4}"), ("12", "{1}{2}"), ("6", "2 3"), ("1000.99", "1000,99"),
    ("10^{-400}", "0"), (r"\lfloor \frac{n}{3} \rfloor", r"\lfloor \frac{n+1}{3} \rfloor"),
    (r"\lfloor \frac{2n-1}{5} \rfloor", r"\lfloor \frac{2n}{5} \rfloor"), (r"\binom{2n}{n}", r"\binom{2n}{n-1}"),
    (r"\lceil n/2 \rceil + 1", r"\lfloor n/2 \rfloor + 1"), ("0", r"I\left(0\right)e^{-t}"),
    ("5", "5 untrue"), ("5", "5 tenfold"), ("5", r"5\text{ nil}"),
    ("|ab|", "ab"), ("|x-100|", "100-x"), ("x", r"\lfloor x \rfloor"), ("3:2", "(x-x):(x-x)"), ("C", "c"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "candidate"), SAME)
def test_same(gold, candidate):
    assert verifier.equivalent(gold, candidate) is True


@pytest.mark.parametrize(("gold", "candidate"), SAME)
def test_same_the_other_way_round(gold, candidate):
    assert verifier.equivalent(candidate, gold) is True


@pytest.mark.parametrize(("gold", "candidate"), DIFFERENT)
def test_different(gold, candidate):
    assert not verifier.equivalent(gold, candidate)


def problem(answer):
    return Problem("p", "t", "Put your answer in \\boxed{7}.", answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so $\\boxed{5}$.", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed{1} is wrong. So \\boxed{2}.", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{\\boxed{3}}", "\\boxed{3}"),
        ("x is \\boxed{1} or \\boxed{2}", "1, 2"),
        ("\\(\\boxed{1}\\) and \\(\\boxed{2}\\)", "1, 2"),
        ("\\[\\boxed{4}\\]\n\n$\\boxed{4}$", "4"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{2}<|im_end|>\\boxed{3}", "2"),
        ("{ \\boxed{2}", "2"),
        ("\\boxed{4}. Actually the final answer is 5.", "5"),
        ("\\boxed{4}, so the answer is 4.", "4"),
        ("So the answer is 18.", "18"),
        ("**Answer:** $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("The answer is $x = 3$ because 3 is odd.", "x = 3"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("The answer is 7. This is not the answer: 8", "7"),
        ("<answer> 12 </answer>", "12"),
        ("9 * 2 = 18\n#### 18", "18"),
        ("<think>well</think>42", "42"),
        ("$y_1 = \\boxed{1}$ and $y_2 = \\boxed{2}$", "1, 2"),
        ("The probability that it does not rain is $\\boxed{5}$.", "5"),
        ("The number of integers that are not prime is $\\boxed{5}$.", "5"),
        ("Hence n cannot exceed $\\boxed{5}$.", "5"),
        ("Since $x \\neq 0$ we get $\\boxed{5}$.", "5"),
        ("The answer is not 4 but $\\boxed{5}$.", "5"),
        ("$\\boxed{5}$ is not too large, so it works.", "5"),
        ("$\\boxed{5}$, but it was never in doubt.", "5"),
        ("$\\boxed{12}$.\n\nChecking our answer:\n$3(12) + 4 = 40$.", "12"),
        ("$\\boxed{4}$\n\nTo check the answer: $12 \\div 3 = 4$, which matches.", "4"),
        ("The answer is 5, which is prime.", "5"),
        ("The answer is 18, not 20.", "18"),
        ("If x = 2, then the answer is 5.", "5"),
        ("#### Step 2\nWe add.\nThe answer is 5.", "5"),
        ("The answer is 5.\n\n#### Explanation", "5"),
        ("#### Answer: 5", "5"),
        ("#### 18\n\nQuestion: and so on", "18"),
        ("\\boxed{2}<end_of_turn>\\boxed{3}", "2"),
    ],
)
def test_last_box(completion, answer):
    assert final_answer(completion)[0] == answer


NOWHERE = 'no \\boxed{}, no <answer>...</answer>, no ####, no "answer is", no bare answer'


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("She has 5 apples.", NOWHERE),
        ("", NOWHERE),
        ("\\boxed{5", "the last box is not closed"),
        ("\\boxed{4} no, \\boxed{5", "the last box is not closed"),
        ("\\boxed{\\text{5}", "the last box is not closed"),
        ("\\boxed{ }", "the box is empty"),
        ("<think> It is \\boxed{5}", "the thinking never ends"),
        ("<think>\\boxed{5}</think> Well.", NOWHERE),
        ("The answer is not $\\boxed{5}$.", "the last box is what the answer is not"),
        ("It cannot be equal to $\\boxed{5}$.", "the last box is what the answer is not"),
        ("$\\boxed{5}$ is wrong.", "the last box is what the answer is not"),
        ("$\\boxed{5}$. Wait, that is not right.", "the last box is what the answer is not"),
        ("This is not the final answer: 5", NOWHERE),
        ("\\boxedfoo{5}", "no \\boxed{}"),
    ],
)
def test_no_answer(completion, why):
    verdict = verifier.verify(problem("5"), completion)
    assert (verdict.reward, verdict.reason, verdict.detail) == (0.0, "no_answer", why)


def test_a_verdict_says_what_it_read_and_why_it_cannot():
    assert verifier.verify(problem("5"), "\\boxed{ 5.0 }").answer == "5.0"
    verdict = verifier.verify(problem("5"), "\\boxed{5 \\foo}")
    assert (verdict.reward, verdict.reason) == (0.0, "wrong")
    assert "cannot read \\foo" in verdict.detail
    assert "undecided" in verifier.verify(problem("5"), "\\boxed{9^{9^{9}}}").detail


@pytest.mark.parametrize("gold", ["", " ", "\\foo{", "(1,2", "9^{9^{9^{9}}}"])
def test_an_unusable_gold_is_complained_about_and_never_a_zero_reward(gold):
    assert verifier.check(problem(gold)) is not None
    verdict = verifier.verify(problem(gold), "\\boxed{5}")
    assert (verdict.reward, verdict.reason) == (None, "error")
    assert verifier.verify(problem(""), "\\boxed{}").reward == 0.0
    assert verifier.equivalent("", "") is None


@pytest.mark.parametrize("module", [verifier, format_verifier])
def test_examples(module):
    for example, completion, reward in module.EXAMPLES:
        assert module.verify(example, completion).reward == reward, completion


HOSTILE = [
    "9^{9^{9^{9}}}", "10^{10^{10}}", "((10^{9}))!", r"\binom{10^9}{10^8}", "1+" * 700 + "1", "(" * 900 + ")" * 900,
    "-" * 1900 + "1", r"\frac" * 300, r"\sqrt" * 300 + "1", r"\sin" * 300 + "1", "x^" * 600 + "1",
    "2^{" * 30 + "1" + "}" * 30, "1!" * 600, "!" * 900, r"\exp(\exp(\exp(\exp(10))))", "9" * 1900, "1," * 900,
    r"\text{" * 200, r"\boxed{" * 300, "1e999999", "|" * 900, "1.5." * 300,
    "+".join(rf"\frac{{1}}{{2^{{{9999 - i}}}+1}}" for i in range(60)),
    "+".join(f"x^{{0.{i}}}" for i in range(10, 150)), "+".join(f"x/{i}!" for i in range(1000, 1160)),
    "__import__('os').system('true')", "\\" * 1900, "\x00" * 50, "²" * 1000, "a" * 100_000, "[[1 ∪", "∪", "±", "\\in",
    "=", "1=1=1", ",", "or", "\\begin{pmatrix}" * 50, "&\\\\&",
]  # fmt: skip


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: answer[:20])
@pytest.mark.parametrize("gold", ["1", "x", r"\sqrt{2}", r"\emptyset"])
def test_hostile_answers_are_wrong_within_their_budget(gold, answer):
    assert not verifier.equivalent(gold, answer)
    verifier.equivalent(answer, answer)
    assert verifier.verify(problem(gold), "\\boxed{" + answer + "}").reward in (0.0, None)
    assert BUDGET.spent <= BUDGET.limit + 10_000


LATEX = st.lists(st.sampled_from([
    "\\frac", "{", "}", "(", ")", "[", "]", "1", "23", "x", "n", "^", "_", "!", "+", "-", "*", "/", ",", " ", "\\sqrt",
    "e", "\\pi", "\\sin", "\\log", "i", "\\text{", " or ", "=", "<", "\\le", "\\in", "\\cup", "\\pm", "\\infty", "%",
    "^\\circ", "$", "\\{", "\\}", "|", "\\lfloor", "\\rfloor", "\\binom", ".", ":", "'", "cm", "½", "²", "√", "∪", "≈",
    "&", "\\\\", "\\boxed{",
]), max_size=20).map("".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.one_of(LATEX, st.text(max_size=30)))
def test_any_text_is_read_or_refused_and_equals_itself(text):
    assert verifier.equivalent(text, text) in (True, None)
    assert verifier.verify(problem("17"), f"\\boxed{{{text}}}").reward in (0.0, 1.0, None)


@settings(max_examples=200, deadline=None)
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_exact(a, b):
    def latex(q):
        return f"\\frac{{{q.numerator}}}{{{q.denominator}}}"

    assert verifier.equivalent(latex(a), f"{a}") is True
    assert verifier.equivalent(latex(a), latex(b)) is (a == b)


@settings(max_examples=200, deadline=None)
@given(st.integers(), st.integers(min_value=-3, max_value=3))
def test_integers_are_exact_at_any_size(n, delta):
    assert verifier.equivalent(str(n), f"{n + delta:,}") is (delta == 0)


def test_plain_numbers_need_neither_torch_nor_sympy_nor_mpmath():
    """A worker starts in milliseconds."""
    code = (
        "import sys; from grpo_math.verifiers.math import EXAMPLES, equivalent\n"
        "assert equivalent('1/2', '0.5') and not equivalent('5', '-5')\n"
        "assert not {'torch', 'sympy', 'mpmath', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def rows(path):
    with (SHARED / path).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@needs_shared
def test_development_cases():
    """Cases that others made; this holds what was reached."""
    accepted, rejected = [], []
    for case in rows("cases/math_dev.jsonl"):
        if "completion" in case:
            correct = verifier.verify(problem(case["answer"]), case["completion"]).reward == 1.0
        else:
            correct = bool(verifier.equivalent(case["answer"], case["candidate"]))
        if correct != case["expected"]:
            (accepted if correct else rejected).append(case)
    assert (accepted, rejected) == ([], [])


def golds(name):
    """Every gold answer of a data set; of GSM8K's worked solutions what stands behind ####."""
    answers = [row["answer"] for row in rows(f"data/{name}.jsonl")]
    return [gold for answer in answers for gold in (answer if isinstance(answer, list) else [answer])]


# What no reading could save: a letter is glued to an interval.
UNUSABLE = {"olympiadbench": ["$t(0,4]$"]}


@needs_shared
@pytest.mark.parametrize(
    "name", ["gsm8k_train", "gsm8k_test", "math500", "aime24", "amc", "minerva_math", "olympiadbench"]
)
def test_every_gold_is_usable_and_equals_itself_in_a_box(name):
    answers = golds(name)
    assert [gold for gold in answers if verifier.check(problem(gold)) is not None] == UNUSABLE.get(name, [])
    for gold in set(answers) - set(UNUSABLE.get(name, [])):
        final = gold.rpartition("####")[2].strip()
        assert verifier.verify(problem(gold), f"So it is $\\boxed{{{final.strip('$')}}}$.").reward == 1.0, gold
        assert verifier.equivalent(gold, gold) is True


@needs_shared
def test_equivalence_is_symmetric_on_all_golds():
    """On each gold of the sets with formulas beside 12 others: neighbours and random ones."""
    names = ["math500", "aime24", "amc", "minerva_math", "olympiadbench"]
    answers = sorted(
        {gold for name in names for gold in golds(name)} - {"$t(0,4]$"}, key=lambda gold: (len(gold), gold)
    )
    draw = random.Random(0)
    for at, gold in enumerate(answers):
        for other in [*answers[at + 1 : at + 7], *draw.sample(answers, 6)]:
            assert verifier.equivalent(gold, other) is verifier.equivalent(other, gold), (gold, other)
