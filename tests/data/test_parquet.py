"""Parquet files as shards: the same samples as in tars, read whole and block by block; and files that are not as they
should be.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Item, Shard
from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.data.block_items import IndexedDataConfig
from recap.data.blocks import BLOCK
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.index import Index
from recap.data.index_job import IndexConfig, IndexOperator
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Reader
from recap.data.kind import Wanted
from recap.data.kinds import described, parquet, samples_of
from recap.data.samples import JoinedDataConfig, check_columns
from recap.data.streams import StreamPlan
from recap.data.tars import Sample
from recap.engine import CaptionerConfig
from tests.data.flags import STRUCT, flags, table, write_as_parquet, write_as_tar

IMAGES = Wanted(("png",), "", frozenset(["txt"]))


def shards_of(*paths: Path, **settings: Any) -> list[Shard]:
    return list_shards(DataConfig(shards=[str(path) for path in paths], **settings))


def captioning(folder: Path, **data: Any) -> tuple[CaptionOperator, list[Shard]]:
    """The captioning job of a folder, and its plan."""
    config = CaptionConfig(
        data=IndexedDataConfig(shards=[str(folder)], **data), captioner=CaptionerConfig(model="recap/demo/captioner")
    )
    operator = CaptionOperator(config)
    return operator, operator.plan()


def asked(operator: CaptionOperator, shards: list[Shard]) -> list[tuple[str | None, str | None, str]]:
    """Digest of the image, text and reason of every row that the job would work on."""
    items = [item for shard in shards for item in operator.read(shard)]
    assert not [item for item in items if isinstance(item, Damage)]
    return [(i.payload.sha256, i.payload.text, i.payload.reason) for i in items if isinstance(i, Item)]


def keys(operator: CaptionOperator, shards: list[Shard]) -> list[str]:
    return [item.key for shard in shards for item in operator.read(shard) if isinstance(item, Item)]


def tiny(count: int) -> pa.Table:
    """Rows with images of 40 bytes."""
    rng = random.Random(count)
    pictures = [{"bytes": b"\x89PNG" + rng.randbytes(36), "path": None} for _ in range(count)]
    return pa.table({"image": pa.array(pictures, STRUCT), "text": [f"text {i}" for i in range(count)]})


def members(found: list[Sample | Damage]) -> list[dict[str, bytes]]:
    assert not [sample for sample in found if isinstance(sample, Damage)]
    return [dict(sample.members) for sample in found if isinstance(sample, Sample)]


# --- the same as tars ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["struct", "binary", "downloader"])
def test_the_captioning_job_reads_the_same_images_and_texts(tmp_path: Path, shape: str) -> None:
    samples = flags(0)
    samples[3].members.pop("png")
    samples[5].members.pop("txt")
    write_as_tar(tmp_path / "tars/0.tar", samples)
    names: dict[str, Any] = {"image": "jpg", "text": "caption"} if shape == "downloader" else {}
    write_as_parquet(tmp_path / "tables/0.parquet", samples, struct=shape == "struct", **names)
    tars, tables = captioning(tmp_path / "tars"), captioning(tmp_path / "tables")
    assert asked(*tables) == asked(*tars)
    assert keys(*tables)[:2] == ["00000000", "00000001"]
    assert tables[1][0].expected == len(samples) and tables[1][0].id == tars[1][0].id == "0"
    columns = ("jpg", "caption") if names else ("image", "text")
    assert ("input", "1 parquet: images in `{}`, txt in `{}`".format(*columns)) in tables[0].describe()
    assert ("input", "1 tar") in tars[0].describe()


def test_texts_in_json_and_keys_in_a_column(tmp_path: Path) -> None:
    samples = flags(1)
    write_as_tar(tmp_path / "tars/0.tar", samples)
    write_as_parquet(tmp_path / "tables/0.parquet", samples, text="Caption")
    tars, tables = captioning(tmp_path / "tars"), captioning(tmp_path / "tables", text="json.Caption", key="ID")
    assert asked(*tables) == asked(*tars)
    assert keys(*tables) == [sample.key for sample in samples]


def test_a_struct_of_texts_and_a_list_are_read_as_members(tmp_path: Path) -> None:
    rows = [{"image": b"\xff\xd8", "json": {"caption": "a"}, "captions": ["b", None, "c"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "0.parquet")
    [sample] = samples_of(shards_of(tmp_path)[0], Wanted(("jpg",), "", frozenset(["json", "captions"])))
    assert isinstance(sample, Sample)
    assert json.loads(sample.members["json"]) == {"caption": "a"} and sample.members["captions"] == b"b\nc"
    assert sample.members["jpg"] == b"\xff\xd8"


@pytest.mark.parametrize("group", [100, 512, 5000])
def test_trainers_read_every_block(tmp_path: Path, group: int) -> None:
    """Row groups shorter and longer than a block; a column of the run beside it; the index from its file."""
    counts = (1300, 700)
    for shard, count in enumerate(counts):
        pq.write_table(tiny(count), tmp_path / f"{shard}.parquet", row_group_size=group)
        (tmp_path / "column").mkdir(exist_ok=True)
        names = [f"{i:08d}" for i in range(count)]
        made = pa.table({"key": names, "caption": [f"of {shard} {key}" for key in names], "status": ["ok"] * count})
        pq.write_table(made, tmp_path / f"column/{shard}.parquet", row_group_size=BLOCK)
    shards = shards_of(tmp_path)
    index = Index.open_or_make(tmp_path / "blocks.index", shards)
    assert index.samples == sum(counts) and [index.kind(i) for i in (0, 1)] == ["parquet", "parquet"]
    assert [index.block(1).origin, index.block(1).skip] == {100: [5, 12], 512: [1, 0], 5000: [0, 512]}[group]
    columns = {
        "alt": open_column("alt", ColumnConfig(member="txt")),
        "re": open_column("re", ColumnConfig(folder=str(tmp_path / "column"), field="caption")),
    }
    reader = Reader(StreamPlan(index, 0, 4, 2), columns, images=["png"])
    found = {s.name: s for slot in reader.batch(0, index.samples) for s in slot.samples}
    reader.close()
    whole = {f"{shard.id}/{s.key}": s for shard in shards for s in samples_of(shard, IMAGES) if isinstance(s, Sample)}
    assert found.keys() == whole.keys() and len(found) == sum(counts)
    for name, sample in found.items():
        assert dict(sample.members) == whole[name].members
        assert sample.columns["re"] == f"of {name.replace('/', ' ')}"
        assert sample.columns["alt"] == f"text {int(sample.key)}"
    assert reader.bytes_read > 0


def test_a_large_row_group_is_read_once_for_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it is more than may be kept, blocks are read all the same."""
    pq.write_table(tiny(2000), tmp_path / "0.parquet", row_group_size=2000)
    shards = shards_of(tmp_path)
    index = Index.open_or_make(None, shards)
    read: list[list[int]] = []
    for most in (1 << 30, 1000):
        monkeypatch.setattr(parquet, "KEPT", most)
        kind, sizes = parquet.Parquet(), list[int]()
        blocks = [kind.block(shards[0], index.block(n), IMAGES, sizes.append) for n in range(len(index))]
        assert [s.members["txt"] for block in blocks for s in block] == [f"text {i}".encode() for i in range(2000)]
        read.append(sizes)
    assert [len(sizes) for sizes in read] == [1, 4]


# --- planning -----------------------------------------------------------------------------------


def test_parquet_files_beside_tars_tell_of_them(tmp_path: Path) -> None:
    for number in range(2):
        write_as_tar(tmp_path / f"{number}.tar", flags(number, 3))
        pq.write_table(pa.table({"key": ["a"], "status": ["success"]}), tmp_path / f"{number}.parquet")
    assert [shard.uri[-5:] for shard in shards_of(tmp_path)] == ["0.tar", "1.tar"]
    assert [shard.uri[-5:] for shard in shards_of(tmp_path / "*")] == ["0.tar", "1.tar"]
    named = shards_of(tmp_path / "*.parquet")
    assert [shard.id for shard in named] == ["0", "1"] and [shard.expected for shard in named] == [1, 1]
    with pytest.raises(UserError, match=r"no column holds images. Write data.image=\[COLUMN\]. Its columns: key"):
        described(named, IMAGES)
    mixed = shards_of(tmp_path / "0.tar", tmp_path / "1.parquet")
    assert [shard.id for shard in mixed] == ["0", "1"]
    with pytest.raises(UserError, match=r"0\.parquet and .*0\.tar would both be shard 0"):
        shards_of(tmp_path / "0.tar", tmp_path / "0.parquet")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": pa.array([b"x"]), "b": pa.array([b"y"])}, r"several columns may hold the images \(a, b\)"),
        ({"image": pa.array([{"path": "/etc/passwd"}])}, "column image holds paths alone, without the images' bytes"),
        ({"url": pa.array(["http://nowhere"])}, "no column holds images"),
    ],
)
def test_tables_whose_images_are_not_clear_are_refused(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "0.parquet")
    with pytest.raises(UserError, match=said):
        captioning(tmp_path)
    with pytest.raises(UserError, match=said):
        check_columns(JoinedDataConfig(shards=[str(tmp_path)], streams=1), [])


def test_the_index_as_a_job_is_of_tars(tmp_path: Path) -> None:
    write_as_parquet(tmp_path / "0.parquet", flags(0, 3))
    with pytest.raises(UserError, match=r"0.parquet is no tar"):
        IndexOperator(IndexConfig(data=DataConfig(shards=[str(tmp_path)]))).plan()


def test_a_column_of_keys_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_as_parquet(tmp_path / "0.parquet", flags(0, 3))
    with pytest.raises(UserError, match=r"no column is called uid. Correct data.key. Its columns: image"):
        captioning(tmp_path, key="uid")


# --- what is odd --------------------------------------------------------------------------------


def test_schemas_that_differ_between_files(tmp_path: Path) -> None:
    """Each file by its own columns; that they differ is said beforehand, a file without images is damaged."""
    write_as_parquet(tmp_path / "0.parquet", flags(0, 4))
    write_as_parquet(tmp_path / "1.parquet", flags(1, 4), image="picture", struct=False, text="caption")
    pq.write_table(table(flags(2, 4)).drop(["image"]), tmp_path / "2.parquet")
    operator, shards = captioning(tmp_path)
    assert "other columns in 2 of 3 that were looked at, as" in dict(operator.describe())["input"]
    assert [len([i for i in operator.read(s) if isinstance(i, Item) and i.payload.image]) for s in shards] == [4, 4, 0]
    *rows, damage = operator.read(shards[2])
    assert [(row.payload.reason, row.lost) for row in rows if isinstance(row, Item)] == [("image: missing", "")] * 4
    assert damage == Damage("images: no such column", "no column holds images")


def test_null_images_and_paths_without_bytes(tmp_path: Path) -> None:
    pictures = [{"bytes": b"\x89PNG1", "path": None}, None, {"bytes": None, "path": "/etc/passwd"}, {}]
    rows = pa.table({"image": pa.array([*pictures, {"bytes": b"", "path": "x"}], STRUCT)})
    pq.write_table(rows, tmp_path / "0.parquet", row_group_size=3)
    operator, shards = captioning(tmp_path)
    reasons = [item.payload.reason for item in operator.read(shards[0]) if isinstance(item, Item)]
    assert reasons == ["", "image: missing", "image: a path without its bytes", "image: missing", ""]
    assert Index.open_or_make(None, shards).samples == 5


def test_keys_that_come_back(tmp_path: Path) -> None:
    rows = tiny(600).append_column("id", pa.array([None if i == 7 else f"k{i % 599}" for i in range(600)]))
    pq.write_table(rows, tmp_path / "0.parquet")
    shards = shards_of(tmp_path)
    wanted = Wanted(("png",), "id")
    found = [sample for sample in samples_of(shards[0], wanted) if isinstance(sample, Sample)]
    assert found[7].key == "00000007" and found[599].problems == ["key: duplicate"]
    index = Index.open_or_make(None, shards, wanted=wanted)
    assert index.block(1).problems == {87: "key: duplicate"} and index.block(1).first == "k512"


def test_a_damaged_row_group_is_as_many_rows(tmp_path: Path) -> None:
    """Nothing after it moves, in the job and in the blocks; what an id column says of it is kept."""
    file = tmp_path / "0.parquet"
    rows = tiny(900).append_column("id", pa.array([f"k{i}" for i in range(900)]))
    pq.write_table(rows, file, row_group_size=300, write_page_checksum=True)
    whole = list(samples_of(shards_of(tmp_path)[0], Wanted(("png",), "id", frozenset(["txt"]))))
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset + 2000] ^= 255
    file.write_bytes(data)
    for key in ("", "id"):
        wanted = Wanted(("png",), key, frozenset(["txt"]))
        *found, damage = samples_of(shards_of(tmp_path)[0], wanted)
        assert isinstance(damage, Damage) and damage.reason == "parquet: a row group cannot be read"
        assert damage.detail.startswith("row group 1 at its row 0: ")
        samples = [sample for sample in found if isinstance(sample, Sample)]
        assert [s.key for s in samples] == [f"k{i}" if key else f"{i:08d}" for i in range(900)]
        lost = range(300, 600)
        assert all(s.odd == {"png": parquet.LOST, "txt": parquet.LOST} for s in samples[300:600])
        operator, plan = captioning(tmp_path, key=key)
        items = [item for item in operator.read(plan[0]) if isinstance(item, Item)]
        read = [*items, *operator.read_blocks(plan[0], [0, 1])]
        assert [i.lost for i in read] == ["input: in a damaged row group" if i.index in lost else "" for i in read]
        assert all(samples[i].members == whole[i].members for i in range(900) if i not in lost)  # type: ignore[union-attr]
        shards = shards_of(tmp_path)
        index = Index.open_or_make(None, shards, wanted=wanted)
        blocks = [parquet.Parquet().block(shards[0], index.block(n), wanted, lambda size: None) for n in (0, 1)]
        assert [(s.key, s.members) for block in blocks for s in block] == [(s.key, s.members) for s in samples]


@pytest.mark.parametrize("said", [b"\x16\xfe\x7f", b"\x16\xd7\x04"])
def test_a_footer_that_says_more_rows_than_there_are(tmp_path: Path, said: bytes) -> None:
    """8,191 rows of a group of 300, or -300: none is made up."""
    pq.write_table(tiny(900), tmp_path / "0.parquet", row_group_size=300)
    data = (tmp_path / "0.parquet").read_bytes()
    at = data.rindex(b"\x16\xd8\x04")  # RowGroup.num_rows = 300, in Thrift's compact protocol
    (tmp_path / "0.parquet").write_bytes(data[:at] + said + data[at + 3 :])
    [damage] = samples_of(Shard("0", str(tmp_path / "0.parquet"), len(data)), IMAGES)
    assert isinstance(damage, Damage) and "rows has a column of 300 values" in damage.detail


@pytest.mark.parametrize("how", ["cut", "text", "empty"])
def test_files_without_a_footer(tmp_path: Path, how: str) -> None:
    """No rows, and the shard says what it looks like; it does not stop the plan."""
    write_as_parquet(tmp_path / "0.parquet", flags(0, 4))
    write_as_parquet(tmp_path / "1.parquet", flags(0, 4))
    whole = (tmp_path / "0.parquet").read_bytes()
    (tmp_path / "0.parquet").write_bytes({"cut": whole[:5000], "text": b"<html>gone</html>", "empty": b""}[how])
    operator, shards = captioning(tmp_path)
    assert [shard.expected for shard in shards] == [None, 4]
    [damage] = operator.read(shards[0])
    assert isinstance(damage, Damage) and damage.reason == "parquet: no footer that can be read"
    assert ("HTML" in damage.detail) == (how == "text")
    assert Index.open_or_make(None, shards).samples == 4


def test_a_file_that_changed_or_went_since_the_plan(tmp_path: Path) -> None:
    write_as_parquet(tmp_path / "0.parquet", flags(0, 4))
    [shard] = shards_of(tmp_path)
    write_as_parquet(tmp_path / "0.parquet", flags(0, 5))
    with pytest.raises(ShardError, match="changed since the plan"):
        list(samples_of(shard, IMAGES))
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(ShardError, match="does not exist"):
        list(samples_of(shard, IMAGES))
