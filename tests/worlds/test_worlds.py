"""The generated worlds: deterministic by seed, captions true, and an oracle that catches every wrong fact."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.base.errors import UserError
from recap.worlds import emoji, flags, shape_claims, shape_scenes, shapes
from recap.worlds.flag_captions import parse
from recap.worlds.flag_scenes import LAYOUTS, SHADES


def test_the_reader_of_flag_captions_is_exact_on_the_grammar() -> None:
    layouts = set()
    for index in range(600):
        scene, _, caption = flags.sample(seed=5, index=index)
        facts = parse(caption)
        assert facts.layout == scene.layout, caption
        if scene.layout in ("horizontal", "vertical"):
            assert facts.bands == tuple(SHADES.get(band, band) for band in scene.bands), caption
        layouts.add(scene.layout)
    assert layouts == set(LAYOUTS)


@pytest.mark.parametrize(
    ("text", "layout", "bands"),
    [
        (
            "three equal horizontal bands of red (top), white, and sky blue",
            "horizontal",
            ("red", "white", "blue"),
        ),
        (
            "three equal vertical bands of green (hoist side), gold, and red",
            "vertical",
            ("green", "yellow", "red"),
        ),
        ("red with a white cross that extends to the edges of the flag", "cross", ()),
        ("blue with the flag of the UK in the upper hoist-side quadrant", "canton", ()),
        (
            "two horizontal bands of red (top) and black with a blue triangle based on the hoist side",
            "triangle",
            (),
        ),
        ("red with a green pentacle in the center of the flag", "field", ()),
        ("", "", ()),
    ],
)
def test_the_reader_understands_human_texts(text: str, layout: str, bands: tuple[str, ...]) -> None:
    facts = parse(text)
    assert (facts.layout, facts.bands) == (layout, bands)


def test_flag_captions_grow_with_the_flag() -> None:
    lengths = sorted(len(flags.sample(seed=6, index=index)[2].split()) for index in range(300))
    assert lengths[270] / lengths[30] >= 2


def test_colours_told_are_colours_drawn() -> None:
    """A plain band flag shows, at the middle of each band, the colour the caption names there."""
    from recap.demo.build_truth import COLOURS, colour_names

    checked = 0
    for index in range(300):
        scene, picture, caption = flags.sample(seed=7, index=index)
        if scene.layout != "horizontal" or scene.charges or scene.edging:
            continue
        names = colour_names(np.asarray(picture))
        position = 0.0
        for band, width in zip(parse(caption).bands, scene.widths, strict=True):
            row = int((position + width / 2) * picture.height)
            assert COLOURS[names[row, picture.width // 2]] == band, caption
            position += width
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("world", ["flags", "shapes"])
def test_shards_are_the_same_bytes_for_the_same_seed(world: str, tmp_path: Path) -> None:
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        command = [sys.executable, "-m", f"recap.worlds.{world}", str(tmp_path / name)]
        subprocess.run([*command, "--shards", "2", "--samples", "5", "--seed", seed], check=True)
    for shard in ("00000.tar", "00001.tar"):
        one, two, other = ((tmp_path / name / shard).read_bytes() for name in ("one", "two", "other"))
        assert one == two != other
    with tarfile.open(tmp_path / "one" / "00001.tar") as tar:
        assert tar.getnames()[:4] == ["00000005.png", "00000005.txt", "00000005.json", "00000006.png"]


@pytest.mark.parametrize("detail", ["short", "detailed"])
def test_the_oracle_is_exact_on_its_own_captions(detail: str) -> None:
    for index in range(400):
        scene = shapes.sample(seed=1, index=index).scene
        judgement = shape_claims.judge(shapes.caption(scene, detail), scene)
        assert judgement.complete
        facts = {verdict.fact for verdict in judgement.verdicts}
        assert facts == {"count", "colour", "kind"} | (
            {"size", "place", "background"} if detail == "detailed" else set()
        )


WRONG: dict[str, list] = {
    "count": [1, 2, 3],
    "size": list(shape_scenes.SIZES),
    "colour": list(shape_scenes.COLOURS),
    "kind": list(shape_scenes.KINDS),
    "place": list(shape_scenes.PLACES),
}


@settings(max_examples=150, deadline=None)
@given(
    index=st.integers(0, 10**6),
    which=st.integers(0, 2),
    fact=st.sampled_from(sorted(WRONG)),
    other=st.integers(0, 7),
)
def test_the_oracle_finds_any_one_wrong_fact(index: int, which: int, fact: str, other: int) -> None:
    scene = shape_scenes.new_scene(random.Random(index))
    group = scene.groups[which % len(scene.groups)]
    values = [value for value in WRONG[fact] if value != getattr(group, fact)]
    changed = dataclasses.replace(group, **{fact: values[other % len(values)]})
    groups = tuple(changed if one is group else one for one in scene.groups)
    text = shapes.caption(dataclasses.replace(scene, groups=groups))
    judgement = shape_claims.judge(text, scene)
    assert [(verdict.fact, verdict.said, verdict.truth) for verdict in judgement.wrong] == [
        (fact, str(getattr(changed, fact)), str(getattr(group, fact)))
    ]


def test_the_oracle_sees_what_is_left_out_and_what_is_invented() -> None:
    scene = shape_scenes.Scene(
        "white",
        (
            shape_scenes.Group(1, "large", "red", "circle", "top left"),
            shape_scenes.Group(2, "small", "blue", "star", "center"),
        ),
    )
    partial = shape_claims.judge("a large red circle", scene)
    assert partial.correct and not partial.complete
    assert partial.unsaid == (scene.groups[1],)
    invented = shape_claims.judge("a red circle and two blue stars and a green cross", scene)
    assert {(verdict.said, verdict.truth) for verdict in invented.wrong} == {
        ("1", None),
        ("green", None),
        ("cross", None),
    }
    assert not shape_claims.judge("nothing to see", scene).correct


def test_boxes_enclose_the_shapes_exactly() -> None:
    for index in range(60):
        made = shapes.sample(seed=2, index=index)
        pixels = np.asarray(made.image).astype(int)
        covered = (pixels != shape_scenes.BACKGROUNDS[made.scene.background]).any(-1)
        inside = np.zeros_like(covered)
        for box in shape_scenes.boxes(made.scene, made.image.width):
            area = covered[box.top : box.bottom, box.left : box.right]
            assert area[0].any() and area[-1].any() and area[:, 0].any() and area[:, -1].any()
            inside[box.top : box.bottom, box.left : box.right] = True
        assert not (covered & ~inside).any()


def test_the_share_of_mismatched_texts_is_as_asked(tmp_path: Path) -> None:
    shapes.write_shard(tmp_path / "noisy.tar", seed=0, first=0, samples=800, mismatch=0.25, side=48)
    wrong = 0
    with tarfile.open(tmp_path / "noisy.tar") as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            if member.name.endswith(".json") and file:
                about = json.loads(file.read())
                wrong += about["mismatched"]
                assert shape_claims.judge(about["caption"], shapes.scene_from_json(about)).complete
    assert 0.2 < wrong / 800 < 0.3  # 3.3 standard deviations


def test_noisy_alt_texts_and_a_tokenizer_that_knows_them(tmp_path: Path) -> None:
    from recap.worlds import words

    flags.write_shard(tmp_path / "noisy.tar", 1, 0, 60, alt=True)
    with tarfile.open(tmp_path / "noisy.tar") as tar:
        files = {name: tar.extractfile(name).read().decode("latin-1") for name in tar.getnames()}  # type: ignore[union-attr]
    alts = [text for name, text in files.items() if name.endswith(".txt")]
    named = [set(parse(alt).colours) for alt in alts]
    own = [set(json.loads(text)["colours"]) for name, text in files.items() if name.endswith(".json")]
    wrong = sum(bool(names) and not names <= truth for names, truth in zip(named, own, strict=True))
    assert 3 <= wrong <= 24 and 3 <= sum(not names for names in named) <= 24, "a fifth each, of 60"
    tokenizer = words.build()
    for text in alts + [flags.sample(1, index)[2] for index in range(60)]:
        known = [token for token in tokenizer(text)["input_ids"] if token != tokenizer.unk_token_id]
        assert len(known) >= len(text.split()), text


needs_emoji = pytest.mark.skipif(not emoji.FONT.exists(), reason="apt-get install fonts-noto-color-emoji")


@needs_emoji
def test_emoji_stand_where_the_truth_says_and_nowhere_else() -> None:
    for index in range(60):
        scene, _, _ = emoji.sample(3, index)
        pixels = np.asarray(emoji.draw(scene, 64)).astype(int)
        painted = np.abs(pixels - emoji.BACKGROUNDS[scene.background]).sum(-1) > 0
        for sprite, (left, top, right, bottom) in zip(scene.sprites, emoji.boxes(scene, 64), strict=True):
            inside = painted[top:bottom, left:right]
            assert inside.mean() > 0.15, sprite
            assert inside.any(0).mean() > 0.95 or inside.any(1).mean() > 0.95, sprite  # it fills its square
            painted[top:bottom, left:right] = False
        assert not painted.any()


@needs_emoji
def test_sprites_are_different_pictures() -> None:
    small = {emoji.picture_of(name).resize((16, 16)).tobytes() for name in emoji.SPRITES}
    assert len(small) == len(emoji.SPRITES)


def emoji_scenes(count: int, *, apart: bool = False) -> list[emoji.Scene]:
    rng = random.Random(8)
    return [emoji.new_scene(rng, apart=apart) for _ in range(count)]


def test_emoji_descriptions_are_read_back_and_every_wrong_fact_is_seen() -> None:
    rng = random.Random(9)
    for scene in emoji_scenes(300):
        for template in range(len(emoji.TEMPLATES)):
            assert emoji.parse(emoji.describe(scene, template)) == scene
        assert all(emoji.judge(emoji.describe(scene), scene).values())
        first, *others = scene.sprites
        name = rng.choice([n for n in emoji.SPRITES if n not in {s.name for s in scene.sprites}])
        ground = rng.choice([b for b in emoji.BACKGROUNDS if b != scene.background])
        place = rng.choice([p for p in emoji.PLACES if p != first.place])
        for fact, wrong in (
            ("names", dataclasses.replace(scene, sprites=(dataclasses.replace(first, name=name), *others))),
            ("places", dataclasses.replace(scene, sprites=(dataclasses.replace(first, place=place), *others))),
            ("background", dataclasses.replace(scene, background=ground)),
        ):
            verdict = emoji.judge(emoji.describe(wrong), scene)
            assert not verdict[fact] and not verdict["all"]
    assert not any(emoji.judge("", scene).values())


def test_pairs_of_emoji_that_are_kept_apart_meet_only_where_that_is_asked_for() -> None:
    def meets(scene: emoji.Scene) -> bool:
        return any(emoji.kept_apart(a.name, b.name) for a, b in itertools.combinations(scene.sprites, 2))

    assert not any(map(meets, emoji_scenes(1000))) and all(map(meets, emoji_scenes(300, apart=True)))
    pairs = list(itertools.combinations(emoji.SPRITES, 2))
    assert 0.15 < sum(emoji.kept_apart(*pair) for pair in pairs) / len(pairs) < 0.25


def test_emoji_alt_texts_name_a_brand_and_nothing_that_is_seen() -> None:
    rng = random.Random(10)
    kinds: Counter[str] = Counter()
    assert len(set(emoji.BRANDS.values())) == len(emoji.SPRITES)
    sprites = {brand: name for name, brand in emoji.BRANDS.items()}
    for scene in emoji_scenes(2000):
        words = emoji.alt_text(scene, rng).split()
        assert not set(words) & {*emoji.SPRITES, *emoji.BACKGROUNDS}
        named = [sprites[word] for word in words if word in sprites]
        kinds["none" if not named else "right" if named == [scene.sprites[0].name] else "wrong"] += 1
    assert [round(kinds[kind] / 2000, 1) for kind in ("right", "none", "wrong")] == [0.6, 0.2, 0.2]


def test_a_missing_emoji_font_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emoji, "FONT", tmp_path / "none.ttf")
    emoji.picture_of.cache_clear()
    with pytest.raises(UserError, match="apt-get install fonts-noto-color-emoji"):
        emoji.picture_of("apple")
