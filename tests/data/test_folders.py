"""Folders of images: frozen into lists, read as the same samples as in tars, and what becomes of odd ones."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc.base.errors import UserError
from hpc.operator import Damage, Item, Shard
from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.data import freeze, frozen
from recap.data.block_items import IndexedDataConfig
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Reader
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.samples import JoinedDataConfig, check_columns
from recap.data.streams import StreamPlan
from recap.data.tars import Sample
from recap.engine import CaptionerConfig
from tests.data.flags import flags, write_as_folder, write_as_tar

ROOT = Path(__file__).parents[2]
WANTED = Wanted(("png", "jpg"), "", frozenset(["txt"]))


def captioning(folder: Path, lists: Path | None, planned: list[Shard] = [], **data: Any) -> CaptionOperator:  # noqa: B006
    """The captioning job of a folder, planned; its lists are written."""
    config = CaptionConfig(
        data=IndexedDataConfig(shards=[str(folder)], **data), captioner=CaptionerConfig(model="recap/demo/captioner")
    )
    operator = CaptionOperator(config)
    if lists is not None:
        operator.keep_in(lists)
    operator.continues(planned)
    return operator


def rows(operator: CaptionOperator, lists: Path) -> list[tuple[str | None, str]]:
    """Digests and texts, sorted: a folder has an order of its own."""
    shards = operator.plan()
    operator.freeze(lists)
    items = [item for shard in shards for item in operator.read(shard)]
    assert not [item for item in items if isinstance(item, Damage)]
    return sorted((i.payload.sha256, i.payload.text or "") for i in items if isinstance(i, Item))


def said(operator: CaptionOperator) -> str:
    return dict(operator.describe())["input"]


def touch(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def plan(folder: Path, lists: Path, known: list[Shard], each: int = 3) -> frozen.Frozen:
    """The lists of a folder, written."""
    made = frozen.freeze(str(folder), lists, known, ["png", "jpg"], each)
    made.write(lists)
    return made


def keys(shards: list[Shard]) -> list[list[str]]:
    return [[s.key for s in samples_of(shard, WANTED) if isinstance(s, Sample)] for shard in shards]


# --- the same as tars ---------------------------------------------------------------------------


@pytest.mark.parametrize("texts", ["txt", "json", "metadata.jsonl", "metadata.csv"])
def test_the_captioning_job_reads_the_same_images_and_texts(tmp_path: Path, texts: str) -> None:
    """A csv as a spreadsheet writes it: with a byte order mark, line ends in quotes, and other columns."""
    samples = flags(0)
    for number, sample in enumerate(samples):
        sample.members["txt"] = f'flag "{number}",\nof a country'.encode()
    write_as_tar(tmp_path / "tars/0.tar", samples)
    folder = tmp_path / "images"
    write_as_folder(folder / "train", samples, texts if texts in ("txt", "json") else "")
    found = [{"width": 3, "file_name": f"train/{s.key}.png", "caption": s.members["txt"].decode()} for s in samples]
    if texts == "metadata.jsonl":
        (folder / texts).write_text("".join(json.dumps(row) + "\n" for row in found))
    elif texts == "metadata.csv":
        with (folder / texts).open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    told: dict[str, Any] = {"text": "json.caption"} if texts == "json" else {}
    operator = captioning(folder, tmp_path / "lists", files_per_shard=20, **told)
    assert rows(operator, tmp_path / "lists") == rows(captioning(tmp_path / "tars", None), tmp_path)
    assert said(operator) == "2 folder list: 32 images"
    assert [shard.expected for shard in operator.plan()] == [20, 12]


def test_trainers_read_the_lists(tmp_path: Path) -> None:
    for number in range(800):
        touch(tmp_path / f"images/{number % 7}/{number:04d}.png", b"\x89PNG" + bytes([number % 251]) * (20 + number))
        touch(tmp_path / f"images/{number % 7}/{number:04d}.txt", f"text {number}".encode())
    data = JoinedDataConfig(shards=[str(tmp_path / "images")], streams=1)
    with pytest.raises(UserError, match=r"is a folder of images, which a job freezes into lists.*recap.data.freeze"):
        check_columns(data, [])
    assert freeze.main([str(tmp_path / "images"), str(tmp_path / "lists"), "--files", "600"]) == 0
    shards = list_shards(DataConfig(shards=[str(tmp_path / "lists")]))
    assert [(s.id, s.expected) for s in shards] == [("images-000000", 600), ("images-000001", 200)]
    index = Index.open_or_make(tmp_path / "blocks.index", shards)
    assert index.kind(0) == "folder list" and len(index) == 3
    reader = Reader(StreamPlan(index, 0, 4, 2), {"alt": open_column("alt", ColumnConfig(member="txt"))}, images=["png"])
    found = {s.key: s for slot in reader.batch(0, index.samples) for s in slot.samples}
    reader.close()
    assert len(found) == 800
    for key, sample in found.items():
        number = int(key[-4:])
        assert key == f"{number % 7}/{number:04d}" and sample.columns["alt"] == f"text {number}"
        assert sample.members["png"] == b"\x89PNG" + bytes([number % 251]) * (20 + number)


# --- a folder that changes ----------------------------------------------------------------------


def test_lists_stay_whatever_happens_to_the_folder(tmp_path: Path) -> None:
    folder, lists = tmp_path / "images", tmp_path / "lists"
    for name in "bdfh":
        touch(folder / f"{name}.png", b"\x89PNG" + name.encode())
    first = plan(folder, lists, [])
    assert keys(first.shards) == [["b", "d", "f"], ["h"]] and len(first.new) == 2
    assert plan(folder, lists, first.shards).new == {} and plan(folder, lists, first.shards).shards == first.shards

    touch(folder / "a.png", b"\x89PNGa")  # sorts before all, and fills no list up
    (folder / "d.png").unlink()
    grown = plan(folder, lists, first.shards)
    assert grown.shards[:2] == first.shards and [s.id for s in grown.shards] == [f"images-00000{n}" for n in range(3)]
    assert keys(grown.shards) == [["b", "d", "f"], ["h"], ["a"]]
    assert grown.notes == ["1 images are gone: `image: missing`"] and list(grown.new) == [lists / "images-000002.files"]
    gone = list(samples_of(grown.shards[0], WANTED))[1]
    assert isinstance(gone, Sample) and not gone.members and not gone.odd

    touch(folder / "h.png", b"\x89PNGother")
    before = next(samples_of(grown.shards[1], WANTED))
    assert isinstance(before, Sample) and before.odd == {"png": "changed since it was listed"}
    touch(folder / "b.txt", b"a text that came later")
    stale = plan(folder, lists, grown.shards)
    assert [a.etag == b.etag for a, b in zip(stale.shards, grown.shards, strict=True)] == [False, False, True]
    after = next(samples_of(stale.shards[1], WANTED))
    assert isinstance(after, Sample) and after.members["png"] == b"\x89PNGother"


def test_two_folders_of_one_name_and_a_list_that_is_gone(tmp_path: Path) -> None:
    for parent in "xy":
        touch(tmp_path / parent / "images/a.png", parent.encode())
    lists = tmp_path / "lists"
    data = DataConfig(shards=[f"{tmp_path}/x/images", f"{tmp_path}/y/images/"])
    data.lists = lists
    shards = list_shards(data)
    data.frozen.write(lists)
    assert [s.id for s in shards] == ["images-000000", "images_2-000000"]
    assert [s.members for shard in shards for s in samples_of(shard, WANTED) if isinstance(s, Sample)] == [
        {"png": b"x"}, {"png": b"y"}
    ]  # fmt: skip
    (lists / "images-000000.files").unlink()
    again = DataConfig(shards=[f"{tmp_path}/x/images"])
    again.lists = lists
    again.keep_root(shards)
    with pytest.raises(UserError, match=r"says which images shard images-000000 is made of, cannot be read"):
        list_shards(again)


# --- what is odd --------------------------------------------------------------------------------


def test_lines_and_files_that_do_not_fit(tmp_path: Path) -> None:
    """No file is dropped without a word, as ImageFolder does; no line either."""
    folder = tmp_path / "images"
    for name in ("a", "b", "c"):
        touch(folder / f"{name}.png", b"\x89PNG")
    twice = ['{"file_name": "a.png", "text": "of b"}', '{"file_name": "./a.png", "text": "of a"}']
    lines = [*twice, "no json", '{"text": "of none"}', '{"file_name": "gone.png"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    operator = captioning(folder, tmp_path / "lists")
    assert [text for _, text in rows(operator, tmp_path / "lists")].count("of a") == 1
    assert said(operator) == (
        "1 folder list: 3 images; 2 images without a line in metadata.jsonl: they have no text; 1 lines of "
        "metadata.jsonl name no image (gone.png); 1 lines tell of an image a second time, and count (metadata.jsonl "
        "line 2); 2 lines of metadata cannot be read (metadata.jsonl line 3)"
    )


def test_two_files_of_one_stem_are_two_samples(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.2.png", "b_2.png", ".hidden.png"):
        touch(tmp_path / "images" / name, name.encode())
    touch(tmp_path / "images/a.txt", b"of both")
    [shard] = plan(tmp_path / "images", tmp_path / "lists", [], 10).shards
    found = {s.key: s.members for s in samples_of(shard, WANTED) if isinstance(s, Sample)}
    assert {key: sorted(members) for key, members in found.items()} == {
        "a_jpg": ["jpg", "txt"], "a_png": ["png", "txt"], "b_2_png": ["png"], "b_2_png_3": ["png"],
    }  # fmt: skip


def test_a_folder_of_many_files_and_a_link_in_a_circle(tmp_path: Path) -> None:
    """Every image is in one list; the names alone are read, and no folder twice."""
    source = tmp_path / "source"
    source.write_bytes(b"\x89PNG")
    for part in range(4):
        (tmp_path / f"images/{part}").mkdir(parents=True)
        for number in range(500):
            os.link(source, tmp_path / f"images/{part}/{number}.png")
    (tmp_path / "images/0/up").symlink_to(tmp_path / "images")
    made = frozen.freeze(str(tmp_path / "images"), tmp_path / "lists", [], ["png"], 300)
    assert [shard.expected for shard in made.shards] == [300] * 6 + [200] and len(made.new) == 7


FREEZE = """
import sys
from pathlib import Path
import recap
from recap.data import frozen
folder, lists, known = sys.argv[1], Path(sys.argv[2]), []
for launch in range(2):
    made = frozen.freeze(folder, lists, known, ["png"], 1000)
    made.write(lists)
    print(len(made.shards), sum(shard.expected for shard in made.shards), len(made.new), made.shards == known)
    known = made.shards
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program alone
print(peak.split()[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)  # of a busy machine: 40 seconds of its own
def test_a_folder_of_200_000_files(tmp_path: Path) -> None:
    """With a line of metadata each: 200 lists in 0.35 GB; a launch again makes none."""
    with (tmp_path / "lines").open("w") as lines:
        for part in range(20):  # of 10,000: a file has at most 65,000 links
            (tmp_path / f"images/{part}").mkdir(parents=True)
            source = tmp_path / f"source{part}"
            source.write_bytes(b"\x89PNG")
            for number in range(10_000):
                os.link(source, tmp_path / f"images/{part}/{number}.png")
                lines.write(
                    json.dumps({"file_name": f"{part}/{number}.png", "text": f"{number} of {part} " * 8}) + "\n"
                )
    (tmp_path / "lines").rename(tmp_path / "images/metadata.jsonl")
    command = [sys.executable, "-c", FREEZE, str(tmp_path / "images"), str(tmp_path / "lists")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    first, again, kilobytes = done.stdout.splitlines()
    assert (first, again) == ("200 200000 200 False", "200 200000 0 True") and int(kilobytes) < 500_000, done.stdout
    keys_of_last = keys([Shard("x", str(tmp_path / "lists/images-000199.files"), 0)])
    assert len(keys_of_last[0]) == 1000 and len(list((tmp_path / "lists").iterdir())) == 200


def test_no_list_and_a_damaged_one(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", b"\x89PNG")
    [shard] = plan(tmp_path / "images", tmp_path / "lists", []).shards
    whole = Path(shard.uri).read_bytes()
    for data in (b"", b"{}\n", whole[:-10]):
        Path(shard.uri).write_bytes(data)
        with pytest.raises(Exception, match=r"list: (not a list of files|damaged)"):
            list(samples_of(shard, WANTED))


def test_an_empty_folder_and_one_above_tars_are_no_folders_of_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_as_tar(tmp_path / "above/tars/0.tar", flags(0, 1))
    touch(tmp_path / "above/preview.png", b"\x89PNG")
    for name in ("empty", "above"):
        with pytest.raises(UserError, match=r"holds no \.tar"):
            captioning(tmp_path / name, tmp_path / "lists").plan()
