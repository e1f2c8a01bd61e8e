"""Models of values: any transformers backbone with a scalar head, which says one number of each token.

    outcome   how good the whole text is           AutoModelForSequenceClassification, 1 label    after the last token
    process   how right a step is, as a logit      AutoModelForTokenClassification, 2 labels      after its last token
    critic    the reward that is still to come     AutoModelForTokenClassification, 1 label       before each token

They are saved in transformers' own forms, so that others' models load here and ours load elsewhere. Left out: training
(backend/), and how texts become tokens (value_input.py).
"""

# B rows, T tokens, N places of all rows

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.loading import end_ids, load_model
from grpo_math.packing import Layout, before_the_trained, packed_layout, padded
from grpo_math.token_model import scatter, score
from grpo_math.types import UserError

NO_LORA = config.LoRA()
ValueKind = Literal["outcome", "process", "critic"]
WRONG, RIGHT = 0, 1  # the labels of a step
CLASSES: dict[ValueKind, Any] = {
    "outcome": AutoModelForSequenceClassification,
    "process": AutoModelForTokenClassification,
    "critic": AutoModelForTokenClassification,
}
SUFFIXES: dict[ValueKind, str] = {
    "outcome": "ForSequenceClassification",
    "process": "ForTokenClassification",
    "critic": "ForTokenClassification",
}
LABELS: dict[ValueKind, dict[int, str]] = {
    "outcome": {0: "reward"},
    "process": {WRONG: "wrong", RIGHT: "right"},
    "critic": {0: "value"},
}
HEADS = ("score", "classifier")  # what transformers calls them


@dataclass(frozen=True)
class ValueModel:
    """A token_model.TokenModel whose numbers are values. As a critic's, the value at a token is of the text before it;
    as the others', of the text up to and with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kind: ValueKind
    layout: Layout = padded
    lora: config.LoRA = NO_LORA
    outputs: int = 1

    def with_packing(self, packing: bool) -> ValueModel:
        return replace(self, layout=packed_layout(self.model) if packing else padded)

    @property
    def packing(self) -> bool:
        return self.layout is not padded

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def eos_ids(self) -> frozenset[int]:
        return end_ids(getattr(self.model.config.get_text_config(), "eos_token_id", None), self.tokenizer)

    @property
    def pad_id(self) -> int:
        """transformers' classifier looks for the last token that is none of these; here lengths say where it is."""
        pad = self.model.config.get_text_config().pad_token_id
        return min(self.eos_ids) if pad is None else int(pad)

    @property
    def context(self) -> int:
        """Tokens that the model can read."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)

    @property
    def head(self) -> torch.nn.Module:
        return head_of(self.model)

    def per_token(
        self,
        batch: Batch,
        temperature: float = 1.0,
        chunk: int = 0,
        autocast: torch.dtype | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, None]:
        """(B, T) values, float32, where batch.loss_mask is set, 0 elsewhere; for two labels the logit of `right`,
        log p(right) - log p(wrong). The other arguments are those of a policy's log-probabilities: a value has neither
        temperature nor entropy, and no vocabulary to go through in chunks."""
        mask = batch.loss_mask
        read, places = self.layout(batch, before_the_trained(batch) if self.kind == "critic" else mask)
        with torch.autocast(batch.token_ids.device.type, dtype=autocast, enabled=autocast is not None):
            hidden = self.model.base_model(**read, use_cache=False).last_hidden_state
        # the head's own dropout, which transformers has in token classifiers, is not for values that must agree
        weight: Any = self.head.weight
        return scatter(mask, logit(self.head(hidden[places].to(weight.dtype)))), None

    def score(self, batch: Batch, token_budget: int, autocast: torch.dtype | None = None) -> Tensor:
        """per_token of a batch of any size on the CPU, a micro-batch at a time, without gradients."""
        return score(self, batch, 1.0, 0, token_budget, autocast)

    @torch.no_grad()
    def check(self) -> None:
        """Raises UserError where `per_token` does not give what the model itself does, or where a value depends on what
        follows it: a critic would know the future, and every model the padding."""
        count = min(8, self.model.get_input_embeddings().num_embeddings)
        ids = torch.arange(count, device=self.device)
        ids = ids[ids != self.model.config.get_text_config().pad_token_id][None]
        near = 1e-3 if self.model.dtype == torch.float32 else 0.1
        alone, followed = (self.model.base_model(input_ids=part).last_hidden_state[:, :3] for part in (ids[:, :3], ids))
        if not float((alone - followed).abs().max()) < near * max(1.0, float(followed.abs().max())):
            raise UserError(
                f"{type(self.model).__name__} reads both ways, so that its values would depend on what follows, and on "
                "padding; take a model that reads from left to right, as decoders do"
            )
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, -1] = True
        zeros = torch.zeros(ids.shape, device=self.device)
        ours, _ = replace(self, kind="outcome").per_token(Batch(ids, torch.tensor([ids.shape[1]]), mask, *[zeros] * 3))
        training = self.model.training
        logits = self.model.eval()(input_ids=ids, use_cache=False).logits.float()
        self.model.train(training)
        theirs = logit(logits if logits.dim() == 2 else logits[:, -1])
        gap = float((ours[0, -1] - theirs[0]).abs())
        if not gap < near * max(1.0, float(theirs.abs())):
            raise UserError(
                f"{type(self.model).__name__}: its value differs from that of the same text read here by {gap:.3g}; "
                "there is more between its last states and its head than is known here; take another model"
            )


def logit(values: Tensor) -> Tensor:
    """(N, 1) or (N, 2) outputs of a head -> (N,), float32."""
    values = values.float()
    return values[:, 0] if values.shape[1] == 1 else values[:, RIGHT] - values[:, WRONG]


def head_of(model: PreTrainedModel) -> torch.nn.Module:
    """The module behind the backbone. Raises UserError where there is none that is known."""
    for name in HEADS:
        if isinstance(head := getattr(model, name, None), torch.nn.Linear):
            return head
    raise UserError(
        f"{type(model).__name__} has no linear head called {' or '.join(HEADS)}; take a model whose classifier is one, "
        "as those of decoders are"
    )


def load_value_model(
    spec: config.Model,
    kind: ValueKind,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    zero: int = 0,
    offload_parameters: bool = False,
    key: str = "model.path",
) -> ValueModel:
    """A model of values from a folder or Hub id: one that has such a head already, or any other model with a new head,
    which is all zeros; one of another kind keeps of its head what fits. key: what an error calls spec.path. Raises
    UserError. With zero=3 whoever trains it calls `check`."""

    def prepare(settings: PretrainedConfig) -> None:
        own = (settings.architectures or [""])[0]
        if zero == 3 and own.endswith(tuple(SUFFIXES.values())) and settings.num_labels != len(LABELS[kind]):
            raise UserError(
                f"{key}={spec.path} has a head of {settings.num_labels} labels, and {kind} takes {len(LABELS[kind])}: "
                "it cannot be replaced where the weights are split while they are read; set backend.deepspeed.zero=2"
            )
        if not own.endswith(SUFFIXES[kind]):
            settings.num_labels = len(LABELS[kind])
            settings.id2label = LABELS[kind]
            settings.label2id = {name: number for number, name in LABELS[kind].items()}
        elif settings.num_labels > len(LABELS[kind]):
            raise UserError(
                f"{key}={spec.path} has {settings.num_labels} labels, and {kind} takes {len(LABELS[kind])}; give "
                f"{'a process model' if kind == 'process' else 'a reward model of one label'}, or any language model"
            )

    if spec.lora.rank:
        raise UserError(f"model.lora.rank={spec.lora.rank}: a model of values is trained whole; set model.lora.rank=0")
    with no_report():
        loaded = load_model(spec, CLASSES[kind], device, dtype, zero, offload_parameters, prepare, key, HEADS)
    model = loaded.model
    head_of(model)
    missing = [name for name in loaded.missing if name.partition(".")[0] not in HEADS]
    if missing:
        raise UserError(
            f"{key}={spec.path}: its weights lack {len(missing)} tensors that {type(model).__name__} has, such as "
            f"{missing[0]}; those would be random. Give the whole model, or another one"
        )
    set_padding(model, loaded.tokenizer)
    if kind == "critic":
        # else it would pass for a process model of one label
        model.config.grpo_math = {"kind": kind}
    value = ValueModel(model.eval(), loaded.tokenizer, kind)
    if zero != 3:
        value.check()  # a new head's random weights are good for that
    for name in loaded.missing:
        empty(model.get_parameter(name))
    return value


@contextmanager
def no_report() -> Iterator[None]:
    """transformers warns of a new head that it is new, and that it is not split over devices; what else may be missing
    is looked at here."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def empty(parameter: torch.nn.Parameter) -> None:
    """A new head says 0 of everything, on every rank: random numbers would be the only thing a young critic says."""
    parameter.data.zero_()
    if hasattr(parameter, "ds_tensor"):
        parameter.ds_tensor.data.zero_()


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A padding token that ends no text. transformers' sequence classifier reads the value at the last token that is
    not padding: with the end of sequence for padding, as many tokenizers have it, it would be the one before the end,
    and only in batches."""
    settings = model.config.get_text_config()
    ends = {tokenizer.eos_token_id}
    rows = model.get_input_embeddings().num_embeddings
    free = [settings.pad_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    unused = [len(tokenizer)] if len(tokenizer) < rows else []
    pad = next((token for token in [*free, *unused] if token is not None and token not in ends and token < rows), None)
    if pad is None:
        raise UserError(
            "the tokenizer has no padding token besides its end of sequence; add one (tokenizer.add_special_tokens, "
            "model.resize_token_embeddings) and save both again"
        )
    settings.pad_token_id = model.config.pad_token_id = pad
    if tokenizer.pad_token_id in (None, *ends) and pad < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
