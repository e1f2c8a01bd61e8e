"""Which columns a row of each kind has, and what to say where it has others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_math.examples.chat import columns_of
from grpo_math.examples.raw import Kind
from grpo_math.find import nearest
from grpo_math.types import UserError

SHAPES: dict[Kind, str] = {
    "sft": "a line to imitate has 'prompt' and 'completion', or 'messages'",
    "preference": "a pair has 'prompt', 'chosen' and 'rejected', or whole conversations in 'chosen' and 'rejected'",
    "kto": "a labelled line has 'prompt', 'completion' and 'label'",
    "judged": "a judged line has 'prompt', 'completion' and 'label', true or false or a number from 0 to 1",
    "ranked": "a ranked line has 'prompt', 'completions', and 'rewards' (or 'ranks', 1 for the best)",
}
# what else a row may be, by the columns that it has: the kind it is read as, and what to do
MISTAKEN: tuple[tuple[Kind, tuple[str, ...], str], ...] = (
    ("sft", ("chosen", "rejected"), "pairs are for recipe: preference; to imitate the chosen, rename it 'completion'"),
    ("sft", ("text",), "'text' alone does not tell the prompt from the completion; split it into these two"),
    ("preference", ("completion", "label"), "completions with a label are for a loss of single ones, such as kto"),
    ("preference", ("completion",), "a pair needs a better and a worse completion; for one alone take recipe: sft"),
    ("kto", ("chosen", "rejected"), "pairs are for a loss of pairs, such as dpo"),
    ("judged", ("chosen", "rejected"), "pairs are for loss.name=bradley_terry"),
    ("judged", ("completions", "labels"), "labels of steps are for recipe: process_reward_model"),
    ("judged", ("completions",), "completions in an order are for loss.name=ranked"),
    ("ranked", ("chosen", "rejected"), "pairs are for loss.name=bradley_terry"),
    ("ranked", ("completion", "label"), "completions with a label each are for loss.name=binary"),
    ("preference", ("completions",), "completions in an order are for recipe: reward_model with loss.name=ranked"),
)
# what other data sets call it
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "input", "query", "problem"),
    "completion": ("response", "output", "answer", "solution"),
    "messages": ("conversations", "conversation"),
    "chosen": ("chosen_response", "preferred", "response_j"),
    "rejected": ("rejected_response", "dispreferred", "response_k"),
    "label": ("labels", "desirable"),
    "completions": ("responses", "outputs", "answers"),
    "rewards": ("scores", "ratings"),
}


def need(kind: Kind, row: Mapping[str, Any], *names: str) -> None:
    """Raises UserError where a column is missing."""
    missing = [name for name in names if name not in row]
    if not missing:
        return
    name, others = missing[0], [column for column in row if column not in names]
    hint = next((hint for of, columns, hint in MISTAKEN if of == kind and set(columns) <= set(row)), None)
    named = next((other for other in ELSEWHERE[name] if other in others), nearest(name, others))
    remedy = hint or (f"did you mean to name {named!r} {name!r}?" if named else SHAPES[kind])
    raise UserError(f"no column {name!r}, only {columns_of(row)}; {remedy}")
