"""Groups of near hashes: what a comparison of each with each finds, in flat memory, and selections by it."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hpc.base.errors import UserError
from recap.select.near import Groups, NearDuplicates, block_masks
from recap.select.settings import FARTHEST, Rule, SelectConfig, check
from recap.worlds.tars import write_tar
from tests.data.corpus import build, keys
from tests.select.worlds import given, kept, selecting
from tests.support.jobs import inline
from tests.support.published import published, rows_of


def planted(count: int, seed: int, most: int = 7) -> np.ndarray:
    """int64: hashes of which many are others with up to `most` bits turned, and many are equal."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(count // 3, count):
        turned = rng.choice(64, rng.integers(0, most + 1), replace=False)
        values[place] = values[rng.integers(0, place)] ^ np.bitwise_or.reduce(
            np.array([0, *(1 << int(bit) for bit in turned)], np.uint64)
        )
    return rng.permutation(values).view(np.int64)


def by_hand(values: np.ndarray, distance: int) -> list[int]:
    """Of each row the first row of its group, by comparing each with each."""
    bits = np.bitwise_count(values.view(np.uint64)[:, None] ^ values.view(np.uint64)[None])
    near, first = bits <= distance, np.arange(len(values))
    while True:
        least = np.where(near, first[None], len(values)).min(1)
        if (least == first).all():
            return first.tolist()
        first = least


@pytest.mark.parametrize("distance", [1, 3, 4, 8, FARTHEST])
def test_groups_are_those_of_comparing_each_with_each(tmp_path: Path, distance: int) -> None:
    values = planted(250, distance)
    places = np.arange(len(values), dtype=np.int64) * 7 - 1000
    with NearDuplicates(tmp_path, distance) as counted:
        for start in range(0, len(values), 90):
            counted.add(values[start : start + 90], places[start : start + 90])
        found = counted.more_than([1, 2, 9])
    assert not list(tmp_path.iterdir())
    first = by_hand(values, distance)
    assert len(set(first)) < len(np.unique(values))  # more falls together than what is equal
    for limit, (near, at, rows) in found.items():
        sizes = {group: first.count(group) for group in set(first)}
        wanted = {int(v): group for v, group in zip(values, first, strict=True) if sizes[group] > limit}
        assert near.tolist() == sorted(wanted)
        assert at.tolist() == [places[wanted[int(value)]] for value in near]
        assert rows == sum(size for size in sizes.values() if size > limit)


def test_a_chain_is_one_group_and_a_step_too_wide_parts_it(tmp_path: Path) -> None:
    steps = np.cumsum([0, *([2] * 20), 3, *([2] * 8)])  # bits that are set, from the lowest
    values = np.array([(1 << int(bits)) - 1 for bits in steps], np.uint64).view(np.int64)
    with NearDuplicates(tmp_path, 2) as counted:
        counted.add(values[::-1].copy(), np.arange(len(values), dtype=np.int64))
        near, first, rows = counted.more_than([1])[1]
    assert rows == len(values) == len(near) and set(first.tolist()) == {0, 9}
    with NearDuplicates(tmp_path, 4) as counted:
        counted.add(values[:0], values[:0])
        assert [len(part) for part in counted.more_than([1])[1][:2]] == [0, 0]


def test_joining_in_any_order_gives_the_least_of_each_group() -> None:
    rng = np.random.default_rng(1)
    order = rng.permutation(3000)
    one, other = order[:-1], order[1:]  # one path through all, but for what is cut
    cut = rng.random(len(one)) < 0.01
    groups = Groups(np.empty(3000, np.int64))
    for start in range(0, len(one), 500):
        chosen = ~cut[start : start + 500]
        groups.join(one[start : start + 500][chosen], other[start : start + 500][chosen])
    paths = np.split(order, np.flatnonzero(cut) + 1)
    least = {int(thing): int(path.min()) for path in paths for thing in path}
    assert groups.of(np.arange(3000)).tolist() == [least[thing] for thing in range(3000)]


def test_blocks_hold_all_bits_once_and_more_hashes_get_longer_keys() -> None:
    for count in (0, 1, 1000, 10**7, 10**9):
        for distance in range(1, FARTHEST + 1):
            masks = block_masks(count, distance)
            assert sum(int(mask) for mask in masks) == 2**64 - 1 and len(masks) > distance
    assert len(block_masks(10**9, 4)) > len(block_masks(100, 4)) == 5


@pytest.mark.slow
def test_four_million_hashes_in_little_memory(tmp_path: Path) -> None:
    """Of which 100,000 are another one with 1 to 3 bits turned: these and no others are found."""
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**64, 4_000_000, dtype=np.uint64)
    sources = rng.choice(2_000_000, 100_000, replace=False)
    masks = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (100_000, 3), dtype=np.uint64), axis=1)
    values[-100_000:] = values[sources] ^ masks
    values = values.view(np.int64)
    tracemalloc.start()
    with NearDuplicates(tmp_path, 3) as counted:
        for start in range(0, len(values), 10_000):
            counted.add(values[start : start + 10_000], np.arange(start, start + 10_000))
        near, first, rows = counted.more_than([1])[1]
    assert tracemalloc.get_traced_memory()[1] < 250e6
    tracemalloc.stop()
    assert rows == len(near) == 200_000
    assert sorted(first.tolist()) == sorted(np.repeat(sources, 2).tolist())


# --- rules --------------------------------------------------------------------------------------


def test_a_rule_keeps_the_first_of_near_ones(tmp_path: Path) -> None:
    """Over shards: the whole way from a column of hashes to what is kept, against a comparison of each with each."""
    counts = [70, 1, 60]
    build(tmp_path, counts)
    names = [key for shard, count in enumerate(counts) for key in keys(shard, count)]
    values = planted(len(names), 5)
    rows: dict[str, dict[str, int | None]] = {
        name: {"phash": int(value)} for name, value in zip(names, values, strict=True)
    }
    rows[names[3]], rows[names[80]] = {}, {"phash": None}
    given(tmp_path, "facts", rows)
    file = str(tmp_path / "near.json")
    asked = ["--shared", "phash=1:4", "--shared", "phash=2:4", "--shared", "phash=1"]
    done = inline("recap.select.statistics", str(tmp_path / "facts"), "--out", file, *asked)
    assert done.returncode == 0 and "within 4 bits of it" in done.stdout, done.stderr
    there = [name for name in names if rows[name].get("phash") is not None]
    seen = np.array([rows[name]["phash"] for name in there])
    for distance, limit, first in ((4, 1, True), (4, 1, False), (4, 2, True), (0, 1, True)):
        rule = {"column": "hash", "shared_by": limit, "first": first, "distance": distance, "statistics": file}
        job = selecting(tmp_path, f"near-{distance}-{limit}-{first}", columns={"hash": ("facts", "phash")},
                        rules={"twice": rule})  # fmt: skip
        groups = by_hand(seen, distance)
        wanted = [
            name
            for row, (name, group) in enumerate(zip(there, groups, strict=True))
            if groups.count(group) <= limit or (first and group == row)
        ]
        found = rows_of(published(job))
        assert kept(found) == wanted and len(wanted) < len(there)
        assert {row["reason"] for row in found} == {"", "twice", "twice: no value"}


def test_pictures_that_were_changed_a_little_are_near_duplicates(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    scenes = [_scene(rng) for _ in range(12)]
    members: list[dict[str, bytes]] = []
    for scene in scenes:
        members += [{"png": _saved(scene, "PNG")}, {"png": _saved(scene.resize((97, 61)), "JPEG", quality=35)}]
        members.append({"png": _saved(scene.point(lambda level: min(255, level + 12)), "JPEG", quality=60)})
    with (tmp_path / "0.tar").open("wb") as tar:
        write_tar(tar, ((f"{at:04}", made) for at, made in enumerate(members)))
    facts = published({
        "name": "facts", "runs": str(tmp_path), "operator": "recap.score.operator.ScoreOperator", "decode_workers": 0,
        "data": {"shards": [f"{tmp_path}/0.tar"]}, "texts": [], "scorers": {"facts": {}},
    })  # fmt: skip
    file, left = str(tmp_path / "near.json"), {}
    assert inline("recap.select.statistics", str(facts.path), "--out", file, "--shared", "phash=1:8", "--shared",
                  "phash=1").returncode == 0  # fmt: skip
    for distance in (0, 8):
        rule = {"column": "hash", "shared_by": 1, "first": True, "distance": distance, "statistics": file}
        job = selecting(tmp_path, f"kept-{distance}", columns={"hash": ("facts", "phash")}, rules={"twice": rule})
        left[distance] = kept(rows_of(published(job)))
    assert left[8] == [f"{3 * number:04}" for number in range(len(scenes))]
    assert len(left[0]) > len(left[8])


def _scene(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (160, 100), tuple(rng.integers(0, 240, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(9):
        left, top = rng.integers(0, 120), rng.integers(0, 70)
        box = [int(n) for n in (left, top, left + rng.integers(20, 70), top + rng.integers(20, 60))]
        pen.ellipse(box, fill=tuple(rng.integers(0, 240, 3).tolist()))
    return image


def _saved(image: Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "asked, said",
    [("phash=1:17", "write FIELD and a number"), ("phash=1:-1", "write FIELD"), ("phash=0:4", "write FIELD"),
     ("phash=1:x", "10, or of hashes 1:4"), ("text=1:2", "text of .* is a string: distances are between int64 hashes")],
)  # fmt: skip
def test_distances_that_cannot_be(tmp_path: Path, asked: str, said: str) -> None:
    build(tmp_path, [4])
    given(tmp_path, "facts", {key: {"phash": 5, "text": "a"} for key in keys(0, 4)})
    done = inline("recap.select.statistics", f"{tmp_path}/facts", "--out", f"{tmp_path}/e.json", "--shared", asked)
    assert done.returncode == 64
    assert re.search(said, " ".join(done.stderr.split()))


def test_a_distance_is_of_shared_values_alone() -> None:
    for rule in (Rule("a", above=1, distance=2), Rule("a", shared_by=1, distance=17, statistics="x")):
        with pytest.raises(UserError, match=r"`rules.r.distance`: \d+: 0 to 16 bits, and only with shared_by"):
            check(SelectConfig(rules={"r": rule}))


def test_statistics_of_another_distance_are_named(tmp_path: Path) -> None:
    build(tmp_path, [4])
    given(tmp_path, "facts", {key: {"phash": 5} for key in keys(0, 4)})
    file = str(tmp_path / "e.json")
    done = inline("recap.select.statistics", f"{tmp_path}/facts", "--out", file, "--shared", "phash=1:4")
    assert done.returncode == 0, done.stderr
    rule = {"column": "hash", "shared_by": 1, "first": True, "distance": 3, "statistics": file}
    job = selecting(tmp_path, columns={"hash": ("facts", "phash")}, rules={"twice": rule})
    with pytest.raises(UserError, match=r"has no --shared phash=1:3; it has --shared phash=1:4\. Make it again"):
        published(job)
