"""Load a task's problems, refuse the unusable ones, and stream them to training in a seeded order that can resume.

Left out: how a task reads its data (tasks/, rows.py), how a file names problems to exclude (exclude.py) and how a
problem becomes a prompt (prompts.py).
"""

from __future__ import annotations

import inspect
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np

from grpo_math.config import Task
from grpo_math.exclude import Exclusion, read_exclusion
from grpo_math.find import find_task, nearest, user_code
from grpo_math.types import Problem, UserError

Check = Callable[[Problem], str | None]

_END = object()
PEEK = 10_000  # an iterator with at least this many problems is taken to be endless
MAX_REFUSED_RUN = 1_000  # so many unusable problems of an endless task in a row, and nothing else will come


def refuse_another(problem: Problem, where: str, task: str, prompt: str | None, gold: str | None) -> None:
    """Raises UserError for a sample that cannot be of this problem, whose id it has: other seeds, splits and options
    have the same ids. where: the sample. A prompt may have been worded anew since, or an answer corrected, so that only
    one that differs in both is refused; what the sample does not say counts for it."""
    question = problem.question.strip()
    if not prompt or not gold or gold == problem.answer:
        return
    as_json = [json.dumps(question, ensure_ascii=ascii)[1:-1] for ascii in (True, False)]  # a chat may be there so
    if not any(text in prompt for text in (question, *as_json)):
        raise UserError(
            f"{where}: it was asked {_short(prompt)} with the answer {_short(gold)}, and problem {problem.id!r} of "
            f"--task {task} asks {_short(question)} with the answer {_short(problem.answer)}; give --task, --split, "
            "--path and --option as they were when the samples were made"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:38] + " ... " + text[-37:])


@dataclass
class ProblemSource:
    """A task's problems: a list, or for an endless task None and `start`, which begins its iterator anew.

    refused: the problems dropped for an answer that the verifier cannot use, each with the verifier's complaint. That
    of an endless task grows as it is read. exclusion: what task.exclude drops, which a list no longer has.
    """

    name: str
    module: ModuleType
    problems: list[Problem] | None
    start: Callable[[], Iterator[Problem]]
    check: Check | None = None
    refused: list[tuple[Problem, str]] = field(default_factory=list)
    exclusion: Exclusion = field(default_factory=Exclusion)

    def usable(self, problem: Problem) -> bool:
        if problem.id in self.exclusion.ids:
            return False
        with user_code(f"the verifier's check of problem {problem.id}"):
            complaint = self.check(problem) if self.check else None
        if complaint is not None:
            self.refused.append((problem, complaint))
        return complaint is None

    def require(self, n: int) -> None:
        """Refuse a step of more problems than there are: it would have to repeat some."""
        if self.problems is not None and n > len(self.problems):
            raise UserError(
                f"prompts_per_step={n} is more than the {len(self.problems)} problems of task {self.name}; set "
                f"prompts_per_step={len(self.problems)} or less, or give more problems"
            )


def load_problems(task: Task, check: Check | None = None) -> ProblemSource:
    """The problems that `task` names. `check` says what is wrong with a problem's answer, None where it is usable.

    task.limit counts problems as the task yields them, before those of task.exclude and unusable ones are dropped: what
    else is kept does not move. Prints how many task.exclude drops. Raises UserError: no such task, options that its
    load does not take, items that are not Problems, ids that repeat, an exclusion of none or of all, nothing left.
    """
    module = find_task(task.name)
    exclusion = read_exclusion(task.exclude or ())
    arguments = load_arguments(task, module.load)
    with user_code(f"task {task.name}"):
        loaded = module.load(task.split, **arguments)
    peek = task.limit is None and not isinstance(loaded, Sized)
    problems = list(islice(_problems(task.name, loaded), PEEK if peek else task.limit))
    if not problems:
        raise UserError(f"task {task.name}, split {task.split!r}, has no problems; check task.path and task.split")
    _refuse_repeats(task.name, problems)

    def start() -> Iterator[Problem]:
        return _problems(task.name, module.load(task.split, **arguments))

    endless = peek and len(problems) == PEEK
    if exclusion.files:
        # what lies beyond the limit, or further on in an endless task, may be named too
        whole = not endless and (task.limit is None or len(problems) < task.limit)
        print(exclusion.report(f"task {task.name}, split {task.split}", [p.id for p in problems], whole, endless))
    source = ProblemSource(task.name, module, None, start, check, exclusion=exclusion)
    if endless:
        return source
    problems = [problem for problem in problems if problem.id not in exclusion.ids]
    source.problems = [problem for problem in problems if source.usable(problem)]
    if not source.problems:
        problem, complaint = source.refused[0]
        raise UserError(
            f"the verifier can use none of the {len(problems)} answers of task {task.name}; the first, {problem.id} "
            f"with the answer {problem.answer[:60]!r}: {complaint}. Choose another verifier (rewards=NAME) or mend the "
            "data"
        )
    return source


def load_arguments(task: Task, load: Callable[..., object]) -> dict[str, Any]:
    """What to call `load` with besides the split. Every mismatch is named here, before Python's own TypeError."""
    parameters = dict(islice(inspect.signature(load).parameters.items(), 1, None))  # the first one is the split
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_path = takes_any or "path" in named
    path = named.pop("path", None)
    for option, value in task.options.items():
        if option in ("split", "path"):
            raise UserError(
                f"task.options.{option}={value!r}: write it as task.{option}={value}, not among the options"
            )
        if option not in named and not takes_any:
            near = nearest(option, named)
            raise UserError(
                f"task.options.{option}={value!r}: task {task.name} takes "
                + (f"the options {', '.join(named)}" if named else "no options")
                + (f"; did you mean {near}?" if near else "; remove it")
            )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in task.options:
            raise UserError(f"task {task.name} needs the option {name}; set task.options.{name}=VALUE")
    if task.path is None:
        if path is not None and path.default is path.empty:
            raise UserError(f"task {task.name} reads its problems from a file; set task.path=FILE")
        return dict(task.options)
    if not takes_path:
        raise UserError(f"task.path={task.path}: task {task.name} reads no file; remove task.path")
    return {"path": task.path, **task.options}


def _problems(name: str, loaded: object) -> Iterator[Problem]:
    if not isinstance(loaded, Iterable):
        raise UserError(f"task {name}: load returned {loaded!r}; return a list of Problems, or yield them")
    items = iter(loaded)
    for number in itertools.count(1):
        with user_code(f"task {name}"):
            item = next(items, _END)
        if item is _END:
            return
        if not isinstance(item, Problem):
            raise UserError(f"task {name}: item {number} is a {type(item).__name__}, not a Problem: {str(item)[:60]!r}")
        for key in ("id", "question", "answer"):
            if not isinstance(getattr(item, key), str):
                raise UserError(f"task {name}: item {number} has {key}={getattr(item, key)!r}; make it a string")
        yield item


def _refuse_repeats(name: str, problems: list[Problem]) -> None:
    first: dict[str, int] = {}
    for number, problem in enumerate(problems, 1):
        if problem.id in first:
            raise UserError(
                f"task {name}: the id {problem.id!r} is that of problem {first[problem.id]} and of problem {number}; "
                "give each problem an id of its own"
            )
        first[problem.id] = number


class ProblemStream:
    """Problems without end: finite ones shuffled anew each epoch, endless ones in their own order.

    An epoch has each problem once, and one `take` never has a problem twice, even where it spans two epochs. The order
    depends on the seed and on the sizes of the takes, nothing else.
    """

    def __init__(self, source: ProblemSource, seed: int) -> None:
        self.source = source
        self.seed = seed
        self.drawn = 0  # problems read off an endless task, unusable ones too
        self.epoch = 0
        self.position = 0  # in self.order
        self.late: list[int] = []  # problems put at the end of this epoch, for having been in the take that began it
        if source.problems is None:
            self.endless = source.start()
        else:
            self.order = self._shuffle()

    def take(self, n: int) -> list[Problem]:
        """The next n problems. Raises UserError where the task has fewer than n."""
        if self.source.problems is None:
            return [self._next() for _ in range(n)]
        self.source.require(n)
        indices = self.order[self.position : self.position + n]
        self.position += len(indices)
        if len(indices) < n:
            self.epoch, self.position, self.late = self.epoch + 1, n - len(indices), indices
            self.order = self._shuffle()
            indices = indices + self.order[: self.position]
        return [self.source.problems[i] for i in indices]

    def state(self) -> dict[str, Any]:
        """All that restore needs, as plain JSON."""
        if self.source.problems is None:
            return {"drawn": self.drawn, "seed": self.seed, "excluded": self.source.exclusion.fingerprint()}
        return {
            "epoch": self.epoch,
            "position": self.position,
            "late": list(self.late),
            "seed": self.seed,
            "problems": _fingerprint(self.source.problems),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken. Raises UserError where it was taken of other problems or another seed."""
        if self.source.problems is None:
            if "drawn" not in state:
                raise self._differs("a task with an end", "an endless one")
            # a checkpoint from before there was task.exclude has left nothing out
            if state.get("excluded", Exclusion().fingerprint()) != self.source.exclusion.fingerprint():
                raise self._differs("other ids in task.exclude", "a changed list of them")
            self.endless = self.source.start()
            self.drawn = sum(1 for _ in islice(self.endless, state["drawn"]))
            return
        if "drawn" in state:
            raise self._differs("an endless task", "one with an end")
        if state["problems"] != _fingerprint(self.source.problems):
            raise self._differs(f"{state['problems']['count']} problems", f"{len(self.source.problems)}, or other ones")
        if state["seed"] != self.seed:
            raise self._differs(f"seed={state['seed']}", f"seed={self.seed}")
        self.epoch, self.position, self.late = state["epoch"], state["position"], list(state["late"])
        self.order = self._shuffle()

    def _shuffle(self) -> list[int]:
        assert self.source.problems is not None
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.source.problems)).tolist()
        late = set(self.late)
        return [i for i in order if i not in late] + [i for i in order if i in late]

    def _next(self) -> Problem:
        refused = len(self.source.refused)
        for _ in range(MAX_REFUSED_RUN):
            problem = next(self.endless, None)
            if problem is None:
                raise UserError(
                    f"task {self.source.name} ended after {self.drawn} problems; an iterator of {PEEK} or more is "
                    "taken to be endless: return a list from its load, and begin a new run_dir"
                )
            self.drawn += 1
            if self.source.usable(problem):
                return problem
        if len(self.source.refused) == refused:
            raise UserError(
                f"task.exclude={self.source.exclusion.files} names each of the last {MAX_REFUSED_RUN} problems of task "
                f"{self.source.name}; name fewer, or give the task more problems"
            )
        problem, complaint = self.source.refused[-1]
        raise UserError(
            f"the verifier can use none of the last {MAX_REFUSED_RUN} answers of task {self.source.name}, such as "
            f"{problem.answer[:60]!r}: {complaint}. Choose another verifier (rewards=NAME) or mend the task"
        )

    def _differs(self, then: str, now: str) -> UserError:
        return UserError(
            f"the checkpoint was made with {then} of task {self.source.name}, now there is {now}; put task, its path, "
            "options, limit and exclude, and the seed back as they were, or begin anew in another run_dir"
        )


def _fingerprint(problems: list[Problem]) -> dict[str, int]:
    checksum = 0
    for p in problems:
        checksum = zlib.crc32(repr((p.id, p.question, p.answer)).encode("utf-8", "backslashreplace"), checksum)
    return {"count": len(problems), "crc32": checksum}
