"""Samples from any server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, OpenAI itself and many more.

One request per completion, so that each has a seed of its own and a failure costs one of them. Left out: what is in a
request and an answer (openai_request.py), HTTP and what is tried again (openai_http.py).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import aiohttp

from grpo_math.evaluation.background import in_background
from grpo_math.evaluation.openai_http import KEY_NAME, Api, Failed, GaveUp, Refused
from grpo_math.evaluation.openai_request import CHAT, PLAIN, request, sample_of, unknown_fields
from grpo_math.evaluation.sampler import Answered, Asked, Sample
from grpo_math.forms import Form
from grpo_math.prompts import messages
from grpo_math.types import Problem, Sampling, UserError

LOOK_S = 60.0  # for each question before anything is sampled
ALL_REFUSED = 8  # refused problems from the first on, and none answered: it is not the problems
OF_THE_PROBLEM = frozenset({400, 413, 422})  # a prompt that is too long, say


class OpenAISampler:
    """Completions of `model` at `base_url`, which has the API's root, as in http://localhost:8000/v1.

    key: sent as a Bearer token; key_name: where it comes from, for messages. concurrency: requests in flight.
    request_s: seconds for each. retries: times that a request is made again. chat: None as the prompt's form says, a
    form that leaves it open being a chat; True or False for all.

    A completion's text is what the model answered. The thoughts that some servers take out of it (`reasoning`,
    `reasoning_content`) are not in the text, but their tokens are counted, by the server's `usage`. Servers take four
    stop strings; at the others it is cut here, and the tokens after them are counted too.

    Seeds make vLLM draw the same again; other servers promise less, and one that refuses a seed is asked without, which
    is told on stderr."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None,
        key_name: str = KEY_NAME,
        concurrency: int = 32,
        request_s: float = 600.0,
        retries: int = 6,
        chat: bool | None = None,
    ) -> None:
        if concurrency < 1:
            raise UserError(f"concurrency={concurrency} would ask for nothing; set 1 or more")
        self.api = Api(base_url, key, key_name, request_s, retries)
        self.model, self.concurrency, self.chat = model, concurrency, chat
        self.context: int | None = None
        self.answered = False  # whether any request was
        self._server: str | None = None
        self._version: str | None = None
        self._without: set[str] = set()  # fields that the server does not know
        self._running: Generator[list[Answered], None, None] | None = None

    def introduce(self) -> None:
        """Learns what the server says of itself. UserError where it is not there, or has no such model."""
        try:
            asyncio.run(self._introduce())
        except Failed as error:
            raise UserError(
                f"{self.api.url} cannot be used: {error}; start the server, or give another --base-url"
            ) from None

    async def _introduce(self) -> None:
        async with self.api.session() as http:
            models = await self._models(http)
            if models and self.model not in models:
                raise self._no_model(list(models), "it is not in /models")
            entry = models.get(self.model, {})
            context, self._server = entry.get("max_model_len"), entry.get("owned_by")
            self.context = context if isinstance(context, int) else None
            self._version = await self._version_of(http)

    async def _models(self, http: aiohttp.ClientSession) -> dict[str, dict[str, Any]]:
        """What /models lists, by name; empty where the server does not have that end point."""
        try:
            answer = await self.api.ask(http, "/models", within_s=LOOK_S)
        except Refused as error:
            if error.status in (404, 405):
                return {}
            raise self.api.user_error(error) from None
        entries = answer.get("data") if isinstance(answer, dict) else None
        return {str(e["id"]): e for e in entries or () if isinstance(e, dict) and "id" in e}

    async def _version_of(self, http: aiohttp.ClientSession) -> str | None:
        """vLLM's, beside the API's root."""
        try:
            answer = await self.api.ask(http, "/version", within_s=LOOK_S, root=self.api.url.removesuffix("/v1"))
        except (Failed, Refused):
            return None
        version = answer.get("version") if isinstance(answer, dict) else None
        return version if isinstance(version, str) else None

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked:
        if (form.chat if self.chat is None else self.chat) is not False:
            chat = messages(form, problem)
            return Asked(task, number, problem, json.dumps(chat, ensure_ascii=False), None, tuple(chat), form.stop)
        text = form.plain(problem)
        if not text:
            raise UserError(f"problem {problem.id}: its prompt is empty; give it a question")
        return Asked(task, number, problem, text, stop=form.stop)

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered], None, None]:
        """Begins with the first problems, and holds on to as many requests at once as it may. Raises EngineError where
        the server fails for good, UserError where it refuses what every problem has in common."""
        self._running = in_background(_Round(self, asked, sampling).run)
        return self._running

    def identity(self) -> dict[str, Any]:
        return {
            "engine": "openai",
            "base_url": self.api.url,
            "model": self.model,
            "server": self._server,
            "server_version": self._version,
            "context": self.context,
            "chat": self.chat,
        }

    def close(self) -> None:
        """Ends what is still being sampled."""
        if self._running is not None:
            self._running.close()
            self._running = None

    async def one(self, http: aiohttp.ClientSession, asked: Asked, sampling: Sampling, number: int) -> Sample | str:
        """Completion `number` of a problem, or why the server refuses the problem."""
        path = PLAIN if asked.messages is None else CHAT
        while True:
            body = request(self.model, asked, sampling, number, self._server, self._without)
            try:
                sample = await self.api.insist(
                    http,
                    path,
                    body,
                    f"problem {asked.problem.id}",
                    lambda answer: sample_of(answer, asked, self.api.url),
                )
            except Refused as error:
                unknown = unknown_fields(body, error.body)
                if not unknown or error.status not in OF_THE_PROBLEM:
                    return await self._no(http, error, path)
                self._go_without(unknown)
            except GaveUp as error:
                if not await self._samples_others(http, asked, sampling):
                    raise
                return Sample("", 0, "stop", str(error))
            else:
                self.answered = True
                return sample

    async def _samples_others(self, http: aiohttp.ClientSession, asked: Asked, sampling: Sampling) -> bool:
        """Whether the server answers the shortest of questions: then it is the problem that it cannot answer."""
        short = None if asked.messages is None else ({"role": "user", "content": "1"},)
        least = replace(asked, text="1", messages=short, stop=())
        body = request(self.model, least, replace(sampling, max_tokens=1), 0, self._server, self._without)
        try:
            answer = await self.api.ask(http, PLAIN if short is None else CHAT, body, within_s=LOOK_S)
            sample_of(answer, least, self.api.url)
        except (Failed, Refused):
            return False
        return True

    def _go_without(self, fields: set[str]) -> None:
        if "seed" in fields - self._without:
            sys.stderr.write(f"{self.api.url} takes no seed: the same command will not draw the same samples again\n")
        self._without |= fields

    async def _no(self, http: aiohttp.ClientSession, error: Refused, path: str) -> str:
        """Why this one problem is refused; UserError where every problem would be."""
        # 403 is said of keys, and by some of a question that they would rather not answer
        if error.status in OF_THE_PROBLEM or (error.status == 403 and self.answered):
            return f"refused with status {error.status}: {error}"
        if error.status != 404:
            raise self.api.user_error(error) from None
        models = await self._listed(http)
        if self.model in models:
            raise UserError(f"{self.api.url} has the model {self.model!r}, but no {path} ({error})") from None
        raise self._no_model(list(models), str(error)) from None

    async def _listed(self, http: aiohttp.ClientSession) -> dict[str, dict[str, Any]]:
        try:
            return await self._models(http)
        except Failed:
            return {}

    def _no_model(self, models: list[str], said: str) -> UserError:
        close = get_close_matches(self.model, models, 1, 0.5)
        mend = f"did you mean {close[0]!r}? It has " if close else "it has "
        mend += ", ".join(models[:20]) + (f" and {len(models) - 20} more" if len(models) > 20 else "")
        if not models:
            mend = "give the name that the server has for it, or another --base-url"
        return UserError(f"{self.api.url} has no model {self.model!r} ({said}); {mend}")


class _Round:
    """One call of `sample`: workers that each take the next completion to be asked for."""

    def __init__(self, sampler: OpenAISampler, asked: Sequence[Asked], sampling: Sampling) -> None:
        self.sampler, self.asked, self.sampling = sampler, asked, sampling
        self.jobs = iter([(place, number) for place in range(len(asked)) for number in range(sampling.n)])
        self.samples: list[dict[int, Sample]] = [{} for _ in asked]
        self.refused: dict[int, str] = {}  # by place: why
        self.held: list[Answered] = []  # refused, and nothing answered yet: it may not be the problem

    async def run(self, put: Callable[[Answered], None]) -> None:
        self.put = put
        try:
            async with self.sampler.api.session() as http, asyncio.TaskGroup() as workers:
                for _ in range(min(self.sampler.concurrency, len(self.asked) * self.sampling.n)):
                    workers.create_task(self._work(http))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        self._let_go()

    async def _work(self, http: aiohttp.ClientSession) -> None:
        for place, number in self.jobs:
            if place in self.refused:
                continue
            asked = self.asked[place]
            sample = await self.sampler.one(http, asked, self.sampling, number)
            if place in self.refused:
                continue
            if isinstance(sample, str):
                self.refused[place] = sample
                given, failed = self.samples[place], Sample("", 0, "stop", sample)
                self.held.append((asked.number, [given.get(i, failed) for i in range(self.sampling.n)]))
                self._check_first()
            else:
                self.samples[place][number] = sample
                if len(self.samples[place]) == self.sampling.n:
                    self.put((asked.number, [self.samples[place][i] for i in range(self.sampling.n)]))
            if self.sampler.answered:
                self._let_go()

    def _let_go(self) -> None:
        for answered in self.held:
            self.put(answered)
        self.held.clear()

    def _check_first(self) -> None:
        first = min(ALL_REFUSED, len(self.asked))
        if not self.sampler.answered and all(place in self.refused for place in range(first)):
            raise UserError(
                f"{self.sampler.api.url} refuses every problem, of the first {first} at least; the first was "
                f"{self.refused[0]}. Mend what it names"
            )
