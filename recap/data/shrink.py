"""A map job that writes a column of small JPEGs, for training stages at low resolution.

    python -m hpc.launch configs/data/shrink.yaml data.shards=[...] side=128 name=small128

At 112 px most of a loader's time goes into decoding pixels that it throws away. A training with `data.pixels: small` (a
column of this run) reads the small images instead, and where every text is a column too it reads no tar at all.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from PIL import Image

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import OK, SKIPPED, Batched, Column, Item, Row
from recap.data.block_items import IndexedDataConfig
from recap.data.image_version import VERSION_2
from recap.data.images import BadImage, EncodedImage
from recap.data.memory import memory_to_decode
from recap.data.pictures import FoundImage
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import ImageJob
from recap.data.tars import READING_2

FIELDS = [
    ("image", pa.binary()), ("width", pa.int32()), ("height", pa.int32()),  # sizes are the original's
    (FIELD, pa.string()),
]  # fmt: skip

_LONGEST_JPEG = 65_500  # pixels: libjpeg's limit


@dataclass
class ShrinkConfig:
    """Config keys of a shrinking job."""

    column: str = semantic("small", "name of the column that is made")
    data: IndexedDataConfig = field(default_factory=IndexedDataConfig)
    side: int = semantic(128, "pixels of the shorter side; smaller images stay as they are")
    quality: int = semantic(90, "of the JPEGs, 1 to 95")
    threads: int = execution(4, "images at the same time")


class ShrinkOperator(ImageJob, Batched):
    """One small JPEG a sample. See hpc.operator.Operator."""

    Config: ClassVar[type] = ShrinkConfig
    version: ClassVar[int] = 2
    changes: ClassVar[dict[int, str]] = {2: f"{VERSION_2}; {READING_2}"}

    def __init__(self, config: ShrinkConfig) -> None:
        super().__init__()
        self.config = config
        if config.side < 8 or not 1 <= config.quality <= 95:
            raise UserError("config: `side` is at least 8 pixels, `quality` 1 to 95.")
        self._pool: ThreadPoolExecutor | None = None

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return [("input", self.input), ("shrink", f"shorter side {self.config.side} px · JPEG {self.config.quality}")]

    def column(self) -> Column:
        return Column(self.config.column, list(FIELDS))

    def setup(self, device: str) -> None:
        self._pool = ThreadPoolExecutor(max(self.config.threads, 1))

    def apply(self, items: list[Item]) -> list[Row]:
        assert self._pool is not None, "setup() comes first"
        return list(self._pool.map(self._shrink, items))

    def _shrink(self, item: Item) -> Row:
        found: FoundImage = item.payload
        if found.image is None:
            return Row(item.shard, item.index, item.key, SKIPPED, found.reason, found.detail)
        made_of: dict[str, Any] = {FIELD: digest(found.image)}
        try:
            encoded = EncodedImage(found.image)
            with memory_to_decode(encoded.cost):
                image = shrunk(encoded, self.config.side, self.config.quality)
        except BadImage as error:
            return Row(item.shard, item.index, item.key, SKIPPED, error.reason, error.detail, values=made_of)
        made_of |= {"image": image, "width": encoded.size[0], "height": encoded.size[1]}
        return Row(item.shard, item.index, item.key, OK, encoded.note, values=made_of)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def shrunk(encoded: EncodedImage, side: int, quality: int) -> bytes:
    """A JPEG whose shorter side is at most `side`. Raises BadImage."""
    width, height = encoded.size
    scale = min(side / min(width, height), 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    if max(size) > _LONGEST_JPEG:
        raise BadImage("image: too narrow", f"{width} x {height}")
    small = encoded.rgb(size)
    out = io.BytesIO()
    (small if small.size == size else small.resize(size, Image.Resampling.BICUBIC)).save(out, "JPEG", quality=quality)
    return out.getvalue()
