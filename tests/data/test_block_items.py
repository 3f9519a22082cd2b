"""Blocks of shards that jobs over images read alone: the same items as of the whole shard."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import ShardError, UserError
from hpc.operator import Item
from recap.data.block_items import IndexedDataConfig
from recap.data.index import Index
from recap.data.inputs import list_shards
from recap.data.shrink import ShrinkConfig, ShrinkOperator

SAMPLES = 1100


def tar(path: Path, changed: str = "") -> None:
    """Samples without an image, two that have the same key in different blocks, and a hard link to an earlier block."""
    with tarfile.open(path, "w") as file:
        for at in range(SAMPLES):
            key = f"{600 if at == 900 else at:05d}{changed}"
            for name, data in ((f"{key}.jpg", b"\xff\xd8" + key.encode()), (f"{key}.txt", b"text")):
                if at == 77 and name.endswith("jpg"):
                    continue
                info = tarfile.TarInfo(name)
                info.size = len(data)
                if at == 800 and name.endswith("jpg"):
                    info = tarfile.TarInfo(name)
                    info.type, info.linkname, data = tarfile.LNKTYPE, "00005.jpg", b""
                file.addfile(info, io.BytesIO(data))


def table(path: Path) -> None:
    rows = {"jpg": [f"image {at}".encode() for at in range(SAMPLES)], "id": [f"k{at}" for at in range(SAMPLES)]}
    pq.write_table(pa.table(rows), path, row_group_size=300)


def operator(data: IndexedDataConfig) -> ShrinkOperator:
    return ShrinkOperator(ShrinkConfig(data=data))


def test_items_of_blocks_are_those_of_the_shard(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar")
    data = IndexedDataConfig(shards=[str(tmp_path / "a.tar")], index=str(tmp_path / "a.index"))
    (shard,) = list_shards(data)
    Index.open_or_make(data.index, [shard])
    job = operator(data)
    assert job.block_counts([shard]) == {"a": [512, 512, 76]}
    whole = [item for item in job.read(shard) if isinstance(item, Item)]
    assert len(whole) == SAMPLES and whole[900].payload.reason.startswith("key:") and not whole[77].payload.image
    assert whole[800].payload.image == whole[5].payload.image
    assert list(job.read_blocks(shard, [1])) == whole[512:1024]
    assert list(job.read_blocks(shard, [0, 2])) == whole[:512] + whole[1024:]
    assert operator(IndexedDataConfig(shards=data.shards)).block_counts([shard]) == {}


def test_tables_need_no_index(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    data = IndexedDataConfig(shards=[str(tmp_path / "a.parquet")], key="id")
    (shard,) = list_shards(data)
    job = operator(data)
    assert job.block_counts([shard]) == {"a": [512, 512, 76]}
    whole = list(job.read(shard))
    assert list(job.read_blocks(shard, [1, 2])) == whole[512:]


def test_an_index_of_something_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tar(tmp_path / f"{name}.tar")
    data = IndexedDataConfig(shards=[str(tmp_path / "{a,b}.tar")], index=str(tmp_path / "a.index"))
    first, second = list_shards(data)
    Index.open_or_make(data.index, [first])
    job = operator(data)
    assert job.block_counts([first, second]) == {"a": [512, 512, 76]}  # of the other its first block alone
    size = (tmp_path / "a.tar").stat().st_size
    tar(tmp_path / "a.tar", changed="x")
    assert (tmp_path / "a.tar").stat().st_size == size
    with pytest.raises(ShardError, match="changed since its block index was made"):
        list(job.read_blocks(first, [1]))
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(bytes(10240))
    (grown,) = list_shards(IndexedDataConfig(shards=[str(tmp_path / "a.tar")]))
    with pytest.raises(UserError, match="has changed since"):
        job.block_counts([grown])
    (tmp_path / "bad.index").write_text("no index")
    with pytest.raises(UserError, match="is not a block index"):
        operator(IndexedDataConfig(shards=data.shards, index=str(tmp_path / "bad.index"))).block_counts([first])
