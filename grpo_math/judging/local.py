"""A judge in this process, asked about many things side by side.

Left out: several machines; `vllm serve` and a URL do those.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from itertools import islice
from typing import Any, TypeVar

from grpo_math.evaluation.hf import HFSampler
from grpo_math.evaluation.vllm import VLLMSampler
from grpo_math.judging.answers import Answerer
from grpo_math.judging.desk import Desk
from grpo_math.judging.ledger import BudgetSpent
from grpo_math.judging.question import Question, Reply, Talk

T = TypeVar("T")


class Local:
    """sampler: of texts. model: the folder or Hub id that it has loaded."""

    def __init__(self, sampler: HFSampler | VLLMSampler, model: str, desk: Desk) -> None:
        self.answerer, self.desk = Answerer(sampler, model), desk

    @property
    def identity(self) -> dict[str, Any]:
        return self.answerer.identity

    def hold(self, talks: Iterable[Talk[T]]) -> Generator[list[tuple[int, T]], None, None]:
        """The outcomes by the talks' places, as they come. Raises BudgetSpent once all that it paid for is kept."""
        waiting = iter(enumerate(talks))
        live: dict[int, tuple[Talk[T], Question]] = {}
        spent: BudgetSpent | None = None
        while True:
            ended: list[tuple[int, T]] = []
            for place, talk in islice(waiting, self.answerer.sampler.max_rows - len(live)):
                _go_on(place, talk, None, live, ended)
            if live:
                replies, error = self._replies({place: question for place, (_, question) in live.items()})
                spent = spent or error
                for place in list(live):
                    talk, _ = live.pop(place)
                    if place in replies:
                        _go_on(place, talk, replies[place], live, ended)
            elif not ended:
                break
            if ended:
                yield ended
        if spent is not None:
            raise spent

    def close(self) -> None:
        self.answerer.close()

    def _replies(self, questions: Mapping[int, Question]) -> tuple[dict[int, Reply], BudgetSpent | None]:
        """Those that are there already or that there is budget for."""
        found: dict[int, Reply] = {}
        paid: list[int] = []
        spent: BudgetSpent | None = None
        for place, question in questions.items():
            reply = self.desk.known(self.identity, question)
            if reply is not None:
                found[place] = reply
                continue
            try:
                self.desk.pay()
                paid.append(place)
            except BudgetSpent as error:
                spent = error
        for i, reply in self.answerer.answer([questions[place] for place in paid]):
            self.desk.keep(self.identity, questions[paid[i]], reply)
            found[paid[i]] = reply
        return found, spent


def _go_on(
    place: int,
    talk: Talk[T],
    reply: Reply | None,
    live: dict[int, tuple[Talk[T], Question]],
    ended: list[tuple[int, T]],
) -> None:
    try:
        live[place] = talk, next(talk) if reply is None else talk.send(reply)
    except StopIteration as end:
        ended.append((place, end.value))
