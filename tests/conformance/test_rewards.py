"""CONFORMANCE.md, rewards and verifiers: published bugs of GRPO trainers, and the number that catches each."""

import threading
import time

import pytest

from grpo_math.config import Reward, Scoring
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Problem
from grpo_math.verifiers import format as format_verifier
from grpo_math.verifiers import math as math_verifier

MIXED = """
import os, time
from grpo_math.types import Verdict

def verify(problem, completion):
    with open(problem.metadata["pids"], "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    if completion == "hang":
        while True:
            pass
    if completion == "raise":
        raise RuntimeError("a bug")
    return Verdict(1.0, "correct") if completion == problem.answer else Verdict(0.0, "wrong")
"""


def completion(text, finish_reason="stop"):
    return Completion((), (), text, finish_reason, 0)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def mixed(tmp_path):
    """A verifier's file that hangs and raises on demand, and the problem it is for."""
    (tmp_path / "mixed.py").write_text(MIXED)
    return str(tmp_path / "mixed.py"), Problem("p", "t", "", "right", {"pids": str(tmp_path / "pids")})


def score_64(mixed):
    """64 items, one of them an infinite loop: the scores, the seconds, the worker processes that were used."""
    name, problem = mixed
    items = [(problem, completion("hang" if i == 20 else "right" if i % 2 else f"wrong {i}")) for i in range(64)]
    with Scorer([Reward(verifier=name)], Scoring(workers=2, timeout_s=1.5)) as scorer:
        scorer.score([(problem, completion("warm up"))])
        start = time.monotonic()
        scored = scorer.score(items)
        seconds = time.monotonic() - start
    with open(problem.metadata["pids"]) as pids:
        return scored, seconds, set(map(int, pids))


def check_64(scored, seconds, pids):
    reasons = [s.verdict.reason for s in scored]
    assert reasons.pop(20) == "timeout"
    assert reasons == ["correct" if i % 2 else "wrong" for i in range(64) if i != 20]
    assert seconds < 1.5 + 1.0
    assert len(pids) >= 2  # the killed one and its replacement
    assert not any(map(alive, pids))


def test_an_infinite_loop_costs_its_own_score_alone(mixed):
    check_64(*score_64(mixed))


def test_timeouts_work_off_the_main_thread(mixed):
    results = []
    thread = threading.Thread(target=lambda: results.append(score_64(mixed)))
    thread.start()
    thread.join()
    check_64(*results[0])


def test_workers_outlive_the_thread_that_started_them(mixed):
    name, problem = mixed
    with Scorer([Reward(verifier=name)], Scoring(workers=1)) as scorer:
        for _ in range(3):
            thread = threading.Thread(target=scorer.score, args=([(problem, completion("right"))],))
            thread.start()
            thread.join()
    with open(problem.metadata["pids"]) as pids:
        assert len(set(pids)) == 1


def test_timeout_error_and_wrong_are_told_apart(mixed):
    name, problem = mixed
    texts = ["right", "hang", "raise", "no", "not", "never"]
    with Scorer([Reward(verifier=name)], Scoring(workers=2, timeout_s=0.5, max_error_share=0.5)) as scorer:
        scored = scorer.score([(problem, completion(text)) for text in texts])
    assert [s.verdict.reason for s in scored] == ["correct", "timeout", "error", "wrong", "wrong", "wrong"]
    assert [s.reward for s in scored] == [1.0, None, None, 0.0, 0.0, 0.0]


def test_minus_5_is_not_5():
    for gold, answer in (("5", "-5"), ("-5", "5"), ("5", "−5"), ("5", r"\text{-}5")):
        assert math_verifier.verify(Problem("p", "t", "", gold), f"\\boxed{{{answer}}}").reward == 0.0
    assert math_verifier.verify(Problem("p", "t", "", "-5"), "\\boxed{-5}").reward == 1.0


def test_tags_in_the_prompt_earn_nothing():
    problem = Problem("p", "t", "<think></think> Answer in \\boxed{5}.", "5", {"prompt": "\\boxed{5}"})
    for verifier in (format_verifier, math_verifier):
        assert verifier.verify(problem, "The answer is five.").reward == 0.0
        assert verifier.verify(problem, "\\boxed{5}").reward == 1.0


def test_reward_weights_reach_the_reward_and_each_part_stands_beside_it():
    rewards = [Reward(verifier="math", weight=1.0), Reward(verifier="format", weight=0.25)]
    problem = Problem("p", "t", "", "5")
    with Scorer(rewards, Scoring(workers=1)) as scorer:
        texts = ["\\boxed{5}", "\\boxed{6}", "\\boxed{5} is it", "I say 5"]
        scored = scorer.score([(problem, completion(text)) for text in texts])
    assert [s.reward for s in scored] == [1.25, 0.25, 1.0, 0.0]
    assert [{name: v.reward for name, v in s.parts.items()} for s in scored] == [
        {"math": 1.0, "format": 1.0},
        {"math": 0.0, "format": 1.0},
        {"math": 1.0, "format": 0.0},
        {"math": 0.0, "format": 0.0},
    ]
    assert all(s.verdict is s.parts["math"] for s in scored)


def test_truncated_is_not_wrong():
    problem = Problem("p", "t", "", "5")
    items = [
        (problem, completion(text, end))
        for text in ("\\boxed{5}", "\\boxed{6", "\\boxed{7}")
        for end in ("stop", "length")
    ]
    with Scorer([Reward(verifier="math")], Scoring(workers=1)) as scorer:
        scored = scorer.score(items)
    assert [s.verdict.reason for s in scored] == ["correct", "correct", "no_answer", "truncated", "wrong", "truncated"]
    assert [s.reward for s in scored] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
