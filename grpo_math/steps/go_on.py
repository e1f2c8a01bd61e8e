"""Go on from the beginnings of solutions with a model, and have each continuation judged: what values.py asks for.

The model reads the prompt of the sample, and behind it the solution so far, in tokens of its own. Every answer goes
into a journal first. Left out: the samplers (evaluation/), and which beginnings are asked (values.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_math.evaluation.journal import Journal
from grpo_math.evaluation.sampler import Asked, Sample, Sampler, until
from grpo_math.examples.raw import RawCompletion, RawExample
from grpo_math.examples.tokens import Encoder, encoder
from grpo_math.progress import bar
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Problem, Prompt, Sampling, UserError, Verdict


@dataclass(frozen=True)
class Beginning:
    """prefix: what the model goes on from; without token_ids where a server makes them. text: the solution so far.
    token_ids: of that text."""

    prefix: Prompt
    text: str
    token_ids: tuple[int, ...]


class Beginner:
    """Makes Beginnings, in the tokens of what samples."""

    def __init__(self, sampler: Any, engine: str) -> None:
        self.encoder: Encoder | None = None if engine == "openai" else encoder(*TOKENS_OF[engine](sampler))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        return None if self.encoder is None else self.encoder.tokenizer

    def begin(self, problem: Problem, asked: str, text: str) -> Beginning:
        """asked: the sample's prompt, as its sampler read it. Raises UserError."""
        if self.encoder is None:
            if asked.startswith("[{"):
                raise UserError(
                    f"problem {problem.id}: the sample's prompt is a conversation, which a server cannot be made to go "
                    "on within; take --engine hf or vllm, and samples that were made so"
                )
            return Beginning(Prompt(problem, (), asked + text), text, ())
        example = self.encoder.example(RawExample(problem.id, asked, (RawCompletion(text, "length"),)))
        ids = example.completion.token_ids
        return Beginning(Prompt(problem, (*example.prompt.token_ids, *ids), asked + text), text, ids)


# by --engine: the tokenizer, and the tokens that end a completion
TOKENS_OF: dict[str, Callable[[Any], tuple[PreTrainedTokenizerBase, frozenset[int]]]] = {
    "hf": lambda sampler: (sampler.policy.tokenizer, sampler.policy.eos_ids),
    "vllm": lambda sampler: (sampler.tokenizer, sampler.eos_ids),
}


class Continuer:
    """values.Continue, with a model and a verifier. A call whose answers the journal has costs nothing.

    sampling: all but n and seed. stop: strings that end a completion of the task. beginnings: of all prefixes that may
    be asked, by problem and text. too_long: prefixes that the context has no room for; they get no verdicts."""

    def __init__(
        self,
        sampler: Sampler,
        scorer: Scorer,
        journal: Journal,
        sampling: Sampling,
        stop: tuple[str, ...],
        beginnings: Mapping[tuple[str, str], Beginning],
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        self.sampler, self.scorer, self.journal, self.stop = sampler, scorer, journal, stop
        self.beginnings, self.tokenizer = beginnings, tokenizer
        self.sampling = sampling
        self.too_long = self.rounds = 0

    def __call__(self, prefixes: list[Prompt], n: int, seed: int) -> list[list[Verdict]]:
        self.rounds += 1
        name = f"round {self.rounds}"
        asked = [self._asked(name, i, prefix) for i, prefix in enumerate(prefixes)]
        room = (self.sampler.context or 1 << 62) - self.sampling.max_tokens
        fitting = [a for a in asked if len(a.token_ids or ()) <= room]
        self.too_long += len(asked) - len(fitting)
        known = self.journal.verdicts.setdefault(name, {})
        missing = [a for a in fitting if a.number not in known]
        if missing:
            show = bar(len(fitting))
            show(len(known))
            with closing(self.sampler.sample(missing, replace(self.sampling, n=n, seed=seed))) as blocks:
                for block in blocks:
                    self.journal.judged(name, self._judged(block, prefixes))
                    show(len(known))
        return [known.get(i, []) for i in range(len(prefixes))]

    def _asked(self, name: str, number: int, prefix: Prompt) -> Asked:
        # samplers draw by the problem's id: each prefix has random numbers of its own, whatever else is asked
        digest = hashlib.sha256(prefix.text.encode()).hexdigest()[:12]
        problem = replace(prefix.problem, id=f"{prefix.problem.id} ({digest})")
        return Asked(name, number, problem, prefix.text, prefix.token_ids or None, stop=self.stop)

    def _judged(
        self, block: Sequence[tuple[int, list[Sample]]], prefixes: Sequence[Prompt]
    ) -> list[tuple[int, list[Verdict]]]:
        items = [
            (prefixes[i].problem, Completion((), (), self._whole(prefixes[i], s), s.finish_reason, 0))
            for i, samples in block
            for s in samples
        ]
        scored = iter(self.scorer.judge(items))
        return [(i, [_verdict(s, next(scored).verdict) for s in samples]) for i, samples in block]

    def _whole(self, prefix: Prompt, sample: Sample) -> str:
        """The solution so far and what was sampled behind it, decoded in one piece: apart, some tokenizers drop the
        space between the two."""
        begun = self.beginnings[prefix.problem.id, prefix.text]
        if self.tokenizer is None or sample.token_ids is None:
            return begun.text + sample.text
        head = str(self.tokenizer.decode(list(begun.token_ids), skip_special_tokens=True))
        both = str(self.tokenizer.decode([*begun.token_ids, *sample.token_ids], skip_special_tokens=True))
        tail = both[len(head) :]
        before = until(tail, self.stop)
        return begun.text + (tail if before is None else before)


def _verdict(sample: Sample, verdict: Verdict) -> Verdict:
    """What could not be sampled is no wrong answer."""
    return verdict if sample.failed is None else Verdict(None, "error", f"not sampled: {sample.failed}")
