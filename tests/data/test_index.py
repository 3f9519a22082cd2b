"""The file of the block index: what it says of itself, and files of the version before."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from hpc.base.errors import UserError
from recap.data import index as module
from recap.data.index import Index
from recap.data.streams import StreamPlan
from tests.data.corpus import build

COUNTS = (600, 30, 513)


def stored(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def store(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def test_the_file_says_its_version_its_digest_and_the_kinds(tmp_path: Path) -> None:
    shards, path = build(tmp_path, COUNTS), tmp_path / "blocks.index"
    made = Index.open_or_make(path, shards)
    metadata = stored(path).schema.metadata
    assert metadata == {b"version": b"2", b"digest": made.digest.encode()} and len(made.digest) == 16
    assert [made.kind(number) for number in range(made.shards)] == ["tar"] * 3
    other = Index.open_or_make(None, shards[:2])
    assert other.digest and other.digest != made.digest


def test_an_index_of_version_1_is_read_as_before(tmp_path: Path) -> None:
    """Blocks, order and digest of the order: trainings that began with it go on."""
    shards, path = build(tmp_path, COUNTS), tmp_path / "blocks.index"
    made = Index.open_or_make(path, shards)
    table = stored(path).drop(["kind", "origin", "skip"]).replace_schema_metadata(None)
    assert table.schema.equals(module._VERSION_1)
    store(tmp_path / "old.index", table)
    old = Index.open_or_make(tmp_path / "old.index", shards)
    assert [old.block(n) for n in range(len(old))] == [made.block(n) for n in range(len(made))]
    assert old.digest == "" and old.kind(0) == "tar" and StreamPlan(old, 7, 4).digest == StreamPlan(made, 7, 4).digest


def test_a_damaged_index_and_one_of_the_future_are_refused(tmp_path: Path) -> None:
    shards, path = build(tmp_path, COUNTS), tmp_path / "blocks.index"
    Index.open_or_make(path, shards)
    whole = stored(path)
    data = bytearray(path.read_bytes())
    at = data.index((512).to_bytes(2, "little") + (88).to_bytes(2, "little"))  # the counts of the first shard's blocks
    data[at] = 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: it holds not what it says"):
        Index.open_or_make(path, shards)
    store(path, whole.replace_schema_metadata({"version": "3"}))
    with pytest.raises(UserError, match="not a block index of version 1 to 2"):
        Index.open(path)
