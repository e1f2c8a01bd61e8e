"""Any generator of the package reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760): `dataset` says which.

Problems are made on the spot. The test split holds the questions whose checksum is 0 modulo 4 and the train split the
others, so that no training problem, whatever the seeds, is a test problem. The package is optional and imported when
problems are asked for: pip install 'grpo-math[reasoning-gym]'.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any
from zlib import crc32

import numpy as np

from grpo_math.forms import Form
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
    # an entry is drawn from the dataset's seed plus its index: seeds one apart would share all entries but one
    for start in itertools.count(crc32(seed.encode()) >> 1, CHUNK):
        with _undisturbed():
            chunk = make_dataset(dataset, config, seed=start, size=CHUNK)
        for index in range(CHUNK):
            with _undisturbed():
                entry = chunk[index]
            yield entry


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
def _undisturbed() -> Iterator[None]:
    """bf prints dots, and pool_matrix seeds numpy for the whole process."""
    state = np.random.get_state()
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        np.random.set_state(state)
