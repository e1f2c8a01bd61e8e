"""Math-Verify as one of our verifiers, so that the benchmark runs both in the same processes.

An answer that was extracted already is handed over in dollar signs, as its documentation asks for.
"""

from __future__ import annotations

from grpo_math.types import Problem, Verdict


def verify(problem: Problem, completion: str) -> Verdict:
    from math_verify import parse  # type: ignore[import-not-found]
    from math_verify import verify as same  # type: ignore[import-not-found]

    extracted = problem.metadata["conventions"].get("answer_format") == "whole"
    golds = [parse(in_dollars(gold)) for gold in (problem.answer, *problem.metadata.get("alternatives", ()))]
    answer = parse(in_dollars(completion) if extracted else completion)
    if not answer:
        return Verdict(0.0, "no_answer")
    return Verdict(1.0, "correct") if any(same(gold, answer) for gold in golds) else Verdict(0.0, "wrong")


def in_dollars(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def warm_up() -> None:
    verify(Problem("warm", "", "", "\\frac{1}{2}", {"conventions": {}}), "$0.5$")
