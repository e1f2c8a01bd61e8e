"""Reading rows from files and the Hub, and the tasks that do: every way a file can be wrong names it and the remedy."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from grpo_math.rows import hub_rows, read_rows, rows
from grpo_math.tasks import gsm8k, math500
from grpo_math.types import UserError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
FIELDS = ("question", "answer")
GOOD = {"question": "1+1?", "answer": "One and one.\n#### 2"}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not in ../shared/data")


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_rows_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(GOOD) + b"\n  \n" + lines({**GOOD, "extra": [1]}).replace(b"\n", b"\r\n"))
    assert list(read_rows(file, FIELDS)) == [(1, GOOD), (4, {**GOOD, "extra": [1]})]


def test_a_line_separator_inside_a_string_ends_no_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps({**GOOD, "question": "a\u2028b"}, ensure_ascii=False).encode() + b"\n")
    assert [row["question"] for _, row in read_rows(file, FIELDS)] == ["a\u2028b"]


def test_json_list_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD], indent=2))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(GOOD, GOOD)))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps([GOOD, GOOD]).encode()))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(GOOD, GOOD))
    for name in ("a.json", "a.jsonl.gz", "a.json.gz", "bom.jsonl"):
        assert list(read_rows(tmp_path / name, FIELDS)) == [(1, GOOD), (2, GOOD)], name


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", lines(GOOD) + b'{"question": "1+1', ["a.jsonl:2: broken JSON", "column 14", "mend or delete"]),
        (
            "a.jsonl",
            b"[\n" + lines(GOOD) + b"]",
            ["a.jsonl:1: broken JSON", "name a file that is one list of objects .json"],
        ),
        ("a.json", b'[\n{"question": 1,,}\n]', ["a.json:2: broken JSON", "column 16"]),
        ("a.json", json.dumps(GOOD).encode(), ["a.json holds an object", "list of objects", ".jsonl"]),
        ("a.jsonl", lines(GOOD, [1]), ["a.jsonl:2 is a list, not an object with the fields question and answer"]),
        ("a.jsonl", lines(GOOD, None), ["a.jsonl:2 is null, not an object"]),
        ("a.jsonl", lines(GOOD, {}), ["a.jsonl:2 has no field 'question', only an empty object"]),
        (
            "a.jsonl",
            lines(GOOD, {"question": "?", "anwser": "2", "level": 3}),
            ["a.jsonl:2 has no field 'answer'", "only 'question', 'anwser', 'level'", "did you mean to name 'anwser'"],
        ),
        ("a.jsonl", lines({"q": "?", "a": "2"}), ["a.jsonl:1 has no field 'question', only 'q', 'a'", "add it"]),
        ("a.jsonl", lines({**GOOD, "answer": 2}), ["a.jsonl:1: 'answer' is a number, 2, where a string", "quotes"]),
        ("a.jsonl", lines({**GOOD, "answer": {"x": 2}}), ["a.jsonl:1: 'answer' is an object"]),
        ("a.jsonl", lines({**GOOD, "answer": None}), ["a.jsonl:1: 'answer' is null"]),
        ("a.jsonl", lines({**GOOD, "question": " "}), ["a.jsonl:1: 'question' is empty; fill it in"]),
        ("a.jsonl", lines(GOOD, {**GOOD, "question": "\ud83d"}), ["a.jsonl:2: 'question' holds half a Unicode pair"]),
        (
            "a.jsonl",
            lines(GOOD) + '{"question": "é"}'.encode("latin-1"),
            ["a.jsonl:2 is not UTF-8 (byte 14 is 0xe9)", "iconv"],
        ),
        ("a.jsonl", b'{"question": ' + b"9" * 5000 + b"}", ["a.jsonl:1: JSON that cannot be read"]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl:1"]),
        ("a.jsonl", b"", ["a.jsonl has no rows", "one JSON object a line, with the fields question and answer"]),
        ("a.jsonl", b"\n\n", ["a.jsonl has no rows"]),
        ("a.json", b"[]", ["a.json has no rows"]),
        ("a.json", b"", ["a.json has no rows"]),
        ("a.jsonl.gz", b"not gzip", ["a.jsonl.gz cannot be read"]),
        ("a.jsonl.gz", gzip.compress(lines(*[GOOD] * 99), mtime=0)[:-20], ["a.jsonl.gz cannot be read", "whole"]),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, says: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_rows(tmp_path / name, FIELDS))
    for words in says:
        assert words in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "gsm8k_train.jsonl").write_bytes(lines(GOOD))
    with pytest.raises(UserError, match=r"gsm8k_tran\.jsonl does not exist; did you mean .*/gsm8k_train\.jsonl\?"):
        list(read_rows(tmp_path / "gsm8k_tran.jsonl", FIELDS))
    with pytest.raises(UserError, match=r"xyz does not exist; check task\.path"):
        list(read_rows(tmp_path / "xyz", FIELDS))
    with pytest.raises(UserError, match="neither does its folder"):
        list(read_rows(tmp_path / "no" / "a.jsonl", FIELDS))
    with pytest.raises(UserError, match=r"is a folder; give the file in it, gsm8k_train\.jsonl"):
        list(read_rows(tmp_path, FIELDS))


def test_split_in_the_path(tmp_path: Path) -> None:
    (tmp_path / "set_test.jsonl").write_bytes(lines(GOOD))
    path = str(tmp_path / "set_{split}.jsonl")
    assert [(n, s) for n, s, _ in rows(path, ("x/y", None), "test", FIELDS)] == [(1, f"{tmp_path}/set_test.jsonl:1")]
    with pytest.raises(UserError, match=r"set_train\.jsonl does not exist; did you mean .*set_test"):
        list(rows(path, ("x/y", None), "train", FIELDS))


def test_gsm8k_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines({"question": "How much?", "answer": "Add <<1+1=2>>2.\n#### -1,234.50"}))
    (problem,) = gsm8k.load("train", str(file))
    assert (problem.id, problem.task, problem.question, problem.answer) == (
        "gsm8k/train/1",
        "gsm8k",
        "How much?",
        "-1234.50",
    )
    assert problem.metadata == {"source": f"{file}:1", "solution": "Add <<1+1=2>>2."}


@pytest.mark.parametrize("answer", ["The answer is 2", "2 ####", "####  "])
def test_gsm8k_row_without_a_gold_answer(tmp_path: Path, answer: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD, {"question": "?", "answer": answer}))
    with pytest.raises(UserError, match=r"a\.jsonl:2: the answer .* does not end in '#### NUMBER'"):
        gsm8k.load("train", str(tmp_path / "a.jsonl"))


@needs_data
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k_whole(split: str, count: int) -> None:
    problems = gsm8k.load(split, str(DATA / "gsm8k_{split}.jsonl"))
    assert len(problems) == count == len({p.id for p in problems})
    for problem in problems:
        float(problem.answer)  # a number, with nothing around it
    raw = (DATA / f"gsm8k_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(raw[-1])["answer"].endswith(f"#### {problems[-1].answer}")
    assert problems[0].metadata["source"].endswith(f"gsm8k_{split}.jsonl:1")


@needs_data
def test_math500_whole() -> None:
    problems = math500.load("test", str(DATA / "math500.jsonl"))
    assert len(problems) == 500 == len({p.id for p in problems})
    assert problems[0].answer == r"\left( 3, \frac{\pi}{2} \right)"


@pytest.mark.parametrize("task", [gsm8k, math500])
def test_templates_are_filled_by_replacement(task: ModuleType) -> None:
    words = next(iter(task.PROMPTS.values())).template.replace("{question}", "What is {x}?")
    assert words.startswith("What is {x}?\n")
    assert r"\boxed{}" in words
    assert task.VERIFIER == "math"


def test_splits_that_the_hub_does_not_have() -> None:
    with pytest.raises(UserError, match=r"task\.split='tset': gsm8k on the Hub .* task\.split=test"):
        gsm8k.load("tset")
    with pytest.raises(UserError, match=r"task\.split='train': math500 is a test set.*; set task\.split=test"):
        math500.load("train")


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, str]]:
        calls.append((args, kwargs))
        return [GOOD, GOOD]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    problems = gsm8k.load("test")
    assert calls == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [p.metadata["source"] for p in problems] == ["openai/gsm8k/test:1", "openai/gsm8k/test:2"]
    assert [p.id for p in problems] == ["gsm8k/test/1", "gsm8k/test/2"]
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [{"question": "?"}])
    with pytest.raises(UserError, match="openai/gsm8k/test:1 has no field 'answer'"):
        gsm8k.load("test")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: [])
    with pytest.raises(UserError, match="has no rows"):
        gsm8k.load("test")


def test_offline_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    # the real library, which refuses at once instead of after 23 s of tries
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"nobody/no-such-set cannot be loaded .*'train' as JSON lines .*task\.path=FILE"
    ):
        list(hub_rows("nobody/no-such-set", None, "train", FIELDS))


def _raiser(error: Exception) -> Callable[..., object]:
    def load_dataset(*_: object, **__: object) -> object:
        raise error

    return load_dataset


def test_only_errors_of_loading_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    for error in (
        ConnectionError("x"),
        DatasetNotFoundError("x"),
        ValueError("Unknown split"),
        DatasetGenerationError(),
    ):
        monkeypatch.setattr("datasets.load_dataset", _raiser(error))
        with pytest.raises(UserError, match="cannot be loaded"):
            list(hub_rows("a/b", None, "train", FIELDS))
    monkeypatch.setattr("datasets.load_dataset", _raiser(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        list(hub_rows("a/b", None, "train", FIELDS))


def test_datasets_is_imported_only_for_the_hub() -> None:
    code = "import sys; from grpo_math.tasks import gsm8k, math500; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
