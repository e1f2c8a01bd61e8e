"""How good is a completion, as a language model says? A reward from 0 to 1, or from -1 to 1.

The score is the expected one over the probabilities of the score's tokens (d-RLAIF, arXiv:2309.00267), or is read from
the judge's text. It is behind a URL, or runs on this machine in a process that all workers share. Replies are
remembered on disk, where all workers and a resumed run find them. Left out: preferences between two completions
(`grpo-math label`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.evaluation.openai_http import Api
from grpo_math.judging.desk import Desk
from grpo_math.judging.host import Spec
from grpo_math.judging.hosted import LOAD_S, Hosted
from grpo_math.judging.ledger import Caps
from grpo_math.judging.options import Options, options_of
from grpo_math.judging.question import Talk
from grpo_math.judging.server import Address, Server, outcome
from grpo_math.judging.template import Template, load_template, rubric_of
from grpo_math.judging.verdict import Reading, Score, score
from grpo_math.types import Problem, Reason, UserError, Verdict

JUDGES = 4  # that a worker keeps open
QUESTIONS = 3  # of one verdict at most: reasons, score, and how a "1" goes on
PAUSE_S = 60.0  # between two tries, at most
SIDE_BY_SIDE = 32  # workers that may share a rate


def verify(problem: Problem, completion: str, **options: Any) -> Verdict:
    """Ask the judge; see judging/options.py for the options. A score s on a scale from l to h gives (s - l) / (h - l),
    or with reward=signed twice that less 1. It is `correct` from the share correct_from of the scale, else `wrong`.

    An empty completion is `no_answer`, with the lowest reward, and is not shown to the judge. Where the judge does not
    answer, or not so that it can be read, the verdict is an `error` without a reward. Raises UserError for what no
    other completion would mend: a wrong key, a budget that is spent."""
    chosen = options_of(options)
    if not completion.strip():
        return Verdict(chosen.scaled(0.0), "no_answer", "the completion is empty")
    judge = _judge(json.dumps(options, sort_keys=True))
    found = judge.ask(score(judge.template, _values(problem, completion), judge.reading))
    if found.value is None:
        return Verdict(None, "error", f"the judge {judge.name}: {found.why}")
    low, high = judge.template.scale
    share = (found.value - low) / (high - low)
    reason: Reason = "correct" if share >= chosen.correct_from else "wrong"
    return Verdict(chosen.scaled(share), reason, f"{judge.name} gives {found.value:.3f} from {low} to {high}")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UserError for options and templates that are not right. Does not look for the server, or load a model."""
    chosen = options_of(options)
    _template(chosen)
    if chosen.engine != "openai":
        from grpo_math.evaluation.ask import model_path

        model_path(str(chosen.model), "verifier judge: model")
        return
    try:
        Api(chosen.url, None, chosen.key_env, chosen.request_s, chosen.retries)
    except UserError as error:
        raise UserError(f"verifier judge: {str(error).replace('--base-url', 'url')}") from error


def patience(problem: Problem, **options: Any) -> float:
    """Seconds within which a verdict is there, or something is broken: every try of every question, the pauses between
    them, and the turn to wait for where the rate is limited. scoring.timeout_s is not for what others compute."""
    chosen = options_of(options)
    if chosen.engine != "openai":
        return LOAD_S + QUESTIONS * chosen.request_s
    turn = SIDE_BY_SIDE * 60.0 / chosen.requests_per_minute if chosen.requests_per_minute else 0.0
    return QUESTIONS * ((chosen.retries + 1) * chosen.request_s + chosen.retries * PAUSE_S + turn)


def explain(problem: Problem, completion: str, **options: Any) -> list[tuple[str, str]]:
    """What the judge is shown, for a person to see."""
    template, values = _template(options_of(options)), _values(problem, completion)
    low, high = template.scale
    values |= {"rubric": template.rubric, "lowest": str(low), "highest": str(high)}
    lines = template.fill("prompt", values).split("\n")
    return [("asked" if i == 0 else "", line) for i, line in enumerate(lines)]


def from_row(row: Mapping[str, Any]) -> tuple[Problem, str]:
    """The problem and the text to judge of a line with `question`, `completion` and perhaps `answer`, the right one.
    Raises UserError."""
    texts = {key: row.get(key, "" if key == "answer" else None) for key in ("question", "completion", "answer")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"{key}={value!r}: give a string")
    return Problem(str(row.get("id")), "pairs", texts["question"], texts["answer"]), texts["completion"]


def _values(problem: Problem, completion: str) -> dict[str, str]:
    return {"question": problem.question, "gold": problem.answer, "completion": completion}


def _template(options: Options) -> Template:
    return load_template(options.template, "score", rubric_of(options.rubric))


@dataclass(frozen=True)
class Judge:
    name: str
    ask: Callable[[Talk[Score]], Score]
    template: Template
    reading: Reading


@functools.lru_cache(JUDGES)
def _judge(options: str) -> Judge:
    """Once for all completions: a worker opens the cache and looks for the judge only at the first."""
    o = options_of(json.loads(options))
    template = _template(o)
    reading = Reading(o.read, o.reason, o.max_tokens, o.temperature, o.seed, o.min_mass)
    names = ("max_requests", "max_total_tokens")
    desk = Desk(Path(o.cache).expanduser(), Caps(o.requests_per_minute, o.max_requests, o.max_total_tokens), names)
    if o.engine != "openai":
        spec = Spec(o.engine, str(o.model), o.dtype, o.device, o.max_rows, dict(o.engine_options))
        return Judge(spec.model, Hosted(spec, desk).outcome, template, reading)
    server = Server(Address(o.url, o.model, o.key_env, 1, o.request_s, o.retries, o.chat, dict(o.request_field)), desk)
    server.introduce()
    return Judge(str(server.model), functools.partial(outcome, server), template, reading)


# without a server only what needs none can be shown
EXAMPLES = [(Problem("example", "example", "Why is the sky blue?", ""), "  \n", 0.0)]
