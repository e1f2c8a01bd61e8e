"""The section `data`: files of examples to learn from, or of samples with the rules that choose among them.

Left out: reading the files (examples/read.py) and the rules themselves (filtering/).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo_math.config_base import Count, CountOrNone, NonNegative, PathText, Positive, Section, Share
from grpo_math.filtering.settings import Settings, flag
from grpo_math.types import UserError

Target = Literal["sft", "pairs", "kto"]

# what the command's messages call --to TARGET, where no such flag is
MADE: dict[str, str] = {"sft": "completions to imitate", "pairs": "pairs", "kto": "labelled completions"}


class Filter(Section):
    """The rules of `grpo-math filter`, under its flags' names and with its defaults; None is a flag left out.

    pass_rate: lowest and highest, as `0.1:0.9` or [0.1, 0.9]. reason: one verdict, or a list of them."""

    min_reward: float | None = None
    max_reward: float | None = None
    quantile: Share | None = None
    reason: list[str] | None = None
    pass_rate: tuple[Share, Share] | None = None
    finished: bool | None = None
    min_tokens: CountOrNone | None = None
    max_tokens: Count | None = None
    format: str | None = None
    dedup: Literal["text", "answer", "none"] | None = None
    per_problem: Count | None = None
    choose: Literal["random", "shortest", "longest", "diverse"] | None = None
    pair: Literal["best-worst", "all", "hard", "rso"] | None = None
    gap: NonNegative | None = None
    temperature: Positive | None = None
    candidates: Annotated[int, Field(ge=2)] | None = None
    pairs_per_problem: Count | None = None
    seed: CountOrNone = 0

    @field_validator("reason", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("pass_rate", mode="before")
    @classmethod
    def _low_and_high(cls, value: Any) -> Any:
        parts = value.split(":") if isinstance(value, str) else value
        if parts is not None and not (isinstance(parts, list | tuple) and len(parts) == 2):
            raise ValueError("must be the lowest and the highest share, such as 0.1:0.9")
        return parts

    @field_validator("pass_rate")
    @classmethod
    def _in_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("has the highest share first; swap them")
        return value

    def settings(self, to: Target) -> Settings:
        """What the command would make of the same rules. Raises UserError for a rule that `to` does not have."""
        given = self.model_dump(exclude_none=True)
        if self.reason is not None:
            given["reason"] = tuple(self.reason)
        try:
            return Settings(to=to, **given).resolved()
        except UserError as error:
            raise UserError(keys_for_flags(str(error))) from error


class Data(Section):
    """What is learnt from: one file of examples or several, or with `filter` files of samples, of which the rules make
    examples.

    max_length: tokens of prompt and completion together, None for as many as the model reads. too_long: what becomes of
    an example that has more: `drop` passes it over, `truncate` cuts the end of its completions."""

    files: Annotated[list[PathText], Field(min_length=1)]
    filter: Filter | None = None
    too_long: Literal["drop", "truncate"] = "drop"
    max_length: Annotated[int, Field(ge=2)] | None = None

    shorthand = "files"

    @model_validator(mode="before")
    @classmethod
    def _only_files(cls, value: Any) -> Any:
        return {"files": value} if isinstance(value, list) else value

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def keys_for_flags(text: str) -> str:
    """A message of the command in the words of the configuration: `--per-problem` is `data.filter.per_problem`."""
    keys = {flag(name): f"data.filter.{name}" for name in Filter.model_fields}
    text = re.sub(r"--to (\w+)", lambda match: MADE.get(match[1], match[0]), text)
    return re.sub(r"(?<![\w-])--[a-z-]+", lambda match: keys.get(match[0], match[0]), text)
