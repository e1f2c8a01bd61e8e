"""Plain torch on one device: AdamW, schedule, clipping, micro-batches by token budget, float32 or bf16 autocast.

Left out: several ranks and sharding, which are deepspeed.py's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from grpo_math.actor_critic import policy_in
from grpo_math.backend.base import LossFn, Metrics, metric_part, sampled_tokens
from grpo_math.backend.states import HEAD_FILE, model_files
from grpo_math.batch import Batch
from grpo_math.lora import VALUE_HEAD, adapter_weights, engine_weights, load_adapter, save_adapter
from grpo_math.packing_checks import check_packing
from grpo_math.reference import AdapterOff, Reference, Twin
from grpo_math.token_model import TokenModel, score
from grpo_math.types import UserError

if TYPE_CHECKING:
    from grpo_math import config

DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
STATE_FILE = "optimizer.pt"
MERGED = "merged"
GIVE_UP_AFTER = 3  # updates in a row whose gradient is not finite


class TorchBackend:
    """updates: how many the whole run has, which the learning-rate schedule needs. temperature: the sampler's."""

    def __init__(
        self,
        policy: TokenModel,
        backend: config.Backend,
        optimizer: config.Optimizer,
        updates: int,
        micro_batch_tokens: int,
        temperature: float,
    ) -> None:
        self.policy, self.temperature = policy.with_packing(backend.packing), temperature
        self.micro_batch_tokens, self.chunk = micro_batch_tokens, backend.logprob_chunk
        self.autocast = DTYPES[backend.dtype]
        self.max_grad_norm = optimizer.max_grad_norm
        self.bad_updates = 0
        check_packing(self.policy)
        model = policy.model
        if backend.gradient_checkpointing:
            # transformers recomputes only in training mode; that changes nothing else, dropout having been set to 0
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        self.optimizer = torch.optim.AdamW(
            decay_groups(model, optimizer.weight_decay),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule(optimizer, updates))

    def logprobs(self, batch: Batch) -> Tensor:
        return self._score(self.policy, batch)

    def _score(self, policy: TokenModel, batch: Batch) -> Tensor:
        return score(policy, batch, self.temperature, self.chunk, self.micro_batch_tokens, self.autocast)

    def step(
        self, batch: Batch, loss: LossFn, with_entropy: bool = False, also: Sequence[tuple[Batch, LossFn]] = ()
    ) -> Metrics:
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = defaultdict(float)
        for term in ((batch, loss), *also):
            self._accumulate(*term, with_entropy, sums)
        learning_rate = self.schedule.get_last_lr()[0]
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), self.max_grad_norm))
        finite = self._update_if_finite(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return dict(sums) | {
            "optim/grad_norm": norm,
            "optim/lr": float(learning_rate),
            "optim/skipped": float(not finite),
        }

    def _accumulate(self, batch: Batch, loss: LossFn, with_entropy: bool, sums: dict[str, float]) -> None:
        """Adds the gradient of this term, and its metrics to `sums`."""
        trained = float(sampled_tokens(batch).sum())
        for rows in batch.micro_batches(self.micro_batch_tokens, self.policy.packing):
            part = batch.rows(rows).to(self.policy.device)
            if not bool(part.loss_mask.any()):
                continue
            logprobs, entropy = self.policy.per_token(part, self.temperature, self.chunk, self.autocast, with_entropy)
            value, metrics = loss(logprobs, entropy, part)
            value.backward()
            sums["loss/total"] += float(value.detach())
            for name, values in metrics.items():
                sums[name] += metric_part(values, part, trained)

    def _update_if_finite(self, norm: float) -> bool:
        if math.isfinite(norm):
            self.optimizer.step()
            self.schedule.step()
            self.bad_updates = 0
        else:
            self.bad_updates += 1
            if self.bad_updates == GIVE_UP_AFTER:
                raise RuntimeError(
                    f"the gradient was not finite in {GIVE_UP_AFTER} updates in a row; the last checkpoint is sound. "
                    "Lower optimizer.learning_rate, or set backend.dtype=float32"
                )
        return math.isfinite(norm)

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return engine_weights(self.policy.model, self.policy.lora)

    def reference(self, kl: config.KL) -> Reference:
        policy = policy_in(self.policy)
        if policy.lora.rank:
            return AdapterOff(policy, self._score)
        return Twin(policy, self._score, kl)

    def save(self, path: Path) -> None:
        save_policy(self.policy, path)
        state = {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}
        torch.save(state, path / STATE_FILE)

    def load(self, path: Path) -> None:
        if not (path / STATE_FILE).exists():
            raise UserError(
                f"{path}: has no {STATE_FILE}, which backend.name=torch goes on from; was it written with "
                "backend.name=deepspeed? Set that again, or "
                f"give model.path={path} and another run_dir"
            )
        load_saved(self.policy, path)
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def close(self) -> None:
        pass


def save_policy(policy: TokenModel, path: Path) -> None:
    """An ordinary Hugging Face folder; with LoRA that of the adapter, and the whole model in `merged` if asked for."""
    policy.tokenizer.save_pretrained(path)
    if not policy.lora.rank:
        save_model(policy, policy.model.state_dict() if hasattr(policy.model, VALUE_HEAD) else None, path)
        return
    save_adapter(policy.model, adapter_weights(policy.model), path)
    if policy.lora.save_merged:
        save_merged(policy, engine_weights(policy.model, policy.lora.model_copy(update={"sync": "merged"})), path)


def save_model(policy: TokenModel, tensors: Mapping[str, Tensor] | None, path: Path) -> None:
    """tensors: all of the model's; None where it is whole and has no value head. The head goes into a file of its own,
    which no other reader would expect."""
    head = {name: tensor.cpu() for name, tensor in (tensors or {}).items() if name.startswith(f"{VALUE_HEAD}.")}
    if tensors is None or not head:
        policy.model.save_pretrained(path, state_dict=None if tensors is None else dict(tensors))
        return
    tied = set(policy.model.all_tied_weights_keys)
    rest = {name: tensor for name, tensor in tensors.items() if name not in head and name not in tied}
    policy.model.save_pretrained(path, state_dict=rest)
    (path / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file(head, path / HEAD_FILE)


def save_merged(policy: TokenModel, weights: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """The whole model with the adapter in it, as an ordinary Hugging Face folder path/merged."""
    tied = set(policy.model.all_tied_weights_keys)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in weights if name not in tied}
    (path / MERGED).mkdir(exist_ok=True)
    save_torch_state_dict(tensors, path / MERGED)
    policy.model.config.save_pretrained(path / MERGED)
    if policy.model.generation_config is not None:
        policy.model.generation_config.save_pretrained(path / MERGED)
    policy.tokenizer.save_pretrained(path / MERGED)


def load_saved(policy: TokenModel, path: Path) -> None:
    """Weights that save_policy wrote, into the policy in place. Raises UserError where they are another model's."""
    tensors: dict[str, Tensor] = {}
    for file in model_files(path):
        tensors |= load_file(file)
    if policy.lora.rank:
        odd = load_adapter(policy.model, tensors)
    else:
        result = policy.model.load_state_dict(tensors, strict=False)
        odd = [*result.unexpected_keys, *(set(result.missing_keys) - set(policy.model.all_tied_weights_keys))]
    if odd:
        raise UserError(
            f"{path}: the checkpoint is of another model ({len(odd)} tensors are missing or too many, such as "
            f"{odd[0]}); check model.path and model.lora, or start over with --fresh"
        )


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices; none for biases and norms, as usual. ZeRO-3 keeps the shape that it splits in
    ds_shape."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = {id(p) for p in parameters if len(getattr(p, "ds_shape", p.shape)) >= 2}
    return [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]


def schedule(optimizer: config.Optimizer, updates: int) -> Callable[[int], float]:
    """Factor of the learning rate at an update: a linear warm-up, then constant, linear or cosine down to a share."""

    def factor(update: int) -> float:
        if update < optimizer.warmup_steps:
            return (update + 1) / (optimizer.warmup_steps + 1)
        done = min(1.0, (update - optimizer.warmup_steps) / max(1, updates - optimizer.warmup_steps))
        left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[optimizer.schedule]
        return left if optimizer.schedule == "constant" else optimizer.final_share + (1 - optimizer.final_share) * left

    return factor
