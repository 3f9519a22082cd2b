"""A map job that turns lists into rows, one for each entry: the facts of an answer, its questions, the sentences of a
caption. Torch-free.

The rows of sample `k` get the keys `k#0`, `k#1`, .... A job that names this column in `data.rows` works on each of
them, joined with the sample's image and its other columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import semantic
from hpc.operator import OK, SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.blocks import BLOCK
from recap.data.rows import JoinedRow, Rows, RowsConfig
from recap.data.same_image import FIELD
from recap.data.tar_job import RowsJob
from recap.data.texts import clean
from recap.text_policy import sentences

UNEQUAL = "lists: of different lengths"
_NUMBER = "number"


@dataclass
class ExplodeConfig:
    """Config keys of a job that makes rows of lists."""

    column: str = semantic("each", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    lists: dict[str, str] = semantic(
        {},
        "fields of the new rows, and the columns of lists whose entries they are; a text's entries are its sentences",
    )
    drop: list[str] = semantic([], "entries of which no row is made, in any case of letters")


class ExplodeOperator(RowsJob, Batched):
    """See hpc.operator.Operator. Empty entries make no rows; a sample without any entry has none."""

    Config: ClassVar[type] = ExplodeConfig
    version: ClassVar[int] = 1
    by_rule: ClassVar[frozenset[str]] = frozenset()
    batch_size = BLOCK

    def __init__(self, config: ExplodeConfig) -> None:
        super().__init__()
        self.config = config
        if not config.lists:
            raise UserError(
                "config: `lists`: there are none. Name a field and the column of its entries: {fact: facts}."
            )
        for name, column in config.lists.items():
            if name in ("key", "status", "reason", "detail", FIELD, _NUMBER):
                raise UserError(f"config: `lists`: a field {name!r} is in every column of rows. Name it otherwise.")
            if column not in config.data.columns:
                known = ", ".join(config.data.columns) or "there are none"
                raise UserError(f"config: `lists.{name}`: column {column!r} is not among data.columns ({known}).")
        self._dropped = {entry.lower() for entry in config.drop}

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.config.data, list(dict.fromkeys(self.config.lists.values())), image=False)

    def plan(self) -> list[Shard]:
        return [replace(shard, expected=None) for shard in super().plan()]  # a sample may have any number of rows

    def identity(self) -> dict[str, Any]:
        columns = self._rows.identities()
        return {"columns": columns} if columns else {}

    def describe(self) -> list[tuple[str, str]]:
        return [("rows", ", ".join(f"{name}: an entry of {column}" for name, column in self.config.lists.items()))]

    def column(self) -> Column:
        fields: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in self.config.lists]
        return Column(self.config.column, [*fields, (_NUMBER, pa.int32()), (FIELD, pa.string())])

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        index = 0
        for item in self._rows.read(shard, lambda row: (row, 0)):
            if isinstance(item, Damage):
                yield item
                return
            if item.lost:  # it cannot be read: one row says so
                yield replace(item, index=index, key=f"{item.key}#0")
                index += 1
                continue
            for number, entry in self._entries(item.payload):
                yield Item(item.shard, index, f"{item.key}#{number}", entry)
                index += 1

    def _entries(self, row: JoinedRow) -> Iterator[tuple[int, dict[str, Any] | None]]:
        """(number, values) of each row of a sample. One row with values None where its lists have different lengths."""
        lists = [_entries_of(row.columns[column]) for column in self.config.lists.values()]
        if len({len(entries) for entries in lists}) > 1:
            yield 0, None
            return
        for number, entries in enumerate(zip(*lists, strict=True)):
            if entries[0] and not self._dropped & {entry.lower() for entry in entries}:
                values = dict(zip(self.config.lists, entries, strict=True))
                yield number, values | {_NUMBER: number, FIELD: row.image}

    def apply(self, items: list[Item]) -> list[Row]:
        return [
            Row(item.shard, item.index, item.key, SKIPPED, UNEQUAL)
            if item.payload is None
            else Row(item.shard, item.index, item.key, OK, values=item.payload)
            for item in items
        ]

    def refuse(self, item: Item, status: str, reason: str) -> Row:
        return Row(item.shard, item.index, item.key, status, reason)

    def close(self) -> None: ...

    def next_steps(self, run: str) -> list[str]:
        return []


def _entries_of(value: Any) -> list[str]:
    """The entries of a list, or the sentences of a text."""
    if value is None:
        return []
    entries = sentences(value) if isinstance(value, str) else [str(entry or "") for entry in value]
    return [clean(entry).strip() for entry in entries]
