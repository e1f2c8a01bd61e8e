"""Low-rank adapters beside frozen weights, through peft: put in, switched off, and handed on as other parts want them.

W' = W + alpha / r * B A, with B = 0 at the start (Hu et al. 2021, arXiv:2106.09685). The model stays an ordinary
transformers model with its own head; peft replaces its linear layers in place. Left out: training (backend/) and
loading (policy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grpo_math.types import UserError

if TYPE_CHECKING:
    from grpo_math import config

ADAPTER = "default"  # peft's name for the only adapter there is
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALUE_HEAD = "value_head"  # the module of actor_critic.py, which no sampling engine knows
_BASE = ".base_layer"
# makes the full tensors of some parameters readable inside it: needed where ranks hold a part each
Gather = Callable[[Sequence[torch.nn.Parameter]], AbstractContextManager[object]]


def add_lora(model: PreTrainedModel, spec: config.LoRA) -> None:
    """Freeze the weights and put trainable adapters beside the layers that `spec` names. Changes no output yet."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError(f"model.lora.rank={spec.rank} needs peft: pip install 'grpo-math[lora]'") from error
    wanted = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha or 2 * spec.rank,  # type: ignore[arg-type]  # peft only divides by it
        target_modules=spec.targets if isinstance(spec.targets, str) else list(spec.targets),
        lora_dropout=0.0,  # two forward passes must agree, or the ratio of an unchanged policy is not 1
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        model.add_adapter(wanted, ADAPTER)
    except ValueError as error:
        layers = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        raise UserError(
            f"model.lora.targets={spec.targets}: {error}; this model's linear layers are {', '.join(sorted(layers))}"
        ) from error
    for name, parameter in model.named_parameters():
        # the base may be in bfloat16, in which the updates of a small learning rate would be rounded away
        if ".lora_" in name:
            parameter.data = parameter.data.float()


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[None]:
    """Inside it the model is what it was before training."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def engine_weights(
    model: PreTrainedModel, lora: config.LoRA, gather: Gather = lambda _: nullcontext()
) -> Iterator[tuple[str, Tensor]]:
    """What a sampling engine must get to sample from `model`, one full tensor at a time: every weight under its
    Hugging Face name, adapters merged into theirs and tied ones under each of their names; or, with lora.sync=adapter,
    the adapter alone under peft's names. A tensor is good until the next one is asked for."""
    if lora.rank and lora.sync == "adapter":
        yield from adapter_weights(model, gather)
        return
    # remove_duplicate=False: a tied head must reach an engine that keeps a copy of its own
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name or name.startswith(f"{VALUE_HEAD}."):
            continue
        if not name.endswith(f"{_BASE}.weight"):
            with gather([parameter]):
                yield name.replace(_BASE, ""), parameter.detach()
            continue
        layer: Any = model.get_submodule(name.removesuffix(f"{_BASE}.weight"))
        with gather([parameter, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]), torch.no_grad():
            base = _dequantized(parameter)
            yield name.replace(_BASE, ""), base + layer.get_delta_weight(ADAPTER).to(base)


def adapter_weights(model: PreTrainedModel, gather: Gather = lambda _: nullcontext()) -> Iterator[tuple[str, Tensor]]:
    """The adapter's tensors under the names that peft writes into adapter_model.safetensors."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            with gather([parameter]):
                yield peft_name(name), parameter.detach()


def peft_name(name: str) -> str:
    """model.layers.0.self_attn.q_proj.lora_A.default.weight as it stands in adapter_model.safetensors."""
    return f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}"


def save_adapter(model: PreTrainedModel, weights: Iterable[tuple[str, Tensor]], path: Path) -> None:
    """A folder as peft writes it; `weights` as adapter_weights gives them."""
    from safetensors.torch import save_file

    path.mkdir(parents=True, exist_ok=True)
    peft_config: Any = model.peft_config[ADAPTER]
    peft_config.save_pretrained(str(path))
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights}, path / ADAPTER_WEIGHTS)


def load_adapter(model: PreTrainedModel, weights: dict[str, Tensor]) -> list[str]:
    """Copies them into the model's adapter. Returns the names that are missing or too many."""
    own = {peft_name(name): parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name in own.keys() & weights.keys():
            own[name].copy_(weights[name])
    return sorted(own.keys() ^ weights.keys())


def _dequantized(parameter: torch.nn.Parameter) -> Tensor:
    """4-bit weights of bitsandbytes as the numbers they stand for; others as they are."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]

    full: Tensor = dequantize_4bit(parameter.data, state)
    return full
