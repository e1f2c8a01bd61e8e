"""Weights and tokenizer of a folder or Hub id, whatever is to be made of them: a policy, or a model of values.

Left out: what the model must be able to do (policy.py, value_model.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.lora import ADAPTER_CONFIG
from grpo_math.preflight import TOKENIZER_FILES
from grpo_math.types import UserError


@dataclass(frozen=True)
class Loaded:
    """missing: names of the tensors that the files do not have, and that are random."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    missing: list[str]


def load_model(
    spec: config.Model,
    auto: Any,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    zero: int = 0,
    offload_parameters: bool = False,
    prepare: Callable[[PretrainedConfig], object] = lambda _: None,
    key: str = "model.path",
    replaceable: Sequence[str] = (),
) -> Loaded:
    """What `auto`, a class such as AutoModelForCausalLM, makes of a folder or Hub id, without dropout.

    A folder that itself holds an adapter stands for its base model with the adapter merged in. dtype: of the weights;
    float32 where they are trained as they are, since autocast lowers it for the computation. zero: with 3 the weights
    are split over the ranks while they are read, so that none ever holds the model (in the CPU's memory, with
    offload_parameters); the ranks must have joined. prepare: changes the model's config before the model is made. key:
    what an error calls spec.path. replaceable: modules that are new, and missing, where the files have them in another
    shape. Raises UserError."""
    assert spec.path is not None
    where = f"{key}={spec.path}"
    folder = Path(spec.path).expanduser()
    check_tokenizer(folder, where)
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
        prepare(model_config)
        with _split(device, dtype, offload_parameters) if zero == 3 else nullcontext():
            model, report = auto.from_pretrained(
                base,
                config=model_config,
                dtype=dtype,
                attn_implementation=spec.attention,
                output_loading_info=True,
                ignore_mismatched_sizes=zero != 3,  # what is of another shape is looked at here, by name
                **(four_bits(device) if spec.load_in_4bit else {}),
                **options,
            )
        if base != spec.path:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, spec.path).merge_and_unload()
        tokenizer = AutoTokenizer.from_pretrained(spec.path, **options)
    except UserError:  # of `prepare`
        raise
    # nothing else of ours runs in there, and the libraries below it raise whatever they like at a damaged file
    except Exception as error:
        raise UserError(
            f"{where} could not be loaded: {type(error).__name__}: {error}\nGive a folder made by save_pretrained, or "
            "a Hub id that this machine can reach or has in its cache"
        ) from error
    shapes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in report["mismatched_keys"]}
    for name, (theirs, ours) in sorted(shapes.items()):
        if name.partition(".")[0] not in replaceable:
            raise UserError(
                f"{where}: {name} is {theirs} in its weights and {ours} by its config.json, one of {len(shapes)} "
                "tensors that do not fit; give a folder whose config and weights belong together"
            )
    missing = sorted({*report["missing_keys"], *shapes})
    return Loaded(model if spec.load_in_4bit else model.to(device), tokenizer, missing)


def check_tokenizer(folder: Path, where: str) -> None:
    """Raises UserError for a folder without one, of which transformers makes an empty one. A Hub id is let through.
    where: key=value, for the message."""
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{where}: the folder has no tokenizer ({', '.join(TOKENIZER_FILES)}); save one into it with "
            "tokenizer.save_pretrained(folder)"
        )


def end_ids(named: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends a completion: those that a configuration names, and the tokenizer's own."""
    several = named if isinstance(named, list) else [named]
    return frozenset(i for i in [*several, tokenizer.eos_token_id] if i is not None)


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
            f"{folder}: its {ADAPTER_CONFIG} does not name a base model; write it into base_model_name_or_path"
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


def switch_off_dropout(model_config: object) -> None:
    """Two forward passes must agree, or the ratio of an unchanged policy is not 1."""
    for name, value in list(vars(model_config).items()):
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(model_config, name, 0.0)
