"""How bright each picture is, as a column: a number that a selection or a report can use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from PIL import ImageStat

from hpc.base.fields import semantic
from hpc.operator import SKIPPED, Batched, Column, Item, Row
from recap.data.images import BadImage, EncodedImage
from recap.data.inputs import DataConfig
from recap.data.tar_job import ImageJob


@dataclass
class BrightnessConfig:
    """Keys of the config. A semantic key enters the column's identity: another value makes another column."""

    data: DataConfig = field(default_factory=DataConfig)
    side: int = semantic(32, "pixels of the square that the picture is shrunk to before it is measured")


class Brightness(ImageJob, Batched):
    """`ImageJob` lists the tars and finds the image of each sample, `Batched` collects samples for `apply`."""

    Config: ClassVar[type] = BrightnessConfig
    version: ClassVar[int] = 1  # raise it when the code changes what it writes

    def __init__(self, config: BrightnessConfig) -> None:
        super().__init__()
        self.config = config

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return [("measure", f"brightness at {self.config.side} x {self.config.side} pixels")]

    def column(self) -> Column:
        return Column("brightness", [("mean", pa.float32()), ("spread", pa.float32())])

    def setup(self, device: str) -> None:
        """Models are loaded here, once an engine. This operator has none."""

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._measured(item) for item in items]

    def _measured(self, item: Item) -> Row:
        found = item.payload
        if found.image is None:
            return Row(item.shard, item.index, item.key, SKIPPED, found.reason, found.detail)
        try:
            grey = EncodedImage(found.image).rgb((self.config.side,) * 2).convert("L")
        except BadImage as error:  # the sample's own fault: a row with a reason, and the shard goes on
            return Row(item.shard, item.index, item.key, SKIPPED, error.reason, error.detail)
        seen = ImageStat.Stat(grey)
        return Row(item.shard, item.index, item.key, values={"mean": seen.mean[0], "spread": seen.stddev[0]})
