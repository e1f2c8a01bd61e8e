"""Before a judge is asked: is the reply there already, and is there budget for it? For servers and local models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo_math.judging.cache import LEDGER, Cache
from grpo_math.judging.ledger import Caps, Ledger
from grpo_math.judging.question import Question, Reply, key

FLAGS = ("--max-requests", "--max-total-tokens")


class Desk:
    """folder: of cache and ledger. names: what the user calls the two caps. kept: replies that were there already;
    asked: questions that were asked."""

    def __init__(self, folder: Path, caps: Caps, names: tuple[str, str] = FLAGS) -> None:
        self.cache = Cache(folder)
        self.ledger = Ledger(folder / LEDGER, caps, names)
        self.kept = self.asked = 0

    def known(self, model: Mapping[str, Any], question: Question) -> Reply | None:
        reply = self.cache.get(key(model, question))
        self.kept += reply is not None
        return reply

    def pay(self) -> float:
        """Seconds to wait before the request. Raises BudgetSpent."""
        seconds = self.ledger.pay()
        self.asked += 1
        return seconds

    def keep(self, model: Mapping[str, Any], question: Question, reply: Reply) -> None:
        """A failure costs and is not kept: it is asked again the next time."""
        self.ledger.add(reply.tokens)
        if reply.failed is None:
            self.cache.put(key(model, question), reply)

    def close(self) -> None:
        self.cache.close()
        self.ledger.close()
