"""Formats: what fills their places, what vanishes, what is drawn by key; and what cannot work is said."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hpc.base.errors import UserError
from recap.engine import CaptionerConfig, Format, PromptFormat, check
from recap.engine.formats import EXAMPLES, Examples, Filling, Places, asked, one_line, said, shuffled

CAPSFUSION = "Sentence 1: {alt}\n[[Tags: {tags}, {more}\n]]Sentence 2: {syn}\nNew Sentence:"


def fill(form: Format, key: str = "k", **texts: str) -> str:
    filling = Filling("f", form, 0)
    shown = {place: texts.get(column, "") for place, column in filling.sources(key).items()}
    return filling.places.fill(filling.places.text, shown | {EXAMPLES: filling.examples(key)})


def test_places_are_filled_once_and_sections_vanish() -> None:
    form = Format(CAPSFUSION)
    assert form.columns() == ["alt", "tags", "more", "syn"] and form.needed() == ["alt", "syn"]
    assert fill(form, alt="a {syn} b", syn="[[{alt}]]", tags="t", more="m") == (
        "Sentence 1: a {syn} b\nTags: t, m\nSentence 2: [[{alt}]]\nNew Sentence:"
    )
    assert fill(form, alt="\ue010\ue002x\ue003", syn="s", tags="t") == (
        "Sentence 1: \ue010\ue002x\ue003\nSentence 2: s\nNew Sentence:"
    )
    assert fill(Format('Answer {"a": 1} [[plain]] for {x}'), x="it") == 'Answer {"a": 1} [[plain]] for it'


def test_a_caption_jobs_format_knows_alt_alone() -> None:
    form = PromptFormat("It is {alt}, [[{alt}]] {other}.")
    assert Places.of(form).names == ("alt",) and form.budgets() == {"alt": 64} and not form.needed()
    assert fill(form, alt="x") == "It is x, [[x]] {other}."


def test_what_columns_say() -> None:
    assert one_line(said("  a\n b\t")) == "a b" and one_line(said(["a\nb", "", "c"])) == "a b\nc"
    assert one_line(said(None)) == "" and said(3) == "3" and said(True) == "true" and said(b"\xc3\xa9") == "é"
    assert json.loads(str(said({"a": [1]}))) == {"a": [1]}
    assert one_line("x</s>y", ["</s>"]) == "x y"


def test_order_is_drawn_by_key_and_is_fair() -> None:
    form = Format("A: {one}\nB: {two}", order=["one", "two"])
    orders = Counter(tuple(shuffled(form, "f", 0, str(key))) for key in range(2000))
    assert set(orders) == {("one", "two"), ("two", "one")} and abs(orders["one", "two"] - 1000) < 100
    for key in map(str, range(20)):
        first, second = shuffled(form, "f", 0, key)
        assert fill(form, key, one="1", two="2") == "A: {}\nB: {}".format(
            *({"one": "1", "two": "2"}[n] for n in (first, second))
        )


def test_examples_are_drawn_by_key_without_repeats(tmp_path: Path) -> None:
    for count in (6, 1500):  # two ways to draw
        file = tmp_path / f"{count}.jsonl"
        file.write_text("".join(json.dumps({"source": f"s{i}", "target": f"t{i}"}) + "\n" for i in range(count)))
        form = Format("{examples}\n{alt} =>", examples=Examples(str(file), count=3))
        seen = Counter(line for key in range(400) for line in fill(form, str(key), alt="x").split("\n")[:3])
        assert all(len(set(fill(form, str(key), alt="x").split("\n"))) == 4 for key in range(50))
        assert fill(form, "7", alt="x") == fill(form, "7", alt="x") and len(seen) == min(count, len(seen))
        assert len(seen) > 5 and max(seen.values()) < 300
    with pytest.raises(UserError, match="holds 6; add some, or lower it"):
        Filling("f", Format("{examples}", examples=Examples(str(tmp_path / "6.jsonl"), count=7)), 0)
    (tmp_path / "bad.jsonl").write_text('{"source": "a"}\n')
    with pytest.raises(UserError, match="line 1: not an object with the keys"):
        Filling("f", Format("{examples}", examples=Examples(str(tmp_path / "bad.jsonl"), count=1)), 0)
    with pytest.raises(UserError, match="cannot be read"):
        Filling("f", Format("{examples}", examples=Examples(str(tmp_path / "none.jsonl"))), 0)


def test_names_of_answers() -> None:
    formats = {"a": Format("x", weight=1), "b": Format("y", weight=0)}
    assert asked(formats, False, 3, 0, "k") == ["a", "a#1", "a#2"]
    assert asked(formats, True, 2, 0, "k") == ["a", "a#1", "b", "b#1"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompts": {"f": Format("{a}", image=False)}, "model": "m"}, "column a has no bound"),
        ({"prompts": {"f": Format("{a}", image=False, budget={"b": 3})}}, r"the text has no \{b\}; it has a"),
        ({"prompts": {"f": Format("{a}", image=False, budget={"a": 0})}}, "at least 1 token"),
        ({"prompts": {"f": Format("{a}", order=["a", "b"])}}, r"the text has no \{b\}"),
        ({"prompts": {"f": Format("{a}", order=["a"])}}, "two columns or more"),
        ({"prompts": {"f": Format("{examples}")}}, "need one another"),
        ({"prompts": {"f": Format("x", image=False), "g": Format("y")}}, "make two jobs of them"),
        ({"prompts": {"f#1": Format("x")}}, "must not contain #"),
        ({"prompts": {"f": Format("x", image=False)}, "template": "{image}{prompt}"}, r"must not contain \{image\}"),
        ({"prompts": {"f": Format("x", system="s")}, "template": "{image}{prompt}"}, r"must contain \{system\}"),
        ({"samples": 2}, "set decoding=sample"),
        ({"beams": 3}, "only backend=transformers"),
    ],
)
def test_what_cannot_work_is_said(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(CaptionerConfig(**({"model": "m"} | changes)))
