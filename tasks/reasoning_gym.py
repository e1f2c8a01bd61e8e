"""Any generator of the package reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760): `dataset` says which.

Problems are made on the spot. The test split holds the questions whose checksum is 0 modulo 4 and the train split the
others, so that no training problem, whatever the seeds, is a test problem. The package is optional and imported when
problems are asked for: pip install 'grpo-math[reasoning-gym]'.

The same seed gives the same problems in every process. Some generators go through sets of strings, whose order Python
draws anew for each process: theirs are made in a process of their own, in which that order is fixed (BY_HASH).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any
from zlib import crc32

import numpy as np

from grpo_math.forms import Form
from grpo_math.lifeline import die_with_parent
from grpo_math.types import Problem, UserError
from grpo_math.verifiers.reasoning_gym import checked, generators, make_dataset

VERIFIER = "reasoning_gym"
VARIANT = "dataset"  # the option that NAME:VARIANT sets

_ONLY_THE_ANSWER = (
    "Do not explain your reasoning inside the answer tags, provide only the final answer. When an example is provided, "
    "you should strictly follow the format of the output/answer in that example.\n"
)
_SOURCE = "reasoning-gym 0.1.25, reasoning_gym/utils.py, SYSTEM_PROMPTS"
PROMPTS = {
    "default@1": Form(
        "{question}",
        "Given a problem, your task is to answer the question by thinking step-by-step in a clear and specific "
        "manner.\n"
        "Once you have thought about the reasoning process, provide the answer in the following format:\n"
        f"<answer>answer here</answer>\n{_ONLY_THE_ANSWER}",
        source=f"{_SOURCE}, default",
    ),
    "deepseek_zero@1": Form(
        "{question}",
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it.\n"
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think>\n"
        f"<answer>answer here</answer>\n{_ONLY_THE_ANSWER}",
        source=f"{_SOURCE}, DeepSeekZero",
    ),
    "direct@1": Form(
        "{question}",
        "Answer the question directly. Provide your answer between <answer> and </answer> tags. Do not return any "
        "preamble, explanation, or reasoning.",
        source=f"{_SOURCE}, direct",
    ),
}
TEST_PROBLEMS = 200
CHUNK = 500  # entries of one dataset of the package: some generators make or plan all of them at once
TRIES = 20  # entries made for a test problem, on average, before there are taken to be no more

# Of generators that give no answer, since many are right: the one that is in the metadata. rush_hour and boxnet have
# none there either, and their problems the answer "".
GOLD: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "graph_color": lambda metadata: json.dumps(metadata["possible_answer"]),
    "propositional_logic": lambda metadata: metadata["example_answer"],
    "rubiks_cube": lambda metadata: metadata["example_correct_answer"],
}

# Generators whose entries depend on the order of sets, which PYTHONHASHSEED decides: of the first four the question, of
# the others the answer alone, one of several right ones.
BY_HASH = {
    *("codeio", "isomorphic_strings", "polynomial_multiplication", "ransom_note"),
    *("intermediate_integration", "knight_swap", "word_ladder"),
}
_BOOT = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import _serve; _serve(int(sys.argv[1]))"


def load(
    split: str,
    path: str | None = None,
    *,
    dataset: str | None = None,
    size: int | None = None,
    seed: int = 0,
    **config: Any,
) -> Iterator[Problem] | list[Problem]:
    """`size` problems of the generator `dataset`; left out, TEST_PROBLEMS for `test` and no end for `train`.

    Those of `test` are distinct, and fewer where there are no more. config: the generator's own options, such as
    max_terms=4 of chain_sum. metadata: dataset, config, and entry, which the scorer reads.

    Most generators need up to 20 ms for a problem, futoshiki, knight_swap, puzzle24, sokoban, sudoku and zebra_puzzles
    0.1 to 0.6 s, four times that in the test split; and a run looks at the first 10,000 problems of a task without end.
    Where that takes too long, give a size. Raises UserError: no package, no such generator or option, a value that the
    generator refuses."""
    if path is not None:
        raise UserError(f"task.path={path}: reasoning_gym makes its own problems; leave task.path out")
    if split not in ("train", "test"):
        raise UserError(f"task.split={split}: reasoning_gym has the splits train and test")
    if dataset is None:
        raise UserError(
            f"task reasoning_gym needs task.options.dataset=NAME, the generator\n  known: {', '.join(generators())}"
        )
    if size is not None and size < 1:
        raise UserError(f"task.options.size={size}: give a number of problems of at least 1, or leave it out")
    checked(dataset, config)  # here, not at the first problem
    made = train(dataset, seed, config) if split == "train" else test(dataset, seed, config, size or TEST_PROBLEMS)
    return made if size is None else list(itertools.islice(made, size))


def train(dataset: str, seed: int, config: Mapping[str, Any]) -> Iterator[Problem]:
    for number, entry in enumerate(entries(dataset, f"train/{seed}", config)):
        if not held_out(entry["question"]):
            yield problem_of(f"train/{number}", dataset, config, entry)


def test(dataset: str, seed: int, config: Mapping[str, Any], size: int) -> Iterator[Problem]:
    seen: set[str] = set()
    for entry in itertools.islice(entries(dataset, f"test/{seed}", config), TRIES * size):
        if held_out(entry["question"]) and entry["question"] not in seen:
            seen.add(entry["question"])
            yield problem_of(f"test/{len(seen)}", dataset, config, entry)
        if len(seen) == size:
            return


def entries(dataset: str, seed: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The generator's entries without end, the same for the same seed."""
    apart = dataset in BY_HASH and sys.flags.hash_randomization
    return (_made_apart if apart else _made)(dataset, seed, config)


def _made(dataset: str, seed: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    # an entry is drawn from the dataset's seed plus its index: seeds one apart would share all entries but one
    for start in itertools.count(crc32(seed.encode()) >> 1, CHUNK):
        with _undisturbed(start):
            chunk = make_dataset(dataset, config, seed=start, size=CHUNK)
        for index in range(CHUNK):
            with _undisturbed(start + index):
                entry = chunk[index]
            yield entry


def _made_apart(dataset: str, seed: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What `_made` gives where PYTHONHASHSEED is 0, from a process that is no further ahead than a pipe holds, and ends
    with this iterator or with this process. What `_made` raises there is raised here."""
    lifeline, kept = os.pipe()
    # some programs of codeio write files where they are run
    with tempfile.TemporaryDirectory() as scratch, os.fdopen(kept, "wb"), os.fdopen(lifeline, "rb") as theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(lifeline), *map(os.path.abspath, sys.path)],
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            pass_fds=[lifeline],
            start_new_session=True,  # Ctrl-C passes it by, and the end of the lifeline kills its group
        )
        theirs.close()
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                with suppress(BrokenPipeError), child.stdin:  # where it has died, there is nothing to read either
                    pickle.dump((dataset, seed, dict(config)), child.stdin)
                while not isinstance(made := _received(child, dataset), BaseException):
                    yield made
                raise made
            finally:
                child.kill()


def _received(child: subprocess.Popen[bytes], dataset: str) -> Any:
    assert child.stdout is not None
    try:
        return pickle.load(child.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"the process that makes the entries of {dataset} has ended with status {child.wait()}; what it said is on "
            "standard error, and a negative status is the signal that killed it"
        ) from error


def _serve(lifeline: int) -> None:
    """The other side of `_made_apart`: the entries on standard output, and last what went wrong."""
    die_with_parent(lifeline)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a generator prints in C goes to stderr, not between the entries

    def send(message: object) -> None:
        pickle.dump(message, replies)
        replies.flush()

    sys.excepthook = lambda _, error, __: send(error)
    for entry in _made(*pickle.load(sys.stdin.buffer)):
        send(entry)


def problem_of(name: str, dataset: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> Problem:
    answer = entry["answer"]
    if answer is None:
        answer = GOLD[dataset](entry["metadata"]) if dataset in GOLD else ""
    metadata = {"dataset": dataset, "config": dict(config), "entry": entry}
    return Problem(f"reasoning_gym/{dataset}/{name}", "reasoning_gym", entry["question"], str(answer), metadata)


def gold_completion(problem: Problem) -> str:
    return f"<answer>{problem.answer}</answer>"


def held_out(question: str) -> bool:
    return crc32(question.encode()) % 4 == 0


@contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """bf prints dots, pool_matrix seeds numpy for the whole process, and list_functions and some programs of codeio
    draw from the generators that all of the process shares."""
    shared, numpys = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(shared)
        np.random.set_state(numpys)
