"""What both sides of a benchmark are given, how a process's memory is read, and how a result goes to the parent."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.config_file import load_config

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]
VERIFIERS = {"hash": str(ROOT / "benchmarks" / "hash_reward.py"), "math": "math"}


@dataclass(frozen=True)
class Setting:
    """One measurement. rows: TRL's per_device_train_batch_size, the rest being gradient accumulation. defaults: TRL as
    it comes, with gradient checkpointing and bf16 autocast."""

    model: str
    prompts: int = 16
    group_size: int = 16
    max_tokens: int = 64
    steps: int = 4
    warmup: int = 1
    reward: str = "hash"
    rows: int = 256
    threads: int = 2
    seed: int = 0
    learning_rate: float = 1e-6
    max_grad_norm: float = 1.0
    defaults: bool = False
    overrides: tuple[str, ...] = ()  # dotted, for this trainer alone

    @property
    def samples(self) -> int:
        return self.prompts * self.group_size

    def config(self) -> config.GRPO:
        """The quickstart's GRPO with these sizes. The learning rate is so low, and `hash` so blind, that the policy,
        and with it the length of its completions, stays what it is on both sides."""
        given = [
            f"model.path={self.model}",
            "run_dir=unused",
            f"prompts_per_step={self.prompts}",
            f"group_size={self.group_size}",
            f"sampling.max_tokens={self.max_tokens}",
            f"optimizer.learning_rate={self.learning_rate}",
            "optimizer.warmup_steps=0",
            f"optimizer.max_grad_norm={self.max_grad_norm}",
            f"rewards={VERIFIERS[self.reward]}",
            f"steps={self.warmup + self.steps}",
            f"seed={self.seed}",
            "backend.device=cpu",
            *self.overrides,
        ]
        cfg = load_config(ROOT / "launch" / "arithmetic_grpo.yaml", given)
        assert isinstance(cfg, config.GRPO)
        return cfg


@dataclass
class Result:
    """Seconds per timed step in all and by phase, what was sampled, and memory in bytes.

    baseline: resident memory before the first step, with libraries and model loaded. peak: the highest since then.
    workers: what processes beside the main one held at the end, shared pages counted in part (Pss)."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    baseline: int = 0
    peak: int = 0
    workers: int = 0
    prompts: list[list[int]] = field(default_factory=list)  # token ids of the first step's prompts

    @property
    def growth(self) -> int:
        return self.peak - self.baseline


@dataclass(frozen=True)
class Update:
    """One optimizer update on `completions` rows of random tokens, where the vocabulary makes the memory.

    rows: completions in a micro-batch, on both sides."""

    model: str
    completions: int = 64
    prompt_tokens: int = 8
    tokens: int = 64  # of each completion
    rows: int = 64
    threads: int = 2
    overrides: tuple[str, ...] = ()

    def setting(self) -> Setting:
        """The same as a step's setting, for what configures the two trainers."""
        width = self.rows * (self.prompt_tokens + self.tokens)
        return Setting(
            self.model,
            prompts=self.completions // 16,
            max_tokens=self.tokens,
            rows=self.rows,
            threads=self.threads,
            overrides=(f"micro_batch_tokens={width}", *self.overrides),
        )

    def draw(self, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, prompt) and (B, completion), and advantages (B,)."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(2, vocabulary, (self.completions, self.prompt_tokens + self.tokens), generator=generator)
        advantages = torch.randn(self.completions, generator=generator)
        return ids[:, : self.prompt_tokens], ids[:, self.prompt_tokens :], advantages


def memory(name: str, pid: int | str = "self") -> int:
    """VmRSS (resident now) or VmHWM (highest since reset_peak), in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {name}; this benchmark reads memory as Linux shows it")


def reset_peak() -> int:
    """Let VmHWM start from what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def children_memory() -> int:
    """Pss of all direct children: a page that several processes share counts for each in part."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                rollup = Path(f"/proc/{child}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total


def measured(small: Callable[[], None], whole: Callable[[], None]) -> Result:
    """Time and memory of `whole`, after `small` has made what lasts: the optimizer's moments, the library's own."""
    small()
    result = Result(baseline=reset_peak())
    began, cpu = time.perf_counter(), time.process_time()
    whole()
    result.seconds, result.cpu_seconds = [time.perf_counter() - began], [time.process_time() - cpu]
    result.peak = memory("VmHWM")
    return result


def serve(kinds: dict[str, tuple[Callable[..., Any], Callable[..., Result]]]) -> None:
    """The main of a measuring process: argv is what to measure, its setting as JSON, and the file for the result."""
    setting, measure = kinds[sys.argv[1]]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(sys.argv[2]).items()}
    Path(sys.argv[3]).write_text(json.dumps(asdict(measure(setting(**given)))))
