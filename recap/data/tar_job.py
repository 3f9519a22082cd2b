"""What map jobs share that go through shards, sample by sample or image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hpc.operator import Damage, Item, Shard
from recap.data.inputs import list_shards
from recap.data.kinds import described
from recap.data.pictures import FoundImage, find_image, read_items
from recap.data.tars import Sample


class TarJob:
    """The shards of an operator whose config has the tars in `data`, a `DataConfig`."""

    config: Any
    input = ""
    """What a dry run says of the shards, once they are planned."""

    def continues(self, planned: Iterable[Shard]) -> None:
        self.config.data.keep_root(planned)

    def plan(self) -> list[Shard]:
        return list_shards(self.config.data)


class ImageJob(TarJob):
    """Items are samples; their payload is the image found in each, or why there is none."""

    def plan(self) -> list[Shard]:
        shards = super().plan()
        self.input = described(shards, self.config.data.wanted())
        return shards

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        return read_items(shard, self.config.data, self._found, self.config.data.wanted())

    def _found(self, sample: Sample) -> tuple[FoundImage, int]:
        found = find_image(sample, self.config.data.image)
        return found, len(found.image or b"")
