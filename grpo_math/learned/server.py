"""A reward model on a vLLM server: `vllm serve MODEL --runner pooling`, asked for the head's own outputs.

It gets token ids, those that a model in this process would read, and /pooling gives one number for the text (kind:
outcome) or one or two for each token (kind: process). use_activation=false: without it vLLM would answer with
probabilities of its own making. Left out: HTTP and what is tried again (evaluation/openai_http.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from grpo_math.config_learned import LearnedReward
from grpo_math.evaluation.openai_http import KEY_NAME, Api, Failed, Refused, key_from
from grpo_math.types import UserError
from grpo_math.value_input import Read

CONCURRENCY = 64  # texts that a server has at once, from each rank
REQUEST_S, RETRIES = 600.0, 6
LOOK_S = 60.0
TASKS = {"outcome": "classify", "process": "token_classify"}  # vLLM's words


class Served:
    """key: rewards.N, for messages. Raises UserError where there is no server, or it serves another model."""

    def __init__(self, reward: LearnedReward, key: str) -> None:
        assert reward.url is not None
        self.reward, self.where = reward, f"{key}.url={reward.url}"
        self.api = Api(reward.url, key_from(), KEY_NAME, REQUEST_S, RETRIES)
        self.root = self.api.url.removesuffix("/v1")
        try:
            self.served, self.context = asyncio.run(self._introduce())
        except Failed as error:
            raise UserError(
                f"{self.where} cannot be used: {error}; start it with `vllm serve {reward.model} --runner pooling`, or "
                "give another url"
            ) from None
        except Refused as error:
            raise self.api.user_error(error) from None

    def values(self, reads: Sequence[Read]) -> list[list[float]]:
        return asyncio.run(self._all(reads))

    def close(self) -> None:
        pass

    async def _introduce(self) -> tuple[str, int]:
        async with self.api.session() as http:
            found = await self.api.ask(http, "/models", within_s=LOOK_S)
        entries = found.get("data") if isinstance(found, dict) else None
        models = {str(e["id"]): e for e in entries or () if isinstance(e, dict) and "id" in e}
        name = self.reward.model if self.reward.model in models else next(iter(models), "")
        if self.reward.model not in models and len(models) != 1:
            raise UserError(f"{self.where} serves {', '.join(models) or 'no model'}, not {self.reward.model}")
        return name, int(models[name].get("max_model_len") or 1 << 30)

    async def _all(self, reads: Sequence[Read]) -> list[list[float]]:
        turns = asyncio.Semaphore(CONCURRENCY)
        async with self.api.session() as http:

            async def one(read: Read) -> list[float]:
                async with turns:
                    return await self._values(http, read)

            try:
                return list(await asyncio.gather(*map(one, reads)))
            except Refused as error:
                raise UserError(
                    f"{self.where} does not score: status {error.status}: {error}; it must serve a model of kind "
                    f"{self.reward.kind}, started with `vllm serve MODEL --runner pooling`"
                ) from None

    async def _values(self, http: aiohttp.ClientSession, read: Read) -> list[float]:
        prompt, completion = read.example.prompt.token_ids, read.example.completion.token_ids
        body = {
            "model": self.served,
            "input": [*prompt, *completion],
            "add_special_tokens": False,
            "use_activation": False,
            "encoding_format": "float",
            "task": TASKS[self.reward.kind],
        }
        outputs = await self.api.insist(http, "/pooling", body, "a score", outputs_of, self.root)
        if self.reward.kind == "outcome":
            return [self._logit(outputs)]
        if len(outputs) != len(prompt) + len(completion):
            raise UserError(
                f"{self.where} gives {len(outputs)} values for {len(prompt) + len(completion)} tokens; serve a model "
                "of kind process"
            )
        return [self._logit(outputs[len(prompt) + place]) for place in read.places]

    def _logit(self, outputs: Any) -> float:
        """What value_model.logit makes of a head's one output, or of the two of a step, wrong and right."""
        both = outputs if isinstance(outputs, list) else [outputs]
        if not 1 <= len(both) <= 2:
            raise UserError(f"{self.where} gives {len(both)} outputs where a head has one, or a step's has two")
        return float(both[-1]) - (float(both[0]) if len(both) == 2 else 0.0)


def outputs_of(answer: Any) -> list[Any]:
    """What /pooling says of the one text. Raises Failed for what is no such answer."""
    try:
        outputs = answer["data"][0]["data"]
    except (KeyError, IndexError, TypeError):
        outputs = None
    if not isinstance(outputs, list):
        raise Failed("/pooling gave an answer without scores")
    return outputs
