"""The policy: any causal language model of transformers, loaded or made, and its log-probabilities of a batch.

Left out: optimisation (backend/), sampling (rollout/), and the arithmetic of a log-probability (logprobs.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.loading import end_ids, load_model
from grpo_math.logprobs import token_logprobs
from grpo_math.lora import add_lora
from grpo_math.packing import Layout, before_the_trained, packed_layout, padded
from grpo_math.token_model import scatter, score
from grpo_math.types import UserError

NO_LORA = config.LoRA()

if not torch.cuda.is_available():
    # transformers imports deepspeed where it is installed, which then looks for a device and warns that there is none
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
hf_logging.disable_progress_bar()  # ours is the run's; a bar per checkpoint would tear it up


@dataclass(frozen=True)
class Policy:
    """A model, its tokenizer, and how its head turns hidden states into logits. layout: how the rows of a batch lie
    before the model, padded or packed."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    logit_scale: float
    logit_softcap: float | None
    lora: config.LoRA = NO_LORA
    layout: Layout = padded
    outputs: int = 1

    def with_packing(self, packing: bool) -> Policy:
        """The same model, reading rows packed or padded. Whoever packs calls packing_checks.check_packing."""
        return replace(self, layout=packed_layout(self.model) if packing else padded)

    @property
    def packing(self) -> bool:
        return self.layout is not padded

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a completion: the generation config may name several."""
        return end_ids(getattr(self.model.generation_config, "eos_token_id", None), self.tokenizer)

    @property
    def pad_id(self) -> int:
        """Any valid id will do: no mask is ever made by comparing tokens with it."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self.eos_ids)

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together that the model can read."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1 << 30)

    def logprobs(
        self,
        batch: Batch,
        temperature: float,
        chunk: int,
        autocast: torch.dtype | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """log p(token | tokens before it) at `temperature` where batch.loss_mask is set, 0 elsewhere; (B, T), nats.

        The second value is the entropy of the same distributions, or None. How much padding there is, or none, changes
        nothing but rounding."""
        return self.of_states(self.states(batch, autocast), batch, temperature, chunk, with_entropy)

    def states(self, batch: Batch, autocast: torch.dtype | None = None) -> Tensor:
        """(N, H): the last hidden states before each of the N trained tokens, for the prompt's last token predicts the
        completion's first."""
        read, before = self.layout(batch, before_the_trained(batch))
        with torch.autocast(batch.token_ids.device.type, dtype=autocast, enabled=autocast is not None):
            hidden = self.model.base_model(**read, use_cache=False).last_hidden_state
        if autocast is not None:
            hidden = hidden.to(autocast)  # the model's own head, which the sampler uses, rounds to this too
        chosen: Tensor = hidden[before]
        return chosen

    def of_states(
        self, states: Tensor, batch: Batch, temperature: float, chunk: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`logprobs`, of states that `states` has computed."""
        head = self.model.get_output_embeddings()

        def chosen_logprobs(states: Tensor) -> tuple[Tensor, ...]:
            logprobs, entropy = token_logprobs(
                states,
                head.weight,
                getattr(head, "bias", None),
                batch.token_ids[batch.loss_mask],
                scale=self.logit_scale / temperature,
                softcap=self.logit_softcap,
                chunk=chunk,
                with_entropy=with_entropy,
            )
            return (logprobs, entropy) if with_entropy else (logprobs,)

        with _forward_of(head, chosen_logprobs):
            chosen, *entropies = head(states)
        return scatter(batch.loss_mask, chosen), scatter(batch.loss_mask, entropies[0]) if with_entropy else None

    def per_token(
        self,
        batch: Batch,
        temperature: float,
        chunk: int,
        autocast: torch.dtype | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """`logprobs`, as a back end calls it."""
        return self.logprobs(batch, temperature, chunk, autocast, with_entropy)

    def check(self) -> None:
        """Raises UserError where `logprobs` are not those of the model's own logits."""
        check_head(self)

    def score(
        self, batch: Batch, temperature: float, chunk: int, token_budget: int, autocast: torch.dtype | None = None
    ) -> Tensor:
        """`logprobs` of a batch of any size on the CPU, a micro-batch at a time, without gradients."""
        return score(self, batch, temperature, chunk, token_budget, autocast)


@contextmanager
def _forward_of(module: torch.nn.Module, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> Iterator[None]:
    """Calling the module runs `forward`: whoever splits weights over ranks (ZeRO-3) has them whole while a module runs,
    forward and backward, and at no other time."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own


def load_policy(
    spec: config.Model,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    zero: int = 0,
    offload_parameters: bool = False,
) -> Policy:
    """The model and tokenizer of a folder or Hub id, with the adapter that spec.lora asks for; see load_model.

    With zero=3 whoever trains it calls check_head."""
    loaded = load_model(spec, AutoModelForCausalLM, device, dtype, zero, offload_parameters)
    if missing := loaded.missing:
        raise UserError(
            f"model.path={spec.path}: its weights lack {len(missing)} tensors that {type(loaded.model).__name__} has, "
            f"such as {missing[0]}; those would be random. Give the whole model, or another one"
        )
    policy = make_policy(loaded.model, loaded.tokenizer, check=zero != 3)
    if not spec.lora.rank:
        return policy
    assert spec.path is not None
    policy.model.name_or_path = spec.path  # which peft writes beside the adapter, so its folder can be loaded by itself
    add_lora(policy.model, spec.lora)
    return replace(policy, lora=spec.lora)


def make_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, check: bool = True) -> Policy:
    """check: that the chunked head gives the model's own logits, rather than assuming it for every architecture."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token and save it again")
    if not tokenizer("1 + 1 = 2", add_special_tokens=False)["input_ids"]:
        raise UserError("the tokenizer makes no tokens of a plain text; its files are incomplete, save it again")
    embedded = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embedded:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds {embedded}; they do not belong "
            "together, or the model needs resize_token_embeddings"
        )
    settings = model.config
    # the three ways in which architectures of transformers bend their logits (Gemma 2; Cohere; Granite)
    scale = float(getattr(settings, "logit_scale", None) or 1.0) / float(
        getattr(settings, "logits_scaling", None) or 1.0
    )
    mend_generation_config(model)
    policy = Policy(model.eval(), tokenizer, scale, getattr(settings, "final_logit_softcapping", None))
    if check:
        check_head(policy)
    return policy


@torch.no_grad()
def check_head(policy: Policy) -> None:
    """Raises UserError where `logprobs` of the policy are not those of its model's own logits."""
    count = min(8, policy.model.get_input_embeddings().num_embeddings)
    token_ids = torch.arange(count, device=policy.device)[None]
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[:, 0] = False
    zeros = torch.zeros(token_ids.shape, device=policy.device)
    lengths = torch.tensor([count], device=policy.device)
    ours, _ = policy.logprobs(Batch(token_ids, lengths, mask, zeros, zeros, zeros), temperature=1.0, chunk=count)
    logits = policy.model(input_ids=token_ids, use_cache=False).logits[0, :-1].float()
    theirs = logits.log_softmax(-1).gather(-1, token_ids[0, 1:, None]).squeeze(-1)
    gap = float((ours[0, 1:] - theirs).abs().max())
    if not gap < (1e-3 if policy.model.dtype == torch.float32 else 0.1):  # a sum in another order, rounded to 8 bits
        if bad := [name for name, p in policy.model.named_parameters() if not bool(p.isfinite().all())]:
            raise UserError(f"the model's weights are not finite ({bad[0]} and {len(bad) - 1} more); give a sound copy")
        raise UserError(
            f"{type(policy.model).__name__}: log-probabilities computed in chunks differ from the model's own by "
            f"{gap:.3g}; this architecture changes its logits in a way that policy.py does not know, see make_policy"
        )


def mend_generation_config(model: PreTrainedModel) -> None:
    """Hub models come with a temperature but without do_sample, which transformers loads but refuses to save."""
    settings = model.generation_config
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True


def pick_device(name: str) -> torch.device:
    """`auto` is this rank's CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"backend.device={name}: {error}; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"backend.device={name}, but torch {torch.__version__} sees no CUDA device; use backend.device=auto"
        )
    return device
