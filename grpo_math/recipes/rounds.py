"""Rounds: sample and verify once, learn for a while, sample again. What `rest` and iterative preference learning share.

A round is written to run_dir/rounds/round-N.jsonl while it is sampled. A run that is killed goes on with what is there,
in the middle of sampling or of learning. Left out: what is learnt from it (rest.py, preference.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grpo_math import config
from grpo_math.batch import pad_rows
from grpo_math.filtering.candidate import Candidate
from grpo_math.progress import bar
from grpo_math.recipes.agreement import GAP_ROWS, check_sampler, check_staleness, largest_gap
from grpo_math.recipes.parts import Parts, Stopwatch, step_seed
from grpo_math.recipes.same_run import fingerprint
from grpo_math.recipes.sampling import sample_groups
from grpo_math.types import Completion, Group, Problem, Prompt, Sampling, Scored, UserError, Verdict

ROUNDS = "rounds"  # in run_dir


def sample_round(
    cfg: config.REST | config.Preference, parts: Parts, problems: int, number: int, step: int, watch: Stopwatch
) -> list[Group]:
    """`problems` groups of cfg.group_size, as many at a time as the engine samples side by side: so much is one phase
    to the watchdog, and is not lost when the run is killed.

    number: of the round, which decides the seed. step: the one before which all this happens; the engine must have the
    weights of the step before it."""
    assert parts.stream is not None, "only a recipe with a task samples"
    path = round_file(cfg, number)
    groups = parts.ranks.tell(lambda: sampled_before(path, fingerprint(cfg)))
    begun = False
    at_once = max(cfg.prompts_per_step, cfg.rollout.max_rows // cfg.group_size)
    show = bar(problems) if parts.ranks.first else lambda done: None
    for start in range(0, problems, at_once):
        count = min(at_once, problems - start)
        if start + count <= len(groups):
            parts.stream.take(count)  # sampled before the run was killed
            continue
        groups = groups[:start]
        seed = step_seed(cfg.seed, "round", number, start)
        sampling = Sampling(cfg.group_size, cfg.sampling.max_tokens, cfg.sampling.temperature, seed=seed)
        fresh = sample_groups(parts, count, sampling, watch, before=groups)
        groups += fresh
        if parts.ranks.first:  # at first all of it: what is there may end in half a line
            write_groups(path, fresh if begun else groups, None if begun else fingerprint(cfg))
        begun = True
        show(len(groups))
    parts.engine.sleep()
    check_staleness(groups, step, 0)
    # the trainer's log-probabilities are those at temperature 1
    if cfg.sampling.temperature == 1:
        some = [(group.prompt, group.completions[0]) for group in groups[:GAP_ROWS]]
        batch = pad_rows(some, [True] * len(some), parts.policy.pad_id)
        check_sampler(parts.backend, batch, step, largest_gap(cfg))
    return groups


def round_file(cfg: config.Common, number: int) -> Path:
    return Path(cfg.run_dir) / ROUNDS / f"round-{number + 1}.jsonl"


def completions_of(groups: Sequence[Group]) -> list[tuple[Group, Completion, Scored]]:
    """Every completion with its group and score, in their order."""
    return [(group, c, s) for group in groups for c, s in zip(group.completions, group.scores, strict=True)]


def as_candidates(groups: Sequence[Group]) -> list[Candidate]:
    """The completions of the groups as the rules of `grpo-math filter` see them. `line` is a completion's place in
    completions_of(groups)."""
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
        for place, (group, completion, score) in enumerate(completions_of(groups))
    ]


def draw(count: int, take: int, number: int, seed: int) -> list[int]:
    """The `number`-th take (from 0) of `take` out of range(count): epoch after epoch, each in a random order of its
    own. Depends on nothing that came before, so a run that is continued needs to remember nothing."""
    take = min(take, count)
    places = range(number * take, (number + 1) * take)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in {p // count for p in places}}
    return [int(orders[place // count][place % count]) for place in places]


def write_groups(path: Path, groups: Sequence[Group], begin: int | None) -> None:
    """Append what learning needs of them, a line for all. begin: the run's fingerprint, where they are a round's first.

    Raises UserError where the disk is full."""
    line = json.dumps([_line(group) for group in groups])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if begin is None else "w", encoding="utf-8") as stream:
            stream.write((f"{begin}\n" if begin is not None else "") + line + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free some space on its disk, then run the same "
            "command again: it goes on from there"
        ) from error


def sampled_before(path: Path, fingerprint: int) -> list[Group]:
    """What a run with this fingerprint has written there; none where there is no such file. A line that was cut short
    is left out, with those behind it."""
    try:
        begin, *lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    groups: list[Group] = []
    for line in lines[:-1] if begin == str(fingerprint) else ():  # behind the last line break there is nothing whole
        try:
            groups += [_group(item) for item in json.loads(line)]
        except ValueError:
            break
    return groups


def read_round(cfg: config.Common, problems: int, number: int) -> list[Group]:
    """A whole round, for a run that goes on in the middle of one. Raises UserError where it is not there."""
    path = round_file(cfg, number)
    groups = sampled_before(path, fingerprint(cfg))
    if len(groups) != problems:
        raise UserError(
            f"{path} holds {len(groups)} of the {problems} problems that this round has sampled, and the run cannot go "
            "on without; put the file back, or use --fresh to start over"
        )
    return groups


def _line(group: Group) -> dict[str, Any]:
    problem = group.prompt.problem
    return {
        "problem": [problem.id, problem.task, problem.answer],
        "prompt": [group.prompt.token_ids, group.prompt.text],
        "completions": [
            [c.token_ids, c.logprobs, c.text, c.finish_reason, c.policy_version] for c in group.completions
        ],
        "scores": [[s.reward, _verdict(s.verdict), _named(s.parts)] for s in group.scores],
    }


def _verdict(verdict: Verdict) -> list[Any]:
    return [verdict.reward, verdict.reason, verdict.detail, verdict.answer]


def _named(parts: Mapping[str, Verdict]) -> dict[str, list[Any]]:
    return {name: _verdict(verdict) for name, verdict in parts.items()}


def _group(line: dict[str, Any]) -> Group:
    ids, text = line["prompt"]
    id, task, answer = line["problem"]
    return Group(
        Prompt(Problem(id, task, "", answer), tuple(ids), text),
        tuple(Completion(tuple(ids), tuple(logprobs), *rest) for ids, logprobs, *rest in line["completions"]),
        tuple(
            Scored(reward, Verdict(*verdict), {name: Verdict(*part) for name, part in parts.items()})
            for reward, verdict, parts in line["scores"]
        ),
    )
