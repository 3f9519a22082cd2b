"""Several columns as fields of one: a map job that writes one file a shard where readers would open one for each.

    python -m hpc.launch configs/data/merge.yaml data.shards=[...] data.columns.a.run=runs/a data.columns.b.run=runs/b

A training then names the merged run for each of its columns (`data.columns.a.run=runs/merged data.columns.a.field=a`),
and opens one file a shard however many columns there are. Values, their types and the images' digests are unchanged. No
tar is opened, unless a column is a member of the tars.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import semantic
from hpc.operator import OK, SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.column import ColumnOfFiles
from recap.data.rows import JoinedRow, Rows, RowsConfig
from recap.data.same_image import FIELD
from recap.data.tar_job import RowsJob

_TAKEN = ("key", "status", "reason", "detail", FIELD)  # fields that every column has


@dataclass
class MergeConfig:
    """Config keys of a merging job."""

    column: str = semantic("merged", "name of the column that is made; its fields are called as data.columns are")
    data: RowsConfig = field(default_factory=RowsConfig)


class MergeOperator(RowsJob, Batched):
    """One row a sample, with a field for each column. See hpc.operator.Operator."""

    Config: ClassVar[type] = MergeConfig
    version: ClassVar[int] = 1

    def __init__(self, config: MergeConfig) -> None:
        super().__init__()
        self.config = config
        if len(config.data.columns) < 2:
            raise UserError(
                "config: `data.columns`: a merge is of two columns or more. Write data.columns.NAME.run=RUN for each."
            )
        if taken := [name for name in config.data.columns if name in _TAKEN]:
            raise UserError(f"config: `data.columns`: {taken[0]!r} is a field of every column. Name it otherwise.")

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.config.data, list(self.config.data.columns), image=False)

    def identity(self) -> dict[str, Any]:
        return {"columns": self._rows.identities()}

    def describe(self) -> list[tuple[str, str]]:
        types = (f"{name} ({kind})" for name, kind in self.column().fields)
        return [("fields", " · ".join(types)), ("", "of tars and columns" if self._rows.tars else "no tar is read")]

    def column(self) -> Column:
        found = self._rows.columns.items()
        fields = [(name, c.type() if isinstance(c, ColumnOfFiles) else pa.string()) for name, c in found]
        return Column(self.config.column, [*fields, (FIELD, pa.string())])

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return self._rows.read(shard, lambda row: (row, 0))

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._row(item, item.payload) for item in items]

    def _row(self, item: Item, row: JoinedRow) -> Row:
        values = {**row.columns, FIELD: row.image}
        if all(value is None for value in row.columns.values()):
            return Row(item.shard, item.index, item.key, SKIPPED, "no column has a value", values=values)
        return Row(item.shard, item.index, item.key, OK, values=values)
