"""Un-indexed tars stream, and say that resume is approximate."""

from __future__ import annotations

import gzip
import logging

import pytest

from hpc.base.errors import UserError
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.inputs import DataConfig, list_shards
from recap.data.unindexed import StreamedReader
from tests.data.corpus import build, write_column


def test_un_indexed_tars_stream_and_warn_on_resume(tmp_path, caplog) -> None:
    build(tmp_path, (70, 50))
    first = tmp_path / "tars" / "00000.tar"
    (tmp_path / "tars" / "00000.tar.gz").write_bytes(gzip.compress(first.read_bytes()))
    first.unlink()
    shards = list_shards(DataConfig(shards=[str(tmp_path / "tars")]))
    columns = {"org_caption": open_column("org_caption", ColumnConfig(member="txt"))}
    reader = StreamedReader(shards, columns, seed=0, epoch_size=120)
    with caplog.at_level(logging.WARNING):
        samples = [next(slot.candidates()) for slot in reader.batch(0, 120)]
        assert not caplog.records
        StreamedReader(shards, columns, seed=0, epoch_size=120).batch(60, 20)
    assert len({s.key for s in samples}) == 120
    assert all(s.columns["org_caption"] == f"alt {s.key}" for s in samples)
    assert "resume at sample 60 is approximate" in caplog.text
    ranks = [next(s.candidates()).key for r in range(2) for s in reader.batch(0, 100, r, 2)]
    assert len(ranks) == 100 and len(set(ranks)) == 100
    with pytest.raises(UserError, match="2 un-indexed shards for 3 ranks"):
        reader.batch(0, 12, 0, 3)


def test_columns_beside_un_indexed_tars_are_refused(tmp_path) -> None:
    shards = build(tmp_path, (20,))
    write_column(tmp_path, (20,))
    column = open_column("re_caption", ColumnConfig(folder=str(tmp_path / "recap"), field="caption"))
    with pytest.raises(UserError, match="joined through the index only"):
        StreamedReader(shards, {"re_caption": column}, seed=0, epoch_size=20)
