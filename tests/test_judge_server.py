"""What is asked once and remembered, what it may cost, and all that a server may do, against one that does as told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from grpo_math.judging.cache import REPLIES, Cache
from grpo_math.judging.desk import Desk
from grpo_math.judging.ledger import BudgetSpent, Caps, Ledger
from grpo_math.judging.question import Question, Reply, key
from grpo_math.judging.server import GIVE_UP, Address, Server
from grpo_math.judging.verdict import Reading, Score
from grpo_math.types import EngineError, UserError
from tests.judges import (
    collect,
    judge,
    judged_texts,
    judges,
    judging_server,
    merit,
    scores,
    tops,
    with_tops,
)
from tests.test_openai_sampler import StandIn, answer, hangs, refuses, says

ROOT = Path(__file__).parents[1]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with judging_server() as stand_in:
        yield stand_in


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


def test_no_thread_is_left(server: StandIn, tmp_path: Path) -> None:
    threads = threading.active_count()
    stream = judge(server, tmp_path).hold(scores(200)[1:])
    next(stream)
    stream.close()
    assert threading.active_count() == threads
