"""The downloader's parquet beside a tar: what cannot be joined is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recap.downloaded import Downloads


def test_files_that_cannot_be_joined_are_said(tmp_path: Path) -> None:
    downloads = Downloads()
    pq.write_table(pa.table({"id": ["a"], "url": ["x"]}), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").write_bytes(b"half a file")
    pq.write_table(pa.table({"key": ["./a", None], "url": ["x", "y"]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"width": [1]}), tmp_path / "3.parquet")  # nothing that an export would take from it
    for number, url in enumerate([None, None, "x", None, None]):
        shard: Any = SimpleNamespace(shard=SimpleNamespace(uri=str(tmp_path / f"{number}.tar"), id=str(number)))
        found = downloads.read(shard, ["a"])
        assert (found["url"].to_pylist() if found else [None]) == [url]
    path = tmp_path / "0.parquet"
    assert downloads.lines() == [
        f"- url: not to be had from 2 parquet files beside tars (the first: {path} has no column `key`, by which it "
        "would be joined)"
    ]
