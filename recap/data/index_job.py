"""The block index of a run's input: from a map job of its own, for corpora that one machine does not scan in minutes,
or from any job over the same samples, which notes by the way where their blocks lie.

python -m hpc.launch configs/data/index.yaml data.shards=[s3://...] name=index
python -m recap.data.index_job runs/index OUT.index
python -m recap.data.index_job runs/recap OUT.index     of a captioning run: what it has not noted is read
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import Parser, ShardError, UserError
from hpc.base.fields import semantic
from hpc.operator import Batched, Column, Damage, Item, Row, Shard, load_operator
from hpc.run.published import Published, PublishedShard
from recap.data.blocks import BLOCK, LINK_FIELDS, PROBLEM_TYPE, Link, ShardBlocks
from recap.data.index import Index, noted_or_scanned, scan_shard
from recap.data.inputs import DataConfig
from recap.data.kind import Wanted
from recap.data.kinds import TAR, kind_of
from recap.data.noted_blocks import NotedBlocks
from recap.data.tar_job import TarJob
from recap.data.tars import READING_2

FIELDS: list[tuple[str, pa.DataType]] = [
    ("start", pa.int64()),
    ("end", pa.int64()),
    ("count", pa.int32()),
    ("problems", pa.list_(PROBLEM_TYPE)),
    ("links", pa.list_(pa.struct(LINK_FIELDS))),
]


@dataclass
class IndexConfig:
    """Config keys of an indexing job."""

    column: str = semantic("blocks", "name of the column that is made")
    data: DataConfig = field(default_factory=DataConfig)


class IndexOperator(TarJob, Batched):
    """One row a block: its first key, its bytes in the tar, its samples. See hpc.operator.Operator."""

    Config: ClassVar[type] = IndexConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: READING_2}

    def __init__(self, config: IndexConfig) -> None:
        super().__init__()
        self.config = config

    def plan(self) -> list[Shard]:
        shards = super().plan()
        if other := next((shard for shard in shards if kind_of(shard.uri) is not TAR), None):
            raise UserError(
                f"index: {other.uri} is no tar: trainings find the blocks of such files in seconds. Name tars alone."
            )
        return [replace(shard, expected=None) for shard in shards]  # rows are blocks, not samples

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return [("index", "blocks of 512 samples, from the tars' headers")]

    def column(self) -> Column:
        return Column(self.config.column, list(FIELDS))

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        found = scan_shard(shard, self.config.data.wanted(image=False))
        for number, (key, start, end, count) in enumerate(
            zip(found.first, found.start[:-1], found.start[1:], found.count, strict=True)
        ):
            values: dict[str, Any] = {"start": start, "end": end, "count": count}
            values["problems"] = [{"sample": n, "problem": p} for n, p in found.problems if n // BLOCK == number]
            values["links"] = [link._asdict() for link in found.links if link.block == number]
            yield Item(shard.id, number, key, values)
        if found.damage:
            yield found.damage

    def apply(self, items: list[Item]) -> list[Row]:
        return [Row(item.shard, item.index, item.key, values=item.payload) for item in items]


def collect(run: str | Path) -> Index:
    """The index from a finished indexing run. UserError where shards are missing."""
    published = Published(run)
    if missing := published.missing():
        raise UserError(
            f"index: {run}: {len(missing):,} shards are not indexed yet (first: {missing[0]}). "
            "Wait for the run, or rerun what failed."
        )
    return Index.of((found.shard, _blocks(found)) for found in published)


def of_input(run: str | Path, readers: int = 8) -> Index:
    """The index of all shards that a run was planned with, finished or not; of an indexing run, see `collect`.

    Args:
        readers: shards that are read at the same time, of those that the run has not noted.

    Raises:
        UserError: the run's input has no blocks.
        ShardError: a shard cannot be read, or has changed since the run was launched.
    """
    published = Published(run)
    config = published.submission.config
    if issubclass(load_operator(str(config.get("operator"))), IndexOperator):
        return collect(run)
    data = config.get("data") or {}
    if not data.get("shards"):
        raise UserError(f"index: {run} is no job over samples: its config names no data.shards. Name one that is.")
    wanted = Wanted(key=data.get("key") or "")
    return Index.of(noted_or_scanned(published.shards, readers, wanted, NotedBlocks([published])))


def _blocks(found: PublishedShard) -> ShardBlocks:
    table = found.table(["key", *(name for name, _ in FIELDS)]).to_pydict()
    problems = [(p["sample"], p["problem"]) for block in table["problems"] for p in block]
    links = [Link(number, **link) for number, block in enumerate(table["links"]) for link in block]
    start, damage = table["start"] + table["end"][-1:], found.marker.get("damage")
    return ShardBlocks(table["key"], start, table["count"], Damage(**damage) if damage else None, problems, links)


def main(given: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory of a finished indexing run, or of another job over the same samples")
    parser.add_argument("out", type=Path)
    parser.add_argument("--readers", type=int, default=8, help="shards read at the same time where the run noted none")
    arguments = parser.parse_args(given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        of_input(arguments.run, arguments.readers).save(arguments.out)
    except (UserError, ShardError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
