"""Columns as a training found them when it began: ranks look for nothing, and reruns of the column change nothing."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import scale
from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.inputs import DataConfig, list_shards
from recap.data.manifest import Located, Manifest, write
from recap.data.samples import JoinedDataConfig, SharedInput, check_columns, opened_columns, shared_input
from recap.train.checkpoints import StartingPoint
from tests.data.conftest import ObjectStore
from tests.data.corpus import build, keys, write_column


def rank(number: int, folder: Path) -> Any:
    return SimpleNamespace(rank=number, directory=str(folder))


def test_what_is_written_is_found(tmp_path: Path) -> None:
    """By id, in any order; a file that is there stays."""
    rows = [(f"a%2F{i:05d}", Located(f"f{i}", "moved" * (i == 7), i % 3)) for i in range(1000)]
    write(tmp_path / "c/x.arrow", iter(rows))
    first = Manifest(tmp_path / "c/x.arrow")
    assert len(first) == 1000 and all(first.find(shard) == located for shard, located in rows)
    assert first.find("a%2F01000") is None
    assert first.generations() == {shard: located.generation for shard, located in rows}
    write(tmp_path / "c/x.arrow", [("other", Located("f"))])
    assert Manifest(tmp_path / "c/x.arrow").find("other") is None
    write(tmp_path / "again.arrow", rows[::-1])
    assert Manifest(tmp_path / "again.arrow").digest == first.digest
    write(tmp_path / "none.arrow", [])
    assert Manifest(tmp_path / "none.arrow").find("x") is None
    (tmp_path / "bad.arrow").write_bytes(b"no")
    with pytest.raises(UserError, match="is no column manifest"):
        Manifest(tmp_path / "bad.arrow")


def test_a_training_reads_the_generations_that_it_began_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rerun publishes another file: ranks go on with the first, rank 0 says so, a new training reads the new one."""
    scale.build(tmp_path, 3)
    data = scale.data_of(tmp_path)
    shared = shared_input(data, rank(0, tmp_path))
    assert shared is not None
    found = Published(tmp_path / "run")
    shard = found.shards[1]
    ledger = found.run.ledger(found.identity)
    new = tmp_path / "run/columns/recap/5ca1e000/new.parquet"
    shutil.copy(tmp_path / "run/columns/recap/5ca1e000/all.parquet", new)
    marker = ledger.directory(shard.id) / f"{shard.id}.g1.done"
    marker.write_text(json.dumps({"file": str(new.relative_to(found.run.path))}))
    old = {name: path.read_bytes() for name, path in shared.manifests.items()}
    assert shared_input(data, rank(0, tmp_path)) == shared
    assert {name: path.read_bytes() for name, path in shared.manifests.items()} == old
    assert f"column c0: 1 shards (one is {shard.id}) were made again since this training began" in caplog.text
    assert shared_input(data, rank(0, tmp_path / "another"), "columns") is not None
    assert Manifest(tmp_path / "another/columns/c0.arrow").find(shard.id) == Located(
        str(new.relative_to(found.run.path)), "", 1
    )

    column = open_column("c0", data.columns["c0"], Manifest(shared.manifests["c0"]))
    assert column.read(shard, 0, [f"{i:05d}" for i in range(scale.SAMPLES)], []).values == ["a caption"] * scale.SAMPLES
    (tmp_path / "run/columns/recap/5ca1e000/all.parquet").unlink()
    column = open_column("c0", data.columns["c0"], Manifest(shared.manifests["c0"]))
    with pytest.raises(UserError, match=rf"all\.parquet, which holds shard {shard.id}, is gone"):
        column.read(shard, 0, ["00000"], [])


def test_a_run_whose_output_is_on_an_object_store(tmp_path: Path, object_store: ObjectStore) -> None:
    scale.build(tmp_path, 2)
    column = tmp_path / "run/columns/recap/5ca1e000"
    object_store.upload(column)
    (column / "all.parquet").unlink()
    found = Published(tmp_path / "run")
    for shard in found.shards:
        marker = found.run.ledger(found.identity).directory(shard.id) / f"{shard.id}.g1.done"
        marker.write_text(json.dumps({"file": "s3://corpus/all.parquet"}))
    data = scale.data_of(tmp_path)
    check_columns(data, ["c0"])
    shared = shared_input(data, rank(0, tmp_path))
    assert shared is not None
    made = open_column("c0", data.columns["c0"], Manifest(shared.manifests["c0"]))
    assert made.read(found.shards[1], 0, ["00000", "00001"], []).values == ["a caption"] * 2
    scale._start(data, shared, 2 * scale.SAMPLES)  # a rank reads both shards of all four columns


def test_a_checkpoint_of_other_columns_is_refused(tmp_path: Path) -> None:
    began = StartingPoint("1d", {"caption": "aa"})
    began.check(tmp_path, {"identity": "1d"})  # of before there were manifests
    began.check(tmp_path, {"identity": "1d", "columns": {"caption": "aa", "gone": "bb"}})
    with pytest.raises(UserError, match=r"on column caption as another caption\.arrow"):
        began.check(tmp_path, {"identity": "1d", "columns": {"caption": "bb"}})


def test_a_folder_s_column_too(tmp_path: Path) -> None:
    """Shards that it lacks have no rows."""
    build(tmp_path, (20, 30, 10))
    folder = write_column(tmp_path, (20, 30))
    config = ColumnConfig(folder=str(folder), field="caption", missing="null")
    data = JoinedDataConfig(
        shards=[str(tmp_path / "tars")], columns={"recap": config, "alt": ColumnConfig(member="txt")}
    )
    shared = shared_input(data, rank(0, tmp_path))
    assert shared and list(shared.manifests) == ["recap"]
    column = open_column("recap", config, Manifest(shared.manifests["recap"]))
    shards = list_shards(DataConfig(shards=data.shards))
    assert column.read(shards[1], 0, keys(1, 30), []).values[:2] == [f"recap {key}" for key in keys(1, 2)]
    assert column.read(shards[2], 0, keys(2, 10), []).values == [None] * 10


def test_many_threads_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer open files than shards, so that they are closed beside those who read them."""
    monkeypatch.setattr("recap.data.open_files.MOST", 3)
    shards = build(tmp_path, [5] * 12)
    folder = write_column(tmp_path, [5] * 12)
    column = open_column("recap", ColumnConfig(folder=str(folder), field="caption"))
    with ThreadPoolExecutor(8) as pool:
        for turn in range(40):
            found = pool.map(lambda n: column.read(shards[n], 0, keys(n, 5), []).values, range(12))
            assert [v[0] for v in found] == [f"recap {keys(n, 1)[0]}" for n in range(12)], turn


def test_readers_do_not_wait_for_one_another(tmp_path: Path, object_store: ObjectStore) -> None:
    """Eight readers of as many shards have at least six requests under way at the same time."""
    shards = build(tmp_path, [5] * 9)
    write_column(tmp_path, [5] * 9)
    object_store.upload(tmp_path)
    column = open_column("recap", ColumnConfig(folder="s3://corpus/recap", field="caption"))
    column.read(shards[8], 0, keys(8, 5), [])  # which lists the folder
    object_store.together = 6
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: column.read(shards[n], 0, keys(n, 5), []).values[0], range(8)))
    assert found == [f"recap {keys(n, 1)[0]}" for n in range(8)] and object_store.most >= 6


@pytest.mark.parametrize("small", [True, False])
def test_requests_for_columns_on_an_object_store(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """A small file is asked for once, whole; of another the footer, and then what is wanted. Never for its size."""
    monkeypatch.setattr("recap.data.remote_parquet.WHOLE", 1 << 20 if small else 1000)
    monkeypatch.setattr("recap.data.remote_parquet.FOOTER", 1 << 16)  # which pyarrow reads
    texts = {key: random.Random(key).randbytes(100).hex() for key in keys(0, 2000)}
    table = pa.table({"key": list(texts), "caption": list(texts.values()), "status": ["ok"] * len(texts)})
    (tmp_path / "recap").mkdir()
    shards = [Shard(f"{n:05d}", f"/tars/{n:05d}.tar", 0) for n in range(3)]
    for shard in shards:
        pq.write_table(table, tmp_path / f"recap/{shard.id}.parquet", row_group_size=512)
    object_store.upload(tmp_path)
    configs = {name: ColumnConfig(folder="s3://corpus/recap", field="caption") for name in "ab"}
    column: Any = open_column("a", configs["a"])
    write(tmp_path / "both.arrow", column.manifest(shards))
    shared = SharedInput(tmp_path / "none.index", dict.fromkeys(configs, tmp_path / "both.arrow"))
    columns = opened_columns(JoinedDataConfig(columns=configs), list(configs), shared)
    object_store.requests.clear()
    for shard in shards:
        for block in range(2):
            names = list(texts)[512 * block :][:512]
            read = {name: found.read(shard, block, names, []).values for name, found in columns.items()}
            wanted = [texts[name] for name in names]
            assert read == {"a": wanted, "b": wanted}
    asked = [f"GET /corpus/recap/{shard.id}.parquet" for shard in shards for _ in range(1 if small else 5)]
    assert object_store.requests == asked


@pytest.mark.slow  # ten processes, six of them under strace
def test_a_rank_s_start_does_not_grow(tmp_path: Path) -> None:
    """Operations on names: as many at 400 shards as at 20; at most ten a block of four columns."""
    sizes = {count: scale.measure(tmp_path / str(count), count) for count in (20, 400)}
    assert all(target.met for target in scale.targets(sizes)), sizes
    assert sizes[400]["alone_operations"] > 10 * sizes[400]["rank_operations"]
