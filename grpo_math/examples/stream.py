"""Examples without end: tokenised as they are taken, in a seeded order that can resume.

Left out: reading the files (read.py) and tokens (tokens.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

import numpy as np

from grpo_math.examples.complaints import Complaints
from grpo_math.examples.raw import RawExample
from grpo_math.types import UserError

MAX_TOO_LONG = 1000  # examples in a row that do not fit: then too few will

Order = Literal["shuffle", "file"]


class Fits(Protocol):
    """Example, Pair or Labelled."""

    def fitted(self, room: int, truncate: bool) -> Self | None:
        """With at most `room` tokens; None where that cannot be."""


Taken = TypeVar("Taken", bound=Fits)


class ExampleStream(Generic[Taken]):
    """Each epoch has every example once, in an order that depends on the seed and the epoch alone, whatever is taken.

    room: tokens of prompt and completion together. What has more is passed over and counted in `too_long`; with
    `truncate` its completions are cut, and only what cannot be is passed over. parts: the examples in so many
    consecutive parts of the files, of which `take` draws from number `part` until another is set, which begins a first
    epoch of its own (stepwise DPO, arXiv:2403.19270). check: raises what `tokenise` would of an example, without making
    its tokens; by default `tokenise` itself. All examples go through it at once, so that a broken one is found before
    the run begins. Raises UserError with file:line of what is wrong."""

    def __init__(
        self,
        rows: Sequence[RawExample],
        tokenise: Callable[[RawExample], Taken],
        seed: int,
        room: int,
        order: Order = "shuffle",
        truncate: bool = False,
        parts: int = 1,
        check: Callable[[RawExample], object] | None = None,
    ) -> None:
        if parts > len(rows):
            raise UserError(f"stages={parts}: data.files hold {len(rows)} examples; give more, or set fewer stages")
        refuse_broken(rows, check or tokenise)
        self.rows, self.tokenise, self.seed, self.room = rows, tokenise, seed, room
        self.order, self.truncate = order, truncate
        self.bounds = [len(rows) * i // parts for i in range(parts + 1)]
        self.too_long = 0
        self._fingerprint = fingerprint(rows)
        self._go_to(0, epoch=0, position=0)

    @property
    def part(self) -> int:
        return self._part

    @part.setter
    def part(self, number: int) -> None:
        assert 0 <= number < len(self.bounds) - 1
        if number != self._part:
            self._go_to(number, epoch=0, position=0)

    @property
    def epoch(self) -> int:
        """How often all of the part has been taken."""
        return self._epoch

    def take(self, count: int) -> list[Taken]:
        """The next `count` examples. Raises UserError where hardly any of them fits."""
        taken: list[Taken] = []
        in_a_row = 0
        while len(taken) < count:
            row = self._next()
            if (fitting := self._fitting(row)) is not None:
                taken.append(fitting)
                in_a_row = 0
                continue
            self.too_long += 1
            in_a_row += 1
            # two epochs side by side can have all but one of their examples in a row, twice
            if in_a_row >= min(MAX_TOO_LONG, 2 * len(self._indices)):
                raise UserError(self._none_fits(in_a_row, row.where))
        return taken

    def everything(self) -> Iterator[Taken]:
        """All examples of the part that fit, in the order of the files; where `take` stands does not change."""
        for row in self.rows[self.bounds[self._part] : self.bounds[self._part + 1]]:
            if (fitting := self._fitting(row)) is not None:
                yield fitting

    def state(self) -> dict[str, Any]:
        """All that restore needs, as plain JSON."""
        return {
            "part": self._part,
            "epoch": self._epoch,
            "position": self._position,
            "too_long": self.too_long,
            "seed": self.seed,
            "order": self.order,
            "parts": len(self.bounds) - 1,
            "examples": self._fingerprint,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises UserError where it was taken of other examples or settings."""
        if state["examples"] != self._fingerprint:
            then = state["examples"]["count"]
            raise self._differs(f"{then} examples", f"{len(self.rows)}, or other ones; put data back")
        now = self.state()
        for key in ("seed", "order", "parts"):
            if state[key] != now[key]:
                raise self._differs(f"{key}={state[key]}", f"{key}={now[key]}; put it back")
        self.too_long = state["too_long"]
        self._go_to(state["part"], state["epoch"], state["position"])

    def _next(self) -> RawExample:
        if self._position == len(self._indices):
            self._go_to(self._part, self._epoch + 1, 0)
        self._position += 1
        return self.rows[self._indices[self._position - 1]]

    def _fitting(self, row: RawExample) -> Taken | None:
        try:
            return self.tokenise(row).fitted(self.room, self.truncate)
        except UserError as error:  # where `check` knows less than `tokenise`
            raise UserError(f"{row.where}: {error}") from error

    def _go_to(self, part: int, epoch: int, position: int) -> None:
        self._part, self._epoch, self._position = part, epoch, position
        start, end = self.bounds[part], self.bounds[part + 1]
        if self.order == "file":
            self._indices = np.arange(start, end)
        else:
            self._indices = start + np.random.default_rng((self.seed, part, epoch)).permutation(end - start)

    def _none_fits(self, in_a_row: int, where: str) -> str:
        what = "have prompts alone of" if self.truncate else "have"
        remedy = "" if self.truncate else "set data.too_long=truncate to cut their completions, "
        return (
            f"{in_a_row} examples in a row {what} more than {self.room} tokens, the last {where}; {remedy}raise "
            "data.max_length where it is set, or take a model with a longer context"
        )

    @staticmethod
    def _differs(then: str, now: str) -> UserError:
        return UserError(
            f"the checkpoint was made with {then}, now there is {now} as it was, or begin anew in another run_dir"
        )


def refuse_broken(rows: Sequence[RawExample], check: Callable[[RawExample], object]) -> None:
    """Raises one UserError for all the rows that `check` refuses, with file:line for each kind of mistake."""
    complaints = Complaints()
    for row in rows:
        with complaints.of(row.where):
            check(row)
    complaints.raise_if_any()


def fingerprint(rows: Sequence[RawExample]) -> dict[str, int]:
    """Of what is learnt, in its order; the same lines in a file that has moved are the same."""
    checksum = 0
    for row in rows:
        checksum = zlib.crc32(repr(row.learnt).encode("utf-8", "backslashreplace"), checksum)
    return {"count": len(rows), "crc32": checksum}
