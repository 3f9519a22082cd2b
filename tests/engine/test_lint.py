"""The lint column's names, each on captions that have the fault and on good ones."""

from __future__ import annotations

import pytest

from recap.engine.lint import NAMES, lint, repeats

PROMPT = "Please generate a detailed caption of this image. Please be as descriptive as possible."
GOOD = [
    "A red flag with a white cross in the centre, flying on a pole against a blue sky.",
    'A street sign that reads "STOP" stands beside the road. Two men walk past it.',
    "Very, very old stones lie on the ground, and more stones lie on the wall behind.",
    "It's a drawing of a cat; the cat's tail is up.",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_captions_have_no_fault(text: str) -> None:
    assert lint(text, PROMPT) == []


@pytest.mark.parametrize(
    "fault,text",
    [
        ("empty", "  \n"),
        ("two images", "In contrast to the first image, the flag is blue."),
        ("two images", "Both pictures show a cat."),
        ("lead-in", "The image shows a cat."),
        ("lead-in", "In this picture a cat sleeps."),
        ("lead-in", "Sure, a cat sleeps."),
        ("leaked prompt", "A cat. USER: what else?"),
        ("leaked prompt", "A cat.<|eot_id|>"),
        ("leaked prompt", "Please generate a detailed caption of this image now."),
        ("repetition", "A cat on a mat on a mat on a mat on a mat."),
        ("repetition", "red red red red red"),
        ("stray quotes", '"A cat sleeps."'),
        ("stray quotes", 'A cat called "Tom sleeps.'),
        ("bytes literal", "b'A cat sleeps.'"),
        ("refusal", "I'm sorry, but there is nothing here."),
    ],
)
def test_faults_are_named(fault: str, text: str) -> None:
    assert fault in lint(text, PROMPT) and fault in NAMES


def test_cut_needs_the_finish_reason() -> None:
    assert lint("A cat on a", finish="length") == ["cut"]
    assert lint("A cat on a", finish="stop") == [] and lint("A cat.", finish="length") == []


def test_repetition_finds_loops_only() -> None:
    assert repeats("the sky is blue and " * 3) and not repeats("the sky is blue and " * 2)
    assert not repeats("")
