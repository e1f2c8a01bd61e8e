"""A judge behind an OpenAI-compatible URL: vLLM, SGLang, OpenAI and others. Free of torch, for the verifier.

HTTP, and what is tried again, are the evaluation's (evaluation/openai_http.py). Left out: what is asked (verdict.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import aiohttp

from grpo_math.evaluation.background import in_background
from grpo_math.evaluation.openai_http import KEY_NAME, Api, Failed, GaveUp, Refused, key_from
from grpo_math.evaluation.openai_request import CHAT, PLAIN, request, sample_of, unknown_fields
from grpo_math.evaluation.sampler import Asked
from grpo_math.judging.desk import Desk
from grpo_math.judging.ledger import BudgetSpent
from grpo_math.judging.question import Question, Reply, Talk, key, plain
from grpo_math.types import EngineError, Problem, Sampling, UserError

T = TypeVar("T")

LOOK_S = 60.0
GIVE_UP = 8  # questions in vain, one after the other and no reply between: it is not the questions
OF_THE_QUESTION = frozenset({400, 413, 422})  # too long, say
NO_BEGINNING = (
    "; it was asked how a number goes on after its first digit (continue_final_message), to tell 1 from 10: read the "
    "score from the text, or take a template with the scale [1, 9]"
)


@dataclass(frozen=True)
class Address:
    """Where a judge is and how it is asked. model: None for the only one that the server has. chat: False for a model
    without a chat template. extra: further fields of each request, such as
    {"chat_template_kwargs": {"enable_thinking": False}}; they are part of what a reply is remembered under."""

    url: str
    model: str | None = None
    key_env: str = KEY_NAME
    concurrency: int = 32
    request_s: float = 120.0
    retries: int = 6
    chat: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


class Server:
    """Raises UserError for an address, a key or a model that cannot be used."""

    def __init__(self, address: Address, desk: Desk) -> None:
        if address.concurrency < 1:
            raise UserError(f"concurrency={address.concurrency} would ask for nothing; set 1 or more")
        self.address, self.desk = address, desk
        self.api = Api(address.url, key_from(address.key_env), address.key_env, address.request_s, address.retries)
        self.model = address.model
        self._owner: str | None = None  # by which /models tells what the server is
        self._without: set[str] = set()  # fields that the server does not know
        self._in_vain = 0
        self._answered = False
        self._turn = asyncio.Lock()

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a reply, besides the question. Not the URL: the same model may be served elsewhere."""
        return {"model": self.model, "chat": self.address.chat, "extra": dict(self.address.extra)}

    def introduce(self) -> None:
        """Learns what the server is, and its model where none was named. Raises UserError where it is not there."""
        try:
            asyncio.run(self._introduce())
        except Failed as error:
            raise UserError(
                f"the judge's server {self.api.url} cannot be used: {error}; start it, or mend the URL"
            ) from None

    async def _introduce(self) -> None:
        async with self.api.session() as http:
            try:
                answer = await self.api.ask(http, "/models", within_s=LOOK_S)
            except Refused as error:
                if error.status not in (404, 405):
                    raise self.api.user_error(error) from None
                answer = {}
        entries = answer.get("data") if isinstance(answer, dict) else None
        owners = {str(e["id"]): e.get("owned_by") for e in entries or () if isinstance(e, dict) and "id" in e}
        names = ", ".join(list(owners)[:20]) or "none that it would name"
        if self.model is None:
            if len(owners) != 1:
                raise UserError(f"{self.api.url} has {len(owners)} models ({names}); say which one is to judge")
            [self.model] = owners
        elif owners and self.model not in owners:
            raise UserError(f"{self.api.url} has no model {self.model!r}; it has {names}")
        self._owner = owners.get(self.model)

    def hold(self, talks: Iterable[Talk[T]]) -> Generator[list[tuple[int, T]], None, None]:
        """The outcomes by the talks' places, as they come. Raises BudgetSpent once all that was under way is kept,
        EngineError where the server fails for good, UserError where it takes no request at all."""
        if self.model is None:
            self.introduce()
        return in_background(_Round(self, talks).run)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        self._turn = asyncio.Lock()  # it belongs to the event loop
        async with self.api.session() as http:
            yield http

    async def reply(self, http: aiohttp.ClientSession, question: Question) -> Reply:
        known = self.desk.known(self.identity, question)
        if known is not None:
            return known
        async with self._turn:  # one at a time, or a kill would leave many turns taken that nobody used
            await asyncio.sleep(self.desk.pay())
        reply = await self._ask(http, question)
        self.desk.keep(self.identity, question, reply)
        return reply

    async def _ask(self, http: aiohttp.ClientSession, question: Question) -> Reply:
        asked = self._asked(question)
        path = CHAT if self.address.chat else PLAIN
        while True:
            body = self._body(question, asked)
            try:
                reply = await self.api.insist(
                    http, path, body, "a question to the judge", lambda found: self._read(found, question, asked)
                )
            except Refused as error:
                unknown = unknown_fields(body, error.body)
                if not unknown or error.status not in OF_THE_QUESTION:
                    return self._no(question, error)
                self._without |= unknown
            except GaveUp as error:
                self._in_vain += 1
                if self._in_vain >= GIVE_UP:
                    raise EngineError(f"{error} ({self._in_vain} questions in a row)") from None
                return Reply(failed=str(error))
            else:
                self._in_vain, self._answered = 0, True
                return reply

    def _asked(self, question: Question) -> Asked:
        """In the evaluation's words; the problem's id seeds the sampling."""
        problem = Problem(key({}, question), "judge", "", "")
        messages = question.messages
        if not self.address.chat:
            return Asked("judge", 0, problem, plain(messages) + question.begins)
        if question.begins:
            messages = (*messages, {"role": "assistant", "content": question.begins})
        return Asked("judge", 0, problem, "", messages=messages)

    def _body(self, question: Question, asked: Asked) -> dict[str, Any]:
        assert self.model is not None
        sampling = Sampling(1, question.max_tokens, question.temperature, seed=question.seed)
        body = request(self.model, asked, sampling, 0, self._owner, self._without)
        if question.top:
            body |= (
                {"logprobs": True, "top_logprobs": question.top} if self.address.chat else {"logprobs": question.top}
            )
        if question.begins and self.address.chat:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | dict(self.address.extra)

    def _read(self, answer: Any, question: Question, asked: Asked) -> Reply:
        sample = sample_of(answer, asked, self.api.url)
        if sample.failed is not None:
            return Reply(failed=sample.failed)
        prompt_tokens = answer["usage"].get("prompt_tokens")
        tokens = (sample.tokens or 0) + (prompt_tokens if isinstance(prompt_tokens, int) else 0)
        top = _top(answer, self.address.chat, self.api.url) if question.top else ()
        return Reply("" if question.top else sample.text, top, tokens, sample.finish_reason == "length")

    def _no(self, question: Question, error: Refused) -> Reply:
        """Why this one question is refused; UserError where every one would be."""
        # 403 is said of keys, and by some of a question that they would rather not answer
        if error.status not in OF_THE_QUESTION and not (error.status == 403 and self._answered):
            raise self.api.user_error(error) from None
        self._in_vain += 1
        if self._in_vain >= GIVE_UP and not self._answered:
            raise UserError(f"{self.api.url} refuses every question; the last so: {error}. Mend what it names")
        told = f"{self.api.url} refuses the question with status {error.status}: {error}"
        return Reply(failed=told + (NO_BEGINNING if question.begins else ""))


def _top(answer: Any, chat: bool, url: str) -> tuple[tuple[str, float], ...]:
    """The likeliest first tokens. Raises UserError for a server that does not tell them."""
    try:
        found = answer["choices"][0]["logprobs"]
        if chat:
            return tuple((str(each["token"]), float(each["logprob"])) for each in found["content"][0]["top_logprobs"])
        return tuple((str(token), float(logprob)) for token, logprob in found["top_logprobs"][0].items())
    except (KeyError, TypeError, ValueError, IndexError):
        raise UserError(
            f"{url} does not tell the probabilities of tokens (logprobs, top_logprobs); read the verdict from the text "
            "(--read text, or read=text of the verifier)"
        ) from None


class _Round(Generic[T]):
    """One call of `hold`: workers that each take the next talk and see it through."""

    def __init__(self, server: Server, talks: Iterable[Talk[T]]) -> None:
        self.server, self.talks = server, iter(enumerate(talks))
        self.spent: BudgetSpent | None = None

    async def run(self, put: Callable[[tuple[int, T]], None]) -> None:
        try:
            async with self.server.session() as http, asyncio.TaskGroup() as workers:
                for _ in range(self.server.address.concurrency):
                    workers.create_task(self._work(http, put))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if self.spent is not None:
            raise self.spent

    async def _work(self, http: aiohttp.ClientSession, put: Callable[[tuple[int, T]], None]) -> None:
        for place, talk in self.talks:
            try:
                put((place, await _through(self.server, http, talk)))
            except BudgetSpent as error:
                self.spent = error  # the others may still be answered, or find what they ask in the cache
                talk.close()


async def _through(server: Server, http: aiohttp.ClientSession, talk: Talk[T]) -> T:
    try:
        question = next(talk)
        while True:
            question = talk.send(await server.reply(http, question))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def outcome(server: Server, talk: Talk[T]) -> T:
    """Of one talk, at once and in this thread."""

    async def alone() -> T:
        async with server.session() as http:
            return await _through(server, http, talk)

    return asyncio.run(alone())
