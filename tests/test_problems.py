"""Loading problems and streaming them: refusals by name, epochs without repeats, exact continuation."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_math import problems as problems_module
from grpo_math.config import Task
from grpo_math.config_file import load_config
from grpo_math.exclude import Exclusion
from grpo_math.problems import ProblemSource, ProblemStream, load_problems
from grpo_math.tasks import gsm8k
from grpo_math.types import Problem, UserError

HEAD = "from grpo_math.types import Problem\nTEMPLATE = '{question}'\nVERIFIER = 'math'\n"
TEN = "[Problem(f'p{i}', 'mine', f'{i}+1?', str(i + 1)) for i in range(10)]"

Write = Callable[..., Task]


@pytest.fixture
def task(tmp_path: Path) -> Write:
    """Write a task file and return the config that names it."""
    numbers = itertools.count()  # a file is imported once, so each gets a name of its own

    def write(body: str, **config: object) -> Task:
        file = tmp_path / f"my_task_{next(numbers)}.py"
        file.write_text(HEAD + body)
        return Task(name=str(file), **config)  # type: ignore[arg-type]

    return write


def finite(n: int) -> ProblemSource:
    made = [Problem(f"p{i}", "mine", f"{i}?", str(i)) for i in range(n)]
    return ProblemSource("mine", gsm8k, made, lambda: iter(made))


def endless(check: Callable[[Problem], str | None] | None = None) -> ProblemSource:
    def start():  # type: ignore[no-untyped-def]
        i = 0
        while True:
            yield Problem(f"p{i}", "mine", f"{i}?", str(i))
            i += 1

    return ProblemSource("mine", gsm8k, None, start, check)


def ids(problems: list[Problem]) -> list[str]:
    return [p.id for p in problems]


# ---- loading


def test_a_list_and_a_generator_that_ends_are_finite(task: Write) -> None:
    for body in (f"def load(split): return {TEN}", f"def load(split): yield from {TEN}"):
        source = load_problems(task(body), None)
        assert source.problems is not None
        assert ids(source.problems) == [f"p{i}" for i in range(10)]
        assert source.module.VERIFIER == "math"


def test_a_generator_that_goes_on_is_endless_and_read_from_its_start(task: Write) -> None:
    body = "import itertools\ndef load(split):\n    return (Problem(f'p{i}', 't', '?', '1') for i in itertools.count())"
    source = load_problems(task(body))
    assert source.problems is None
    assert ids(ProblemStream(source, 0).take(2)) == ["p0", "p1"]


def test_limit_makes_an_endless_task_finite(task: Write) -> None:
    body = "import itertools\ndef load(split):\n    return (Problem(f'p{i}', 't', '?', '1') for i in itertools.count())"
    assert len(load_problems(task(body, limit=7)).problems or []) == 7
    assert len(load_problems(task(f"def load(split): return {TEN}", limit=7)).problems or []) == 7
    assert len(load_problems(task(f"def load(split): return {TEN}", limit=70)).problems or []) == 10


def test_split_path_and_options_reach_the_task(task: Write) -> None:
    body = "def load(split, path=None, digits=2, *, base=10):\n"
    body += "    yield Problem(f'{split} {path} {digits} {base}', 't', '?', '1')"
    source = load_problems(task(body, split="test", path="x.jsonl", options={"base": 2, "digits": 5}))
    assert ids(source.problems or []) == ["test x.jsonl 5 2"]
    body = "def load(split, **options):\n    yield Problem(str(options), 't', '?', '1')"
    source = load_problems(task(body, path="x.jsonl", options={"any": 1}))
    assert ids(source.problems or []) == ["{'path': 'x.jsonl', 'any': 1}"]


@pytest.mark.parametrize(
    ("body", "config", "says"),
    [
        (
            f"def load(split, digits=2): return {TEN}",
            {"options": {"digit": 3}},
            r"\.digit=3: .* takes the options digits; did you mean digits\?",
        ),
        (
            f"def load(split, path=None): return {TEN}",
            {"options": {"x": 3}},
            r"task\.options\.x=3: .* takes no options; remove it",
        ),
        (f"def load(split, **any): return {TEN}", {"options": {"split": "test"}}, r"write it as task\.split=test"),
        (f"def load(split, path=None): return {TEN}", {"options": {"path": "a"}}, r"write it as task\.path=a"),
        (
            f"def load(split): return {TEN}",
            {"path": "a.jsonl"},
            r"task\.path=a\.jsonl: .* reads no file; remove task\.path",
        ),
        (f"def load(split, path): return {TEN}", {}, r"set task\.path=FILE"),
        (f"def load(split, digits): return {TEN}", {}, r"needs the option digits; set task\.options\.digits=VALUE"),
        ("def load(split): pass", {}, "load returned None; return a list of Problems, or yield them"),
        ("def load(split): return []", {}, "split 'train', has no problems"),
        ("def load(split): yield {'question': 1}", {}, "item 1 is a dict, not a Problem"),
        ("def load(split): return 'abc'", {}, "item 1 is a str, not a Problem"),
        (f"def load(split): return [*{TEN}, Problem(7, 't', '?', '1')]", {}, "item 11 has id=7; make it a string"),
        (
            f"def load(split): return [*{TEN}, Problem('x', 't', '?', 1.5)]",
            {},
            r"item 11 has answer=1\.5; make it a string",
        ),
        (f"def load(split): return {TEN} * 2", {}, "the id 'p0' is that of problem 1 and of problem 11"),
    ],
)
def test_bad_tasks_are_named(task: Write, body: str, config: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_problems(task(body, **config))


def test_unusable_answers_are_dropped_and_counted(task: Write) -> None:
    source = load_problems(task(f"def load(split): return {TEN}"), lambda p: "odd" if int(p.answer) % 2 else None)
    assert ids(source.problems or []) == ["p1", "p3", "p5", "p7", "p9"]
    assert [(p.id, why) for p, why in source.refused] == [(f"p{i}", "odd") for i in range(0, 10, 2)]


def test_no_usable_answer_at_all(task: Write) -> None:
    with pytest.raises(UserError, match=r"none of the 10 answers .* p0 with the answer '1': no number.*rewards=NAME"):
        load_problems(task(f"def load(split): return {TEN}"), lambda p: "no number")


def test_a_bug_of_the_verifiers_check_is_named_with_its_line(task: Write) -> None:
    def check(problem: Problem) -> str | None:
        raise ZeroDivisionError

    with pytest.raises(UserError, match=r"check of problem p0 failed: .*test_problems\.py:\d+: ZeroDivisionError"):
        load_problems(task(f"def load(split): return {TEN}"), check)


@pytest.mark.parametrize(
    "body", ["def load(split): raise KeyError('x')", "def load(split):\n    yield {}['x']", "def load(split): exit(0)"]
)
def test_a_load_that_raises_is_named_with_its_line(task: Write, body: str) -> None:
    with pytest.raises(UserError, match=r"failed: .*\.py:\d+: (KeyError|SystemExit)"):
        load_problems(task(body))


# ---- excluding


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.txt", "p3\n\n  p5  \np3\n"),
        ("ids.txt", "\ufeffp3\r\np5"),
        ("hits.jsonl", '{"problem": "p3", "against": "b/1"}\n{"problem": "p5", "share": 0.8}\n{"problem": "p5"}\n'),
        ("hits", '{"problem": "p3"}\n{"problem": "p5"}'),
        ("hits.json", '[{"problem": "p3"}, {"problem": "p5"}]'),
    ],
)
def test_excluded_problems_are_dropped_and_said(
    task: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    source = load_problems(task(f"def load(split): return {TEN}", exclude=str(file)))
    assert ids(source.problems or []) == ["p0", "p1", "p2", "p4", "p6", "p7", "p8", "p9"]
    said = capsys.readouterr().out
    assert said.endswith(f", split train: excluded 2 problems named in {file}\n")
    assert said.count("excluded 2 problems") == 1
    assert source.refused == []


def test_several_files_and_ids_that_are_not_there(
    task: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, none = tmp_path / "one", tmp_path / "two", tmp_path / "none"
    one.write_text("p1\nq1")
    two.write_text("p2\nq2\nq3")
    none.write_text("\n")
    source = load_problems(task(f"def load(split): return {TEN}", exclude=[str(one), str(two), str(none)]))
    assert len(source.problems or []) == 8
    assert f"excluded 2 problems named in {one}, {two}, {none}; 3 other ids named there are not in it" in (
        capsys.readouterr().out
    )
    source = load_problems(task(f"def load(split): return {TEN}", exclude=str(none)))
    assert len(source.problems or []) == 10
    assert f"task.exclude={none} names no problem, and nothing is excluded" in capsys.readouterr().out


def test_one_file_or_several_on_the_command_line() -> None:
    for text, expected in (("a.jsonl", ["a.jsonl"]), ("[a, b]", ["a", "b"]), ("null", None)):
        assert load_config("launch/gsm8k.yaml", [f"task.exclude={text}"]).task.exclude == expected


def test_the_limit_counts_excluded_problems_too(
    task: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ids"
    file.write_text("p1\np8")
    source = load_problems(task(f"def load(split): return {TEN}", exclude=str(file), limit=4))
    assert ids(source.problems or []) == ["p0", "p2", "p3"]
    assert "1 other id named there is not among those that task.limit leaves" in capsys.readouterr().out
    file.write_text("p8")  # named rightly, but beyond the limit: no mistake
    assert len(load_problems(task(f"def load(split): return {TEN}", exclude=str(file), limit=4)).problems or []) == 4


@pytest.mark.parametrize(
    ("content", "limit", "says"),
    [
        (
            "q1\nq2",
            None,
            r"none of the 2 ids in it is a problem of .*, whose ids are like p0, and those in it like q1;",
        ),
        ("q1", 10_000, r"none of the 1 id in it"),
        ("\n".join(f"p{i}" for i in range(10)), None, r"names all of the 10 problems of .*nothing is left; name fewer"),
        ("p0\np1", 2, r"names all of the 2 problems .*raise task\.limit"),
        ('{"id": "p1"}', None, r"ids:1 has no field 'problem'"),
        (b"\xff\xfe", None, r"ids is not UTF-8 \(byte 0\); give JSON lines"),
    ],
)
def test_exclusions_that_are_a_mistake(
    task: Write, tmp_path: Path, content: str | bytes, limit: int | None, says: str
) -> None:
    file = tmp_path / "ids"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=says):
        load_problems(task(f"def load(split): return {TEN}", exclude=str(file), limit=limit))


def test_exclusions_that_are_not_there(task: Write, tmp_path: Path) -> None:
    (tmp_path / "hits.jsonl").write_text("p1")
    body = f"def load(split): return {TEN}"
    with pytest.raises(
        UserError, match=r"task\.exclude=.*hit\.jsonl: there is no such file; did you mean .*hits\.jsonl\?"
    ):
        load_problems(task(body, exclude=str(tmp_path / "hit.jsonl")))
    with pytest.raises(UserError, match="is a folder; give a file in it"):
        load_problems(task(body, exclude=str(tmp_path)))


ENDLESS = "import itertools\ndef load(split):\n    return (Problem(f'p{i}', 't', '?', '1') for i in itertools.count())"


def test_an_endless_task_leaves_out_what_is_excluded(
    task: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ids"
    file.write_text("p1\np2\np4\np12345")
    source = load_problems(task(ENDLESS, exclude=str(file)))
    assert f"4 problems named in {file} will be excluded as they come" in capsys.readouterr().out
    stream = ProblemStream(source, 0)
    assert ids(stream.take(3)) == ["p0", "p3", "p5"]
    assert source.refused == []
    state = json.loads(json.dumps(stream.state()))
    expected = ids(stream.take(4))
    again = ProblemStream(load_problems(task(ENDLESS, exclude=str(file))), 0)
    again.restore(state)
    assert ids(again.take(4)) == expected == ["p6", "p7", "p8", "p9"]


def test_a_changed_exclusion_is_noticed_by_a_resumed_stream(task: Write, tmp_path: Path) -> None:
    one, two, moved = (tmp_path / name for name in ("one", "two", "moved"))
    one.write_text("p1\np2")
    two.write_text("p1")
    moved.write_text("p2\np1\n")
    for body in (ENDLESS, f"def load(split): return {TEN}"):
        state = ProblemStream(load_problems(task(body, exclude=str(one))), 0).state()
        ProblemStream(load_problems(task(body, exclude=str(moved))), 0).restore(state)
        for other in (task(body, exclude=str(two)), task(body)):
            with pytest.raises(UserError, match="options, limit and exclude, and the seed back as they were"):
                ProblemStream(load_problems(other), 0).restore(state)
    # a checkpoint of an endless task from before there was task.exclude
    ProblemStream(load_problems(task(ENDLESS)), 0).restore({"drawn": 3, "seed": 0})
    with pytest.raises(UserError, match=r"made with other ids in task\.exclude"):
        ProblemStream(load_problems(task(ENDLESS, exclude=str(one))), 0).restore({"drawn": 3, "seed": 0})


def test_an_endless_task_of_which_all_is_excluded_gives_up(tmp_path: Path) -> None:
    source = endless()
    source.exclusion = Exclusion("ids.txt", frozenset(f"p{i}" for i in range(3_000)))
    with pytest.raises(UserError, match=r"task\.exclude=ids\.txt names each of the last 1000 problems of task mine"):
        ProblemStream(source, 0).take(1)


# ---- streaming


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), max_size=30))),
    st.integers(0, 3),
)
def test_an_epoch_has_each_problem_once_and_a_take_none_twice(case: tuple[int, list[int]], seed: int) -> None:
    n, takes = case
    stream = ProblemStream(finite(n), seed)
    drawn: list[str] = []
    for size in takes:
        taken = ids(stream.take(size))
        assert len(taken) == size == len(set(taken))
        drawn += taken
    for start in range(0, len(drawn), n):
        assert max(Counter(drawn[start : start + n]).values()) == 1


def test_epochs_and_seeds_are_shuffled_differently_and_again_the_same() -> None:
    stream = ProblemStream(finite(100), 0)
    first, second = ids(stream.take(100)), ids(stream.take(100))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)
    assert ids(ProblemStream(finite(100), 0).take(100)) == first
    assert ids(ProblemStream(finite(100), 1).take(100)) != first


@settings(deadline=None)
@given(st.lists(st.integers(1, 7), max_size=12), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.booleans())
def test_restored_streams_continue_exactly(before: list[int], after: list[int], finished: bool) -> None:
    def make() -> ProblemStream:
        refuse = lambda p: "third" if int(p.answer) % 3 == 0 else None  # noqa: E731
        return ProblemStream(finite(7) if finished else endless(refuse), 5)

    stream = make()
    for size in before:
        stream.take(size)
    state = json.loads(json.dumps(stream.state()))
    expected = [ids(stream.take(size)) for size in after]
    again = make()
    again.restore(state)
    assert [ids(again.take(size)) for size in after] == expected
    stream.restore(state)  # also into a stream that has gone on
    assert [ids(stream.take(size)) for size in after] == expected


def test_more_prompts_than_problems() -> None:
    with pytest.raises(UserError, match=r"prompts_per_step=11 is more than the 10 problems .* set prompts_per_step=10"):
        ProblemStream(finite(10), 0).take(11)
    with pytest.raises(UserError, match="prompts_per_step=11"):
        finite(10).require(11)
    endless().require(1_000_000)


def test_restoring_far_into_an_endless_task_takes_one_pass() -> None:
    stream = ProblemStream(endless(), 0)
    began = time.perf_counter()
    stream.restore({"drawn": 200_000, "seed": 0})
    assert time.perf_counter() - began < 20
    assert ids(stream.take(1)) == ["p200000"]


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (ProblemStream(finite(9), 0).state(), "made with 9 problems of task mine, now there is 10"),
        (ProblemStream(finite(10), 1).state(), "made with seed=1"),
        (ProblemStream(endless(), 0).state(), "made with an endless task"),
    ],
)
def test_a_state_of_other_problems_is_refused(state: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ProblemStream(finite(10), 0).restore(state)


def test_a_state_of_changed_problems_is_refused() -> None:
    source = finite(10)
    state = ProblemStream(source, 0).state()
    assert source.problems is not None
    source.problems[3] = Problem("p3", "mine", "3?", "4")
    with pytest.raises(UserError, match="10, or other ones"):
        ProblemStream(source, 0).restore(state)
    with pytest.raises(UserError, match="made with a task with an end"):
        ProblemStream(endless(), 0).restore(state)


def test_an_endless_task_skips_unusable_answers_and_gives_up_when_nothing_else_comes() -> None:
    source = endless(lambda p: "small" if int(p.answer) < 3 else None)
    assert ids(ProblemStream(source, 0).take(2)) == ["p3", "p4"]
    assert len(source.refused) == 3
    with pytest.raises(UserError, match=r"none of the last 1000 answers .* such as '999': no"):
        ProblemStream(endless(lambda p: "no"), 0).take(1)


def test_an_endless_task_that_ends_says_what_to_return(task: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems_module, "PEEK", 5)
    stream = ProblemStream(load_problems(task(f"def load(split): yield from {TEN}")), 0)
    assert len(stream.take(10)) == 10
    with pytest.raises(UserError, match=r"ended after 10 problems.*return a list"):
        stream.take(1)
