"""What test_deepspeed.py runs in processes of its own: `deepspeed_run.py FOLDER`, alone or under torchrun.

Each case runs on all ranks, compares with TorchBackend in the same process, and has a line in FOLDER/report-WORLD.json.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo_math import config
from grpo_math.backend.deepspeed import DeepSpeedBackend
from grpo_math.backend.states import MOMENTS, open_states
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import pad_rows
from grpo_math.lora import add_lora
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.policy import load_policy, make_policy
from grpo_math.ranks import Ranks, join, leave
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import UserError
from tests.tiny import TINY, completion, prompt

CPU = torch.device("cpu")
# everything that can differ between the two is in force: clipping, decay, a schedule
OPTIMIZER = config.Optimizer(
    learning_rate=3e-3, max_grad_norm=0.05, weight_decay=0.1, warmup_steps=2, schedule="cosine", eps=1e-6
)
RANKS = Ranks()
FOLDER = Path()
CASES: dict[int, list[Callable[[], None]]] = {1: [], 2: [], 4: []}


def case(*worlds: int):
    def add(function):
        for world in worlds:
            CASES[world].append(function)
        return function

    return add


def tiny_policy(seed=0, sharp=1.0, context=128, layers=1):
    """tests.tiny's, of one layer: most of the time of these cases goes into what DeepSpeed hangs on each."""
    tokenizer = character_tokenizer()
    model = small_model(TINY.model_copy(update={"context": context, "layers": layers}), tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(sharp)
    return make_policy(model, tokenizer)


def rows(policy, reduction="token_mean", count=7, seed=0, masked=(3,)):
    """Completions of 1 to 11 tokens; those in `masked` train no token."""
    random = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(count):
        length = int(torch.randint(1, 12, (1,), generator=random))
        ids = torch.randint(4, 60, (length,), generator=random).tolist()
        pairs.append((prompt(policy, "1+" * (i % 3 + 1)), completion(ids)))
    batch = pad_rows(pairs, [i not in masked for i in range(count)], 0)
    weighted = replace(batch, weights=REDUCTIONS[reduction](batch.loss_mask, 16))
    return weighted.with_advantages(torch.randn(count, generator=random))


def loss_of(kl=0.0, entropy=0.0):
    function = make_loss(config.Loss(entropy_bonus=entropy), config.KL(coefficient=kl), config.Correction())
    return lambda logprobs, entropies, part: function(logprobs, entropies, part, kl)


LOSS = loss_of()


def on_torch(policy, budget=64):
    return TorchBackend(policy, config.Backend(device="cpu"), OPTIMIZER, 20, budget, 1.0)


@contextmanager
def on_deepspeed(policy, zero, budget=64, dtype="float32", recompute=False, **options):
    settings = config.Backend(
        name="deepspeed",
        device="cpu",
        dtype=dtype,
        gradient_checkpointing=recompute,
        deepspeed=config.DeepSpeed(zero=zero, **options),
    )
    backend = DeepSpeedBackend(policy, settings, OPTIMIZER, 20, budget, 1.0, RANKS)
    try:
        yield backend
    finally:
        backend.close()


def weights(backend):
    return {name: tensor.detach().clone() for name, tensor in backend.weights()}


def near(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    gaps = {name: gap(ours[name], theirs[name]) for name in theirs}
    name = max(gaps, key=gaps.__getitem__)
    assert gaps[name] <= tolerance, f"{name} differs by {gaps[name]:.3g}"


def gap(ours, theirs):
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64).detach() for value in (ours, theirs))
    return float((ours - theirs).abs().max())


def same(ours, theirs):
    near(ours, theirs, 0.0)


def compare(ours, theirs, batches, loss=LOSS, entropy=False):
    for batch in batches:
        found = ours.step(batch, loss, entropy)
        near(found, theirs.step(batch, loss, entropy))
        assert all(other == found for other in RANKS.gather([found]))
    near(weights(ours), weights(theirs))
    near({"logprobs": ours.logprobs(batches[0])}, {"logprobs": theirs.logprobs(batches[0])})


@case(2)
def every_stage_and_reduction_as_torch():
    for reduction, budget in zip(REDUCTIONS, (64, 20, 1000, 40), strict=True):
        batch, layers = rows(tiny_policy(), reduction), 2 if reduction == "token_mean" else 1
        plain = on_torch(tiny_policy(sharp=2.0, layers=layers), 1000)
        expected = [plain.step(batch, LOSS) for _ in range(10)]
        assert min(step["optim/grad_norm"] for step in expected) > OPTIMIZER.max_grad_norm
        for zero in (0, 1, 2, 3):
            with on_deepspeed(tiny_policy(sharp=2.0, layers=layers), zero, budget) as backend:
                for step in expected:
                    found = backend.step(batch, LOSS)
                    near(found, step)
                    assert all(other == found for other in RANKS.gather([found]))
                near(weights(backend), weights(plain))
                near({"": backend.logprobs(batch)}, {"": plain.logprobs(batch)})


@case(1)
def one_process_as_torch():
    for zero, budget in ((0, 64), (1, 20), (2, 1000), (3, 40)):
        batch = rows(tiny_policy(), "sequence_mean")
        with on_deepspeed(tiny_policy(sharp=2.0), zero, budget) as backend:
            compare(backend, on_torch(tiny_policy(sharp=2.0), 33), [batch] * 10)


@case(2)
def few_rows_and_none():
    policy = tiny_policy()
    batches = [
        rows(policy, count=1, masked=()),
        rows(policy, count=3, masked=(0, 1)),
        rows(policy, count=2, masked=(0, 1)),
        rows(policy).rows([]),
        rows(policy, count=3, masked=()),
    ]
    for zero in (0, 1, 2, 3):
        with on_deepspeed(tiny_policy(sharp=2.0), zero) as backend:
            compare(backend, on_torch(tiny_policy(sharp=2.0)), batches)
            assert not backend.logprobs(batches[2]).any()


@case(2)
def recomputation_offload_and_entropy_as_torch():
    batch = rows(tiny_policy())
    for options in (
        {"zero": 0, "recompute": True},
        {"zero": 1, "recompute": True},
        {"zero": 2, "recompute": True},
        {"zero": 3, "recompute": True},
        {"zero": 1, "offload_optimizer": True},
        {"zero": 2, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True, "offload_parameters": True},
    ):
        with on_deepspeed(tiny_policy(sharp=2.0), **options) as backend:
            compare(backend, on_torch(tiny_policy(sharp=2.0)), [batch] * 2, loss_of(entropy=0.01), entropy=True)


@case(2)
def bfloat16_learns():
    batch = rows(tiny_policy(), "sequence_mean")
    batch = batch.with_advantages(torch.ones(len(batch)))
    for options in (
        {"zero": 0},
        {"zero": 1},
        {"zero": 2, "recompute": True},
        {"zero": 3, "recompute": True},
        {"zero": 2, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True, "offload_parameters": True},
    ):
        with on_deepspeed(tiny_policy(sharp=2.0), dtype="bfloat16", **options) as backend:
            before = backend.logprobs(batch).sum()
            steps = [backend.step(batch, LOSS) for _ in range(5)]
            assert backend.logprobs(batch).sum() > before + 2
            assert {tensor.dtype for tensor in weights(backend).values()} == {torch.bfloat16}
            near(steps[0], on_torch(tiny_policy(sharp=2.0)).step(batch, LOSS), 0.05)


@case(2)
def adapters_as_torch():
    for zero in (0, 2, 3):
        ours, theirs = lora_policy(), lora_policy()
        batch = rows(ours)
        plain, first = on_torch(theirs), weights(on_torch(lora_policy()))
        expected = plain.reference(config.KL()).logprobs(batch)
        with on_deepspeed(ours, zero) as backend:
            reference = backend.reference(config.KL())
            for _ in range(2):
                near({"": reference.logprobs(batch)}, {"": expected})
                compare(backend, plain, [batch] * 2)
            assert any((weights(backend)[name] - first[name]).abs().max() > 1e-3 for name in first)
            folder = FOLDER / f"lora-{zero}"
            backend.save(folder)
            saved = weights(backend)
            merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
            near(dict(merged.named_parameters(remove_duplicate=False)), saved)
            backend.step(batch, LOSS)
            later = weights(backend)
            backend.load(folder)
            same(weights(backend), saved)
            backend.step(batch, LOSS)
            same(weights(backend), later)


def lora_policy():
    spec = config.LoRA(rank=4, save_merged=True)
    policy = tiny_policy(sharp=2.0)
    torch.manual_seed(0)
    add_lora(policy.model, spec)
    return replace(policy, lora=spec)


@case(2)
def references_as_torch():
    for kl in (
        config.KL(coefficient=0.1),
        config.KL(coefficient=0.1, reference="ema", ema_decay=0.7),
        config.KL(coefficient=0.1, reference="refresh", refresh_every=2),
    ):
        plain = on_torch(tiny_policy(sharp=2.0))
        batch = rows(plain.policy)
        theirs = plain.reference(kl)
        expected = []
        for step in range(1, 4):
            plain.step(replace(batch, ref_logprobs=theirs.logprobs(batch)), loss_of(kl=0.1))
            theirs.follow(plain.weights(), step)
            expected.append(theirs.logprobs(batch))
        for zero in (2, 3):
            with on_deepspeed(tiny_policy(sharp=2.0), zero) as backend:
                ours = backend.reference(kl)
                folder = FOLDER / f"reference-{zero}-{kl.reference}"
                for step in range(1, 4):
                    backend.step(replace(batch, ref_logprobs=ours.logprobs(batch)), loss_of(kl=0.1))
                    ours.follow(backend.weights(), step)
                    near({"": ours.logprobs(batch)}, {"": expected[step - 1]})
                    if step == 1:
                        RANKS.together(lambda folder=folder: folder.mkdir(exist_ok=True))
                        ours.save(folder)
                        early = ours.logprobs(batch)
                ours.load(folder)
                same({"": ours.logprobs(batch)}, {"": early})
                if kl.reference == "ema":
                    assert not torch.equal(early, expected[2])
                    theirs.load(folder)
                    near({"": theirs.logprobs(batch)}, {"": early})


@case(2)
def goes_on_as_if_it_had_not_stopped():
    batch = rows(tiny_policy())
    for dtype in ("float32", "bfloat16"):
        for zero in (0, 1, 2, 3):
            folder = FOLDER / f"checkpoint-{dtype}-{zero}"
            with on_deepspeed(tiny_policy(sharp=2.0), zero, dtype=dtype) as backend:
                backend.save(FOLDER / f"start-{dtype}-{zero}")
                for _ in range(3):
                    backend.step(batch, LOSS)
                backend.save(folder)
                saved = weights(backend)
                on = [backend.step(batch, LOSS) for _ in range(2)]
                last = weights(backend)
            if RANKS.first:
                torch.save({"saved": saved, "metrics": on, "last": last}, folder / "expected.pt")
            with on_deepspeed(tiny_policy(seed=1), zero, dtype=dtype) as other:
                other.load(folder)
                same(weights(other), saved)
                for expected in on:
                    same(other.step(batch, LOSS), expected)
                same(weights(other), last)
                other.load(FOLDER / f"start-{dtype}-{zero}")
                for _ in range(3):
                    other.step(batch, LOSS)
                same(weights(other), saved)
            model = AutoModelForCausalLM.from_pretrained(folder)
            assert str(model.dtype) == f"torch.{dtype}"
            same(dict(model.named_parameters(remove_duplicate=False)), saved)


@case(2)
def offloaded_goes_on_too():
    batch = rows(tiny_policy())
    for options in (
        {"zero": 1, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True, "offload_parameters": True},
    ):
        folder = FOLDER / f"offloaded-{options['zero']}"
        with on_deepspeed(tiny_policy(sharp=2.0), **options) as backend:
            for _ in range(2):
                backend.step(batch, LOSS)
            backend.save(folder)
            on = backend.step(batch, LOSS)
            last = weights(backend)
            backend.load(folder)
            assert backend.step(batch, LOSS) == on
            same(weights(backend), last)


@case(1, 4)
def any_ranks_and_stage_read_it():
    """Two processes wrote it."""
    batch = rows(tiny_policy())
    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 0.02)):
        folder = FOLDER / f"checkpoint-{dtype}-3"
        expected = torch.load(folder / "expected.pt")
        for zero in (0, 2, 3) if dtype == "float32" else (1, 2, 3):
            with on_deepspeed(tiny_policy(seed=1), zero, dtype=dtype) as backend:
                backend.load(folder)
                same(weights(backend), expected["saved"])
                states, progress = open_states(folder)
                assert backend.masters.step == progress.step == 3
                with states:
                    for name, parameter in backend.policy.model.named_parameters():
                        for kind in (*MOMENTS, *(["master"] if dtype == "bfloat16" else [])):
                            same({name: backend.masters.read(parameter, kind)}, {name: states.get(f"{kind}/{name}")})
                for metrics in expected["metrics"]:
                    near(backend.step(batch, LOSS), metrics, tolerance)
                near(weights(backend), expected["last"], tolerance)


@case(2)
def damaged_checkpoints_are_refused_by_name():
    whole = FOLDER / "checkpoint-float32-3"
    with on_deepspeed(tiny_policy(sharp=2.0), 3) as backend:
        before = weights(backend)

        def refused(name, change, *words):
            folder = FOLDER / name
            if RANKS.first:
                shutil.copytree(whole, folder)
                change(folder)
            RANKS.wait()
            with pytest.raises(UserError) as caught:
                backend.load(folder)
            assert all(word in str(caught.value) for word in (str(folder), *words)), caught.value
            same(weights(backend), before)

        shard = "optimizer/states-00002-of-00002.safetensors"
        refused("no-shard", lambda f: (f / shard).unlink(), shard, "missing")
        refused("cut-shard", lambda f: cut(f / shard), shard, "cannot be read")
        refused("cut-model", lambda f: cut(f / "model.safetensors"), "model.safetensors", "cannot be read")
        refused("no-model", lambda f: (f / "model.safetensors").unlink(), "safetensors")
        refused("no-index", lambda f: (f / "optimizer/index.json").unlink(), "index.json", "missing")
        refused("cut-index", lambda f: cut(f / "optimizer/index.json"), "index.json")
        refused("torchs", turn_into_torchs, "backend.name=torch", "model.path=")
    with on_deepspeed(tiny_policy(context=64), 2) as backend:
        backend.load(whole)  # the context has no weights of its own
    with on_deepspeed(lora_policy(), 2) as backend, pytest.raises(UserError, match="another model"):
        backend.load(whole)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def turn_into_torchs(folder):
    (folder / "optimizer/index.json").unlink()
    (folder / "optimizer.pt").touch()


@case(2)
def a_bad_gradient_on_one_rank_is_skipped_on_all():
    batch = rows(tiny_policy())

    def broken(logprobs, entropy, part):
        value, per_token = LOSS(logprobs, entropy, part)
        return value * (float("nan") if RANKS.rank == 1 else 1.0), per_token

    for zero, dtype, options in (
        (0, "float32", {}),
        (1, "float32", {}),
        (2, "float32", {}),
        (3, "float32", {}),
        (0, "bfloat16", {}),
        (1, "bfloat16", {}),
        (2, "bfloat16", {}),
        (3, "bfloat16", {}),
        (2, "float32", {"offload_optimizer": True}),
        (3, "bfloat16", {"offload_optimizer": True, "offload_parameters": True}),
    ):
        with on_deepspeed(tiny_policy(sharp=2.0), zero, dtype=dtype, **options) as backend:
            backend.step(batch, LOSS)
            before, rate = weights(backend), backend.step(batch, broken)["optim/lr"]
            same(weights(backend), before)
            skipped = backend.step(batch, broken)
            assert skipped["optim/skipped"] == 1.0
            assert skipped["optim/lr"] == rate
            found = backend.step(batch, LOSS)
            assert found["optim/skipped"] == 0.0
            assert found["optim/lr"] == rate
            if dtype == "float32":
                plain = on_torch(tiny_policy(sharp=2.0))
                plain.step(batch, LOSS)
                near(found, plain.step(batch, LOSS))
                near(weights(backend), weights(plain))
            backend.step(batch, broken)
            backend.step(batch, broken)
            with pytest.raises(RuntimeError, match="3 updates in a row"):
                backend.step(batch, broken)


@case(2)
def weights_are_split_while_they_are_read():
    folder = FOLDER / "model"
    if RANKS.first:
        policy = tiny_policy()
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    RANKS.wait()
    for dtype in (torch.float32, torch.bfloat16):
        for offload in (False, True):
            policy = load_policy(config.Model(path=str(folder)), CPU, dtype, zero=3, offload_parameters=offload)
            assert all(p.numel() == 0 and p.ds_tensor.dtype == dtype for p in policy.model.parameters())
            name = str(dtype).removeprefix("torch.")
            with on_deepspeed(policy, 3, dtype=name, offload_parameters=offload) as backend:
                batch = rows(policy)
                if dtype == torch.float32:
                    compare(backend, on_torch(tiny_policy()), [batch] * 3)
                else:
                    assert all(math.isfinite(value) for value in backend.step(batch, LOSS).values())
    spec = config.Model(path=str(folder), lora=config.LoRA(rank=4))
    torch.manual_seed(RANKS.rank)  # new adapters are the first rank's, whatever the others drew
    policy = load_policy(spec, CPU, zero=3)
    with on_deepspeed(policy, 3) as backend:
        torch.manual_seed(0)
        compare(backend, on_torch(load_policy(spec, CPU)), [rows(policy)] * 3)


def main(folder: str, *only: str) -> int:
    global RANKS, FOLDER
    torch.set_num_threads(1)
    FOLDER, RANKS = Path(folder), join(60.0)
    gc.freeze()  # DeepSpeed collects garbage whenever it looks at the memory, and torch alone is a third of a second
    report = {}
    for function in CASES[RANKS.size]:
        if only and function.__name__ not in only:
            continue
        start = time.monotonic()
        try:
            RANKS.together(function)
            report[function.__name__] = f"ok, {time.monotonic() - start:.1f} s"
        except Exception:
            report[function.__name__] = f"rank {RANKS.rank}: {traceback.format_exc()}"
        every = RANKS.gather([report[function.__name__]])
        report[function.__name__] = next((text for text in every if not text.startswith("ok")), every[0])
        if RANKS.first:
            (FOLDER / f"report-{RANKS.size}.json").write_text(json.dumps(report))
        if not report[function.__name__].startswith("ok"):
            break
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
