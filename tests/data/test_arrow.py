"""Folders of `datasets`' save_to_disk as shards: the same samples as in tars, whole and by blocks; and damaged ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Item, Shard
from recap.caption.operator import CaptionConfig, CaptionOperator
from recap.data.block_items import IndexedDataConfig
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import arrow, samples_of
from recap.data.tars import Sample
from recap.engine import CaptionerConfig
from tests.data.flags import STRUCT, flags, table, write_as_tar

IMAGES = Wanted(("png",), "", frozenset(["txt"]))


def write(file: Path, rows: pa.Table, batch: int, random_access: bool = False) -> None:
    """Record batches of `batch` rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    make = pa.ipc.new_file if random_access else pa.ipc.new_stream
    with pa.OSFile(str(file), "wb") as out, make(out, rows.schema) as writer:
        writer.write_table(rows.combine_chunks(), max_chunksize=batch)


def tiny(count: int) -> pa.Table:
    rng = random.Random(count)
    pictures = [{"bytes": b"\x89PNG" + rng.randbytes(36), "path": None} for _ in range(count)]
    rows = {"image": pa.array(pictures, STRUCT), "text": [f"text {i}" for i in range(count)]}
    return pa.table(rows | {"id": [f"k{i}" for i in range(count)]})


def shards_of(path: Path) -> list[Shard]:
    return list_shards(DataConfig(shards=[str(path)]))


def asked(folder: Path) -> list[tuple[str, str | None]]:
    data = IndexedDataConfig(shards=[str(folder)])
    operator = CaptionOperator(CaptionConfig(data=data, captioner=CaptionerConfig(model="recap/demo/captioner")))
    items = [item for shard in operator.plan() for item in operator.read(shard)]
    return [(i.payload.sha256, i.payload.text) for i in items if isinstance(i, Item)]


def by_blocks(shard: Shard, wanted: Wanted) -> list[Sample]:
    index, kind = Index.open_or_make(None, [shard], wanted=wanted), arrow.Arrow()
    return [s for n in range(len(index)) for s in kind.block(shard, index.block(n), wanted, lambda size: None)]


def test_what_datasets_saves_is_read_as_the_tar(tmp_path: Path) -> None:
    """In the order of state.json; a file that it does not name is none of the data set."""
    datasets = pytest.importorskip("datasets")
    samples = flags(0)
    write_as_tar(tmp_path / "tars/0.tar", samples)
    rows = table(samples).select(["image", "text"])
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    saved = datasets.Dataset.from_list(rows.to_pylist(), features=features)
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    write(tmp_path / "saved/data-old.arrow", rows, 5)
    shards = shards_of(tmp_path / "saved")
    assert [s.id for s in shards] == [f"data-0000{n}-of-00003" for n in range(3)]
    assert sum(s.expected or 0 for s in shards) == len(samples)
    assert asked(tmp_path / "saved") == asked(tmp_path / "tars")

    datasets.DatasetDict(train=saved, test=saved.select([0, 1])).save_to_disk(tmp_path / "splits")
    parts = shards_of(tmp_path / "splits")
    assert {s.id: s.expected for s in parts} == {"train%2Fdata-00000-of-00001": 32, "test%2Fdata-00000-of-00001": 2}


@pytest.mark.parametrize("batch", [100, 1000, 3000])
@pytest.mark.parametrize("random_access", [False, True])
def test_blocks_are_found_by_one_scan(tmp_path: Path, batch: int, random_access: bool) -> None:
    write(tmp_path / "0.arrow", tiny(1600), batch, random_access)
    [shard] = shards_of(tmp_path)
    assert shard.expected == 1600
    for key in ("", "id"):
        wanted = Wanted(("png",), key, frozenset(["txt"]))
        whole = [s for s in samples_of(shard, wanted) if isinstance(s, Sample)]
        assert [s.key for s in whole] == [f"k{i}" if key else f"{i:08d}" for i in range(1600)]
        found = by_blocks(shard, wanted)
        assert [(s.key, s.members) for s in found] == [(s.key, s.members) for s in whole]


def test_a_large_batch_is_read_once_for_its_blocks(tmp_path: Path) -> None:
    write(tmp_path / "0.arrow", tiny(2000), 2000)
    [shard] = shards_of(tmp_path)
    index, kind, sizes = Index.open_or_make(None, [shard]), arrow.Arrow(), list[int]()
    for number in range(len(index)):
        kind.block(shard, index.block(number), IMAGES, sizes.append)
    assert len(index) == 4 and len(sizes) == 1


def test_a_file_that_is_cut_in_the_middle(tmp_path: Path) -> None:
    """The batches before it are read; that the rest is gone is said by the shard and by the index."""
    write(tmp_path / "0.arrow", tiny(1000), 100)
    whole = (tmp_path / "0.arrow").read_bytes()
    (tmp_path / "0.arrow").write_bytes(whole[: len(whole) // 2])
    [shard] = shards_of(tmp_path)
    *found, damage = samples_of(shard, IMAGES)
    assert isinstance(damage, Damage) and damage.reason == "arrow: ends in the middle of a batch"
    assert 300 < len(found) < 500 and len(found) % 100 == 0 and shard.expected == len(found)
    index = Index.open_or_make(None, [shard])
    assert index.samples == len(found) and "ends in the middle" in index.damaged()["0"]
    (tmp_path / "0.arrow").write_bytes(whole[:-8])
    *found, damage = samples_of(shards_of(tmp_path)[0], IMAGES)
    assert len(found) == 1000 and isinstance(damage, Damage) and "without the mark of its end" in damage.detail


def test_a_damaged_batch_is_as_many_rows(tmp_path: Path) -> None:
    """Offsets that lead out of their bytes do not end the process; nothing behind the batch moves."""
    write(tmp_path / "0.arrow", tiny(700), 100)
    [shard] = shards_of(tmp_path)
    whole = list(samples_of(shard, IMAGES))
    with (tmp_path / "0.arrow").open("rb") as file:
        stream = arrow._Stream(file)
        third = list(stream.batches(stream.begin))[2]
    data = bytearray((tmp_path / "0.arrow").read_bytes())
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 40, 80, 120))
    at = data.index(offsets, third.at)
    data[at + 8 : at + 12] = b"\xff\xff\xff\x7f"
    (tmp_path / "0.arrow").write_bytes(data)
    *found, damage = samples_of(shards_of(tmp_path)[0], IMAGES)
    assert isinstance(damage, Damage) and damage.reason == "arrow: a batch cannot be read"
    assert [s.key for s in found if isinstance(s, Sample)] == [f"{i:08d}" for i in range(700)]
    lost = [n for n, s in enumerate(found) if isinstance(s, Sample) and s.odd == {"png": arrow.LOST, "txt": arrow.LOST}]
    assert lost == list(range(200, 300))
    assert [found[n] for n in range(700) if n not in lost] == [whole[n] for n in range(700) if n not in lost]
    assert [(s.key, s.odd) for s in by_blocks(shards_of(tmp_path)[0], IMAGES)] == [
        (s.key, s.odd) for s in found if isinstance(s, Sample)
    ]


@pytest.mark.parametrize("rows", [10**12, -5])
def test_a_header_that_says_more_rows_than_there_are(tmp_path: Path, rows: int) -> None:
    """None is made up: the batches before it are the shard."""
    write(tmp_path / "0.arrow", tiny(900), 300)
    data = bytearray((tmp_path / "0.arrow").read_bytes())
    at = data.index((300).to_bytes(8, "little"), len(data) // 3)
    data[at : at + 8] = rows.to_bytes(8, "little", signed=True)
    (tmp_path / "0.arrow").write_bytes(data)
    [shard] = shards_of(tmp_path)
    *found, damage = samples_of(shard, IMAGES)
    assert len(found) == shard.expected == 300 and isinstance(damage, Damage) and damage.reason == "arrow: damaged"


@pytest.mark.parametrize(
    "data", [b"", b"<html>gone</html>", b"\xff" * 64, b"\0" * 64, b"\xff\xff\xff\xff\x10\0\0\0" + b"\x7f" * 16]
)
def test_files_that_are_no_arrow(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.arrow").write_bytes(data)
    write(tmp_path / "1.arrow", tiny(3), 3)
    shards = shards_of(tmp_path)
    assert [s.expected for s in shards] == [None, 3]
    [damage] = samples_of(shards[0], IMAGES)
    assert isinstance(damage, Damage) and damage.reason == "arrow: not an arrow stream"
    assert Index.open_or_make(None, shards).samples == 3


def test_what_is_refused_when_planned(tmp_path: Path) -> None:
    write(tmp_path / "a/0.arrow", pa.table({"image": [b"x"], "kind": pa.array(["flag"]).dictionary_encode()}), 1)
    with pytest.raises(UserError, match="dictionary-encoded columns: kind: not read, write them plainly"):
        asked(tmp_path / "a")
    for name, content in (
        ("gone", {"_data_files": [{"filename": "data.arrow"}]}),
        ("odd", {"_data_files": [{"filename": "../x"}]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"state.json names data.arrow, which is not there"):
        asked(tmp_path / "gone")
    with pytest.raises(UserError, match=r"'../x' is no name of a file beside it"):
        asked(tmp_path / "odd")


def test_a_file_that_went_since_the_plan(tmp_path: Path) -> None:
    write(tmp_path / "0.arrow", tiny(3), 3)
    [shard] = shards_of(tmp_path)
    (tmp_path / "0.arrow").unlink()
    with pytest.raises(ShardError, match="does not exist"):
        list(samples_of(shard, IMAGES))
