"""Names of tasks and verifiers -> their modules; one kind of error for all unknown names.

A name is that of a file in tasks/ or verifiers/, a dotted module ("my_package.my_task") or a path ("./my_task.py").
Nothing is registered: the file is there or it is not. Left out: what a module does once it is found.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from grpo_math.types import UserError

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Kind:
    """One of the two folders where users work, and what a module there must define."""

    word: str
    folder: str
    function: str
    signature: str

    def known(self) -> list[str]:
        # a leading underscore marks what several of them share
        return sorted(path.stem for path in (_HERE / self.folder).glob("*.py") if not path.stem.startswith("_"))


_TASK = _Kind("task", "tasks", "load", "def load(split: str, path: str | None = None, **options) -> Iterable[Problem]")
_VERIFIER = _Kind(
    "verifier", "verifiers", "verify", "def verify(problem: Problem, completion: str, **options) -> Verdict"
)


def list_tasks() -> list[str]:
    return _TASK.known()


def list_verifiers() -> list[str]:
    return _VERIFIER.known()


def find_task(name: str) -> ModuleType:
    """The module of a task, which has `load`. Raises UserError for whatever keeps it from being used."""
    return _find(_TASK, name)


def find_verifier(name: str) -> ModuleType:
    """The module of a verifier, which has `verify`. Raises UserError for whatever keeps it from being used.

    A worker process calls this with the same name and, having the same working directory, gets the same code."""
    return _find(_VERIFIER, name)


def verifier_of(task: str, given: str | None = None) -> str:
    """The verifier's name that was given, or else the task's own choice, a file of which is beside the task's file."""
    if given is not None:
        return given
    name = getattr(find_task(task), "VERIFIER", None)
    if name is None:
        raise UserError(f'task {task} names no VERIFIER of its own; write VERIFIER = "NAME" in it, or say which to use')
    folder = Path(task).parent if task.endswith(".py") and str(name).endswith(".py") else Path()
    return str(name) if folder == Path() else str(folder / name)


def first_line(kind: str, name: str) -> str:
    """The first line of the docstring of a task ("tasks") or verifier ("verifiers"), read without importing it."""
    try:
        docstring = ast.get_docstring(ast.parse((_HERE / kind / f"{name}.py").read_text(encoding="utf-8")))
    except SyntaxError as error:
        return f"(line {error.lineno} is not valid Python)"
    return (docstring or "(no docstring)").splitlines()[0]


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that was most likely meant, if any is near."""
    by_lower = {k.lower(): k for k in known}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def _find(kind: _Kind, name: str) -> ModuleType:
    if name.endswith(".py"):
        module = _from_file(kind, name)
    elif name in kind.known():
        module = _import(kind, f"grpo_math.{kind.folder}.{name}", name)
    elif "." in name.strip(".") and "/" not in name:
        module = _import(kind, name, name)
    else:
        raise _unknown(kind, name)
    if not callable(getattr(module, kind.function, None)):
        raise UserError(
            f"{kind.word} {name}: {module.__file__} has no function {kind.function}; it needs\n    {kind.signature}"
        )
    return module


def _import(kind: _Kind, module_name: str, name: str) -> ModuleType:
    # the console script does not have the working directory on its path as `python -m` does
    if (cwd := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(cwd)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise _unknown(kind, name) from error
        raise _broken(kind, name, error) from error
    except Exception as error:
        raise _broken(kind, name, error) from error


def _from_file(kind: _Kind, name: str) -> ModuleType:
    path = Path(name).expanduser()
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py"))
        guess = nearest(path.name, [Path(p).name for p in beside])
        meant = f"; did you mean {path.parent / guess}?" if guess else f" (looked in {Path.cwd()})"
        raise UserError(f"{kind.word} {name}: there is no such file{meant}")
    path = path.resolve()
    # the same file always has the same module name, so that it is loaded once and its classes can be pickled
    module_name = f"grpo_math_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # before the code runs: dataclasses look themselves up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _broken(kind, name, error) from error
    return module


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turns what a user's function raises into a UserError that names `what` and the line of the user's file."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} failed: {_where(error, what)}: {type(error).__name__}: {error}") from error


def _unknown(kind: _Kind, name: str) -> UserError:
    known = kind.known()
    guess = nearest(name, known)
    if Path(f"{name}.py").is_file():
        guess = f"./{name}.py"
    return UserError(
        f"unknown {kind.word} {name!r}{f'; did you mean {guess}?' if guess else ''}\n"
        f"  known: {', '.join(known)}\n"
        f"  to add one, write {kind.folder}/NAME.py, or name a file anywhere as ./NAME.py, with\n    {kind.signature}"
    )


def _broken(kind: _Kind, name: str, error: BaseException) -> UserError:
    remedy = ""
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        remedy = f"; install it, for example: pip install {error.name}"
    where = _where(error, name)
    return UserError(f"{kind.word} {name} cannot be loaded: {where}: {type(error).__name__}: {error}{remedy}")


def _where(error: BaseException, name: str) -> str:
    """The last line of the user's own code that ran, since the frames around it are the import system's."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [f for f in frames if Path(f.filename) != Path(__file__) and "importlib" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else name
