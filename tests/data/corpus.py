"""A small corpus on disk: tars of given lengths and columns beside them, as a caption run writes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hpc.operator import Shard
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.worlds.tars import write_tar


def keys(shard: int, count: int) -> list[str]:
    return [f"{shard:05d}{i:06d}" for i in range(count)]


def build(folder: Path, counts: Sequence[int], image_bytes: int = 40) -> list[Shard]:
    """Tars whose images are random bytes and whose text is the key; the plan's shards."""
    tars = folder / "tars"
    tars.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        rng = random.Random(shard)
        with (tars / f"{shard:05d}.tar").open("wb") as file:
            write_tar(
                file,
                (
                    (key, {"jpg": rng.randbytes(image_bytes), "txt": f"alt {key}".encode()})
                    for key in keys(shard, count)
                ),
            )
    return list_shards(DataConfig(shards=[str(tars)]))


def write_column(folder: Path, counts: Sequence[int], name: str = "recap", identity: str = "7b21c0de" * 8) -> Path:
    """Parquet files as the publisher writes them: rows in tar order, row groups of 512."""
    out = folder / name
    out.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        table = pa.table(
            {
                "key": keys(shard, count),
                "caption": [f"{name} {key}" for key in keys(shard, count)],
                "status": ["skipped" if i % 97 == 13 else "ok" for i in range(count)],
            }
        ).replace_schema_metadata({"identity": identity})
        pq.write_table(table, out / f"{shard:05d}.parquet", row_group_size=512, compression="zstd")
    return out


def index_of(shards: list[Shard]) -> Index:
    return Index.open_or_make(None, shards)
