"""Answers to MMMU's questions, read: a table, and the published evaluator's rules, written down here anew."""

from __future__ import annotations

import itertools
import random

import pytest

from recap.evaluate.mmmu_rules import open_answer, option

OPTIONS = ["a cat", "a dog", "a horse", "a cow"]
CHOICES = [
    ("B", "B"), ("B.", "B"), ("(B)", "B"), ("B)", "B"), ("[C]", "C"), ("**C**", "C"), ("`D`", "D"), ("C: a horse", "C"),
    ("B. a dog", "B"), ("Answer: B", "B"), ("Answer: B) a dog", "B"), ("option D", "D"), ("Option (A)", "A"),
    ("The answer is B.", "B"), ("The answer is B", "B"), ("The correct option is: C.", "C"), ("It is **D**.", "D"),
    ("A dog is shown, so the answer is B.", "B"), ("A careful look shows (C).", "C"), ("A horse. Answer: C", "C"),
    ("Neither A nor D; it is B.", "B"), ("Not A , not B , but C", "C"), ("(A) is wrong, (B) is right", "B"),
    ("(A), because B would be another", "A"), ("Cats are not shown. D", "D"), ("a dog", "B"), ("A DOG", "A"),
    ("b", "B"), ("(c)", "C"), ("d.", "D"), ("answer: b", "B"), ("the answer is c", "C"), ("option d", "D"),
    ("I cannot tell.", None), ("", None), ("none of them", None), ("a cat or a dog", None), ("E", None),
    ("In the picture one can see a horse and then a cow", "D"), ("I see what looks like a dog here", "B"),
    ("It's Bob's", None), ("A.\nBecause it purrs", "A"), ("D, a cow", "D"), ("cow", None), ("BC", None),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), CHOICES)
def test_options(said: str, meant: str | None) -> None:
    assert option(said, OPTIONS) == meant


def published(said: str, letters: str, texts: list[str]) -> str | None:
    """`parse_multi_choice_response` of MMMU's eval_utils; None where it draws one at random."""
    for mark in [",", ".", "!", "?", ";", ":", "'"]:
        said = said.strip(mark)
    said = " " + said + " "
    found, spelled = [c for c in letters if f"({c})" in said], "({})"
    if not found:
        found, spelled = [c for c in letters if f" {c} " in said], " {} "
    if found:
        return max(found, key=lambda c: said.rfind(spelled.format(c)))
    if len(said.split()) > 5:
        found = [c for c, text in zip(letters, texts, strict=True) if text.lower() in said.lower()]
        return max(found, key=lambda c: said.lower().rfind(texts[letters.index(c)].lower())) if found else None
    return None


def test_the_published_rules_where_they_decide() -> None:
    """Of 4,000 answers put together at random."""
    pieces = ["A", "B.", "(C)", "D,", "a dog", "A dog", "is", "the answer", "so", ":", "Neither", "b", "**A**", "cow"]
    draw, decided = random.Random(0), 0
    for _ in range(4000):
        said = " ".join(draw.choices(pieces, k=draw.randint(1, 8)))
        if (wanted := published(said, "ABCD", OPTIONS)) is not None:
            assert option(said, OPTIONS) == wanted, said
            decided += 1
    assert decided > 2000


@pytest.mark.parametrize(
    ("answers", "said", "right"),
    [
        (["3"], "There are 3.", True), (["3"], "13", False), (["1250"], "1,250.00 m", True), (["0.17"], "0.171", True),
        (["1/6", "0.167"], "about 0.167", True), (["Doric"], "a doric column", True), (["art"], "a party", False),
        (["8"], "3 cats and 5 dogs, so the result is 8.", True),
        (["3"], "3 cats and 5 dogs, so the result is 8", False),
        (["12"], "x = 4 * 3\nx = 12", True), (["-2"], "The answer is -2", True), (["2"], "The answer is -2", False),
        (["6.02e23"], "6.02e23", True), (["blue", "navy"], "Therefore it is navy blue", True), (["red"], "", False),
        (["1,000"], "about 1000 people", True), (["24/7"], "It is open 24/7", True),
    ],
)  # fmt: skip
def test_open(answers: list[str], said: str, right: bool) -> None:
    assert open_answer(said, answers) is right


def test_every_letter_has_its_turn() -> None:
    texts = [f"thing {n}" for n in range(10)]
    for letter, form in itertools.product("ABCDEFGHIJ", ("{}", "({})", "{}.", "The answer is {}.", "**{}**")):
        assert option(form.format(letter), texts) == letter
