"""Sample with transformers itself: a decode loop of our own over its cache, on any device, nothing to install.

Completions of a prompt that are equal so far are one row of the batch: the prompt is computed once for its group, and a
sibling gets a row of its own only where its tokens part from the others'. Rows that have ended leave the batch. The
log-probability of each token is recorded as it is drawn. Every completion has a random stream of its own, so the same
seed gives the same tokens whatever the batch. Left out: paged attention and continuous batching; vLLM has them.
"""

# P prompts, G completions of each, R = P * G completions, S rows in the model's batch, T tokens so far, V vocabulary

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from grpo_math.policy import Policy
from grpo_math.rollout.cache import growing, select_rows
from grpo_math.rollout.sampler import draw
from grpo_math.types import Completion, Prompt, Sampling, UserError

LOOK_EVERY = 16  # tokens between two looks for a stop string: decoding text is slow beside a step of a small model


class HFEngine:
    """max_rows bounds the completions decoded side by side; autocast is the backend's, so that both round alike.
    shares_weights: the policy is the trainer's own, so that whatever that learns is here at once."""

    def __init__(
        self, policy: Policy, max_rows: int, autocast: torch.dtype | None = None, shares_weights: bool = False
    ) -> None:
        if "past_key_values" not in signature(policy.model.forward).parameters:
            raise UserError(
                f"{type(policy.model).__name__} keeps its state in a way of its own, not in transformers' cache "
                "(its forward takes no past_key_values): rollout.engine=hf cannot sample from it; take another model"
            )
        self.policy, self.max_rows, self.autocast, self.shares_weights = policy, max_rows, autocast, shares_weights
        self.version = 0

    @property
    def context(self) -> int:
        return self.policy.context

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        # rows of one length beside each other waste the least padding; a group stays together to share its prompt
        jobs = [(prompt, i) for prompt in prompts for i in range(sampling.n)]
        order = sorted(range(len(jobs)), key=lambda j: len(jobs[j][0].token_ids))
        done: list[Completion | None] = [None] * len(jobs)
        training = self.policy.model.training
        self.policy.model.eval()  # with gradient checkpointing a model in training mode keeps no cache
        rows = max(
            self.max_rows // sampling.n * sampling.n, min(sampling.n, self.max_rows)
        )  # whole groups, if they fit
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            for j, completion in zip(chosen, self._decode([jobs[j] for j in chosen], sampling), strict=True):
                done[j] = completion
        self.policy.model.train(training)
        flat = [c for c in done if c is not None]
        return [flat[i : i + sampling.n] for i in range(0, len(flat), sampling.n)]

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies them, where the memory is not the trainer's anyway."""
        if not self.shares_weights:
            own = dict(self.policy.model.named_parameters())
            missing = set(own)
            with torch.no_grad():
                for name, tensor in weights:
                    missing.discard(name)
                    if name in own:
                        own[name].copy_(tensor)
            if missing:
                raise RuntimeError(
                    f"update_weights left {len(missing)} parameters as they were, {min(missing)} among them"
                )
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
        token_ids = torch.full((len(jobs), sampling.max_tokens), policy.pad_id, device=device)
        logprobs = torch.zeros((len(jobs), sampling.max_tokens), device=device)
        lengths = torch.full((len(jobs),), sampling.max_tokens, device=device)
        stopped = torch.zeros(len(jobs), dtype=torch.bool, device=device)
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            logits, cache, visible, row = self._prefill(jobs, sampling)
            positions = visible.sum(-1)
            padded = not bool(visible.all())
            # the completions that still go on, and for each the row of the batch that holds its tokens so far
            live = torch.arange(len(jobs), device=device)
            for t in range(sampling.max_tokens):
                tokens, chosen = draw(logits, row, uniform[live, t], sampling)
                token_ids[live, t], logprobs[live, t] = tokens, chosen
                ends = torch.isin(tokens, stop_ids)
                if sampling.stop and t % LOOK_EVERY == LOOK_EVERY - 1:
                    ends |= self._has_stop(token_ids[live, : t + 1], sampling.stop)
                lengths[live[ends]], stopped[live[ends]] = t + 1, True
                live, row, tokens = live[~ends], row[~ends], tokens[~ends]
                if not len(live) or t + 1 == sampling.max_tokens:
                    break
                index, tokens, row = part(row, tokens)
                if len(index) != len(positions) or not torch.equal(index, torch.arange(len(index), device=device)):
                    select_rows(cache, index)
                    positions, visible = positions[index], visible[index]
                visible = torch.cat([visible, visible.new_ones(len(visible), 1)], dim=-1)
                output = policy.model(
                    input_ids=tokens[:, None],
                    attention_mask=visible if padded else None,
                    position_ids=positions[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                logits, positions = output.logits[:, -1], positions + 1
        return self._completions(token_ids.cpu(), logprobs.cpu(), lengths.tolist(), stopped.tolist())

    def _has_stop(self, token_ids: Tensor, stop: Sequence[str]) -> Tensor:
        """(R,) whether one of `stop` is in the text of (R, T) tokens."""
        texts = self.policy.tokenizer.batch_decode(token_ids.tolist(), skip_special_tokens=True)
        return torch.tensor([any(words in text for words in stop) for text in texts], device=token_ids.device)

    def _prefill(
        self, jobs: Sequence[tuple[Prompt, int]], sampling: Sampling
    ) -> tuple[Tensor, DynamicCache, Tensor, Tensor]:
        """Logits (S, V) after the prompts, their cache, the cached positions a row may see (S, T), and each job's row.

        Each distinct prompt is a row. Prompts of unequal length are padded on the left."""
        device = self.policy.device
        distinct = list(dict.fromkeys(prompt.token_ids for prompt, _ in jobs))
        place = {ids: i for i, ids in enumerate(distinct)}
        longest = max(map(len, distinct))
        token_ids = torch.full((len(distinct), longest), self.policy.pad_id)
        visible = torch.zeros((len(distinct), longest), dtype=torch.long)
        for i, ids in enumerate(distinct):
            token_ids[i, longest - len(ids) :] = torch.tensor(ids)
            visible[i, longest - len(ids) :] = 1
        padded = not bool(visible.all())  # without a mask attention is faster
        token_ids, visible = token_ids.to(device), visible.to(device)
        cache = growing(DynamicCache(config=self.policy.model.config), len(jobs), longest + sampling.max_tokens)
        output = self.policy.model(
            input_ids=token_ids,
            attention_mask=visible if padded else None,
            position_ids=(visible.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        row = torch.tensor([place[prompt.token_ids] for prompt, _ in jobs], device=device)
        return output.logits[:, -1], cache, visible, row

    def _completions(
        self, token_ids: Tensor, logprobs: Tensor, lengths: list[int], stopped: list[bool]
    ) -> list[Completion]:
        ids = [tuple(row[:n]) for row, n in zip(token_ids.tolist(), lengths, strict=True)]
        texts = self.policy.tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
        return [
            Completion(i, tuple(values[:n]), text, "stop" if stop else "length", self.version)
            for i, values, n, text, stop in zip(ids, logprobs.tolist(), lengths, texts, stopped, strict=True)
        ]


def part(row: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next rows of the batch: one for each distinct continuation (row, token) of the rows before.

    row, tokens: (R,), what each completion was in and what it drew. Returns index (S,), the row before of each new one;
    the new rows' tokens (S,); and each completion's new row (R,). A row's first continuation stays in its place, where
    that is among the first S; the others take the places that are free, so that little of the cache has to move."""
    pairs, inverse = torch.unique((row << 32) + tokens, return_inverse=True)  # sorted by row, then token
    parents, continuations = pairs >> 32, pairs & 0xFFFFFFFF
    count = len(parents)
    stays = parents < count
    stays[1:] &= parents[1:] != parents[:-1]
    free = torch.ones(count, dtype=torch.bool, device=row.device)
    free[parents[stays]] = False
    place = torch.empty_like(parents)
    place[stays], place[~stays] = parents[stays], free.nonzero().squeeze(-1)
    index, next_tokens = torch.empty_like(parents), torch.empty_like(continuations)
    index[place], next_tokens[place] = parents, continuations
    return index, next_tokens, place[inverse]


def random_streams(jobs: Sequence[tuple[Prompt, int]], sampling: Sampling) -> np.ndarray:
    """Uniform numbers (R, max_tokens): a row depends on the seed, the problem's id and the completion's number only."""
    streams = np.empty((len(jobs), sampling.max_tokens))
    for row, (prompt, i) in zip(streams, jobs, strict=True):
        name = crc32(prompt.problem.id.encode())
        np.random.Generator(np.random.Philox(np.random.SeedSequence((sampling.seed, name, i)))).random(out=row)
    return streams
