"""Fixtures: a tiny random policy, and the real data beside the checkout where it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# in the models of the tests a second thread only waits for the first; set here, before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples each time: a test that fails now and then says nothing of the change at hand
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

SHARED = Path(__file__).parents[1].parent / "shared"


# Files are run side by side; what takes minutes begins first, or the rest would wait for it at the end.
LONGEST = (
    "test_vllm_server",
    "test_code_programs",
    "test_kill",
    "test_learned_server",
    "test_judge_vllm",
    "test_deepspeed",
    "test_credit_runs",
    "test_ranks",
    "test_vllm_local",
    "test_sandbox_life",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared() -> Path:
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the benchmark data in ../shared/data, which is not beside this checkout")
    return SHARED


@pytest.fixture
def new_policy() -> Callable[..., object]:
    """Makes a tiny Qwen2-type policy with a character tokenizer; the same seed gives the same weights."""
    from tests.tiny import tiny_policy

    return tiny_policy
