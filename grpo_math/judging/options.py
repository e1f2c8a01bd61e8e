"""The options of the verifier `judge`, checked before anything is asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from grpo_math.find import nearest
from grpo_math.judging.verdict import Read
from grpo_math.types import UserError

Range = Literal["unit", "signed"]
Engine = Literal["openai", "vllm", "hf"]
Dtype = Literal["float32", "bfloat16"]
CHOICES: dict[str, tuple[str, ...]] = {
    "read": get_args(Read), "reward": get_args(Range), "engine": get_args(Engine), "dtype": get_args(Dtype),
}  # fmt: skip
# what a value may be (of whole numbers the least), and how that is said; None is allowed where it is the default
TEXTS = ("url", "model", "template", "rubric", "key_env", "cache", "device")
TRUTHS = ("reason", "chat")
WHOLE = {
    "max_tokens": 1,
    "seed": 0,
    "retries": 0,
    "max_requests": 1,
    "max_total_tokens": 1,
    "max_rows": 1,
}
NUMBERS = {
    "temperature": (0.0, math.inf), "min_mass": (0.0, 1.0), "correct_from": (0.0, 1.0),
    "request_s": (0.1, math.inf), "requests_per_minute": (1e-3, math.inf),
}  # fmt: skip


SERVERS, HERE = ("openai",), ("vllm", "hf")
OF_ENGINES = dict.fromkeys(("url", "chat", "key_env", "retries", "requests_per_minute", "request_field"), SERVERS) | {
    "dtype": HERE, "device": HERE, "max_rows": HERE, "engine_options": ("vllm",)
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """engine: `openai` asks a server, `vllm` and `hf` run the model here. url: the server's API root. model: one that
    the server has, None for its only one; or a folder or Hub id. template, rubric: names or files. read, reason,
    max_tokens, temperature, seed, min_mass: see verdict.Reading. reward: `unit` scales the score to 0..1, `signed` to
    -1..1 as d-RLAIF does. correct_from: the share of the scale from which a completion counts as correct. cache: the
    folder of replies, budget and rate, which all workers share. request_field: further fields of each request. dtype,
    device, max_rows, engine_options: of a model that runs here, see host.Spec."""

    engine: Engine = "openai"
    url: str = "http://localhost:8000/v1"
    model: str | None = None
    template: str = "score"
    rubric: str | None = None
    read: Read = "logprobs"
    reason: bool = False
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    min_mass: float = 0.1
    reward: Range = "unit"
    correct_from: float = 0.5
    chat: bool = True
    key_env: str = "OPENAI_API_KEY"
    request_s: float = 60.0
    retries: int = 3
    requests_per_minute: float | None = None
    max_requests: int | None = None
    max_total_tokens: int | None = None
    cache: str = "runs/judge-cache"
    request_field: Mapping[str, Any] = field(default_factory=dict)
    dtype: Dtype = "float32"
    device: str = "auto"
    max_rows: int = 64
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    def scaled(self, share: float) -> float:
        """The reward of a score that is `share` of the way from the lowest to the highest."""
        return share if self.reward == "unit" else 2.0 * share - 1.0


def options_of(given: Mapping[str, Any]) -> Options:
    """Raises UserError, which names the option, its value and what it may be."""
    known = {f.name: f.default for f in fields(Options)}
    for name, value in given.items():
        if name not in known:
            guess = nearest(name, known)
            mend = f"did you mean {guess}?" if guess else f"it takes {', '.join(known)}"
            raise UserError(f"verifier judge has no option {name!r}; {mend}")
        if (wanted := _wanted(name, value)) is not None and not (value is None and known[name] is None):
            raise UserError(f"verifier judge: {name}={value!r}: give {wanted}")
    chosen = Options(**given)
    for name, engines in OF_ENGINES.items():
        if chosen.engine not in engines and getattr(chosen, name) != getattr(Options(), name):
            raise UserError(
                f"verifier judge: {name}={given[name]!r} is for engine={' or '.join(engines)}, and it is "
                f"{chosen.engine}; leave it out"
            )
    devices = r"auto|cuda:\d+" if chosen.engine == "vllm" else r"auto|cpu|cuda(:\d+)?"
    if not re.fullmatch(devices, chosen.device):
        raise UserError(f"verifier judge: device={chosen.device!r}: give auto, or a device such as cuda:1")
    if chosen.engine != "openai" and chosen.model is None:
        raise UserError(f"verifier judge: engine={chosen.engine} needs model, a folder or Hub id; set it")
    return chosen


def _wanted(name: str, value: Any) -> str | None:
    """What the option should be; None where it is."""
    if name in CHOICES:
        return None if value in CHOICES[name] else " or ".join(CHOICES[name])
    if name in TEXTS:
        return None if isinstance(value, str) and value else "a text"
    if name in TRUTHS:
        return None if isinstance(value, bool) else "true or false"
    if name in WHOLE:
        return None if type(value) is int and value >= WHOLE[name] else f"a whole number from {WHOLE[name]}"
    if name in NUMBERS:
        low, high = NUMBERS[name]
        right = type(value) in (int, float) and low <= value <= high and value < math.inf
        return None if right else f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else "")
    return None if isinstance(value, Mapping) else "a mapping"
