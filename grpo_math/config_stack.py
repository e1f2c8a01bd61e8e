"""The sections of the configuration that say what runs it: model, engine, backend, and how they overlap."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo_math.config_base import Count, CountOrNone, PathText, Positive, Section


class NewModel(Section):
    """A small Qwen2-type transformer with a character tokenizer, made from scratch (recipe sft only)."""

    hidden_size: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 4
    intermediate_size: Count = 384
    context: Count = 256
    rope_theta: Positive = 10_000.0
    initializer_range: Positive = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> NewModel:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of heads={self.heads}, and heads of "
                f"kv_heads={self.kv_heads}; try heads=4 and kv_heads=4"
            )
        return self


class LoRA(Section):
    """Train low-rank adapters beside frozen weights: W + alpha / rank B A (Hu et al. 2021, arXiv:2106.09685).

    rank 0 is off. alpha: twice the rank where it is not given. targets: names of the linear layers, or all of them but
    the head. sync: what a sampling engine gets, merged weights or the adapter itself. save_merged: beside the adapter,
    each checkpoint holds the whole model with the adapter in it, in `merged/`."""

    rank: CountOrNone = 0
    alpha: Positive | None = None
    targets: list[str] | Literal["all-linear"] = "all-linear"
    sync: Literal["merged", "adapter"] = "merged"
    save_merged: bool = False


class Model(Section):
    """Which policy. `path` is a Hugging Face folder or Hub id; `new` makes a small one instead (recipe sft).
    load_in_4bit: base weights in 4 bits under an adapter (bitsandbytes, a CUDA device)."""

    shorthand = "path"

    path: PathText | None = None
    new: NewModel | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    lora: LoRA = LoRA()
    load_in_4bit: bool = False

    @model_validator(mode="after")
    def _four_bits_need_an_adapter(self) -> Model:
        if self.load_in_4bit and not self.lora.rank:
            raise ValueError(
                "load_in_4bit=true freezes the weights in 4 bits and leaves nothing to train; set lora.rank=16"
            )
        if self.lora.rank and self.new is not None:
            raise ValueError(
                f"lora.rank={self.lora.rank} adapts a trained model, and model.new is none; set lora.rank=0"
            )
        return self


class VLLM(Section):
    """vLLM in the training process. memory: its share of each device, weights included. tensor_parallel: over how many
    ranks one copy of the model is split. sleep: give the device's memory back while training. options: any further
    argument of vllm.LLM, by vLLM's own name."""

    memory: Annotated[float, Field(gt=0, lt=1)] = 0.4
    tensor_parallel: Count = 1
    sleep: bool = True
    options: dict[str, Any] = {}


class Server(Section):
    """vLLM's own servers, as `grpo-math serve` starts them.

    transfer: how weights get there. nccl: from device to device; folder: through `folder`, which trainer and servers
    both see (run_dir/weights where it is not given); auto: nccl where the trainer has a CUDA device. start_timeout_s:
    how long to wait for a server to come up. request_timeout_s: how long one request may take. patience_s: how long to
    go without any server that works before the run is saved and ended."""

    urls: list[str] = []
    transfer: Literal["auto", "nccl", "folder"] = "auto"
    folder: PathText | None = None
    start_timeout_s: Positive = 600.0
    request_timeout_s: Positive = 1800.0
    patience_s: Positive = 300.0

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, value: list[str]) -> list[str]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"lists {url}, which is no URL; write http://HOST:PORT")
        return [url.rstrip("/").removesuffix("/v1") for url in value]


class Rollout(Section):
    """The engine that samples. max_rows bounds how many completions are decoded side by side."""

    engine: Literal["hf", "vllm", "vllm_server"] = "hf"
    max_rows: Count = 512
    max_logprob_gap: Positive | None = None
    vllm: VLLM = VLLM()
    server: Server = Server()

    @model_validator(mode="after")
    def _servers_are_known(self) -> Rollout:
        if self.engine == "vllm_server" and not self.server.urls:
            raise ValueError(
                "engine=vllm_server needs the addresses of its servers; start one with `grpo-math serve CONFIG` and "
                "set rollout.server.urls=[http://HOST:8000]"
            )
        return self


class DeepSpeed(Section):
    """zero: which states are split over the ranks (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054): 0 none, 1 the
    optimizer's, 2 gradients too, 3 weights too. offload: they live in the CPU's memory. config: a DeepSpeed JSON whose
    further keys are merged in; one that says other than this configuration is refused."""

    zero: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    config: PathText | None = None

    @model_validator(mode="after")
    def _can_offload(self) -> DeepSpeed:
        if self.offload_parameters and self.zero != 3:
            raise ValueError(
                f"offload_parameters=true needs weights split over the ranks, and zero={self.zero}; set zero=3"
            )
        if self.offload_optimizer and self.zero == 0:
            raise ValueError("offload_optimizer=true needs a split optimizer, and zero=0; set zero=2")
        return self


class Backend(Section):
    """What trains. dtype bfloat16 is autocast over float32 weights (torch), or weights in bfloat16 beside a float32
    master copy (deepspeed). logprob_chunk: tokens whose logits are in memory at a time, which takes 12 bytes for each
    and for every entry of the vocabulary. packing: the rows of a micro-batch lie end to end, without padding, and
    micro_batch_tokens counts true tokens. It pays where lengths differ and a micro-batch holds many rows. With sdpa
    (models without sliding windows) and flash_attention_2 a row costs what it costs alone; with eager, or windows under
    sdpa, a mask over the whole micro-batch costs more than padding does."""

    name: Literal["torch", "deepspeed"] = "torch"
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    logprob_chunk: Count = 256
    packing: bool = False
    deepspeed: DeepSpeed = DeepSpeed()


class Run(Section):
    """staleness: how many updates the sampling weights may lie behind those that are trained. 0 samples and trains in
    turn; 1 or more samples the next steps while this one trains, on servers."""

    staleness: CountOrNone = 0
