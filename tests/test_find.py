"""Names -> modules: the three spellings, one module per file, worker processes, and what each mistake is told."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

from grpo_math import find
from grpo_math.find import find_task, find_verifier, list_tasks, list_verifiers, nearest
from grpo_math.types import UserError

VERIFIER = '''\
"""Says yes."""
from dataclasses import dataclass
from grpo_math.types import Verdict

loads = []

@dataclass
class Opinion:
    text: str = "yes"

def verify(problem, completion):
    return Verdict(1.0, "correct", Opinion().text)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_listed_name_is_found() -> None:
    assert "arithmetic" in list_tasks()
    assert "math" in list_verifiers()
    for name in list_tasks():
        assert find_task(name).__name__ == f"grpo_math.tasks.{name}"
        assert find.first_line("tasks", name) != "(no docstring)"
    for name in list_verifiers():
        assert find_verifier(name).__name__ == f"grpo_math.verifiers.{name}"
        assert find.first_line("verifiers", name) != "(no docstring)"
    assert not [name for name in list_tasks() + list_verifiers() if name.startswith("_")]


def test_a_file_is_loaded_once_whatever_its_path_is_called(folder: Path) -> None:
    path = write(folder / "mine.py", VERIFIER)
    module = find_verifier("./mine.py")
    assert find_verifier("mine.py") is module
    assert find_verifier(str(path)) is module
    assert sys.modules[module.__name__] is module
    assert find_verifier(str(write(folder / "sub" / "mine.py", VERIFIER))) is not module


def work(name: str) -> tuple[str, object]:
    module = find_verifier(name)
    return module.__name__, module.Opinion()


def test_a_worker_process_finds_the_same_module(folder: Path) -> None:
    write(folder / "mine.py", VERIFIER)
    module = find_verifier("./mine.py")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        name, opinion = pool.apply(work, ("./mine.py",))
    assert name == module.__name__
    assert opinion == module.Opinion()  # its class came back by the module's name


def test_a_dotted_module_of_the_working_directory(folder: Path) -> None:
    write(folder / "my_package" / "judge.py", VERIFIER)
    assert find_verifier("my_package.judge").__name__ == "my_package.judge"


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError) as caught:
        find_task("arithmetik")
    message = str(caught.value)
    assert "unknown task 'arithmetik'; did you mean arithmetic?" in message
    assert f"known: {', '.join(list_tasks())}" in message
    assert "tasks/NAME.py" in message
    assert "def load(" in message
    with pytest.raises(UserError, match=r"unknown verifier 'maths'; did you mean math\?"):
        find_verifier("maths")
    with pytest.raises(UserError, match=r"unknown verifier 'no_such\.module'"):
        find_verifier("no_such.module")
    for strange in ("", ".", "_math", "a/b", "grpo_math.verifiers."):
        with pytest.raises(UserError, match="unknown verifier"):
            find_verifier(strange)


def test_a_name_that_is_a_file_here_is_told_how_to_say_so(folder: Path) -> None:
    write(folder / "mine.py", VERIFIER)
    with pytest.raises(UserError, match=r"did you mean ./mine.py\?"):
        find_verifier("mine")


def test_a_missing_file_gets_the_nearest(folder: Path) -> None:
    write(folder / "mine.py", VERIFIER)
    with pytest.raises(UserError, match=r"./mime.py: there is no such file; did you mean mine.py\?"):
        find_verifier("./mime.py")


def test_a_module_without_its_function_is_told_the_signature(folder: Path) -> None:
    path = write(folder / "mine.py", VERIFIER)
    with pytest.raises(UserError, match="has no function load") as caught:
        find_task("./mine.py")
    assert str(path) in str(caught.value)
    assert "def load(split: str" in str(caught.value)
    write(folder / "task.py", "verify = 3\n")
    with pytest.raises(UserError, match=r"has no function verify; it needs\n    def verify\(problem"):
        find_verifier("./task.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nimport no_such_module\n", ":2: ModuleNotFoundError: .*pip install no_such_module"),
        ("x = 1\n\ny = unknown\n", ":3: NameError: name 'unknown' is not defined"),
        ("def f(:\n", ":1: SyntaxError"),
        ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
        ("from grpo_math.types import Verdikt\n", ":1: ImportError: cannot import name 'Verdikt'"),
    ],
)
def test_an_error_inside_the_file_names_its_line(folder: Path, text: str, said: str) -> None:
    path = write(folder / "broken.py", text)
    with pytest.raises(UserError, match=f"verifier ./broken.py cannot be loaded: {path}{said}") as caught:
        find_verifier("./broken.py")
    assert caught.value.__cause__ is not None
    # nothing half-loaded stays behind: once mended, it works
    write(path, VERIFIER)
    assert find_verifier("./broken.py").verify(None, None).reward == 1.0


def test_an_error_in_a_module_it_imports_names_that_line(folder: Path) -> None:
    helper = write(folder / "my_helpers" / "inner.py", "1 / 0\n")
    write(folder / "outer.py", "\nimport my_helpers.inner\n")
    sys.path.append(str(folder))
    with pytest.raises(UserError, match=f"{helper}:1: ZeroDivisionError"):
        find_verifier("./outer.py")


def test_an_import_that_fails_inside_a_package_is_no_unknown_name(folder: Path) -> None:
    write(folder / "my_other" / "judge.py", "import my_other.missing\n")
    with pytest.raises(UserError, match=r"judge.py:1: ModuleNotFoundError: No module named 'my_other.missing'"):
        find_verifier("my_other.judge")


def test_the_verifier_of_a_task(folder: Path) -> None:
    assert find.verifier_of("arithmetic") == "math"
    assert find.verifier_of("arithmetic", "other") == "other"
    write(folder / "bare.py", "def load(split): return []\n")
    with pytest.raises(UserError, match=r'names no VERIFIER of its own; write VERIFIER = "NAME" in it'):
        find.verifier_of("./bare.py")


def test_nearest_ignores_case_and_gives_up() -> None:
    assert nearest("GSM8k", ["gsm8k", "math500"]) == "gsm8k"
    assert nearest("zzz", ["gsm8k"]) is None
