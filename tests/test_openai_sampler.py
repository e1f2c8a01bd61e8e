"""The OpenAI sampler: against a server that fails as it is told to, and against a real `vllm serve` on the CPU."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from transformers import Qwen2Tokenizer
from typer.testing import CliRunner

from grpo_math import config
from grpo_math.cli import app
from grpo_math.evaluation import openai_http
from grpo_math.evaluation.openai import ALL_REFUSED, OpenAISampler
from grpo_math.evaluation.openai_http import key_from, pause, retry_after
from grpo_math.evaluation.openai_request import NEUTRAL, completion_seed
from grpo_math.evaluation.sampler import Asked, Sample, until
from grpo_math.forms import Form
from grpo_math.serving.command import server_arguments, server_environment
from grpo_math.serving.process import ServerProcess
from grpo_math.small_model import small_model
from grpo_math.types import EngineError, Problem, Sampling, UserError
from tests.test_vllm_server import SHAPE, free_ports, needs_vllm, wait_for

KEY = "sk-" + "a1B2c3" * 6
Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
RAW = Form("{question}", chat=False)


class StandIn:
    """A server that goes through its `trouble` first, and then `does` what it is told. Keeps what it was asked."""

    def __init__(self) -> None:
        self.trouble: list[Handler] = []
        self.does: Handler = echo
        self.models: Any = {"data": [{"id": "tiny", "owned_by": "stand-in", "max_model_len": 512}]}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.running = self.peak = 0
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> StandIn:
        async def start() -> None:
            app = web.Application()
            app.router.add_post("/{path:.*}", self._post)
            app.router.add_get("/v1/models", self._models)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

        self.thread.start()
        asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        if isinstance(self.models, int):
            return web.Response(status=self.models, text=f"no {request.headers.get('Authorization')}")
        return web.json_response(self.models)

    async def _post(self, request: web.Request) -> web.StreamResponse:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            body = await request.json()
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path_qs)
            return await (self.trouble.pop(0) if self.trouble else self.does)(request, body)
        finally:
            self.running -= 1


def answer(text: str | None, reason: str = "stop", chat: bool = True, **more: Any) -> dict[str, Any]:
    choice = {"message": {"content": text}} if chat else {"text": text}
    return {"choices": [{"index": 0, "finish_reason": reason, **choice}], "usage": {"completion_tokens": 3}} | more


def question(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


async def echo(request: web.Request, body: dict[str, Any]) -> web.Response:
    return web.json_response(answer(f"{question(body)} {body.get('seed')}", chat="messages" in body))


def says(found: Any, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request, body: dict[str, Any]) -> web.Response:
        text = found if isinstance(found, str) else json.dumps(found)
        return web.Response(text=text, status=status, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return handler


def refuses(message: str, status: int = 400, **more: Any) -> Handler:
    return says({"error": {"message": message, **more}}, status)


async def hangs(request: web.Request, body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


async def drops(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "FIRST_PAUSE_S", 0.01)


def sampler_for(server: StandIn, **options: Any) -> OpenAISampler:
    return OpenAISampler(server.url, "tiny", **{"key": KEY, "retries": 3, "request_s": 10.0} | options)


def asks(sampler: OpenAISampler, count: int, form: Form = RAW) -> list[Asked]:
    return [sampler.ask("t", i, Problem(f"p{i}", "test", f"question {i}", "1"), form) for i in range(count)]


def collect(sampler: OpenAISampler, asked: list[Asked], **sampling: Any) -> dict[int, list[Sample]]:
    blocks = list(sampler.sample(asked, Sampling(**{"n": 2, "max_tokens": 8, "seed": 5} | sampling)))
    assert all(blocks)
    answered = [one for block in blocks for one in block]
    assert len({number for number, _ in answered}) == len(answered)
    return dict(answered)


def expected(count: int, n: int = 2, seed: int = 5) -> dict[int, list[Sample]]:
    return {
        i: [Sample(f"question {i} {completion_seed(seed, f'p{i}', k)}", 3, "stop") for k in range(n)]
        for i in range(count)
    }


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_form_decides_between_chat_and_plain_text_unless_the_sampler_does(server: StandIn) -> None:
    problem = Problem("p", "test", "Q ü?", "1")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q ü?"}]
    for form_chat, own, is_chat in [
        (None, None, True), (True, None, True), (False, None, False), (True, False, False), (False, True, True),
    ]:  # fmt: skip
        sampler = sampler_for(server, chat=own)
        asked = sampler.ask("t", 3, problem, Form("{question}", system="S", chat=form_chat, stop=("\n",)))
        assert (asked.number, asked.problem, asked.stop, asked.token_ids) == (3, problem, ("\n",), None)
        assert asked.messages == (tuple(chat) if is_chat else None)
        assert (json.loads(asked.text) == chat) if is_chat else (asked.text == "S\n\nQ ü?")
        [[sample]] = collect(sampler, [asked], n=1).values()
        assert sample.text.startswith("Q ü?" if is_chat else "S")
        assert server.paths[-1] == ("/v1/chat/completions" if is_chat else "/v1/completions")
    with pytest.raises(UserError, match="problem p: its prompt is empty"):
        sampler_for(server).ask("t", 0, Problem("p", "test", "", "1"), RAW)


def test_a_request_says_all_that_decides_the_sample(server: StandIn) -> None:
    sampler = sampler_for(server)
    asked = sampler.ask("t", 0, Problem("p", "test", "Q", "1"), Form("{question}", chat=False, stop=tuple("vwxyz")))
    sampling: dict[str, Any] = {"n": 1, "temperature": 0.6, "top_p": 0.9, "max_tokens": 77, "seed": 11}
    collect(sampler, [asked], **sampling)
    plain = {"model": "tiny", "prompt": "Q", "temperature": 0.6, "top_p": 0.9, "max_tokens": 77}
    plain |= {"seed": completion_seed(11, "p", 0), "stop": list("vwxy")}  # servers take no more than four
    assert server.bodies == [plain]
    collect(sampler, [asked], **sampling, top_k=20)
    assert server.bodies[-1] == plain | {"top_k": 20}
    # vLLM would else use what the model's generation_config.json says
    server.models = {"data": [{"id": "tiny", "owned_by": "vllm"}]}
    sampler.introduce()
    collect(sampler, [asked], **sampling)
    assert server.bodies[-1] == plain | NEUTRAL
    collect(sampler, [asked], **sampling, top_k=20)
    assert server.bodies[-1] == plain | NEUTRAL | {"top_k": 20}


def test_what_a_server_does_not_cut_is_cut_here(server: StandIn) -> None:
    sampler = sampler_for(server)
    stop = ("1", "2", "3", "4", "\nQ:")
    asked = sampler.ask("t", 0, Problem("p", "test", "Q", "1"), Form("{question}", stop=stop))
    server.does = says(answer("yes\nQ: and", "length"))
    assert collect(sampler, [asked], n=1) == {0: [Sample("yes", 3, "stop")]}
    server.does = says(answer("yes", "length"))
    assert collect(sampler, [asked], n=1) == {0: [Sample("yes", 3, "length")]}


def test_seeds_depend_on_seed_problem_and_number_alone() -> None:
    seeds = [completion_seed(s, f"p{i}", k) for s in range(5) for i in range(40) for k in range(50)]
    assert len(set(seeds)) > len(seeds) - 5  # 10,000 draws from 2**31: 0.02 collisions to be expected
    assert all(0 <= seed < 1 << 31 for seed in seeds)
    assert completion_seed(5, "p0", 0) == 903456438  # another value would be other samples for a published seed


def test_samples_do_not_depend_on_the_company(server: StandIn) -> None:
    sampler = sampler_for(server, concurrency=3)
    asked = asks(sampler, 7)
    assert collect(sampler, asked, n=3) == expected(7, 3)
    assert collect(sampler, asked[4:5], n=2) == {4: expected(7, 2)[4]}
    assert collect(sampler, asked[:1], seed=6) == expected(1, 2, 6) != expected(1, 2, 5)
    assert collect(sampler, []) == {}


# --- what an answer becomes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "sample"),
    [
        (answer("4", "length"), Sample("4", 3, "length")),
        (answer(None, "length"), Sample("", 3, "length")),  # a model that was still thinking
        (
            answer("4", "content_filter"),
            Sample("", 3, "stop", "the server ended it with finish_reason 'content_filter'"),
        ),
        (answer(None, "tool_calls"), Sample("", 3, "stop", "the server ended it with finish_reason 'tool_calls'")),
        (answer("half \ud83d"), Sample("half ?", 3, "stop")),
        (
            {
                "choices": [{"finish_reason": "stop", "message": {"content": "4", "reasoning_content": "2+2"}}],
                "usage": {"completion_tokens": 9},
            },
            Sample("4", 9, "stop"),
        ),
    ],
)
def test_answers(server: StandIn, found: dict[str, Any], sample: Sample) -> None:
    server.does = says(found)
    sampler = sampler_for(server, chat=True)
    assert collect(sampler, asks(sampler, 1), n=1) == {0: [sample]}


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}])
def test_a_server_that_does_not_count_its_tokens_is_named(server: StandIn, usage: object) -> None:
    server.does = says(answer("4", chat=False, usage=usage))
    sampler = sampler_for(server)
    with pytest.raises(UserError, match=rf"{server.url} does not say how many tokens .*usage\.completion_tokens"):
        collect(sampler, asks(sampler, 1))


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        [says("oops", 500), refuses("overloaded", 503), says("gateway", 502)],
        [says("slow down", 429, Retry_After="0.5")],
        [hangs],
        [drops, drops],
        [says('{"choices": ['), says("<html>busy</html>"), says(b"\xff".decode("latin1"))],
        [says({"choices": []}), says([]), says(answer("4", "abort", chat=False))],
        [refuses("upstream broke", 200), says({}, 408), says({}, 409)],
    ],
    ids=["5xx", "429", "hangs", "drops", "broken JSON", "no completion", "error in 200"],
)
def test_what_may_pass_is_asked_again(server: StandIn, trouble: list[Handler], request: pytest.FixtureRequest) -> None:
    server.trouble = list(trouble)
    sampler = sampler_for(server, request_s=0.5, concurrency=1)
    began = time.monotonic()
    assert collect(sampler, asks(sampler, 2)) == expected(2)
    assert len(server.bodies) == 4 + len(trouble)
    assert all(body == server.bodies[0] for body in server.bodies[: len(trouble) + 1])  # with the same seed
    waited = request.node.callspec.id in ("429", "hangs")
    assert (time.monotonic() - began > 0.5) == waited


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (refuses("overloaded", 503), "status 503: overloaded"),
        (says("<html>busy</html>"), "broken JSON: .*busy"),
        (hangs, "no answer to /completions within 1 s"),
        (drops, "/completions: "),
        (says({"choices": []}), "gave no completion"),
    ],
)
def test_what_does_not_pass_ends_the_sampling_but_loses_nothing(server: StandIn, does: Handler, words: str) -> None:
    async def until_the_third(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if question(body) == "question 2":
            server.does = does  # from now on, whatever it is asked
        return await (does if server.does is does else echo)(request, body)

    server.does = until_the_third
    sampler = sampler_for(server, concurrency=1, retries=1, request_s=1.0)
    found: dict[int, list[Sample]] = {}
    stream = sampler.sample(asks(sampler, 6), Sampling(n=2, max_tokens=8, seed=5))
    with pytest.raises(EngineError, match=f"{server.url}: problem p2 failed 2 times.*{words}.*goes on from here"):
        found.update(one for block in stream for one in block)
    assert found == expected(2)
    assert server.running == 0


@pytest.mark.parametrize("does", [says({"error": {"message": "boom"}}, 500), hangs, drops])
def test_a_problem_that_always_fails_does_not_stop_the_others(server: StandIn, does: Handler) -> None:
    async def never_the_third(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (does if question(body) == "question 2" else echo)(request, body)

    server.does = never_the_third
    sampler = sampler_for(server, concurrency=1, retries=1, request_s=1.0)
    found = collect(sampler, asks(sampler, 4))
    assert {number: samples for number, samples in found.items() if number != 2} == {
        number: samples for number, samples in expected(4).items() if number != 2
    }
    assert all(sample.failed and "problem p2 failed 2 times" in sample.failed for sample in found[2])
    # nor does one request in vain take the others of its problem with it
    seeds = [completion_seed(5, "p2", number) for number in range(2)]

    async def never_the_second(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (does if body["seed"] == seeds[1] else echo)(request, body)

    server.does = never_the_second
    found = collect(sampler, asks(sampler, 4))
    assert found[2][0] == expected(4)[2][0]
    assert found[2][1].failed
    server.does = never_the_third
    # nor where it is all that is left to do
    assert collect(sampler, asks(sampler, 3)[2:]).keys() == {2}


def test_a_pause_is_as_long_as_asked_for_and_grows_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    for header, seconds in [
        (None, 0), ("7", 7), ("0.25", 0.25), ("-3", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("999999", 120),
        (formatdate(now + 30, usegmt=True), 30), (formatdate(now - 30, usegmt=True), 0),
        (formatdate(now + 9999, usegmt=True), 120),
    ]:  # fmt: skip
        assert retry_after(header, now) == seconds, header
    monkeypatch.setattr(openai_http, "FIRST_PAUSE_S", 1.0)
    for attempt, longest in enumerate((1, 2, 4, 8, 16, 32, 60, 60)):
        drawn = [pause(attempt, 0.0) for _ in range(200)]
        assert longest / 2 <= min(drawn) < max(drawn) <= longest
        assert min(pause(attempt, 100.0) for _ in range(50)) > 100.0


@pytest.mark.parametrize(
    ("does", "kind", "words"),
    [
        (refuses("bad key", 401), UserError, "takes no request with the key in MY_KEY; .*status 401: bad key"),
        (refuses("not your model", 403), UserError, "the key in MY_KEY"),
        (refuses("gone", 404), UserError, "has the model 'tiny', but no /completions"),
        (refuses("not allowed", 405), UserError, "takes no such request .status 405: not allowed"),
        (says("", 307, Location="http://elsewhere/"), UserError, "has moved .status 307: to http://elsewhere/"),
        (refuses("empty", 402), EngineError, "no credit left .empty"),
        (refuses("Quota", 429, code="insufficient_quota"), EngineError, "no credit left .Quota.*goes on from here"),
    ],
)
def test_what_no_patience_mends_ends_at_once(server: StandIn, does: Handler, kind: type[Exception], words: str) -> None:
    server.does = does
    sampler = sampler_for(server, key_name="MY_KEY", concurrency=1)
    with pytest.raises(kind, match=f"{server.url}.*{words}"):
        collect(sampler, asks(sampler, 3))
    assert len(server.bodies) == 1


def test_a_problem_that_is_refused_is_told_and_the_others_go_on(server: StandIn) -> None:
    async def short_only(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        status = {"question 0": 400, "question 3": 422, "question 4": 403}.get(question(body))
        return await (refuses("too long", status) if status else echo)(request, body)

    server.does = short_only
    sampler = sampler_for(server, concurrency=1)
    found = collect(sampler, asks(sampler, 6))
    assert {i: found[i] for i in (1, 2, 5)} == {i: expected(6)[i] for i in (1, 2, 5)}
    for i, status in ((0, 400), (3, 422), (4, 403)):
        assert found[i] == [Sample("", 0, "stop", f"refused with status {status}: too long")] * 2
    assert len(server.bodies) == 9  # a refused problem is not asked a second time


def test_if_all_are_refused_it_is_not_the_problems(server: StandIn) -> None:
    server.does = refuses("temperature must be lower")
    for concurrency in (1, 32):
        sampler = sampler_for(server, concurrency=concurrency)
        stream = sampler.sample(asks(sampler, ALL_REFUSED + 4), Sampling(n=2, max_tokens=8))
        with pytest.raises(UserError, match=f"{server.url} refuses every problem.*temperature must be lower"):
            next(stream)  # and none of them is given out as failed before
        with pytest.raises(UserError, match=f"refuses every problem, of the first {ALL_REFUSED - 1} at least"):
            collect(sampler, asks(sampler, ALL_REFUSED - 1))


def test_fields_that_a_server_does_not_know_are_left_out_where_that_changes_nothing(
    server: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    async def newest(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        for name in ("max_tokens", "top_p", "stop"):
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                message += " Use 'max_completion_tokens' instead." * (name == "max_tokens")
                return await refuses(message, param=name, code="unsupported_parameter")(request, body)
        if body.get("temperature", 1) != 1:
            message = "Unsupported value: 'temperature' does not support 0.7 with this model."
            return await refuses(message, param="temperature", code="unsupported_value")(request, body)
        if "seed" in body:
            detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
            return await says({"detail": detail}, 422)(request, body)
        return web.json_response(answer("yes\nno"))

    server.does = newest
    sampler = sampler_for(server)
    form = Form("{question}", stop=("\n",))
    found = collect(sampler, asks(sampler, 20, form), n=1)
    assert found == {i: [Sample("yes", 3, "stop")] for i in range(20)}
    assert server.bodies[-1].keys() == {"model", "messages", "temperature", "max_completion_tokens"}
    assert server.bodies[-1]["max_completion_tokens"] == 8
    assert capfd.readouterr().err.count(f"{server.url} takes no seed") == 1
    asked, before = len(server.bodies), collect(sampler, asks(sampler, 20, form), n=1)
    assert before == found
    assert len(server.bodies) == asked + 20  # it has been learnt
    # another temperature is not the same samples
    sampler = sampler_for(server)
    with pytest.raises(UserError, match=r"'temperature' does not support 0.7"):
        collect(sampler, asks(sampler, 20, form), n=1, temperature=0.7)


# --- side by side ----------------------------------------------------------------------------------------------------


def test_no_more_are_in_flight_than_may_be_and_the_first_come_first(server: StandIn) -> None:
    async def takes_time(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await echo(request, body)

    server.does = takes_time
    sampler = sampler_for(server, concurrency=5)
    assert collect(sampler, asks(sampler, 12), n=4) == expected(12, 4)
    assert server.peak == 5
    places = [int(question(body).split()[1]) for body in server.bodies]
    assert all(max(places[: i + 1]) - place <= 1 for i, place in enumerate(places))
    with pytest.raises(UserError, match="concurrency=0"):
        sampler_for(server, concurrency=0)


def test_it_goes_on_while_its_reader_is_busy(server: StandIn) -> None:
    sampler = sampler_for(server, concurrency=2)
    stream = sampler.sample(asks(sampler, 10), Sampling(n=2, max_tokens=8, seed=5))
    found = next(stream)
    wait_for(lambda: len(server.bodies) == 20 and not server.running, 10)
    time.sleep(0.2)
    found += next(stream)
    assert dict(found) == expected(10)
    assert list(stream) == []


@pytest.mark.parametrize("how", ["close", "sampler.close", "interrupt"])
def test_nothing_is_left_in_flight_when_the_reader_stops(server: StandIn, how: str) -> None:
    async def first_only(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return await (echo if question(body) == "question 0" else hangs)(request, body)

    server.does = first_only
    sampler = sampler_for(server, concurrency=6)
    threads = threading.active_count()
    stream = sampler.sample(asks(sampler, 20), Sampling(n=2, max_tokens=8, seed=5))
    assert dict(next(stream)) == expected(1)
    wait_for(lambda: server.running == 6, 10)
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    else:
        (stream if how == "close" else sampler).close()
    assert threading.active_count() == threads
    wait_for(lambda: server.running == 0, 5)
    assert len(server.bodies) == 8
    assert list(stream) == []


# --- the address and the key -----------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown(
    server: StandIn, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    url = server.url.replace("//", "//me:pass%2Fword@") + "?api-version=1&token=tok-1234"
    masked = f"{KEY[:6]}{'*' * 20}{KEY[-4:]}"
    for status in (200, 400, 401, 404, 500, 302):
        server.does = refuses(f"no {KEY}, {masked}, pass%2Fword, pass/word or tok-1234", status)
        if status == 302:
            server.does = says("", 302, Location=f"http://me:pass%2Fword@elsewhere/{KEY}?token=tok-1234")
        sampler = OpenAISampler(url, "tiny", key=KEY, retries=1)
        try:
            shown.append(str(collect(sampler, asks(sampler, ALL_REFUSED - 1))))
        except (UserError, EngineError) as error:
            shown += [str(error), repr(error), str(error.__cause__)]
        assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
        assert server.paths[-1] == "/v1/completions?api-version=1&token=tok-1234"
        assert sampler.identity()["base_url"] == server.url
        shown += [repr(sampler), str(sampler.api), json.dumps(sampler.identity())]
    server.models = 401
    with pytest.raises(UserError, match="OPENAI_API_KEY") as refused:
        sampler.introduce()
    text = "\n".join([*shown, str(refused.value), *capfd.readouterr(), caplog.text])
    for secret in (KEY, KEY[:6], KEY[-4:], "word", "tok-1234"):
        assert secret not in text
    assert text.count("no [hidden], [hidden], [hidden], [hidden] or [hidden]") > 4


def test_a_server_without_a_key_gets_none(server: StandIn) -> None:
    sampler = OpenAISampler(server.url, "tiny", key=None)
    collect(sampler, asks(sampler, 1))
    assert all("Authorization" not in headers for headers in server.headers)
    server.does = refuses("who are you", 401)
    with pytest.raises(UserError, match="wants a key; put it into the environment variable OPENAI_API_KEY"):
        collect(sampler, asks(sampler, 1))
    server.does = echo
    sampler = OpenAISampler(server.url.replace("//", "//me:p%40ss@"), "tiny", key=None)
    collect(sampler, asks(sampler, 1))
    assert server.headers[-1]["Authorization"] == "Basic bWU6cEBzcw=="  # base64 of me:p@ss


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert key_from("MY_KEY") == KEY
    monkeypatch.setenv("MY_KEY", "")
    assert key_from("MY_KEY") is None
    monkeypatch.delenv("MY_KEY")
    assert key_from("MY_KEY") is None
    for bad in ("se cret", "se\ncret", "sécret"):
        monkeypatch.setenv("MY_KEY", bad)
        with pytest.raises(UserError, match="MY_KEY holds no key") as error:
            key_from("MY_KEY")
        assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/v1?a=b", "https://h/api/v1"),
        ("http://me:secret@[::1]:1/v1", "http://[::1]:1/v1"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert OpenAISampler(given, "m", key=None).identity()["base_url"] == url


@pytest.mark.parametrize("given", ["", "localhost:8000", "ftp://h/v1", "http://", "http://me:secret@h:99999/v1?secret"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"--base-url .* is no address of a server; give one like http") as error:
        OpenAISampler(given, "m", key=None)
    assert "secret" not in str(error.value)


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    for url, proxy in [
        ("https://api.example/v1", "http://proxy:3128"),
        ("https://inside.example/v1", None),
        ("https://localhost/v1", None),
    ]:
        assert openai_http.Api(url, None, "K", 1.0, 0)._proxy == proxy


# --- before anything is sampled --------------------------------------------------------------------------------------


def test_introduction(server: StandIn) -> None:
    sampler = sampler_for(server)
    sampler.introduce()
    assert sampler.context == 512
    assert sampler.identity() == {
        "engine": "openai",
        "base_url": server.url,
        "model": "tiny",
        "server": "stand-in",
        "server_version": None,
        "context": 512,
        "chat": None,
    }
    with pytest.raises(UserError, match=r"has no model 'tinny' .*did you mean 'tiny'\? It has tiny"):
        OpenAISampler(server.url, "tinny", key=None).introduce()
    server.does = refuses("no such model", 404)
    with pytest.raises(UserError, match=r"has no model 'other' .*no such model.*it has tiny"):
        collect(other := OpenAISampler(server.url, "other", key=None), asks(other, 1))
    for models in ({"data": []}, {"data": None}, [], 404, 405):
        server.models = models
        sampler = sampler_for(server)
        sampler.introduce()  # who lists nothing has no say
        assert sampler.context is None
    server.models = 503
    with pytest.raises(UserError, match=f"{server.url} cannot be used: /models gave status 503.*start the server"):
        sampler.introduce()


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_server_that_is_not_there_is_named(host: str) -> None:
    [port] = free_ports(1)
    sampler = OpenAISampler(f"http://{host}:{port}/v1", "tiny", key=KEY, retries=1)
    with pytest.raises(UserError, match=rf"http://{re.escape(host)}:{port}/v1 cannot be used: .*--base-url"):
        sampler.introduce()
    with pytest.raises(EngineError, match=f"{port}/v1: problem p0 failed 2 times.*goes on from here"):
        collect(sampler, asks(sampler, 1))


# --- vLLM ------------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CONTEXT = 256
CHAT = Form("{question}", system="Be brief.")


def ascii_tokenizer() -> Qwen2Tokenizer:
    """A token for each printable character, for the newline and for the end: what is sampled can be counted."""
    characters = [
        "\u010a",
        "\u0120",
        *map(chr, range(33, 127)),
    ]  # newline and blank, as byte-level tokenizers write them
    vocabulary = {token: i for i, token in enumerate(["<eos>", *characters])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<eos>", eos_token="<eos>", unk_token=None)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = ascii_tokenizer()
    small_model(SHAPE.model_copy(update={"context": CONTEXT}), tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    # what a request leaves open, vLLM takes from here; with top_k=1 all samples would be alike
    (path / "generation_config.json").write_text(json.dumps({"top_k": 1, "temperature": 0.5, "eos_token_id": 0}))
    return path


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[str]:
    [port] = free_ports(1)
    cfg = config.GRPO(run_dir=str(folder), task="arithmetic", model={"path": str(folder)})
    command = [sys.executable, "-m", "grpo_math.serving.child", "{lifeline}"]
    command += [*server_arguments(cfg, "127.0.0.1", port, cuda=False), "--generation-config", "auto"]
    command += ["--served-model-name", "tiny", "--api-key", KEY]
    url = f"http://127.0.0.1:{port}"
    process = ServerProcess(str(port), url, command, server_environment(cfg, 0, 1, []) | {"OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: process.healthy() or process.ended(), 300)
        assert not process.ended()
        yield url
    finally:
        process.ask_to_end()
        process.end(time.monotonic() + 10)


def vllm_sampler(url: str, **options: Any) -> OpenAISampler:
    sampler = OpenAISampler(url, "tiny", **{"key": KEY, "concurrency": 16} | options)
    sampler.introduce()
    return sampler


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("form", [RAW, CHAT], ids=["plain", "chat"])
def test_vllm_draws_the_same_again_and_counts_right(vllm: str, folder: Path, form: Form) -> None:
    sampler = vllm_sampler(vllm)
    asked = asks(sampler, 6, form)
    found = collect(sampler, asked, n=8, max_tokens=100)
    flat = [sample for samples in found.values() for sample in samples]
    assert [len(found[i]) for i in range(6)] == [8] * 6
    assert len({sample.text for sample in flat}) == 48  # in spite of top_k=1 in the model's own defaults
    tokenizer = ascii_tokenizer()
    for sample in flat:
        assert sample.failed is None
        assert len(tokenizer(sample.text)["input_ids"]) + (sample.finish_reason == "stop") == sample.tokens
        assert (sample.tokens == 100) >= (sample.finish_reason == "length")
    assert {sample.finish_reason for sample in flat} == {"stop", "length"}
    # the same seed gives the same samples, in other company and order; another seed others
    alone = vllm_sampler(vllm, concurrency=3)
    assert collect(alone, [asked[4], asked[1]], n=3, max_tokens=100) == {i: found[i][:3] for i in (4, 1)}
    assert collect(alone, asked[:1], n=3, max_tokens=100, seed=6)[0] != found[0][:3]


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("form", [RAW, CHAT], ids=["plain", "chat"])
def test_vllm_is_greedy_at_temperature_0(vllm: str, folder: Path, form: Form) -> None:
    from transformers import AutoModelForCausalLM

    sampler, tokenizer = vllm_sampler(vllm), ascii_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for a in asks(sampler, 3, form):
        [samples] = collect(sampler, [a], n=3, max_tokens=20, temperature=0.0).values()
        assert len({sample.text for sample in samples}) == 1
        text = a.text
        if a.messages is not None:
            text = tokenizer.apply_chat_template(list(a.messages), add_generation_prompt=True, tokenize=False)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        out = model.generate(ids, max_new_tokens=20, do_sample=False, top_k=None, temperature=None)
        assert samples[0].text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("form", [RAW, CHAT], ids=["plain", "chat"])
def test_vllm_ends_before_stop_strings(vllm: str, form: Form) -> None:
    sampler = vllm_sampler(vllm)
    stop = ("a", "b", "c", "d", "E", "\n")  # the last two are cut here
    stopping = Form(form.template, form.system, form.chat, stop)
    whole = collect(sampler, asks(sampler, 3, form), n=8, max_tokens=60)
    cut = collect(sampler, asks(sampler, 3, stopping), n=8, max_tokens=60)
    pairs = [(w, c) for i in range(3) for w, c in zip(whole[i], cut[i], strict=True)]
    for before, after in pairs:
        end = until(before.text, stop)
        assert after.text == (before.text if end is None else end)
        assert after.finish_reason == (before.finish_reason if end is None else "stop")
        asked_to_end = until(before.text, stop[:4])  # a token a character, and the one that it ended at
        assert after.tokens == (before.tokens if asked_to_end is None else len(asked_to_end) + 1)
    assert sum(before.tokens > after.tokens for before, after in pairs) > 12
    assert sum(len(after.text) + 1 < after.tokens for before, after in pairs) > 2


@needs_vllm
@pytest.mark.slow
def test_vllm_says_what_it_is_and_what_does_not_fit(vllm: str) -> None:
    import vllm as package

    sampler = vllm_sampler(vllm)
    assert sampler.context == CONTEXT
    assert sampler.identity() == {
        "engine": "openai",
        "base_url": f"{vllm}/v1",
        "model": "tiny",
        "server": "vllm",
        "server_version": package.__version__,
        "context": CONTEXT,
        "chat": None,
    }
    with pytest.raises(UserError, match=r"has no model 'tinny'.*did you mean 'tiny'"):
        OpenAISampler(vllm, "tinny", key=KEY).introduce()
    with pytest.raises(UserError, match="takes no request with the key in OPENAI_API_KEY"):
        OpenAISampler(vllm, "tiny", key="wrong").introduce()
    unseen = OpenAISampler(vllm, "tinny", key=KEY)
    with pytest.raises(UserError, match=r"has no model 'tinny' .*does not exist.*did you mean 'tiny'"):
        collect(unseen, asks(unseen, 1))
    long = sampler.ask("t", 1, Problem("long", "test", "x" * 300, "1"), RAW)
    found = collect(sampler, [*asks(sampler, 1), long], max_tokens=8)
    assert [sample.failed for sample in found[0]] == [None, None]
    assert all("status 400" in str(s.failed) and "maximum context length is 256" in str(s.failed) for s in found[1])
    # what no problem can have is not said of each of them
    greedy = vllm_sampler(vllm)
    with pytest.raises(UserError, match=r"refuses every problem.*256"):
        collect(greedy, asks(greedy, 12), max_tokens=5000)


@needs_vllm
@pytest.mark.slow
def test_the_command_measures_a_server(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", KEY)
    words = ["evaluate", "tiny", "--engine", "openai", "--base-url", f"{vllm}/v1", "--key-env", "OWN_KEY"]
    words += ["--task", "arithmetic", "--limit", "10", "-n", "4", "--k", "1,4", "--max-tokens", "20"]
    found = []
    for out in (tmp_path / "one", tmp_path / "other"):
        result = CliRunner().invoke(app, [*words, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert KEY not in result.output
        results = (out / "results.json").read_text()
        assert KEY not in results
        figures = json.loads(results)["tasks"]["arithmetic"]
        assert (figures["problems"], figures["completions"]) == (10, 40)
        assert figures["mean_tokens"] > 1
        found.append((results, (out / "samples.jsonl").read_bytes()))
    assert found[0] == found[1]
    sample = json.loads(found[0][1].splitlines()[0])
    assert json.loads(sample["prompt"])[0]["role"] == "user"
    assert len({json.loads(line)["completion"] for line in found[0][1].splitlines()}) > 35
