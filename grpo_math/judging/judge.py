"""Which judge a command asks: a server, vLLM or transformers in this process, with its cache and its budget.

All that can be wrong with the arguments is found here, before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from grpo_math.judging.desk import Desk
from grpo_math.judging.ledger import BudgetSpent, Caps
from grpo_math.judging.question import Talk
from grpo_math.progress import bar
from grpo_math.types import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Arguments:
    """Those of `label` and `revise`, by their names there. cache: None for a folder beside --out."""

    model: str
    engine: Literal["hf", "vllm", "openai"] = "openai"
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 32
    request_s: float = 120.0
    retries: int = 6
    chat: bool | None = None
    request_field: Mapping[str, Any] = field(default_factory=dict)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    max_rows: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    requests_per_minute: float | None = None
    max_requests: int | None = None
    max_total_tokens: int | None = None
    cache: Path | None = None


class Outcomes(Generic[T]):
    """by_place: of the talks; one that the budget did not reach has none. spent: that it did not."""

    def __init__(self) -> None:
        self.by_place: dict[int, T] = {}
        self.spent: BudgetSpent | None = None


class Judge(Protocol):
    @property
    def identity(self) -> dict[str, Any]: ...

    def hold(self, talks: Iterable[Talk[T]]) -> Generator[list[tuple[int, T]], None, None]:
        """The outcomes by the talks' places, as they come. Raises BudgetSpent."""


def hold_all(judge: Judge, talks: Iterable[Talk[T]], total: int) -> Outcomes[T]:
    """Every talk, with a progress bar."""
    outcomes: Outcomes[T] = Outcomes()
    show = bar(total)
    # closed before the cache is, however it ends: what is on its way would be written there
    with closing(judge.hold(talks)) as blocks:
        try:
            for block in blocks:
                outcomes.by_place.update(block)
                show(len(outcomes.by_place))
        except BudgetSpent as error:
            outcomes.spent = error
    return outcomes


def spending(desk: Desk) -> str:
    counts = desk.ledger.counts()
    return (
        f"{desk.asked:,} questions asked, {desk.kept:,} known; with earlier calls {counts.requests:,} requests and "
        f"{counts.tokens:,} tokens"
    )


@contextmanager
def judge_of(arguments: Arguments, out: Path) -> Iterator[tuple[Judge, Desk]]:
    """Raises UserError."""
    if arguments.engine_options and arguments.engine != "vllm":
        raise UserError("--engine-option is for --engine vllm; leave it out")
    of_servers = {
        "--requests-per-minute": arguments.requests_per_minute,
        "--request-field": arguments.request_field or None,
        "--chat": arguments.chat,
    }
    idle = [name for name, value in of_servers.items() if value is not None]
    if idle and arguments.engine != "openai":
        raise UserError(f"{idle[0]} is for --engine openai; leave it out")
    path = "" if arguments.engine == "openai" else _path(arguments.model)
    folder = arguments.cache or out.with_name(f"{out.name}.judge")
    caps = Caps(arguments.requests_per_minute, arguments.max_requests, arguments.max_total_tokens)
    desk = Desk(folder, caps)
    try:
        with MAKERS[arguments.engine](arguments, path, desk) as judge:
            yield judge, desk
    finally:
        desk.close()


@contextmanager
def _server(arguments: Arguments, path: str, desk: Desk) -> Iterator[Judge]:
    from grpo_math.judging.server import Address, Server

    assert arguments.base_url is not None
    address = Address(
        arguments.base_url, arguments.model, arguments.key_env, arguments.concurrency, arguments.request_s,
        arguments.retries, arguments.chat is not False, arguments.request_field,
    )  # fmt: skip
    server = Server(address, desk)
    server.introduce()
    yield server


def _vllm(arguments: Arguments, path: str, desk: Desk) -> AbstractContextManager[Judge]:
    from grpo_math.evaluation.vllm import VLLMSampler
    from grpo_math.judging.local import Local

    return closing(Local(VLLMSampler(path, arguments.max_rows, arguments.dtype, arguments.engine_options), path, desk))


def _hf(arguments: Arguments, path: str, desk: Desk) -> AbstractContextManager[Judge]:
    from grpo_math.evaluation.hf import HFSampler
    from grpo_math.judging.local import Local

    return closing(Local(HFSampler(path, arguments.max_rows, arguments.dtype, arguments.device), path, desk))


Maker = Callable[[Arguments, str, Desk], AbstractContextManager[Judge]]
MAKERS: dict[str, Maker] = {"openai": _server, "vllm": _vllm, "hf": _hf}


def _path(model: str) -> str:
    from grpo_math.evaluation.ask import model_path

    return model_path(model)
