"""`data.keep`: trainings read what a selection kept, all of it and nothing else; wrong selections are refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run import column as columns
from recap.data.blocks import ShardBlocks
from recap.data.column import ColumnConfig
from recap.data.index import Index
from recap.data.joined import Joined
from recap.data.kept import count_kept, selection
from recap.data.samples import JoinedDataConfig, Samples, check_columns, column_identities, shared_input
from recap.select.operator import PROOF, SelectOperator
from recap.sft.source import Source
from recap.sft.tars import Tars
from tests.data.corpus import build, keys, write_column
from tests.data.test_manifest import rank
from tests.select.worlds import given, selecting
from tests.support.published import published

COUNTS = [1100, 3, 600]


def wanted(number: int) -> bool:
    return number % 3 == 0 and not 512 <= number < 1024  # a block of which nothing is kept


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    build(folder, COUNTS)
    write_column(folder, COUNTS)
    found = {key: {"good": int(wanted(n))} for s, c in enumerate(COUNTS) for n, key in enumerate(keys(s, c))}
    given(folder, "scores", found)
    rules = {"good": {"column": "good", "above": 0}}
    published(selecting(folder, columns={"good": ("scores", "good")}, rules=rules))
    return folder


KEPT = {f"{s:05d}/{key}" for s, count in enumerate(COUNTS) for n, key in enumerate(keys(s, count)) if wanted(n)}


def data_of(world: Path, **changes: Any) -> JoinedDataConfig:
    recap = ColumnConfig(folder=str(world / "recap"), field="caption")
    settings = {"shards": [str(world / "tars")], "columns": {"re": recap}, "streams": 2, "window": 2}
    return JoinedDataConfig(**{**settings, "keep": str(world / "selected"), **changes})


def test_an_epoch_is_what_is_kept(world: Path, tmp_path: Path) -> None:
    """Found out by rank 0, and by oneself; with the column's values, on one rank and on two."""
    data = data_of(world)
    shared = shared_input(data, rank(0, tmp_path))
    orders = []
    for known, ranks in ((shared, 1), (shared, 2), (None, 1)):

        def prepare(sample: Joined, epoch: int) -> tuple[str, Any, bytes]:
            return sample.name, sample.columns["re"], sample.members["txt"]

        samples = Samples(data, ["re"], 5, known, None, 0, prepare)
        assert samples.size() == len(KEPT) // 2 * 2
        parts = [samples.take(0, samples.size(), rank, ranks) for rank in range(ranks)]
        found = [taken.value for part in parts for taken in part]
        samples.close()
        assert len({name for name, _, _ in found}) == len(found) and {name for name, _, _ in found} <= KEPT
        for name, caption, alt in found:
            key = name.split("/")[1]
            assert caption in (f"recap {key}", None) and alt == f"alt {key}".encode()
        orders.append((samples.digest(), [name for name, _, _ in found]))
    assert orders[0] == orders[1] == orders[2]


def test_it_makes_another_training(world: Path, tmp_path: Path) -> None:
    found = column_identities(data_of(world))
    assert set(found) == {"keep"} and column_identities(data_of(world, keep=None)) == {}
    whole = Samples(data_of(world, keep=None), ["re"], 5, None, None, 0, lambda sample, epoch: sample)
    some = Samples(data_of(world), ["re"], 5, None, None, 0, lambda sample, epoch: sample)
    assert whole.digest() != some.digest()


def test_fine_tuning_from_tars(world: Path) -> None:
    source = Source(kind="columns", path=str(world / "tars"), column=str(world / "recap"), keep=str(world / "selected"))
    tars = Tars(source, 1, None)
    assert len(tars) == len(KEPT)
    names = {tars.at(position).key for position in range(len(tars))}
    assert names < KEPT and len(names) > 0.9 * len(KEPT)  # a few have no caption: others stand in


def test_a_selection_made_again_does_not_move_a_training(world: Path, tmp_path: Path) -> None:
    """It goes on with the file that it began with; where that holds other rows now, it says so."""
    build(tmp_path, [600])
    given(tmp_path, "again", {key: {"good": 1} if n % 2 else {} for n, key in enumerate(keys(0, 600))})
    data = JoinedDataConfig(shards=[str(tmp_path / "tars")], streams=1, window=2, keep=str(tmp_path / "again"))
    shared = shared_input(data, rank(0, tmp_path / "training"))
    file = next((tmp_path / "again" / "columns").rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index("status"), "status", pa.array(["ok"] * 600)), file)
    samples: Samples[str] = Samples(data, [], 5, shared, None, 0, lambda sample, epoch: sample.name)
    assert samples.size() == 300
    with pytest.raises(UserError, match="256 were kept when the training began, 512 are now"):
        samples.take(0, 300)
    samples.close()


# --- what is refused ---------------------------------------------------------------------------


def test_a_selection_of_other_tars(world: Path, tmp_path: Path) -> None:
    build(tmp_path, [600, 4])
    given(tmp_path, "other", {key: {"good": 1} for key in keys(0, 600)})
    with pytest.raises(UserError, match=r"nothing\s+proves that these are the same|changed since|lacks 2 of 3"):
        check_columns(data_of(world, keep=str(tmp_path / "other")), ["re"])
    with pytest.raises(UserError, match=r"`data.keep`: .*selected lacks 1 of 1 shards \(first: more\)"):
        (tmp_path / "more.tar").write_bytes((tmp_path / "tars" / "00000.tar").read_bytes())
        check_columns(data_of(world, shards=[str(tmp_path / "more.tar")], columns={}), [])
    with pytest.raises(UserError, match=r"Set data.indexed=true"):
        check_columns(data_of(world, indexed=False), ["re"])


def test_rows_that_are_not_samples_and_nothing_kept(tmp_path: Path) -> None:
    shards = build(tmp_path, [600])
    given(
        tmp_path,
        "nothing",
        {key: {"good": 1} if n < 0 else {} for n, key in enumerate(keys(0, 600))} | {"x": {"good": 1}},
    )
    index = Index.open_or_make(None, shards)
    with pytest.raises(UserError, match="nothing keeps none of 600 samples"):
        count_kept(index, selection(str(tmp_path / "nothing")))
    file = next((tmp_path / "nothing" / "columns").rglob("*.parquet"))
    pq.write_table(pq.read_table(file).slice(0, 500), file)
    with pytest.raises(UserError, match="has 500 rows of shard 00000, the tar 600 samples"):
        count_kept(index, selection(str(tmp_path / "nothing")))


REASONS = [f"rule {number}: no value" for number in range(6)]


@pytest.mark.slow
def test_ten_million_samples(tmp_path: Path, record_property: Callable[[str, float], None]) -> None:
    """At most 4 bytes a sample on disk, 1 bit in memory; counted in the time that 1.3 billion may take (25 min)."""
    each, many = 100_000, 100
    operator = SelectOperator.__new__(SelectOperator)
    operator._writes = False
    schema = columns.schema(columns_of(operator), "7b21c0de")
    rng = np.random.default_rng(0)
    size = 0
    blocks = []
    files: dict[str, Path] = {}
    for number in range(many):
        shard = Shard(f"{number:05d}", f"/{number:05d}.tar", 1)
        keep = rng.random(each) < 0.3
        rows = {
            "key": [f"{number:05d}{i:06d}" for i in range(each)],
            "image_sha256": [rng.bytes(32).hex() if i % PROOF == 0 else None for i in range(each)],
            "status": np.where(keep, "ok", "skipped").tolist(),
            "reason": np.where(keep, "", rng.choice(REASONS, each)).tolist(),
            "detail": [""] * each,
        }  # fmt: skip
        file = tmp_path / f"{number:05d}.parquet"
        columns.write(file, [pa.table(rows, schema=schema)], schema)
        size += file.stat().st_size
        files[shard.id] = file
        made = ShardBlocks(
            first=["k"] * -(-each // 512), start=[512 * i for i in range(-(-each // 512) + 1)],
            count=[512] * (each // 512) + [each % 512],
        )  # fmt: skip
        blocks.append((shard, made))
    record_property("bytes a sample on disk", size / each / many)
    assert size <= 4 * each * many
    index = Index.of(blocks)

    class Files:
        config = ColumnConfig(run="run")

        def ok_rows(self, shard: Shard) -> np.ndarray:
            import pyarrow.compute as pc

            return pc.equal(
                pq.ParquetFile(files[shard.id]).read(["status"], use_threads=False)["status"], "ok"
            ).to_numpy()

    start = time.monotonic()
    kept = count_kept(index, Files())  # type: ignore[arg-type]
    took = time.monotonic() - start
    assert 8 * kept.counts.nbytes <= each * many
    record_property("seconds", took)
    record_property("bits a sample held", 8 * kept.counts.nbytes / each / many)
    assert took * 130 < 1500 * max(os.cpu_count() or 1, 1)


def columns_of(operator: Any) -> Any:
    from recap.select.settings import SelectConfig

    operator.config = SelectConfig()
    return operator.column()
