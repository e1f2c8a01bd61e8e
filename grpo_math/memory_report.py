"""The lines of `plan` that say what each device must hold, whether it can, and if not what to change.

Imports no torch: devices are asked of nvidia-smi. Left out: the formulas (memory.py, memory_vllm.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpo_math import config, memory, memory_vllm
from grpo_math.memory import Part, total
from grpo_math.memory_beside import NOTHING, Beside, Block, beside
from grpo_math.memory_vllm import GIB, Sampler
from grpo_math.model_size import ModelSize

ASSUMED = 80.0  # GiB, of an A100 or H100
USABLE = 0.95  # of a device: the rest is for CUDA, NCCL and fragments


@dataclass(frozen=True)
class Device:
    """bytes: of its memory. source: how that is known. cpu: it is this machine's memory that is trained in."""

    bytes: int
    source: str
    cpu: bool = False


@dataclass(frozen=True)
class Need:
    """What a rank holds, in parts. sampler: vLLM's, on the same devices or on its servers'. beside: of other models."""

    always: list[Part]
    update: list[Part]
    sampling: list[Part]
    sampler: Sampler | None
    peak: int
    beside: Beside = NOTHING

    def fits(self, device: Device) -> bool:
        return self.peak <= USABLE * device.bytes and self.sampler_fits

    @property
    def sampler_fits(self) -> bool:
        return self.sampler is None or self.sampler.cache > 0


def device_of(cfg: config.Common, gpu_memory: float | None = None) -> Device:
    """The device that a rank trains on; gpu_memory: what the user says of it, in GiB."""
    if gpu_memory is not None:
        return Device(int(gpu_memory * GIB), "as --gpu-memory says")
    if cfg.backend.device == "cpu":
        return Device(_machine_memory(), "this machine's memory", cpu=True)
    seen = _seen()
    if seen is not None:
        return Device(seen, "the smallest GPU of this machine")
    return Device(int(ASSUMED * GIB), "assumed, no GPU being seen here; --gpu-memory GIB tells another")


def _machine_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else int(ASSUMED * GIB)


def _seen() -> int | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in result.stdout.split() if line.isdigit()]
    return min(sizes) << 20 if sizes and not result.returncode else None


def need_of(cfg: config.Common, size: ModelSize, ranks: int, device: Device) -> Need:
    """vLLM in process sleeps while weights are updated, so that only the larger of the two counts, unless
    rollout.vllm.sleep=false keeps it awake."""
    assert size.parameters is not None
    row = memory.row_tokens(cfg, size)
    always = memory.always(cfg, size.parameters, size.shape, ranks)
    update = memory.in_update(cfg, size.parameters, size.shape, row, ranks)
    sampling = memory.in_sampling(cfg, size.shape, row, ranks)
    sampler = None if cfg.rollout.engine == "hf" else memory_vllm.sampler(cfg, size, row, device.bytes)
    others = beside(cfg, size, row, ranks)
    in_process = sampler.share if sampler and cfg.rollout.engine == "vllm" else 0
    held, turn = total(always) + total(others.throughout), max(map(total, [update, *others.in_turn]))
    if in_process and not cfg.rollout.vllm.sleep:
        peak = held + turn + in_process
    else:
        peak = held + max(turn, total(sampling) + in_process)
    return Need(always, update, sampling, sampler, peak, others)


def memory_report(cfg: config.Common, size: ModelSize, ranks: int, device: Device) -> list[str]:
    """Each part with its formula, the peak, and the verdict."""
    need = need_of(cfg, size, ranks, device)
    lines = table([_row(part) for part in need.always if not part.on_cpu])
    lines += _blocks([block for block in need.beside.blocks if block.throughout])
    lines += ["while updating", *table([_row(part, "  ") for part in need.update if not part.on_cpu])]
    lines += _blocks([replace(b, title=f"while {b.title}") for b in need.beside.blocks if not b.throughout])
    if need.sampling:
        lines += ["while sampling", *table([_row(part, "  ") for part in need.sampling])]
    if need.sampler is not None:
        lines += [_where(cfg), *table([_row_of(*line) for line in need.sampler.lines])]
    lines += [f"not in it: {line}" for line in need.beside.elsewhere]
    lines.append(f"peak: about {in_units(need.peak)}, and half a GiB for Python and its libraries")
    on_cpu = [part for part in [*need.always, *need.update] if part.on_cpu]
    others = _blocks(need.beside.blocks, on_cpu=True)
    if on_cpu or others:
        lines += ["in the CPU's memory, for each rank", *table([_row(part, "  ") for part in on_cpu]), *others]
    return [*lines, *_letters(cfg, size), verdict(cfg, size, ranks, device)]


def _blocks(blocks: Sequence[Block], on_cpu: bool = False) -> list[str]:
    """Those with something on the device, or on the CPU, each under its title."""
    lines = []
    for block in blocks:
        if parts := [part for part in block.parts if part.on_cpu == on_cpu]:
            lines += [block.title, *table([_row(part, "  ") for part in parts])]
    return lines


def _where(cfg: config.Common) -> str:
    if cfg.rollout.engine == "vllm_server":
        return "vLLM, on the servers' devices, not on these"
    if cfg.rollout.vllm.sleep:
        return "vLLM while sampling, on the same device; it gives all of it back while updating (rollout.vllm.sleep)"
    return "vLLM, on the same device, all the time (rollout.vllm.sleep=false)"


def _letters(cfg: config.Common, size: ModelSize) -> list[str]:
    text = f"P = {size.parameters:,} parameters"
    if size.shape is None:
        missing = "activations and the key-value cache, whose formulas do not fit model type"
        return [f"not in it: {missing} {size.kind}", text]
    s = size.shape
    lines = []
    if cfg.model.lora.rank:
        adapters = memory.adapter_parameters(cfg.model.lora, s)
        lines.append(f"T = {adapters:,} of adapters: rank x (inputs + outputs) of each layer they are put to")
    text += f", H = {s.hidden:,} hidden, I = {s.intermediate:,} intermediate, L = {s.layers} layers, "
    text += f"V = {s.vocabulary:,} vocabulary, A = {s.queries:,} and K = {s.keys:,} wide queries and keys"
    return [*lines, text]


def verdict(cfg: config.Common, size: ModelSize, ranks: int, device: Device) -> str:
    """Whether it fits, and what would make it fit."""
    need = need_of(cfg, size, ranks, device)
    room = f"{USABLE:.0%} of {device.bytes / GIB:,.1f} GiB ({device.source})"
    if device.cpu and ranks > 1:
        room += f"; the {ranks} ranks of one machine share that"
    if need.fits(device):
        return f"fits: {in_units(need.peak)} of {room}"
    if need.sampler_fits:
        wrong = f"does not fit: {in_units(need.peak)} in {room}"
    else:
        assert need.sampler is not None
        wrong = f"does not fit: vLLM's share of {in_units(need.sampler.share)} has no room beside the weights"
    made = remedies(cfg, size, ranks, device)
    changes = " ".join(f"{key}={str(value).lower() if value is True else value}" for key, value in made.items())
    if made and need_of(_changed(cfg, made), size, ranks, device).fits(device):
        return f"{wrong}; set {changes}"
    more = "more GPUs with backend.deepspeed.zero=3" if cfg.backend.name == "deepspeed" else "backend.name=deepspeed"
    return f"{wrong}; it takes devices with more memory, or {more}" + (f", even with {changes}" if made else "")


def remedies(cfg: config.Common, size: ModelSize, ranks: int, device: Device) -> dict[str, Any]:
    """Settings that make it fit, the cheapest first and none that is not needed; all there are where they do not do.

    None changes a number of the training but by rounding: another adapter or model is for the user to choose."""
    made: dict[str, Any] = {}
    for key, value in _candidates(cfg, size, ranks, device):
        made[key] = value
        if need_of(_changed(cfg, made), size, ranks, device).fits(device):
            break
    else:
        return made
    for key in list(made)[:-1]:
        without = {k: v for k, v in made.items() if k != key}
        if need_of(_changed(cfg, without), size, ranks, device).fits(device):
            made = without
    return made


def _candidates(cfg: config.Common, size: ModelSize, ranks: int, device: Device) -> Iterator[tuple[str, Any]]:
    row, vllm = memory.row_tokens(cfg, size), cfg.rollout.vllm
    if not need_of(cfg, size, ranks, device).sampler_fits:
        for n in (2, 4, 8):
            split = {"rollout.vllm.tensor_parallel": n}
            if n > vllm.tensor_parallel and ranks % n == 0:
                yield "rollout.vllm.tensor_parallel", n
                if need_of(_changed(cfg, split), size, ranks, device).sampler_fits:
                    break
    in_process, deep = cfg.rollout.engine == "vllm", cfg.backend.name == "deepspeed"
    wanted: list[tuple[bool, str, Any]] = [
        (in_process and not vllm.sleep, "rollout.vllm.sleep", True),
        (not cfg.backend.gradient_checkpointing, "backend.gradient_checkpointing", True),
        (cfg.micro_batch_tokens > row, "micro_batch_tokens", row),
        (cfg.rollout.engine == "hf" and cfg.rollout.max_rows > 64, "rollout.max_rows", 64),
        (deep and cfg.backend.dtype == "float32", "backend.dtype", "bfloat16"),
        (deep and cfg.backend.deepspeed.zero < 3, "backend.deepspeed.zero", 3),
        (in_process and vllm.memory > 0.5, "rollout.vllm.memory", 0.5),
        (in_process and vllm.memory > 0.3, "rollout.vllm.memory", 0.3),
        (deep and not cfg.backend.deepspeed.offload_optimizer, "backend.deepspeed.offload_optimizer", True),
        (deep and not cfg.backend.deepspeed.offload_parameters, "backend.deepspeed.offload_parameters", True),
    ]
    yield from ((key, value) for wise, key, value in wanted if wise)


def _changed(cfg: config.Common, changes: dict[str, Any]) -> config.Common:
    for key, value in changes.items():
        cfg = _with(cfg, key, value)
    return cfg


def _with(cfg: Any, key: str, value: Any) -> Any:
    head, _, rest = key.partition(".")
    inner = value if not rest else _with(getattr(cfg, head), rest, value)
    return cfg.model_copy(update={head: inner})


def _row(part: Part, indent: str = "") -> tuple[str, str, str]:
    return f"{indent}{part.name}", in_units(part.bytes), part.formula


def _row_of(name: str, held: int | None, said: str) -> tuple[str, str, str]:
    return f"  {name}", "" if held is None else in_units(held), said


def in_units(count: int) -> str:
    """In GiB or MiB."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """First column of 20 letters; the second of 12, flush right, where there are three."""
    return [f"{r[0]:<20}{r[1]:>12}   {r[2]}" if len(r) == 3 else f"{r[0]:<20}{r[1]}" for r in rows]
