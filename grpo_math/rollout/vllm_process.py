"""What vLLM does to the process that starts it, undone.

vLLM is made to have a process to itself; in process it has to share the trainer's. Left out: the process group, which
VLLMEngine.close keeps.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Undoes what starting vLLM does to its process: it seeds the random generators, sets environment variables that
    verifiers' processes (LD_PRELOAD) and DeepSpeed (LOCAL_WORLD_SIZE) would inherit, and takes torch's threads."""
    environment, threads, set_threads = dict(os.environ), torch.get_num_threads(), torch.set_num_threads
    try:
        with unchanged_random_state():
            yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """vLLM draws from the process's own generators even where each request has a seed."""
    python, array = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


NEEDLESS = (
    "vllm.logging_utils.dump_input",  # all it works on, when it fails
    "vllm.model_executor.model_loader.reload.layerwise",  # a false alarm at each weight update; VLLMEngine counts
    "vllm.model_executor.models.utils",  # that weights in float32 become bfloat16, a line for each
    "vllm.v1.engine.input_processor",  # that prompts come as token ids
    "vllm.renderers.base",  # that it was given no tokenizer
)


@contextmanager
def quiet_start() -> Iterator[None]:
    """No warnings while vLLM starts, when it gives one for each thing it was told to do, and no needless ones after it.

    VLLM_LOGGING_LEVEL other than WARNING leaves its logging as it is."""
    if os.environ.get("VLLM_LOGGING_LEVEL", "WARNING") != "WARNING":
        yield
        return
    before = logging.root.manager.disable
    # a level of vLLM's own loggers would not last: it sets them up anew in between
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
        for name in NEEDLESS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
