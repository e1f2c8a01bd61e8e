"""What stands in a column: a text or a conversation, checked. Each complaint is what to put behind file:line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_math.examples.raw import Message, Text
from grpo_math.find import nearest
from grpo_math.types import UserError

ASKS = ("user", "tool")  # who may speak last before the assistant
ELSEWHERE = {"role": ("from", "speaker"), "content": ("value", "text")}  # what other files call it


def text_of(name: str, value: Any) -> Text:
    """A string, or a list of messages. Raises UserError for everything else, and for what is empty."""
    if isinstance(value, str):
        return _plain(repr(name), value)
    if isinstance(value, list):
        return conversation(name, value)
    raise UserError(f"{name}={shown(value)}: give a string, or a list of messages with role and content")


def conversation(name: str, value: Sequence[Any]) -> list[Message]:
    """A list of messages, each with its role and its text. Raises UserError."""
    if not value:
        raise UserError(f"{name!r} is an empty list; fill it in or delete the line")
    return [_message(f"{name}[{i}]", message) for i, message in enumerate(value)]


def _message(at: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{at} is {shown(value)}: give an object with role and content")
    # where some messages of a data set have a key, `datasets` gives it to all of them, as null
    message = {key: item for key, item in value.items() if item is not None}
    for key in ("role", "content"):
        if key not in message:
            named = next((other for other in ELSEWHERE[key] if other in message), nearest(key, message))
            remedy = f"rename {named!r}" if named else "add it, as text"
            raise UserError(f"{at} has no {key!r}, only {columns_of(message)}; {remedy}")
        if not isinstance(message[key], str):
            raise UserError(f"{at}.{key}={shown(message[key])}: give a string; only text can be learnt from here")
        _encodable(f"{at}.{key}", message[key])
    return message


def ends_in_a_question(name: str, prompt: Sequence[Message]) -> None:
    """Raises UserError where a prompt's last message is not one that the assistant answers."""
    role = prompt[-1]["role"]
    if role not in ASKS:
        remedy = "move it to the completion" if role == "assistant" else "end the prompt with what the user says"
        raise UserError(f"{name!r} ends with a message of the role {role!r}, not {' or '.join(ASKS)}; {remedy}")


def one_answer(name: str, messages: Sequence[Message]) -> None:
    """Raises UserError where a completion is not one message of the assistant with something in it."""
    roles = [message["role"] for message in messages]
    if roles[0] != "assistant":
        raise UserError(
            f"{name!r} begins with a message of the role {roles[0]!r}; a completion is one message of the role "
            "'assistant', and what comes before it belongs to the prompt"
        )
    if len(roles) > 1:
        raise UserError(
            f"{name!r} has {len(roles)} messages ({', '.join(roles[:6])}); only one of the role 'assistant' can be a "
            "completion: put those before the last into the prompt"
        )
    _plain(f"{name}[0].content", messages[0]["content"])


def _plain(name: str, value: str) -> str:
    if not value.strip():
        raise UserError(f"{name} is empty; fill it in or delete the line")
    _encodable(name, value)
    return value


def _encodable(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a "\ud83d\ude00" pair: every tokenizer would refuse it later
        raise UserError(f"{name} holds half a Unicode pair, {error.reason}; mend the line") from error


def common_beginning(first: Text, second: Text) -> int:
    """How many messages, or characters, two of a kind have in common from their start."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def columns_of(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "an empty object"


def shown(value: Any) -> str:
    """As JSON, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
