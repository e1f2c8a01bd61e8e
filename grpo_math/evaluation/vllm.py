"""Sample with vLLM in this process, from the model's own files. Left out: several machines; `vllm serve` and
`--engine openai` do those.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.evaluation.hf import Dtype, prompt_of, rendered, sample_of
from grpo_math.evaluation.sampler import Answered, Asked
from grpo_math.forms import Form
from grpo_math.loading import base_of_adapter, end_ids
from grpo_math.policy import load_policy
from grpo_math.rollout.vllm_common import WHOLE_PROMPTS, completions, kv_cache_bytes, sampling_fields
from grpo_math.rollout.vllm_local import ENVIRONMENT, check_head_size, free_memory, import_vllm
from grpo_math.rollout.vllm_process import quiet_start, unchanged_process, unchanged_random_state
from grpo_math.types import Problem, Sampling, UserError

# the log-probabilities that vLLM reports: under what the token was drawn from, temperature, top_k and top_p included
AS_DRAWN = {"logprobs_mode": "processed_logprobs"}


class VLLMSampler:
    """options: further arguments of vllm.LLM, such as tensor_parallel_size=4. tokens: samples with their tokens and
    log-probabilities. Completions are given out problem by problem, as they end: a long one does not hold up the
    others."""

    def __init__(
        self, model: str, max_rows: int, dtype: Dtype, options: Mapping[str, Any], tokens: bool = False
    ) -> None:
        self.options, self.dtype, self.max_rows, self.tokens = dict(options), dtype, max_rows, tokens
        self._scratch = tempfile.TemporaryDirectory(prefix="grpo-math-vllm-")  # for an adapter merged into its base
        path, self.tokenizer, self.eos_ids, settings = self._files(model)
        self.revision = getattr(settings, "_commit_hash", None)  # of a Hub id
        with unchanged_process():
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            if options.get("tensor_parallel_size", 1) == 1:
                os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            vllm = import_vllm()
            on_cpu = vllm.platforms.current_platform.is_cpu()
            fixed = {
                "model": path,
                "tokenizer": path if path == self._scratch.name else model,  # for stop strings
                "dtype": dtype,
                "generation_config": "vllm",  # none of the model's own sampling defaults
                "use_tqdm_on_load": False,
                **(AS_DRAWN if tokens else {}),
            }
            if taken := sorted(fixed.keys() & options.keys()):
                raise UserError(f"--engine-option {taken[0]}: that is decided by other options; leave it out")
            with quiet_start():
                try:
                    self.llm: Any = vllm.LLM(**self._defaults(settings, max_rows, on_cpu) | self.options | fixed)
                except (ValueError, TypeError) as error:
                    raise UserError(
                        f"--engine vllm does not start for {model} with --engine-option {options}: {error}"
                    ) from error
        self.vllm = vllm
        self.version = vllm.__version__
        self.device = "cpu" if on_cpu else torch.cuda.get_device_name()
        self.context: int | None = int(self.llm.model_config.max_model_len)

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked:
        return rendered(task, number, problem, form, self.tokenizer)

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        engine, waiting = self.llm.llm_engine, {str(a.number): a for a in asked}
        try:
            with unchanged_random_state():
                for name, a in waiting.items():
                    engine.add_request(name, {"prompt_token_ids": list(a.token_ids or ())}, self._params(a, sampling))
            while engine.has_unfinished_requests():
                with unchanged_random_state():
                    ended = [output for output in engine.step() if output.finished]
                if not ended:
                    continue
                answers = [[(o.token_ids, o.logprobs.logprobs, o.finish_reason) for o in e.outputs] for e in ended]
                block = []
                for output, group in zip(ended, completions(answers, sampling, self.tokenizer, 0), strict=True):
                    a = waiting.pop(output.request_id)
                    block.append((a.number, [sample_of(c, a.stop, self.tokenizer, self.tokens) for c in group]))
                yield block
        finally:
            engine.abort_request(list(waiting))  # of an interruption, or they would come with the next answers

    def _params(self, asked: Asked, sampling: Sampling) -> Any:
        fields = sampling_fields(sampling, prompt_of(asked), self.eos_ids)
        if asked.stop:
            fields |= {"stop": list(asked.stop), "detokenize": True, "include_stop_str_in_output": True}
        final = self.vllm.sampling_params.RequestOutputKind.FINAL_ONLY
        return self.vllm.SamplingParams(**fields, flat_logprobs=True, output_kind=final)

    def identity(self) -> dict[str, Any]:
        return {
            "engine": "vllm",
            "version": self.version,
            "dtype": self.dtype,
            "device": self.device,
            "max_rows": self.max_rows,
            "revision": self.revision,
            "options": self.options,
        }

    def close(self) -> None:
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        self._scratch.cleanup()
        gc.collect()

    def _files(self, model: str) -> tuple[str, PreTrainedTokenizerBase, frozenset[int], Any]:
        """What vLLM is to load, the tokenizer, the tokens that end a completion, and the model's configuration."""
        path = model
        if base_of_adapter(Path(model)) is not None:
            merged = load_policy(config.Model(path=model), torch.device("cpu"), getattr(torch, self.dtype))
            path = self._scratch.name
            merged.model.save_pretrained(path)
            merged.tokenizer.save_pretrained(path)
        try:
            settings = AutoConfig.from_pretrained(path)
            tokenizer = AutoTokenizer.from_pretrained(model)
            named = _ends(path, settings)
        except (OSError, ValueError) as error:
            raise UserError(f"MODEL={model} could not be read: {error}") from error
        return path, tokenizer, end_ids(named, tokenizer), settings

    def _defaults(self, settings: Any, max_rows: int, on_cpu: bool) -> dict[str, Any]:
        """What options may say otherwise."""
        arguments: dict[str, Any] = {"max_num_seqs": max_rows, "enable_prefix_caching": True}
        if not on_cpu:
            return arguments
        check_head_size(settings)
        context = int(getattr(settings.get_text_config(), "max_position_embeddings", None) or 1 << 12)
        space = kv_cache_bytes(settings, context, max_rows, getattr(torch, self.dtype), free_memory())
        return arguments | WHOLE_PROMPTS | {"enforce_eager": True, "kv_cache_memory_bytes": space}


def _ends(path: str, settings: Any) -> Any:
    """The end-of-sequence tokens that the model's files name: one, several or none."""
    try:
        return GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is no such file: transformers would make one of the configuration
        return getattr(settings.get_text_config(), "eos_token_id", None)
