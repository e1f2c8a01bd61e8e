"""Shared n-grams: a planted copy in other clothes is found, a template or a phrase is not; real data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.config import Task
from grpo_math.decontaminate import SIGN, Findings, Index, Target, decontaminate_command, find_hits, longest_run, words
from grpo_math.problems import load_problems
from grpo_math.types import Problem, UserError

TRIANGLE = (
    "Triangle $ABC$ has side lengths $AB = 13$, $BC = 14$ and $CA = 15$. A point $P$ is chosen uniformly at random "
    "inside it. Find the probability that $\\dfrac{1}{2} < \\left|PA\\right|^{2} \\leq 25$."
)


def problems(prefix: str, *questions: str) -> list[Problem]:
    return [Problem(f"{prefix}{i}", "mine", question, "1") for i, question in enumerate(questions)]


def find(train: list[str], benchmark: list[str], n: int = 13, **rules: float) -> Findings:
    index = Index([Target("bench", p) for p in problems("b", *benchmark)], n)
    return find_hits(problems("t", *train), index, **rules)  # type: ignore[arg-type]


def numbered(*fixed: str, count: int) -> list[str]:
    """Texts that have `fixed` in common and no other word."""
    return [" ".join([*(f"w{i}x{j}" for j in range(9)), *fixed]) for i in range(count)]


# ---- normal form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A $\\dfrac{1}{2}$-mile  WALK,\nthen", ["a", "\\frac", "1", "2", "mile", "walk", "then"]),
        ("\\tfrac12 \\frac 1 2", ["\\frac", "12", "\\frac", "1", "2"]),
        ("$x^{2}\\,+\\left(y\\right)$", ["x", "2", "y"]),
        ("1,000 1{,}000 1,\\!000", ["1", "000"] * 3),
        ("ｆｕｌｌ ﬁne x²", ["full", "fine", "x", "2"]),
        ("don't  re-use don’t", ["don", "t", "re", "use", "don", "t"]),
        ("求1加2的和", ["求", "1", "加", "2", "的", "和"]),
        ("snake_case", ["snake", "case"]),
        ("$ \\{ \\} ; !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_signs_are_kept_where_they_are_asked_for() -> None:
    assert words("347−85 = x", SIGN) == ["347", "-", "85", "=", "x"]
    assert words("347 - 85=x", SIGN) == words("347−85 = x", SIGN)


@given(st.text(max_size=80))
def test_white_space_and_case_do_not_matter(text: str) -> None:
    once = words(text)
    assert words(" ".join(once)) == once
    assert words(re.sub(r"\s", "\n  ", text)) == words(re.sub(r"\s", " ", text))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_the_longest_run_is_in_both_and_none_is_longer(a: list[str], b: list[str]) -> None:
    def runs(text: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}

    longest = tuple(longest_run(a, b))
    assert longest in runs(a, len(longest)) & runs(b, len(longest))
    assert not runs(a, len(longest) + 1) & runs(b, len(longest) + 1)


# ---- what is a hit


def test_a_planted_copy_in_other_clothes() -> None:
    planted = "Here is one from last year!  " + (
        TRIANGLE.upper()
        .replace("\\DFRAC{1}{2}", "\\tfrac {1} {2}")
        .replace("\\LEFT|", "| ")
        .replace("\\RIGHT|", " |")
        .replace("\\LEQ", "\\leq")
        .replace("$", " $ ")
        .replace(". ", ".\n\n")
    )
    found = find(["What is 2 plus 2?", planted], ["What is 3 plus 3?", TRIANGLE])
    (hit,) = found.hits
    assert (hit.problem, hit.against, hit.share) == ("t1", "b1", 1.0)
    assert hit.shared == len(words(TRIANGLE)) - 12
    assert hit.longest == " ".join(words(TRIANGLE))


def test_problems_of_one_template_are_not_copies() -> None:
    template = "What is the sum of the first {} positive integers that are divisible by {}?"
    assert find([template.format(20, 7)], [template.format(35, 9)]).hits == []
    long = "A train travels {} miles in {} hours. At the same speed, how many miles does it travel in {} hours?"
    assert find([long.format(270, 3, 5)], [long.format(300, 4, 6)]).hits == []


def test_the_share_is_of_the_benchmark_problem() -> None:
    half = " ".join(words(TRIANGLE)[:20])
    total = len(words(TRIANGLE)) - 12
    (hit,) = find([half], [TRIANGLE]).hits
    assert (hit.shared, hit.share, hit.longest) == (8, 8 / total, half)
    assert find([half], [TRIANGLE], min_share=hit.share).hits == [hit]
    assert find([half], [TRIANGLE], min_share=hit.share + 0.01).hits == []
    assert find([" ".join(words(TRIANGLE)[:12])], [TRIANGLE]).hits == []


def test_a_phrase_in_many_problems_is_no_evidence() -> None:
    phrase = words("where m and n are relatively prime positive integers find m plus n")
    assert len(phrase) == 13
    train, benchmark = numbered(*phrase, count=10), [" ".join(["q", *phrase, "r"])]
    assert find(train, benchmark).common == 1  # ten and the benchmark's own are eleven
    assert find(train, benchmark).hits == []
    assert find(train, benchmark).most_common == (11, " ".join(phrase))
    assert len(find(train[:9], benchmark).hits) == 9
    assert len(find(train, benchmark, max_common=11).hits) == 10
    assert find(benchmark, train).hits == []  # the other way round


def test_copies_do_not_make_a_leaked_problem_a_phrase() -> None:
    assert len(find([TRIANGLE] * 40, [TRIANGLE]).hits) == 40
    # nor do forty forms of it, each with another sentence before it
    forms = [f"{first} {TRIANGLE}" for first in numbered(count=40)]
    assert len(find(forms, [TRIANGLE]).hits) == 40
    assert len(find(forms, [TRIANGLE, TRIANGLE + " Explain."]).hits) == 40


@pytest.mark.parametrize(
    ("train", "benchmark", "hit"),
    [
        ("347 + 85 = ?", "347+85=?", True),
        ("347 - 85 = ?", "347+85=?", False),
        ("347+851=?", "347+85=?", False),
        ("Tell me: 347+85=?", "347+85=?", False),  # fewer words than 8 are found inside others by chance
        ("Solve: compute the sum of the digits of 12345", "Compute the sum of the digits of $12345$.", True),
        ("Solve: compute the sum of the digits of 12346", "Compute the sum of the digits of $12345$.", False),
        ("Evaluate x + y - z at x = 1, y = 2, z = 3", "Evaluate $x+y-z$ at $x=1$, $y=2$, $z=3$", True),
        ("Evaluate x + y + z at x = 1, y = 2, z = 3", "Evaluate $x+y-z$ at $x=1$, $y=2$, $z=3$", False),
        ("...", "???", False),
    ],
)
def test_short_problems_are_compared_whole_with_their_signs(train: str, benchmark: str, hit: bool) -> None:
    assert bool(find([train], [benchmark]).hits) is hit


# ---- the command


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    def write(name: str, *questions: str, **config: object) -> Task:
        rows = [json.dumps({"problem": question, "answer": "1"}) for question in questions]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        return Task(name="math500", split=name, path=str(tmp_path / f"{name}.jsonl"), **config)  # type: ignore[arg-type]

    return write


def test_from_the_tasks_to_the_file_and_out_of_training(task: Callable[..., Task], tmp_path: Path) -> None:
    train = task("train", "What is 1+1?", f"Remember this one: {TRIANGLE}", "And now something else.")
    bench, out = task("bench", "Something else", TRIANGLE), tmp_path / "new" / "hits.jsonl"
    report = decontaminate_command(train, {"bench": bench, "clean": task("clean", "How?")}, 13, 0.0, 10, out)
    total = len(words(TRIANGLE)) - 12
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {
            "problem": "math500/train/2",
            "benchmark": "bench",
            "against": "math500/bench/2",
            "shared": total,
            "share": 1.0,
            "longest": " ".join(words(TRIANGLE)),
        }
    ]
    rows = {line.split()[0]: line.split()[1:] for line in report.splitlines() if line.startswith(("bench ", "clean "))}
    assert rows == {"bench": ["2", "1", "1", "1"], "clean": ["1", "0", "0", "0"]}
    assert f"1 pair of 1 training problem and what it shares: {out}\n" in report
    assert report.endswith(f"task.exclude={out}")
    kept = train.model_copy(update={"exclude": [str(out)]})
    assert [p.id for p in load_problems(kept).problems or []] == ["math500/train/1", "math500/train/3"]
    again = decontaminate_command(kept, {"bench": bench}, 13, 0.0, 10, out)
    assert f"nothing is shared; {out} is empty" in again
    assert out.read_text() == ""
    assert len(load_problems(kept).problems or []) == 3


def test_what_the_command_refuses(task: Callable[..., Task], tmp_path: Path) -> None:
    train, out = task("train", TRIANGLE), tmp_path / "out.jsonl"
    arithmetic = Task(name="arithmetic")
    with pytest.raises(UserError, match="task arithmetic, split train, has no end; give --limit"):
        decontaminate_command(arithmetic, {"b": train}, 13, 0.0, 10, out)
    with pytest.raises(UserError, match="has no end; name a split that ends"):
        decontaminate_command(train, {"b": arithmetic}, 13, 0.0, 10, out)
    with pytest.raises(UserError, match="-n 1: single words"):
        decontaminate_command(train, {"b": train}, 1, 0.0, 10, out)
    with pytest.raises(UserError, match=r"--out .* cannot be written"):
        decontaminate_command(train, {"b": train}, 13, 0.0, 10, Path(str(train.path)) / "out.jsonl")


def test_arithmetics_own_splits_share_nothing(tmp_path: Path) -> None:
    tasks = Task(name="arithmetic", limit=5000), Task(name="arithmetic", split="test")
    assert "nothing is shared" in decontaminate_command(tasks[0], {"b": tasks[1]}, 13, 0.0, 10, tmp_path / "out.jsonl")


# ---- real data


def hits_on(train: Task, against: list[Task], out: Path) -> set[tuple[str, str]]:
    decontaminate_command(train, {str(i): task for i, task in enumerate(against)}, 13, 0.0, 10, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(row["problem"], row["against"]) for row in rows}


def test_gsm8k_shares_little_between_its_splits(shared: Path, tmp_path: Path) -> None:
    train, test = (
        Task(name="gsm8k", split=s, path=str(shared / "data" / f"gsm8k_{s}.jsonl")) for s in ("train", "test")
    )
    assert hits_on(train, [test], tmp_path / "out.jsonl") == {
        ("gsm8k/train/1315", "gsm8k/test/603"),  # the same train and miles, other numbers
        ("gsm8k/train/5163", "gsm8k/test/603"),
        ("gsm8k/train/21", "gsm8k/test/633"),  # the same stamps, another question
        ("gsm8k/train/407", "gsm8k/test/582"),
    }


def test_every_problem_of_the_benchmarks_is_found_in_itself(shared: Path, tmp_path: Path) -> None:
    for name in ("math500", "aime24", "amc", "olympiadbench", "minerva_math"):
        task = Task(name="math500", split="test", path=str(shared / "data" / f"{name}.jsonl"))
        ids = {p.id for p in load_problems(task).problems or []}
        assert {(id, id) for id in ids} <= hits_on(task, [task], tmp_path / "out.jsonl")
