"""A coroutine that produces items, run in a thread of its own, and read as a plain iterator.

It goes on while its reader is busy, and is cancelled as soon as its reader stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from grpo_math.event_loop import event_loop

T = TypeVar("T")
Produce = Callable[[Callable[[T], None]], Coroutine[Any, Any, None]]


def in_background(produce: Produce[T]) -> Generator[list[T], None, None]:
    """All that there is at a time, and never nothing. What `produce` raises is raised here, after its last item.

    The generator's end, however it comes (close, KeyboardInterrupt, an error of the reader), cancels `produce` and
    waits for what it has open to be closed."""
    items: SimpleQueue[T | None] = SimpleQueue()
    with event_loop("in_background") as loop:
        work = asyncio.run_coroutine_threadsafe(produce(items.put), loop)
        work.add_done_callback(lambda _: items.put(None))
        while (item := items.get()) is not None:
            found, more = _rest(items)
            yield [item, *found]
            if not more:
                break
        work.result()


def _rest(items: SimpleQueue[T | None]) -> tuple[list[T], bool]:
    """What else is there by now, and whether more may come."""
    found: list[T] = []
    while True:
        try:
            item = items.get_nowait()
        except Empty:
            return found, True
        if item is None:
            return found, False
        found.append(item)
