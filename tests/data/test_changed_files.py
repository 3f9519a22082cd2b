"""A column's file that was written again after a training or a map job was launched: said with its name, what it was
then and what to do, whether it is met before or while it is read. A store that is away is no such file.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import UserError
from hpc.operator import Shard
from recap.data.changed_files import as_launched
from recap.data.column import Column, ColumnConfig, ColumnOfFiles
from recap.data.columns import open_column
from recap.data.manifest import Manifest, write
from tests.data.conftest import ObjectStore
from tests.data.corpus import keys

SHARD = Shard("00000", "/tars/00000.tar", 0)
ROWS = 1100
SECOND = keys(0, ROWS)[512:1024]  # the keys of its second block


def rows(folder: Path, characters: int, text: str = "a") -> None:
    """The column's file with texts of so many random characters."""
    texts = [random.Random(text + key).randbytes(characters // 2).hex() for key in keys(0, ROWS)]
    table = pa.table({"key": keys(0, ROWS), "caption": texts, "status": ["ok"] * ROWS})
    (folder / "recap").mkdir(exist_ok=True)
    pq.write_table(table, folder / f"recap/{SHARD.id}.parquet", row_group_size=512)


def launched(folder: Path, place: str) -> Column:
    """The column as a job finds it that was launched now."""
    config = ColumnConfig(folder=place, field="caption")
    found = open_column("recap", config)
    assert isinstance(found, ColumnOfFiles)
    made = folder.parent / f"{folder.name}.arrow"
    made.unlink(missing_ok=True)
    write(made, found.manifest([SHARD]))
    return open_column("recap", config, Manifest(made))


def garbage(folder: Path) -> None:
    file = folder / f"recap/{SHARD.id}.parquet"
    file.write_bytes(random.Random(0).randbytes(file.stat().st_size))


def refused(column: Column) -> str:
    with pytest.raises(UserError) as told:
        column.read(SHARD, 1, SECOND, [])
    assert "a training where it is started under another name" in str(told.value)
    return str(told.value)


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("begun", [False, True])
def test_on_an_object_store(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    monkeypatch.setattr("recap.data.remote_parquet.WHOLE", 1000)
    monkeypatch.setattr("recap.data.remote_parquet.FOOTER", 1 << 16)
    url = f"s3://corpus/recap/{SHARD.id}.parquet"
    for change in (lambda: rows(tmp_path, 400), lambda: rows(tmp_path, 40), lambda: garbage(tmp_path)):
        rows(tmp_path, 200)
        size = (tmp_path / f"recap/{SHARD.id}.parquet").stat().st_size
        object_store.upload(tmp_path)
        column = launched(tmp_path, "s3://corpus/recap")
        if begun:
            assert column.read(SHARD, 0, keys(0, 512), []).values[0]
        change()
        object_store.upload(tmp_path)
        now = (tmp_path / f"recap/{SHARD.id}.parquet").stat().st_size
        said = refused(column)
        assert url in said
        if now != size:
            assert f"it had {size:,} bytes, now it has {now:,}" in said
        else:
            assert "cannot be read" in said and f"a parquet file of {size:,} bytes, as it had" in said


@pytest.mark.parametrize(
    "change", [lambda folder: rows(folder, 40, "b"), lambda folder: rows(folder, 400, "b"), garbage]
)
def test_on_a_disk(tmp_path: Path, change: Callable[[Path], None]) -> None:
    rows(tmp_path, 200)
    column = launched(tmp_path, str(tmp_path / "recap"))
    assert column.read(SHARD, 0, keys(0, 512), []).values[0]
    change(tmp_path)
    said = refused(column)
    assert f"{tmp_path}/recap/{SHARD.id}.parquet, which holds shard {SHARD.id}, cannot be read" in said
    garbage(tmp_path)
    column = launched(tmp_path, str(tmp_path / "recap"))
    assert isinstance(column, ColumnOfFiles)
    with pytest.raises(UserError, match="cannot be read"):
        list(column.pieces(SHARD))
    with pytest.raises(UserError, match="its first file cannot be read"):
        column.type()


def test_a_store_that_is_away_is_no_changed_file(tmp_path: Path) -> None:
    """What a request failed of is told as it is, where the file is as long as it was."""
    file = tmp_path / "a.parquet"
    file.write_bytes(b"12345")

    def read(error: Exception, size: int) -> None:
        with as_launched("recap", "00000", lambda: (str(file), size)):
            raise error

    for error in (ConnectionError("away"), TimeoutError("late"), OSError(5, "EIO")):
        for size in (5, 0):
            with pytest.raises(type(error)) as told:
                read(error, size)
            assert told.value is error
        with pytest.raises(UserError, match="it had 7 bytes, now it has 5"):
            read(error, 7)
    with pytest.raises(UserError, match="is gone: it was there when this job was launched"):
        read(FileNotFoundError("a.parquet"), 5)
