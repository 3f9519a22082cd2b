"""Parsers: answers as models give them become typed fields, and what does not parse says how."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from recap.generate.parsers import Unparsed, parser_of
from recap.generate.settings import ParseConfig

OBJECT = {"name": "string", "count": "int", "share": "float?", "good": "bool", "tags": "strings", "rest": "any?"}
GOOD = '{"name": "a\\ud800", "count": 3, "share": 1, "good": true, "tags": ["x"], "rest": {"k": [1]}, "more": 0}'
VERDICT = {"verdict": ["yes", "no", "unsure"]}


def parsed(config: dict[str, Any], text: str) -> dict[str, Any]:
    parser = parser_of(ParseConfig(**config))
    values = parser(text)
    pa.table({name: pa.array([values[name]], kind) for name, kind in parser.fields})  # of the types that are stated
    return values


def test_text_is_the_answer_itself() -> None:
    assert parsed({}, "anything") == {}


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Here it is: {} Is that all? }}", "{{broken {}"])
def test_json_in_what_models_write_around_it(around: str) -> None:
    found = parsed({"json": OBJECT}, around.format(GOOD))
    assert found == {"name": "a?", "count": 3, "share": 1.0, "good": True, "tags": ["x"], "rest": '{"k": [1]}'}


@pytest.mark.parametrize(
    "text, message",
    [
        ("no", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ('{"name": "a"', "no JSON object"),
        ("{" * 5000, "no JSON object"),
        ('{"a": NaN}', "no JSON object"),
        ('{"name": "a"}', "count is missing; there are name"),
        (GOOD.replace("3", '"three"'), 'count is "three", expected int'),
        (GOOD.replace("3", "true"), "count is true, expected int"),
        (GOOD.replace("3", "3.5"), "count is 3.5, expected int"),
        (GOOD.replace("3", "9" * 30), "expected int"),
        (GOOD.replace('["x"]', '["x", 1]'), "tags is"),
        (GOOD.replace('"a\\ud800"', "null"), "name is null, expected string"),
    ],
)
def test_json_of_another_form(text: str, message: str) -> None:
    with pytest.raises(Unparsed, match=message):
        parsed({"json": OBJECT}, text)


def test_lines() -> None:
    text = "1. a red flag\n 2) two\n\n- three 3. four\n* five\n• six\n10 pins"
    assert parsed({"lines": True}, text)["lines"] == ["a red flag", "two", "three 3. four", "five", "six", "10 pins"]
    with pytest.raises(Unparsed):
        parsed({"lines": True}, " \n-\n".replace("-", ""))


def test_brackets() -> None:
    found = parsed({"brackets": ["name", "kind"]}, "Items: [red circle] [single], [stars][multiple]\n[dog][single]")
    assert found == {"name": ["red circle", "stars", "dog"], "kind": ["single", "multiple", "single"]}
    for text in ("none", "[a][b], [c]", "[a]\n[b]"):
        with pytest.raises(Unparsed):
            parsed({"brackets": ["name", "kind"]}, text)


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("Yes.", "yes"),
        ("**No**, there is none. Yes would be wrong.", "no"),
        ("I am unsure", "unsure"),
        ("The answer is YES", "yes"),
        ("It might be yes or no.\nJudgment: no", "no"),
        ("unsurely nothing", None),  # no whole word
        ("yes or no? no, yes", None),  # the question, and both answers
        ("either yes or no", None),
        ("", None),
    ],
)
def test_verdicts(text: str, verdict: str | None) -> None:
    if verdict is None:
        with pytest.raises(Unparsed):
            parsed(VERDICT, text)
    else:
        assert parsed(VERDICT, text)["verdict"] == verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("No sé", None), ("No lo sé, la imagen no se ve bien.", None), ("No se", None), ("No es correcto", None),
        ("No, no sé", None), ("Creo que no", None), ("No hay ningún círculo", None), ("No està clar", None),
        ("No, c’est faux", None), ("No（不）", None), ("no idea", None), ("No doubt it is true", None),
        ("No-one can tell", None), ("the answer is not yes", None), ("Yes/no", None), ("Yes, no or unsure", None),
        ("Yes.\nNo.", None), ("No it is not", "no"), ("No, red circle", "no"), ("Yes — the sky is blue", "yes"),
        ("No, the sign says “El gato está en la mesa”", "no"), ("yes, no doubt about it", "yes"), ("I'd say no", "no"),
        ("There is none.\n**Answer:** no", "no"), ("<think>yes? no?</think>\nno", "no"), ("No\nno sé", "no"),
        ("No no no!", "no"), ("Yes, la imagen", None), ("No — no se ve", None), ("<answer>no</answer>", "no"),
    ],
)  # fmt: skip
def test_a_verdict_is_a_whole_answer_in_the_asked_language(text: str, verdict: str | None) -> None:
    test_verdicts(text, verdict)


@pytest.mark.parametrize(
    "words, text, verdict",
    [
        (["first", "second", "tie"], "First, I look at both. The second caption says more.\nsecond", "second"),
        (["first", "second", "tie"], "First caption: good. Second caption: bad.", None),
        (["first", "second", "tie"], "Second caption is better than the first", None),
        (["first", "second", "tie"], "The second one is better.", "second"),
        (["first", "second", "tie"], "the first is not better", None),
        (["first", "second", "tie"], "First, because it is right", "first"),
        (["first", "second", "tie"], "It's a tie", "tie"),
        (["A", "B"], "A red circle is better", None),
        (["A", "B"], "b", "B"),
        (["sí", "no"], "No, no es verdad", "no"),
        (["sí", "no"], "No sé", None),
        (["ja", "nein"], "Antwort: ja", "ja"),
    ],
)
def test_other_words_and_languages(words: list[str], text: str, verdict: str | None) -> None:
    if verdict is None:
        with pytest.raises(Unparsed):
            parsed({"verdict": words}, text)
    else:
        assert parsed({"verdict": words}, text)["verdict"] == verdict


def test_longer_words_win() -> None:
    assert (
        parsed({"verdict": ["Caption 1", "Caption 1 is better"]}, "caption 1 is better")["verdict"]
        == "Caption 1 is better"
    )


def test_regex() -> None:
    rating: dict[str, Any] = {
        "regex": r"Rating:\s*(?P<rating>\S+)(?:.*Reason: (?P<why>.*))?",
        "types": {"rating": "int"},
    }
    assert parsed(rating, "So. Rating: 4\nReason: it fits") == {"rating": 4, "why": "it fits"}
    assert parsed(rating, "Rating: 5") == {"rating": 5, "why": None}
    for text in ("four", "Rating: four", "Rating: " + "9" * 40):
        with pytest.raises(Unparsed):
            parsed(rating, text)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"lines": True, "regex": "(?P<a>x)"}, "parsed in one way"),
        ({"json": {"a": "number"}}, "use one of string, int"),
        ({"verdict": ["yes"]}, "two different words"),
        ({"verdict": ["yes", "YES"]}, "two different words"),
        ({"regex": "(x"}, "correct it"),
        ({"regex": "x"}, "named groups"),
        ({"regex": "(?P<a>x)", "types": {"b": "int"}}, "named groups"),
        ({"regex": "(?P<a>x)", "types": {"a": "whole"}}, "is unknown"),
        ({"types": {"a": "int"}}, "are of regex's groups"),
    ],
)
def test_parsers_that_cannot_work(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parser_of(ParseConfig(**config))
