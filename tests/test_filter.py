"""`grpo-math filter`: each rule and pairing by hand, what must hold of any input, and the files in TRL's own hands."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from grpo_math.cli_data import filter_samples
from grpo_math.filtering import rules
from grpo_math.filtering.candidate import NEAR, Candidate, by_problem, normalised, shuffled
from grpo_math.filtering.choose import CHOICES, at_random, diverse, longest, shortest
from grpo_math.filtering.command import filter_command
from grpo_math.filtering.distance import edit_distance, edit_share, jaccard, phrases, words
from grpo_math.filtering.pairs import PAIRINGS, Entry, Terms, accept, pair_up
from grpo_math.filtering.read import read_candidates
from grpo_math.filtering.settings import Settings, pass_rate_of
from grpo_math.filtering.write import spread
from grpo_math.types import UserError

_LINE = itertools.count(1)


def one(
    completion: str = "text",
    reward: float | None = 1.0,
    answer: str | None = None,
    problem: str = "p",
    reason: str | None = None,
    **rest: Any,
) -> Candidate:
    verdict = "unknown" if reward is None else "correct" if reward >= 1 else "wrong"
    values = {"file": "f.jsonl", "line": next(_LINE), "task": "t", "prompt": f"{problem}?", **rest}
    return Candidate(
        problem=problem, completion=completion, reward=reward, reason=reason or verdict, answer=answer, **values
    )


def texts(candidates: Sequence[Candidate]) -> list[str]:
    return [c.completion for c in candidates]


def line(completion: str = "so 7", reward: float | None = 1.0, problem: str = "p", **rest: Any) -> dict[str, Any]:
    verdict = "unknown" if reward is None else "correct" if reward >= 1 else "wrong"
    row = {"problem": problem, "prompt": f"{problem}?\n", "completion": completion, "reward": reward, "reason": verdict}
    return row | {"answer": completion[-1:] or None, "tokens": len(completion), "finish_reason": "stop"} | rest


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: dict[str, Any] | str, name: str = "samples.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
        return path

    return write


def run(source: Path | Sequence[Path], out: Path, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """The lines of the file that the command writes, and what it shows."""
    shown = filter_command([source] if isinstance(source, Path) else source, Settings(**options), out)
    return [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()], shown


# ---- reading


def test_the_three_kinds_of_files_are_read(write: Write) -> None:
    evaluated = write(line(task="gsm8k", sample=0, gold="7", detail=""), name="samples.jsonl")
    trained = write(line(step=3, parts={"math": 1.0}, advantage=0.5, filtered=False, policy_version=2), name="c.jsonl")
    sampled = write(line(task="gsm8k", logprobs=[-0.5], model="models/a", policy_version=0), name="s.jsonl")
    found, inputs = read_candidates([evaluated, trained, sampled])
    assert [(c.task, c.model, c.policy_version) for c in found] == [
        ("gsm8k", "", None),
        ("", "", 2),
        ("gsm8k", "models/a", 0),
    ]
    assert {(c.problem, c.completion, c.reward, c.reason, c.answer, c.tokens, c.truncated) for c in found} == {
        ("p", "so 7", 1.0, "correct", "7", 4, False)
    }
    assert [i.lines for i in inputs] == [1, 1, 1]
    assert found[1].source == f"{trained}:1"
    assert found[0].prompt is found[2].prompt  # held once


def test_what_was_cut_is_known_by_its_finish_or_its_verdict(write: Write) -> None:
    path = write(
        line(finish_reason="length"), line(reward=0.0, reason="truncated", finish_reason=None), line(finish_reason=None)
    )
    assert [c.truncated for c in read_candidates([path])[0]] == [True, True, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reward": "1"}, 'reward="1": give a finite number, or null'),
        ({"reward": True}, "reward=true: give a finite number"),
        ({"reward": math.nan}, "reward=NaN: give a finite number"),
        ({"completion": None}, "completion=null: give a string"),
        ({"completion": "\ud83d"}, "'completion' holds half a Unicode pair"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": [{"role": "user", "content": "?"}]}, "render a list of messages with the chat template first"),
        ({"problem": 3}, "problem=3: give a string"),
        ({"answer": 7}, "answer=7: give a string"),
        ({"tokens": -1}, "tokens=-1: give a whole number from 0"),
        ({"tokens": True}, "tokens=true: give a whole number"),
        ({"policy_version": 0.5}, "policy_version=0.5: give a whole number"),
        ({"finish_reason": "eos"}, 'finish_reason="eos": give stop or length'),
        ({"logprob": 0.5}, "logprob=0.5: give the completion's log-probability, which is finite and not above 0"),
        ({"logprob": -math.inf}, "logprob=-Infinity: give the completion's log-probability"),
        ({"logprob": [-0.5]}, "logprob=[-0.5]: give the completion's log-probability"),
        ({"task": 1}, "task=1: give a string"),
        ({"logprob": -1.0, "sampling": "greedy"}, 'sampling="greedy": give an object with temperature, top_p, top_k'),
        ({"logprob": -1.0, "sampling": {"top_p": "1"}}, 'sampling.top_p="1": give a number, or leave it out'),
    ],
)
def test_a_broken_field_is_refused_with_its_line(write: Write, change: dict[str, Any], says: str) -> None:
    path = write(line(), line() | change)
    with pytest.raises(UserError) as error:
        read_candidates([path])
    assert str(error.value).startswith(f"{path}:2")
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["problem", "prompt", "completion", "reward", "reason"])
def test_a_missing_field_is_named(write: Write, name: str) -> None:
    row = line()
    row[f"{name}s"] = row.pop(name)
    with pytest.raises(UserError, match=rf":1 has no field '{name}'.*did you mean to name '{name}s' '{name}'\?"):
        read_candidates([write(row)])


def test_broken_lines_and_files_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples.jsonl:2: broken JSON"):
        read_candidates([write(line(), '{"problem": ')])
    with pytest.raises(UserError, match=r"samples.jsonl:1 is a list"):
        read_candidates([write("[1]")])
    path = write(line())
    with pytest.raises(UserError, match=r"sample.jsonl does not exist; did you mean .*samples.jsonl\?"):
        read_candidates([tmp_path / "sample.jsonl"])
    with pytest.raises(UserError, match="given twice"):
        read_candidates([path, tmp_path / "." / "samples.jsonl"])
    with pytest.raises(UserError, match=r"is a folder; give the file in it, samples.jsonl"):
        read_candidates([tmp_path])
    with pytest.raises(UserError, match="it is empty"):
        read_candidates([write(name="nothing.jsonl")])


# ---- the rules, by hand


def test_undecided_and_empty_completions_are_dropped() -> None:
    some = [one("a", 0.0), one("b", None), one("c", 1.0), one(" \n", 0.0)]
    assert texts(rules.decided(some)) == ["a", "c", " \n"]
    assert texts(rules.nonempty(some)) == ["a", "b", "c"]


def test_the_pass_rate_is_of_correct_verdicts_and_its_ends_belong_to_it() -> None:
    # 0/2, 1/3 and 2/2 correct; a reward without the verdict `correct`, as of a format alone, does not count
    some = [one(problem="none", reward=0.0), one(problem="none", reward=1.0, reason="wrong")]
    some += [one(problem="third", reward=r) for r in (1.0, 0.0, 0.0)]
    some += [one(problem="all"), one(problem="all", reward=1.5)]
    shares = {(0.0, 0.0): {"none"}, (0.1, 0.9): {"third"}, (1 / 3, 1.0): {"third", "all"}, (0.0, 1.0): None}
    for (low, high), problems in shares.items():
        kept = rules.within_pass_rate(some, low, high)
        assert {c.problem for c in kept} == (problems or {"none", "third", "all"})
        assert len(kept) == sum(c.problem in (problems or {c.problem}) for c in some)


def test_thresholds_take_float32_rewards_for_what_they_were() -> None:
    some = [one("a", 0.699999988079071), one("b", 0.69), one("c", 0.7)]  # the first is float32(0.7)
    assert texts(rules.reward_at_least(some, 0.7)) == ["a", "c"]
    assert texts(rules.outside([one("a", 0.0), one("b", 0.5), one("c", 1.0)], 0.0, 1.0)) == ["a", "c"]


def test_the_quantile_is_a_reward_that_occurs() -> None:
    some = [one(reward=r) for r in (0.4, 0.1, 0.3, 0.2)]
    expected = {0.0: 0.1, 0.25: 0.1, 0.26: 0.2, 0.5: 0.2, 0.75: 0.3, 0.9: 0.4, 1.0: 0.4}
    assert {q: rules.quantile_of(some, q) for q in expected} == expected
    # 1 in 10 correct: the upper tenth begins above 0.9
    rare = [one(reward=float(i == 0)) for i in range(10)]
    assert (rules.quantile_of(rare, 0.9), rules.quantile_of(rare, 0.91)) == (0.0, 1.0)


def test_verdict_finish_length_and_format() -> None:
    some = [one("x = 1\n\\boxed{1}", tokens=5), one("cut", 0.0, tokens=9, truncated=True), one("2", 0.5, tokens=1)]
    assert texts(rules.with_reason(some, {"correct"})) == [some[0].completion]
    assert texts(rules.finished(some)) == [some[0].completion, "2"]
    assert texts(rules.tokens_between(some, 5, 9)) == [some[0].completion, "cut"]
    assert texts(rules.tokens_between(some, 0, math.inf)) == texts(some)
    assert texts(rules.matching(some, r"\\boxed\{.*\}$")) == [some[0].completion]
    assert texts(rules.matching(some, r"^\w+$")) == ["cut", "2"]


@pytest.mark.parametrize("tokens", [None, 0])
def test_a_length_rule_refuses_a_line_that_does_not_tell(tokens: int | None) -> None:
    with pytest.raises(UserError, match=r"f.jsonl:41 does not say how many tokens"):
        rules.tokens_between([one(tokens=3), one(tokens=tokens, line=41)], 1, 9)


def test_an_expression_that_backtracks_without_end_is_given_up() -> None:
    some = [one("a" * 40 + "!", line=8)]
    with pytest.raises(UserError, match=r"--format \(a\+\)\+\$: over 0.2 s on f.jsonl:8"):
        rules.matching(some, "(a+)+$", 0.2)
    found: list[
        list[Candidate]
    ] = []  # elsewhere than in the main thread no signal comes, and the rule works all the same
    thread = threading.Thread(target=lambda: found.append(rules.matching(some, "a!")))
    thread.start()
    thread.join()
    assert found == [some]


def test_same_texts_and_same_answers() -> None:
    some = [
        one("7 +\n 1 ", 0.0, "8"),
        one("7 + 1", 1.0, "8"),
        one("7 +1", 1.0, "8 "),
        one("7 + 1", 0.5, "8", problem="other"),
        one("no", 0.0),
        one("none", 0.0),
    ]
    assert rules.distinct_texts(some) == [some[1], some[2], some[3], some[4], some[5]]
    assert rules.distinct_answers(some) == [some[2], some[3], some[4]]  # the shortest of the best; no answer is one


def test_at_most_k_of_each_problem_and_of_each_class() -> None:
    some = [one(f"{i}" * (i + 1), float(i % 2)) for i in range(6)] + [one("z", problem="other")]
    assert texts(rules.at_most(some, 2, "shortest", 0)) == ["0", "11", "z"]
    assert texts(rules.at_most(some, 1, "shortest", 0, classed_at=1.0)) == ["0", "11", "z"]
    assert texts(rules.at_most(some, 1, "longest", 0, classed_at=1.0)) == ["44444", "555555", "z"]


# ---- which of a problem's are kept


def test_shortest_and_longest_and_their_ties() -> None:
    some = [one("bb"), one("a"), one("cc"), one("ddd")]
    assert texts(shortest(some, 1, 0)) == ["a"]
    assert texts(longest(some, 1, 0)) == ["ddd"]
    assert {texts(shortest(some, 2, seed))[1] for seed in range(20)} == {"bb", "cc"}


def test_random_takes_each_equally_often() -> None:
    some = [one(str(i)) for i in range(5)]
    counts = Counter(text for seed in range(2000) for text in texts(at_random(some, 2, seed)))
    # Binomial(2000, 0.4) has a standard deviation of 22
    assert all(abs(count - 800) < 90 for count in counts.values())
    assert len(counts) == 5


def test_diverse_takes_what_is_farthest_from_those_taken() -> None:
    best = one("one two three four five", 2.0)
    near = one("one two three four six")  # shares 2 of 4 phrases with the best: distance 0.5
    between = one("one two three seven eight nine")  # shares 1 of 6: 5/6
    far = one("ten eleven twelve")  # shares none: 1
    assert jaccard(phrases(words(best.completion)), phrases(words(near.completion))) == 0.5
    for order in itertools.permutations([near, far, best, between]):
        assert diverse(order, 4, 0) == [best, far, between, near]
        assert diverse(order, 2, 5) == [best, far]


# ---- distances


def by_table(a: Sequence[Any], b: Sequence[Any]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 3), max_size=80))
@settings(max_examples=150, deadline=None)
def test_edit_distance_is_that_of_the_table(a: list[int], b: list[int]) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == by_table(a, b)


def test_distances_by_hand() -> None:
    assert words("x=3, so\n\\boxed{12}") == ("x", "=", "3", ",", "so", "\\", "boxed", "{", "12", "}")
    assert edit_distance("kitten", "sitting") == 3
    assert edit_share(words("1 + 4 = 5"), words("1 + 4 = 6")) == 1 / 5
    assert edit_share((), ()) == 0
    assert phrases(("a", "b", "c", "d")) == {("a", "b", "c"), ("b", "c", "d")}
    assert phrases(("a", "b")) == {("a", "b")}
    assert jaccard(frozenset(), frozenset()) == 0


# ---- pairs, by hand


def made(some: Sequence[Candidate], pairing: str, seed: int = 0, **terms: Any) -> list[tuple[str, str]]:
    return [(a.completion, b.completion) for a, b in pair_up(some, pairing, Terms(**terms), seed).pairs]


def test_best_against_worst() -> None:
    some = [one("b", 0.8), one("d", 0.2), one("a", 1.0), one("e", 0.0), one("c", 0.5)]
    assert made(some, "best-worst", limit=1) == [("a", "e")]
    assert made(some, "best-worst") == [("a", "e"), ("b", "d")]
    assert made(some, "best-worst", gap=0.7) == [("a", "e")]
    assert made(some, "best-worst", chosen_from=0.9) == [("a", "e")]
    assert made(some, "best-worst", rejected_to=0.1) == [("a", "e")]
    ties = [one("a", 1.0), one("b", 1.0), one("c", 0.0), one("d", 0.0)]
    assert {made(ties, "best-worst", seed, limit=1)[0] for seed in range(30)} == set(itertools.product("ab", "cd"))


def test_equal_answers_and_equal_texts_make_no_pair() -> None:
    assert made([one("so 7", 1.0, "7"), one("7 it is", 0.5, " 7")], "all") == []
    assert made([one("so  7", 1.0), one("so 7", 0.0)], "all") == []
    assert made([one("so 7", 1.0), one("7 it is", 0.5)], "all") == [
        ("so 7", "7 it is")
    ]  # no answer is not the same one
    # the worst has the best's answer: the next worst takes its place
    some = [one("a", 1.0, "7"), one("b", 0.5, "8"), one("c", 0.0, "7")]
    assert made(some, "best-worst") == [("a", "b")]


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    some = [one("a", 0.1 + 0.2), one("b", 0.3), one("c", 0.699999988), one("d", 0.7)]
    assert set(made(some, "all")) == {(x, y) for x in "cd" for y in "ab"}
    assert made([one("a", 0.3), one("b", 0.2)], "all", gap=0.1) == [("a", "b")]  # 0.3 - 0.2 is just below 0.1


def test_all_pairs_with_the_gap_and_a_limit_takes_any_of_them() -> None:
    some = [one("a", 1.0), one("b", 0.7), one("c", 0.5), one("d", 0.0)]
    expected = {("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert sorted(made(some, "all", gap=0.5)) == sorted(expected)
    drawn = Counter(pair for seed in range(1000) for pair in made(some, "all", seed, gap=0.5, limit=1))
    assert set(drawn) == expected
    assert all(abs(count - 250) < 60 for count in drawn.values())  # standard deviation 13.7


def test_hard_negatives_are_those_nearest_in_wording() -> None:
    right = one("12 + 7 = 19 so it is 19", 1.0, "19")
    slip = one("12 + 7 = 18 so it is 18", 0.0, "18")  # two words of nine
    other = one("the sum of both must be 21", 0.0, "21")
    blank = one("?", 0.0)
    for order in itertools.permutations([right, slip, other, blank]):
        assert made(order, "hard") == [(right.completion, slip.completion)]
    second = one("the sum of both must be 19", 1.0, "19")
    assert set(made([right, slip, other, blank, second], "hard")) == {
        (right.completion, slip.completion),
        (second.completion, other.completion),
    }


def entries(*rewards: float) -> list[Entry]:
    return [Entry(one(str(i), reward), str(i), None) for i, reward in enumerate(rewards)]


def chances(rewards: tuple[float, ...], beta: float, n: int) -> dict[frozenset[int], float]:
    """What algorithm 1 accepts, over all orders of the candidates: an exact sum over every draw."""
    total: Counter[frozenset[int]] = Counter()

    def go(
        left: tuple[int, ...], at: int, best: float, kept: tuple[int, ...], accepted: frozenset[int], p: float
    ) -> None:
        if len(accepted) == n or not (left[at:] or kept):
            total[accepted] += p
        elif at == len(left):
            go(kept, 0, max(rewards[i] for i in kept), (), accepted, p)
        else:
            i = left[at]
            chance = math.exp((rewards[i] - best) / beta)
            go(left, at + 1, best, kept, accepted | {i}, p * chance)
            if chance < 1:
                go(left, at + 1, best, (*kept, i), accepted, p * (1 - chance))

    orders = list(itertools.permutations(range(len(rewards))))
    for order in orders:
        go(order, 0, max(rewards), (), frozenset(), 1 / len(orders))
    return dict(total)


def test_the_first_draw_of_rejection_sampling_in_closed_form() -> None:
    # of two, the worse is accepted if it comes first and is let through: exp(-gap / beta) / 2
    assert chances((1.0, 0.0), 0.5, 1)[frozenset({1})] == pytest.approx(math.exp(-2) / 2)


@pytest.mark.parametrize(
    ("rewards", "beta", "n"), [((1.0, 0.0), 1.0, 1), ((1.0, 0.5, 0.0), 0.5, 1), ((1.0, 1.0, 0.0, 0.2), 0.7, 2)]
)
def test_rejection_sampling_accepts_as_often_as_it_should(rewards: tuple[float, ...], beta: float, n: int) -> None:
    draws = 6000
    siblings = [e.candidate for e in entries(*rewards)]
    found: Counter[frozenset[int]] = Counter()
    for seed in range(draws):
        ordered, rng = shuffled(siblings, seed)
        accepted = accept([Entry(c, c.completion, None) for c in ordered], beta, n, rng)
        found[frozenset(int(e.text) for e in accepted)] += 1
    expected = chances(rewards, beta, n)
    assert sum(expected.values()) == pytest.approx(1)
    for outcome, p in expected.items():
        assert abs(found[outcome] / draws - p) < 4.5 * math.sqrt(p * (1 - p) / draws)
    assert set(found) <= set(expected)


def test_rejection_sampling_at_its_ends() -> None:
    some = entries(0.1, 0.9, 0.5, 0.7)
    assert {e.reward for e in accept(some, 1e-9, 2, random.Random(0))} == {0.9, 0.7}  # cold: the best
    assert accept(some, 1e9, 3, random.Random(0)) == some[:3]  # hot: as they come
    assert set(accept(some, 0.5, 9, random.Random(0))) == set(some)  # all, where there are no more
    assert accept([], 0.5, 2, random.Random(0)) == []


def test_rso_pairs_are_disjoint_pairs_of_the_accepted() -> None:
    some = [one(str(i), i / 10) for i in range(8)]
    for seed in range(30):
        pairs = made(some, "rso", seed, candidates=6, temperature=10.0)
        used = [text for pair in pairs for text in pair]
        assert len(pairs) == 3  # six of eight rewards that all differ
        assert len(set(used)) == 6
        assert all(chosen > rejected for chosen, rejected in pairs)
    assert made(some, "rso", candidates=2, temperature=1e-9) == [("7", "6")]


def test_problems_without_a_pair_are_counted_by_their_cause() -> None:
    some = [one(problem="flat"), one("other", problem="flat"), one("a", 1.0, "7", "alike"), one("b", 0.5, "7", "alike")]
    found = pair_up(some, "all", Terms(), 0)
    assert (found.pairs, found.problems, found.flat, found.alike) == ([], 2, 1, 1)


# ---- what holds of any input

CANDIDATES = st.lists(
    st.builds(
        one,
        completion=st.text("ab c", max_size=6),
        reward=st.sampled_from([None, 0.0, 0.1, 0.3, 0.7, 1.0]),
        answer=st.sampled_from([None, "1", "2", "2 "]),
        problem=st.sampled_from("pqr"),
        prompt=st.sampled_from(["?", "!"]),
        tokens=st.just(4),
        truncated=st.booleans(),
    ),
    max_size=24,
)
ASKED = st.builds(
    Settings,
    to=st.just("sft"),
    min_reward=st.sampled_from([None, 0.3]),
    quantile=st.sampled_from([None, 0.5]),
    pass_rate=st.sampled_from([None, (0.1, 0.9)]),
    finished=st.booleans(),
    dedup=st.sampled_from(["text", "answer", "none"]),
    per_problem=st.just(2),
    choose=st.sampled_from(sorted(CHOICES)),
    seed=st.integers(0, 5),
)


@given(CANDIDATES, ASKED, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_what_the_rules_keep(some: list[Candidate], asked: Settings, shuffle: random.Random) -> None:
    pool = rules.decided(some)
    if not pool:
        return
    s = asked.resolved()
    kept, counts = rules.apply(rules.rules_of(s, pool), pool)
    assert [c for c in some if c in set(kept)] == kept  # from the input, each once, in its order
    assert all(len(siblings) <= 2 for siblings in by_problem(kept).values())
    assert all(c.score >= (0.3 if s.quantile is None and s.min_reward else 0.0) for c in kept)
    assert not (s.finished and any(c.truncated for c in kept))
    if s.dedup != "none":
        assert len({(c.asked, normalised(c.completion)) for c in kept}) == len(kept)
    left = len(pool)
    for count in counts:
        left -= count.dropped
        assert left == count.left
    assert left == len(kept)
    # the same texts in whatever order they came
    again = list(pool)
    shuffle.shuffle(again)
    other, _ = rules.apply(rules.rules_of(s, again), again)
    assert Counter((c.asked, c.completion, c.reward) for c in other) == Counter(
        (c.asked, c.completion, c.reward) for c in kept
    )


@given(
    CANDIDATES,
    st.sampled_from(sorted(PAIRINGS)),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_what_holds_of_every_pair(
    some: list[Candidate], pairing: str, gap: float, limit: int | None, seed: int, shuffle: random.Random
) -> None:
    pool = rules.decided(some)
    terms = Terms(gap=gap, limit=limit, candidates=4)
    found = pair_up(pool, pairing, terms, seed)
    for chosen, rejected in found.pairs:
        assert chosen in pool
        assert rejected in pool
        assert chosen.asked == rejected.asked
        assert chosen.score - rejected.score >= max(gap - NEAR, NEAR)
        assert normalised(chosen.completion) != normalised(rejected.completion)
        assert chosen.answer is None or rejected.answer is None or chosen.answer.strip() != rejected.answer.strip()
    per_problem = Counter(chosen.asked for chosen, _ in found.pairs)
    assert all(count <= (limit or math.inf) for count in per_problem.values())
    assert len(set(found.pairs)) == len(found.pairs)
    assert found.problems == len(per_problem) + found.flat + found.alike
    if pairing != "all":
        used = [c for pair in found.pairs for c in pair]
        assert len(set(used)) == len(used)
    elif limit is None:
        expected = sum(
            a.asked == b.asked
            and a.score - b.score >= max(gap - NEAR, NEAR)
            and normalised(a.completion) != normalised(b.completion)
            and (a.answer is None or b.answer is None or a.answer.strip() != b.answer.strip())
            for a, b in itertools.permutations(pool, 2)
        )
        assert len(found.pairs) == expected
    assert pair_up(pool, pairing, terms, seed) == found
    again = list(pool)
    shuffle.shuffle(again)
    other = pair_up(again, pairing, terms, seed)
    assert Counter((a.asked, a.completion, b.completion) for a, b in other.pairs) == Counter(
        (a.asked, a.completion, b.completion) for a, b in found.pairs
    )


@pytest.mark.parametrize("pairing", sorted(PAIRINGS))
def test_other_problems_in_the_file_change_nothing(pairing: str) -> None:
    mine = [one(f"{i} {i % 3}", i % 3 / 2) for i in range(12)]
    others = [one(f"{i}", i % 2, problem="other") for i in range(6)]
    alone = made(mine, pairing, 7, limit=2)
    beside = [pair for pair in made(others + mine, pairing, 7, limit=2) if " " in pair[0]]
    assert alone == beside
    assert len(alone) == 2
    assert any(made(mine, pairing, seed, limit=2) != alone for seed in range(20))  # the seed is heard


def test_labels_are_spread_so_that_neighbours_have_different_prompts() -> None:
    groups = [[one(f"{name}{i}", problem=name) for i in range(n)] for name, n in (("a", 3), ("b", 1), ("c", 2))]
    assert texts(spread(groups)) == ["a0", "c0", "a1", "b0", "c1", "a2"]  # at 1/6, 1/4, 1/2, 1/2, 3/4, 5/6


# ---- the command

SOLVED = [line("so 7"), line("yes 7"), line("so 8", 0.0), line("so 9", 0.0, finish_reason="length")]
UNSOLVED = [line("hm 1", 0.0, "q"), line("hm 2", 0.0, "q"), line("hm 3", None, "q")]


def test_sft_by_default_has_the_right_and_whole_completions(write: Write, tmp_path: Path) -> None:
    cut_short = line("so it is 7", finish_reason="length")
    source = write(*SOLVED, *UNSOLVED, line(" so  7 "), cut_short)
    rows, shown = run(source, tmp_path / "new" / "sft.jsonl", to="sft")
    rest = {"prompt": "p?\n", "problem": "p", "reward": 1.0, "finish_reason": "stop"}
    assert rows == [
        {**rest, "completion": "so 7", "source": f"{source}:1"},
        {**rest, "completion": "yes 7", "source": f"{source}:2"},
    ]
    table = [text.rsplit(maxsplit=3) for text in shown.splitlines() if text and text[-1].isdigit()]
    assert [(row[0].strip(), *map(int, row[1:])) for row in table[1:]] == [
        ("undecided verdict", 1, 8, 2),
        ("empty", 0, 8, 2),
        ("reward >= 1", 4, 4, 1),
        ("truncated", 1, 3, 1),
        ("same text", 1, 2, 1),
    ]
    assert "2 completions, 1 problems -> " in shown


def test_pairs_and_labels(write: Write, tmp_path: Path) -> None:
    source = write(*SOLVED, *UNSOLVED)
    rows, shown = run(source, tmp_path / "pairs.jsonl", to="pairs", finished=True)
    assert len(rows) == 1
    assert rows[0] == {
        "prompt": "p?\n", "chosen": rows[0]["chosen"], "rejected": "so 8", "problem": "p",
        "chosen_reward": 1.0, "chosen_source": f"{source}:{1 + (rows[0]['chosen'] == 'yes 7')}",
        "rejected_reward": 0.0, "rejected_source": f"{source}:3",
        "chosen_finish_reason": "stop", "rejected_finish_reason": "stop",
    }  # fmt: skip
    assert "1 problems have no pair: their rewards are all the same" in shown
    rows, _ = run(source, tmp_path / "kto.jsonl", to="kto")
    assert [(row["problem"], row["completion"], row["label"]) for row in rows] == [
        ("p", "so 7", True), ("q", "hm 1", False), ("p", "yes 7", True),
        ("p", "so 8", False), ("q", "hm 2", False), ("p", "so 9", False),
    ]  # fmt: skip


def test_a_problem_asked_in_two_ways_is_two_problems(write: Write, tmp_path: Path) -> None:
    source = write(line("so 7"), line("so 8", 0.0, prompt="Think. p?\n"), line("so 9", 0.0))
    rows, shown = run(source, tmp_path / "pairs.jsonl", to="pairs")
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("p?\n", "so 7", "so 9")]
    assert "1 problems were asked with more than one prompt" in shown


def test_columns_of_origin_are_there_where_known_and_never_null(write: Write, tmp_path: Path) -> None:
    sampled = write(line("so 7", task="t", model="m", policy_version=3), name="a.jsonl")
    evaluated = write(line("yes 7"), name="b.jsonl")
    rows, _ = run([sampled, evaluated], tmp_path / "sft.jsonl", to="sft")
    assert [(row["task"], row["model"], row["policy_version"]) for row in rows] == [("t", "m", 3), ("", "", -1)]


def test_log_probabilities_are_there_where_all_have_them_and_what_was_cut_is_told(write: Write, tmp_path: Path) -> None:
    right = line("so 7", logprob=-1.25)
    wrong = line("so 8", 0.0, logprob=-2.5, finish_reason="length")
    cut = line("so 9", 0.0, reason="truncated", finish_reason=None)  # and no log-probability
    ((pair,), _) = run(write(right, wrong, name="a.jsonl"), tmp_path / "pairs.jsonl", to="pairs")
    assert (pair["chosen_logps"], pair["chosen_finish_reason"]) == (-1.25, "stop")
    assert (pair["rejected_logps"], pair["rejected_finish_reason"]) == (-2.5, "length")
    rows, _ = run(write(right, wrong, name="b.jsonl"), tmp_path / "kto.jsonl", to="kto")
    assert [(row["logps"], row["finish_reason"]) for row in rows] == [(-1.25, "stop"), (-2.5, "length")]
    rows, _ = run(write(right, wrong, cut, name="c.jsonl"), tmp_path / "kto.jsonl", to="kto")
    assert [row["finish_reason"] for row in rows] == ["stop", "length", "length"]
    assert not any("logps" in row for row in rows)


@pytest.mark.parametrize(
    ("sampling", "own"),
    [
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 99, "seed": 0}, True),
        ({"temperature": 1, "top_k": -1}, True),  # as vLLM has it
        (None, True),
        ({"temperature": 0.6, "top_p": 1.0, "top_k": 0}, False),
        ({"temperature": 0.0, "top_p": 1.0, "top_k": 0}, False),
        ({"temperature": 1.0, "top_p": 0.95, "top_k": 0}, False),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 20}, False),
    ],
)
def test_log_probabilities_of_another_distribution_than_the_policys_are_left_out(
    write: Write, tmp_path: Path, sampling: dict[str, Any] | None, own: bool
) -> None:
    better, worse = line("so 7", logprob=-1.25), line("so 8", 0.0, logprob=-2.5, sampling=sampling)
    ((pair,), shown) = run(write(better, worse), tmp_path / "pairs.jsonl", to="pairs")
    assert [pair.get(f"{side}_logps") for side in ("chosen", "rejected")] == ([-1.25, -2.5] if own else [None, None])
    assert ("logps is not written: 1 completions were drawn at another temperature than 1" in shown) != own
    # no word of it where there was no log-probability to leave out
    _, shown = run(write(better, worse | {"logprob": None}), tmp_path / "pairs.jsonl", to="pairs")
    assert "logps" not in shown


def test_the_summary_tells_all_that_decides_the_file(write: Write, tmp_path: Path) -> None:
    import hashlib

    source, out = write(*SOLVED, *UNSOLVED), tmp_path / "sft.jsonl"
    run(source, out, to="sft", per_problem=1, choose="longest", seed=3)
    summary = json.loads((tmp_path / "sft.jsonl.summary.json").read_text())
    assert summary["settings"] == {
        "to": "sft", "min_reward": 1.0, "finished": True, "dedup": "text", "per_problem": 1, "choose": "longest",
        "seed": 3,
    }  # fmt: skip
    assert summary["inputs"] == [
        {"path": str(source), "lines": 7, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    ]
    assert summary["output"] == {
        "path": str(out), "lines": 1, "sha256": hashlib.sha256(out.read_bytes()).hexdigest()
    }  # fmt: skip
    assert summary["rules"][0] == {"rule": "read", "dropped": 0, "left": 7, "problems": 2}
    assert summary["rules"][-1] == {"rule": "longest 1 per problem", "dropped": 1, "left": 1, "problems": 1}
    before = out.read_bytes(), (tmp_path / "sft.jsonl.summary.json").read_bytes()
    run(source, out, to="sft", per_problem=1, choose="longest", seed=3)
    assert before == (out.read_bytes(), (tmp_path / "sft.jsonl.summary.json").read_bytes())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["samples.jsonl", "sft.jsonl", "sft.jsonl.summary.json"]


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ([line(reward=None)], {"to": "sft"}, "'undecided verdict' drops the last 1 of 1 .*mend the verifier"),
        ([line(reward=0.5)], {"to": "sft"}, r"'reward >= 1' drops the last 1 of 1 .*rewards are from 0.5 to 0.5"),
        ([line(finish_reason="length")], {"to": "sft"}, "'truncated' drops the last"),
        ([line()], {"to": "sft", "format": "boxed"}, "'format boxed' drops the last"),
        ([line()], {"to": "sft", "pass_rate": (0.1, 0.9)}, "'pass rate 0.1:0.9' drops the last"),
        ([line()], {"to": "sft", "reason": ("wrong",)}, "'reason wrong' drops the last"),
        ([line()], {"to": "sft", "max_tokens": 2}, r"'tokens 0..2' drops the last"),
        ([line(" ")], {"to": "sft"}, "'empty' drops the last"),
        ([line(), line("b", 1.0)], {"to": "pairs"}, "finds no pair among 2 .*1 problems have no pair: their rewards"),
        ([line(reward=0.5)], {"to": "kto"}, "'0 < reward < 1' drops the last"),
        ([line()], {"to": "kto"}, r"both classes, and 1 .*1 or more \(true\) and 0 one of 0 or less \(false\)"),
        ([line(reward=0.0)], {"to": "kto"}, r"both classes, and 0 .*\(true\) and 1 "),
    ],
)
def test_nothing_left_names_the_rule_and_writes_nothing(
    write: Write, tmp_path: Path, lines: list[dict[str, Any]], options: dict[str, Any], says: str
) -> None:
    source, out = write(*lines), tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=f"(?s){says}"):
        run(source, out, **options)
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "pairs", "per_problem": 2}, "--per-problem is no rule of --to pairs: give --pairs-per-problem"),
        ({"to": "pairs", "reason": ("correct",)}, "--reason is no rule of --to pairs"),
        ({"to": "sft", "pair": "all"}, "--pair is no rule of --to sft: give --to pairs"),
        ({"to": "sft", "max_reward": 0.0}, "--max-reward is no rule of --to sft"),
        ({"to": "kto", "gap": 0.1}, "--gap is no rule of --to kto"),
        ({"to": "pairs", "temperature": 0.5}, "--temperature is of statistical rejection sampling; give --pair rso"),
        ({"to": "pairs", "pair": "rso", "temperature": 0.0}, "--temperature 0: give more than 0"),
        ({"to": "sft", "choose": "diverse"}, "--choose diverse says which --per-problem K are kept"),
        ({"to": "sft", "min_reward": math.nan}, "--min-reward nan: give a finite number"),
        ({"to": "sft", "min_tokens": 9, "max_tokens": 2}, "--min-tokens 9 is more than --max-tokens 2"),
        ({"to": "sft", "reason": ("corect",)}, "--reason corect: .*did you mean correct"),
        ({"to": "sft", "format": "("}, r"--format \(: no regular expression"),
        ({"to": "kto", "max_reward": 1.0}, "--max-reward 1, up to which a label is false, is not below 1"),
        ({"to": "kto", "quantile": 0.1}, "is not below 0, from which it is true"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    write: Write, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        run(write(*SOLVED), tmp_path / "out.jsonl", **options)


@pytest.mark.parametrize("text", ["0.5", "0.9:0.1", "-1:0.5", "0:2", "a:b", "nan:1", ":"])
def test_a_window_that_is_none(text: str) -> None:
    assert pass_rate_of("0.1:0.9") == (0.1, 0.9)
    with pytest.raises(UserError, match=f"--pass-rate {text}: write LO:HI"):
        pass_rate_of(text)


def test_an_output_that_would_do_harm_is_refused(write: Write, tmp_path: Path) -> None:
    source = write(*SOLVED)
    for out, says in (
        (source, "one of the inputs"),
        (tmp_path, "is no file"),
        (tmp_path / "a.json", r"name it .*a.jsonl"),
        (source / "a.jsonl", "cannot be written"),
    ):
        with pytest.raises(UserError, match=says):
            run(source, out, to="sft")
    assert [p.name for p in tmp_path.iterdir()] == [source.name]
    assert len(source.read_text().splitlines()) == 4


def test_a_quantile_that_drops_nothing_is_told_and_one_that_does_is_of_all(write: Write, tmp_path: Path) -> None:
    rewards = [0.1, 0.2, 0.3, 0.4]
    source = write(*(line(f"{r}", r, f"p{r}") for r in rewards), *(line(f"z{i}", 0.0, "z") for i in range(4)))
    rows, shown = run(source, tmp_path / "out.jsonl", to="sft", quantile=0.76)
    assert [row["reward"] for row in rows] == [0.3, 0.4]
    assert "reward >= 0.3 (quantile 0.76)" in shown
    _, shown = run(source, tmp_path / "out.jsonl", to="sft", quantile=0.3)
    assert "--quantile 0.3 is the lowest reward of all, 0, and drops nothing" in shown


def test_cut_completions_that_are_imitated_are_told(write: Write, tmp_path: Path) -> None:
    source = write(line("so 7", finish_reason="length"), line("so 8", 0.0))
    for to, what in (("pairs", "chosen completions"), ("kto", "completions labelled true")):
        assert f"1 {what} were cut at their token limit" in run(source, tmp_path / "out.jsonl", to=to)[1]


def test_the_command_line(write: Write, tmp_path: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command("filter")(filter_samples)
    source, out = write(*SOLVED, *UNSOLVED), tmp_path / "out.jsonl"
    options = (
        "--to pairs --pair rso --temperature 0.7 --candidates 4 --pass-rate 0.1:0.9 --min-reward 1 --gap 0.5 --seed 2"
    )
    result = CliRunner().invoke(app, ["filter", str(source), "--out", str(out), *options.split()])
    assert result.exit_code == 0, result.output
    assert "pairs, 1 problems -> " in result.output
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["settings"] == {
        "to": "pairs", "min_reward": 1.0, "pass_rate": [0.1, 0.9], "finished": False, "dedup": "text", "pair": "rso",
        "gap": 0.5, "temperature": 0.7, "candidates": 4, "seed": 2,
    }  # fmt: skip
    result = CliRunner().invoke(
        app, ["filter", str(source), "--to", "sft", "--reason", "correct, wrong", "--out", str(out)]
    )
    assert "reason correct,wrong" in result.output
    assert "reward >=" not in result.output  # --reason stands in the threshold's place


# ---- in the hands of others


@pytest.mark.parametrize("to", ["sft", "pairs", "kto"])
def test_trl_prepares_the_file_as_it_is(write: Write, tmp_path: Path, to: str) -> None:
    """Its own preparation with a real tokenizer. The columns of origin pass through it; then it drops them."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
    from trl.data_utils import is_conversational, maybe_apply_chat_template, maybe_extract_prompt

    from grpo_math.small_model import character_tokenizer

    known = {"task": "arithmetic", "model": "m", "policy_version": 1}
    others = [*UNSOLVED, line("hm 4", 0.0, "q"), line("hm 5", 0.0, "q")]
    source = write(*(row | {"logprob": -2.5} for row in [*(row | known for row in SOLVED), *others]))
    rows, _ = run(source, tmp_path / f"{to}.jsonl", to=to)
    data = load_dataset("json", data_files=str(tmp_path / f"{to}.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert data.to_list() == rows
    tokenizer = character_tokenizer()
    assert not any(is_conversational(row) for row in rows)
    assert [maybe_extract_prompt(maybe_apply_chat_template(row, tokenizer)) for row in rows] == rows

    trainer, config = {
        "sft": (SFTTrainer, SFTConfig),
        "pairs": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
    }[to]
    made_of = SimpleNamespace(
        _tokenizer=tokenizer, calculate_KL=True, _is_vision_dataset=False, _signature_columns=None, args=None,
        completion_only_loss=None, chat_template=None, loss_type="kto", desirable_weight=1.0, undesirable_weight=1.0,
    )  # fmt: skip
    args = config(
        output_dir=str(tmp_path / "run"), max_length=64, per_device_train_batch_size=2, use_cpu=True, bf16=False
    )
    more = (False, None) if to == "sft" else ()
    prepared = trainer._prepare_dataset(made_of, data, tokenizer, args, *more, "train")
    trainer._set_signature_columns_if_needed(made_of)
    origin = set(data.column_names) - {"prompt", "completion", "chosen", "rejected", "label"}
    assert origin
    assert not origin & set(made_of._signature_columns)
    ends = tokenizer.eos_token
    for before, after in zip(rows, prepared, strict=True):
        parts = {"sft": ["completion"], "pairs": ["chosen", "rejected"], "kto": ["completion"]}[to]
        if to == "sft":
            assert tokenizer.decode(after["input_ids"]) == before["prompt"] + before["completion"] + ends
            continue
        assert tokenizer.decode(after["prompt_ids"]) == before["prompt"]
        for part in parts:
            assert tokenizer.decode(after[f"{part}_ids"]) == before[part] + ends
    if to == "kto":  # the reference point's pairs are mismatched: no completion stands behind its own problem's prompt
        own: dict[str, set[str]] = {}
        for row in rows:
            own.setdefault(row["prompt"], set()).add(row["completion"] + ends)
        strangers = [tokenizer.decode(row["KL_completion_ids"]) not in own[row["prompt"]] for row in prepared]
        assert all(strangers)


def test_datasets_reads_a_file_whose_later_lines_know_more(write: Write, tmp_path: Path) -> None:
    """A null that turns into a string beyond the first block is what it refuses."""
    from datasets import load_dataset

    long = "so 7 " * 4000
    first = write(*(line(f"{i} {long}", problem=f"p{i}") for i in range(600)), name="a.jsonl")
    second = write(
        *(line(f"{i}", problem=f"q{i}", task="t", model="m", policy_version=2) for i in range(5)), name="b.jsonl"
    )
    out = tmp_path / "out.jsonl"
    run([first, second], out, to="sft")
    assert out.stat().st_size > 11_000_000  # more than the first block
    data = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "c"))
    assert len(data) == 605
    assert data[0]["model"] == ""
    assert (data[604]["task"], data[604]["model"], data[604]["policy_version"]) == ("t", "m", 2)
