"""Sample with transformers itself: a decode loop of our own over its cache, on any device, nothing to install.

A prompt is computed once for its whole group; rows that have ended leave the batch; the log-probability of each token
is recorded as it is drawn. Every completion has a random stream of its own, so the same seed gives the same tokens
whatever the batch. Left out: paged attention and continuous batching, which vLLM does better.
"""

# P prompts, G completions of each, R = P * G rows, T tokens so far, V vocabulary

from __future__ import annotations

from collections.abc import Iterable, Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from grpo_math.policy import Policy
from grpo_math.rollout.cache import growing, select_rows
from grpo_math.rollout.sampler import draw
from grpo_math.types import Completion, Prompt, Sampling

DROP_SHARE = 0.125  # finished rows are dropped once they are this share of the batch: dropping copies the cache


class HFEngine:
    """max_rows bounds the completions decoded side by side; autocast is the backend's, so that both round alike."""

    def __init__(self, policy: Policy, max_rows: int, autocast: torch.dtype | None = None) -> None:
        self.policy, self.max_rows, self.autocast = policy, max_rows, autocast
        self.version = 0

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        # rows of one length beside each other waste the least padding; a group stays together to share its prompt
        jobs = [(prompt, i) for prompt in prompts for i in range(sampling.n)]
        order = sorted(range(len(jobs)), key=lambda j: len(jobs[j][0].token_ids))
        done: list[Completion | None] = [None] * len(jobs)
        training = self.policy.model.training
        self.policy.model.eval()  # with gradient checkpointing a model in training mode keeps no cache
        for start in range(0, len(order), self.max_rows):
            part = order[start : start + self.max_rows]
            for j, completion in zip(part, self._decode([jobs[j] for j in part], sampling), strict=True):
                done[j] = completion
        self.policy.model.train(training)
        flat = [c for c in done if c is not None]
        return [flat[i : i + sampling.n] for i in range(0, len(flat), sampling.n)]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies what is not already the same memory: in process the trainer and this engine share one model."""
        own = dict(self.policy.model.named_parameters())
        missing = set(own)
        with torch.no_grad():
            for name, tensor in weights:
                missing.discard(name)
                if name in own and own[name].data_ptr() != tensor.data_ptr():
                    own[name].copy_(tensor)
        if missing:
            raise RuntimeError(f"update_weights left {len(missing)} parameters as they were, {min(missing)} among them")
        self.version = version

    def sleep(self) -> None:
        """The cache lives only inside generate: there is nothing to give back."""

    def close(self) -> None:
        pass

    @torch.inference_mode()
    def _decode(self, jobs: Sequence[tuple[Prompt, int]], sampling: Sampling) -> list[Completion]:
        policy, device = self.policy, self.policy.device
        stop_ids = torch.tensor(sorted(policy.eos_ids), device=device)
        uniform = torch.from_numpy(random_streams(jobs, sampling)).to(device)
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits, cache, visible = self._prefill(jobs, sampling)
            # results by job; `rows` says which jobs the shrinking batch still holds
            token_ids = torch.full((len(jobs), sampling.max_tokens), policy.pad_id, device=device)
            logprobs = torch.zeros((len(jobs), sampling.max_tokens), device=device)
            lengths = torch.full((len(jobs),), sampling.max_tokens, device=device)
            stopped = torch.zeros(len(jobs), dtype=torch.bool, device=device)
            rows = torch.arange(len(jobs), device=device)
            positions = visible.sum(-1) if visible is not None else torch.full_like(rows, cache.get_seq_length())
            for t in range(sampling.max_tokens):
                tokens, chosen = draw(logits, uniform[rows, t], sampling)
                running = ~stopped[rows]
                token_ids[rows, t] = torch.where(running, tokens, policy.pad_id)
                logprobs[rows, t] = torch.where(running, chosen, 0.0)
                ends = torch.isin(tokens, stop_ids) & running
                lengths[rows[ends]] = t + 1
                stopped[rows[ends]] = True
                live = ~stopped[rows]
                alive = int(live.sum())
                if not alive or t + 1 == sampling.max_tokens:
                    break
                if len(rows) - alive > DROP_SHARE * len(rows):
                    keep = live.nonzero().squeeze(-1)
                    select_rows(cache, keep)
                    rows, tokens, positions = rows[keep], tokens[keep], positions[keep]
                    visible = visible[keep] if visible is not None else None
                if visible is not None:
                    visible = torch.cat([visible, visible.new_ones(len(rows), 1)], dim=-1)
                output = policy.model(
                    input_ids=tokens[:, None],
                    attention_mask=visible,
                    position_ids=positions[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                logits, positions = output.logits[:, -1], positions + 1
        return self._completions(token_ids.cpu(), logprobs.cpu(), lengths.tolist(), stopped.tolist())

    def _prefill(
        self, jobs: Sequence[tuple[Prompt, int]], sampling: Sampling
    ) -> tuple[Tensor, DynamicCache, Tensor | None]:
        """Logits (R, V) after the prompts, their cache, and which cached positions each row may see (R, T).

        Each distinct prompt is computed once. Prompts of unequal length are padded on the left; for equal ones there is
        no mask at all, which attention is faster without."""
        device = self.policy.device
        distinct = list(dict.fromkeys(prompt.token_ids for prompt, _ in jobs))
        place = {ids: i for i, ids in enumerate(distinct)}
        longest = max(map(len, distinct))
        token_ids = torch.full((len(distinct), longest), self.policy.pad_id)
        visible = torch.zeros((len(distinct), longest), dtype=torch.long)
        for i, ids in enumerate(distinct):
            token_ids[i, longest - len(ids) :] = torch.tensor(ids)
            visible[i, longest - len(ids) :] = 1
        padded = not bool(visible.all())
        token_ids, visible = token_ids.to(device), visible.to(device)
        cache = growing(DynamicCache(config=self.policy.model.config), longest + sampling.max_tokens)
        output = self.policy.model(
            input_ids=token_ids,
            attention_mask=visible if padded else None,
            position_ids=(visible.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        index = torch.tensor([place[prompt.token_ids] for prompt, _ in jobs], device=device)
        select_rows(cache, index)
        return output.logits[index, -1], cache, visible[index] if padded else None

    def _completions(
        self, token_ids: Tensor, logprobs: Tensor, lengths: list[int], stopped: list[bool]
    ) -> list[Completion]:
        ids = [tuple(row[:n]) for row, n in zip(token_ids.tolist(), lengths, strict=True)]
        texts = self.policy.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
        return [
            Completion(i, tuple(values[:n]), text, "stop" if stop else "length", self.version)
            for i, values, n, text, stop in zip(ids, logprobs.tolist(), lengths, texts, stopped, strict=True)
        ]


def random_streams(jobs: Sequence[tuple[Prompt, int]], sampling: Sampling) -> np.ndarray:
    """Uniform numbers (R, max_tokens): a row depends on the seed, the problem's id and the completion's number only."""
    streams = np.empty((len(jobs), sampling.max_tokens))
    for row, (prompt, i) in zip(streams, jobs, strict=True):
        name = crc32(prompt.problem.id.encode())
        np.random.Generator(np.random.Philox(np.random.SeedSequence((sampling.seed, name, i)))).random(out=row)
    return streams
