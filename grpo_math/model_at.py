"""How large the model at a path is: a folder, a model in the Hub's cache, or one of the well-known. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from grpo_math import config
from grpo_math.known_models import known_model
from grpo_math.model_size import ModelSize, size_of_folder, size_of_new


def model_size(model: config.Model) -> ModelSize | None:
    """None where the model is neither on this machine nor one of the well-known."""
    if model.new is not None:
        return size_of_new(model.new)
    assert model.path is not None
    folder = Path(model.path) if Path(model.path).is_dir() else _cached(model.path, model.revision or "main")
    if folder is not None and (folder / "config.json").exists():
        return size_of_folder(folder)
    return known_model(model.path)


def _cached(hub_id: str, revision: str) -> Path | None:
    """Where the Hub's own cache has a model, read off its layout, since its library takes a second to import."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    store = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{hub_id.replace('/', '--')}"
    named = store / "refs" / revision
    snapshot = store / "snapshots" / (named.read_text().strip() if named.is_file() else revision)
    return snapshot if snapshot.is_dir() else None
