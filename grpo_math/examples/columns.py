"""One row of a file -> a RawExample: the columns of TRL's data sets, plain or chat, in a table by kind.

Each function is pure, and raises UserError with what is wrong and the remedy; whoever calls it knows file and line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from grpo_math.examples.chat import (
    common_beginning,
    conversation,
    ends_in_a_question,
    one_answer,
    shown,
    text_of,
)
from grpo_math.examples.raw import Kind, RawCompletion, RawExample, Text
from grpo_math.examples.shapes import need
from grpo_math.filtering.read import FINISHES, NEEDED
from grpo_math.types import FinishReason, UserError

Row = Mapping[str, Any]

# columns that change what a model reads, and that nothing here passes on
UNREAD = ("images", "image", "tools", "chat_template_kwargs")

LARGEST_LOGPROB = 1e-3  # of rounding; above it, the number is no log-probability


def example_of(kind: Kind, row: Row, where: str) -> RawExample:
    """Raises UserError, without `where`."""
    if set(NEEDED) <= set(row):
        raise UserError(
            "this is a sample with its verdict, right or wrong; write data.filter: {} to take what `grpo-math filter` "
            "would, or give the file that it wrote"
        )
    for name in UNREAD:
        if row.get(name):
            raise UserError(f"{name}={shown(row[name])} is not read here, and would change the prompt; leave it out")
    return KINDS[kind](row, where)


def to_imitate(row: Row, where: str) -> RawExample:
    """prompt and completion; or messages, of which the last, the assistant's, is the completion."""
    if "messages" in row and not {"prompt", "completion"} <= set(row):
        value = row["messages"]
        if not isinstance(value, list):
            raise UserError(f"messages={shown(value)}: give a list of messages with role and content")
        prompt, completion = _last_turn(value)
    else:
        need("sft", row, "prompt", "completion")
        prompt, completion = text_of("prompt", row["prompt"]), text_of("completion", row["completion"])
        _asked_and_answered(prompt, "completion", completion)
    weight = _number(row, "weight")
    if weight is not None and weight < 0:
        raise UserError(f"weight={shown(weight)}: give 0 or more; what is to be unlearnt is for recipe: preference")
    return RawExample(
        where,
        prompt,
        (_single(row, completion),),
        weight=1.0 if weight is None else weight,
        problem=_name(row, "problem"),
        task=_name(row, "task"),
    )


def pair(row: Row, where: str) -> RawExample:
    """prompt, chosen and rejected; or chosen and rejected alone, whose common beginning is the prompt."""
    need("preference", row, "chosen", "rejected")
    prompt, chosen, rejected = _three(row)
    numbers = {name: _both(row, pattern) for name, pattern in PAIRED.items()}
    completions = tuple(
        RawCompletion(text, _finish(row, f"{side}_finish_reason"), **{name: both[i] for name, both in numbers.items()})
        for i, (side, text) in enumerate((("chosen", chosen), ("rejected", rejected)))
    )
    problem, task, margin = _name(row, "problem"), _name(row, "task"), _number(row, "margin")
    return RawExample(where, prompt, completions, problem=problem, task=task, margin=margin)


def labelled(row: Row, where: str) -> RawExample:
    """prompt, completion and whether it is a good one."""
    need("kto", row, "prompt", "completion", "label")
    prompt, completion = text_of("prompt", row["prompt"]), text_of("completion", row["completion"])
    _asked_and_answered(prompt, "completion", completion)
    if not isinstance(row["label"], bool):
        raise UserError(f"label={shown(row['label'])}: give true for a completion to prefer, false for one to avoid")
    return RawExample(
        where,
        prompt,
        (_single(row, completion),),
        label=row["label"],
        problem=_name(row, "problem"),
        task=_name(row, "task"),
    )


def judged(row: Row, where: str) -> RawExample:
    """prompt, completion and how good it is, which becomes its reward."""
    need("judged", row, "prompt", "completion", "label")
    prompt, completion = text_of("prompt", row["prompt"]), text_of("completion", row["completion"])
    _asked_and_answered(prompt, "completion", completion)
    label = row["label"]
    if not isinstance(label, bool | int | float) or not 0 <= label <= 1:
        raise UserError(f"label={shown(label)}: give true or false, or a number from 0 (wrong) to 1 (right)")
    one = RawCompletion(completion, _finish(row, "finish_reason"), float(label))
    return RawExample(where, prompt, (one,), problem=_name(row, "problem"), task=_name(row, "task"))


def ranked(row: Row, where: str) -> RawExample:
    """prompt, completions, and a reward of each, or the place of each in an order of which 1 is the best."""
    given = next((name for name in ("rewards", "ranks") if name in row), "rewards")
    need("ranked", row, "prompt", "completions", given)
    prompt, texts, values = text_of("prompt", row["prompt"]), row["completions"], row[given]
    if not isinstance(texts, list) or not isinstance(values, list) or not 1 < len(texts) == len(values):
        raise UserError(f"'completions' and {given!r} are lists of the same length, 2 or more; mend the line")
    completions = []
    for i, (text, value) in enumerate(zip(texts, values, strict=True)):
        name = f"completions[{i}]"
        completion = text_of(name, text)
        _asked_and_answered(prompt, name, completion)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{given}[{i}]={shown(value)}: give a finite number, or take the completion out")
        completions.append(RawCompletion(completion, reward=float(-value if given == "ranks" else value)))
    if len({completion.reward for completion in completions}) == 1:
        raise UserError(f"all {len(completions)} {given} are equal, and nothing can be learnt from it; delete the line")
    return RawExample(where, prompt, tuple(completions), problem=_name(row, "problem"), task=_name(row, "task"))


KINDS: dict[Kind, Callable[[Row, str], RawExample]] = {
    "sft": to_imitate,
    "preference": pair,
    "kto": labelled,
    "judged": judged,
    "ranked": ranked,
}

# the fields of a pair's two completions, and the columns that they come from
PAIRED = {"reward": "{}_reward", "logprobs": "{}_logps", "ref_logprobs": "ref_{}_logps"}


def _asked_and_answered(prompt: Text, name: str, completion: Text) -> None:
    """Raises UserError where the one is no prompt for the other."""
    _one_manner(("prompt", prompt), (name, completion))
    if not isinstance(prompt, str) and not isinstance(completion, str):
        ends_in_a_question("prompt", prompt)
        one_answer(name, completion)


def _last_turn(value: list[Any]) -> tuple[Text, Text]:
    messages = conversation("messages", value)
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"'messages' ends with the role {messages[-1]['role']!r}; the last message is what is learnt, and must be "
            "the assistant's"
        )
    if len(messages) == 1:
        raise UserError("'messages' has an answer alone; put what the user asked before it")
    ends_in_a_question("messages before the last", messages[:-1])
    one_answer("messages' last", messages[-1:])
    return messages[:-1], messages[-1:]


def _three(row: Row) -> tuple[Text, Text, Text]:
    chosen, rejected = text_of("chosen", row["chosen"]), text_of("rejected", row["rejected"])
    _one_manner(("chosen", chosen), ("rejected", rejected))
    if chosen == rejected:
        raise UserError("'chosen' and 'rejected' are the same, and nothing can be learnt from it; delete the line")
    prompt = None if row.get("prompt") is None else text_of("prompt", row["prompt"])
    whole = not isinstance(chosen, str) and chosen[0]["role"] != "assistant"
    if prompt is not None and not whole:
        _asked_and_answered(prompt, "chosen", chosen)
        _asked_and_answered(prompt, "rejected", rejected)
        return prompt, chosen, rejected
    shared = common_beginning(chosen, rejected)
    if prompt is not None:
        _repeats(prompt, chosen[:shared])
    if isinstance(chosen, str) and shared and chosen[shared - 1] == " ":
        shared -= 1  # the space before a word belongs to the word's token
    if not shared:
        raise UserError(
            "'chosen' and 'rejected' do not begin alike, so that neither has the prompt in it; add the column 'prompt'"
        )
    if shared == min(len(chosen), len(rejected)):
        longer = "chosen" if len(chosen) > len(rejected) else "rejected"
        raise UserError(f"{longer!r} is the other one and more, which leaves one completion empty; add 'prompt'")
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not isinstance(prompt, str) and not isinstance(chosen, str) and not isinstance(rejected, str):
        ends_in_a_question("the common beginning of 'chosen' and 'rejected'", prompt)
        one_answer("chosen after the common beginning", chosen)
        one_answer("rejected after the common beginning", rejected)
    return prompt, chosen, rejected


def _repeats(prompt: Text, shared: Text) -> None:
    """Some data sets have the prompt beside two whole conversations once more, as messages or as the question alone
    (ultrafeedback_binarized). Raises UserError where it is not what the conversations begin with."""
    assert not isinstance(shared, str)
    questions = [message["content"] for message in shared]
    if prompt not in questions if isinstance(prompt, str) else list(prompt) != list(shared):
        raise UserError(
            f"'chosen' and 'rejected' are whole conversations whose common beginning is not 'prompt', {shown(prompt)}; "
            "leave 'prompt' out, or only the assistant's message in the other two"
        )


def _one_manner(*columns: tuple[str, Text]) -> None:
    plain = [name for name, text in columns if isinstance(text, str)]
    if plain and len(plain) < len(columns):
        chat = next(name for name, text in columns if not isinstance(text, str))
        raise UserError(f"{plain[0]!r} is plain text and {chat!r} a list of messages; write both in one manner")


def _single(row: Row, text: Text) -> RawCompletion:
    return RawCompletion(text, _finish(row, "finish_reason"), _number(row, "reward"), _logprob(row, "logps"))


def _both(row: Row, pattern: str) -> tuple[float | None, float | None]:
    read = _number if pattern == PAIRED["reward"] else _logprob
    names = pattern.format("chosen"), pattern.format("rejected")
    chosen, rejected = (read(row, name) for name in names)
    if (chosen is None) != (rejected is None):
        there, missing = names if rejected is None else names[::-1]
        raise UserError(f"{there!r} is there and {missing!r} is not; give both, or leave both out")
    return chosen, rejected


def _logprob(row: Row, name: str) -> float | None:
    value = _number(row, name)
    if value is not None and value > LARGEST_LOGPROB:
        raise UserError(f"{name}={shown(value)}: the log-probability of a completion is 0 or less; turn its sign")
    return value


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name}={shown(value)}: give a finite number, or leave the column out")
    return float(value)


def _finish(row: Row, name: str) -> FinishReason:
    value: Any = row.get(name) or "stop"  # "" stands for a sample that does not say
    if value not in FINISHES:
        raise UserError(f"{name}={shown(value)}: give stop, or length for a completion that was cut, or leave it out")
    return cast(FinishReason, value)


def _name(row: Row, column: str) -> str:
    return sys.intern(str(row.get(column) or ""))
