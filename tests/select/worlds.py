"""Tars without meaning and runs of scores beside them, made by a real operator's rows in a real run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.fields import semantic
from hpc.operator import OK, Batched, Column, Item, Row
from hpc.run.directory import Run
from recap.data.inputs import DataConfig
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import ImageJob
from tests.support.published import published

VALUES: dict[str, Mapping[str, Mapping[str, Any]]] = {}
"""Field values by run's name and key: what the operator below writes."""


@dataclass
class GivenConfig:
    column: str = semantic("given", "name of the column")
    data: DataConfig = field(default_factory=DataConfig)
    name_of_values: str = semantic("", "in VALUES")


class Given(ImageJob, Batched):
    """Writes what a test gives it, and as `sha256` that of the image. A row without values is skipped."""

    Config: ClassVar[type] = GivenConfig
    version: ClassVar[int] = 1

    def __init__(self, config: GivenConfig) -> None:
        super().__init__()
        self.config = config

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return []

    def column(self) -> Column:
        values = [row for row in VALUES[self.config.name_of_values].values() if row]
        table = pa.Table.from_pylist(
            [{k: v for row in values for k, v in row.items() if v is not None} | dict(values[0])]
        )
        return Column(self.config.column, [*((f.name, f.type) for f in table.schema), (FIELD, pa.string())])

    def setup(self, device: str) -> None: ...

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._row(item, VALUES[self.config.name_of_values].get(item.key, {})) for item in items]

    @staticmethod
    def _row(item: Item, values: Mapping[str, Any]) -> Row:
        sha256 = digest(item.payload.image)
        made = {name: sha256 if name == "sha256" else value for name, value in values.items()}
        made[FIELD] = sha256
        status = (OK, "") if values else ("skipped", "text: missing")
        return Row(item.shard, item.index, item.key, *status, values=made)


def given(folder: Path, name: str, values: Mapping[str, Mapping[str, Any]], tars: str = "tars") -> Run:
    """The run `folder/name` over the tars, with these fields by key."""
    VALUES[name] = values
    return published({
        "name": name, "runs": str(folder), "operator": "tests.select.worlds.Given", "name_of_values": name,
        "data": {"shards": [f"{folder}/{tars}"]},
    })  # fmt: skip


def selecting(folder: Path, name: str = "selected", **work: Any) -> dict[str, Any]:
    """The content of a selecting job's config; columns as NAME: (run, field)."""
    columns = {key: {"run": str(folder / run), "field": field} for key, (run, field) in work.pop("columns").items()}
    return {
        "name": name, "runs": str(folder), "operator": "recap.select.operator.SelectOperator",
        "data": {"columns": columns}, **work,
    }  # fmt: skip


def kept(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["key"] for row in rows if row["status"] == OK]
