"""Training with DeepSpeed: ZeRO 0 to 3 over the ranks, offload to the CPU, float32, or bfloat16 with float32 masters.

Every rank is given the whole batch and computes its share of the rows; sums over ranks make the numbers those of one
process. Left out: who computes which rows (dealing.py), DeepSpeed's settings (deepspeed_config.py), where it keeps its
states (deepspeed_masters.py), checkpoints (deepspeed_checkpoint.py) and references (deepspeed_twin.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor

from grpo_math.actor_critic import policy_in
from grpo_math.backend.base import LossFn, Metrics, metric_part, sampled_tokens
from grpo_math.backend.dealing import MicroBatch, deal
from grpo_math.backend.deepspeed_checkpoint import Checkpoint
from grpo_math.backend.deepspeed_config import deepspeed_config
from grpo_math.backend.states import Progress
from grpo_math.backend.torch import GIVE_UP_AFTER, decay_groups, schedule
from grpo_math.batch import Batch
from grpo_math.lora import engine_weights
from grpo_math.packing_checks import check_packing
from grpo_math.ranks import Ranks
from grpo_math.reference import AdapterOff, Reference
from grpo_math.token_model import TokenModel, blank
from grpo_math.types import UserError
from grpo_math.zero import load_deepspeed

if TYPE_CHECKING:
    from grpo_math import config


class Scorer(torch.nn.Module):
    """What the policy says of each token as the forward pass of a module, which DeepSpeed's hooks hang on."""

    def __init__(self, policy: TokenModel, temperature: float, chunk: int) -> None:
        super().__init__()
        self.model = policy.model
        self._policy, self._temperature, self._chunk = policy, temperature, chunk
        self.training = policy.model.training

    def forward(self, batch: Batch, with_entropy: bool = False) -> tuple[Tensor, ...]:
        logprobs, entropy = self._policy.per_token(batch, self._temperature, self._chunk, with_entropy=with_entropy)
        return (logprobs,) if entropy is None else (logprobs, entropy)


class DeepSpeedBackend:
    """updates: how many the whole run has, which the learning-rate schedule needs. temperature: the sampler's.

    The ranks must have joined (ranks.join). Each rank must call every method, `weights` to its end, in the same order
    with equal arguments."""

    def __init__(
        self,
        policy: TokenModel,
        backend: config.Backend,
        optimizer: config.Optimizer,
        updates: int,
        micro_batch_tokens: int,
        temperature: float,
        ranks: Ranks,
    ) -> None:
        policy = policy.with_packing(backend.packing)
        self.policy, self.temperature, self.ranks = policy, temperature, ranks
        self.device = policy.device
        self.micro_batch_tokens, self.chunk = micro_batch_tokens, backend.logprob_chunk
        self.learning_rate, self.factor = optimizer.learning_rate, schedule(optimizer, updates)
        self.stage, self.half = backend.deepspeed.zero, backend.dtype == "bfloat16"
        self.updates = self.bad_updates = 0
        self.settings = deepspeed_config(backend, optimizer)
        self.deepspeed = load_deepspeed(self.device)
        from grpo_math.backend.deepspeed_masters import Masters  # needs DeepSpeed

        model = policy.model
        if backend.gradient_checkpointing:
            # transformers recomputes only in training mode; that changes nothing else, dropout having been set to 0
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        if self.stage == 3:
            self._agree_on_new_weights()
        try:
            with redirect_stdout(StringIO()):  # stage 1 in bfloat16 prints tables of the memory in use, asked or not
                self.engine, *_ = self.deepspeed.initialize(
                    model=Scorer(policy, temperature, self.chunk),
                    optimizer=self._adamw(optimizer, backend.deepspeed.offload_optimizer),
                    config=self.settings,
                )
        except ValidationError as error:  # a key inside a section of theirs, which they check themselves
            raise UserError(f"backend.deepspeed.config={backend.deepspeed.config}: {error}") from error
        self.scorer: Scorer = self.engine.module
        self._norm: float | None = None
        if self.stage == 0 and not self.half:
            self.engine.clip_fp32_gradients = partial(self._clip, optimizer.max_grad_norm)
        self.masters = Masters(self.engine)
        if self.stage == 3:
            policy.check()  # not before: it is DeepSpeed's hooks that make the weights whole
        check_packing(policy)

    def _adamw(self, optimizer: config.Optimizer, offload: bool) -> torch.optim.Optimizer:
        groups = decay_groups(self.policy.model, optimizer.weight_decay)
        # the rate is set before each update; 0 until then, because DeepSpeed makes a step of its own in some stages
        options: dict[str, Any] = {"lr": 0.0, "betas": optimizer.betas, "eps": optimizer.eps}
        if offload and self.device.type != "cpu":
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            cpu_adam: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
            return cpu_adam
        return torch.optim.AdamW(groups, fused=True, **options)

    def _agree_on_new_weights(self) -> None:
        """The first rank's adapters on all: ZeRO-3 would otherwise make one matrix of every rank's own random parts."""
        if self.ranks.size > 1:
            for parameter in self.policy.model.parameters():
                if not hasattr(parameter, "ds_id"):
                    torch.distributed.broadcast(parameter.data, 0)

    def logprobs(self, batch: Batch) -> Tensor:
        return self._score(self.policy, batch)

    def _score(self, policy: TokenModel, batch: Batch) -> Tensor:
        """Of this policy, or of a twin that every rank has whole."""
        if policy is self.policy:
            return self.share(lambda part: self.scorer(batch=part)[0], batch, self.policy.outputs)
        return self.share(lambda part: policy.per_token(part, self.temperature, self.chunk)[0], batch)

    def _mine(self, batch: Batch) -> list[MicroBatch]:
        return deal(batch, self.micro_batch_tokens, self.ranks.size, self.policy.packing)[self.ranks.rank]

    @torch.no_grad()
    def share(self, score: Callable[[Batch], Tensor], batch: Batch, outputs: int = 1) -> Tensor:
        """(B, T) of `score`, or (B, T, outputs), each rank computing its share of the rows."""
        out = blank(batch, outputs)
        rows = trained_rows(batch)
        part = batch.rows(rows)
        for micro_batch in self._mine(part):
            values = score(part.rows(micro_batch.rows).to(self.device))
            if not micro_batch.extra:
                out[rows[micro_batch.rows], : values.shape[1]] = values.cpu()
        return self.ranks.sum(out)

    def step(
        self, batch: Batch, loss: LossFn, with_entropy: bool = False, also: Sequence[tuple[Batch, LossFn]] = ()
    ) -> Metrics:
        terms = [(rows.rows(trained_rows(rows)), loss_of) for rows, loss_of in ((batch, loss), *also)]
        learning_rate = self.learning_rate * self.factor(self.updates)
        if not any(len(rows) for rows, _ in terms):
            # no gradient, so no update, not even by momentum; the schedule goes on
            self.updates, self.bad_updates = self.updates + 1, 0
            return {"optim/grad_norm": 0.0, "optim/lr": learning_rate, "optim/skipped": 0.0}
        sums: dict[str, float] = defaultdict(float)
        for rows, loss_of in terms:
            self._accumulate(rows, loss_of, with_entropy, sums)
        everyone = self.ranks.sum(torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64))
        norm = self._update(learning_rate)
        finite = math.isfinite(norm)
        self._count(finite)
        return dict(zip(sorted(sums), everyone.tolist(), strict=True)) | {
            "optim/grad_norm": norm,
            "optim/lr": learning_rate,
            "optim/skipped": float(not finite),
        }

    def _accumulate(self, batch: Batch, loss: LossFn, with_entropy: bool, sums: dict[str, float]) -> None:
        """Adds the gradient of this rank's share of this term, and its metrics to `sums`."""
        trained = float(sampled_tokens(batch).sum())
        for micro_batch in self._mine(batch):
            part = batch.rows(micro_batch.rows).to(self.device)
            if micro_batch.extra:
                part = part.scale_weights(0.0)
            logprobs, *entropy = self.engine(batch=part, with_entropy=with_entropy)
            value, metrics = loss(logprobs, entropy[0] if entropy else None, part)
            # DeepSpeed takes the mean over ranks of gradients that add up: this is the one place that undoes it
            self.engine.backward(value * self.ranks.size)
            counts = 0.0 if micro_batch.extra else 1.0
            sums["loss/total"] += counts * float(value.detach())
            for name, values in metrics.items():
                sums[name] += counts * metric_part(values, part, trained)

    def _update(self, learning_rate: float) -> float:
        """Clips and makes the update, or leaves it out on all ranks where the gradient is not finite. Returns its norm
        before clipping."""
        for group in self.masters.optimizer.param_groups:
            group["lr"] = learning_rate
        self._norm = None
        self.engine.step()
        norm = self.engine.get_global_grad_norm() if self._norm is None else self._norm
        assert norm is not None
        return float(norm)

    def _clip(self, limit: float) -> None:
        """Stage 0 in float32, where DeepSpeed clips without telling the norm, and updates whatever the gradient is."""
        parameters = [p for p in self.policy.model.parameters() if p.grad is not None]
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(self._norm):
            self.engine.zero_grad()  # AdamW passes over parameters without a gradient

    def _count(self, finite: bool) -> None:
        if finite:
            self.updates, self.bad_updates = self.updates + 1, 0
            return
        self.bad_updates += 1
        if self.bad_updates == GIVE_UP_AFTER:
            raise RuntimeError(
                f"the gradient was not finite in {GIVE_UP_AFTER} updates in a row; the last checkpoint is sound. "
                "Lower optimizer.learning_rate, or set backend.dtype=float32"
            )

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return engine_weights(self.policy.model, self.policy.lora, self._whole)

    def _whole(self, parameters: Iterable[torch.nn.Parameter]) -> AbstractContextManager[object]:
        """Inside it these are whole on every rank."""
        if self.stage < 3:
            return nullcontext()
        gathered: AbstractContextManager[object] = self.deepspeed.zero.GatheredParameters(list(parameters))
        return gathered

    def reference(self, kl: config.KL) -> Reference:
        from grpo_math.backend.deepspeed_twin import SplitTwin, WholeTwin

        policy = policy_in(self.policy)
        if policy.lora.rank:
            return AdapterOff(policy, self._score)
        return SplitTwin(self, kl) if self.stage == 3 else WholeTwin(policy, self._score, kl, self.ranks)

    def save(self, path: Path) -> None:
        files = self._files()
        files.save(path, Progress(self.masters.step, self.updates, self.bad_updates))

    def load(self, path: Path) -> None:
        progress = self._files().load(path)
        self.masters.step, self.updates, self.bad_updates = progress.step, progress.updates, progress.bad_updates

    def _files(self) -> Checkpoint:
        return Checkpoint(self.policy, self.masters, self._whole, self.ranks, with_masters=self.half)

    def close(self) -> None:
        """Takes DeepSpeed's hooks off the model."""
        self.engine.destroy()


def trained_rows(batch: Batch) -> Tensor:
    """Those with a trained token; the others have no loss, no gradient and no log-probability."""
    return batch.loss_mask.any(1).nonzero().squeeze(1)
