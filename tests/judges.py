"""A judge that does as it is told, samples for it, and the commands that ask it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from grpo_math.cli import app
from grpo_math.evaluation import openai_http
from grpo_math.judging.desk import Desk
from grpo_math.judging.judge import Judge
from grpo_math.judging.ledger import Caps
from grpo_math.judging.question import Question, Reply, Talk
from grpo_math.judging.server import Address, Server
from grpo_math.judging.template import load_template
from grpo_math.judging.verdict import Reading, Score, score
from tests.test_openai_sampler import StandIn, answer

T = TypeVar("T")
VALUES = {"question": "Why?", "completion": "Because.", "gold": "42"}
TEXTS = {"a": ["good good", "bad", "bad "], "b": ["so", "la"], "c": ["x", "good x"], "d": ["only", "only"]}


@contextmanager
def judging_server() -> Iterator[StandIn]:
    """One that judges, to be asked again without a pause."""
    with StandIn() as stand_in, pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai_http, "FIRST_PAUSE_S", 0.01)
        stand_in.does = judges()
        yield stand_in


def save_judge_of_numbers(model: Any, tokenizer: Any, path: Path) -> None:
    """With random weights, but its likeliest tokens are numbers, as a judge's are."""
    head = model.get_output_embeddings().weight.data
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    scale = head.new_full((len(head), 1), 0.01)
    scale[digits] = 5.0
    head *= scale
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


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
