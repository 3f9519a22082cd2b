"""Base classes of map jobs over shards: over their samples, their images, or rows joined with columns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hpc.operator import Damage, Item, Shard
from recap.data.block_items import block_counts, read_blocks
from recap.data.inputs import list_shards
from recap.data.pictures import FoundImage, find_image, read_items
from recap.data.rows import Rows
from recap.data.tars import Sample

log = logging.getLogger(__name__)


class PlannedInput:
    """The methods of hpc.operator.Operator that concern the run's input. The config's `data` is a `DataConfig`."""

    config: Any

    def continues(self, planned: Iterable[Shard]) -> None:
        self.config.data.keep_root(planned)

    def keep_in(self, folder: Path) -> None:
        self.config.data.lists = folder

    def freeze(self, folder: Path) -> None:
        self.config.data.frozen.write(folder)

    def noted(self, shard: str) -> dict[str, Any]:
        found: dict[str, Any] = self.config.data.noted.pop(shard, {})
        return found


class TarJob(PlannedInput):
    """Base of operators over samples."""

    input = ""
    """What a dry run says of the shards; set by `plan`."""

    def plan(self) -> list[Shard]:
        return list_shards(self.config.data)


class ImageJob(TarJob):
    """Base of operators over images: an item is a sample, its payload a `FoundImage`. The config's `data` is an
    `IndexedDataConfig`.
    """

    def plan(self) -> list[Shard]:
        shards = super().plan()
        self.input = self.config.data.described(shards, self.config.data.wanted())
        return shards

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return read_items(shard, self.config.data, self._found, self.config.data.wanted())

    def block_counts(self, shards: Sequence[Shard]) -> dict[str, list[int]]:
        return block_counts(self.config.data, shards)

    def read_blocks(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Item]:
        return read_blocks(shard, numbers, self.config.data, self._found, self.config.data.wanted())

    def _found(self, sample: Sample) -> tuple[FoundImage, int]:
        found = find_image(sample, self.config.data.image)
        return found, len(found.image or b"")


class RowsJob(PlannedInput):
    """Base of operators over rows: samples of tars joined with columns, or the rows of a column alone."""

    @cached_property
    def _rows(self) -> Rows:
        raise NotImplementedError

    def plan(self) -> list[Shard]:
        shards, told = self._rows.plan()
        for line in told:
            log.warning("data: %s", line)
        return shards

    def survey(self, folder: Path, shards: Sequence[Shard]) -> dict[str, str]:
        return self._rows.survey(folder, shards)

    def surveyed(self, folder: Path, names: Mapping[str, str], shard: str = "") -> None:
        manifests = {column: folder / name for column, name in names.items()}
        if shard:
            self._rows.reopened(shard, manifests)
        else:
            self.config.data.manifests = manifests
