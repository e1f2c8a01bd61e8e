"""What every section of the configuration is made of: the numbers that may stand in it, and how it is read."""

from __future__ import annotations

from os.path import expanduser
from typing import Annotated, Any, ClassVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
PathText = Annotated[str, AfterValidator(expanduser)]  # the shell leaves the ~ of model.path=~/x as it is


class Section(BaseModel):
    """A part of the tree. `shorthand` is the key a lone string stands for: `task: gsm8k` is `task: {name: gsm8k}`.

    by_name: defaults of some names that differ from the section's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    shorthand: ClassVar[str | None] = None
    by_name: ClassVar[dict[str, dict[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        value = {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value
        name = value.get("name") if isinstance(value, dict) else None
        return cls.by_name[name] | value if isinstance(name, str) and name in cls.by_name else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read `kl.coefficient: yes` as 1.0
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            if {int, float} & {annotation, *get_args(annotation)}:
                raise ValueError("is a truth value where a number belongs")
        return value
