"""Sample with vLLM's own servers, as `grpo-math serve` starts them: one or many, here or on other machines.

Each prompt is one request for its n completions, token ids in and token ids out. Every completion has the version of
the weights that the server itself stamped on its tokens. Left out: which server samples what (fleet.py), HTTP
(vllm_http.py), and the two ways of the weights (weight_folder.py, weight_nccl.py).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import torch
from torch import Tensor

from grpo_math import config
from grpo_math.policy import Policy
from grpo_math.ranks import Ranks
from grpo_math.rollout.fleet import Fleet, Job
from grpo_math.rollout.vllm_common import completions, refuse_long, sampling_fields
from grpo_math.rollout.vllm_http import (
    ADAPTER,
    FULL,
    REMEDY,
    Server,
    ServerError,
    Unreachable,
    Weights,
)
from grpo_math.rollout.weight_folder import WeightFolder
from grpo_math.types import Completion, EngineError, Prompt, Sampling, UserError

if TYPE_CHECKING:
    from grpo_math.rollout.weight_nccl import NCCLWeights

AT_ONCE = 64  # completions in one request: a server that ends takes no more with it than these
TOLD_EVERY_S = 30.0


class VLLMServerEngine:
    """folder: where weights go from the trainer to servers that are not reached by NCCL. ranks: the trainer's; all of
    them make an engine and update its weights together, and each samples its own prompts, from any thread."""

    def __init__(self, policy: Policy, rollout: config.Rollout, folder: Path, ranks: Ranks | None = None) -> None:
        self.policy, self.spec, self.ranks = policy, rollout.server, ranks or Ranks()
        self.servers = [Server(url, self.spec.request_timeout_s) for url in self.spec.urls]
        self.folder = WeightFolder(folder)
        self.adapter = bool(policy.lora.rank) and policy.lora.sync == "adapter"
        self.run = self.ranks.tell(lambda: uuid.uuid4().hex[:8])
        first = self.ranks.rank % len(self.servers)  # or every rank would begin with the same server
        turned = self.servers[first:] + self.servers[:first]
        self.fleet = Fleet(turned, f"{self.run}-{self.ranks.rank}", self.spec.patience_s)
        self.ranks.together(lambda: asyncio.run(self._introduce()))
        self.nccl: NCCLWeights | None = None
        if not self.adapter and chosen_transfer(self.spec.transfer, policy.device) == "nccl":
            from grpo_math.rollout.weight_nccl import NCCLWeights

            self.nccl = NCCLWeights(self.servers, policy.device, self.run)
        elif self.ranks.first:
            self.folder.check()
        self.lock = threading.Lock()
        self.serial = 0
        self.weights: Weights | None = None

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together that every server can read; at most the model's."""
        return min(server.facts.context for server in self.servers)

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Raises EngineError where no server is left that works."""
        if self.weights is None:
            raise RuntimeError("update_weights comes first: the servers' own weights may be those of another run")
        refuse_long(prompts, sampling.max_tokens, self.context)
        if not prompts:
            return []
        requests = [list(self._jobs(prompt, sampling)) for prompt in prompts]
        with self._alone("generate"):
            sampled = iter(asyncio.run(self.fleet.sample([job for jobs in requests for job in jobs], self.weights)))
        groups = [[one for _ in jobs for one in next(sampled)] for jobs in requests]
        answers = [[(one.token_ids, one.logprobs, one.finish_reason) for one in group] for group in groups]
        return completions(answers, sampling, self.policy.tokenizer, groups[0][0].version)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Waits for the generation in flight. A server that cannot take them now gets them before it samples again."""
        with self._alone("update_weights"):
            self.ranks.wait()  # no rank samples any more
            self.serial += 1
            name = f"{self.run}.{self.serial:06d}"
            label = f"{ADAPTER if self.adapter else FULL}{name}/{version}"
            self.weights = Weights(label, None if self.nccl else self.folder.path(name))
            if self.ranks.first:
                self.ranks.together(lambda: self._send(weights, name))
                return
            for _ in weights:  # rank 0 can read them only while all ranks do
                pass
            self.ranks.together(lambda: None)

    def sleep(self) -> None:
        """Servers have devices of their own; there is nothing to give back."""

    def close(self) -> None:
        if self.nccl is not None:
            self.nccl.close()
        if self.ranks.first:
            self.folder.clear()

    def _send(self, weights: Iterable[tuple[str, Tensor]], name: str) -> None:
        assert self.weights is not None
        dtype: torch.dtype = getattr(torch, self.servers[0].facts.dtype)
        if self.nccl is not None:
            self.nccl.send(weights, self.weights.label, dtype)
            return
        if self.serial == 1:  # not before: by now this run has locked its own folder
            self.folder.clear_earlier()
        self.folder.write(name, weights, dtype, self.policy)
        failed = asyncio.run(self.fleet.give(self.weights))
        if self.serial == 1 and len(failed) == len(self.servers):  # nothing is lost yet: rather now than after a wait
            for url, error in failed.items():
                if not isinstance(error, Unreachable):
                    raise UserError(f"rollout.server.urls: {url} {error}")

    def _jobs(self, prompt: Prompt, sampling: Sampling) -> Iterator[Job]:
        fields = sampling_fields(sampling, prompt, self.policy.eos_ids)
        for first in range(0, fields["n"], AT_ONCE):
            # vLLM seeds sibling i with seed + i, so that the cut changes no token
            part = {"n": min(AT_ONCE, fields["n"] - first), "seed": fields["seed"] + first}
            yield Job(prompt.problem.id, prompt.token_ids, fields | part)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        if not self.lock.acquire(timeout=self.spec.request_timeout_s):
            raise EngineError(
                f"{what} waited rollout.server.request_timeout_s={self.spec.request_timeout_s:g} s for the generation "
                "in flight; raise that key if generations take so long"
            )
        try:
            yield
        finally:
            self.lock.release()

    async def _introduce(self) -> None:
        """Waits until every server is up. UserError where one is none of ours."""
        embedded = self.policy.model.get_input_embeddings().num_embeddings
        until, told = time.monotonic() + self.spec.start_timeout_s, time.monotonic()
        async with aiohttp.ClientSession() as http:
            for server in self.servers:
                while True:
                    try:
                        await server.introduce(http, embedded, self.policy.context)
                        break
                    except Unreachable as error:
                        if (now := time.monotonic()) > until:
                            raise UserError(
                                f"rollout.server.urls: {server.url} {error}, for rollout.server.start_timeout_s="
                                f"{self.spec.start_timeout_s:g} s; {REMEDY}"
                            ) from error
                        if self.ranks.first and now - told > TOLD_EVERY_S:
                            told = now
                            print(f"waiting for server {server.url}: it {error}", file=sys.stderr)
                    except ServerError as error:
                        raise UserError(f"rollout.server.urls: {server.url} {error}; {REMEDY}") from error
                    await asyncio.sleep(1.0)
        if len({server.facts.dtype for server in self.servers}) > 1:
            said = ", ".join(f"{server.url} {server.facts.dtype}" for server in self.servers)
            raise UserError(f"rollout.server.urls: the servers compute in different precisions ({said}); {REMEDY}")


def chosen_transfer(transfer: str, device: torch.device) -> str:
    """nccl or folder. UserError where nccl is asked for without a CUDA device."""
    if transfer == "auto":
        return "nccl" if device.type == "cuda" else "folder"
    if transfer == "nccl" and device.type != "cuda":
        raise UserError(
            f"rollout.server.transfer=nccl sends weights from a CUDA device, and the model is on {device}; set "
            "rollout.server.transfer=folder"
        )
    return transfer
