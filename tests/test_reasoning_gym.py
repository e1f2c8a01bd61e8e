"""Every generator of reasoning-gym through our task and verifier, and what its scorers must not be asked."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from grpo_math import config
from grpo_math.find import find_task, find_verifier
from grpo_math.scoring import Scorer
from grpo_math.tasks import reasoning_gym as task
from grpo_math.tasks.reasoning_gym import gold_completion, held_out, load
from grpo_math.types import Problem, UserError, Verdict
from grpo_math.verifiers import reasoning_gym as verifier
from grpo_math.verifiers.reasoning_gym import ASKED, check_options, from_row, generators, verify
from grpo_math.verify import completion_of

INSTALLED = find_spec("reasoning_gym") is not None
needs_package = pytest.mark.skipif(
    not INSTALLED, reason="reasoning-gym is not installed: pip install -e '.[reasoning-gym]'"
)

NAMES = list(generators()) if INSTALLED else []
# Of these the package gives no right answer, only a scorer that knows one when it sees it.
NO_GOLD = {"boxnet", "rush_hour"}


@lru_cache
def some(name: str) -> list[Problem]:
    """Two problems; of intermediate_integration those that sympy solved. Else its answer is the question again."""
    return list(islice((p for p in load("train", dataset=name, seed=5) if "Integral(" not in p.answer), 2))


def judged(problem: Problem, text: str, **options: bool) -> Verdict:
    return verify(problem, f"<answer>{text}</answer>", **options)


@needs_package
def test_all_generators_are_there() -> None:
    assert len(NAMES) >= 105
    assert {"chain_sum", "countdown", "sudoku", "zebra_puzzles"} <= set(NAMES)
    assert set(ASKED) <= set(NAMES)


@needs_package
@pytest.mark.parametrize("name", NAMES)
def test_the_right_answer_scores_one_after_a_trip_to_another_process(name: str) -> None:
    for problem in some(name):
        arrived = pickle.loads(pickle.dumps(problem))
        assert arrived == problem
        if name in NO_GOLD:
            assert problem.answer == ""
            assert verify(arrived, gold_completion(problem)).reason == "no_answer"
        else:
            verdict = verify(arrived, gold_completion(problem))
            assert (verdict.reward, verdict.reason) == (1.0, "correct"), verdict.detail


@needs_package
@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_problems_whatever_else_is_drawn(name: str) -> None:
    random.seed(17)
    np.random.seed(17)
    state = repr(np.random.get_state())
    again = next(p for p in load("train", dataset=name, seed=5) if p.id == some(name)[0].id)
    assert repr(again) == repr(some(name)[0])
    assert repr(np.random.get_state()) == state


@needs_package
def test_what_draws_from_the_shared_generator_is_the_same_too() -> None:
    """list_functions does, for some of its questions, and some programs of codeio do."""
    found = []
    for seed in (1, 2):
        random.seed(seed)
        state = random.getstate()
        found.append([p.question for p in islice(load("train", dataset="list_functions", seed=5), 60)])
        assert random.getstate() == state
    assert found[0] == found[1]


UNDER = """
import hashlib, itertools, json, sys
from grpo_math.tasks.reasoning_gym import entries
for name in sys.argv[2:]:
    found = list(itertools.islice(entries(name, "train/5", {}), int(sys.argv[1])))
    print(name, hashlib.sha256(repr(found).encode()).hexdigest(), flush=True)
"""
SCORED = """
import sys
from grpo_math.tasks.reasoning_gym import load
from grpo_math.verifiers.reasoning_gym import verify
for name in sys.argv[2:]:
    first, second = load("train", dataset=name, seed=5, size=int(sys.argv[1]))
    for text in (first.answer, second.answer, "0", "A", "[[1]]"):
        print(name, repr(text), verify(first, f"<answer>{text}</answer>").reward)
"""


def under_two_hash_seeds(code: str, count: int, names: Sequence[str]) -> list[list[str]]:
    """What the code prints for these generators in two processes that order sets differently."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(count), *names],
            env={**os.environ, "PYTHONPATH": str(Path(task.__file__).parents[2]), "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    said = [process.communicate(timeout=600)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return said


@needs_package
def test_the_order_of_sets_decides_no_problem() -> None:
    names = ("isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder")
    one, other = under_two_hash_seeds(UNDER, 12, names)
    assert len(one) == len(names)
    assert one == other


@needs_package
@pytest.mark.slow
@pytest.mark.skipif("GRPO_MATH_ALL" not in os.environ, reason="only with GRPO_MATH_ALL=1: takes a minute")
@pytest.mark.parametrize(("code", "count"), [(UNDER, 3), (SCORED, 2)], ids=["problems", "scores"])
def test_the_order_of_sets_decides_nothing_of_any_generator(code: str, count: int) -> None:
    one, other = under_two_hash_seeds(code, count, NAMES)
    assert len(one) >= len(NAMES)
    assert one == other


def ended(pid: int) -> bool:
    """Within 10 s; one that nobody has waited for yet counts."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


@needs_package
def test_the_process_of_its_own_ends_with_the_iterator(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    made = task._made_apart("ransom_note", "train/5", {})
    next(made)
    assert started[0].poll() is None
    made.close()  # type: ignore[attr-defined]
    assert started[0].returncode == -signal.SIGKILL
    killed = task._made_apart("ransom_note", "train/5", {})
    next(killed)
    started[1].kill()
    with pytest.raises(RuntimeError, match="makes the entries of ransom_note has ended with status -9"):
        list(killed)  # those that it had made before come first


@needs_package
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_process_of_its_own_ends_with_the_one_that_asked() -> None:
    code = (
        "import subprocess, time; from grpo_math.tasks import reasoning_gym as task\n"
        "made = task._made_apart('ransom_note', 'train/5', {}); next(made)\n"
        "print(made.gi_frame.f_locals['child'].pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(task.__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as asked:
        assert asked.stdout is not None
        pid = int(asked.stdout.readline())
        asked.kill()
    assert ended(pid)


@needs_package
def test_what_goes_wrong_in_the_process_of_its_own_is_raised_here() -> None:
    with pytest.raises(UserError, match="the generator ransom_note refuses this"):
        next(task._made_apart("ransom_note", "train/5", {"min_note_length": 50}))


PROGRAMS = (
    "__import__('pathlib').Path({0!r}).touch()",
    "[__import__('pathlib').Path({0!r}).touch()]",
    "open({0!r}, 'w')",
    "1 + open({0!r}, 'w').write('x')",
    "S('open({0!r}, chr(119))')",
)
NOT_ANSWERS = (
    "xyz", "0", "-1", "True", "Yes", "[]", "{}", "[[1]]", "[{}]", "null", "NaN", "inf", "1e999", "9" * 400, "²", "٣",
    "1/0", "(1,2", "\x00", "x" * 5000, "[1, 2", '{"a": 1}', '[{"a": "b"}]', '[["a"]]', '"abc"', "1,2,3", "A B C", "3.5",
    "1 2\n3 4", "[null]", "R U", "A+1", "\ud800", "1 × a", "1e400+1e400i",
)  # fmt: skip


@needs_package
@pytest.mark.parametrize("name", NAMES)
def test_text_is_never_run_and_never_breaks_a_scorer(name: str, tmp_path: Path) -> None:
    problem, trace = some(name)[0], tmp_path / "trace"
    for program in PROGRAMS:
        assert (judged(problem, program.format(str(trace))).reward or 0) < 1
        assert not trace.exists()
    for text in NOT_ANSWERS:
        verdict = judged(problem, text)
        assert verdict.reward is not None
        assert 0 <= verdict.reward <= 1


@needs_package
def test_what_the_package_takes_for_right_and_is_not() -> None:
    """Each of these scores 1 with the package's scorer alone, which is why ASKED is there."""
    wrong = {"puzzle24": "6*4*1*1", "game_of_life_halting": "maybe", "coin_flip": "0", "complex_arithmetic": "nan"}
    factory = __import__("reasoning_gym").get_score_answer_fn
    for name, text in wrong.items():
        problem = some(name)[0]
        assert factory(name)(text, problem.metadata["entry"]) == 1.0, name
        assert judged(problem, text).reward == 0.0, name


@needs_package
def test_an_integral_is_not_its_own_answer() -> None:
    problem = some("intermediate_integration")[0]
    echo = "Integral({integrand}, {variable})".format(**problem.metadata["entry"]["metadata"])
    assert (
        __import__("reasoning_gym").get_score_answer_fn("intermediate_integration")(echo, problem.metadata["entry"])
        == 1
    )
    assert judged(problem, echo).reward == 0.0


@needs_package
def test_partial_scores_are_the_reward_or_not() -> None:
    problem = Problem("", "", "", "7", {"dataset": "chain_sum", "entry": {"answer": "7", "metadata": {}}})
    half = judged(problem, "7!")
    assert (half.reward, half.reason, half.detail) == (0.5, "wrong", "score 0.5")
    assert judged(problem, "7!", partial=False).reward == 0.0
    assert judged(problem, "+7.0", partial=False).reward == 1.0
    with pytest.raises(UserError, match="partial='no'"):
        check_options({"partial": "no"})


@needs_package
def test_the_last_answer_counts_and_a_box_where_there_is_none() -> None:
    problem = Problem("", "", "", "7", {"dataset": "chain_sum", "entry": {"answer": "7", "metadata": {}}})
    assert verify(problem, "<answer>8</answer> no, <answer>\n7 </answer>").reason == "correct"
    assert verify(problem, "\\boxed{7}").reason == "correct"
    assert verify(problem, "<think><answer>7</answer>").reason == "no_answer"
    assert verify(problem, "7").reason == "no_answer"


@needs_package
def test_examples_and_a_line_of_pairs() -> None:
    for problem, text, reward in verifier.EXAMPLES:
        assert verify(problem, text).reward == pytest.approx(reward)
    entry = {"answer": "7", "metadata": {}}
    assert verify(*from_row({"dataset": "chain_sum", "entry": entry, "completion": "\\boxed{7}"})).reward == 1.0
    with pytest.raises(UserError, match="did you mean chain_sum"):
        from_row({"dataset": "chainsum", "entry": entry, "completion": ""})


@needs_package
def test_the_scorer_has_the_options_of_the_generator() -> None:
    """decimal_arithmetic tolerates an error in the last decimal that was asked for."""
    name = "decimal_arithmetic"
    coarse, fine = (
        load("train", dataset=name, size=1, precision=12, min_num_decimal_places=n, max_num_decimal_places=n)[0]
        for n in (1, 5)
    )
    for problem, right in ((coarse, True), (fine, False)):
        near = f"{float(problem.answer) + 0.05:.6f}"
        assert (judged(problem, near).reason == "correct") == right


@needs_package
def test_no_training_question_is_a_test_question_whatever_the_seeds() -> None:
    options = {"dataset": "count_bits", "max_n": 400}
    test = [p.question for p in load("test", seed=1, **options)]
    assert 50 < len(test) == len(set(test)) < 200  # a quarter of the 400 questions, and no more
    assert all(map(held_out, test))
    for seed in range(3):
        assert not {p.question for p in islice(load("train", seed=seed, **options), 1500)} & set(test)


@needs_package
def test_seeds_splits_sizes_and_ids() -> None:
    first = list(islice(load("train", dataset="chain_sum"), 700))  # more than a chunk
    assert len({p.id for p in first}) == 700
    assert len({p.question for p in first}) > 690
    assert [p.question for p in load("train", dataset="chain_sum", size=3)] == [p.question for p in first[:3]]
    other = {p.question for p in islice(load("train", dataset="chain_sum", seed=1), 700)}
    assert len(other & {p.question for p in first}) < 30  # by chance; one seed apart, the package has all but one
    assert len(list(load("test", dataset="chain_sum"))) == task.TEST_PROBLEMS
    assert len(load("test", dataset="chain_sum", size=7)) == 7  # type: ignore[arg-type]


@needs_package
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, ["task.options.dataset=NAME", "chain_sum", "zebra_puzzles"]),
        ({"dataset": "chain_sums"}, ["dataset='chain_sums'", "did you mean chain_sum?", "known: ab, acre"]),
        ({"dataset": "composite"}, ["no such generator"]),
        ({"dataset": "chain_sum", "max_term": 3}, ["task.options.max_term=3", "did you mean max_terms?"]),
        ({"dataset": "chain_sum", "min_terms": 9, "max_terms": 3}, ["chain_sum refuses this", "'max_terms': 3"]),
        ({"dataset": "chain_sum", "max_terms": "many"}, ["chain_sum refuses this", "'many'"]),
        ({"dataset": "chain_sum", "size": 0}, ["task.options.size=0"]),
        ({"dataset": "chain_sum", "path": "x"}, ["task.path=x"]),
    ],
)
def test_bad_options_name_the_key_and_the_remedy(options: dict[str, object], says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load("train", **options)
    for words in says:
        assert words in str(caught.value)


@needs_package
def test_the_prompts_are_the_packages_own() -> None:
    published = __import__("reasoning_gym.utils", fromlist=["x"]).SYSTEM_PROMPTS
    names = {"default@1": "default", "deepseek_zero@1": "DeepSeekZero", "direct@1": "direct"}
    assert {name: form.system for name, form in task.PROMPTS.items()} == {k: published[v] for k, v in names.items()}
    assert {form.template for form in task.PROMPTS.values()} == {"{question}"}


@needs_package
def test_workers_score_it_and_a_scorer_that_raises_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [some(name)[0] for name in ("chain_sum", "sudoku", "graph_color", "figlet_font")]
    broken = Problem("broken", "", "", "", {"dataset": "chain_sum", "entry": {"metadata": {}}})  # it has no answer
    items = [(p, completion_of(gold_completion(p))) for p in problems]
    with Scorer([config.Reward(verifier="reasoning_gym")], config.Scoring(workers=1, max_error_share=1)) as s:
        *good, bad = s.score([*items, (broken, completion_of("<answer>1</answer>"))])
    assert [scored.verdict.reason for scored in good] == ["correct"] * 4
    assert (bad.reward, bad.verdict.reason) == (None, "error")
    assert "KeyError" in bad.verdict.detail


def test_it_is_found_and_named_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not there
    assert task.VARIANT == "dataset"
    with pytest.raises(UserError, match=r"pip install 'grpo-math\[reasoning-gym\]'"):
        find_task("reasoning_gym").load("train", dataset="chain_sum")
    with pytest.raises(UserError, match=r"pip install 'grpo-math\[reasoning-gym\]'"):
        find_task("reasoning_gym").load("train")
    assert find_verifier("reasoning_gym") is verifier


def test_importing_task_and_verifier_leaves_the_package_alone() -> None:
    code = "import sys, grpo_math.tasks.reasoning_gym; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, timeout=60).returncode == 0
