"""The policy: any causal language model of transformers, loaded or made, and its log-probabilities of a batch.

Left out: optimisation (backend/), sampling (rollout/), and the arithmetic of a log-probability (logprobs.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.logprobs import token_logprobs
from grpo_math.lora import ADAPTER_CONFIG, add_lora
from grpo_math.packing import Layout, packed_layout, padded
from grpo_math.plan import TOKENIZER_FILES
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
        named = getattr(self.model.generation_config, "eos_token_id", None)
        several = named if isinstance(named, list) else [named]
        return frozenset(i for i in [*several, self.tokenizer.eos_token_id] if i is not None)

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
        # the prompt's last token predicts the completion's first: states are those before the trained tokens
        read, before = self.layout(batch)
        with torch.autocast(batch.token_ids.device.type, dtype=autocast, enabled=autocast is not None):
            hidden = self.model.base_model(**read, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
        if autocast is not None:
            hidden = hidden.to(autocast)  # the model's own head, which the sampler uses, rounds to this too

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
            chosen, *entropies = head(hidden[before])
        return _scatter(batch.loss_mask, chosen), _scatter(batch.loss_mask, entropies[0]) if with_entropy else None

    @torch.no_grad()
    def score(
        self, batch: Batch, temperature: float, chunk: int, token_budget: int, autocast: torch.dtype | None = None
    ) -> Tensor:
        """`logprobs` of a batch of any size on the CPU, a micro-batch at a time, without gradients."""
        out = torch.zeros(batch.loss_mask.shape)
        for rows in batch.micro_batches(token_budget, self.packing):
            values, _ = self.logprobs(batch.rows(rows).to(self.device), temperature, chunk, autocast)
            out[rows, : values.shape[1]] = values.cpu()
        return out


@contextmanager
def _forward_of(module: torch.nn.Module, forward: Callable[[Tensor], tuple[Tensor, ...]]) -> Iterator[None]:
    """Calling the module runs `forward`: whoever splits weights over ranks (ZeRO-3) has them whole while a module runs,
    forward and backward, and at no other time."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own


def _scatter(mask: Tensor, values: Tensor) -> Tensor:
    """(N,) values at the True places of mask (B, T), which are never in the first column; 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def load_policy(
    spec: config.Model,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    zero: int = 0,
    offload_parameters: bool = False,
) -> Policy:
    """The model and tokenizer of a folder or Hub id, without dropout, with the adapter that spec.lora asks for.

    A folder that itself holds an adapter stands for its base model with the adapter merged in. dtype: of the weights;
    float32 where they are trained as they are, since autocast lowers it for the computation. zero: with 3 the weights
    are split over the ranks while they are read, so that none ever holds the model (in the CPU's memory, with
    offload_parameters); the ranks must have joined, and whoever trains it calls check_head."""
    assert spec.path is not None
    where = f"model.path={spec.path}"
    folder = Path(spec.path).expanduser()
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{where}: the folder has no tokenizer ({', '.join(TOKENIZER_FILES)}); save one into it with "
            "tokenizer.save_pretrained(folder)"
        )
    options = {"trust_remote_code": spec.trust_remote_code, "revision": spec.revision}
    base = base_of_adapter(folder) or spec.path
    if spec.lora.rank and base != spec.path:
        raise UserError(
            f"{where} holds an adapter, and model.lora.rank={spec.lora.rank} would train another one on top of it, "
            "which nothing could load by itself; give the merged model (model.lora.save_merged=true writes one), or "
            f"its base {base}"
        )
    if zero == 3 and base != spec.path:
        raise UserError(
            f"{where} holds an adapter, which cannot be merged into weights that are split while they are read; give "
            "the merged model (model.lora.save_merged=true writes one), or set backend.deepspeed.zero=2"
        )
    try:
        model_config = AutoConfig.from_pretrained(base, **options)
        switch_off_dropout(model_config)
        with _split(device, dtype, offload_parameters) if zero == 3 else nullcontext():
            model, report = AutoModelForCausalLM.from_pretrained(
                base,
                config=model_config,
                dtype=dtype,
                attn_implementation=spec.attention,
                output_loading_info=True,
                **(four_bits(device) if spec.load_in_4bit else {}),
                **options,
            )
        if base != spec.path:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, spec.path).merge_and_unload()
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **options)
    # nothing of ours runs in there, and the libraries below it raise whatever they like at a damaged file
    except Exception as error:
        raise UserError(
            f"{where} could not be loaded: {type(error).__name__}: {error}\nGive a folder made by save_pretrained, or "
            "a Hub id that this machine can reach or has in its cache"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{where}: its weights lack {len(missing)} tensors that {type(model).__name__} has, such as {missing[0]}; "
            "those would be random. Give the whole model, or another one"
        )
    policy = make_policy(model if spec.load_in_4bit else model.to(device), tokenizer, check=zero != 3)
    if not spec.lora.rank:
        return policy
    model.name_or_path = spec.path  # which peft writes beside the adapter, so that its folder can be loaded by itself
    add_lora(model, spec.lora)
    return replace(policy, lora=spec.lora)


def _split(device: torch.device, dtype: torch.dtype, offload_parameters: bool) -> AbstractContextManager[None]:
    from grpo_math.zero import split_loading

    return split_loading(device, dtype, offload_parameters)


def base_of_adapter(folder: Path) -> str | None:
    """The base model that an adapter's folder names; None for any other folder."""
    if (folder / "config.json").exists() or not (folder / ADAPTER_CONFIG).exists():
        return None
    base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"model.path={folder}: its {ADAPTER_CONFIG} does not name a base model; write it into "
            "base_model_name_or_path"
        )
    return str(base)


def four_bits(device: torch.device) -> dict[str, Any]:
    """Arguments of from_pretrained for base weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""
    if device.type != "cuda":
        raise UserError(f"model.load_in_4bit=true needs a CUDA device, and this run is on {device}; set it to false")
    if find_spec("bitsandbytes") is None:
        raise UserError("model.load_in_4bit=true needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


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


def switch_off_dropout(model_config: object) -> None:
    """Two forward passes must agree, or the ratio of an unchanged policy is not 1."""
    for name, value in list(vars(model_config).items()):
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)


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
