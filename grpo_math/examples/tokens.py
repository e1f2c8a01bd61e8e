"""RawExample -> Example, Pair or Labelled, with one tokenizer. Prompt and completion are tokenised apart.

So the boundary is where it is in sampling, and the chosen and the rejected one follow the very same tokens. A plain
completion ends with the tokenizer's end-of-sequence token; one of a conversation with the template's own end of a turn,
and what the template writes after that (often a newline) is not trained, for no sampler gets there. An error does not
say which line it is about: whoever calls knows file and line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_math.examples.chat import common_beginning
from grpo_math.examples.example import Example, Labelled, Pair
from grpo_math.examples.raw import Message, RawCompletion, RawExample
from grpo_math.prompts import one_bos, plain_ids
from grpo_math.types import Completion, Problem, Prompt, UserError

PROBE = "PROBE"
UNUSUAL = "\U00014400"  # a hieroglyph: a letter, and hardly in anyone's vocabulary


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and what its chat template does, found out once by encoder().

    ends: every token that ends a completion, as Policy.eos_ids. end_texts: how these are written. special: the tokens
    that only a template writes out. turn_end: what stands behind the assistant's words in the template, where it is one
    of `ends`. template_bos: whether the template writes the beginning-of-sequence token itself. keeps_letters: whether
    letters that it does not know make tokens too, as bytes or as the unknown token."""

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    end_texts: tuple[str, ...]
    special: tuple[str, ...] = ()
    turn_end: int | None = None
    template_bos: bool = False
    keeps_letters: bool = False

    def example(self, raw: RawExample) -> Example:
        prompt = self.prompt(raw)
        (completion,) = raw.completions
        return Example(prompt, self.completion(raw, prompt, completion), raw.weight, completion.reward, raw.where)

    def pair(self, raw: RawExample) -> Pair:
        prompt = self.prompt(raw)
        chosen, rejected = raw.completions
        return Pair(
            prompt,
            self.completion(raw, prompt, chosen),
            self.completion(raw, prompt, rejected),
            _both(chosen.ref_logprobs, rejected.ref_logprobs),
            _both(chosen.logprobs, rejected.logprobs),
            _both(chosen.reward, rejected.reward),
            raw.where,
        )

    def labelled(self, raw: RawExample) -> Labelled:
        prompt = self.prompt(raw)
        (completion,) = raw.completions
        assert raw.label is not None
        return Labelled(prompt, self.completion(raw, prompt, completion), raw.label, raw.where)

    def check(self, raw: RawExample) -> None:
        """Raises the UserError that example, pair or labelled would raise. It tokenises only where the text does not
        tell, so that all the examples of a run can be checked before its first step."""
        asked = self._asked(raw)
        if not self._surely_tokens(asked):
            self.prompt(raw)
        for completion in raw.completions:
            text, _ = self._answered(raw, asked, completion)
            # a whole completion has its end token at least
            if completion.finish_reason == "length" and (raw.chat or not self._surely_tokens(text)):
                self.completion(raw, self.prompt(raw), completion)

    def prompt(self, raw: RawExample) -> Prompt:
        """Raises UserError where nothing comes of it, or the template does not take the conversation."""
        text = self._asked(raw)
        ids = self._written(text) if raw.chat else self._plain_prompt(text)
        if not ids:
            raise UserError(f"the prompt {text[:60]!r} makes no token; fill it in or delete the line")
        return Prompt(Problem(raw.problem or raw.where, raw.task, text, ""), ids, text)

    def completion(self, raw: RawExample, prompt: Prompt, completion: RawCompletion) -> Completion:
        """Its tokens behind the prompt's, and its text as a verifier would read it. Raises UserError."""
        text, behind = self._answered(raw, prompt.text, completion)
        ids, end = (self._turn(prompt, behind) if raw.chat else self._ids(behind)), self._eos
        if not raw.chat and self.turn_end is not None and self._rendered(prompt.text):
            end = self.turn_end
        # the first end is the last token that a sampler gets to
        at = next((i for i, token in enumerate(ids) if token in self.ends), len(ids))
        ids = ids[:at] if completion.finish_reason == "length" else (*ids, end)[: at + 1]
        if not ids:
            raise UserError(f"the completion {text[:60]!r} makes no token; delete the line")
        return Completion(ids, (0.0,) * len(ids), text, completion.finish_reason, 0)

    def _asked(self, raw: RawExample) -> str:
        """What the model reads. Raises UserError."""
        return raw.prompt if isinstance(raw.prompt, str) else self._render(raw.prompt, answer=())

    def _answered(self, raw: RawExample, asked: str, completion: RawCompletion) -> tuple[str, str]:
        """A completion's text as a verifier would read it, and what stands behind the prompt for it. Raises
        UserError."""
        if isinstance(completion.text, str):
            text, behind = self._without_end(completion.text), completion.text
        else:
            text, behind = str(completion.text[0]["content"]), self._added(raw, asked, completion.text)
        if inside := next((written for written in self.end_texts if written in text), None):
            raise UserError(f"a completion has {inside!r} in it, where the model would have stopped; take it out")
        return text, behind

    def _surely_tokens(self, text: str) -> bool:
        """Whether a text makes a token, whatever it says; False where only tokenising it tells."""
        return self.keeps_letters and any(map(str.isalnum, text))

    @property
    def _eos(self) -> int:
        assert self.tokenizer.eos_token_id is not None  # make_policy has refused a tokenizer without
        return int(self.tokenizer.eos_token_id)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _written(self, text: str) -> tuple[int, ...]:
        """Of a text in which the template has written the special tokens out."""
        return one_bos(self._ids(text), self.tokenizer)

    def _rendered(self, text: str) -> bool:
        """Whether a plain prompt is what a chat template made, as the prompts of samples are."""
        return bool(self.tokenizer.chat_template) and any(token in text for token in self.special)

    def _plain_prompt(self, text: str) -> tuple[int, ...]:
        # sampled from, it had no beginning of sequence but the one that the template writes
        if self._rendered(text) and not self.template_bos:
            return self._written(text)
        return plain_ids(text, self.tokenizer)

    def _added(self, raw: RawExample, asked: str, answer: Iterable[Message]) -> str:
        """What the template adds to the prompt for the assistant's turn, up to the end of the turn."""
        assert not isinstance(raw.prompt, str)
        whole = self._render(raw.prompt, answer)
        if not whole.startswith(asked):
            alike = common_beginning(asked, whole)
            at = asked.rfind("\n", 0, alike) + 1
            raise UserError(
                f"the chat template writes {asked[at:][:40]!r} where the assistant is to speak, and something else "
                "once it has spoken: what it learns would not follow what it is asked with. Change the tokenizer's "
                "chat_template, or give prompt and completion as plain text, rendered by you"
            )
        return whole.rstrip()[len(asked) :]

    def _turn(self, prompt: Prompt, behind: str) -> tuple[int, ...]:
        ids, start = self._written(prompt.text + behind), len(prompt.token_ids)
        # in one piece, for some tokenizers put a space before whatever comes first; apart where a token spans the two
        return ids[start:] if ids[:start] == prompt.token_ids else self._ids(behind)

    def _render(self, messages: Iterable[Message], answer: Iterable[Message]) -> str:
        if not self.tokenizer.chat_template:
            raise UserError(
                "this is a conversation, and the model's tokenizer has no chat template; give prompts and completions "
                "as plain text, or a model with a template"
            )
        answer = list(answer)
        try:
            text = self.tokenizer.apply_chat_template(
                [*messages, *answer], add_generation_prompt=not answer, tokenize=False
            )
        except TemplateError as error:
            raise UserError(f"the chat template refuses the conversation: {error}; mend the line") from error
        assert isinstance(text, str)
        return text

    def _without_end(self, text: str) -> str:
        for end in self.end_texts:
            text = text.removesuffix(end)
        return text


def encoder(tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> Encoder:
    """ends: Policy.eos_ids."""
    special = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    end_texts = tuple(str(tokenizer.decode([end])) for end in sorted(ends))
    plain = Encoder(tokenizer, ends, end_texts, special)
    plain = replace(plain, keeps_letters=bool(plain._ids(UNUSUAL)))
    if not tokenizer.chat_template:
        return plain
    asked: list[Message] = [{"role": "user", "content": PROBE}]
    try:
        text = plain._render(asked, [{"role": "assistant", "content": PROBE}])
    except UserError:  # a template of other conversations than these; what it refuses is told where a file has it
        return plain
    behind = plain._ids(text.rpartition(PROBE)[2])
    return replace(
        plain,
        turn_end=next((token for token in behind if token in ends), None),
        template_bos=bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token)),
    )


def _both(chosen: float | None, rejected: float | None) -> tuple[float, float] | None:
    return None if chosen is None or rejected is None else (chosen, rejected)
