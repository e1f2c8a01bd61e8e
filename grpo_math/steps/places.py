"""Characters of a text <-> its tokens: how much of the text is complete after each token, and so where a step ends.

For sampled tokens (`token_ends`: nothing is tokenised again), and for a text that was tokenised with offsets
(`offset_ends`). Left out: where in the text the steps end (split.py).
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE_OF = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}  # of byte-level tokenizers
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # of tokenizers that fall back to bytes
SPACE = "\u2581"  # how sentencepiece writes a space
REPLACEMENT = "\ufffd"

Pieces = Callable[[Sequence[str]], Iterator[str]]  # tokens -> the characters that each of them completes


def token_ends(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[int]:
    """For each token, how many characters of the decoded text are complete after it.

    The text is that of Completion.text, tokenizer.decode(token_ids, skip_special_tokens=True): ends[-1] is its length,
    ends never fall, and text[:ends[t]] is what tokens 0 to t say of it. A character whose bytes are spread over several
    tokens is complete with the last of them; bytes that make no character are U+FFFD in the text, and complete as soon
    as that is certain. A special token completes nothing.

    Linear in the tokens for byte-level tokenizers and those with byte fallback, which all of today's language models
    have; for any other kind each beginning is decoded, which is quadratic."""
    ids = [int(i) for i in token_ids]
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    pieces = _pieces_of(tokenizer)
    if pieces is None:
        return _by_beginnings(tokenizer, ids, text)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    # "" says nothing, as decoding has it: special tokens, and rows of the model's table that no token belongs to
    names = ["" if i in special or name is None else name for i, name in _named(tokenizer, ids)]
    parts = list(pieces(names))
    joined = "".join(parts)
    stripped = joined.startswith(" ") and joined[1:] == text  # sentencepiece: the space before the first word
    if joined != text and not stripped:
        return _by_beginnings(tokenizer, ids, text)
    ends, end = [], -1 if stripped else 0
    for part in parts:
        end += len(part)
        ends.append(max(end, 0))
    return ends


def offset_ends(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The same of a text that was tokenised with return_offsets_mapping=True.

    offsets: (start, end) of each token in characters. A character of several tokens is in the offsets of each of them,
    and complete with the last. A token without characters, as special ones are (0, 0), completes nothing."""
    ends = [0] * len(offsets)
    end, begins = 0, None  # begins: where the next token that has characters begins
    for t, (start, stop) in reversed(list(enumerate(offsets))):
        if stop > start:
            ends[t] = stop if begins is None else min(stop, begins)
            begins = start
    for t, stop in enumerate(ends):
        ends[t] = end = max(end, stop)
    return ends


def step_tokens(ends: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """The index of the token at which each step ends: the first after which all of its characters are complete.

    ends: of `token_ends` or `offset_ends`. offsets: where the steps end in the text, rising. A token with the end of a
    step and the beginning of the next ends the first; two steps that end within one token share it."""
    assert not offsets or (ends and offsets[-1] <= ends[-1]), "the steps are not those of this text"
    return [bisect_left(ends, offset) for offset in offsets]


# ---- tokens -> what each of them completes


def _pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """By what its decoder makes of a token that tells its kind; None for a kind that is not known here."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = None if backend is None else backend.decoder
    if decoder is None:
        return None
    return next((pieces for probe, text, pieces in KINDS if decoder.decode(["a", probe]) == f"a{text}"), None)


def _byte_level(names: Sequence[str]) -> Iterator[str]:
    """Each letter of a token stands for a byte; a token with another letter in it stands for itself."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for t, name in enumerate(names):
        known = all(letter in BYTE_OF for letter in name)
        said = b"".join(BYTE_OF[letter] for letter in name) if known else name.encode()
        yield decoder.decode(said, final=t == len(names) - 1)


def _byte_fallback(names: Sequence[str]) -> Iterator[str]:
    """Text, or <0xE2> for a byte. Bytes beside each other are characters if all of them are: else each is U+FFFD."""
    for is_byte, group in groupby(_joined_by_nothing(names), lambda item: BYTE_TOKEN.fullmatch(item[0]) is not None):
        for name, silent in group if not is_byte else _characters(list(group)):
            yield from (name.replace(SPACE, " "), *[""] * silent) if not is_byte else (name, *[""] * silent)


KINDS: tuple[tuple[str, str, Pieces], ...] = (("\u0120", " ", _byte_level), ("<0x41>", "A", _byte_fallback))
