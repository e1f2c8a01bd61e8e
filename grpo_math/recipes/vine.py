"""VinePPO (Kazemnejad et al. 2024, arXiv:2410.01679): the value of a step without a model, by going on from there.

    V(s_k) = share of K continuations from the first k steps that are right;   A_t = V(s_{k+1}) - V(s_k), t in step k

The continuations come from the policy that sampled the completions, so they are drawn before it is updated. Left out:
the values' bookkeeping (steps/values.py), and where steps end (steps/split.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from grpo_math import config
from grpo_math.backend.base import Metrics
from grpo_math.batch import Batch
from grpo_math.process import step_advantages
from grpo_math.recipes.credit import Rewards, Stateless, laid_out, tokens_at
from grpo_math.recipes.parts import Parts, Stopwatch, step_seed
from grpo_math.steps.split import boundary
from grpo_math.steps.values import Solution, Value, Values, estimate, prefixes_of
from grpo_math.types import Completion, Group, Prompt, Sampling, Verdict

WIDTHS = 4  # prefixes that are continued together differ by at most such a part of max_tokens


class ByVine(Stateless):
    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.split = boundary(cfg.vine.boundary)
        self.ends: list[list[int]] = []  # of each completion: the token at which each step ends
        self.values: list[Values] = []

    def look(self, groups: Sequence[Group], step: int, watch: Stopwatch) -> Metrics:
        items = [(g, c, s.verdict) for g in groups for c, s in zip(g.completions, g.scores, strict=True)]
        tokenizer = self.parts.policy.tokenizer
        # a text of white space has no steps, and its tokens answer for the whole all the same
        self.ends = [
            distinct(tokens_at(tokenizer, c, self.split(c.text))) or [len(c.token_ids) - 1] for _, c, _ in items
        ]
        solutions = [
            Solution(prefixes_of(group.prompt, completion.token_ids, ends), verdict)
            for (group, completion, verdict), ends in zip(items, self.ends, strict=True)
        ]
        starts = {group.prompt.problem.id: len(group.prompt.token_ids) for group in groups}
        drawn = 0

        def go_on(prefixes: list[Prompt], n: int, seed: int) -> list[list[Verdict]]:
            nonlocal drawn
            drawn += n * len(prefixes)
            return self.continued(prefixes, n, seed, starts, watch)

        self.values = estimate(solutions, self.cfg.vine.continuations, go_on, step_seed(self.cfg.seed, "vine", step))
        asked = [v for values in self.values for v in values[:-1] if v is not None]
        lost = sum(value.lost for value in asked)
        return {
            "vine/continuations": float(drawn),
            "vine/steps": sum(map(len, self.ends)) / max(len(self.ends), 1),
            "vine/lost": lost / max(sum(v.drawn + v.lost for v in asked), 1),
        }

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        values, rows = iter(zip(self.ends, self.values, strict=True)), []
        for group in groups:
            right = [None if s.verdict.reward is None else s.verdict.reason == "correct" for s in group.scores]
            for place, completion in enumerate(group.completions):
                ends, known = next(values)
                siblings = [float(r) for i, r in enumerate(right) if i != place and r is not None]
                start = sum(siblings) / len(siblings) if siblings else None
                shares = [start, *(share(value) for value in known)]
                rows.append(step_advantages(ends, shares, len(completion.token_ids)))
        return batch.with_advantages(laid_out(rows, groups, rewards, batch))

    def continued(
        self, prefixes: list[Prompt], n: int, seed: int, starts: dict[str, int], watch: Stopwatch
    ) -> list[list[Verdict]]:
        """Verdicts on n continuations of each prefix. starts: tokens of each problem's own prompt."""
        room, context = self.cfg.sampling.max_tokens, self.parts.context
        lengths = [len(prefix.token_ids) for prefix in prefixes]
        used = [length - starts[prefix.problem.id] for length, prefix in zip(lengths, prefixes, strict=True)]
        # as many at a time as a step samples: so much is done well within phase_timeout_s
        at_once = max(1, self.cfg.prompts_per_step * self.cfg.group_size // n)
        verdicts: list[list[Verdict]] = [[] for _ in prefixes]
        for number, places in enumerate(by_room(lengths, used, room, context, at_once)):
            most = room - min(used[i] for i in places)
            with watch("generate"):
                sampling = Sampling(n, most, self.cfg.sampling.temperature, seed=step_seed(seed, number))
                rows = self.parts.engine.generate([prefixes[i] for i in places], sampling)
            whole = [
                [self.joined(prefixes[i], starts[prefixes[i].problem.id], c, room) for c in row]
                for i, row in zip(places, rows, strict=True)
            ]
            with watch("verify"):
                groups = self.parts.score([prefixes[i] for i in places], whole)
            for i, group in zip(places, groups, strict=True):
                verdicts[i] = [score.verdict for score in group.scores]
        return verdicts

    def joined(self, prefix: Prompt, start: int, completion: Completion, room: int) -> Completion:
        """The prefix's part of the completion and what follows, cut where sampling in one go would have been."""
        ids = (*prefix.token_ids[start:], *completion.token_ids)
        cut = len(ids) > room
        text = self.parts.policy.tokenizer.decode(ids[:room], skip_special_tokens=True)
        return replace(
            completion,
            token_ids=ids[:room],
            logprobs=(0.0,) * len(ids[:room]),
            text=str(text),
            finish_reason="length" if cut else completion.finish_reason,
        )


def share(value: Value | None) -> float | None:
    return None if value is None else value.share


def distinct(ends: Sequence[int]) -> list[int]:
    """Steps that end within one token are one step."""
    return sorted(set(ends))


def by_room(lengths: Sequence[int], used: Sequence[int], room: int, context: int, at_once: int) -> list[list[int]]:
    """Places of prefixes that are sampled together: at most `at_once`, that have used up about as many of their `room`
    tokens, and such that all may go on for as long as the one that has most room, within the context.

    lengths: tokens of each prefix with its prompt, used: without it. One prefix alone always has its room, since its
    prompt was taken for leaving `room` tokens of the context."""
    lists: list[list[int]] = []
    for place in sorted(range(len(used)), key=lambda i: (used[i], lengths[i])):
        if lists:
            last = lists[-1]
            most, longest = room - used[last[0]], max(lengths[place], *(lengths[i] for i in last))
            alike = used[place] - used[last[0]] <= room // WIDTHS
            if alike and len(last) < at_once and longest + most <= context:
                last.append(place)
                continue
        lists.append([place])
    return lists
