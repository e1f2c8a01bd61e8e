"""One vLLM server as seen by a trainer: the end points of vLLM that are used, and what can go wrong with each.

Weights are named by a label that vLLM keeps itself, stamps on every token it samples, and loses when it is started
again: `full/RUN.SERIAL/VERSION`, or `adapter/...` where it is an adapter beside the weights it started with. Left out:
which server does what (fleet.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from grpo_math.types import FinishReason, UserError

SUPPORTED = "0.32."
LOADING = "loading "
ADAPTER, FULL = "adapter/", "full/"
CONNECT_S = 10.0
REMEDY = "start the servers with `grpo-math serve CONFIG` and set rollout.server.urls to what it prints"


class ServerError(Exception):
    """What a server did instead of what it was asked for."""


class Unreachable(ServerError):
    """No connection, or no answer in time."""


class Refused(ServerError):
    """It understood, and says no. status: HTTP's, 4xx or 5xx."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Stale(ServerError):
    """It sampled with other weights than it should have."""


class Aborted(ServerError):
    """Somebody stopped what it was sampling, in order to give it weights."""


@dataclass(frozen=True)
class Weights:
    """What servers are to sample from. path: where to read it; None where it reaches them by another way."""

    label: str
    path: Path | None

    @property
    def adapter(self) -> str | None:
        """The name that requests give for it; the label without what a name may not have."""
        return self.label.replace("/", "-") if self.label.startswith(ADAPTER) else None


@dataclass(frozen=True)
class Facts:
    """What a server says of itself. max_sequences: how many it samples side by side."""

    dtype: str
    context: int
    max_sequences: int
    world_size: int


@dataclass(frozen=True)
class Sampled:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version: int


class Server:
    """trouble: why it is out of use, None where it is in use; kept between generations, so that each is told once."""

    def __init__(self, url: str, request_s: float) -> None:
        self.url, self.request_s = url, request_s
        self.trouble: str | None = None
        self.facts = Facts("float32", 1 << 30, 1, 1)

    async def ask(
        self,
        http: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        within_s: float | None = None,
    ) -> Any:
        """The answer, read as JSON where that is what it is, else as text; ServerError where there is none."""
        seconds = self.request_s if within_s is None else min(within_s, self.request_s)
        limit = aiohttp.ClientTimeout(total=seconds, connect=min(CONNECT_S, seconds))
        try:
            async with http.request(method, f"{self.url}{path}", json=body, timeout=limit) as answer:
                text, plain = await answer.text(), answer.content_type != "application/json"
        except TimeoutError as error:
            raise Unreachable(f"did not answer {path} within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"could not be asked for {path}: {str(error) or type(error).__name__}") from error
        if answer.status != 200:
            raise Refused(f"answers {path} with status {answer.status}: {_message(text)}", answer.status)
        try:
            return text if plain else json.loads(text)
        except ValueError as error:
            raise ServerError(f"answers {path} with broken JSON: {text[:80]!r}") from error

    async def label(self, http: aiohttp.ClientSession, within_s: float | None = None) -> str:
        """The weights that it says it has; `default` where it has been given none since it was started."""
        answer = await self.ask(http, "GET", "/weight_info", within_s=within_s)
        if not isinstance(answer, dict) or not isinstance(answer.get("weight_version"), str):
            raise ServerError(f"answers /weight_info with {str(answer)[:80]!r}")
        return str(answer["weight_version"])

    async def set_label(self, http: aiohttp.ClientSession, label: str) -> None:
        await self.ask(http, "POST", "/update_weight_version", {"new_version": label})

    async def pause(self, http: aiohttp.ClientSession) -> None:
        """Ends what it samples, for nobody waits for it any more, and forgets the cached prefixes of old weights."""
        await self.ask(http, "POST", "/pause?mode=abort")

    async def resume(self, http: aiohttp.ClientSession) -> None:
        await self.ask(http, "POST", "/resume")

    async def load(self, http: aiohttp.ClientSession, weights: Weights, by: str) -> None:
        """Read weights.path. Stopped anywhere on the way, it has a label that is nobody's, and is not used."""
        before = await self.label(http)
        assert weights.path is not None
        if weights.adapter and before.removeprefix(LOADING).startswith(FULL):
            raise ServerError(
                f"has weights of another run ({before}) below the adapter; end it and start it again, or set "
                "model.lora.sync=merged"
            )
        await self.pause(http)
        await self.set_label(http, f"{LOADING}{weights.label} by {by}")
        try:
            if weights.adapter:
                await self._load_adapter(http, weights.adapter, weights.path)
            else:
                call = {"method": "reload_weights", "kwargs": {"weights_path": str(weights.path)}}
                await self.ask(http, "POST", "/collective_rpc", call)
        except Refused as error:
            raise Refused(
                f"could not load {weights.path}: {error}; trainer and servers must see the same rollout.server.folder, "
                "and serve the same model",
                error.status,
            ) from error
        answer = await self.ask(http, "POST", "/reset_prefix_cache")
        if not (isinstance(answer, dict) and answer.get("success")):
            raise ServerError("did not forget the cached prefixes of its old weights")
        await self.set_label(http, weights.label)
        await self.resume(http)

    async def _load_adapter(self, http: aiohttp.ClientSession, name: str, path: Path) -> None:
        models = await self.ask(http, "GET", "/v1/models")
        for old in [m["id"] for m in models["data"] if m["id"].startswith(ADAPTER.replace("/", "-"))]:
            await self.ask(http, "POST", "/v1/unload_lora_adapter", {"lora_name": old})
        await self.ask(http, "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    async def sample(
        self, http: aiohttp.ClientSession, token_ids: tuple[int, ...], sampling: Mapping[str, Any], weights: Weights
    ) -> list[Sampled]:
        """sampling: vLLM's SamplingParams. ServerError for anything but sampling["n"] completions of `weights`."""
        body: dict[str, Any] = {"token_ids": token_ids, "sampling_params": sampling}
        if weights.adapter:
            body["model"] = weights.adapter
        try:
            answer = await self.ask(http, "POST", "/inference/v1/generate", body)
        except Refused as error:
            if error.status == 404 and weights.adapter:
                raise Stale(f"does not have the adapter {weights.adapter}") from error
            raise
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            if any(choice["finish_reason"] == "abort" for choice in choices):
                raise Aborted("was told to stop sampling")
            if [choice["index"] for choice in choices] != list(range(sampling["n"])):
                raise ServerError(f"gave {len(choices)} completions where {sampling['n']} were asked for")
            return [_sampled(choice, weights.label) for choice in choices]
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerError(f"answers /inference/v1/generate with {str(answer)[:120]!r}") from error

    async def introduce(self, http: aiohttp.ClientSession, embedded: int, context: int) -> None:
        """Learns its facts. Unreachable while it is not up; UserError where it is no server for this trainer.

        embedded: tokens in the model's vocabulary; context: tokens that the model reads."""
        where = f"rollout.server.urls has {self.url}"
        try:
            answer = await self.ask(http, "GET", "/version", within_s=CONNECT_S)
            version = answer["version"] if isinstance(answer, dict) else None
        except Unreachable:
            raise
        except (ServerError, KeyError):
            version = None
        if not isinstance(version, str):
            raise UserError(f"{where}, which is no vLLM server; {REMEDY}")
        if not version.startswith(SUPPORTED):
            raise UserError(f"{where}, which runs vLLM {version}, and this release works with {SUPPORTED}x; {REMEDY}")
        try:
            info = (await self.ask(http, "GET", "/server_info?config_format=json"))["vllm_config"]
            world = await self.ask(http, "GET", "/get_world_size")
            await self.label(http)
        except (Refused, KeyError, TypeError) as error:
            raise UserError(f"{where}, which has no end points for new weights ({error}); {REMEDY}") from error
        model, mode = info["model_config"], info["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise UserError(
                f"{where}, which was started with --logprobs-mode {mode}: its log-probabilities are not those at the "
                f"sampling temperature; {REMEDY}"
            )
        self.facts = Facts(
            model["dtype"].removeprefix("torch."),
            model["max_model_len"],
            info["scheduler_config"]["max_num_seqs"],
            world["world_size"],
        )
        if self.facts.context > context:
            raise UserError(
                f"{where}, whose model {model['model']} reads {self.facts.context} tokens, and model.path reads "
                f"{context}: they are not the same model; {REMEDY}"
            )
        await self._check_vocabulary(http, where, embedded, model["model"])

    async def _check_vocabulary(self, http: aiohttp.ClientSession, where: str, embedded: int, model: str) -> None:
        """vLLM does not tell its vocabulary's size, but refuses a prompt with a token outside it."""
        body = {"token_ids": [embedded], "sampling_params": {"max_tokens": 1, "logprobs": 0}}
        try:
            await self.ask(http, "POST", "/inference/v1/generate", body, within_s=60.0)
        except Refused as error:
            if error.status == 400:
                return
            raise UserError(f"{where}, which takes no token ids ({error}); {REMEDY}") from error
        raise UserError(
            f"{where}, whose model {model} knows a token {embedded}, and model.path has {embedded} tokens from 0 on: "
            f"they are not the same model; {REMEDY}"
        )


def _sampled(choice: Mapping[str, Any], label: str) -> Sampled:
    """One of vLLM's choices, checked: ids and their own log-probabilities, all sampled with the weights `label`."""
    ids, content = choice["token_ids"], choice["logprobs"]["content"]
    if labels := {span["version"] for span in choice["weight_versions"]} - {label}:
        raise Stale(f"sampled with the weights {', '.join(sorted(labels))} instead of {label}")
    logprobs = tuple(float(entry["logprob"]) for entry in content)
    # vLLM writes -9999 where the logarithm is not finite
    if not ids or [entry["token_id"] for entry in content] != ids or not all(-9999 < p <= 1e-3 for p in logprobs):
        raise ServerError("gave log-probabilities that do not belong to its tokens")
    if choice["finish_reason"] not in ("stop", "length") or any(map(math.isnan, logprobs)):
        raise ServerError(f"ended a completion with {choice['finish_reason']!r}")
    return Sampled(tuple(ids), logprobs, choice["finish_reason"], int(label.rpartition("/")[2]))


def _message(text: str) -> str:
    """What an error's body says, in one line."""
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(str(text).split())[:300]
