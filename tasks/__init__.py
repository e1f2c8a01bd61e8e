"""Tasks, one module each, imported as grpo_math.tasks.NAME.

A task module has:
    TEMPLATE = "{question}\\n..."  the words put to the model; {question} is filled in by str.replace, so other braces
                                  stand for themselves
    SYSTEM = "..."                optional, the system message for a chat template
    PROMPTS = {"NAME@1": Form()}  instead of both, where there are several ways to put it; the first is the default
    VERIFIER = "math"             the verifier its answers are meant for
    VARIANT = "size"              optional, the option that NAME:VARIANT sets for grpo-math evaluate
    gold_completion(problem)      optional, the right answer as a completion; else it is put into a box
    load(split, path=None, **options) -> Iterable[Problem]
                                  a list for finite data, an iterator that never ends for generated problems

No registration and no base class: `task: NAME` finds the file here, `task: ./my_task.py` finds one anywhere.
"""
