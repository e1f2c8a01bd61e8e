"""One measurement of benchmarks/gpu_step.py: steps of the torch backend on random weights, and how bfloat16 rounds.

Left out: the arithmetic of FLOPs, and tables.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from benchmarks.models import endless, qwen2_config, tokenizer_of
from benchmarks.setting import memory, reset_peak
from grpo_math import config
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch, pad_rows
from grpo_math.known_models import known_model
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.model_size import Shape
from grpo_math.policy import Policy, make_policy
from grpo_math.rollout.hf import HFEngine
from grpo_math.types import Problem, Prompt, Sampling

TINY = Shape(64, 128, 2, 2, 1, 32, 512, tied=True, bias=128)
# random weights give nearly uniform distributions; the final norm's weight times this is a temperature below 1,
# at which they are as uneven as a trained model's
SHARP = 8.0


@dataclass(frozen=True)
class Run:
    """rows of prompt_tokens + tokens; recompute: gradient checkpointing; parity: compare precisions as well."""

    model: str
    device: str
    rows: int
    prompt_tokens: int
    tokens: int
    micro_batch_tokens: int
    chunk: int
    steps: int
    threads: int
    recompute: bool = False
    parity: bool = False

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.tokens


@dataclass
class Shown:
    """Seconds of each timed step. before: bytes held between steps; peak: the most held in one. parity: by what is
    compared, the mean and the largest |difference| of log-probabilities in nats, and the mean of -logprob itself."""

    seconds: list[float] = field(default_factory=list)
    before: int = 0
    peak: int = 0
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    out_of_memory: bool = False


def shape_of(model: str) -> Shape:
    if model == "tiny":
        return TINY
    known = known_model(f"Qwen/Qwen2.5-{model}")
    if known is None or known.shape is None:
        raise SystemExit(f"--models {model}: no size of Qwen2.5; known are 0.5B, 1.5B, 3B, 7B, 14B, 32B")
    return known.shape


def new_policy(run: Run) -> Policy:
    shape = shape_of(run.model)
    torch.manual_seed(0)
    with torch.device(run.device):
        model = Qwen2ForCausalLM(qwen2_config(shape, context=max(1024, run.row_tokens)))
    return make_policy(model, tokenizer_of(shape.vocabulary))


def measure(run: Run) -> Shown:
    torch.set_num_threads(run.threads)
    policy, shown = new_policy(run), Shown()
    if run.parity:
        shown.parity = parity(policy, run)
    try:
        time_steps(policy, run, shown)
    except torch.cuda.OutOfMemoryError:
        shown.out_of_memory = True
    return shown


def time_steps(policy: Policy, run: Run, shown: Shown) -> None:
    settings = config.Backend(
        device=run.device, dtype="bfloat16", gradient_checkpointing=run.recompute, logprob_chunk=run.chunk
    )
    # so small a rate that the weights, and with them the work, stay what they are
    optimizer = config.Optimizer(learning_rate=1e-9)
    backend = TorchBackend(policy, settings, optimizer, run.steps + 1, run.micro_batch_tokens, 1.0)
    batch, loss = draw_batch(policy, run), make_loss(config.Loss(), config.KL(), config.Correction())
    for number in range(run.steps + 1):
        if number == 1:
            shown.before = start_peak(policy.device)
        wait(policy.device)
        began = time.perf_counter()
        metrics = backend.step(batch, lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))
        wait(policy.device)
        if number:
            shown.seconds.append(time.perf_counter() - began)
        if metrics["optim/skipped"]:
            raise SystemExit(f"{run}: the gradient was not finite")
    shown.peak = read_peak(policy.device)


def draw_batch(policy: Policy, run: Run) -> Batch:
    """Rows of random tokens, all of one length."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = policy.model.get_input_embeddings().num_embeddings
    token_ids = torch.randint(2, vocabulary, (run.rows, run.row_tokens), generator=generator)
    mask = torch.zeros(token_ids.shape, dtype=torch.bool)
    mask[:, run.prompt_tokens :] = True
    zeros = torch.zeros(mask.shape)
    lengths = torch.full((run.rows,), run.row_tokens)
    batch = Batch(token_ids, lengths, mask, REDUCTIONS["sequence_mean"](mask, run.tokens), zeros, zeros)
    return batch.with_advantages(torch.randn(run.rows, generator=generator))


def parity(policy: Policy, run: Run) -> dict[str, dict[str, float]]:
    """Completions that the HF engine samples in bfloat16, scored by the trainer in both precisions."""
    norm = policy.model.base_model.norm.weight
    found: dict[str, dict[str, float]] = {}
    for sharpness in (1.0, SHARP):
        with torch.no_grad():
            norm.fill_(sharpness)
        batch = sampled_batch(policy, run)
        half, full = (
            policy.score(batch, 1.0, run.chunk, run.micro_batch_tokens, dtype) for dtype in (torch.bfloat16, None)
        )
        where = "" if sharpness == 1.0 else f", logits x {sharpness:g}"
        found[f"trainer bfloat16 : trainer float32{where}"] = gap(half, full, batch)
        found[f"sampler bfloat16 : trainer bfloat16{where}"] = gap(batch.sampler_logprobs, half, batch)
    with torch.no_grad():
        norm.fill_(1.0)
    gc.collect()
    if policy.device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def sampled_batch(policy: Policy, run: Run) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, len(policy.tokenizer), (4, min(32, run.prompt_tokens)), generator=generator).tolist()
    prompts = [Prompt(Problem(str(i), "bench", "", ""), tuple(row), "") for i, row in enumerate(ids)]
    engine = HFEngine(endless(policy), max_rows=16, autocast=torch.bfloat16, shares_weights=True)
    groups = engine.generate(prompts, Sampling(4, min(128, run.tokens)))
    pairs = [(prompt, completion) for prompt, group in zip(prompts, groups, strict=True) for completion in group]
    return pad_rows(pairs, [True] * len(pairs), policy.pad_id)


def gap(one: Tensor, other: Tensor, batch: Batch) -> dict[str, float]:
    gaps = (one - other)[batch.loss_mask].abs()
    nats = -other[batch.loss_mask].mean()
    return {"mean": float(gaps.mean()), "max": float(gaps.max()), "nats": float(nats)}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def start_peak(device: torch.device) -> int:
    """Bytes held now; the peak counts from here."""
    if device.type != "cuda":
        return reset_peak()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def read_peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory("VmHWM")


def main() -> None:
    shown = measure(Run(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(asdict(shown)))


if __name__ == "__main__":
    main()
