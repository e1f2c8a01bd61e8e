"""What an OpenAI-compatible server is asked for one completion, and what its answer becomes.

Left out: when it is asked (openai.py), and HTTP (openai_http.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from typing import Any
from zlib import crc32

import numpy as np

from grpo_math.evaluation.openai_http import Failed
from grpo_math.evaluation.sampler import Asked, Sample, until
from grpo_math.types import FinishReason, Sampling, UserError

CHAT, PLAIN = "/chat/completions", "/completions"
STOPS = 4  # OpenAI and vLLM refuse more
FINISHED: dict[str, FinishReason] = {
    "stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length",
}  # fmt: skip
BROKEN_OFF = frozenset({"abort", "error", "insufficient_system_resource"})  # the server's own trouble: try again

# by what /models calls the owner. These fill in what a request leaves open from the model's generation_config.json (for
# Qwen3 that is top_k=20), unless it is turned off field by field
OPEN_SERVERS = ("vllm", "sglang", "llamacpp")
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

_UNKNOWN = re.compile(r"unsupported|not supported|not permitted|extra_forbidden", re.IGNORECASE)
# fields that some servers refuse, and whether it can be done without: the text is cut here too, and what is the default
# everywhere need not be said. max_tokens has another name in newer models' chats
DISPENSABLE: dict[str, Callable[[Any], bool]] = {
    "max_tokens": lambda _: True,
    "stop": lambda _: True,
    "seed": lambda _: True,
    "temperature": lambda value: value == 1.0,
    "top_p": lambda value: value == 1.0,
}


def request(
    model: str, asked: Asked, sampling: Sampling, number: int, server: str | None, without: Set[str]
) -> dict[str, Any]:
    """For completion `number` of a problem. server: the model's owner, as /models has it; without: fields that the
    server does not know."""
    body: dict[str, Any] = {
        "model": model,
        **({"prompt": asked.text} if asked.messages is None else {"messages": list(asked.messages)}),
        **(NEUTRAL if server in OPEN_SERVERS else {}),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": completion_seed(sampling.seed, asked.problem.id, number),
    }
    if sampling.top_k > 0:
        body["top_k"] = sampling.top_k
    if asked.stop:
        body["stop"] = list(asked.stop[:STOPS])
    if "max_tokens" in without:
        body["max_completion_tokens"] = body["max_tokens"]
    return {name: value for name, value in body.items() if name not in without}


def completion_seed(seed: int, problem_id: str, number: int) -> int:
    """31 bits, which every server takes, from the evaluation's seed, the problem and the completion's number alone."""
    state = np.random.SeedSequence((seed, crc32(problem_id.encode()), number)).generate_state(1)
    return int(state[0]) >> 1


def unknown_fields(body: Mapping[str, Any], said: str) -> set[str]:
    """The fields that a server refuses a request for, where the next one can be without them and draw the same."""
    if not _UNKNOWN.search(said):
        return set()
    return {
        name
        for name, dispensable in DISPENSABLE.items()
        if name in body and dispensable(body[name]) and re.search(rf"""['"]{name}\\?['"]""", said)
    }


def sample_of(answer: Any, asked: Asked, url: str) -> Sample:
    """Raises Failed for what is no completion, UserError where the server does not count its tokens."""
    try:
        [choice] = answer["choices"]
        text = choice["text"] if asked.messages is None else choice["message"]["content"]
        reason, usage = choice["finish_reason"], answer.get("usage") or {}
        tokens = usage.get("completion_tokens")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Failed(f"gave no completion: {str(answer)[:120]!r}") from None
    text = "" if text is None else text  # of a model that was still thinking
    if not isinstance(text, str) or not isinstance(reason, str) or reason in BROKEN_OFF:
        raise Failed(f"gave no completion: {str(choice)[:120]!r}")
    if not isinstance(tokens, int):
        raise UserError(
            f"{url} does not say how many tokens it sampled (its answers have no usage.completion_tokens), and an "
            "evaluation reports them; have the server tell its usage"
        )
    if reason not in FINISHED:
        return Sample("", tokens, "stop", f"the server ended it with finish_reason {reason!r}")
    text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be written to a file
    cut = until(text, asked.stop)
    return Sample(text, tokens, FINISHED[reason]) if cut is None else Sample(cut, tokens, "stop")
