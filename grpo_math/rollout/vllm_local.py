"""Sample with vLLM in the training process: one engine on each rank, or one over several ranks (tensor parallelism).

Weights go from the trainer's tensors into vLLM's by its own `reload_weights`, without a file or a second process. vLLM
takes a process for its own (environment, random generators, threads, process group): vllm_process.py and `close` give
it back as it was. Left out: sharing prompts between ranks (shared.py) and vLLM's servers (vllm_server.py).
"""

from __future__ import annotations

import copy
import gc
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PretrainedConfig

from grpo_math import config
from grpo_math.lora import peft_name, save_adapter
from grpo_math.policy import Policy
from grpo_math.ranks import Ranks
from grpo_math.rollout.vllm_common import (
    WHOLE_PROMPTS,
    completions,
    kv_cache_bytes,
    lora_rank,
    refuse_long,
    sampling_fields,
)
from grpo_math.rollout.vllm_process import quiet_start, unchanged_process, unchanged_random_state
from grpo_math.types import Completion, Prompt, Sampling, UserError

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # these threads are the trainer's too
}
NO_WEIGHTS = "has no weights yet: update_weights comes first"


class VLLMEngine:
    """path: the Hugging Face folder or Hub id that `policy` came from. Every rank must make its engine, and make each
    call, at the same time as the others; ranks that share a copy of the model pass the same prompts.

    Raises UserError where vLLM cannot be imported or refuses the model, the device's memory or rollout.vllm.options."""

    def __init__(
        self,
        policy: Policy,
        path: str | Path,
        rollout: config.Rollout,
        dtype: Literal["float32", "bfloat16"],
        ranks: Ranks,
    ) -> None:
        self.policy, self.version = policy, 0
        self._unfit: str | None = NO_WEIGHTS  # why it cannot sample now
        self._spoilt: str | None = None  # why it never can again
        self._asleep: set[str] = set()
        self._adapter: Any = None
        self._sync_adapter = bool(policy.lora.rank) and policy.lora.sync == "adapter"
        self._expected = tensor_names(policy, self._sync_adapter)
        self._scratch = tempfile.TemporaryDirectory(prefix="grpo-math-vllm-")
        self._owns_group = not dist.is_initialized()
        self.llm: Any = None
        split = rollout.vllm.tensor_parallel
        if ranks.size % split:
            raise UserError(
                f"rollout.vllm.tensor_parallel={split} does not divide the {ranks.size} ranks, over which vLLM in "
                f"process splits the model; start {split} or a multiple with torchrun --nproc-per-node {split}, set "
                "rollout.vllm.tensor_parallel=1, or take rollout.engine=vllm_server"
            )
        with unchanged_process():
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in another process it could not be handed tensors
            vllm = import_vllm()
            on_cpu = vllm.platforms.current_platform.is_cpu()
            self._sleeps = rollout.vllm.sleep and not on_cpu
            fixed = self._fixed_arguments(path, dtype, split, ranks)
            if taken := sorted(fixed.keys() & rollout.vllm.options.keys()):
                raise UserError(f"rollout.vllm.options sets {', '.join(taken)}, which other keys decide; leave it out")
            free = self._own_arguments(rollout, getattr(torch, dtype), on_cpu)
            with quiet_start():
                try:
                    self.llm = vllm.LLM(**free | rollout.vllm.options | fixed)
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"rollout.engine=vllm: vLLM does not start for {path} with rollout.vllm={rollout.vllm}: {error}"
                    ) from error
        self._params, self._lora_request = vllm.SamplingParams, vllm.lora.request.LoRARequest
        self.context = int(self.llm.model_config.max_model_len)

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        if why := self._spoilt or self._unfit:
            raise RuntimeError(f"vLLM {why}")
        refuse_long(prompts, sampling.max_tokens, self.context)
        if not prompts:
            return []
        self._wake("weights", "kv_cache")
        params = [
            # one flat list of numbers a completion: a dictionary a token would keep the garbage collector busy
            self._params(**sampling_fields(sampling, prompt, self.policy.eos_ids), flat_logprobs=True)
            for prompt in prompts
        ]
        asked = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        try:
            with unchanged_random_state():
                outputs = self.llm.generate(asked, params, use_tqdm=False, lora_request=self._adapter)
        except BaseException:
            # what is left of it, where even one request is, would come with the next answers
            self._spoilt = "broke off while it sampled, and would go on with that: make a new engine"
            raise
        answers = [[(o.token_ids, o.logprobs.logprobs, o.finish_reason) for o in output.outputs] for output in outputs]
        return completions(answers, sampling, self.policy.tokenizer, self.version)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Raises RuntimeError where a tensor that the policy has did not come. After any error nothing is sampled until
        a whole update has gone through."""
        if self._spoilt:
            raise RuntimeError(f"vLLM {self._spoilt}")
        self._unfit = f"has the weights of an update (version {version}) that failed half-way: send them again"
        self._wake("weights")
        if self._sync_adapter:
            self._take_adapter(weights)
        else:
            self._take_model(weights)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM keeps what it cached with the old weights, since something still runs in it")
        self.version, self._unfit = version, None

    def sleep(self) -> None:
        """Until the next call of update_weights or generate. Level 2 drops the weights: all of them are sent again
        before the next generate, which refuses to go without. With an adapter the base weights are never sent
        again; level 1 keeps them in the CPU's memory."""
        if not self._sleeps or self._asleep:
            return
        self.llm.sleep(level=1 if self._sync_adapter else 2)
        self._asleep = {"weights", "kv_cache"}
        if not self._sync_adapter:
            self._unfit = "dropped its weights to sleep: update_weights comes before generate"

    def close(self) -> None:
        if self.llm is None:
            return
        from vllm.distributed import parallel_state

        destroy = parallel_state.destroy_distributed_environment
        if not self._owns_group:
            # vLLM's shutdown would end the default process group, which is the trainer's
            parallel_state.destroy_distributed_environment = lambda: None
        try:
            self.llm.llm_engine.engine_core.shutdown()
        finally:
            parallel_state.destroy_distributed_environment = destroy
        self.llm, self._adapter, self._spoilt = None, None, "is closed"
        self._scratch.cleanup()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _fixed_arguments(self, path: str | Path, dtype: str, split: int, ranks: Ranks) -> dict[str, Any]:
        """What vllm.LLM must be told for the numbers to be right, and no option may change."""
        adapter: dict[str, Any] = {}
        if self._sync_adapter:
            adapter = {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(self.policy.lora.rank)}
            adapter["use_tqdm_on_load"] = False
        return adapter | {
            # Only an adapter's base is read from the disk. All else comes by update_weights and starts random: a
            # tensor that no update reaches is then far off at once, where one from the disk would go stale unseen
            "load_format": "auto" if self._sync_adapter else "dummy",
            "model": self._base_model(path) if self._sync_adapter else self._description(),
            "skip_tokenizer_init": True,
            "dtype": dtype,
            "generation_config": "vllm",  # none of the model's own sampling defaults
            "logprobs_mode": "processed_logprobs",  # at the sampling temperature
            "tensor_parallel_size": split,
            "distributed_executor_backend": "external_launcher" if ranks.size > 1 else "uni",
            "enable_sleep_mode": self._sleeps,
        }

    def _own_arguments(self, rollout: config.Rollout, dtype: torch.dtype, on_cpu: bool) -> dict[str, Any]:
        """What rollout.vllm.options may say otherwise."""
        arguments: dict[str, Any] = {"max_num_seqs": rollout.max_rows, "enable_prefix_caching": True}
        if self.policy.context < 1 << 30:
            arguments["max_model_len"] = self.policy.context
        if not on_cpu:
            return arguments | {"gpu_memory_utilization": rollout.vllm.memory}
        settings = self.policy.model.config
        check_head_size(settings)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        space = kv_cache_bytes(settings, self.policy.context, rollout.max_rows, dtype, free_memory() // here)
        return arguments | WHOLE_PROMPTS | {"enforce_eager": True, "kv_cache_memory_bytes": space}

    def _description(self) -> str:
        """A folder with what vLLM must know of the model. Of the policy itself: its path may be an adapter's, or an old
        revision of a Hub id."""
        settings = copy.deepcopy(self.policy.model.config)
        if hasattr(settings, "quantization_config"):
            del settings.quantization_config  # update_weights brings whole numbers
        folder = Path(self._scratch.name) / "model"
        settings.save_pretrained(folder)
        return str(folder)

    def _base_model(self, path: str | Path) -> str:
        folder = Path(path).expanduser()
        if (folder.is_dir() and not (folder / "config.json").exists()) or hasattr(
            self.policy.model.config, "quantization_config"
        ):
            raise UserError(
                f"model.lora.sync=adapter needs base weights that vLLM can read as they are, and model.path={path} "
                "is an adapter itself or in 4 bits; set model.lora.sync=merged"
            )
        return str(folder if folder.is_dir() else path)

    def _wake(self, *tags: str) -> None:
        for tag in tags:
            if tag in self._asleep:
                self.llm.wake_up(tags=[tag])
                self._asleep.remove(tag)

    def _take_model(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        came: set[str] = set()

        def copies() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                came.add(name)
                # vLLM keeps what it is given until a layer is whole; the trainer's is good for one turn only
                yield name, tensor.detach().clone()

        try:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": copies()})
        except BaseException:
            self.llm.collective_rpc(end_reload)
            raise
        self._all_came(came)

    def _take_adapter(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights}
        self._all_came(tensors.keys())
        old, number = self._adapter, 1 if self._adapter is None else self._adapter.lora_int_id + 1
        folder = Path(self._scratch.name) / f"adapter-{number}"
        save_adapter(self.policy.model, tensors.items(), folder)
        # a new number each time: vLLM would take an old one to mean the adapter that it has
        self._adapter = self._lora_request(f"policy-{number}", number, str(folder))
        if old is not None:
            self.llm.llm_engine.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path)
        self.llm.llm_engine.add_lora(self._adapter)

    def _all_came(self, names: Collection[str]) -> None:
        """vLLM itself does not tell: a third of a matrix that it keeps whole will do for it."""
        if missing := self._expected.difference(names):
            raise RuntimeError(
                f"the policy has {len(self._expected)} tensors for the sampler, and an update came without "
                f"{len(missing)} of them, {min(missing)} first"
            )


def end_reload(worker: Any) -> None:
    """Runs in vLLM's worker: ends a reload that broke off, which would else count its tensors into the next one."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    with set_current_vllm_config(worker.vllm_config), torch.no_grad():
        finalize_layerwise_reload(worker.get_model(), worker.model_config)


def import_vllm() -> Any:
    """The module, with what is used of it. Raises UserError where it is missing or broken."""
    try:
        import vllm
        import vllm.lora.request
        import vllm.platforms
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"rollout.engine=vllm: vLLM cannot be imported ({type(error).__name__}: {error}); install it with "
            "pip install 'grpo-math[vllm]' where there is a GPU and `make vllm` where there is none, or set "
            "rollout.engine=hf"
        ) from error
    return vllm


def tensor_names(policy: Policy, adapter: bool) -> set[str]:
    """The names under which lora.engine_weights sends them."""
    names = [name for name, _ in policy.model.named_parameters(remove_duplicate=False)]
    if adapter:
        return {peft_name(name) for name in names if ".lora_" in name}
    return {name.replace(".base_layer", "") for name in names if ".lora_" not in name}


def check_head_size(settings: PretrainedConfig) -> None:
    """Raises UserError where vLLM's attention on the CPU cannot run the model, which it would say in mid-generation."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    settings = settings.get_text_config()
    size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    if size not in (sizes := CPUAttentionBackend.get_supported_head_sizes()):
        raise UserError(
            f"rollout.engine=vllm: the model's attention heads are {size} wide, and vLLM on the CPU takes "
            f"{', '.join(map(str, sizes))}; take another model, or rollout.engine=hf"
        )


def free_memory() -> int:
    """Bytes that this machine can still give away."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
