"""What vLLM in this process and vLLM's servers share: what is asked of vLLM, and what its answers become.

Left out: vLLM itself, which this file never imports.
"""

# P prompts, G completions of each

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from grpo_math.types import Completion, Prompt, Sampling, UserError

COOLEST = 0.01  # vLLM raises any lower temperature but 0 to this, with no more than a warning

# vLLM's requests with a seed fail on the CPU ("CPU Generator does not use offset") once a prompt is read in parts
WHOLE_PROMPTS = {"enable_chunked_prefill": False}

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM has kernels for

# (token ids, logprobs, why it ended), as vLLM tells them
Answer = tuple[Sequence[int], Sequence[float], str | None]


def sampling_fields(sampling: Sampling, prompt: Prompt, eos_ids: Collection[int]) -> dict[str, Any]:
    """The fields of vllm.SamplingParams for one prompt's completions.

    Their seeds depend on the run's seed, the problem's id and the completion's number only (vLLM adds the number to the
    prompt's seed), so neither the other prompts nor the ranks change what is drawn. vLLM refuses siblings at
    temperature 0, where all are the same: `completions` repeats the one."""
    if 0.0 < sampling.temperature < COOLEST:
        raise UserError(
            f"temperature={sampling.temperature:g} is less than vLLM can sample at, {COOLEST:g}; set 0 for the most "
            "likely token, or rollout.engine=hf"
        )
    return {
        "n": 1 if sampling.temperature == 0.0 else sampling.n,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": prompt_seed(sampling.seed, prompt.problem.id),
        "stop_token_ids": sorted(eos_ids),
        "ignore_eos": True,  # the ids above are all; vLLM's own idea of the end may be another
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,  # the policy's tokenizer does it, as for every other engine
    }


def prompt_seed(seed: int, problem_id: str) -> int:
    """63 bits, of which torch's generator on the CPU uses the lower 32."""
    state = np.random.SeedSequence((seed, crc32(problem_id.encode()))).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def refuse_long(prompts: Sequence[Prompt], max_tokens: int, context: int) -> None:
    """The loop leaves them out before; vLLM would cut their completions short without a word."""
    for prompt in prompts:
        if len(prompt.token_ids) + max_tokens > context:
            raise UserError(
                f"problem {prompt.problem.id}: its prompt of {len(prompt.token_ids)} tokens and sampling.max_tokens="
                f"{max_tokens} do not fit into the {context} tokens that vLLM was started for; lower "
                "sampling.max_tokens, or raise rollout.vllm.options.max_model_len as far as the model allows"
            )


def completions(
    answers: Sequence[Sequence[Answer]], sampling: Sampling, tokenizer: PreTrainedTokenizerBase, version: int
) -> list[list[Completion]]:
    """P lists of `sampling.n` completions, from vLLM's answers in the order of the prompts."""
    flat = [answer for group in answers for answer in group]
    for token_ids, logprobs, reason in flat:
        if reason not in ("stop", "length") or len(token_ids) != len(logprobs):
            raise RuntimeError(
                f"vLLM gave up after {len(token_ids)} tokens and {len(logprobs)} log-probabilities: {reason}"
            )
    texts = tokenizer.batch_decode([list(ids) for ids, _, _ in flat], skip_special_tokens=True)
    done = iter(
        [
            Completion(tuple(ids), tuple(logprobs), text, "stop" if reason == "stop" else "length", version)
            for (ids, logprobs, reason), text in zip(flat, texts, strict=True)
        ]
    )
    groups = [[next(done) for _ in group] for group in answers]
    return [group * sampling.n if sampling.temperature == 0.0 else group for group in groups]


def kv_cache_bytes(settings: PretrainedConfig, context: int, rows: int, dtype: torch.dtype, free: int) -> int:
    """Memory for the keys and values of `rows` completions as long as the context, but at most a quarter of `free`.

    For machines where vLLM would else take a share of all there is: on a GPU that memory is vLLM's alone, on a CPU it
    is everybody's."""
    settings = settings.get_text_config()
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    width = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    token = 2 * settings.num_hidden_layers * heads * width * dtype.itemsize
    block = 256  # vLLM gives out whole blocks of tokens, and keeps some for itself
    wanted = token * (rows * (-(-context // block) * block) + 16 * block)
    return max(1 << 26, min(wanted, free // 4))


def lora_rank(rank: int) -> int:
    """The least that vLLM reserves room for."""
    if rank > LORA_RANKS[-1]:
        raise UserError(
            f"model.lora.rank={rank} is over {LORA_RANKS[-1]}, the most that vLLM takes; set model.lora.sync=merged"
        )
    return next(size for size in LORA_RANKS if size >= rank)
