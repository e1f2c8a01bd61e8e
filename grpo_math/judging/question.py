"""What a judge is asked, what it replies, and what several questions in a row are: a talk.

A talk is a generator that yields questions, is sent their replies, and returns its outcome. So the same few lines say
what is asked whether a server is asked (server.py), many talks side by side, or a model in this process (local.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Message = dict[str, str]  # role (system, user or assistant), content

VERSION = 1  # of `key`: raise it when the same question would be asked in another way
THOUGHT_ENDS = "</think>"


@dataclass(frozen=True, slots=True)
class Question:
    """top: 0 for a text, else the log-probabilities of so many of the likeliest first tokens are wanted, and no text.
    begins: the beginning of the answer, from which the model goes on. seed: of sampling."""

    messages: tuple[Message, ...]
    max_tokens: int = 1
    temperature: float = 1.0
    seed: int = 0
    top: int = 0
    begins: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """top: (token's text, log-probability in nats) of the likeliest first tokens. tokens: read and written. cut: it
    ended at max_tokens. failed: why there is no reply; then all else is empty."""

    text: str = ""
    top: tuple[tuple[str, float], ...] = ()
    tokens: int = 0
    cut: bool = False
    failed: str | None = None


Talk = Generator[Question, Reply, T]


class Unreadable(Exception):
    """The judge gave no verdict, or none that can be read. Never a zero: whoever asks counts it apart."""


def ask(question: Question) -> Talk[Reply]:
    """The reply. Raises Unreadable where there is none."""
    reply = yield question
    if reply.failed is not None:
        raise Unreadable(reply.failed)
    return reply


def said(text: str) -> str:
    """Without the thoughts that a reasoning model writes first, where its server leaves them in."""
    return text.rpartition(THOUGHT_ENDS)[2].strip()


def key(model: Mapping[str, Any], question: Question) -> str:
    """Of all that decides the reply: the model's identity, the sampling, and every word of the messages, which are the
    template and the text together."""
    content = json.dumps([VERSION, model, asdict(question)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def plain(messages: tuple[Message, ...]) -> str:
    """For a model without a chat template: the turns, one below the other."""
    return "\n\n".join(message["content"].strip() for message in messages) + "\n\n"
