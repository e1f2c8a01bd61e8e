"""All that is wrong with a file's lines, in one error: the same mistake on many lines is told once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from grpo_math.types import UserError

SHOWN = 5  # so many different complaints are told


@dataclass
class Complaints:
    """places: each complaint, and the file:line of all lines that it is about. lines: how many these are together."""

    places: dict[str, list[str]] = field(default_factory=dict)
    lines: int = 0

    @contextmanager
    def of(self, where: str) -> Iterator[None]:
        """A UserError within is kept as a complaint about the line `where`, and does not come out."""
        try:
            yield
        except UserError as error:
            self.lines += 1
            self.places.setdefault(str(error), []).append(where)

    def raise_if_any(self) -> None:
        if not self.places:
            return
        told = [_told(complaint, places) for complaint, places in list(self.places.items())[:SHOWN]]
        if len(self.places) > SHOWN:
            told.append(f"and {len(self.places) - SHOWN:,} other complaints; {self.lines:,} lines are broken")
        raise UserError("\n".join(told))


def _told(complaint: str, places: Sequence[str]) -> str:
    more = f" (and {len(places) - 1:,} more such lines, the next {places[1]})" if len(places) > 1 else ""
    return f"{places[0]}: {complaint}{more}"
