"""`grpo-math revise`: a model criticises a completion by a principle and writes it anew, once or several times.

Constitutional AI, arXiv:2212.08073, section 3.1; CLAIR, arXiv:2408.06266, is the template `clair`. Left out: whether a
revision is right, which a verifier says (`grpo-math evaluate --samples`), and the files (revise_files.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_math.filtering.candidate import Candidate, by_problem, normalised
from grpo_math.judging.constitution import Principle
from grpo_math.judging.judge import Judge, hold_all
from grpo_math.judging.ledger import BudgetSpent
from grpo_math.judging.question import Message, Question, Talk, Unreadable, ask, said
from grpo_math.judging.samples import Samples, texts_of
from grpo_math.judging.template import Template

BLOCK = re.compile(r"<revision>(.*?)</revision>", re.DOTALL)


@dataclass(frozen=True)
class Revising:
    """rounds: of critique and revision. per_problem: completions of a problem, drawn at random; None for all. partial:
    write what there is when the budget is spent."""

    rounds: int = 1
    per_problem: int | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    partial: bool = False


@dataclass(frozen=True)
class Round:
    principle: Principle
    critique: str
    revision: str


@dataclass(frozen=True)
class Revised:
    """rounds: those that came about; why: what ended them early, or ""."""

    rounds: tuple[Round, ...]
    why: str = ""

    @property
    def text(self) -> str | None:
        """The last revision; None where a round failed: half of what was wanted is not what was asked for."""
        return None if self.why else self.rounds[-1].revision


@dataclass(frozen=True)
class Revisions:
    """found: by place in chosen."""

    chosen: list[Candidate]
    found: dict[int, Revised]
    spent: BudgetSpent | None


def revise(
    template: Template, values: Mapping[str, str], completion: str, principles: Sequence[Principle], settings: Revising
) -> Talk[Revised]:
    """One round for each principle, each on the revision before. A round is a conversation of its own, as the paper has
    it: the critique is answered from, not those of earlier rounds."""
    rounds: list[Round] = []
    for principle in principles:
        now = {**values, "completion": completion}
        try:
            system = template.fill("system", {**now, "principle": principle.critique})
            talk: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
            wanted = template.fill("critique", {**now, "principle": principle.critique})
            talk = (*talk, {"role": "user", "content": wanted})
            critique = said((yield from ask(_question(talk, settings))).text)
            if not critique:
                raise Unreadable("the critique is empty")
            wanted = template.fill("revise", {**now, "principle": principle.revision})
            talk = (*talk, {"role": "assistant", "content": critique}, {"role": "user", "content": wanted})
            reply = yield from ask(_question(talk, settings))
            if reply.cut:
                raise Unreadable(f"the revision was cut at {settings.max_tokens} tokens; raise --max-tokens")
            completion = extracted(said(reply.text), template.extract)
        except Unreadable as error:
            return Revised(tuple(rounds), str(error))
        rounds.append(Round(principle, critique, completion))
    return Revised(tuple(rounds))


def extracted(text: str, how: str) -> str:
    """The revision in an answer: the whole, or what the last <revision> tags hold. Raises Unreadable."""
    if how == "whole":
        found = text
    else:
        blocks = BLOCK.findall(text)
        if not blocks:
            raise Unreadable(f"the answer has no <revision>...</revision>: {text[:80]!r}")
        found = blocks[-1].strip()
    if not found:
        raise Unreadable("the revision is empty")
    return found


def drawn(principles: Sequence[Principle], candidate: Candidate, settings: Revising) -> list[Principle]:
    """A principle for each round, with replacement; by the seed, the problem and the completion alone."""
    rng = random.Random("\0".join((str(settings.seed), *candidate.asked, candidate.completion)))
    return [rng.choice(principles) for _ in range(settings.rounds)]


def chosen(candidates: Sequence[Candidate], settings: Revising) -> list[Candidate]:
    """Of each problem, different texts."""
    kept: list[Candidate] = []
    for asked, siblings in by_problem(candidates).items():
        ordered = texts_of(siblings, normalised)
        if settings.per_problem is not None and len(ordered) > settings.per_problem:
            rng = random.Random("\0".join((str(settings.seed), *asked)))
            ordered = rng.sample(sorted(ordered, key=lambda c: c.completion), settings.per_problem)
        kept += ordered
    return kept


def revise_all(
    judge: Judge, samples: Samples, principles: Sequence[Principle], template: Template, settings: Revising
) -> Revisions:
    candidates = chosen(samples.candidates, settings)
    talks = (
        revise(template, samples.subject(c).values, c.completion, drawn(principles, c, settings), settings)
        for c in candidates
    )
    outcomes = hold_all(judge, talks, len(candidates))
    return Revisions(candidates, outcomes.by_place, outcomes.spent)


def _question(messages: tuple[Message, ...], settings: Revising) -> Question:
    return Question(messages, settings.max_tokens, settings.temperature, settings.seed)
