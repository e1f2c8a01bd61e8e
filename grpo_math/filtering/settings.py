"""What the user asked for, checked, with the defaults of each target filled in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from grpo_math.find import nearest
from grpo_math.types import Reason, UserError

TARGETS = ("sft", "pairs", "kto")

# options that only some targets have, and what to give instead
ONLY: dict[str, tuple[tuple[str, ...], str]] = {
    "reason": (("sft",), "it would leave one class alone; --min-reward and --max-reward say what is good and bad"),
    "max_reward": (("pairs", "kto"), "sft has nothing that is bad; leave it out"),
    "per_problem": (("sft", "kto"), "give --pairs-per-problem"),
    "choose": (("sft", "kto"), "--pair says how completions are chosen"),
    "pair": (("pairs",), "give --to pairs"),
    "gap": (("pairs",), "give --to pairs"),
    "temperature": (("pairs",), "give --to pairs"),
    "candidates": (("pairs",), "give --to pairs"),
    "pairs_per_problem": (("pairs",), "give --per-problem"),
}
RSO = ("temperature", "candidates")

# where the user says nothing
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"finished": True, "dedup": "text"},
    "pairs": {"finished": False, "dedup": "text", "pair": "best-worst", "gap": 0.0},
    "kto": {"finished": False, "dedup": "text", "max_reward": 0.0},
}
RSO_DEFAULTS = {"temperature": 0.5, "candidates": 8}  # the paper's beta, and how many of its 64 it accepts
CERTAIN = 1.0  # the reward of a right answer, where nothing else says what is good


@dataclass(frozen=True)
class Settings:
    """None: not asked for. reason: verdicts that stay. format: a regular expression. pass_rate: lowest and highest.

    min_reward: of a completion to imitate (sft), of a chosen one (pairs), of a true label (kto). max_reward: of a
    rejected one (pairs), of a false label (kto). quantile: min_reward as a quantile of all decided rewards.
    """

    to: str
    min_reward: float | None = None
    max_reward: float | None = None
    quantile: float | None = None
    reason: tuple[str, ...] | None = None
    pass_rate: tuple[float, float] | None = None
    finished: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    format: str | None = None
    dedup: str | None = None
    per_problem: int | None = None
    choose: str | None = None
    pair: str | None = None
    gap: float | None = None
    temperature: float | None = None
    candidates: int | None = None
    pairs_per_problem: int | None = None
    seed: int = 0

    def resolved(self) -> Settings:
        """With the target's defaults. Raises UserError for what the target does not have, and values out of range."""
        self._refuse_foreign()
        self._refuse_values()
        filled = dict(DEFAULTS[self.to])
        unthresholded = self.min_reward is None and self.quantile is None and self.reason is None
        if unthresholded and self.to != "pairs":
            filled["min_reward"] = CERTAIN
        if self.per_problem is not None:
            filled["choose"] = "random"
        if self.pair == "rso":
            filled |= RSO_DEFAULTS
        elif self.to == "pairs" and (self.pair or "best-worst") == "best-worst":
            filled["pairs_per_problem"] = 1
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return replace(self, **{name: value for name, value in filled.items() if name not in given})

    def _refuse_foreign(self) -> None:
        for name, (targets, remedy) in ONLY.items():
            if getattr(self, name) is not None and self.to not in targets:
                raise UserError(f"{flag(name)} is no rule of --to {self.to}: {remedy}")
        for name in RSO:
            if getattr(self, name) is not None and self.pair != "rso":
                raise UserError(f"{flag(name)} is of statistical rejection sampling; give --pair rso, or leave it out")
        if self.choose is not None and self.per_problem is None:
            raise UserError(f"--choose {self.choose} says which --per-problem K are kept; give --per-problem too")

    def _refuse_values(self) -> None:
        for name in ("min_reward", "max_reward", "quantile", "gap", "temperature"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"{flag(name)} {value}: give a finite number")
        if self.temperature is not None and self.temperature <= 0:
            raise UserError(f"--temperature {self.temperature:g}: give more than 0; near 0 only the best are accepted")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(f"--min-tokens {self.min_tokens} is more than --max-tokens {self.max_tokens}; swap them")
        for name in self.reason or ():
            if name not in get_args(Reason):
                near = nearest(name, get_args(Reason))
                known = f"did you mean {near}?" if near else f"there are {', '.join(get_args(Reason))}"
                raise UserError(f"--reason {name}: there is no such verdict; {known}")
        if self.format is not None:
            try:
                re.compile(self.format)
            except re.error as error:
                raise UserError(f"--format {self.format}: no regular expression ({error}); mend it") from error


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def pass_rate_of(text: str) -> tuple[float, float]:
    """0.1:0.9 -> (0.1, 0.9). Raises UserError."""
    low, colon, high = text.partition(":")
    try:
        window = float(low), float(high)
    except ValueError:
        window = (math.nan, math.nan)
    if not colon or not 0 <= window[0] <= window[1] <= 1:
        raise UserError(f"--pass-rate {text}: write LO:HI with 0 <= LO <= HI <= 1, such as --pass-rate 0.1:0.9")
    return window
