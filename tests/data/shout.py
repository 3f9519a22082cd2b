"""A tiny operator for tests: a column whose captions are the samples' texts in capitals; every 97th sample fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from hpc.operator import SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.inputs import DataConfig, list_shards
from recap.data.remote import open_shard
from recap.data.tars import read_samples


@dataclass
class ShoutConfig:
    data: DataConfig = field(default_factory=DataConfig)
    mark: str = "!"


class Shout(Batched):
    Config: ClassVar[type] = ShoutConfig
    version: ClassVar[int] = 1

    def __init__(self, config: ShoutConfig) -> None:
        super().__init__()
        self.config = config

    def continues(self, planned: Iterable[Shard]) -> None:
        self.config.data.keep_root(planned)

    def plan(self) -> list[Shard]:
        return list_shards(self.config.data)

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return []

    def column(self) -> Column:
        return Column("shout", [("caption", pa.string())])

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        with open_shard(shard) as file:
            for index, sample in enumerate(read_samples(file)):
                if isinstance(sample, Damage):
                    yield sample
                    return
                yield Item(shard.id, index, sample.key, sample.members["txt"].decode())

    def apply(self, items: list[Item]) -> list[Row]:
        return [
            Row(i.shard, i.index, i.key, SKIPPED, "image: bad")
            if i.index % 97 == 13
            else Row(i.shard, i.index, i.key, values={"caption": i.payload.upper() + self.config.mark})
            for i in items
        ]
