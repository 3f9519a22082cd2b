"""The flags that ship: tars rebuild to the same bytes, the truth agrees with pixels and texts, sizes hold."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from recap.demo import CAPTIONER, DESCRIPTIONS, FLAGS, FLAGS_TRUTH
from recap.demo.build_flags import Flag as BuiltFlag
from recap.demo.build_flags import visual_part, write_descriptions
from recap.demo.build_truth import colour_shares, layouts, pictures, split
from recap.evaluate.captioner import read_truth
from recap.worlds.flag_captions import layout_in
from recap.worlds.tars import write_tar

SHARDS = sorted(FLAGS.glob("*.tar"))


def samples(path: Path) -> dict[str, dict[str, bytes]]:
    """key -> extension -> bytes, in tar order."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            file = tar.extractfile(member)
            assert file is not None
            found.setdefault(key, {})[extension] = file.read()
    return found


def descriptions() -> dict[str, str]:
    """key -> human description, "" where there is none."""
    rows = [row for path in DESCRIPTIONS.glob("*") for row in pq.read_table(path).to_pylist()]
    return {row["key"]: row["text"] for row in rows}


def test_eight_small_shards_with_unique_keys() -> None:
    keys = [key for path in SHARDS for key in samples(path)]
    assert len(SHARDS) == 8
    assert len(keys) == len(set(keys)) == 252
    assert sum(path.stat().st_size for path in SHARDS) < 4e6


@pytest.mark.parametrize("path", SHARDS[::3], ids=lambda path: path.name)
def test_packing_the_same_samples_gives_the_same_bytes(path: Path) -> None:
    packed = io.BytesIO()
    write_tar(packed, samples(path).items())
    assert packed.getvalue() == path.read_bytes()


@pytest.mark.parametrize("path", SHARDS[::3], ids=lambda path: path.name)
def test_samples_hold_an_opaque_picture_a_raw_text_and_their_digest(path: Path) -> None:
    for key, files in samples(path).items():
        about = json.loads(files["json"])
        assert about["iso"] == key
        assert files["txt"].decode() == f"Flag of {about['name']}"
        assert hashlib.sha256(files["png"]).hexdigest() == about["sha256"]
        with Image.open(io.BytesIO(files["png"])) as picture:
            assert picture.mode == "RGB"
            assert picture.width == 128


def test_descriptions_lie_in_tar_order_and_account_for_every_sample(tmp_path: Path) -> None:
    for path in SHARDS:
        column = DESCRIPTIONS / f"{path.stem}.parquet"
        rows = pq.read_table(column).to_pylist()
        assert [row["key"] for row in rows] == list(samples(path))
        for row in rows:
            assert (row["status"] == "ok") == bool(row["text"]) == (not row["reason"])
    flags = [BuiltFlag(row["key"], "", b"", row["text"], row["reason"]) for row in rows]
    write_descriptions(tmp_path / "again.parquet", flags)
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(column))


def test_flags_are_joined_by_internet_code_not_by_file_name() -> None:
    """GEC "as" is Australia and "au" Austria: a join on file names would swap such flags."""
    texts = descriptions()
    assert texts["at"].startswith("three equal horizontal bands of red (top), white, and red")
    assert texts["au"].startswith("blue with the flag of the UK")
    assert texts["ch"].startswith("red square with a bold, equilateral white cross")


def test_symbolism_is_cut_off() -> None:
    text = "red with a white disk; the disk bears a star; white stands for peace; the star has five points"
    assert visual_part(text) == "red with a white disk; the disk bears a star"


def test_truth_matches_the_pixels_of_the_shipped_pictures() -> None:
    truths = {truth.key: truth for truth in read_truth(FLAGS_TRUTH, "all")}
    seen = {iso: png for iso, _, png in pictures(FLAGS) if iso in truths}
    assert seen.keys() == truths.keys()
    for iso, truth in truths.items():
        shares = colour_shares(Image.open(io.BytesIO(seen[iso])))
        for colour, share in truth.shares.items():
            assert shares[colour] == pytest.approx(share, abs=0.003), (iso, colour)


def test_truth_rows_are_consistent() -> None:
    """Bands by hand and colours from pixels are independent: they must agree. Splits are frozen by hash."""
    table = layouts()
    for truth in read_truth(FLAGS_TRUTH, "all"):
        assert (truth.layout, list(truth.bands)) == table[truth.key]
        for band in truth.bands:
            assert truth.shares.get(band, 0) > 0.02, (truth.key, band)
        assert all(one != other for one, other in pairwise(truth.bands))
    heldout = {truth.key for truth in read_truth(FLAGS_TRUTH, "heldout")}
    assert heldout == {truth.key for truth in read_truth(FLAGS_TRUTH, "all") if split(truth.key) == "heldout"}
    assert len(heldout) > 100


def test_no_picture_counts_twice() -> None:
    keys = {truth.key for truth in read_truth(FLAGS_TRUTH, "all")}
    digests = Counter(hashlib.sha256(png).hexdigest() for iso, _, png in pictures(FLAGS) if iso in keys)
    assert max(digests.values()) == 1


def test_layouts_by_hand_mostly_agree_with_the_human_texts() -> None:
    """A gross error of the hand-made table (a shifted row) would show as disagreement with the texts."""
    texts = descriptions()
    truths = read_truth(FLAGS_TRUTH, "all")
    agree = sum(layout_in(texts[truth.key]) == truth.layout for truth in truths)
    assert agree / len(truths) > 0.8


def test_the_captioner_is_small_and_its_licence_is_named() -> None:
    assert sum(path.stat().st_size for path in CAPTIONER.iterdir()) <= 4e6
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    for name in (
        "recap/demo/flags/",
        "flags_columns/description",
        "flags_truth.csv",
        "recap/demo/captioner/",
    ):
        assert re.search(re.escape(name), notice)
