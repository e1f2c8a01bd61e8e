"""Files of examples: TRL's rows as they are, every refusal with its line, the tokens that are trained, the order."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo_math.batch import pad_rows
from grpo_math.config_data import Data, Filter, keys_for_flags
from grpo_math.examples.example import Pair
from grpo_math.examples.raw import Kind, RawCompletion, RawExample
from grpo_math.examples.read import check_files, read_examples
from grpo_math.examples.stream import ExampleStream
from grpo_math.examples.tokens import Encoder, encoder
from grpo_math.filtering.command import filter_command
from grpo_math.filtering.settings import Settings
from grpo_math.small_model import character_tokenizer
from grpo_math.types import UserError

ROOT = Path(__file__).parent.parent
Row = dict[str, Any]
Write = Callable[..., str]

# as ChatML has it: a newline behind the end of each turn
CHATML = (
    "{% for m in messages %}<im_start>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<im_start>assistant\n{% endif %}"
)
# once the assistant has spoken, something else stands where it was to speak
THINKING = CHATML.replace("{% if add_generation_prompt %}<im_start>assistant\n", "{% if add_generation_prompt %}<t>")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SKY, BLUE, GREEN = user("What colour is the sky?"), assistant("It is blue."), assistant("It is green.")
SYSTEM = {"role": "system", "content": "Be brief."}

PLAIN_SFT: Row = {"prompt": "The sky is", "completion": " blue."}
PLAIN_PAIR: Row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
PLAIN_KTO: Row = {"prompt": "The sky is", "completion": " blue.", "label": True}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*rows: Row | str, name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return str(path)

    return write


def read(kind: Kind, *files: str, **options: Any) -> list[RawExample]:
    return read_examples(Data(files=list(files), **options), kind).rows


def refusal(kind: Kind, file: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(kind, file, **options)
    return str(caught.value).replace(f"{Path(file).parent}/", "")


def plain_encoder() -> Encoder:
    tokenizer = character_tokenizer()
    return encoder(tokenizer, frozenset([tokenizer.eos_token_id]))


def chat_encoder(template: str = CHATML, bos: str | None = None, ends: tuple[int, ...] = ()) -> Encoder:
    tokenizer: PreTrainedTokenizerBase = character_tokenizer()
    tokenizer.chat_template = template
    tokenizer.bos_token = bos
    return encoder(tokenizer, frozenset(ends or [tokenizer.eos_token_id]))


def letter_tokenizer(space: bool = True) -> PreTrainedTokenizerBase:
    """It drops what is no small letter, and with `space` puts one before a text, as Llama's does."""
    letters = {token: i for i, token in enumerate(["<eos>", "▁", *"\n:abcdefghijklmnopqrstuvwxyz"])}
    llama = Tokenizer(BPE(letters, []))
    if space:
        llama.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=llama, eos_token="<eos>")


def decoded(encode: Encoder, ids: tuple[int, ...]) -> str:
    return str(encode.tokenizer.decode(list(ids)))


# ---- rows as TRL has them


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        (PLAIN_SFT, "The sky is", " blue."),
        ({"prompt": [SKY], "completion": [BLUE]}, [SKY], [BLUE]),
        ({"messages": [SYSTEM, SKY, BLUE, user("Why?"), assistant("Air.")]}, None, [assistant("Air.")]),
        # what `datasets` makes of messages of which some have a name
        ({"messages": [{**SKY, "name": None}, {**BLUE, "name": None}], "prompt": "unused"}, [SKY], [BLUE]),
    ],
)
def test_what_is_to_be_imitated(write: Write, row: Row, prompt: Any, completion: Any) -> None:
    (example,) = read("sft", write(row))
    assert example.prompt == (prompt or [SYSTEM, SKY, BLUE, user("Why?")])
    assert [c.text for c in example.completions] == [completion]
    assert example.where.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PLAIN_PAIR, ("The sky is", " blue.", " green.")),
        ({"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}, ([SKY], [BLUE], [GREEN])),
        # the prompt is in both; ultrafeedback_binarized has it beside them as text too
        ({"chosen": [SYSTEM, SKY, BLUE], "rejected": [SYSTEM, SKY, GREEN]}, ([SYSTEM, SKY], [BLUE], [GREEN])),
        ({"prompt": SKY["content"], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, ([SKY], [BLUE], [GREEN])),
        ({"prompt": [SKY], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]}, ([SKY], [BLUE], [GREEN])),
        # plain, as hh-rlhf: the space belongs to the completions
        (
            {"chosen": "\n\nHuman: Sky?\n\nAssistant: Blue.", "rejected": "\n\nHuman: Sky?\n\nAssistant: Green."},
            ("\n\nHuman: Sky?\n\nAssistant:", " Blue.", " Green."),
        ),
    ],
)
def test_pairs_with_the_prompt_in_a_column_or_in_both(write: Write, row: Row, expected: tuple[Any, ...]) -> None:
    from trl.data_utils import extract_prompt

    (example,) = read("preference", write(row))
    chosen, rejected = example.completions
    assert (example.prompt, chosen.text, rejected.text) == expected
    if not isinstance(row.get("prompt"), list) and row is not PLAIN_PAIR:
        assert extract_prompt(row) == dict(zip(("prompt", "chosen", "rejected"), expected, strict=True))


def test_what_a_pair_may_say_of_its_completions(write: Write) -> None:
    more = {"ref_chosen_logps": -3, "ref_rejected_logps": -4.5, "chosen_logps": -2.0, "rejected_logps": -1.0}
    rewards = {"chosen_reward": 1.0, "rejected_reward": 0.0, "rejected_finish_reason": "length", "problem": "p7"}
    with_all, without = read("preference", write(PLAIN_PAIR | more | rewards, PLAIN_PAIR))
    chosen, rejected = with_all.completions
    assert chosen == RawCompletion(" blue.", "stop", 1.0, -2.0, -3.0)
    assert rejected == RawCompletion(" green.", "length", 0.0, -1.0, -4.5)
    pair = plain_encoder().pair(with_all)
    assert (pair.ref, pair.behaviour, pair.rewards) == ((-3.0, -4.5), (-2.0, -1.0), (1.0, 0.0))
    assert (pair.prompt.problem.id, pair.rejected.finish_reason) == ("p7", "length")
    bare = plain_encoder().pair(without)
    assert (bare.ref, bare.behaviour, bare.rewards) == (None, None, None)


def test_labels_and_weights(write: Write) -> None:
    rows = read("kto", write(PLAIN_KTO, PLAIN_KTO | {"completion": " red.", "label": False}))
    assert [row.label for row in rows] == [True, False]
    assert rows[0].prompt is rows[1].prompt  # held once
    assert [r.weight for r in read("sft", write(PLAIN_SFT, PLAIN_SFT | {"weight": 0.5}))] == [1.0, 0.5]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_files_that_datasets_has_written(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": [user(f"{i}?")], "chosen": [assistant("é√")], "rejected": [assistant("no")]} for i in range(3)]
    path, data = str(tmp_path / name), Dataset.from_list(rows)
    if name.endswith("parquet"):
        data.to_parquet(path)
    else:
        data.to_json(path, lines=not name.endswith(".json"))
    found = read("preference", path)
    assert [(r.prompt, r.completions[0].text) for r in found] == [(r["prompt"], r["chosen"]) for r in rows]
    assert found[2].where == f"{path}:3"


def test_the_examples_of_the_documentation_are_taken(write: Write) -> None:
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    rows = [json.loads(text) for block in blocks for text in re.sub(r"\n (?=\S)", " ", block).splitlines()]
    kinds: list[Kind] = ["preference" if "chosen" in row else "kto" if "label" in row else "sft" for row in rows]
    assert kinds == ["sft", "preference", "kto", "sft", "preference"]
    for kind, row in zip(kinds, rows, strict=True):
        good = [row, row | {"label": True}] if kind == "kto" else [row]
        assert len(read(kind, write(*good))) == len(good)


# ---- what is refused, before any tokenizer is there

PAIR_OF_CHAT = {"prompt": [SKY], "chosen": [BLUE], "rejected": [GREEN]}


@pytest.mark.parametrize(
    ("kind", "row", "says"),
    [
        ("sft", {"text": "all"}, "'text' alone does not tell the prompt from the completion; split it"),
        ("sft", {"prompt": "a", "completon": "b"}, "no column 'completion', only 'prompt', 'completon'; did you mean"),
        ("sft", {"question": "a", "response": "b"}, "did you mean to name 'question' 'prompt'?"),
        ("sft", PLAIN_PAIR, "pairs are for recipe: preference"),
        ("sft", {"prompt": "a"}, "no column 'completion', only 'prompt'; a line to imitate has 'prompt' and"),
        ("sft", {"prompt": "a", "completion": " \n"}, "'completion' is empty; fill it in or delete the line"),
        ("sft", {"prompt": "a", "completion": 7}, "completion=7: give a string, or a list of messages"),
        ("sft", {"prompt": None, "completion": "b"}, "prompt=null: give a string"),
        ("sft", {"prompt": "a", "completion": "\ud83d"}, "'completion' holds half a Unicode pair"),
        ("sft", {"prompt": [SKY], "completion": " blue"}, "'completion' is plain text and 'prompt' a list of messages"),
        ("sft", {"prompt": [SKY, BLUE], "completion": [GREEN]}, "'prompt' ends with a message of the role 'assistant'"),
        ("sft", {"prompt": [SYSTEM], "completion": [BLUE]}, "'prompt' ends with a message of the role 'system'"),
        ("sft", {"prompt": [SKY], "completion": [SKY]}, "'completion' begins with a message of the role 'user'"),
        ("sft", {"prompt": [SKY], "completion": [BLUE, SKY, BLUE]}, "'completion' has 3 messages (assistant, user, "),
        ("sft", {"prompt": [SKY], "completion": [assistant(" ")]}, "completion[0].content is empty"),
        ("sft", {"prompt": [], "completion": [BLUE]}, "'prompt' is an empty list"),
        ("sft", {"messages": [SKY]}, "'messages' ends with the role 'user'"),
        ("sft", {"messages": [BLUE]}, "'messages' has an answer alone"),
        ("sft", {"messages": "hi"}, 'messages="hi": give a list of messages'),
        (
            "sft",
            {"messages": [{"from": "human", "value": "hi"}]},
            "messages[0] has no 'role', only 'from', 'value'; re",
        ),
        ("sft", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content=[{"),
        ("sft", {"messages": ["hi"]}, 'messages[0] is "hi": give an object'),
        ("sft", {"conversations": []}, "no column 'prompt', only 'conversations'; a line to imitate has"),
        ("sft", PLAIN_SFT | {"tools": [{"name": "f"}]}, "is not read here, and would change the prompt"),
        ("sft", PLAIN_SFT | {"weight": -1}, "weight=-1.0: give 0 or more"),
        ("sft", PLAIN_SFT | {"finish_reason": "eos"}, 'finish_reason="eos": give stop, or length'),
        ("sft", PLAIN_SFT | {"problem": "p", "reward": 0.0, "reason": "wrong"}, "write data.filter: {} to take"),
        ("preference", {"prompt": "a", "chosen": "b"}, "no column 'rejected', only 'prompt', 'chosen'; a pair has"),
        ("preference", PLAIN_KTO, "completions with a label are for a loss of single ones, such as kto"),
        ("preference", PLAIN_SFT, "a pair needs a better and a worse completion"),
        ("preference", PLAIN_PAIR | {"rejected": " blue."}, "'chosen' and 'rejected' are the same"),
        ("preference", PLAIN_PAIR | {"rejected": ""}, "'rejected' is empty"),
        ("preference", {"prompt": "a", "chosen": [BLUE], "rejected": [GREEN]}, "'prompt' is plain text and 'chosen' a"),
        ("preference", PAIR_OF_CHAT | {"rejected": "no"}, "'rejected' is plain text and 'chosen' a list"),
        ("preference", {"chosen": "yes", "rejected": "no"}, "'chosen' and 'rejected' do not begin alike"),
        ("preference", {"chosen": [SKY, BLUE, SKY], "rejected": [SKY, BLUE]}, "'chosen' is the other one and more"),
        ("preference", {"chosen": [SKY, BLUE], "rejected": [user("?"), GREEN]}, "do not begin alike"),
        (
            "preference",
            {"prompt": [user("?")], "chosen": [SKY, BLUE], "rejected": [SKY, GREEN]},
            "whole conversations whose common beginning is not 'prompt'",
        ),
        (
            "preference",
            {"chosen": [SKY, BLUE, SKY, BLUE], "rejected": [SKY, GREEN, SKY, BLUE]},
            "'chosen after the common beginning' has 3 messages",
        ),
        ("preference", PLAIN_PAIR | {"ref_chosen_logps": -1.0}, "'ref_chosen_logps' is there and 'ref_rejected_logps'"),
        ("preference", PLAIN_PAIR | {"chosen_logps": 3.0, "rejected_logps": 1.0}, "chosen_logps=3.0: the log-prob"),
        ("preference", PLAIN_PAIR | {"chosen_reward": "1", "rejected_reward": 0}, 'chosen_reward="1": give a finite'),
        ("kto", PLAIN_SFT, "no column 'label', only 'prompt', 'completion'; a labelled line has"),
        ("kto", PLAIN_KTO | {"label": 1}, "label=1: give true"),
        ("kto", PLAIN_PAIR, "pairs are for a loss of pairs"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(write: Write, kind: Kind, row: Row, says: str) -> None:
    good = {"sft": PLAIN_SFT, "preference": PLAIN_PAIR, "kto": PLAIN_KTO}[kind]
    message = refusal(kind, write(good, row))
    assert message.startswith("rows.jsonl:2: ")
    assert says in message


def test_many_broken_lines_are_told_once_for_each_mistake(write: Write) -> None:
    empty, same = PLAIN_PAIR | {"chosen": ""}, PLAIN_PAIR | {"chosen": " green."}
    wrong = [PLAIN_PAIR | {"chosen": i} for i in range(6)]
    message = refusal("preference", write(PLAIN_PAIR, empty, same, empty, empty, *wrong))
    first, second, *_, last = message.splitlines()
    assert first.startswith("rows.jsonl:2: 'chosen' is empty")
    assert first.endswith("(and 2 more such lines, the next rows.jsonl:4)")
    assert second.startswith("rows.jsonl:3: 'chosen' and 'rejected' are the same")
    assert last == "and 3 other complaints; 10 lines are broken"


def test_a_whole_file_is_refused(write: Write, tmp_path: Path) -> None:
    chat = {"prompt": [SKY], "completion": [BLUE]}
    assert "rows.jsonl:2 is a conversation and" in refusal("sft", write(PLAIN_SFT, chat))
    assert "all 2 labels are true" in refusal("kto", write(PLAIN_KTO, PLAIN_KTO))
    assert "has no rows" in refusal("sft", write())
    assert "broken JSON" in refusal("sft", write("{"))
    Dataset.from_list([PLAIN_SFT]).select([]).to_parquet(str(tmp_path / "none.parquet"))
    assert "none.parquet has no rows" in refusal("sft", str(tmp_path / "none.parquet"))
    assert "cannot be read" in refusal("sft", write("not parquet", name="bad.parquet"))


def test_files_that_are_not_there_or_not_read(write: Write, tmp_path: Path) -> None:
    path = write(PLAIN_SFT, name="pairs.jsonl")
    for files, says in (
        ([str(tmp_path / "pair.jsonl")], "there is no such file; did you mean"),
        (["trl-lib/some_dataset"], "load_dataset(ID, split=NAME).to_json("),
        ([str(tmp_path)], f"is a folder; give a file in it, such as {path}"),
        ([write("a,b", name="a.csv")], ".csv is not read; make JSON lines of it, for example datasets.load_dataset('c"),
        ([path, path], "is given twice"),
    ):
        with pytest.raises(UserError, match=r"^data\.files=") as caught:
            check_files(files)
        assert says in str(caught.value)


# ---- the section of the configuration


def test_the_section_takes_the_rules_of_the_command_under_their_names() -> None:
    assert {"to", *Filter.model_fields} == set(Settings.__dataclass_fields__)
    data = Data.model_validate("pairs.jsonl")
    assert (data.files, data.filter) == (["pairs.jsonl"], None)
    rules = {"per_problem": 4, "pass_rate": "0.1:0.9", "reason": "correct, wrong"}
    data = Data.model_validate({"files": ["a", "b"], "filter": rules})
    assert data.filter is not None
    expected = Settings(to="sft", per_problem=4, pass_rate=(0.1, 0.9), reason=("correct", "wrong")).resolved()
    assert data.filter.settings("sft") == expected
    assert Data.model_validate(data.model_dump(mode="json")) == data
    assert Data.model_validate(["a", "b"]).files == data.files
    assert Filter().settings("kto") == Settings(to="kto").resolved()


def test_rules_are_refused_in_the_words_of_the_configuration() -> None:
    with pytest.raises(UserError) as caught:
        Filter(gap=0.5).settings("sft")
    assert str(caught.value) == "data.filter.gap is no rule of completions to imitate: give pairs"
    with pytest.raises(
        UserError, match=r"data\.filter\.reason corect: there is no such verdict; did you mean correct?"
    ):
        Filter.model_validate({"reason": "corect"}).settings("sft")
    with pytest.raises(UserError, match=r"data\.filter\.choose shortest says which data\.filter\.per_problem K"):
        Filter(choose="shortest").settings("sft")
    for wrong in ({"pass_rate": "0.9:0.1"}, {"pass_rate": 0.5}, {"pass_rate": "a:b"}, {"dedup": "yes"}, {"gaps": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Filter.model_validate(wrong)
    message = "my--file, --to nowhere, --out: --min-tokens"
    assert keys_for_flags(message) == "my--file, --to nowhere, --out: data.filter.min_tokens"


# ---- samples


def sample(completion: str, reward: float | None, problem: str = "p", **rest: Any) -> Row:
    verdict = "unknown" if reward is None else "correct" if reward else "wrong"
    row = {"problem": problem, "prompt": f"{problem}?", "completion": completion, "reward": reward, "reason": verdict}
    return row | {"finish_reason": "stop"} | rest


@pytest.mark.parametrize(("kind", "to"), [("sft", "sft"), ("preference", "pairs"), ("kto", "kto")])
def test_samples_give_the_examples_that_the_command_would_write(
    write: Write, tmp_path: Path, kind: Kind, to: str
) -> None:
    file = write(
        *(sample(f"so {n}", float(n == 7), problem, answer=str(n)) for problem in "pqr" for n in range(5, 9)),
        sample("so", None),
    )
    out = tmp_path / "out.jsonl"
    filter_command([Path(file)], Settings(to=to, dedup="answer"), out)
    found = read_examples(Data(files=[file], filter=Filter(dedup="answer")), kind)
    of_file = read(kind, str(out))
    assert found.report.splitlines()[2].split() == ["undecided", "verdict", "1", "12", "3"]

    def learnt(rows: list[RawExample]) -> list[Any]:
        return [(r.prompt, [(c.text, c.finish_reason) for c in r.completions], r.label, r.problem) for r in rows]

    assert learnt(found.rows) == learnt(of_file)
    assert found.rows[0].where.startswith(f"{file}:3" if kind != "kto" else f"{file}:")
    assert {c.reward for r in found.rows for c in r.completions} == ({1.0} if kind == "sft" else {0.0, 1.0})


def test_what_the_filter_cannot_use_is_told_with_keys(write: Write) -> None:
    assert "data.filter.pass_rate tells which" in refusal("preference", write(sample("a", 1.0)), filter=Filter())
    assert "has no field 'problem'" in refusal("sft", write(PLAIN_SFT), filter=Filter())


# ---- tokens


def raw(prompt: Any, *completions: Any, **rest: Any) -> RawExample:
    return RawExample("f:1", prompt, tuple(RawCompletion(text) for text in completions), **rest)


def test_plain_text_ends_where_the_model_is_to_stop() -> None:
    encode = plain_encoder()
    eos = encode.tokenizer.eos_token_id
    # several tokens a character: nothing is lost at the boundary
    example = encode.example(raw("名前は√", "é🙂 ok"))
    assert example.prompt.token_ids == tuple(encode.tokenizer("名前は√")["input_ids"])
    assert example.completion.token_ids == (*encode.tokenizer("é🙂 ok")["input_ids"], eos)
    assert example.completion.logprobs == (0.0,) * len(example.completion.token_ids)
    # the end is not doubled, and is no text
    assert encode.example(raw("a", "b<eos>")).completion == encode.example(raw("a", "b")).completion
    cut = RawExample("f:1", "a", (RawCompletion("b", "length"),))
    assert decoded(encode, encode.example(cut).completion.token_ids) == "b"
    with pytest.raises(UserError, match=r"^a completion has '<eos>' in it"):
        encode.example(raw("a", "b<eos>c"))
    batch = pad_rows([(example.prompt, example.completion)], [True], 0)
    assert batch.loss_mask.sum() == len(example.completion.token_ids)


def test_a_conversation_is_what_the_template_writes_up_to_the_end_of_the_turn() -> None:
    encode = chat_encoder()
    pair = encode.pair(raw([SYSTEM, SKY], [BLUE], [GREEN]))
    rendered = "<im_start>system\nBe brief.<eos>\n<im_start>user\nWhat colour is the sky?<eos>\n<im_start>assistant\n"
    assert (pair.prompt.text, decoded(encode, pair.prompt.token_ids)) == (rendered, rendered)
    assert decoded(encode, pair.chosen.token_ids) == "It is blue.<eos>"  # without the newline behind it
    assert decoded(encode, pair.rejected.token_ids) == "It is green.<eos>"
    assert pair.chosen.text == "It is blue."
    # token for token what the template makes of the whole conversation, which is what TRL trains on
    whole = encode.tokenizer.apply_chat_template([SYSTEM, SKY, BLUE], return_dict=True)["input_ids"]
    assert [*pair.prompt.token_ids, *pair.chosen.token_ids] == whole[:-1]
    cut = RawExample("f:1", [SKY], (RawCompletion([BLUE], "length"),))
    assert decoded(encode, encode.example(cut).completion.token_ids) == "It is blue."


def test_a_turn_that_ends_in_no_token_the_sampler_stops_at_gets_one() -> None:
    """As in base models that come with a chat template: their end of a turn is a token like any other."""
    encode = chat_encoder(CHATML.replace("<eos>", "<end>"))
    ids = encode.example(raw([SKY], [BLUE])).completion.token_ids
    assert decoded(encode, ids) == "It is blue.<end><eos>"
    # and with two ends, the first is the last that is trained
    twice = chat_encoder(CHATML.replace("<eos>", "<pad>\n<eos>"), ends=(0, 1))
    assert decoded(twice, twice.example(raw([SKY], [BLUE])).completion.token_ids) == "It is blue.<pad>"


def test_the_boundary_is_that_of_sampling() -> None:
    """Not where one token would span prompt and completion; and without the space that some put before each text."""
    encode = chat_encoder()
    alone = encode.prompt(raw([SKY])).token_ids
    encode.tokenizer.add_tokens(["\nIt"])
    pair = encode.pair(raw([SKY], [BLUE], [assistant("Blue.")]))
    assert pair.prompt.token_ids == alone
    assert decoded(encode, pair.chosen.token_ids) == "It is blue.<eos>"

    tokenizer = letter_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ '<eos>' if loop.index == 2 }}{% endfor %}"
    example = encoder(tokenizer, frozenset([0])).example(raw([user("ask:\n")], [assistant("so it is")]))
    tokens = tokenizer.convert_ids_to_tokens([*example.prompt.token_ids, *example.completion.token_ids])
    assert "".join(tokens) == "▁ask:\nso▁it▁is<eos>"


def test_templates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"^the chat template writes '<t>' where the assistant is to speak, and some"):
        chat_encoder(THINKING).example(raw([SKY], [BLUE]))
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"^the chat template refuses the conversation: roles must alternate"):
        chat_encoder(strict).example(raw([SKY, SKY], [BLUE]))
    with pytest.raises(UserError, match=r"^this is a conversation, and the model's tokenizer has no chat template"):
        plain_encoder().example(raw([SKY], [BLUE]))


def test_a_prompt_of_samples_reads_as_it_was_sampled_from() -> None:
    """Rendered by the template it is text with the special tokens written out; what follows ends as its turns do."""
    encode = chat_encoder("<pad>" + CHATML.replace("<eos>", "<stop>"), bos="<pad>")
    conversation = encode.example(raw([SKY], [BLUE]))
    text = encode.example(raw(conversation.prompt.text, "It is blue.<stop>"))
    assert (text.prompt.token_ids, text.completion.token_ids) == (
        conversation.prompt.token_ids,
        conversation.completion.token_ids,
    )
    gemma = chat_encoder(CHATML.replace("<eos>", "<pad>"), ends=(0, 1))  # ends turns otherwise than its sequences
    turn = gemma.example(raw([SKY], [BLUE]))
    assert gemma.example(raw(turn.prompt.text, "It is blue.")).completion == turn.completion
    assert decoded(gemma, gemma.example(raw("Sky? ", "Blue.")).completion.token_ids) == "Blue.<eos>"


def test_one_beginning_of_sequence_whoever_writes_it() -> None:
    from tokenizers.processors import TemplateProcessing

    with_bos, without = "<pad>" + CHATML, CHATML
    for template in (with_bos, without):
        tokenizer: PreTrainedTokenizerBase = character_tokenizer()
        tokenizer.chat_template, tokenizer.bos_token = template, "<pad>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<pad> $A", special_tokens=[("<pad>", tokenizer.bos_token_id)]
        )
        encode = encoder(tokenizer, frozenset([tokenizer.eos_token_id]))
        sampled_from = encode.prompt(raw([SKY]))
        count = Counter(sampled_from.token_ids)[0]
        assert count == (1 if template == with_bos else 0)
        assert encode.prompt(raw(sampled_from.text)).token_ids == sampled_from.token_ids
        assert encode.prompt(raw("plain")).token_ids[:2] == (0, *tokenizer("p", add_special_tokens=False)["input_ids"])
        assert 0 not in encode.example(raw("plain", "b")).completion.token_ids


# ---- what only the tokenizer or its template refuses, found before the run begins

STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
SILENT = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}"


def letter_encoder() -> Encoder:
    return encoder(letter_tokenizer(space=False), frozenset([0]))


def outcome(does: Callable[[RawExample], object], row: RawExample) -> str:
    try:
        does(row)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("encode", "prompt", "completion", "finish", "says"),
    [
        (plain_encoder(), "a", "b", "stop", ""),
        (plain_encoder(), "a", "b<eos>", "stop", ""),
        (plain_encoder(), "a", "b<eos>c", "stop", "a completion has '<eos>' in it"),
        (plain_encoder(), "a", "<eos>", "stop", ""),
        (plain_encoder(), "a", "<eos>", "length", "the completion '' makes no token; delete the line"),
        (plain_encoder(), "...", "!", "length", ""),
        (plain_encoder(), [SKY], [BLUE], "stop", "this is a conversation, and the model's tokenizer has no chat t"),
        (letter_encoder(), "sky", "BLUE", "stop", ""),
        (letter_encoder(), "sky", "BLUE", "length", "the completion 'BLUE' makes no token; delete the line"),
        (letter_encoder(), "SKY", "blue", "stop", "the prompt 'SKY' makes no token; fill it in or delete the line"),
        (chat_encoder(), [SKY], [BLUE], "length", ""),
        (chat_encoder(), [SKY], [assistant("yes<eos> no")], "stop", "a completion has '<eos>' in it"),
        (chat_encoder(STRICT), [SYSTEM, SKY], [BLUE], "stop", "the chat template refuses the conversation: no system"),
        (
            chat_encoder(THINKING),
            [SKY],
            [BLUE],
            "stop",
            "the chat template writes '<t>' where the assistant is to speak",
        ),
        (chat_encoder(SILENT), [SKY], [BLUE], "stop", ""),
        (chat_encoder(SILENT), [SKY], [BLUE], "length", "the completion 'It is blue.' makes no token; delete the li"),
        (chat_encoder("{{ '' }}"), [SKY], [BLUE], "stop", "the prompt '' makes no token; fill it in or delete the li"),
    ],
)
def test_the_check_refuses_what_cannot_be_tokenised_and_nothing_else(
    encode: Encoder, prompt: Any, completion: Any, finish: Any, says: str
) -> None:
    row = RawExample("f:1", prompt, (RawCompletion(completion, finish),))
    found = outcome(encode.check, row)
    assert found == outcome(encode.example, row)
    assert found.startswith(says)
    assert bool(found) == bool(says)


def test_plain_text_is_checked_without_making_tokens() -> None:
    encode = plain_encoder()
    unable = replace(encode, tokenizer=SimpleNamespace(chat_template=None))  # whoever calls it gets a TypeError
    unable.check(raw("Sky?", "blue", "green"))
    unable.check(RawExample("f:1", "Sky?", (RawCompletion("blue", "length"),)))
    with pytest.raises(TypeError):
        unable.check(raw("?!", "blue"))


@pytest.mark.parametrize("checked", [True, False])
def test_broken_lines_are_told_when_the_stream_is_made(write: Write, checked: bool) -> None:
    broken = PLAIN_PAIR | {"chosen": "yes<eos>yes"}
    rows = read("preference", write(PLAIN_PAIR, broken, *[PLAIN_PAIR] * 5, broken, broken))
    encode = plain_encoder()
    with pytest.raises(UserError) as caught:
        ExampleStream(rows, encode.pair, seed=0, room=99, check=encode.check if checked else None)
    file = rows[0].where.removesuffix(":1")
    assert str(caught.value) == (
        f"{file}:2: a completion has '<eos>' in it, where the model would have stopped; take it out "
        f"(and 2 more such lines, the next {file}:8)"
    )
    unchecked = ExampleStream(rows, encode.pair, seed=0, room=99, order="file", check=lambda _: None)
    with pytest.raises(UserError, match=f"^{file}:2: a completion has"):
        unchecked.take(2)
    chat = [RawExample(f"c:{i}", [SKY], (RawCompletion([assistant(f"{i}")]),)) for i in range(1, 4)]
    with pytest.raises(UserError, match=r"^c:1: the chat template writes .* \(and 2 more such lines, the next c:2\)$"):
        ExampleStream(chat, chat_encoder(THINKING).example, seed=0, room=99)


# ---- the stream


def stream(count: int = 10, room: int = 20, **options: Any) -> ExampleStream[Pair]:
    rows = [raw(f"{i}?", f"yes{i}", f"no{i}") for i in range(count)]
    return ExampleStream(rows, plain_encoder().pair, seed=3, room=room, **options)


def questions(pairs: list[Pair]) -> list[str]:
    return [pair.prompt.text for pair in pairs]


def test_each_epoch_has_every_example_once_in_an_order_of_the_seed() -> None:
    by_three, at_once = stream(), stream()
    taken = [q for _ in range(7) for q in questions(by_three.take(3))]
    assert questions(at_once.take(21)) == taken  # however they are taken
    assert set(taken[:10]) == set(taken[10:20]) == {f"{i}?" for i in range(10)}
    assert taken[:10] != taken[10:20]
    assert by_three.epoch == 2
    assert questions(stream(order="file").take(11)) == [*(f"{i}?" for i in range(10)), "0?"]


def test_a_stream_goes_on_where_it_was() -> None:
    first = stream(parts=2)
    first.part = 1
    first.take(7)
    state = json.loads(json.dumps(first.state()))
    again = stream(parts=2)
    again.restore(state)
    assert questions(again.take(9)) == questions(first.take(9))
    assert (again.epoch, again.part, again.state()) == (first.epoch, 1, first.state())
    with pytest.raises(UserError, match="made with 10 examples, now there is 11, or other ones; put data back"):
        stream(11, parts=2).restore(state)
    with pytest.raises(UserError, match="made with parts=2, now there is parts=1; put it back"):
        stream().restore(state)


def test_parts_are_drawn_from_one_after_the_other() -> None:
    parted = stream(10, parts=3)
    for number, expected in enumerate((range(3), range(3, 6), range(6, 10))):
        parted.part = number
        assert set(questions(parted.take(2 * len(expected)))) == {f"{i}?" for i in expected}
        assert parted.epoch == 1
    with pytest.raises(UserError, match=r"stages=3: data.files hold 2 examples"):
        stream(2, parts=3)


def test_what_is_too_long_is_passed_over_or_cut() -> None:
    def rows() -> Iterator[RawExample]:
        yield raw("1?", "fits", "so")
        yield raw("2?", "far too long", "so")
        yield raw("the prompt alone fills it", "x", "y")
        yield raw("3?", "same beginning", "same begins")

    encode = plain_encoder()
    dropping = ExampleStream(list(rows()), encode.pair, seed=0, room=8)
    assert set(questions(dropping.take(3))) == {"1?"}
    assert 6 <= dropping.too_long <= 9
    cutting = ExampleStream(list(rows()), encode.pair, seed=0, room=8, truncate=True)
    cut = {pair.prompt.text: pair for pair in cutting.take(4)}
    assert set(cut) == {"1?", "2?"}  # cut, the last two completions would be the same
    assert decoded(encode, cut["2?"].chosen.token_ids) == "far to"
    assert (cut["2?"].chosen.finish_reason, cut["2?"].rejected.finish_reason) == ("length", "stop")
    assert decoded(encode, cut["1?"].chosen.token_ids) == "fits<eos>"
    assert len(cut["2?"].chosen.logprobs) == 6
    with pytest.raises(UserError, match=r"8 examples in a row have more than 2 tokens.*data\.too_long=truncate"):
        ExampleStream(list(rows()), encode.pair, seed=0, room=2).take(1)


def test_a_cut_pair_forgets_the_log_probabilities_of_the_whole() -> None:
    known = RawExample("f:1", "1?", (RawCompletion("abcdef", logprobs=-1.0), RawCompletion("b", logprobs=-2.0)))
    pair = plain_encoder().pair(known)
    assert pair.fitted(99, True) is pair
    cut = pair.fitted(5, True)
    assert cut is not None
    assert (pair.behaviour, cut.behaviour) == ((-1.0, -2.0), None)
    assert math.isclose(sum(cut.chosen.logprobs), 0.0)


# ---- all of it, on real problems


def test_worked_solutions_in_the_hands_of_datasets_train_as_they_are(shared: Path, tmp_path: Path) -> None:
    data = load_dataset("json", data_files=str(shared / "data" / "gsm8k_test.jsonl"), cache_dir=str(tmp_path / "cache"))
    columns = {"question": "prompt", "answer": "completion"}
    file = str(tmp_path / "gsm8k.parquet")
    data["train"].select(range(40)).rename_columns(columns).select_columns(list(columns.values())).to_parquet(file)
    encode = plain_encoder()
    found = ExampleStream(read("sft", file), encode.example, seed=0, room=4096).take(40)
    assert len({example.where for example in found}) == 40
    for example in found:
        assert decoded(encode, example.completion.token_ids) == example.completion.text + "<eos>"
