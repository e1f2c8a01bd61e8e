"""Where steps end, at which token, and how right they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from grpo_math.examples.chat import common_beginning
from grpo_math.small_model import character_tokenizer
from grpo_math.steps.places import offset_ends, step_tokens, token_ends
from grpo_math.steps.split import BOUNDARIES, boundary, pieces
from grpo_math.steps.values import Search, Solution, Value, estimate, first_wrong, hard, prefixes_of, soft
from grpo_math.types import Problem, Prompt, UserError, Verdict

WORDS = [
    "Step 1: we add",
    "the answer is 3.5.\n",
    "na\u00efve",
    "\u0434\u0430 \u043a\u0438",
    "\U0001f600\U0001f468\u200d\U0001f469",
]


def byte_level() -> PreTrainedTokenizerBase:
    """Like GPT-2's: merges within and across the bytes of a letter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    return with_added(tokenizer)


def byte_fallback(strip: bool = True) -> PreTrainedTokenizerBase:
    """Like Llama 2's: pieces with spaces, and a byte a token for what there is no piece of, line breaks too."""
    letters = "\u2581abcdeghinrstw.:,0123456789\u00e9\u0434"
    names = ["<unk>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "\u2581a", "an", "\u2581an"]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[("\u2581", "a"), ("a", "n"), ("\u2581a", "n")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    begins = [normalizers.Prepend("\u2581")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*begins, normalizers.Replace(" ", "\u2581")])
    ends = [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.add_special_tokens(["<eos>"])
    return with_added(tokenizer)


def word_piece() -> PreTrainedTokenizerBase:
    """Of neither kind: "un ##able" is one word, and a space is put between words."""
    names = ["[UNK]", "<eos>", "un", "##able", "we", "add", ".", "##s"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return with_added(tokenizer)


def with_added(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<tool call>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


TOKENIZERS = {
    "byte_level": byte_level(),
    "characters": character_tokenizer(),
    "byte_fallback": byte_fallback(),
    "byte_fallback_kept": byte_fallback(strip=False),
    "word_piece": word_piece(),
}
NAMES = st.sampled_from(sorted(TOKENIZERS))
TEXTS = st.lists(st.sampled_from([*WORDS, " ", "\n", "<eos>", "<think>", "\u20ac", "\ufffd", "an a"]), max_size=8).map(
    "".join
)


def by_definition(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """What the text has in common with each of its beginnings."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    begun = [tokenizer.decode(list(ids[: t + 1]), skip_special_tokens=True) for t in range(len(ids))]
    common = [common_beginning(text, b) for b in begun]
    return [max(common[: t + 1]) for t in range(len(common))]


@given(NAMES, TEXTS)
def test_the_characters_that_are_complete_after_each_token(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text)["input_ids"]
    ends = token_ends(tokenizer, ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ends) == len(ids)
    if "\ufffd" not in decoded:
        assert ends == by_definition(tokenizer, ids)
    if ids:
        assert ends[-1] == len(decoded)


@given(NAMES, st.data())
def test_any_tokens_that_a_model_may_draw(name: str, data: st.DataObject) -> None:
    """Half letters, tokens of the table that no text gives, special ones between the bytes of a letter."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=24))
    ends = token_ends(tokenizer, ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert not ids or ends[-1] == len(text)
    said = by_definition(tokenizer, ids)
    assert all(end <= bound or "\ufffd" in text[:end] for end, bound in zip(ends, said, strict=True))


def test_letters_of_several_bytes_by_hand() -> None:
    tokenizer = character_tokenizer()
    eos = tokenizer.eos_token_id
    ids = tokenizer("a\u20ac\n")["input_ids"]
    assert token_ends(tokenizer, [*ids, eos]) == [1, 1, 1, 2, 3, 3]
    assert token_ends(tokenizer, [*ids[:2], eos, *ids[2:]]) == [1, 1, 1, 1, 2, 3]
    assert token_ends(tokenizer, ids[:3]) == [1, 1, 2]  # cut: two bytes of three are one U+FFFD
    llama = byte_fallback()
    ids = llama("an\n\U0001f600")["input_ids"]
    assert llama.convert_ids_to_tokens(ids) == ["\u2581an", "<0x0A>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
    assert token_ends(llama, ids) == [2, 3, 3, 3, 3, 4]
    # cut, and the line break before it is among the bytes that are no text: one U+FFFD each
    assert llama.decode(ids[:-1]) == "an" + 4 * "\ufffd"
    assert token_ends(llama, ids[:-1]) == [2, 3, 4, 5, 6]
    assert token_ends(tokenizer, []) == []


def test_the_known_kinds_need_one_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of each beginning would take a time that grows with its square."""
    texts = ["".join(WORDS) * 50, "an " * 2000]
    for name in ("byte_level", "characters", "byte_fallback", "byte_fallback_kept"):
        tokenizer, decoded = TOKENIZERS[name], list[int]()
        decode = tokenizer.decode

        def counted(ids: list[int], decode: Any = decode, decoded: list[int] = decoded, **how: Any) -> Any:
            decoded.append(len(ids))
            return decode(ids, **how)

        monkeypatch.setattr(tokenizer, "decode", counted)
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            decoded.clear()
            assert token_ends(tokenizer, ids)[-1] == len(str(decode(ids, skip_special_tokens=True)))
            assert decoded == [len(ids)]


@given(NAMES, TEXTS)
def test_offsets_of_a_tokenised_text(name: str, text: str) -> None:
    """Of a text with nothing special in it both ways agree, but for the space that sentencepiece drops."""
    tokenizer = TOKENIZERS[name]
    text = text.replace("<eos>", "").replace("<think>", "").replace("<tool call>", "")
    encoded = tokenizer(text, return_offsets_mapping=True)
    ends = offset_ends(encoded["offset_mapping"], len(text))
    assert ends == sorted(ends)
    if tokenizer.decode(encoded["input_ids"]) == text:
        mine = token_ends(tokenizer, encoded["input_ids"])
        assert [e for e in mine if text[e - 1 : e] != " "] == [
            e for e, m in zip(ends, mine, strict=True) if text[m - 1 : m] != " "
        ]


def test_offsets_by_hand() -> None:
    # <s> a[euro in two tokens] " b" </s>, then a space that the tokenizer dropped
    assert offset_ends([(0, 0), (0, 1), (1, 2), (1, 2), (3, 4), (0, 0)], 5) == [0, 1, 1, 2, 5, 5]
    assert offset_ends([], 0) == []
    assert step_tokens([0, 1, 1, 3, 5, 5], [1, 2, 5]) == [1, 3, 4]  # 2 is within a token, which ends that step


PIECES = ["\n", "\n\n", " ", ". ", "$x. y$", "e.g. ", "\\[", "\\]", "$", "Step 2:", "\u043a\u0438", "\r\n", "!"]


@given(st.sampled_from(sorted(BOUNDARIES)), st.lists(st.sampled_from([*WORDS, *PIECES]), max_size=12).map("".join))
def test_steps_join_to_the_text(name: str, text: str) -> None:
    ends = boundary(name)(text)
    steps = pieces(text, ends)
    assert "".join(steps) == (text if text.strip() else "")
    assert all(step.strip() for step in steps)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("blank_line", ["\nA.\nB\n \n\n", "  C\r\n\r\n", "D \n"]),
        ("newline", ["\nA.\n", "B\n \n\n", "  C\r\n\r\n", "D"]),
        ("step", ["So.\n", "Step 1: as in step 2: a", " Step 2: b\n\n", "**Step 3:** c\n", "## STEP 4\nd\n"]),
        ("sentence", ["He pays $5.", " It is $3.50, i.e. John has $8.50.", " So 5! = 120.", ' "Is it?"', " Yes!\n"]),
        ("sentence", ["Thus $x = 3.$", " Now $a. B$ and \\[ c.\n D \\] as Dr. Li (Fig. 3) says.\n", "1. Add."]),
        ("sentence", ["1 + ... + 9 = 45 at 5 p.m. or so, No. 7.", " No.", " x = 3.", " (See 12 in. cubes etc.)"]),
        ("sentence", ["\u662f\u3002", "\u5426\uff01\n", "2. Add.\n", "b. Use\n"]),
        ("marker", ["Step 1: a \u043a\u0438", "\nStep 2: b \u043a\u0438"]),
        ("marker:<|s|>", ["a<|s|>", "b \u043a\u0438"]),
    ],
)  # fmt: skip
def test_steps_by_hand(name: str, steps: list[str]) -> None:
    text = "".join(steps)
    assert pieces(text, boundary(name)(text)) == steps


def test_a_boundary_that_there_is_not() -> None:
    with pytest.raises(UserError, match=r"unknown boundary 'newlines'; did you mean 'newline'\?; known: blank_line, "):
        boundary("newlines")
    with pytest.raises(UserError, match=r"'marker: ' has no marker behind the colon; write marker:TEXT"):
        boundary("marker: ")


# ---- values

RIGHT, WRONG, LOST = Verdict(1.0, "correct"), Verdict(0.0, "wrong"), Verdict(None, "timeout")


def solution(problem: str, tokens: Sequence[int], verdict: Verdict) -> Solution:
    """A step a token."""
    prompt = Prompt(Problem(problem, "t", problem, "1"), (100,), problem)
    return Solution(prefixes_of(prompt, tokens, range(len(tokens))), verdict)


class Policy:
    """Goes on rightly from a prefix without a token of 9, or as `verdicts` says of the last token. Remembers."""

    def __init__(self, verdicts: dict[int, list[Verdict]] | None = None) -> None:
        self.verdicts, self.calls = verdicts or {}, list[list[tuple[int, ...]]]()

    def __call__(self, prefixes: list[Prompt], n: int, seed: int) -> list[list[Verdict]]:
        assert seed == 5
        self.calls.append([prefix.token_ids[1:] for prefix in prefixes])
        return [self.verdicts.get(p.token_ids[-1], [WRONG if 9 in p.token_ids else RIGHT] * n) for p in prefixes]


def test_the_value_of_every_prefix() -> None:
    policy = Policy({2: [RIGHT, WRONG, LOST, RIGHT], 3: [LOST] * 4, 4: [WRONG, WRONG, WRONG, LOST]})
    found = estimate([solution("p", (1, 2, 3, 4, 5), WRONG), solution("p", (1, 7), LOST)], 4, policy, 5)
    assert policy.calls == [[(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]]  # equal prefixes once, and nothing of the wholes
    assert found[0] == (Value(4, 4), Value(2, 3, 1), Value(0, 0, 4), Value(0, 3, 1), Value(0, 1))
    assert found[1] == (Value(4, 4), Value(0, 0, 1))
    assert soft(found[0]) == (1.0, 2 / 3, None, 0.0, 0.0)
    assert hard(found[0]) == (1.0, 1.0, None, 0.0, 0.0)


def test_a_budget_is_a_problems_and_ends_with_the_last_prefixes() -> None:
    asked = [solution("p", (1, 2, 3), RIGHT), solution("p", (4, 5), RIGHT), solution("q", (6, 9), WRONG)]
    found = estimate(asked, 4, Policy(), 5, budget=11)
    assert found == [(Value(4, 4), Value(4, 4), Value(1, 1)), (None, Value(1, 1)), (Value(4, 4), Value(0, 1))]
    assert estimate([solution("p", (1,), RIGHT)], 4, Policy(), 5) == [(Value(1, 1),)]  # one step: nobody to ask


@pytest.mark.parametrize("first", range(8))
def test_the_first_wrong_step_by_binary_search(first: int) -> None:
    tokens = [9 if i == first else i + 10 for i in range(8)]
    policy = Policy()
    (found,) = first_wrong([solution("p", tokens, WRONG)], 4, policy, 5)
    assert found.first_wrong == first
    assert found.labels == (1.0,) * first + (0.0,) * (8 - first)
    assert len(policy.calls) == 3  # log2(8)
    assert sum(value is not None for value in found.values) == 4  # and the whole


def test_searches_ask_together_and_end_early() -> None:
    policy = Policy({12: [LOST] * 4})
    asked = [
        solution("p", (10, 9, 11, 13), WRONG),
        solution("q", (11, 12, 9, 13), WRONG),  # its middle has no verdict
        solution("r", (10, 9, 11, 13), WRONG),
        solution("s", (1, 2), RIGHT),  # is right itself
        solution("t", (1, 2), LOST),
    ]
    found = first_wrong(asked, 4, policy, 5, budget=7)
    assert policy.calls == [[(10, 9), (11, 12), (10, 9)]]
    none = None
    assert found[0] == Search(0, 2, (none, Value(0, 4), none, Value(0, 1)), stuck=True)
    assert found[0].labels == (None, 0.0, 0.0, 0.0)
    assert found[1] == Search(0, 4, (none, Value(0, 0, 4), none, Value(0, 1)), stuck=True)
    assert found[1].labels == (None, None, None, 0.0)
    assert found[3].labels == (1.0, 1.0)
    assert found[4].labels == (None, None)
    assert [search.first_wrong for search in found] == [None] * 5
    assert first_wrong(asked, 4, Policy(), 5)[0].first_wrong == 1
