"""What the ranks check of one another before any of them loads a model: that they are all there, and of one mind.

Each rank writes what it is into the store through which the ranks found each other, and reads what the others wrote. So
a rank that is missing is named, and all come to the same verdict, without a collective that might hang; only then comes
a small one. Left out: whether the launcher is told well (launch_command.py).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from grpo_math import __version__, config, memory
from grpo_math.config_file import dump_config
from grpo_math.launching.ports import check_port
from grpo_math.memory_report import in_units
from grpo_math.model_at import model_size
from grpo_math.ranks import Ranks
from grpo_math.types import UserError

__all__ = ["check_port", "check_ranks"]

DEADLINE_S = 120.0  # for ranks whose machines import torch at different speeds
SEEN_S = 30.0  # a folder over the network may show a new file late
_CALLS = itertools.count()
PACKAGES = ("torch", "transformers", "deepspeed", "vllm", "peft")


@dataclass(frozen=True)
class Facts:
    """What a rank tells the others of itself. Bytes, where a number is one of memory."""

    rank: int
    host: str
    local_rank: int
    versions: dict[str, str]
    settings: str  # the configuration, every key written out
    devices: int  # that it sees
    device: str  # which one is its own; empty on the CPU
    device_free: int
    host_free: int

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"


def check_ranks(ranks: Ranks, cfg: config.Common, deadline_s: float = DEADLINE_S) -> None:
    """Raises UserError, the same on every rank, where the run cannot work. To be called on all ranks, after they have
    joined and before a model is loaded. Rank 0 prints what is only likely to go wrong."""
    mine = facts(ranks, cfg)
    if ranks.size == 1:
        for warning in check_memory([mine], cfg, 1):
            print(warning)
        return
    store = _Store(ranks, deadline_s)
    everyone = [Facts(**json.loads(text)) for text in store.exchange("facts", json.dumps(asdict(mine)))]
    complaints = [text for check in (versions_differ, settings_differ, devices_differ) for text in check(everyone)]
    if complaints:
        raise UserError("\n".join(complaints))
    warnings = check_memory(everyone, cfg, ranks.size)
    _check_run_dir(store, everyone, ranks, cfg.run_dir)
    _check_reduce(store, everyone, ranks, deadline_s)
    if ranks.first:
        print("\n".join([*warnings, f"{ranks.size} ranks on {len({f.host for f in everyone})} machines agree"]))


def facts(ranks: Ranks, cfg: config.Common) -> Facts:
    cuda = torch.cuda.is_available() and cfg.backend.device != "cpu"
    count = torch.cuda.device_count() if cuda else 0
    device, free = "", 0
    if cuda and ranks.local_rank < count:
        device = str(torch.cuda.get_device_properties(ranks.local_rank).uuid)
        free = torch.cuda.mem_get_info(ranks.local_rank)[0]
    versions = {"python": platform.python_version(), "grpo-math": __version__}
    versions |= {name: _version(name) for name in PACKAGES}
    host, settings = socket.gethostname(), dump_config(cfg)
    return Facts(ranks.rank, host, ranks.local_rank, versions, settings, count, device, free, _host_free())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # vLLM built for the CPU goes by a name of its own
        return _version(f"{package}-cpu") if package == "vllm" else "missing"


def _host_free() -> int:
    """Memory that a process may still take on this machine."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) << 10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def versions_differ(everyone: list[Facts]) -> list[str]:
    """A line for each package of which not all ranks have rank 0's version."""
    complaints = []
    for package, wanted in everyone[0].versions.items():
        others = [f for f in everyone if f.versions[package] != wanted]
        if others:
            complaints.append(
                f"{package} is {wanted} on {everyone[0].name} but {others[0].versions[package]} on {_names(others)}; "
                "give all machines the same environment"
            )
    return complaints


def settings_differ(everyone: list[Facts]) -> list[str]:
    """A line where not all ranks have rank 0's configuration; it names the first key that differs."""
    digests = [hashlib.sha256(f.settings.encode()).hexdigest() for f in everyone]
    others = [f for f, digest in zip(everyone, digests, strict=True) if digest != digests[0]]
    if not others:
        return []
    theirs, ours = others[0].settings.splitlines(), everyone[0].settings.splitlines()
    pairs = zip(theirs + [""] * len(ours), ours + [""] * len(theirs), strict=True)
    theirs_first, ours_first = next((a.strip(), b.strip()) for a, b in pairs if a != b)
    return [
        f"the configuration of {_names(others)} is not that of {everyone[0].name}: `{theirs_first}` there, "
        f"`{ours_first}` here; start all ranks with the same file and the same overrides"
    ]


def devices_differ(everyone: list[Facts]) -> list[str]:
    """A line for each rank without a device of its own, where there are devices."""
    if not any(f.devices for f in everyone):
        return []
    complaints = []
    owner: dict[tuple[str, str], Facts] = {}
    for f in everyone:
        if not f.device:
            complaints.append(
                f"{f.name} is number {f.local_rank} there, and sees {f.devices} GPUs; start at most as many ranks on "
                "a machine as it has GPUs (--gpus), and show all of them to each (CUDA_VISIBLE_DEVICES)"
            )
        elif (other := owner.setdefault((f.host, f.device), f)) is not f:
            complaints.append(
                f"{other.name} and {f.name} have the same GPU {f.device}; give each a LOCAL_RANK of its own"
            )
    return complaints


def check_memory(everyone: list[Facts], cfg: config.Common, size: int) -> list[str]:
    """Warnings where a rank may run out of memory. Raises UserError where not even the weights can fit."""
    model = model_size(cfg.model)
    if model is None or model.parameters is None or (cfg.model.lora.rank and model.shape is None):
        return []
    weights = memory.weights(cfg, model.parameters, model.shape, size)
    always = memory.always(cfg, model.parameters, model.shape, size)
    update = memory.in_update(cfg, model.parameters, model.shape, memory.row_tokens(cfg, model), size)
    warnings: list[str] = []
    for f in everyone:
        if f.device:
            said = f"{f.name}, whose GPU has {in_units(f.device_free)} free"
            _compare(said, f.device_free, memory.total(weights), memory.total(always) + memory.total(update), warnings)
    for host in {f.host: None for f in everyone}:
        here = [f for f in everyone if f.host == host]
        on_cpu = [memory.total(parts, on_cpu=True) for parts in (weights, always, update)]
        if not here[0].device:
            on_cpu = [a + memory.total(parts) for a, parts in zip(on_cpu, (weights, always, update), strict=True)]
        free = min(f.host_free for f in here)
        least, most = on_cpu[0] * len(here), (on_cpu[1] + on_cpu[2]) * len(here)
        _compare(f"{host}, with {len(here)} ranks and {in_units(free)} of memory free", free, least, most, warnings)
    return warnings


def _compare(said: str, free: int, least: int, most: int, warnings: list[str]) -> None:
    if least > free:
        raise UserError(
            f"{said}: the weights alone take {in_units(least)}; end what else runs there, take more ranks with "
            "backend.deepspeed.zero=3, or a smaller model (`grpo-math plan` shows the arithmetic)"
        )
    if most > free:
        warnings.append(f"warning: {said}: the run is estimated to take {in_units(most)} (see `grpo-math plan`)")


class _Store:
    """The store that torch.distributed found the ranks through: each rank writes under its own number."""

    def __init__(self, ranks: Ranks, deadline_s: float) -> None:
        self.ranks, self.deadline_s = ranks, deadline_s
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        client = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=deadline_s))
        # ranks that torchrun has started again meet in the same store
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"rank_checks/{restart}/{next(_CALLS)}", client)

    def put(self, key: str, text: str) -> None:
        self.store.set(f"{key}/{self.ranks.rank}", text)

    def there(self, key: str) -> list[int]:
        """Which ranks have put something under the key."""
        return [rank for rank in range(self.ranks.size) if self.store.check([f"{key}/{rank}"])]

    def exchange(self, key: str, text: str) -> list[str]:
        """What every rank has put under the key, in the order of the ranks."""
        self.put(key, text)
        absent: list[int] = []

        def all_there() -> bool:
            absent[:] = sorted(set(range(self.ranks.size)) - set(self.there(key)))
            return not absent

        if not _until(all_there, self.deadline_s):
            raise UserError(
                f"{_numbers(absent)} of {self.ranks.size} did not come to the checks within {self.deadline_s:g} "
                f"seconds, as {_here(self.ranks)} did; see what they last wrote, and end what is left of them"
            )
        return [self.store.get(f"{key}/{rank}").decode() for rank in range(self.ranks.size)]


def _until(true: Callable[[], bool], deadline_s: float) -> bool:
    """Whether it became true in time."""
    end = time.monotonic() + deadline_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _check_run_dir(store: _Store, everyone: list[Facts], ranks: Ranks, run_dir: str) -> None:
    """Rank 0 writes a file that all must find. Nothing stays behind."""
    folder = Path(run_dir).absolute()
    made: list[Path] = []
    token, complaint = f".ranks-{uuid.uuid4().hex}", ""
    if ranks.first:
        try:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / token).write_text(token)
        except OSError as error:
            complaint = f"run_dir={run_dir}: {everyone[0].name} cannot write there ({error.strerror}); give another"
    token, complaint = json.loads(store.exchange("token", json.dumps([token, complaint]))[0])
    if complaint:
        raise UserError(complaint)
    saw = _until(lambda: _reads(folder / token) == token, min(SEEN_S, store.deadline_s / 2))
    blind = [f for f, text in zip(everyone, store.exchange("saw", str(int(saw))), strict=True) if text == "0"]
    if ranks.first:
        (folder / token).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's file may be in there by now
            for path in made:
                path.rmdir()
    if blind:
        raise UserError(
            f"run_dir={run_dir}: {_names(blind)} does not see what {everyone[0].name} writes there; give a folder that "
            "all machines share, by its absolute path"
        )


def _reads(file: Path) -> str | None:
    try:
        os.listdir(file.parent)  # makes a network file system look again
        return file.read_text()
    except OSError:
        return None


def _check_reduce(store: _Store, everyone: list[Facts], ranks: Ranks, deadline_s: float) -> None:
    """The sum over the ranks of their numbers, on the device that trains, must be what arithmetic says."""
    device = torch.device("cuda", ranks.local_rank) if everyone[ranks.rank].device else torch.device("cpu")
    numbers = torch.full((1024,), float(ranks.rank + 1), device=device)
    store.put("reduce", "entered")
    work = dist.all_reduce(numbers, async_op=True)
    assert work is not None
    if not _until(work.is_completed, deadline_s):
        absent = sorted(set(range(ranks.size)) - set(store.there("reduce")))
        why = f"{_numbers(absent)} did not take part" if absent else "all ranks took part: is their network closed?"
        raise UserError(
            f"a sum over the {ranks.size} ranks did not come back to {_here(ranks)} within {deadline_s:g} seconds; "
            f"{why} (NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the network to use, NCCL_DEBUG=INFO says more)"
        )
    work.wait()
    expected, found = ranks.size * (ranks.size + 1) / 2, numbers.tolist()
    bad = next((value for value in found if not math.isclose(value, expected)), None)
    if bad is not None:
        raise UserError(
            f"a sum over the {ranks.size} ranks came to {_here(ranks)} as {bad:g} instead of {expected:g}; the network "
            "or a device is broken: try NCCL_P2P_DISABLE=1, and leave out one machine after the other"
        )


def _here(ranks: Ranks) -> str:
    return f"rank {ranks.rank} on {socket.gethostname()}"


def _names(some: Iterable[Facts]) -> str:
    named = [f.name for f in some]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _numbers(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{', ...' if len(ranks) > 8 else ''}"
