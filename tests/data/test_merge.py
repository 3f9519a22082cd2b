"""Columns merged into one: the same values by the same keys, types and digests kept, one file a shard opened."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import scale
from hpc.base.errors import UserError
from hpc.operator import Damage
from hpc.run import column as columns
from recap.data.column import ColumnConfig
from recap.data.columns import ParquetColumn
from recap.data.merge import MergeConfig, MergeOperator
from recap.data.rows import RowsConfig
from recap.data.same_image import FIELD, digest
from recap.data.samples import JoinedDataConfig, opened_columns, shared_input
from tests.data.corpus import build, keys

COUNTS = (700, 30)


def images(shard: int, count: int) -> list[str | None]:
    """Digests of the images that `build` makes."""
    rng = random.Random(shard)
    return [digest(rng.randbytes(40)) for _ in range(count)]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, ColumnConfig]:
    """A list of numbers with a hole, texts with the images' digests, and the tars' own texts."""
    build(tmp_path, COUNTS)
    for shard, count in enumerate(COUNTS):
        names = keys(shard, count)
        vectors = {"key": names, "caption": [None if i % 7 == 3 else [i, 0.5] for i in range(count)]}
        texts = {"key": names, "text": [f"text {key}" for key in names], FIELD: images(shard, count)}
        texts["status"] = ["skipped" if i % 5 == 3 else "ok" for i in range(count)]
        for name, table in (("vectors", vectors), ("texts", texts)):
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(pa.table(table), tmp_path / name / f"{shard:05d}.parquet", row_group_size=512)
    return {
        "vector": ColumnConfig(folder=str(tmp_path / "vectors"), field="caption"),
        "text": ColumnConfig(folder=str(tmp_path / "texts")),
        "alt": ColumnConfig(member="txt"),
    }


def merge(folder: Path, sources: dict[str, ColumnConfig]) -> Path:
    """The files that a run would publish."""
    operator = MergeOperator(MergeConfig(data=RowsConfig(shards=[str(folder / "tars")], columns=sources)))
    schema = columns.schema(operator.column(), "5ca1e000")
    for shard in operator.plan():
        items = list(operator.read(shard))
        rows = operator.apply([item for item in items if not isinstance(item, Damage)])
        assert len(rows) == len(items)
        columns.write(folder / "merged" / f"{shard.id}.parquet", [columns.to_table(rows, schema)], schema)
    return folder / "merged"


def test_a_merged_column_reads_as_its_parts(tmp_path: Path, sources: dict[str, ColumnConfig]) -> None:
    tars = [str(tmp_path / "tars")]
    whole = merge(tmp_path, sources)
    merged = {name: ColumnConfig(folder=str(whole), field=name) for name in sources}
    kinds = {field.name: field.type for field in pq.read_schema(whole / "00000.parquet")}
    assert (kinds["vector"], kinds["text"], kinds["alt"]) == (pa.list_(pa.float64()), pa.string(), pa.string())
    data = JoinedDataConfig(shards=tars, columns=merged)
    gang: Any = SimpleNamespace(rank=0, directory=str(tmp_path / "training"))
    found = opened_columns(data, list(merged), shared_input(data, gang))
    parts = opened_columns(JoinedDataConfig(shards=tars, columns=sources), ["vector", "text"], None)
    shards = MergeOperator(MergeConfig(data=RowsConfig(shards=tars, columns=sources))).plan()
    for shard, count in zip(shards, COUNTS, strict=True):
        for block in range(0, count, 512):
            names = keys(int(shard.id), count)[block : block + 512]
            for name, part in parts.items():
                wanted = part.read(shard, block // 512, names, [])
                assert found[name].read(shard, block // 512, names, []).values == wanted.values
            read = found["text"].read(shard, block // 512, names, [])
            assert read.digests == images(int(shard.id), count)[block : block + 512]
            assert found["alt"].read(shard, block // 512, names, []).values == [f"alt {key}" for key in names]
    files = [column.files for column in found.values() if isinstance(column, ParquetColumn)]
    assert len(files) == 3 and len(set(map(id, files))) == 1, "fields of the same files, which are opened once"


def test_runs_are_merged_without_a_look_at_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale.build(tmp_path, 3)
    monkeypatch.setattr("recap.data.pictures.samples_of", lambda shard, wanted: pytest.fail("a tar was opened"))
    both = {name: ColumnConfig(run=str(tmp_path / run)) for name, run in (("a", "run"), ("b", "run1"))}
    operator = MergeOperator(MergeConfig(data=RowsConfig(shards=[str(tmp_path / "tars")], columns=both)))
    assert operator.column().fields[:2] == [("a", pa.string()), ("b", pa.string())]
    assert operator.identity() == {"columns": {"a": "5ca1e000", "b": "5ca1e000"}}
    whole = merge(tmp_path, both)
    table = pq.read_table(whole / "00000001.parquet").to_pydict()
    assert table["a"] == table["b"] == ["a caption"] * scale.SAMPLES and table["status"] == ["ok"] * scale.SAMPLES


def test_what_cannot_be_merged(tmp_path: Path, sources: dict[str, ColumnConfig]) -> None:
    def operator(found: dict[str, ColumnConfig]) -> MergeOperator:
        return MergeOperator(MergeConfig(data=RowsConfig(shards=[str(tmp_path / "tars")], columns=found)))

    with pytest.raises(UserError, match="two columns or more"):
        operator({"alt": sources["alt"]})
    with pytest.raises(UserError, match="'key' is a field of every column"):
        operator({"alt": sources["alt"], "key": sources["text"]})
    with pytest.raises(UserError, match=r"no field 'none'. It has key, text, image_sha256"):
        operator({"alt": sources["alt"], "text": ColumnConfig(folder=sources["text"].folder, field="none")}).column()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file yet"):
        operator({"alt": sources["alt"], "text": ColumnConfig(folder=str(tmp_path / "empty"))}).column()
