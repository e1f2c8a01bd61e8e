"""Problem -> Prompt: the chat template where the tokenizer has one, else plain text; exactly one BOS either way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from grpo_math.types import Problem, Prompt, UserError

if TYPE_CHECKING:
    from grpo_math import config

MakePrompt = Callable[[Problem], Prompt]


def prompt_maker(task: config.Task, module: ModuleType, tokenizer: PreTrainedTokenizerBase) -> MakePrompt:
    """What the config leaves open, the task's module decides: TEMPLATE (with {question} in it) and SYSTEM."""
    template: str = str(task.template or getattr(module, "TEMPLATE", "{question}"))
    if "{question}" not in template:
        raise UserError(
            f"task {task.name}: its TEMPLATE lacks {{question}}, so no prompt would show the problem: {template!r}"
        )
    system = task.system or getattr(module, "SYSTEM", None)
    chat = bool(tokenizer.chat_template) if task.chat is None else task.chat
    if chat and not tokenizer.chat_template:
        raise UserError(
            "task.chat=true, but the model's tokenizer has no chat template; set task.chat=false or leave it out"
        )

    def make(problem: Problem) -> Prompt:
        # replace, not str.format: templates are full of \boxed{}
        text = template.replace("{question}", problem.question)
        if not chat:
            text = text if system is None else f"{system}\n\n{text}"
            ids = plain_ids(text, tokenizer)
            if not ids:
                raise UserError(f"problem {problem.id}: its prompt is empty; give it a question")
            return Prompt(problem, ids, text)
        messages = [{"role": "system", "content": system}] if system else []
        rendered = tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        assert isinstance(rendered, str)
        # the template has written its special tokens out; adding them once more would double BOS
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return Prompt(problem, one_bos(tuple(ids), tokenizer), rendered)

    return make


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
