"""Two evaluations side by side: the figures against hand values, closed forms and symmetries; the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math.evaluation.compare import compare_command, read_run
from grpo_math.evaluation.paired import Answers, compare_at, settings_that_differ, sign_test
from grpo_math.passk import bootstrap_interval, pass_at_k
from grpo_math.types import UserError

Counts = tuple[int, int]  # n judged, c right
Make = Callable[..., Path]


def answers(n: int, c: int, text: int = 0) -> Answers:
    return Answers("?", "1", set(range(n)), n, c, text=text)


def pairs_of(counts: Sequence[tuple[Counts, Counts]]) -> list[tuple[Answers, Answers]]:
    return [(answers(*a), answers(*b, text=1)) for a, b in counts]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes an evaluation's folder. rewards: task -> problem -> a letter per sample: r right, w wrong, ? undecided."""

    def make(
        name: str, rewards: dict[str, dict[str, str]], manifest: dict[str, Any] | None = None, **changes: Any
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        lines = []
        for task, problems in rewards.items():
            for problem, letters in problems.items():
                for sample, letter in enumerate(letters):
                    judged = {"r": ("7", 1.0, "correct"), "w": ("8", 0.0, "wrong"), "?": (None, None, "timeout")}
                    answer, reward, reason = judged[letter]
                    lines.append(
                        {
                            **{
                                "task": task,
                                "problem": problem,
                                "sample": sample,
                                "prompt": f"What is {problem}?\nSay it.",
                            },
                            **{
                                "completion": "...",
                                "tokens": 3,
                                "finish_reason": "stop",
                                "gold": "7",
                                "answer": answer,
                            },
                            **{"reward": reward, "reason": reason, "detail": "", **changes},
                        }
                    )
        (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        content = {"manifest": manifest or {"model": {"name": f"models/{name}"}, "tasks": {}}, "tasks": {}}
        (out / "results.json").write_text(json.dumps(content))
        return out

    return make


# ---- the figures


def test_figures_of_a_case_worked_out_by_hand() -> None:
    # pass@2: 1 -> 1, 0.5 -> 0, 1 -> 1; the last one has too few judged samples
    found = compare_at(pairs_of([((2, 1), (2, 2)), ((4, 1), (2, 0)), ((3, 3), (2, 2)), ((1, 1), (2, 0))]), 2)
    assert (found.problems, found.left_out) == (3, 1)
    assert (found.won, found.lost, found.tied, found.p) == (0, 1, 2, 1.0)
    assert found.a == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-6)  # pass@2 of 1 in 4: 1 - C(3,2)/C(4,2)
    assert found.b == pytest.approx(2 / 3, abs=1e-6)
    assert found.difference == pytest.approx(-0.5 / 3, abs=1e-6)
    # and at k=1: 0.5 -> 1, 0.25 -> 0, 1 -> 1, 1 -> 0
    first = compare_at(pairs_of([((2, 1), (2, 2)), ((4, 1), (2, 0)), ((3, 3), (2, 2)), ((1, 1), (2, 0))]), 1)
    assert (first.won, first.lost, first.tied, first.left_out) == (1, 2, 1, 0)
    assert first.difference == pytest.approx((0.5 - 0.25 + 0 - 1) / 4)


def test_no_problem_with_k_judged_samples() -> None:
    found = compare_at(pairs_of([((1, 1), (4, 2))]), 4)
    assert (found.problems, found.left_out, found.difference, found.interval, found.p) == (0, 1, None, None, None)


def test_the_interval_agrees_with_the_normal_one_of_the_pairs() -> None:
    rng = np.random.default_rng(5)
    right = rng.binomial(8, rng.random((1000, 1)), size=(1000, 2))
    found = compare_at(pairs_of([((8, int(a)), (8, int(b))) for a, b in right]), 1)
    differences = (right[:, 1] - right[:, 0]) / 8
    half = 1.96 * differences.std(ddof=1) / math.sqrt(1000)
    assert found.difference == pytest.approx(differences.mean(), abs=1e-6)
    assert found.interval == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.12 * half)


def test_pairing_makes_it_narrower_where_problems_are_hard_for_both() -> None:
    rng = np.random.default_rng(6)
    right = rng.binomial(16, rng.choice([0.05, 0.95], size=(300, 1)), size=(300, 2))
    found = compare_at(pairs_of([((16, int(a)), (16, int(b))) for a, b in right]), 1)
    assert found.interval is not None
    paired = found.interval[1] - found.interval[0]
    alone = [bootstrap_interval((right[:, run] / 16).tolist()) for run in (0, 1)]
    unpaired = math.hypot(*(high - low for low, high in alone))  # widths of independent estimates add in squares
    assert paired < unpaired / 3


def test_the_interval_covers_the_true_difference() -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(100):
        chance = rng.beta(1, 1, size=100)
        a, b = rng.binomial(4, chance), rng.binomial(4, chance * 0.8)  # on average 0.5 and 0.4
        found = compare_at(pairs_of([((4, int(x)), (4, int(y))) for x, y in zip(a, b, strict=True)]), 1)
        assert found.interval is not None
        covered += found.interval[0] <= -0.1 <= found.interval[1]
    assert 89 <= covered <= 100  # Binomial(100, 0.95) is below 89 once in 230 times; the seed is fixed


def test_the_interval_covers_the_true_difference_where_nearly_all_problems_are_ties() -> None:
    rng, covered = np.random.default_rng(8), 0
    for _ in range(100):
        better = rng.random(30) < 0.04  # the true difference; a percentile bootstrap gives [0, 0] for 29 % of these
        found = compare_at(pairs_of([((1, 0), (1, int(b))) for b in better]), 1)
        assert found.interval is not None
        covered += found.interval[0] <= 0.04 <= found.interval[1]
    assert covered >= 95


def test_the_same_samples_differ_by_exactly_nothing() -> None:
    found = compare_at([(answers(4, c % 5), answers(4, c % 5)) for c in range(23)], 3)
    assert (found.difference, found.interval) == (0.0, (0.0, 0.0))
    assert (found.won, found.lost, found.tied, found.p) == (0, 0, 23, 1.0)


def test_equal_shares_of_other_numbers_of_samples_are_ties() -> None:
    pairs = pairs_of([((49, c), (98, 2 * c)) for c in range(50)] + [((6, 2), (9, 3)), ((10, 7), (30, 21))])
    found = compare_at(pairs, 1)
    assert (found.tied, found.difference) == (52, 0.0)
    assert found.interval is not None
    assert -0.1 < found.interval[0] == -found.interval[1] < 0  # other samples: other problems may well not tie


count = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(count, count), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 3))
def test_what_always_holds(counts: list[tuple[Counts, Counts]], k: int, seed: int) -> None:
    found = compare_at(pairs_of(counts), k, seed)
    swapped = compare_at(pairs_of([(b, a) for a, b in counts]), k, seed)
    assert found == compare_at(pairs_of(counts), k, seed)
    assert found.problems + found.left_out == len(counts)
    assert found.won + found.lost + found.tied == found.problems
    assert (swapped.won, swapped.lost, swapped.p) == (found.lost, found.won, found.p)
    if found.difference is None or found.interval is None or found.a is None or found.b is None or not found.problems:
        assert all(min(a[0], b[0]) < k for a, b in counts)
        return
    assert swapped.difference == -found.difference
    assert swapped.interval == (-found.interval[1], -found.interval[0])
    assert found.difference == pytest.approx(found.b - found.a, abs=3e-6)
    each = [pass_at_k(*b, k) - pass_at_k(*a, k) for a, b in counts if min(a[0], b[0]) >= k]
    assert -1 <= found.interval[0] <= found.difference <= found.interval[1] <= 1
    assert found.difference == pytest.approx(sum(each) / len(each), abs=1e-6)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (8, 2, 0.109375), (3, 3, 1.0)],  # 2 (1 + 10 + 45) / 2^10
)
def test_the_sign_test_is_exact(won: int, lost: int, p: float) -> None:
    assert sign_test(won, lost) == sign_test(lost, won) == pytest.approx(p, rel=1e-6)
    trials = won + lost
    tail = sum(math.comb(trials, i) for i in range(trials + 1) if abs(2 * i - trials) >= abs(won - lost))
    assert sign_test(won, lost) == pytest.approx(tail / 2**trials)


def test_the_sign_test_of_thousands_of_problems() -> None:
    assert sign_test(5_000, 5_200) == pytest.approx(math.erfc(199 / math.sqrt(10_200) / math.sqrt(2)), rel=1e-3)
    assert 0 <= sign_test(9_000, 0) < 1e-300


# ---- settings


def test_settings_that_are_not_the_models() -> None:
    def manifest(model: str, temperature: float, seed: int, **verifier: Any) -> dict[str, Any]:
        task = {"problems": 3, "sampling": {"n": 4, "seed": seed, "temperature": temperature}, "verifier": verifier}
        return {"model": {"name": model, "engine": "hf"}, "k": [1], "tasks": {"gsm8k": task, "other": {"x": model}}}

    a = manifest("a", 1.0, 0, name="math", options={})
    b = manifest("b", 0.6, 1, name="math", options={"strict": True})
    assert settings_that_differ(a, b, ["gsm8k"]) == {
        "gsm8k.sampling.temperature": [1.0, 0.6],
        "gsm8k.verifier.options.strict": [None, True],
    }
    assert settings_that_differ(a, manifest("b", 1.0, 9, name="math"), ["gsm8k"]) == {}
    b["model"]["engine"] = "vllm"
    assert settings_that_differ(a, b, [])["model.engine"] == ["hf", "vllm"]


# ---- from the folders to the report


def test_two_folders(folder: Make, tmp_path: Path) -> None:
    a = folder("a", {"gsm8k": {"p1": "rwww", "p2": "rrrr", "p3": "ww??", "p4": "wwww"}, "amc": {"x": "r"}})
    b = folder("b", {"gsm8k": {"p2": "rrrr", "p1": "rrww", "p3": "wwww", "p5": "rrrr"}, "aime": {"x": "r"}})
    text = compare_command([a, b], None, tmp_path / "new" / "out", 2, 0)
    report = json.loads((tmp_path / "new" / "out" / "compare.json").read_text())
    assert [run["model"] for run in report["runs"]] == ["models/a", "models/b"]
    task = report["comparisons"][0]["tasks"]["gsm8k"]
    assert {key: task[key] for key in ("pairs", "only_a", "only_b", "other_gold", "other_prompt")} == {
        **{"pairs": 3, "only_a": 1, "only_b": 1, "other_gold": 0, "other_prompt": 0}
    }
    one, four = task["pass"]
    assert (one["k"], one["problems"], one["a"], one["b"]) == (1, 3, pytest.approx(1.25 / 3, abs=1e-6), 0.5)
    assert (four["k"], four["problems"], four["left_out"], four["difference"]) == (4, 2, 1, 0.0)  # p3: 2 undecided
    assert (one["won"], one["lost"], one["tied"]) == (1, 0, 2)
    assert task["won"] == [
        {
            "problem": "p1",
            "prompt": "What is p1?",  # without the words that all prompts end in
            "gold": "7",
            "a": {"right": 1, "judged": 4, "answers": [["8", 3], ["7", 1]]},
            "b": {"right": 2, "judged": 4, "answers": [["7", 2], ["8", 2]]},
        }
    ]
    for said in (
        "only A has amc",
        "only B has aime",
        "gsm8k: problems left out, only in A: 1, only in B: 1",
        "gsm8k pass@4: problems left out, with fewer judged samples: 1",
        "won by B: gsm8k p1, gold 7",
        "  A: 1 of 4 right; 8 x3, 7 x1",
    ):
        assert said in text.splitlines()
    row = next(line for line in text.splitlines() if "pass@1" in line)
    low, high = one["interval"]
    assert -0.9 < low < 0 < 0.083 < high < 0.9  # three problems say little
    figures = [
        "gsm8k",
        "pass@1",
        "3",
        "0.417",
        "0.500",
        "+0.083",
        f"[{low:+.3f},",
        f"{high:+.3f}]",
        "1",
        "0",
        "2",
        "1.000",
    ]
    assert row.split() == figures
    assert compare_command([a, b], None, None, 2, 0) == text


def test_a_run_against_itself(folder: Make) -> None:
    a = folder("a", {"gsm8k": {"p1": "rw", "p2": "rr"}})
    text = compare_command([a, a], [1, 2], None, 5, 0)
    assert text.count("+0.000  [+0.000, +0.000]    0     0     2        1.000") == 2
    assert "won by" not in text
    assert "differ" not in text


def test_each_of_three_against_the_first(folder: Make) -> None:
    runs = [folder(name, {"t": {f"p{i}": letters[i] for i in range(4)}}) for name, letters in
            (("a", "rwww"), ("b", "rrww"), ("c", "wwww"))]  # fmt: skip
    text = compare_command(runs, None, None, 0, 0)
    assert [line.split()[5] for line in text.splitlines() if line.startswith("t ")] == ["+0.250", "-0.250"]
    assert "B - A" in text
    assert "C - A" in text


def test_another_gold_answer_is_another_problem_and_another_prompt_is_said(folder: Make) -> None:
    a = folder("a", {"t": {"p1": "rw", "p2": "ww"}})
    b = folder("b", {"t": {"p1": "rr", "p2": "ww"}}, prompt="In other words")
    text = compare_command([a, b], None, None, 0, 0)
    assert "t: 2 of 2 problems were put in other words" in text
    c = folder("c", {"t": {"p1": "rr", "p2": "ww"}}, gold="9")
    text = compare_command([a, c], None, None, 1, 0)
    assert "t: problems left out, with another gold answer: 2" in text
    assert next(line for line in text.splitlines() if "pass@1" in line).split()[2:] == ["0", *"--------"]


def test_settings_are_shown_with_both_values(folder: Make) -> None:
    def manifest(temperature: float) -> dict[str, Any]:
        return {"model": {}, "tasks": {"t": {"sampling": {"temperature": temperature}}}}

    runs = [folder(name, {"t": {"p": "r"}}, manifest(t)) for name, t in (("a", 1.0), ("b", 0.6))]
    text = compare_command(runs, None, None, 0, 0)
    assert "not the model's alone:\n  t.sampling.temperature: A 1.0, B 0.6" in text


def test_examples_are_drawn_by_the_seed(folder: Make) -> None:
    a = folder("a", {"t": {f"p{i}": "w" for i in range(50)}})
    b = folder("b", {"t": {f"p{i}": "r" for i in range(50)}})
    drawn = [compare_command([a, b], None, None, 3, seed).split("won by B: ")[1:] for seed in (0, 0, 1)]
    assert len(drawn[0]) == 3
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_compared(folder: Make, tmp_path: Path) -> None:
    a, b = folder("a", {"t": {"p": "rw"}}), folder("b", {"u": {"p": "rw"}})
    with pytest.raises(UserError, match="two or more folders"):
        compare_command([a], None, None, 0, 0)
    with pytest.raises(UserError, match=r"has the tasks t, and .* has u: there is none in both"):
        compare_command([a, b], None, None, 0, 0)
    for k in (0, 4):
        with pytest.raises(
            UserError, match=rf"--k {k}: of task t both runs have 2 samples a problem; .* within 1\.\.2"
        ):
            compare_command([a, a], [1, k], None, 0, 0)
    with pytest.raises(UserError, match=r"results\.json does not exist; give the --out folder"):
        read_run(tmp_path / "nothing")
    (b / "results.json").unlink()
    with pytest.raises(UserError, match="the evaluation has not ended"):
        read_run(b)
    with pytest.raises(UserError, match=r"--out .* cannot be written"):
        compare_command([a, a], None, a / "samples.jsonl", 0, 0)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("results.json", "{", r"results\.json cannot be read"),
        ("results.json", '{"pass@1": 0.5}', r"has no manifest.* grpo-math evaluate --samples"),
        ("samples.jsonl", "", "samples.jsonl is empty"),
        ("samples.jsonl", '{"task": "t"', r"samples\.jsonl:1: broken JSON"),
        (
            "samples.jsonl",
            '{"problem": "p"}',
            r"samples\.jsonl:1: no field 'task', where a string belongs; evaluate again",
        ),
        (
            "samples.jsonl",
            '\n{"task": "t", "problem": "p", "sample": 0, "reason": "correct", "reward": "1"}',
            r'samples\.jsonl:2: reward="1", where a number or null belongs',
        ),
        (
            "samples.jsonl",
            '{"task": "t", "problem": "p", "sample": 3, "reason": "correct", "reward": 1}\n' * 2,
            r"samples\.jsonl:2: sample 3 of problem p is there twice",
        ),
    ],
)
def test_files_that_are_wrong(folder: Make, file: str, content: str, says: str) -> None:
    a = folder("a", {"t": {"p": "rw"}})
    (a / file).write_text(content)
    with pytest.raises(UserError, match=says):
        read_run(a)
