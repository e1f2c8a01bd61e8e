"""The processes that train together: who takes which share of the work, and how all of them come to know all of it.

Every rank runs the same loop on the same whole step; an engine, a scorer and a backend each do their rank's share and
gather. So the numbers, the metrics too, are those of one process. Left out: how weights are split, which is the
backend's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from grpo_math.types import EngineError, PeerFailed, UserError

PR_SET_PDEATHSIG = 1  # of Linux's prctl
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size`; local_rank is its place on its own machine, and so its device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    deadline_s: float = 3600.0
    group: Any = None  # the process group that these calls use; None is everybody's

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's block of them. Joined in the order of the ranks the blocks are `items` again."""
        start, end = (i * len(items) // self.size for i in (self.rank, self.rank + 1))
        return list(items[start:end])

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Every rank's items, joined in the order of the ranks; the same list on each."""
        if self.size == 1:
            return list(mine)
        parts: list[Sequence[T]] = [()] * self.size
        dist.all_gather_object(parts, mine, group=self.group)
        return [item for part in parts for item in part]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def any(self, value: int) -> int:
        """The largest of every rank's numbers: a signal that one of them got is a signal to all."""
        return max(self.gather([value]))

    def together(self, work: Callable[[], T]) -> T:
        """Do it on every rank. Where it fails on one it fails on all, so that none is left waiting for the others: with
        PeerFailed, or with EngineError where that is what one had."""
        try:
            result = work()
        except Exception as error:
            self.gather([f"{type(error).__name__}: {error}"])
            raise
        for rank, complaint in enumerate(self.gather([""])):
            if complaint:
                kind = EngineError if complaint.startswith(f"{EngineError.__name__}:") else PeerFailed
                raise kind(f"rank {rank} failed: {complaint}")
        return result

    def tell(self, work: Callable[[], T]) -> T:
        """What it gives on the first rank, on every rank."""
        mine = self.together(lambda: [work()] if self.first else [])
        return self.gather(mine)[0]

    def apart(self) -> Ranks:
        """The same ranks with a line of their own, for calls from another thread. Every rank must ask for it."""
        if self.size == 1:
            return self
        return replace(self, group=dist.new_group(backend="gloo", timeout=timedelta(seconds=self.deadline_s)))

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather([None])


def join(deadline_s: float) -> Ranks:
    """The ranks that torchrun or the deepspeed launcher has started, or this process alone. A collective that not all
    ranks have entered after `deadline_s` seconds fails."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Ranks()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set but not {', '.join(missing)}; start the ranks with "
            "torchrun --nproc-per-node N -m grpo_math train ..., or unset WORLD_SIZE"
        )
    _end_with_launcher()
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    ranks = Ranks(rank, size, local_rank, deadline_s)
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(ranks.local_rank)
        # two networks: tensors between devices, and Python objects between CPUs
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=deadline_s))
    return ranks


def _end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is gone, however that came about: the run saves and ends, instead
    of going on unseen and holding its folder."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave() -> None:
    """Close the lines between the ranks, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()
