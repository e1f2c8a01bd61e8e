"""Judges: the numbers by hand, the files, and all that a server may do, against one that does as it is told."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import pytest
import typer
import yaml
from aiohttp import web
from typer.testing import CliRunner, Result

from grpo_math import config
from grpo_math.cli import app
from grpo_math.evaluation import openai_http
from grpo_math.examples.columns import example_of
from grpo_math.judging import verdict
from grpo_math.judging.cache import REPLIES, Cache
from grpo_math.judging.constitution import Principle, read_constitution
from grpo_math.judging.desk import Desk
from grpo_math.judging.judge import Judge
from grpo_math.judging.labels import expected, label_masses, normalised, resolved, split_label, stated
from grpo_math.judging.ledger import BudgetSpent, Caps, Ledger
from grpo_math.judging.options import Options
from grpo_math.judging.question import Question, Reply, Talk, Unreadable, key
from grpo_math.judging.revise import Revising, drawn, extracted
from grpo_math.judging.samples import asked_in
from grpo_math.judging.server import GIVE_UP, Address, Server
from grpo_math.judging.template import builtin, load_template
from grpo_math.judging.verdict import Preference, Reading, Score, prefer, score
from grpo_math.problems import load_problems
from grpo_math.scoring import Scorer, ScoringError, check_options
from grpo_math.types import EngineError, Problem, UserError
from grpo_math.verify import completion_of
from tests.test_openai_sampler import StandIn, answer, hangs, refuses, says
from tests.test_vllm_server import wait_for

T = TypeVar("T")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        stand_in.does = judges()
        yield stand_in


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "FIRST_PAUSE_S", 0.01)


def tops(probabilities: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple((token, math.log(p)) for token, p in probabilities.items())


def with_tops(probabilities: Mapping[str, float]) -> dict[str, Any]:
    told = [{"token": token, "logprob": logprob} for token, logprob in tops(probabilities)]
    found = answer("1")
    found["choices"][0]["logprobs"] = {"content": [{"token": "1", "logprob": -1.0, "top_logprobs": told}]}
    found["usage"] = {"prompt_tokens": 40, "completion_tokens": 2}
    return found


def merit(text: str) -> int:
    return text.count("good")


def judged_texts(body: Mapping[str, Any]) -> list[str]:
    """What stands under [Answer ...] in the first thing that the judge was asked."""
    asked = next(m["content"] for m in body["messages"] if m["role"] == "user")
    return re.findall(r"\[Answer[^]]*\]\n(.*?)(?=\n\n\[)", asked, re.DOTALL)


def judges(bias: float = 0.3, pause_s: float = 0.0) -> Any:
    """Likes what says "good" more often; log-odds of `bias` for what is shown first. Writes and revises too."""

    async def does(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if pause_s:
            import asyncio

            await asyncio.sleep(pause_s)
        texts, last = judged_texts(body), body["messages"][-1]["content"]
        if not body.get("logprobs"):
            text = f"<revision>\n{texts[0]} good\n</revision>" if "<revision>" in last else "It could be better."
            return web.json_response(answer(text, usage={"prompt_tokens": 40, "completion_tokens": 2}))
        if body["messages"][-1]["role"] == "assistant":  # how does it go on after "1"?
            return web.json_response(with_tops({"<eos>": 0.9, "0": 0.001}))
        if len(texts) == 1:
            return web.json_response(with_tops({str(min(9, 1 + merit(texts[0]))): 0.9, "\n": 0.05}))
        p = 1 / (1 + math.exp(merit(texts[1]) - merit(texts[0]) - bias))
        return web.json_response(with_tops({"1": 0.8 * p, "2": 0.8 * (1 - p)}))

    return does


def through(talk: Talk[T], replies: Callable[[Question], Reply]) -> T:
    """The outcome of a talk with a judge that is a function."""
    try:
        question = next(talk)
        while True:
            question = talk.send(replies(question))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


# --- numbers by hand -------------------------------------------------------------------------------------------------


def test_probabilities_of_labels() -> None:
    labels = ["7", "8", "10"]
    top = tops({"7": 0.2, " 7": 0.1, "8\n": 0.15, "▁10": 0.05, "10": 0.1, "seven": 0.2, "77": 0.1})
    masses = label_masses(top, labels)
    assert masses == pytest.approx({"7": 0.3, "8": 0.15, "10": 0.15})
    found = normalised(masses, top, 0.5)
    assert found == pytest.approx({"7": 0.5, "8": 0.25, "10": 0.25})
    assert expected(found) == pytest.approx(0.5 * 7 + 0.25 * 8 + 0.25 * 10)
    with pytest.raises(Unreadable, match=r"probability of 0.6 together, less than 0.7; .*'7' 0.200, 'seven' 0.200"):
        normalised(masses, top, 0.7)
    with pytest.raises(Unreadable, match="probability of 0 together"):
        normalised(label_masses((), labels), (), 0.0)


def test_a_ten_of_two_tokens_is_told_from_a_one() -> None:
    labels = [str(i) for i in range(1, 11)]
    masses = label_masses(tops({"1": 0.5, "9": 0.3}), labels)
    assert split_label(masses) == "1"
    # behind the "1": a 0 makes 10, another digit no score at all, the rest ends the number
    found = resolved(masses, "1", tops({"0": 0.6, "5": 0.1, "<eos>": 0.2, " 0": 0.05}))
    assert (found["10"], found["1"], found["9"]) == pytest.approx((0.3, 0.15, 0.3))
    assert split_label(label_masses(tops({"1": 0.5, "10": 0.01}), labels)) is None  # 10 is a token
    assert split_label(label_masses(tops({"1": 0.005, "9": 0.9}), labels)) is None  # not worth a question
    assert split_label(label_masses(tops({"1": 0.5, "2": 0.5}), labels[:9])) is None  # a scale without a 10

    asked = []

    def replies(question: Question) -> Reply:
        asked.append(question.begins)
        return Reply(top=tops({"0": 0.6, ".": 0.4} if question.begins else {"1": 0.5, "9": 0.5}))

    found_score = through(score(load_template("score"), VALUES, Reading()), replies)
    assert found_score.value == pytest.approx(0.5 * 9 + 0.5 * (0.6 * 10 + 0.4 * 1))
    assert asked == ["", "1"]


VALUES = {"question": "Why?", "completion": "Because.", "gold": "42"}


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Score: 7", "7"), ("fine.\n**Score:** 10\n", "10"), ("score = 3.", "3"), ("Score: 2, no: Score: 8/10", "8"),
        ("Score: **9**", "9"), ("<think>Score: 1</think> Score: 4", "4"),
        ("Score: 7.5", None), ("Score: 11", None), ("Score: 8/5", None), ("Score: 7 Score: high", None), ("7", None),
        ("Score:", None), ("Score: 70%", None), ("underscore: 5", None), ("", None), ("Score: 0", None),
        ("Score: -3", None), ("Score: 7abc", None),
    ],
)  # fmt: skip
def test_scores_are_read_strictly(text: str, label: str | None) -> None:
    found = through(score(load_template("score"), VALUES, Reading("text")), lambda q: Reply(text))
    assert found.value == (None if label is None else int(label))
    assert bool(found.why) == (label is None)
    with pytest.raises(Unreadable, match="none of 1, 2, tie"):
        stated("Better: 3", "better", ["1", "2", "tie"])
    assert stated("Better: 1\nBetter: TIE", "better", ["1", "2", "tie"]) == "tie"


def test_both_orders_are_asked_and_averaged() -> None:
    def biased(question: Question) -> Reply:
        a, b = judged_texts({"messages": question.messages})
        return Reply(top=tops({"1": 0.63, "2": 0.07} if merit(a) >= merit(b) else {"1": 0.28, " 2": 0.42}))

    template = load_template("prefer")

    def judged(a: str, b: str) -> Preference:
        return through(prefer(template, VALUES, a, b, Reading()), biased)

    better = judged("good", "bad")
    assert better.orders == pytest.approx((0.9, 0.6))
    assert better.probability == pytest.approx(0.75)
    assert judged("bad", "good").probability == pytest.approx(0.25)
    assert judged("so", "la").probability == pytest.approx(0.5)  # always the first: a bias, no preference
    by_text = {"x": "Better: 1", "y": "Better: tie"}

    def writes(question: Question) -> Reply:
        return Reply(by_text[judged_texts({"messages": question.messages})[0]])

    assert through(prefer(template, VALUES, "x", "y", Reading("text")), writes).probability == 0.75
    by_text["y"] = "I cannot decide."
    found = through(prefer(template, VALUES, "x", "y", Reading("text")), writes)
    assert (found.probability, found.orders) == (None, None)
    assert "I cannot decide" in found.why


def test_reasons_come_first_and_without_the_thoughts() -> None:
    asked: list[Question] = []

    def replies(question: Question) -> Reply:
        asked.append(question)
        return Reply(top=tops({"7": 0.5, "8": 0.5})) if question.top else Reply("<think>hm</think>It is short.")

    reading = Reading(reason=True, max_tokens=99, temperature=0.5, seed=3)
    assert through(score(load_template("score"), VALUES, reading), replies) == Score(7.5)
    first, second = asked
    assert (first.max_tokens, first.temperature, first.seed, first.top) == (99, 0.5, 3, 0)
    # no system turn: there are chat templates that refuse one
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[:1] == first.messages
    assert second.messages[1]["content"] == "It is short."
    assert "Reply with the number" in second.messages[2]["content"]
    empty = through(score(load_template("score"), VALUES, reading), lambda q: Reply("<think>hm</think> "))
    assert "gave no reasons" in empty.why
    cut = through(score(load_template("score"), VALUES, Reading("text", max_tokens=5)), lambda q: Reply("no", cut=True))
    assert cut.why.startswith("it was cut at its limit; there is no")
    failed = through(score(load_template("score"), VALUES, Reading()), lambda q: Reply(failed="no server"))
    assert failed == Score(None, "no server")


# --- templates and constitutions -------------------------------------------------------------------------------------

MINE = """kind: score
system: You judge.
scale: [1, 5]
prompt: "Q {question} A {completion} \\\\boxed{{x}}"
reason: why
verdict: "{lowest} to {highest}?"
text: "Score: N"
"""


def test_templates(tmp_path: Path) -> None:
    assert builtin() == ["clair", "constitutional", "prefer", "prefer_math", "score", "score_math"]
    assert builtin("score") == ["score", "score_math"]
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    template = load_template(str(path), "score")
    # what is put in is not read again
    filled = template.fill("prompt", {"question": "{completion}", "completion": "{x} {{ }", "gold": ""})
    assert filled == "Q {completion} A {x} {{ } \\boxed{x}"
    assert template.scale == (1, 5)
    asked: list[Question] = []

    def replies(question: Question) -> Reply:
        asked.append(question)
        return Reply(top=tops({"5": 0.5, "1": 0.5}))

    assert through(score(template, VALUES, Reading()), replies).value == 3.0
    assert asked[0].messages == (
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "Q Why? A Because. \\boxed{x}\n\n1 to 5?"},
    )
    with pytest.raises(UserError, match=r"score_math: its prompt has \{gold\} in it, and there is none"):
        load_template("score_math").fill("prompt", {"question": "Q", "completion": "c"})
    assert load_template("score", rubric="Be brief.").rubric == "Be brief."


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{completion}", "", r"prompt lacks \{completion\}, so the judge would not see it"),
        ("{completion}", "{completion} {compltion}", "which is no placeholder; did you mean {completion}"),
        ("{{x}}", "{x", "prompt: .*; write {{ and }}"),
        ("{{x}}", "{}", "write {NAME} alone"),
        ("{question}", "{question!r}", r"\{question!r\} in it; write \{NAME\} alone"),
        ("reason: why", "reasons: why", "no key 'reasons'; did you mean reason"),
        ("reason: why\n", "", "reason=None; write the words there"),
        ("[1, 5]", "[5, 1]", r"scale=\[5, 1\]; give whole numbers"),
        ("[1, 5]", "[1, 40]", "at most 20 of them"),
        ("kind: score", "kind: mark", "kind='mark'; choose one of score, preference, revision"),
        ("kind: score", "kind: preference", "is of kind preference|no key 'scale'"),
        ("kind: score", "kind: [", "is not readable YAML"),
        ("why", "'{rubric}'", r"has \{rubric\} in it and no rubric"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_template_is_told_with_its_file(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(old, new, 1))
    with pytest.raises(UserError, match=f"template {re.escape(str(path))}.*({words})"):
        load_template(str(path), "score")


def test_templates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="template scor: there is no such template; did you mean score"):
        load_template("scor", "score")
    with pytest.raises(UserError, match="there is no such file"):
        load_template(str(tmp_path / "none.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    with pytest.raises(UserError, match=r"it has no \{rubric\} for the rubric"):
        load_template(str(path), "score", rubric="Be brief.")
    with pytest.raises(UserError, match="it is of kind score, and preference is needed; choose prefer, prefer_math"):
        load_template("score", "preference")


def test_constitutions(tmp_path: Path) -> None:
    lines, listed = tmp_path / "a.txt", tmp_path / "a.yaml"
    lines.write_text("# ours\nBe kind.\n\n  Be brief: always.\n")
    assert [p.critique for p in read_constitution(lines).principles] == ["Be kind.", "Be brief: always."]
    listed.write_text("- Be kind.\n- {critique: Where is it rude, revision: Make it kind.}\n")
    both = read_constitution(listed).principles
    assert both == (Principle("Be kind.", "Be kind."), Principle("Where is it rude", "Make it kind."))
    listed.write_text("- Be kind.\n- {critique: Where is it rude}\n")
    with pytest.raises(UserError, match=r"a.yaml, entry 2: .*write a text, or a mapping with critique and revision"):
        read_constitution(listed)
    for text in ("", "# nothing\n"):
        lines.write_text(text)
        with pytest.raises(UserError, match="has no principles"):
            read_constitution(lines)
    with pytest.raises(UserError, match="cannot be read"):
        read_constitution(tmp_path / "none.txt")
    with pytest.raises(Unreadable, match="no <revision>"):
        extracted("Here it is.", "tag")
    assert extracted("<revision>a</revision> no, <revision>\nb\n</revision>", "tag") == "b"
    assert extracted("all of it", "whole") == "all of it"


# --- cache and ledger ------------------------------------------------------------------------------------------------

QUESTION = Question(({"role": "user", "content": "hm \ud83d"},), 5, 0.5, 1)
WRITER = """
import sys
from pathlib import Path
from grpo_math.judging.cache import Cache
from grpo_math.judging.ledger import Caps, Ledger
from grpo_math.judging.options import Options
from grpo_math.judging.question import Reply
cache, ledger = Cache(Path(sys.argv[1])), Ledger(Path(sys.argv[1]) / "ledger.json", Caps(), ("a", "b"))
for i in range(int(sys.argv[2]), int(sys.argv[3])):
    ledger.pay()
    cache.put(f"{i:064x}", Reply(f"reply {i} " + "x" * 5000, tokens=i))
    ledger.add(1)
"""


def test_many_processes_share_a_cache_and_a_ledger(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(a), str(a + 150)], env=environment)
        for a in (0, 100, 200)  # they overlap
    ]
    reader = Cache(tmp_path)
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len((tmp_path / REPLIES).read_bytes().splitlines()) == 450
    for i in range(350):
        found = reader.get(f"{i:064x}")
        assert found is not None
        assert (found.text[:10].split()[1], found.tokens) == (str(i), i)
    assert len(Cache(tmp_path)) == len(reader) == 350
    counts = Ledger(tmp_path / "ledger.json", Caps(), ("a", "b")).counts()
    assert (counts.requests, counts.tokens) == (450, 450)


def test_a_line_that_a_kill_has_torn_is_skipped(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    kept = Reply("first\nüber", tops({"1": 0.5}), 7, True)
    cache.put("aa", kept)
    with (tmp_path / REPLIES).open("ab") as stream:
        stream.write(b'{"key": "bb", "text": "ha')
    again = Cache(tmp_path)
    assert again.get("bb") is None
    again.put("bb", Reply("whole"))
    for one in (cache, again, Cache(tmp_path)):  # the first has to look again, too
        assert one.get("aa") == kept
        assert one.get("bb") == Reply("whole")
    assert len(Cache(tmp_path)) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="replies cannot be kept there"):
        Cache(tmp_path / "file")


def test_a_reply_is_remembered_under_all_that_decides_it() -> None:
    model = {"model": "m"}
    keys = {key(model, QUESTION), key({"model": "n"}, QUESTION)}
    messages = ({"role": "user", "content": "ha"},)
    for change in (
        Question(messages, 5, 0.5, 1), Question(QUESTION.messages, 6, 0.5, 1), Question(QUESTION.messages, 5, 0.6, 1),
        Question(QUESTION.messages, 5, 0.5, 2), Question(QUESTION.messages, 5, 0.5, 1, 20),
        Question(QUESTION.messages, 5, 0.5, 1, 0, "1"),
    ):  # fmt: skip
        keys.add(key(model, change))
    assert len(keys) == 8
    assert key(model, QUESTION) == key({"model": "m"}, QUESTION)


def test_the_ledger_spaces_requests_and_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    one, other = (Ledger(path, Caps(requests_per_minute=600), ("a", "b")) for _ in range(2))
    assert [round(ledger.pay(), 1) for ledger in (one, other, one, other)] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    one.add(50)
    for caps, words in ((Caps(requests=4), "4 requests of --r=4"), (Caps(tokens=50), "50 tokens of --t=50")):
        with pytest.raises(BudgetSpent, match=f"{words}, .*the same command goes on from here"):
            Ledger(path, caps, ("--r", "--t")).pay()
    assert Ledger(path, Caps(requests=5, tokens=51), ("--r", "--t")).pay() == 0.0
    path.write_text("{}")
    with pytest.raises(UserError, match="is no ledger of a judge"):
        one.pay()


# --- a server that does as it is told --------------------------------------------------------------------------------


def judge(server: StandIn, folder: Path, caps: Caps = Caps(), **options: Any) -> Server:  # noqa: B008
    settings: dict[str, Any] = {"retries": 3, "request_s": 10.0, "concurrency": 4} | options
    return Server(Address(server.url, "tiny", **settings), Desk(folder, caps))


def scores(count: int, reading: Reading = Reading()) -> list[Talk[Score]]:  # noqa: B008
    template = load_template("score")
    return [score(template, {"question": "Why?", "completion": "good " * i + "."}, reading) for i in range(count)]


def collect(judge: Judge, talks: list[Talk[T]], found: dict[int, T] | None = None) -> dict[int, T]:
    """found: is filled as outcomes come, for what ends early."""
    found = {} if found is None else found
    for block in judge.hold(talks):
        found.update(block)
    return found


def test_a_server_is_asked_once_for_each_question(server: StandIn, tmp_path: Path) -> None:
    server.does = judges(pause_s=0.05)
    one = judge(server, tmp_path)
    found = collect(one, scores(6))
    assert found[0].value == pytest.approx((0.999 * 1 + 0.001 * 10) / 1, abs=1e-9)
    assert [found[i].value for i in range(1, 6)] == [2.0, 3.0, 4.0, 5.0, 6.0]
    # the "1" of the first may begin a 10: one more question
    assert len(server.bodies) == 7
    begun = [body for body in server.bodies if "continue_final_message" in body]
    assert [body["messages"][-1] for body in begun] == [{"role": "assistant", "content": "1"}]
    assert begun[0]["add_generation_prompt"] is False
    body = server.bodies[1]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"], body["temperature"]) == (True, 20, 1, 1.0)
    assert 2 <= server.peak <= 4
    assert collect(judge(server, tmp_path), scores(6)) == found
    assert len(server.bodies) == 7
    counts = one.desk.ledger.counts()
    assert (counts.requests, counts.tokens) == (7, 7 * 42)
    other = judge(server, tmp_path, extra={"chat_template_kwargs": {"enable_thinking": False}})
    assert collect(other, scores(3)) == {i: found[i] for i in range(3)}
    assert len(server.bodies) == 11  # what is asked in another way is asked again
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_ten_that_cannot_be_asked_for_is_an_error(server: StandIn, tmp_path: Path) -> None:
    does = server.does

    async def no_beginnings(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (refuses("unknown argument") if "continue_final_message" in body else does)(request, body)

    server.does = no_beginnings
    found = collect(judge(server, tmp_path), scores(2))
    assert found[1].value == 2.0
    assert found[0].value is None
    assert re.search(r"status 400: unknown argument; .*tell 1 from 10: read the score from the text", found[0].why)


@pytest.mark.parametrize(
    "trouble",
    [[says("oops", 500), refuses("overloaded", 503)], [hangs], [says("<html>busy</html>"), says({"choices": []})]],
    ids=["5xx", "hangs", "garbage"],
)
def test_what_may_pass_is_asked_again(server: StandIn, tmp_path: Path, trouble: list[Any]) -> None:
    server.trouble = list(trouble)
    found = collect(judge(server, tmp_path, request_s=0.5), scores(4)[1:])
    assert [found[i].value for i in range(3)] == [2.0, 3.0, 4.0]
    assert len(server.bodies) == 3 + len(trouble)


def test_one_question_that_always_fails_is_an_error_and_no_zero(server: StandIn, tmp_path: Path) -> None:
    does = server.does

    async def never_the_third(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (says("boom", 500) if merit(judged_texts(body)[0]) == 2 else does)(request, body)

    server.does = never_the_third
    found = collect(judge(server, tmp_path, retries=1), scores(5))
    assert found[2].value is None
    assert "a question to the judge failed 2 times, the last time so: /chat/completions gave status 500" in found[2].why
    assert [found[i].value for i in (1, 3, 4)] == [2.0, 4.0, 5.0]
    server.does = does  # and is asked again the next time, alone
    before = len(server.bodies)
    assert collect(judge(server, tmp_path), scores(5))[2].value == 3.0
    assert len(server.bodies) == before + 1


def test_a_server_that_is_gone_ends_it_and_loses_nothing(server: StandIn, tmp_path: Path) -> None:
    does = server.does

    async def then_none(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (does if merit(judged_texts(body)[0]) < 4 else says("boom", 500))(request, body)

    server.does = then_none
    found: dict[int, Score] = {}
    with pytest.raises(EngineError, match=f"failed 1 times.*{GIVE_UP} questions in a row"):
        collect(judge(server, tmp_path, retries=0, concurrency=1), scores(40), found)
    assert [found[i].value for i in range(1, 4)] == [2.0, 3.0, 4.0]
    assert found[0].value == pytest.approx(1.009)
    assert len(Cache(tmp_path)) == 5


@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        (refuses("bad key", 401), UserError, "wants a key; put it into the environment variable OPENAI_API_KEY"),
        (refuses("logprobs are off"), UserError, "refuses every question; the last so: logprobs are off"),
        (says(answer("7")), UserError, "does not tell the probabilities of tokens .*read the verdict from the text"),
        (refuses("empty", 402), EngineError, "no credit left"),
    ],
)
def test_what_no_patience_mends_ends_at_once(
    server: StandIn, tmp_path: Path, does: Any, kind: type[Exception], words: str
) -> None:
    server.does = does
    with pytest.raises(kind, match=words):
        collect(judge(server, tmp_path, concurrency=1), scores(30))
    assert len(server.bodies) <= GIVE_UP


def test_garbage_is_an_error_for_each_completion(server: StandIn, tmp_path: Path) -> None:
    server.does = says(with_tops({"Well": 0.9, "7": 0.01}))
    found = collect(judge(server, tmp_path), scores(3))
    assert all(s.value is None and "'Well' 0.900" in s.why for s in found.values())
    server.does = says(answer("I would rather not."))
    found = collect(judge(server, tmp_path), scores(3, Reading("text")))
    assert all(s.value is None and 'there is no "score: ..."' in s.why for s in found.values())


def test_the_models_that_a_server_has(server: StandIn, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no model 'large'; it has tiny"):
        Server(Address(server.url, "large"), Desk(tmp_path, Caps())).introduce()
    alone = Server(Address(server.url), Desk(tmp_path, Caps()))
    alone.introduce()
    assert alone.identity["model"] == "tiny"
    server.models = {"data": [{"id": "a"}, {"id": "b"}]}
    with pytest.raises(UserError, match=r"has 2 models \(a, b\); say which one is to judge"):
        Server(Address(server.url), Desk(tmp_path, Caps())).introduce()
    with pytest.raises(UserError, match=r"judge's server http://127.0.0.1:9/v1 cannot be used"):
        Server(Address("http://127.0.0.1:9"), Desk(tmp_path, Caps())).introduce()


def test_a_spent_budget_ends_it_and_keeps_what_it_paid_for(server: StandIn, tmp_path: Path) -> None:
    found: dict[int, Score] = {}
    with pytest.raises(BudgetSpent, match="5 requests of --max-requests=5"):
        collect(judge(server, tmp_path, Caps(requests=5)), scores(12)[1:], found)
    assert len(found) == len(server.bodies) == 5
    rest = collect(judge(server, tmp_path, Caps(requests=11)), scores(12)[1:])
    assert [rest[i].value for i in range(11)] == [min(9.0, i + 2.0) for i in range(11)]
    assert len(server.bodies) == 11
    spent = judge(server, tmp_path, Caps(requests=11, tokens=1))
    assert collect(spent, scores(12)[1:]) == rest  # what is there costs nothing
    with pytest.raises(BudgetSpent, match="tokens of --max-total-tokens=1"):
        collect(judge(server, tmp_path, Caps(tokens=1)), scores(13))


def test_requests_a_minute(server: StandIn, tmp_path: Path) -> None:
    began = time.monotonic()
    collect(judge(server, tmp_path, Caps(requests_per_minute=600)), scores(8)[1:])
    assert 0.55 < time.monotonic() - began < 5  # the seventh, 600 ms after the first


# --- the verifier ----------------------------------------------------------------------------------------------------


def items(count: int) -> list[Any]:
    return [(Problem(f"p{i}", "t", "Why?", ""), completion_of("good " * i + ".")) for i in range(1, count)]


def scorer(options: dict[str, Any], workers: int = 1) -> Scorer:
    scoring = config.Scoring(workers=workers, timeout_s=0.2, max_error_share=0.5)
    return Scorer([config.Reward(verifier="judge", options=options)], scoring)


def test_the_verifier_in_the_workers_of_training(server: StandIn, tmp_path: Path) -> None:
    server.does = judges(pause_s=0.5)  # longer than scoring.timeout_s: the judge's own patience counts
    options = {"url": server.url, "cache": str(tmp_path / "cache"), "reward": "signed", "correct_from": 0.3}
    with scorer(options, workers=2) as one:
        scored = one.score([*items(4), (Problem("e", "t", "Why?", ""), completion_of(" "))])
    rewards = [2 * (s - 1) / 9 - 1 for s in (2, 3, 4)]
    assert [s.reward for s in scored] == pytest.approx([*rewards, -1.0])
    assert [s.verdict.reason for s in scored] == ["wrong", "wrong", "correct", "no_answer"]
    assert scored[0].verdict.detail == "tiny gives 2.000 from 1 to 10"
    assert len(server.bodies) == 3
    with scorer({**options, "reward": "unit"}) as other:  # in new processes, from the disk
        assert [s.reward for s in other.score(items(4))] == pytest.approx([(s - 1) / 9 for s in (2, 3, 4)])
    assert len(server.bodies) == 3


def test_a_judge_that_fails_is_an_error_verdict(server: StandIn, tmp_path: Path) -> None:
    server.does = says("boom", 500)
    options = {"url": server.url, "cache": str(tmp_path / "cache"), "retries": 0}
    with scorer(options) as one, pytest.raises(ScoringError, match=r"judge tiny: .*gave status 500") as raised:
        one.score(items(4))
    assert [(s.reward, s.verdict.reason) for s in raised.value.scored] == [(None, "error")] * 3
    server.does = says(with_tops({"Well": 0.9}))
    with scorer(options) as one, pytest.raises(ScoringError, match=r"the labels 1, 2, .* have a probability of 0"):
        one.score(items(4))
    server.does = judges()
    with scorer({**options, "max_requests": 7}) as one, pytest.raises(ScoringError, match="of max_requests=7"):
        one.score(items(6))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tempearture": 1}, "no option 'tempearture'; did you mean temperature"),
        ({"read": "tokens"}, "read='tokens': give logprobs or text"),
        ({"retries": -1}, "retries=-1: give a whole number from 0"),
        ({"reason": "yes"}, "reason='yes': give true or false"),
        ({"min_mass": 2}, "min_mass=2: give a number from 0 to 1"),
        ({"url": 8000}, "url=8000: give a text"),
        ({"url": "localhost"}, "judge: url 'localhost' is no address of a server; give one like http"),
        ({"request_field": "a"}, "request_field='a': give a mapping"),
        ({"template": "prefer"}, "it is of kind preference, and score is needed"),
        ({"rubric": "none.txt"}, "rubric none.txt cannot be read"),
    ],
)
def test_options_of_the_verifier(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Scorer([config.Reward(verifier="judge", options=options)], config.Scoring())
    Scorer([config.Reward(verifier="judge", options={"model": None, "max_requests": None, "temperature": 1})],
           config.Scoring()).close()  # fmt: skip


# --- label -----------------------------------------------------------------------------------------------------------


def write_samples(path: Path, texts: Mapping[str, list[str]], **more: Any) -> Path:
    rows = [
        {"task": "t", "problem": problem, "prompt": f"{problem}?", "completion": text, "reward": None, "gold": "1",
         "reason": "unknown", "finish_reason": "stop", **more}
        for problem, some in texts.items()
        for text in some
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TEXTS = {"a": ["good good", "bad", "bad "], "b": ["so", "la"], "c": ["x", "good x"], "d": ["only", "only"]}


def test_label_writes_pairs_that_trainers_take(server: StandIn, tmp_path: Path) -> None:
    samples, out = write_samples(tmp_path / "samples.jsonl", TEXTS), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "2 pairs -> " in result.output
    assert "3 comparisons: 2 pairs, 1 ties; " in result.output
    rows = lines(out)
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in rows] == [
        ("a?", "good good", "bad"), ("c?", "good x", "x"),
    ]  # fmt: skip
    odds = [1 / (1 + math.exp(-2 - s * 0.3)) for s in (1, -1)]
    assert rows[0]["probability"] == pytest.approx(sum(odds) / 2, abs=1e-6)
    assert rows[0]["orders_differ"] == pytest.approx(odds[0] - odds[1], abs=2e-6)
    assert rows[0]["chosen_source"] == f"{samples}:1"
    for row in rows:
        pair = example_of("preference", row, "here")
        assert [c.text for c in pair.completions] == [row["chosen"], row["rejected"]]
        assert [c.reward for c in pair.completions] == [row["probability"], pytest.approx(1 - row["probability"])]
    summary = json.loads((tmp_path / "pairs.jsonl.summary.json").read_text())
    assert summary["made"] == {
        "comparisons": 3, "pairs": 2, "ties": 1, "failed": 0, "not_asked": 0, "contradicted": 1,
        "first_shown": summary["made"]["first_shown"],
    }  # fmt: skip
    assert 0.5 < summary["made"]["first_shown"] < 0.6  # the stand-in's bias shows, and is averaged out of the pairs
    assert summary["judge"]["model"] == "tiny"
    assert summary["judge"]["template"] == "prefer"
    assert summary["output"]["lines"] == 2
    before, asked = out.read_bytes(), len(server.bodies)
    assert asked == 6
    assert call(*words).exit_code == 0
    assert (out.read_bytes(), len(server.bodies)) == (before, 6)
    # neither the order of the lines nor other problems change what is compared
    turned = write_samples(tmp_path / "turned.jsonl", {p: some[::-1] for p, some in reversed(TEXTS.items())})
    assert call("label", turned, *words[2:-1], tmp_path / "b.jsonl", "--cache", f"{out}.judge").exit_code == 0
    assert len(server.bodies) == 6
    assert {(r["chosen"], r["probability"]) for r in lines(tmp_path / "b.jsonl")} == {
        (r["chosen"], r["probability"]) for r in rows
    }


def test_label_with_a_budget(server: StandIn, tmp_path: Path) -> None:
    texts = {f"p{i:02}": ["good", "bad"] for i in range(10)}
    samples, out = write_samples(tmp_path / "samples.jsonl", texts), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--concurrency", 1]
    result = call(*words, "--max-requests", 7)
    assert result.exit_code == 2
    assert "budget is spent: 7 requests of --max-requests=7" in result.output
    assert "3 of 10 comparisons are made; --partial writes those" in result.output
    assert not out.exists()
    result = call(*words, "--max-requests", 7, "--partial")
    assert result.exit_code == 0, result.output
    assert "7 not asked" in result.output
    assert [row["problem"] for row in lines(out)] == ["p00", "p01", "p02"]
    assert call(*words, "--max-requests", 20).exit_code == 0
    assert (len(lines(out)), len(server.bodies)) == (10, 20)


def test_label_refuses_what_it_cannot_use(server: StandIn, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples.jsonl", {"a": ["x", "x "]})
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", tmp_path / "pairs.jsonl"]
    assert "no problem has two different completions" in call(*words).output
    write_samples(samples, {"a": ["so", "la"]})
    result = call(*words)
    assert result.exit_code == 2
    assert "no pair is left: 1 comparisons: 0 pairs, 1 ties" in result.output
    server.does = says(with_tops({"Well": 0.9}))
    assert (
        "first that failed: the labels 1, 2 have a probability of 0" in call(*words, "--cache", tmp_path / "c").output
    )
    assert "--engine openai and --base-url URL go together" in call(*words, "--engine", "hf").output
    assert "is one of the inputs" in call(*words[:-1], samples).output
    assert "kind score, and preference is needed" in call(*words, "--template", "score").output
    assert "name the task with --task" in call(*words, "--path", samples).output


def test_questions_are_taken_from_where_they_are(server: StandIn, tmp_path: Path) -> None:
    assert asked_in('[{"role": "system", "content": "s"}, {"role": "user", "content": "Q?"}]') == "Q?"
    assert asked_in("[{1, 2}] = ?") == "[{1, 2}] = ?"
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "What is 2 + 3?", "answer": "so\n#### 5"}) + "\n")
    out = tmp_path / "pairs.jsonl"
    samples = write_samples(tmp_path / "s.jsonl", {"gsm8k/train/1": ["good", "bad"]}, question="From the sample?")
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out]
    assert call(*words).exit_code == 0
    assert "From the sample?" in server.bodies[-1]["messages"][0]["content"]
    assert call(*words, "--task", "gsm8k", "--path", data).exit_code == 0
    assert "What is 2 + 3?" in server.bodies[-1]["messages"][0]["content"]
    write_samples(samples, {"gsm8k/test/1": ["good", "bad"]})
    result = call(*words, "--task", "gsm8k", "--path", data)
    assert "s.jsonl:1: problem='gsm8k/test/1' is not one of --task; give the task, --path and --split" in result.output


def test_label_killed_goes_on_where_it_was(server: StandIn, tmp_path: Path) -> None:
    server.does = judges(pause_s=0.05)
    texts = {f"p{i:02}": ["good", "bad"] for i in range(40)}
    samples, out = write_samples(tmp_path / "samples.jsonl", texts), tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--concurrency", 2]
    command = [sys.executable, "-m", "grpo_math", *map(str, words)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: len(server.bodies) >= 20, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: server.running == 0, 5)
    assert not out.exists()
    asked = len(server.bodies)
    assert asked < 80
    assert call(*words).exit_code == 0
    assert 80 <= len(server.bodies) <= 80 + 2 + 2  # what was on its way is asked again, and nothing else
    assert len(lines(out)) == 40
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


# --- revise ----------------------------------------------------------------------------------------------------------


def test_revise_writes_what_sft_and_pairs_need(server: StandIn, tmp_path: Path) -> None:
    samples, law = write_samples(tmp_path / "samples.jsonl", TEXTS), tmp_path / "law.txt"
    law.write_text("Be kind.\nBe brief.\nBe true.\n")
    out, pairs = tmp_path / "sft.jsonl", tmp_path / "pairs.jsonl"
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--constitution", law]
    words += ["--rounds", 2, "--out", out, "--pairs", pairs]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "7 revisions -> " in result.output
    rows = lines(out)
    assert [(r["prompt"], r["completion"]) for r in rows[:3]] == [
        ("a?", "good good good good"), ("a?", "bad good good"), ("b?", "so good good"),
    ]  # fmt: skip
    assert rows[1]["original"] == "bad"
    assert rows[1]["critiques"] == ["It could be better."] * 2
    assert {p for r in rows for p in r["principles"]} == {"Be kind.", "Be brief.", "Be true."}
    assert (rows[0]["problem"], rows[0]["task"], rows[0]["gold"]) == ("a", "t", "1")
    example_of("sft", rows[0], "here")
    for row, pair in zip(rows, lines(pairs), strict=True):
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (row["prompt"], row["completion"], row["original"])
        example_of("preference", pair, "here")
    # the second turn has the critique before it, and the principle that was drawn
    turns = next(b["messages"] for b in server.bodies if len(b["messages"]) == 3)
    assert [m["role"] for m in turns] == ["user", "assistant", "user"]
    assert len(server.bodies) == 7 * 2 * 2
    before = out.read_bytes()
    assert call(*words).exit_code == 0
    assert (out.read_bytes(), len(server.bodies)) == (before, 28)
    summary = json.loads((tmp_path / "sft.jsonl.summary.json").read_text())
    assert summary["constitution"]["principles"] == 3
    assert summary["made"] == {"completions": 7, "revised": 7, "unchanged": 0, "failed": 0, "not_asked": 0}


def test_revisions_are_samples_that_a_verifier_judges(server: StandIn, tmp_path: Path) -> None:
    problems = load_problems(config.Task(name="arithmetic", split="test", limit=2)).problems
    assert problems
    answers = {p.id: [f"\\boxed{{{p.answer}}}"] for p in problems}
    samples, out = write_samples(tmp_path / "s.jsonl", answers, task="arithmetic"), tmp_path / "sft.jsonl"
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--out", out, "--constitution"]
    (tmp_path / "law.txt").write_text("Be kind.\n")
    assert call(*words, tmp_path / "law.txt").exit_code == 0
    words = ["evaluate", "--samples", out, "--task", "arithmetic", "--limit", 2, "--out", tmp_path / "verified"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    kept = tmp_path / "kept.jsonl"
    assert call("filter", tmp_path / "verified" / "samples.jsonl", "--to", "sft", "--out", kept).exit_code == 0
    assert [r["completion"] for r in lines(kept)] == [f"{some[0]} good" for some in answers.values()]
    assert [r["prompt"] for r in lines(kept)] == [f"{name}?" for name in answers]


def test_revise_fails_one_by_one_and_leaves_out_what_is_unchanged(server: StandIn, tmp_path: Path) -> None:
    async def does(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        [text] = re.findall(r"\[Solution\]\n(.*?)\n\n\[", body["messages"][0]["content"], re.DOTALL)
        if len(body["messages"]) == 1:
            return web.json_response(answer("Hm."))
        last = {"x": "no tags", "y": "<revision>y</revision>", "z": "<revision>z!</revision>"}[text]
        return web.json_response(answer(last, "length" if text == "w" else "stop"))

    server.does = does
    samples = write_samples(tmp_path / "s.jsonl", {"a": ["x", "y", "z"]})
    words = ["revise", samples, "--judge", "tiny", "--base-url", server.url, "--template", "clair"]
    words += ["--out", tmp_path / "sft.jsonl", "--pairs", tmp_path / "pairs.jsonl"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "3 completions, 2 revised, 1 unchanged, 1 failed" in result.output
    assert "first that failed: the answer has no <revision>" in result.output
    assert [row["completion"] for row in lines(tmp_path / "sft.jsonl")] == ["y", "z!"]
    assert [row["chosen"] for row in lines(tmp_path / "pairs.jsonl")] == ["z!"]
    assert "brings no principles of its own; give --constitution" in call(*words, "--template", "constitutional").output
    assert "is --out too" in call(*words[:-1], tmp_path / "sft.jsonl").output


def test_principles_are_drawn_by_the_seed() -> None:
    from grpo_math.filtering.candidate import Candidate

    law = [Principle(str(i), str(i)) for i in range(4)]
    candidates = [Candidate("f", i, "t", f"p{i}", "q", "c", None, "unknown") for i in range(300)]
    found = [drawn(law, c, Revising(rounds=2, seed=1)) for c in candidates]
    assert found == [drawn(law, c, Revising(rounds=2, seed=1)) for c in candidates]
    assert found != [drawn(law, c, Revising(rounds=2, seed=2)) for c in candidates]
    counts = [sum(p.critique == str(i) for some in found for p in some) for i in range(4)]
    assert min(counts) > 110  # of 150 each on average


# --- a model in this process -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("model"), context=2048)


def test_transformers_tell_the_models_own_probabilities(folder: Path, tmp_path: Path) -> None:
    import torch

    from grpo_math.evaluation.hf import HFSampler
    from grpo_math.judging import local
    from grpo_math.judging.local import Local, rendered, top_tokens

    sampler = HFSampler(str(folder), 3, "float32", "cpu")
    questions = [Question(({"role": "user", "content": "a" * n},), top=5, begins="1" * (n % 2)) for n in (1, 9, 40)]
    prompts = [rendered(question, sampler.policy.tokenizer) for question in questions]
    assert sampler.policy.tokenizer.decode(list(prompts[0])) == "a\n\n1"
    found = top_tokens(sampler, prompts, 5)
    for ids, top in zip(prompts, found, strict=True):
        with torch.no_grad():
            alone = sampler.policy.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, best = alone.topk(5)
        assert [p for _, p in top] == pytest.approx(values.tolist(), abs=1e-5)
        assert [t for t, _ in top] == [sampler.policy.tokenizer.decode([i]) for i in best.tolist()]
    local.TOKENS_AT_ONCE, whole = 1, local.TOKENS_AT_ONCE
    try:
        for one, other in zip(top_tokens(sampler, prompts, 5), found, strict=True):
            assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)
    finally:
        local.TOKENS_AT_ONCE = whole

    short = Local(sampler, str(folder), Desk(tmp_path / "cache", Caps(requests=8)))
    any_mass = Reading(min_mass=0.0)
    judged: dict[int, Score] = {}
    with pytest.raises(BudgetSpent):
        collect(short, scores(9, any_mass), judged)
    again = Local(sampler, str(folder), Desk(tmp_path / "cache", Caps()))
    complete = collect(again, scores(9, any_mass))
    assert sorted(complete) == list(range(9))
    assert judged.items() <= complete.items()
    assert again.desk.kept >= 8
    again.tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(UserError, match=r"chat template does not take .*no system here.*leave it out of the template"):
        collect(again, [one_question(Question(({"role": "system", "content": "s"},), top=5))])
    again.tokenizer.chat_template = None
    long = Question(({"role": "user", "content": "a" * 3000},), top=5)
    [[(_, outcome)]] = again.hold([one_question(long)])
    assert "do not fit into the model's context of 2048" in str(outcome.failed)


def one_question(question: Question) -> Talk[Reply]:
    reply = yield question
    return reply


def test_commands_with_a_model_in_this_process(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "TOP", 256)  # random weights: neither 1 nor 2 is among the likeliest 20
    samples = write_samples(tmp_path / "s.jsonl", {"a": ["good", "bad"], "b": ["x", "y"]})
    out = tmp_path / "pairs.jsonl"
    words = ["label", samples, "--judge", folder, "--engine", "hf", "--out", out, "--tie", 0, "--min-mass", 0]
    words += ["--reason", "--max-tokens", 8, "--temperature", 1]
    result = call(*words, "--device", "cpu")
    assert result.exit_code == 0, result.output
    before = out.read_bytes()
    (tmp_path / "pairs.jsonl.judge" / REPLIES).unlink()
    assert call(*words, "--device", "cpu", "--max-rows", 1).exit_code == 0
    assert [row["chosen"] for row in lines(out)] == [json.loads(line)["chosen"] for line in before.splitlines()]
    result = call(*words, "--requests-per-minute", 5)
    assert "--requests-per-minute is for --engine openai; leave it out" in result.output


def test_what_the_document_says_can_be_typed() -> None:
    text = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in shell.splitlines() if line.startswith("grpo-math ")]
    assert {words[1] for words in commands} >= {"label", "revise", "verify", "evaluate", "train"}
    root: Any = typer.main.get_command(app)
    for _, *words in commands:
        parsed = root.make_context("grpo-math", list(words))
        name, command, rest = root.resolve_command(parsed, words)
        command.make_context(name, rest, parent=parsed)
    table = text.partition("\n## The verifier\n")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert named == {f.name for f in fields(Options)}
    for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for reward in yaml.safe_load(block)["rewards"]:
            if isinstance(reward, dict):
                check_options(config.Reward(**reward))


def test_no_thread_is_left(server: StandIn, tmp_path: Path) -> None:
    threads = threading.active_count()
    stream = judge(server, tmp_path).hold(scores(200)[1:])
    next(stream)
    stream.close()
    assert threading.active_count() == threads
