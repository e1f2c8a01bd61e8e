"""The optimizer's states on disk: by the parameters' names, in as many files as there were ranks, readable by any.

    optimizer/index.json                          which file has which tensor, and where the run was
    optimizer/states-00001-of-00002.safetensors   KIND/NAME, whole tensors in float32, a rank's share of the parameters

KIND is exp_avg, exp_avg_sq (AdamW's moments) or master (the weights in float32, where the model's own are rounded).
Left out: how the tensors come out of DeepSpeed and go back (deepspeed.py), and the model itself, which lies beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from grpo_math.types import UserError

FOLDER = "optimizer"
INDEX = "index.json"
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
HEAD_FILE = Path("critic", "value_head.safetensors")  # of actor_critic.py, beside the model that a checkpoint is


@dataclass(frozen=True)
class Progress:
    """step: updates that AdamW has made. updates: those that the schedule has seen, without those that were skipped.
    bad_updates: skipped ones in a row up to now."""

    step: int
    updates: int
    bad_updates: int


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Which rank writes which parameter: each in turn goes to the one that has least to write."""
    load = [0] * ranks
    owner: dict[str, int] = {}
    for name, size in sizes.items():
        owner[name] = load.index(min(load))
        load[owner[name]] += size
    return owner


def write_share(path: Path, rank: int, ranks: int, tensors: Mapping[str, Tensor]) -> None:
    """This rank's file; tensors: "KIND/NAME" to a whole tensor."""
    folder = path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, folder / _file(rank, ranks))


def write_index(path: Path, owner: Mapping[str, int], kinds: Sequence[str], ranks: int, progress: Progress) -> None:
    folder = path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{kind}/{name}": _file(rank, ranks) for name, rank in owner.items() for kind in kinds}
    text = json.dumps({"progress": asdict(progress), "tensors": tensors}, indent=1)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


class Store:
    """Tensors of several safetensors files under one name space, read one at a time. Use it in a `with`.

    Raises UserError with the name of a file that is missing, cut short or lacks a tensor, when it is opened."""

    def __init__(self, files: Sequence[Path], index: Mapping[str, Path] | None = None) -> None:
        self.files, self.index = files, index
        self._stack = ExitStack()
        self._where: dict[str, Any] = {}

    def __enter__(self) -> Store:
        try:
            for file in self.files:
                opened = self._stack.enter_context(_open(file))
                self._where |= {name: opened for name in opened.keys()}  # noqa: SIM118  no dict: it has no __iter__
                for name, place in (self.index or {}).items():
                    if place == file and name not in self._where:
                        raise UserError(f"{file}: has no tensor {name}, which {INDEX} says is there; {_REMEDY}")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name].get_slice(name).get_shape())


_REMEDY = "the checkpoint is damaged: delete its folder to continue from the one before, or copy the file again"


def open_states(path: Path) -> tuple[Store, Progress]:
    """What write_share and write_index wrote."""
    folder = path / FOLDER
    if not (folder / INDEX).is_file():
        if (path / "optimizer.pt").is_file():
            raise UserError(
                f"{path}: was written by backend.name=torch, whose optimizer's states DeepSpeed cannot take; continue "
                f"with backend.name=torch, or start a new run from the weights alone with model.path={path}"
            )
        raise UserError(f"{folder / INDEX}: is missing; {_REMEDY}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        places = {name: folder / file for name, file in index["tensors"].items()}
        progress = Progress(**index["progress"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX}: cannot be read: {error!r}; {_REMEDY}") from error
    return Store(sorted(set(places.values())), places), progress


def open_model(path: Path) -> Store:
    """The weights beside the states, under the names of the files."""
    files = model_files(path)
    if not files:
        raise UserError(f"{path}: has no *.safetensors with the model's weights; {_REMEDY}")
    listed = {file for index in path.glob("*.safetensors.index.json") for file in _listed(index)}
    return Store(sorted({*files, *listed}))


def model_files(path: Path) -> list[Path]:
    """Those with the model's tensors, and its value head's if it has one."""
    head = [path / HEAD_FILE] if (path / HEAD_FILE).exists() else []
    return [*sorted(path.glob("*.safetensors")), *head]


def _listed(index: Path) -> set[Path]:
    """A model in several files: one that the index names and that is gone must not pass for a smaller model."""
    try:
        return {index.parent / file for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: cannot be read: {error!r}; {_REMEDY}") from error


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise UserError(f"{file}: is missing; {_REMEDY}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cannot be read: {error}; {_REMEDY}") from error


def _file(rank: int, ranks: int) -> str:
    return f"states-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def to_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True)
