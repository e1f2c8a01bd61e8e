"""Problem -> Prompt: the chat template where the tokenizer has one, else plain text; exactly one BOS either way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from grpo_math.forms import Form, form_of
from grpo_math.types import Problem, Prompt, UserError

if TYPE_CHECKING:
    from grpo_math import config

MakePrompt = Callable[[Problem], Prompt]


def prompt_maker(task: config.Task, module: ModuleType, tokenizer: PreTrainedTokenizerBase) -> MakePrompt:
    """What the config leaves open, the task's module decides (forms.py)."""
    _, form = form_of(task, module)
    return lambda problem: render(form, problem, tokenizer)


def render(form: Form, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    chat = bool(tokenizer.chat_template) if form.chat is None else form.chat
    if not chat:
        text = form.plain(problem)
        ids = plain_ids(text, tokenizer)
        if not ids:
            raise UserError(f"problem {problem.id}: its prompt is empty; give it a question")
        return Prompt(problem, ids, text)
    if not tokenizer.chat_template:
        raise UserError(
            "task.chat=true, but the model's tokenizer has no chat template; set task.chat=false or leave it out"
        )
    rendered = tokenizer.apply_chat_template(messages(form, problem), add_generation_prompt=True, tokenize=False)
    assert isinstance(rendered, str)
    # the template has written its special tokens out; adding them once more would double BOS
    ids = tuple(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return Prompt(problem, one_bos(ids, tokenizer), rendered)


def messages(form: Form, problem: Problem) -> list[dict[str, str]]:
    """The conversation that a chat model is given, before its template."""
    system = [{"role": "system", "content": form.system}] if form.system else []
    return [*system, {"role": "user", "content": form.text(problem)}]


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """A raw prompt: what the tokenizer puts in front stays, the end of sequence that some append does not."""
    ids = list(tokenizer(text)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return one_bos(tuple(ids), tokenizer)


def one_bos(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Drop all but one BOS from the front (template and tokenizer may each have put one)."""
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == (bos, bos):
        ids = ids[1:]
    return ids
