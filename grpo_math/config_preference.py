"""The section `loss` of the preference recipe: which loss, and the parameters that it reads.

The names are those of the table preferences/table.py; a test holds them equal. A parameter that the chosen loss does
not read is refused, so that no setting is silently without effect. Left out: the equations (preferences/).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from grpo_math.config_base import NonNegative, Positive, Section
from grpo_math.find import nearest

PreferenceName = Literal[
    "dpo", "cdpo", "robust", "ipo", "slic", "rso", "dpo_norm", "discopop", "exo_pair", "rpo",
    "apo_zero", "apo_down", "bco_pair", "nca", "sppo_hard", "simpo", "orpo", "cpo", "sft", "p3o", "kto", "bco",
]  # fmt: skip
DivergenceName = Literal["reverse_kl", "forward_kl", "js", "alpha"]

# What each loss reads. `alpha` goes with divergence=alpha.
READS: dict[str, tuple[str, ...]] = {
    "dpo": ("beta", "divergence"),
    "cdpo": ("beta", "label_smoothing", "divergence"),
    "robust": ("beta", "label_smoothing", "divergence"),
    "ipo": ("beta", "divergence"),
    "slic": ("beta", "margin", "divergence"),
    "rso": ("beta", "divergence"),
    "dpo_norm": ("beta", "divergence"),
    "discopop": ("beta", "discopop_tau", "divergence"),
    "exo_pair": ("beta", "label_smoothing", "divergence"),
    "rpo": ("beta", "sft_weight", "divergence"),
    "apo_zero": ("beta",),
    "apo_down": ("beta",),
    "bco_pair": ("beta",),
    "nca": ("beta",),
    "sppo_hard": ("beta",),
    "simpo": ("beta", "margin"),
    "orpo": ("beta",),
    "cpo": ("beta", "sft_weight"),
    "sft": (),
    "p3o": ("beta", "clip", "clipping"),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
    "bco": ("beta", "desirable_weight", "undesirable_weight"),
}
UNPAIRED = ("kto", "bco")
# These have a reference, but score a completion by itself, where the normaliser of an f-divergence does not cancel.
REVERSE_KL_ONLY = ("apo_zero", "apo_down", "bco_pair", "nca", "sppo_hard", "p3o", "kto", "bco")


class PreferenceLoss(Section):
    """One loss by `name`, or a weighted sum of several by `mix`, with what they read. beta goes to all of a mix.

    beta: strength of the tie to the reference; for ipo its tau, for orpo the weight of the odds ratio, for p3o that of
    the KL in the reward, and without a reference just the scale of the reward. label_smoothing: share of pairs thought
    to be the wrong way round. margin: what the rewards must differ by. sft_weight: weight of the chosen completion's
    negative log-likelihood. alpha: exponent of divergence=alpha, as in TRL: 1 would be reverse_kl and 0 forward_kl.
    clip, clipping: p3o's range, and whether it bounds the two ratios one by one or the quotient of both."""

    name: PreferenceName = "dpo"
    mix: dict[str, Positive] | None = None
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    margin: NonNegative = 1.0
    sft_weight: NonNegative = 1.0
    divergence: DivergenceName = "reverse_kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    discopop_tau: Annotated[float, Field(gt=0, le=1)] = 0.05
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clipping: Literal["separate", "joint"] = "separate"

    shorthand = "name"
    # simpo and dpo_norm see rewards per token, which are smaller by the length; the rest are their papers' values
    by_name = {
        "rso": {"beta": 0.05},
        "dpo_norm": {"beta": 5.0},
        "simpo": {"beta": 2.0},
        "exo_pair": {"label_smoothing": 1e-3},
    }

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each loss: that of `mix`, or 1 for `name`."""
        return dict(self.mix) if self.mix is not None else {self.name: 1.0}

    @property
    def reads(self) -> set[str]:
        """The parameters that these losses read with these settings."""
        read = {parameter for name in self.weights for parameter in READS[name]}
        return read | {"alpha"} if "divergence" in read and self.divergence == "alpha" else read

    @model_validator(mode="before")
    @classmethod
    def _mixed(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("mix"), dict):
            return value
        if "name" in value:
            raise ValueError(f"name={value['name']} and mix say twice what to learn by; leave name out")
        known = get_args(PreferenceName)
        for name in value["mix"]:
            if name not in known:
                guess = nearest(str(name), known)
                hint = f"; did you mean {guess}?" if guess else ""
                raise ValueError(f"mix.{name}={value['mix'][name]}: unknown name{hint} (known: {', '.join(known)})")
        if not value["mix"]:
            raise ValueError("mix={} names no loss; give each its weight: mix: {dpo: 0.8, sft: 1.0}")
        if single := [name for name in value["mix"] if name in UNPAIRED]:
            raise ValueError(
                f"mix.{single[0]}={value['mix'][single[0]]}: {single[0]} learns from single completions, the rest of a "
                f"mix from pairs; leave it out, or set name={single[0]} alone"
            )
        return _shared_defaults(cls, value) | value

    @model_validator(mode="after")
    def _all_read(self) -> PreferenceLoss:
        if self.divergence != "reverse_kl" and (singly := [n for n in self.weights if n in REVERSE_KL_ONLY]):
            raise ValueError(
                f"divergence={self.divergence}: {singly[0]} scores a completion by itself, where the normaliser of an "
                "f-divergence does not cancel; leave divergence out"
            )
        for field in sorted(self.model_fields_set - self.reads - {"name", "mix"}):
            given = f"{field}={getattr(self, field)}"
            if field == "alpha":
                raise ValueError(f"{given} is read with divergence=alpha only; set that, or leave alpha out")
            readers = _listed([name for name, read in READS.items() if field in read])
            raise ValueError(
                f"{given} is read by {readers} only, and not by {_listed(list(self.weights))}; leave it out"
            )
        if "exo_pair" in self.weights and self.label_smoothing == 0:
            raise ValueError("label_smoothing=0.0 makes exo_pair infinite (log 0); set label_smoothing=0.001")
        return self

    @model_serializer(mode="wrap")
    def _what_is_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a written configuration must load again, and what is not read would be refused then
        shown = self.reads | ({"name"} if self.mix is None else {"mix"})
        return {key: value for key, value in handler(self).items() if key in shown}


def _shared_defaults(section: type[PreferenceLoss], value: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults on which the losses of a mix agree; where they do not, the user decides."""
    shared = {}
    for parameter in sorted({p for name in value["mix"] for p in READS[name]} - value.keys()):
        own = section.model_fields[parameter].default
        readers = [name for name in value["mix"] if parameter in READS[name]]
        defaults = [section.by_name.get(name, {}).get(parameter, own) for name in readers]
        if len(set(defaults)) > 1:
            each = ", ".join(f"{name} {default}" for name, default in zip(readers, defaults, strict=True))
            raise ValueError(
                f"{parameter} is missing: the losses of the mix have different defaults ({each}) and share one value; "
                f"set for example {parameter}={defaults[0]}"
            )
        shared[parameter] = defaults[0]
    return shared


def _listed(names: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
