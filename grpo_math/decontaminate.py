"""Training problems that share long n-grams with a benchmark: `grpo-math decontaminate TRAIN --against TASKS`.

The test of GPT-3 (Brown et al. 2020, arXiv:2005.14165, section 4 and appendix C): texts are runs of words without
punctuation, and two of them collide where they share `n` words in a row, 13 for long texts and no fewer than 8. An
n-gram in more than ten different training documents is a common phrase and no evidence. Only the questions are
compared. Left out: reworded, translated or renumbered copies, which no n-gram finds.
"""

# W words of a text, n of an n-gram; a benchmark problem is a target, which a training problem may contain

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grpo_math import config
from grpo_math.exclude import counted
from grpo_math.log import write_whole
from grpo_math.problems import load_problems
from grpo_math.types import Problem, UserError

N = 13
MAX_COMMON = 10
SHORTEST = 8  # GPT-3's least n: fewer words than this are found inside other problems by chance
SHOWN = 5

# a LaTeX command, a number, a word; Chinese and Japanese have no spaces, so that each character is a word
WORD = re.compile(r"\\[a-z]+|\d+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
SIGN = re.compile(WORD.pattern + r"|[-+*/=<>!^]")
# commands that change how a formula looks and not what it says
LAYOUT = frozenset(
    {
        *(r"\left", r"\right", r"\big", r"\bigg", r"\displaystyle", r"\textstyle", r"\limits", r"\quad", r"\qquad"),
        *(r"\text", r"\textbf", r"\textit", r"\mathrm", r"\mathbf", r"\operatorname", r"\begin", r"\end"),
    }
)
SAME = {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne"}
MINUS = str.maketrans("\u2212\u2013\u2014", "---")

Gram = int  # the hash of n words: 64 bits, which two different ones of a benchmark do not share in practice


def words(text: str, pattern: re.Pattern[str] = WORD) -> list[str]:
    """Lower-case words, numbers and LaTeX commands of the Unicode normal form NFKC; all else is dropped.

    "A $\\dfrac{1}{2}$-mile" gives [a, \\frac, 1, 2, mile]. With SIGN the signs of arithmetic stay too."""
    found = pattern.findall(unicodedata.normalize("NFKC", text).translate(MINUS).lower())
    return [SAME.get(word, word) for word in found if word not in LAYOUT]


def grams(text: Sequence[str], n: int) -> list[Gram]:
    """The W - n + 1 n-grams of a text of W words, in order; none where W < n."""
    return [hash(tuple(text[i : i + n])) for i in range(len(text) - n + 1)]


@dataclass(frozen=True)
class Target:
    """A problem of a benchmark. benchmark: which, for people."""

    benchmark: str
    problem: Problem

    @cached_property
    def words(self) -> list[str]:
        return words(self.problem.question)

    @cached_property
    def signs(self) -> list[str]:
        return words(self.problem.question, SIGN)


@dataclass(frozen=True)
class Hit:
    """A training problem that shares n-grams with a target.

    shared: how many different n-grams of the target the training problem has, share: of all that the target has;
    longest: the longest run of words in both."""

    problem: str
    benchmark: str
    against: str
    shared: int
    share: float
    longest: str

    def record(self) -> dict[str, object]:
        return {
            "problem": self.problem,
            "benchmark": self.benchmark,
            "against": self.against,
            "shared": self.shared,
            "share": round(self.share, 4),
            "longest": self.longest,
        }


@dataclass(frozen=True)
class Findings:
    """hits: in the order of the training problems. common: how many shared n-grams are in too many problems to be
    evidence; most_common: in how many different ones the most frequent of them is, and its words."""

    hits: list[Hit]
    common: int
    most_common: tuple[int, str] | None


class Index:
    """The n-grams of a benchmark: all that is indexed, however many training problems there are.

    A target of fewer than n words is one n-gram of its own length, compared with its signs too: there is little else
    to tell 347+85 from 347-85. Where it has fewer than SHORTEST words, the whole training problem must be the same."""

    def __init__(self, targets: Sequence[Target], n: int = N) -> None:
        self.n, self.least = n, min(SHORTEST, n)
        self.targets = [target for target in targets if target.words]
        self.owners: dict[Gram, list[int]] = defaultdict(list)  # n-gram -> its targets
        self.sizes: list[int] = []  # target -> how many different n-grams it has
        for number, target in enumerate(self.targets):
            own = set(grams(target.words, min(n, len(target.words))))
            self.sizes.append(len(own))
            for gram in own:
                self.owners[gram].append(number)
        self.lengths = {n, *(w for target in self.targets if self.least <= (w := len(target.words)) < n)}

    def matches(self, text: Sequence[str]) -> set[Gram]:
        """The n-grams of the benchmark that a text has."""
        lengths = self.lengths if len(text) >= self.least else {len(text)}
        return {gram for n in lengths for gram in grams(text, n) if gram in self.owners}

    def contains(self, question: str, number: int) -> bool:
        """Whether the short target is in the question, sign for sign."""
        target, signs = self.targets[number], words(question, SIGN)
        if len(target.words) < self.least:
            return signs == target.signs
        length = len(target.signs)
        return any(signs[i : i + length] == target.signs for i in range(len(signs) - length + 1))


def find_hits(
    train: Collection[Problem], index: Index, min_share: float = 0.0, max_common: int = MAX_COMMON
) -> Findings:
    """Which of the training problems, read twice, share evidence with the benchmark.

    Evidence is an n-gram that at most max_common different texts have, those of both sides together. A hit shares one,
    and at least min_share of the target's n-grams; or it has all of them, common or not, since a leaked problem may be
    there in many forms. Equal texts count as one, so that no number of copies makes a problem a common phrase."""
    counts: Counter[Gram] = Counter()  # of the n-grams that both sides have
    seen: set[int] = set()
    matching = set()
    for number, problem in enumerate(train):
        text = words(problem.question)
        if found := index.matches(text):
            matching.add(number)
            if (whole := hash(tuple(text))) not in seen:
                seen.add(whole)
                counts.update(found)
    for target in index.targets:
        if (whole := hash(tuple(target.words))) not in seen:
            seen.add(whole)
            counts.update(gram for gram in index.matches(target.words) if gram in counts)
    common = {gram: count for gram, count in counts.items() if count > max_common}
    candidates = (problem for number, problem in enumerate(train) if number in matching)
    hits = [hit for problem in candidates for hit in _hits_of(problem, index, common, min_share)]
    # hashes of words differ from one process to the next, so that their order says nothing
    top = max(((count, _text_of(gram, index)) for gram, count in common.items()), default=None)
    return Findings(hits, len(common), top)


def _hits_of(problem: Problem, index: Index, common: Mapping[Gram, int], min_share: float) -> Iterator[Hit]:
    text = words(problem.question)
    shared: Counter[int] = Counter()
    evident: set[int] = set()
    for gram in index.matches(text):
        shared.update(index.owners[gram])
        if gram not in common:
            evident.update(index.owners[gram])
    for number, count in sorted(shared.items()):
        target, share = index.targets[number], count / index.sizes[number]
        if not (share == 1.0 or (number in evident and share >= min_share)):
            continue
        if len(target.words) >= index.n or index.contains(problem.question, number):
            longest = " ".join(longest_run(text, target.words))
            yield Hit(problem.id, target.benchmark, target.problem.id, count, share, longest)


def longest_run(a: Sequence[str], b: Sequence[str]) -> Sequence[str]:
    """The longest run of words that both texts have, the first of several. Takes len(a) x len(b) steps."""
    best, end, before = 0, 0, [0] * (len(b) + 1)
    for i, word in enumerate(a, 1):
        here = [0] * (len(b) + 1)
        for j, other in enumerate(b, 1):
            if word == other:
                here[j] = before[j - 1] + 1
                if here[j] > best:
                    best, end = here[j], i
        before = here
    return a[end - best : end]


def decontaminate_command(
    train: config.Task, against: Mapping[str, config.Task], n: int, min_share: float, max_common: int, out: Path
) -> str:
    """Write the hits to `out` as JSON lines, which task.exclude reads, and return the report. against: benchmarks by
    the name that the report gives them. Raises UserError."""
    if n < 2:
        raise UserError(f"-n {n}: single words are shared by all problems; give at least 2, such as {SHORTEST} or {N}")
    problems = _finite(train, "give --limit")
    benchmarks = {label: _finite(task, "name a split that ends") for label, task in against.items()}
    index = Index([Target(label, problem) for label, items in benchmarks.items() for problem in items], n)
    findings = find_hits(problems, index, min_share, max_common)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, "".join(json.dumps(hit.record()) + "\n" for hit in findings.hits))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}); give another file") from error
    head = f"{len(problems):,} problems of {train.name}, split {train.split}, against {len(against)} benchmark"
    head += f"{'s' * (len(against) != 1)}: at least one {n}-gram of words" + (
        f" and {min_share:.0%} of the benchmark problem's" if min_share else ""
    )
    return "\n".join(
        [head, "", *_table(findings.hits, {k: len(v) for k, v in benchmarks.items()}), *_notes(findings, out)]
    )


def _finite(task: config.Task, remedy: str) -> list[Problem]:
    problems = load_problems(task).problems
    if problems is None:
        raise UserError(f"task {task.name}, split {task.split}, has no end; {remedy} to compare its first problems")
    return problems


def _table(hits: Sequence[Hit], sizes: Mapping[str, int]) -> list[str]:
    """A line per benchmark: its problems, how many of them are touched, how many by half or more (a phrase touches a
    little of a problem, a copy nearly all), and by how many training problems."""
    width = max(9, *map(len, sizes))
    lines = [f"{'benchmark':<{width}}  {'problems':>8}  {'touched':>8}  {'half of it':>10}  {'training problems':>17}"]
    for name, size in sizes.items():
        own = [hit for hit in hits if hit.benchmark == name]
        touched, half = len({hit.against for hit in own}), len({hit.against for hit in own if hit.share >= 0.5})
        lines.append(
            f"{name:<{width}}  {size:>8,}  {touched:>8,}  {half:>10,}  {len({hit.problem for hit in own}):>17,}"
        )
    return lines


def _notes(findings: Findings, out: Path) -> list[str]:
    lines = []
    if findings.most_common:
        most, text = findings.most_common
        lines += [
            "",
            f"shared n-grams in too many problems to be evidence: {findings.common:,}, one of them in {most:,}:",
            f"  {text}",
        ]
    if not findings.hits:
        return [*lines, "", f"nothing is shared; {out} is empty, and task.exclude={out} excludes nothing"]
    ordered = sorted(findings.hits, key=lambda hit: -hit.share)
    lines += ["", "what is shared most:" if len(ordered) > SHOWN else "what is shared:"]
    for hit in ordered[:SHOWN]:
        lines += [f"  {hit.problem} has {hit.share:.0%} of {hit.benchmark} {hit.against}", f"    {_short(hit.longest)}"]
    training = counted(len({hit.problem for hit in findings.hits}), "training problem")
    written = f"{counted(len(ordered), 'pair')} of {training} and what it shares: {out}"
    return [*lines, "", written, f"to leave these problems out of training: task.exclude={out}"]


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _text_of(gram: Gram, index: Index) -> str:
    target = index.targets[index.owners[gram][0]]
    n = min(index.n, len(target.words))
    return " ".join(target.words[(start := grams(target.words, n).index(gram)) : start + n])
