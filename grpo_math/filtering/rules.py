"""The rules that drop completions: pure functions, their table in its fixed order, and the counts of what each drops.

Left out: which of one problem's completions are kept where there are too many (choose.py), and pairs (pairs.py).
"""

from __future__ import annotations

import math
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from grpo_math.filtering.candidate import NEAR, Candidate, by_problem, grouped, in_order, normalised
from grpo_math.filtering.choose import CHOICES
from grpo_math.filtering.settings import Settings
from grpo_math.types import UserError

FORMAT_S = 2.0  # for one completion; an expression that backtracks without end must not hang the command

Rows = Sequence[Candidate]


def decided(candidates: Rows) -> list[Candidate]:
    """Those with a reward: a verdict that nobody could reach (`unknown`, a verifier's time-out or error) is no zero."""
    return [c for c in candidates if c.reward is not None]


def nonempty(candidates: Rows) -> list[Candidate]:
    """Those with a visible character: there is nothing to learn from the others but the end of the sequence."""
    return [c for c in candidates if c.completion.strip()]


def within_pass_rate(candidates: Rows, low: float, high: float) -> list[Candidate]:
    """Those whose problem has a share of correct completions in [low, high].

    Problems that are always or never solved carry no contrast, and those seldom solved are often solved by luck; the
    same windows are used for RL data (Kimi k1.5, arXiv:2501.12599; dynamic sampling of DAPO, arXiv:2503.14476).
    """
    kept = set()
    for asked, siblings in by_problem(candidates).items():
        share = sum(c.reason == "correct" for c in siblings) / len(siblings)
        if low - NEAR <= share <= high + NEAR:
            kept.add(asked)
    return [c for c in candidates if c.asked in kept]


def with_reason(candidates: Rows, reasons: Collection[str]) -> list[Candidate]:
    """Those with one of these verdicts; `correct` is the filter of STaR, arXiv:2203.14465, and of RFT,
    arXiv:2308.01825."""
    return [c for c in candidates if c.reason in reasons]


def reward_at_least(candidates: Rows, threshold: float) -> list[Candidate]:
    """Those with r >= threshold: F(x, y; tau) of ReST, arXiv:2308.08998, section 3, where it is r > tau; with >= 1 is
    a threshold that keeps right answers."""
    return [c for c in candidates if c.score >= threshold - NEAR]


def quantile_of(candidates: Rows, q: float) -> float:
    """The smallest reward that is at least as large as a share q of all rewards; a reward that occurs, never one
    between two. ReST, arXiv:2308.08998, raises its threshold so from one Improve step to the next."""
    rewards = sorted(c.score for c in candidates)
    return rewards[max(math.ceil(q * len(rewards) - NEAR) - 1, 0)]


def outside(candidates: Rows, low: float, high: float) -> list[Candidate]:
    """Those with r <= low or r >= high: what lies between is neither good nor bad."""
    return [c for c in candidates if c.score <= low + NEAR or c.score >= high - NEAR]


def finished(candidates: Rows) -> list[Candidate]:
    """Those that ended by themselves. Trainers put an end of sequence behind each completion, which would teach a
    model to stop in the middle where one was cut."""
    return [c for c in candidates if not c.truncated]


def tokens_between(candidates: Rows, low: float, high: float) -> list[Candidate]:
    """Those of low to high tokens. Raises UserError where a line does not tell."""
    for c in candidates:
        # `evaluate --samples` writes 0 for completions of files that do not say
        if c.tokens is None or (c.tokens == 0 and c.completion):
            raise UserError(
                f"{c.source} does not say how many tokens it has, which --min-tokens and --max-tokens need; add the "
                "field 'tokens', or leave them out"
            )
    return [c for c in candidates if c.tokens is not None and low <= c.tokens <= high]


def matching(candidates: Rows, expression: str, seconds: float = FORMAT_S) -> list[Candidate]:
    """Those in which the user's own regular expression is found, as `re.search` does: ^ and $ are the text's ends, and
    . is no line break unless it begins with (?s). Raises UserError where one completion takes over `seconds`."""
    pattern = re.compile(expression)
    kept = []
    for c in candidates:
        try:
            with _bounded(seconds):
                found = pattern.search(c.completion)
        except _TooLong:
            raise UserError(
                f"--format {expression}: over {seconds:g} s on {c.source}; such expressions nest repetitions, as in "
                "(a+)+, and try every way to split the text: write one that does not"
            ) from None
        if found:
            kept.append(c)
    return kept


def distinct_texts(candidates: Rows) -> list[Candidate]:
    """One of each problem's completions that differ in white space alone: that of the highest reward, and of those the
    shortest."""
    return _one_of_each(candidates, lambda c: (*c.asked, normalised(c.completion)))


def distinct_answers(candidates: Rows) -> list[Candidate]:
    """One for each final answer to a problem, no answer being one too: that of the highest reward, and of those the
    shortest."""
    return _one_of_each(candidates, lambda c: (*c.asked, None if c.answer is None else normalised(c.answer)))


def at_most(candidates: Rows, k: int, choose: str, seed: int, classed_at: float | None = None) -> list[Candidate]:
    """k of each problem, chosen by `choose` of CHOICES; with `classed_at`, k of those with at least this reward and k
    of the others."""
    groups = grouped(candidates, lambda c: (*c.asked, classed_at is not None and c.score >= classed_at - NEAR))
    chosen = {c for siblings in groups.values() for c in CHOICES[choose](siblings, k, seed)}
    return [c for c in candidates if c in chosen]


def _one_of_each(candidates: Rows, key: Callable[[Candidate], tuple[str | None, ...]]) -> list[Candidate]:
    chosen = {
        min(in_order(same), key=lambda c: (-c.score, len(c.completion))) for same in grouped(candidates, key).values()
    }
    return [c for c in candidates if c in chosen]


# ---- the table


@dataclass(frozen=True)
class Rule:
    """name: as the counts show it."""

    name: str
    keep: Callable[[Rows], list[Candidate]]


@dataclass(frozen=True)
class Count:
    """What a rule dropped, and what was left: completions, and problems (as they were asked)."""

    rule: str
    dropped: int
    left: int
    problems: int


UNDECIDED = Rule("undecided verdict", decided)


def good_reward(s: Settings, pool: Rows) -> float | None:
    """The reward from which a completion is good: --min-reward or the --quantile of `pool`, whichever is higher; None
    where neither is asked for. pool: all decided completions, so that no other rule moves it."""
    thresholds = [s.min_reward] if s.min_reward is not None else []
    if s.quantile is not None:
        thresholds.append(quantile_of(pool, s.quantile))
    return max(thresholds, default=None)


def rules_of(s: Settings, pool: Rows) -> list[Rule]:
    """The rules that are asked for, in their order. The pass rate is first, and so of all decided completions."""
    good = good_reward(s, pool)
    floor = -math.inf if good is None else good
    bad = math.inf if s.max_reward is None else s.max_reward
    if s.to == "kto" and bad > floor - NEAR:
        raise UserError(
            f"--max-reward {bad:g}, up to which a label is false, is not below {floor:g}, from which it is true; lower "
            "it, or raise --min-reward or --quantile"
        )
    low, high = s.pass_rate or (0.0, 1.0)
    least, most = s.min_tokens or 0, math.inf if s.max_tokens is None else s.max_tokens
    by_quantile = f" (quantile {s.quantile:g})" if s.quantile is not None else ""
    table: tuple[tuple[bool, str, Callable[[Rows], list[Candidate]]], ...] = (
        (s.pass_rate is not None, f"pass rate {low:g}:{high:g}", lambda c: within_pass_rate(c, low, high)),
        (True, "empty", nonempty),
        (s.reason is not None, f"reason {','.join(s.reason or ())}", lambda c: with_reason(c, s.reason or ())),
        (s.to == "sft" and good is not None, f"reward >= {floor:g}{by_quantile}", lambda c: reward_at_least(c, floor)),
        (s.to == "kto", f"{bad:g} < reward < {floor:g}{by_quantile}", lambda c: outside(c, bad, floor)),
        (bool(s.finished), "truncated", finished),
        (s.min_tokens is not None or s.max_tokens is not None, f"tokens {least}..{most}",
         lambda c: tokens_between(c, least, most)),
        (s.format is not None, f"format {s.format}", lambda c: matching(c, s.format or "")),
        (s.dedup != "none", "same text", distinct_texts),
        (s.dedup == "answer", "same answer", distinct_answers),
        (s.per_problem is not None, f"{s.choose} {s.per_problem} per problem",
         lambda c: at_most(c, s.per_problem or 0, s.choose or "", s.seed, floor if s.to == "kto" else None)),
    )  # fmt: skip
    return [Rule(name, keep) for asked, name, keep in table if asked]


def apply(rules: Sequence[Rule], candidates: Rows) -> tuple[list[Candidate], list[Count]]:
    """What all rules keep, one after the other, and the counts of each, up to one that leaves nothing."""
    kept, counts = list(candidates), []
    for rule in rules:
        before = len(kept)
        kept = rule.keep(kept)
        counts.append(Count(rule.name, before - len(kept), len(kept), len({c.asked for c in kept})))
        if not kept:
            break
    return kept, counts


# ---- a bound on the user's expression


class _TooLong(Exception):
    pass


def _over(number: int, frame: FrameType | None) -> None:
    raise _TooLong


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """_TooLong after so many seconds. `re` looks for signals as it goes; they only reach the main thread, and in any
    other there is no bound."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
