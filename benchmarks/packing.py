"""backend.packing: tokens a second of updates with rows packed against rows padded, in one run.

    python -m benchmarks.packing                   a few minutes on two cores; the table of RESULTS.md
    python -m benchmarks.packing --quick           only to see that it runs

Rows have the lengths of GSM8K's questions and solutions, a token for every four characters. All sides make the same
updates, in turns, with the torch backend on random weights; a run whose losses differ ends with an error. Left out:
sampling, and flash attention, which needs a CUDA device.
"""

# a round is one update on one side; the first of each is not timed

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen2ForCausalLM

from benchmarks.machine import described, table
from benchmarks.models import qwen2_config, tokenizer_of
from grpo_math import config
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch, pad_rows
from grpo_math.losses import REDUCTIONS
from grpo_math.model_size import Shape
from grpo_math.packing import Layout, packed, packed_layout, padded
from grpo_math.policy import make_policy
from grpo_math.types import Completion, Problem, Prompt

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k_train.jsonl"
CHARACTERS = 4  # to a token
# (mean, deviation) of the logarithm of the characters of GSM8K's questions and solutions, for where the file is missing
QUESTION, SOLUTION = (5.38, 0.38), (5.54, 0.49)
# backend.packing takes packed_layout; the mask is transformers' own way with sdpa
SIDES: dict[str, Callable[[PreTrainedModel], Layout]] = {
    "padded": lambda _: padded,
    "packed": packed_layout,
    "packed under a mask": lambda _: packed,
}
LOSSES_AGREE = 1e-4


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    torch.set_num_threads(given.threads)
    lengths = draw(given.file, given.rows, given.seed)
    batch = batch_of(lengths, given.vocabulary, given.seed)
    tokens = int(batch.lengths.sum())
    print(
        f"{given.rows} rows of {int(batch.lengths.min())} to {int(batch.lengths.max())} tokens, {tokens:,} together; "
        f"lengths {'of ' + given.file.name if given.file.exists() else 'drawn like those of GSM8K'}\n"
    )
    rows = []
    for budget in given.budgets:
        speeds = {side: tokens / median(seconds) for side, seconds in measure(batch, budget, given).items()}
        padded_size = sum(batch.size(part) for part in batch.micro_batches(budget))
        passes = [len(batch.micro_batches(budget, packing)) for packing in (False, True)]
        row = [f"{budget:,}", "{} / {}".format(*passes), f"{1 - tokens / padded_size:.1%}", f"{speeds['padded']:,.0f}"]
        packed = [f"{speeds[side]:,.0f} ({speeds[side] / speeds['padded']:.2f})" for side in SIDES if side != "padded"]
        rows.append(row + packed)
    head = ["micro_batch_tokens", "passes padded / packed", "padding", *(f"{side}: tokens/s" for side in SIDES)]
    print(table(head, rows))
    print("\n" + described(given.threads, "torch", "transformers"))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, default=64, help="of an update")
    add("--budgets", type=int, nargs="+", default=[1024, 4096, 16384], help="values of micro_batch_tokens")
    add("--hidden", type=int, default=256)
    add("--layers", type=int, default=4)
    add("--vocabulary", type=int, default=4096)
    add("--rounds", type=int, default=3, help="timed updates on each side")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--file", type=Path, default=GSM8K, help="JSON lines with question and answer")
    add("--quick", action="store_true", help="small and few: only to see that it runs")
    given = parser.parse_args(arguments)
    if given.quick:
        given.rows, given.budgets, given.hidden, given.layers, given.vocabulary, given.rounds = 6, [512], 32, 1, 300, 1
    return given


def draw(file: Path, rows: int, seed: int) -> list[tuple[int, int]]:
    """Tokens of prompt and completion of each row: those of the file's problems, or drawn from a log-normal."""
    generator = torch.Generator().manual_seed(seed)
    if file.exists():
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        chosen = [lines[i] for i in torch.randperm(len(lines), generator=generator)[:rows].tolist()]
        characters = [(len(line["question"]), len(line["answer"])) for line in chosen]
    else:
        drawn = torch.randn(rows, 2, generator=generator) * torch.tensor([QUESTION[1], SOLUTION[1]])
        pairs = (drawn + torch.tensor([QUESTION[0], SOLUTION[0]])).exp().tolist()
        characters = [(int(question), int(solution)) for question, solution in pairs]
    return [(max(1, question // CHARACTERS), max(1, solution // CHARACTERS)) for question, solution in characters]


def batch_of(lengths: Sequence[tuple[int, int]], vocabulary: int, seed: int) -> Batch:
    """Rows of random tokens, with the weights of a mean over all trained ones."""
    generator = torch.Generator().manual_seed(seed)
    problem, rows = Problem("p", "benchmark", "", "1"), []
    for prompt, completion in lengths:
        ids = torch.randint(2, vocabulary, (prompt + completion,), generator=generator).tolist()
        said = Completion(tuple(ids[prompt:]), (0.0,) * completion, "", "stop", 0)
        rows.append((Prompt(problem, tuple(ids[:prompt]), ""), said))
    batch = pad_rows(rows, [True] * len(rows), pad_id=0)
    return replace(batch, weights=REDUCTIONS["token_mean"](batch.loss_mask, 0))


def measure(batch: Batch, budget: int, given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each timed update of every side. Raises SystemExit where they did not learn the same."""
    backends = {side: backend(layout, int(batch.lengths.max()), budget, given) for side, layout in SIDES.items()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(given.rounds + 1):
        losses = {}
        for side, trainer in backends.items():
            began = time.perf_counter()
            losses[side] = trainer.step(batch, negative_log_likelihood)["loss/total"]
            if number:
                seconds[side].append(time.perf_counter() - began)
        if max(losses.values()) - min(losses.values()) > LOSSES_AGREE:
            raise SystemExit(f"{budget} tokens, update {number}: the losses differ, {losses}")
        print(f"{budget:,} tokens, round {number}/{given.rounds}", file=sys.stderr, flush=True)
    return seconds


def negative_log_likelihood(logprobs: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return -(logprobs * part.weights).sum(), {}


def backend(
    layout_for: Callable[[PreTrainedModel], Layout], longest: int, budget: int, given: argparse.Namespace
) -> TorchBackend:
    torch.manual_seed(given.seed)
    size, vocabulary, heads = given.hidden, given.vocabulary, max(1, given.hidden // 64)
    shape = Shape(size, 3 * size, given.layers, heads, heads, size // heads, vocabulary, tied=True)
    policy = make_policy(Qwen2ForCausalLM(qwen2_config(shape, context=longest)), tokenizer_of(vocabulary))
    optimizer = config.Optimizer(learning_rate=1e-4)
    trainer = TorchBackend(policy, config.Backend(device="cpu"), optimizer, 100, budget, temperature=1.0)
    trainer.policy = replace(policy, layout=layout_for(policy.model))
    return trainer


if __name__ == "__main__":
    main()
