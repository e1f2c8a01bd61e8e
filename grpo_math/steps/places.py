"""Characters of a text <-> its tokens: how much of the text is complete after each token, and so where a step ends.

For sampled tokens (`token_ends`: nothing is tokenised again), and for a text that was tokenised with offsets
(`offset_ends`). Left out: where in the text the steps end (split.py).
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from grpo_math.examples.chat import common_beginning

BYTE_OF = {letter: bytes([byte]) for byte, letter in bytes_to_unicode().items()}  # of byte-level tokenizers
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")  # of tokenizers that fall back to bytes
SPACE = "\u2581"  # how sentencepiece writes a space
REPLACEMENT = "\ufffd"

Pieces = Callable[[Sequence[str]], list[str]]  # tokens -> the characters that each of them completes


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
    tokens = tokenizer.convert_ids_to_tokens(ids)
    names = ["" if i in special or name is None else name for i, name in zip(ids, tokens, strict=True)]
    parts = pieces(names)
    joined = "".join(parts)
    stripped = joined.startswith(" ") and joined[1:] == text  # sentencepiece: the space before the first word
    if joined != text and not stripped:
        return _by_beginnings(tokenizer, ids, text)
    ends, end = [], -1 if stripped else 0
    for part in parts:
        end += len(part)
        ends.append(max(end, 0))
    return ends


def offset_ends(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """The same of a text that was tokenised with return_offsets_mapping=True.

    offsets: (start, end) of each token in characters; (0, 0) of a special one, which completes nothing. A character of
    several tokens is in the offsets of each of them, and complete with the last. length: of the text; characters at its
    end that no token has, such as a space that the tokenizer drops, count to the last token that has some."""
    ends, begins, last = [0] * len(offsets), length, None  # begins: where the next token that has characters begins
    for t, (start, stop) in reversed(list(enumerate(offsets))):
        ends[t] = min(stop, begins)
        if stop > start:
            begins = start
            last = t if last is None else last
    if last is not None:
        ends[last] = length
    return list(accumulate(ends, max))


def step_tokens(ends: Sequence[int], offsets: Sequence[int]) -> list[int]:
    """The index of the token at which each step ends: the first after which all of its characters are complete.

    ends: of `token_ends` or `offset_ends`. offsets: where the steps end in the text, rising. A token with the end of a
    step and the beginning of the next ends the first; two steps that end within one token share it."""
    assert not offsets or (ends and offsets[-1] <= ends[-1]), "the steps are not those of this text"
    return [bisect_left(ends, offset) for offset in offsets]


# ---- tokens -> what each of them completes


def _pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """By what its decoder makes of a token that only its kind has; None for a kind that is not known here."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    return next((pieces for probe, text, pieces in KINDS if decoder.decode(["a", probe]) == f"a{text}"), None)


def _byte_level(names: Sequence[str]) -> list[str]:
    spelt = {name: _spelt(name) for name in set(names)}
    return _characters([spelt[name] for name in names])


def _spelt(name: str) -> bytes:
    """Each letter of a token stands for a byte; a token with any other letter stands for itself."""
    if all(letter in BYTE_OF for letter in name):
        return b"".join(BYTE_OF[letter] for letter in name)
    return name.encode()


def _byte_fallback(names: Sequence[str]) -> list[str]:
    """A token is text, or <0xE2> for a byte. Bytes one after the other are characters if all of them together are;
    else each of them is U+FFFD."""
    parts = [name.replace(SPACE, " ") for name in names]
    byte = {t: bytes.fromhex(name[3:5]) for t, name in enumerate(names) if BYTE_TOKEN.fullmatch(name)}
    for is_byte, group in groupby((t for t, name in enumerate(names) if name), byte.__contains__):
        if is_byte:
            run = list(group)
            said = _characters([byte[t] for t in run])
            whole = _is_text(b"".join(byte[t] for t in run))
            for t, part in zip(run, said, strict=True):
                parts[t] = part if whole else REPLACEMENT
    return parts


KINDS: tuple[tuple[str, str, Pieces], ...] = (("\u0120", " ", _byte_level), ("<0x41>", "A", _byte_fallback))


def _characters(pieces: Sequence[bytes]) -> list[str]:
    """The characters that each piece of a text in UTF-8 completes; what is none is U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(pieces) - 1
    return [decoder.decode(piece, final=i == last) for i, piece in enumerate(pieces)]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _by_beginnings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[int]:
    """What the text and each of its beginnings have in common, by definition."""
    begun = (str(tokenizer.decode(ids[: t + 1], skip_special_tokens=True)) for t in range(len(ids)))
    return list(accumulate((common_beginning(text, beginning) for beginning in begun), max))
