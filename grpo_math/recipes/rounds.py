"""Rounds: sample and verify once, learn for a while, sample again. What `rest` and iterative preference learning share.

A round's groups are kept in the checkpoint, so that a run which is killed in the middle of one goes on with the same.
Left out: what is learnt from them (rest.py, preference.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_math import config
from grpo_math.batch import pad_rows
from grpo_math.filtering.candidate import Candidate
from grpo_math.progress import bar
from grpo_math.recipes.agreement import GAP_ROWS, check_sampler, check_staleness, largest_gap
from grpo_math.recipes.parts import Parts, Stopwatch, step_seed
from grpo_math.recipes.sampling import sample_groups
from grpo_math.types import Completion, Group, Problem, Prompt, Sampling, Scored, Verdict

ROUND_FILE = "round.jsonl"


def sample_round(
    cfg: config.REST | config.Preference, parts: Parts, problems: int, number: int, step: int, watch: Stopwatch
) -> list[Group]:
    """`problems` groups of cfg.group_size, prompts_per_step problems at a time: so much is one phase to the watchdog.

    number: of the round, which decides the seed. step: the one before which all this happens; the engine must have the
    weights of the step before it."""
    groups: list[Group] = []
    show = bar(problems)
    while len(groups) < problems:
        count = min(cfg.prompts_per_step, problems - len(groups))
        seed = step_seed(cfg.seed, "round", number, len(groups))
        sampling = Sampling(cfg.group_size, cfg.sampling.max_tokens, cfg.sampling.temperature, seed=seed)
        groups += sample_groups(parts, count, sampling, watch, before=groups)
        show(len(groups))
    check_staleness(groups, step, 0)
    # the trainer's log-probabilities are those at temperature 1
    if cfg.sampling.temperature == 1:
        some = [(group.prompt, group.completions[0]) for group in groups[:GAP_ROWS]]
        batch = pad_rows(some, [True] * len(some), parts.policy.pad_id)
        check_sampler(parts.backend, batch, step, largest_gap(cfg))
    parts.engine.sleep()
    return groups


def as_candidates(groups: Sequence[Group]) -> list[Candidate]:
    """The completions of the groups, in their order, as the rules of `grpo-math filter` see them. `line` is a
    completion's place among all of them, from 0."""
    every = [(group, c, s) for group in groups for c, s in zip(group.completions, group.scores, strict=True)]
    return [
        Candidate(
            file="round",
            line=place,
            task=group.prompt.problem.task,
            problem=group.prompt.problem.id,
            prompt=group.prompt.text,
            completion=completion.text,
            reward=score.reward,
            reason=score.verdict.reason,
            answer=score.verdict.answer,
            tokens=len(completion.token_ids),
            truncated=completion.finish_reason == "length",
            policy_version=completion.policy_version,
        )
        for place, (group, completion, score) in enumerate(every)
    ]


def draw(count: int, take: int, number: int, seed: int) -> list[int]:
    """The `number`-th take (from 0) of `take` out of range(count): epoch after epoch, each in a random order of its
    own. Depends on nothing that came before, so a run that is continued needs to remember nothing."""
    take = min(take, count)
    places = range(number * take, (number + 1) * take)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in {p // count for p in places}}
    return [int(orders[place // count][place % count]) for place in places]


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """What learning needs of them, a group a line."""
    with (path / ROUND_FILE).open("w", encoding="utf-8") as stream:
        for group in groups:
            problem = group.prompt.problem
            line = {
                "problem": [problem.id, problem.task],
                "prompt": [group.prompt.token_ids, group.prompt.text],
                "completions": [
                    [c.token_ids, c.logprobs, c.text, c.finish_reason, c.policy_version] for c in group.completions
                ],
                "scores": [[s.reward, s.verdict.reason, s.verdict.answer] for s in group.scores],
            }
            stream.write(json.dumps(line) + "\n")


def read_groups(path: Path) -> list[Group]:
    """What write_groups wrote; none where a checkpoint has none."""
    if not (path / ROUND_FILE).exists():
        return []
    with (path / ROUND_FILE).open(encoding="utf-8") as stream:
        return [_group(json.loads(line)) for line in stream]


def _group(line: dict[str, Any]) -> Group:
    ids, text = line["prompt"]
    id, task = line["problem"]
    return Group(
        Prompt(Problem(id, task, "", ""), tuple(ids), text),
        tuple(Completion(tuple(ids), tuple(logprobs), *rest) for ids, logprobs, *rest in line["completions"]),
        tuple(Scored(reward, Verdict(reward, reason, answer=answer), {}) for reward, reason, answer in line["scores"]),
    )
