"""The text policy: shares, fallbacks, sub-captions, and draws that nothing but (seed, epoch, key) decides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from hpc.base.errors import UserError
from recap.text_policy import Block, SubCaptions, TextPolicy, TextPolicyConfig, sentences

ROW = {"org_caption": "CLR X200", "re_caption": "A red car. It has 3.5 doors. Dr. Who drives it. It is old."}
PARTS = ["A red car.", "It has 3.5 doors.", "Dr. Who drives it.", "It is old."]


def texts(policy: TextPolicy, key: str = "s/1", epoch: int = 0, row: dict = ROW, seed: int = 0) -> list[str]:
    return [drawn.text for drawn in policy.draw(row, seed, epoch, key)]


def columns_drawn(policy: TextPolicy, n: int = 4000, row: dict = ROW) -> Counter[str]:
    return Counter(policy.draw(row, 0, i % 7, f"s/{i}")[0].column for i in range(n))


def test_shares_are_the_weights_within_three_sigma() -> None:
    drawn = columns_drawn(TextPolicy(TextPolicyConfig({"org_caption": 0.8, "re_caption": 0.2})))
    assert abs(drawn["org_caption"] - 3200) < 3 * (4000 * 0.8 * 0.2) ** 0.5
    assert columns_drawn(TextPolicy(TextPolicyConfig({"org_caption": 1.0, "re_caption": 0.0}))) == {"org_caption": 4000}
    assert TextPolicy(TextPolicyConfig({"org_caption": 1.0, "re_caption": 0.0})).columns == ["org_caption"]


def test_draws_depend_on_seed_epoch_and_key_alone() -> None:
    policy = TextPolicy(TextPolicyConfig({"org_caption": 0.5, "re_caption": 0.5}))
    again = TextPolicy(TextPolicyConfig({"re_caption": 5.0, "org_caption": 5.0}))  # other order, same shares
    assert [texts(policy, f"s/{i}") for i in range(50)] == [texts(again, f"s/{i}") for i in range(50)]
    others: list[dict[str, Any]] = [{"epoch": 1}, {"seed": 1}]
    for other in others:
        assert [texts(policy, f"s/{i}") for i in range(50)] != [texts(policy, f"s/{i}", **other) for i in range(50)]
    assert "".join(d.column[0] for i in range(32) for d in policy.draw(ROW, 0, 0, f"s/{i}")) == GOLDEN


GOLDEN = "orrororooorrroorrroooroorrrrrroo"


def test_empty_texts_fall_back() -> None:
    policy = TextPolicy(TextPolicyConfig({"org_caption": 0.8, "re_caption": 0.2}, min_words=2))
    row = {"org_caption": " CLR ", "re_caption": "A red car."}
    assert columns_drawn(policy, 100, row) == {"re_caption": 100}
    wanted = Counter(policy.draw(row, 0, 0, f"s/{i}")[0].wanted for i in range(1000))
    assert wanted["org_caption"] > 700  # what was asked for is still told
    assert policy.draw({"org_caption": None}, 0, 0, "s/1") == []


def test_joined_columns_are_the_papers_concatenation() -> None:
    policy = TextPolicy(TextPolicyConfig({"org_caption+re_caption": 1.0}))
    assert texts(policy) == ["CLR X200, " + ROW["re_caption"]]
    assert texts(policy, row={"re_caption": "A red car."}) == ["A red car."]
    assert policy.columns == ["org_caption", "re_caption"]


def test_sub_captions_reach_the_last_sentence_and_survive_a_single_one() -> None:
    config = TextPolicyConfig({"re_caption": 1.0}, sub_captions=SubCaptions(["re_caption"]))
    drawn = Counter(texts(TextPolicy(config), f"s/{i}")[0] for i in range(4000))
    assert set(drawn) == set(PARTS)
    assert all(abs(count - 1000) < 3 * (4000 * 0.25 * 0.75) ** 0.5 for count in drawn.values())
    assert texts(TextPolicy(config), row={"re_caption": "One sentence"}) == ["One sentence"]
    first = TextPolicyConfig({"re_caption": 1.0}, sub_captions=SubCaptions(["re_caption"], count=2, pick="first"))
    assert texts(TextPolicy(first)) == ["A red car. It has 3.5 doors."]


def test_several_texts_begin_with_the_drawn_one_and_do_not_repeat() -> None:
    """DreamLIP's sampling: the raw caption first, then sub-captions."""
    config = TextPolicyConfig({"org_caption": 1.0}, texts=5, sub_captions=SubCaptions(["re_caption"]))
    for i in range(20):
        drawn = texts(TextPolicy(config), f"s/{i}")
        assert drawn[0] == "CLR X200" and sorted(drawn[1:]) == sorted(PARTS)
    config.texts = 7
    assert len(texts(TextPolicy(config))) == 7
    assert texts(TextPolicy(config), row={"org_caption": "CLR X200"}) == ["CLR X200"] * 7


def test_blocks_of_tokens() -> None:
    ids = list(range(20))
    for pick, starts in (("first", {0}), ("last", {12}), ("random", set(range(13)))):
        policy = TextPolicy(TextPolicyConfig({"a": 1.0}, block=Block(8, pick)))
        cuts = [policy.cut(ids, 0, 0, f"s/{i}") for i in range(400)]
        assert {cut[0] for cut in cuts} == starts and {len(cut) for cut in cuts} == {8}
    assert list(policy.cut(ids[:5], 0, 0, "s/1")) == ids[:5]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A 3.5 inch disk. It costs $4.99.", ["A 3.5 inch disk.", "It costs $4.99."]),
        ("Dr. Who met Mr. Smith. They left.", ["Dr. Who met Mr. Smith.", "They left."]),
        ("A flag of the U.S. Navy. J. Smith drew it!", ["A flag of the U.S. Navy.", "J. Smith drew it!"]),
        ("It is 5 in. wide. It came in. Nobody saw.", ["It is 5 in. wide.", "It came in.", "Nobody saw."]),
        ('He says "Stop!" Then he goes... home', ['He says "Stop!"', "Then he goes...", "home"]),
        ("A Ph.D. student reads J.R.R. Tolkien. Yes.", ["A Ph.D. student reads J.R.R. Tolkien.", "Yes."]),
        ("1. A red car. 2. A dog. It has 4. Then 5.", ["1. A red car.", "2. A dog.", "It has 4.", "Then 5."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextPolicyConfig({}), "text.weights"),
        (TextPolicyConfig({"a": -1.0}), "text.weights"),
        (TextPolicyConfig({"a": 1.0}, texts=0), "text.texts"),
        (TextPolicyConfig({"a": 1.0}, sub_captions=SubCaptions(pick="last")), "text.sub_captions.pick"),
        (TextPolicyConfig({"a": 1.0}, block=Block(4, "middle")), "text.block"),
        (TextPolicyConfig({"a": 1.0}, prefix={"b": "[ALT]"}), "text.prefix.*no text comes from 'b'. There are a"),
    ],
)
def test_wrong_configs_are_refused(config: TextPolicyConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TextPolicy(config)
