"""Judges: their numbers by hand, the templates of what they are asked, and constitutions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grpo_math.judging.constitution import Principle, read_constitution
from grpo_math.judging.labels import expected, label_masses, normalised, resolved, split_label, stated
from grpo_math.judging.question import Question, Reply, Unreadable
from grpo_math.judging.revise import extracted
from grpo_math.judging.template import builtin, load_template
from grpo_math.judging.verdict import Preference, Reading, Score, prefer, score
from grpo_math.types import UserError
from tests.judges import (
    VALUES,
    judged_texts,
    merit,
    through,
    tops,
)

# --- numbers by hand -------------------------------------------------------------------------------------------------


def test_probabilities_of_labels() -> None:
    labels = ["7", "8", "10"]
    top = tops({"7": 0.2, " 7": 0.1, "8\n": 0.15, "▁10": 0.05, "10": 0.1, "seven": 0.2, "77": 0.1})
    masses = label_masses(top, labels)
    assert masses == pytest.approx({"7": 0.3, "8": 0.15, "10": 0.15})
    found = normalised(masses, top, 0.5)
    assert found == pytest.approx({"7": 0.5, "8": 0.25, "10": 0.25})
    assert expected(found) == pytest.approx(0.5 * 7 + 0.25 * 8 + 0.25 * 10)
    with pytest.raises(Unreadable, match=r"probability of 0.6 together, less than 0.7; .*'7' 0.200, 'seven' 0.200"):
        normalised(masses, top, 0.7)
    with pytest.raises(Unreadable, match="probability of 0 together"):
        normalised(label_masses((), labels), (), 0.0)


def test_a_ten_of_two_tokens_is_told_from_a_one() -> None:
    labels = [str(i) for i in range(1, 11)]
    masses = label_masses(tops({"1": 0.5, "9": 0.3}), labels)
    assert split_label(masses) == "1"
    # behind the "1": a 0 makes 10, another digit no score at all, the rest ends the number
    found = resolved(masses, "1", tops({"0": 0.6, "5": 0.1, "<eos>": 0.2, " 0": 0.05}))
    assert (found["10"], found["1"], found["9"]) == pytest.approx((0.3, 0.15, 0.3))
    assert split_label(label_masses(tops({"1": 0.5, "10": 0.01}), labels)) is None  # 10 is a token
    assert split_label(label_masses(tops({"1": 0.005, "9": 0.9}), labels)) is None  # not worth a question
    assert split_label(label_masses(tops({"1": 0.5, "2": 0.5}), labels[:9])) is None  # a scale without a 10

    asked = []

    def replies(question: Question) -> Reply:
        asked.append(question.begins)
        return Reply(top=tops({"0": 0.6, ".": 0.4} if question.begins else {"1": 0.5, "9": 0.5}))

    found_score = through(score(load_template("score"), VALUES, Reading()), replies)
    assert found_score.value == pytest.approx(0.5 * 9 + 0.5 * (0.6 * 10 + 0.4 * 1))
    assert asked == ["", "1"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Score: 7", "7"), ("fine.\n**Score:** 10\n", "10"), ("score = 3.", "3"), ("Score: 2, no: Score: 8/10", "8"),
        ("Score: **9**", "9"), ("<think>Score: 1</think> Score: 4", "4"),
        ("Score: 7.5", None), ("Score: 11", None), ("Score: 8/5", None), ("Score: 7 Score: high", None), ("7", None),
        ("Score:", None), ("Score: 70%", None), ("underscore: 5", None), ("", None), ("Score: 0", None),
        ("Score: -3", None), ("Score: 7abc", None),
    ],
)  # fmt: skip
def test_scores_are_read_strictly(text: str, label: str | None) -> None:
    found = through(score(load_template("score"), VALUES, Reading("text")), lambda q: Reply(text))
    assert found.value == (None if label is None else int(label))
    assert bool(found.why) == (label is None)
    with pytest.raises(Unreadable, match="none of 1, 2, tie"):
        stated("Better: 3", "better", ["1", "2", "tie"])
    assert stated("Better: 1\nBetter: TIE", "better", ["1", "2", "tie"]) == "tie"


def test_both_orders_are_asked_and_averaged() -> None:
    def biased(question: Question) -> Reply:
        a, b = judged_texts({"messages": question.messages})
        return Reply(top=tops({"1": 0.63, "2": 0.07} if merit(a) >= merit(b) else {"1": 0.28, " 2": 0.42}))

    template = load_template("prefer")

    def judged(a: str, b: str) -> Preference:
        return through(prefer(template, VALUES, a, b, Reading()), biased)

    better = judged("good", "bad")
    assert better.orders == pytest.approx((0.9, 0.6))
    assert better.probability == pytest.approx(0.75)
    assert judged("bad", "good").probability == pytest.approx(0.25)
    assert judged("so", "la").probability == pytest.approx(0.5)  # always the first: a bias, no preference
    by_text = {"x": "Better: 1", "y": "Better: tie"}

    def writes(question: Question) -> Reply:
        return Reply(by_text[judged_texts({"messages": question.messages})[0]])

    assert through(prefer(template, VALUES, "x", "y", Reading("text")), writes).probability == 0.75
    by_text["y"] = "I cannot decide."
    found = through(prefer(template, VALUES, "x", "y", Reading("text")), writes)
    assert (found.probability, found.orders) == (None, None)
    assert "I cannot decide" in found.why


def test_reasons_come_first_and_without_the_thoughts() -> None:
    asked: list[Question] = []

    def replies(question: Question) -> Reply:
        asked.append(question)
        return Reply(top=tops({"7": 0.5, "8": 0.5})) if question.top else Reply("<think>hm</think>It is short.")

    reading = Reading(reason=True, max_tokens=99, temperature=0.5, seed=3)
    assert through(score(load_template("score"), VALUES, reading), replies) == Score(7.5)
    first, second = asked
    assert (first.max_tokens, first.temperature, first.seed, first.top) == (99, 0.5, 3, 0)
    # no system turn: there are chat templates that refuse one
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert second.messages[:1] == first.messages
    assert second.messages[1]["content"] == "It is short."
    assert "Reply with the number" in second.messages[2]["content"]
    empty = through(score(load_template("score"), VALUES, reading), lambda q: Reply("<think>hm</think> "))
    assert "gave no reasons" in empty.why
    cut = through(score(load_template("score"), VALUES, Reading("text", max_tokens=5)), lambda q: Reply("no", cut=True))
    assert cut.why.startswith("it was cut at its limit of tokens; there is no")
    whole = through(score(load_template("score"), VALUES, Reading("text", max_tokens=5)), lambda q: Reply("no"))
    assert whole.why.startswith("there is no")
    failed = through(score(load_template("score"), VALUES, Reading()), lambda q: Reply(failed="no server"))
    assert failed == Score(None, "no server")


# --- templates and constitutions -------------------------------------------------------------------------------------

MINE = """kind: score
system: You judge.
scale: [1, 5]
prompt: "Q {question} A {completion} \\\\boxed{{x}}"
reason: why
verdict: "{lowest} to {highest}?"
text: "Score: N"
"""


def test_templates(tmp_path: Path) -> None:
    assert builtin() == ["clair", "constitutional", "prefer", "prefer_math", "score", "score_math"]
    assert builtin("score") == ["score", "score_math"]
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    template = load_template(str(path), "score")
    # what is put in is not read again
    filled = template.fill("prompt", {"question": "{completion}", "completion": "{x} {{ }", "gold": ""})
    assert filled == "Q {completion} A {x} {{ } \\boxed{x}"
    assert template.scale == (1, 5)
    asked: list[Question] = []

    def replies(question: Question) -> Reply:
        asked.append(question)
        return Reply(top=tops({"5": 0.5, "1": 0.5}))

    assert through(score(template, VALUES, Reading()), replies).value == 3.0
    assert asked[0].messages == (
        {"role": "system", "content": "You judge."},
        {"role": "user", "content": "Q Why? A Because. \\boxed{x}\n\n1 to 5?"},
    )
    with pytest.raises(UserError, match=r"score_math: its prompt has \{gold\} in it, and there is none"):
        load_template("score_math").fill("prompt", {"question": "Q", "completion": "c"})
    assert load_template("score", rubric="Be brief.").rubric == "Be brief."


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{completion}", "", r"prompt lacks \{completion\}, so the judge would not see it"),
        ("{completion}", "{completion} {compltion}", "which is no placeholder; did you mean {completion}"),
        ("{{x}}", "{x", "prompt: .*; write {{ and }}"),
        ("{{x}}", "{}", "write {NAME} alone"),
        ("{question}", "{question!r}", r"\{question!r\} in it; write \{NAME\} alone"),
        ("reason: why", "reasons: why", "no key 'reasons'; did you mean reason"),
        ("reason: why\n", "", "reason=None; write the words there"),
        ("[1, 5]", "[5, 1]", r"scale=\[5, 1\]; give whole numbers"),
        ("[1, 5]", "[1, 40]", "at most 20 of them"),
        ("kind: score", "kind: mark", "kind='mark'; choose one of score, preference, revision"),
        ("kind: score", "kind: preference", "is of kind preference|no key 'scale'"),
        ("kind: score", "kind: [", "is not readable YAML"),
        ("why", "'{rubric}'", r"has \{rubric\} in it and no rubric"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_template_is_told_with_its_file(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(old, new, 1))
    with pytest.raises(UserError, match=f"template {re.escape(str(path))}.*({words})"):
        load_template(str(path), "score")


def test_templates_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="template scor: there is no such template; did you mean score"):
        load_template("scor", "score")
    with pytest.raises(UserError, match="there is no such file"):
        load_template(str(tmp_path / "none.yaml"))
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    with pytest.raises(UserError, match=r"it has no \{rubric\} for the rubric"):
        load_template(str(path), "score", rubric="Be brief.")
    with pytest.raises(UserError, match="it is of kind score, and preference is needed; choose prefer, prefer_math"):
        load_template("score", "preference")


def test_constitutions(tmp_path: Path) -> None:
    lines, listed = tmp_path / "a.txt", tmp_path / "a.yaml"
    lines.write_text("# ours\nBe kind.\n\n  Be brief: always.\n")
    assert [p.critique for p in read_constitution(lines).principles] == ["Be kind.", "Be brief: always."]
    listed.write_text("- Be kind.\n- {critique: Where is it rude, revision: Make it kind.}\n")
    both = read_constitution(listed).principles
    assert both == (Principle("Be kind.", "Be kind."), Principle("Where is it rude", "Make it kind."))
    listed.write_text("- Be kind.\n- {critique: Where is it rude}\n")
    with pytest.raises(UserError, match=r"a.yaml, entry 2: .*write a text, or a mapping with critique and revision"):
        read_constitution(listed)
    for text in ("", "# nothing\n"):
        lines.write_text(text)
        with pytest.raises(UserError, match="has no principles"):
            read_constitution(lines)
    with pytest.raises(UserError, match="cannot be read"):
        read_constitution(tmp_path / "none.txt")
    with pytest.raises(Unreadable, match="no <revision>"):
        extracted("Here it is.", "tag")
    assert extracted("<revision>a</revision> no, <revision>\nb\n</revision>", "tag") == "b"
    assert extracted("all of it", "whole") == "all of it"
