"""A tiny sampling job: for each prompt of the tars and each guidance an image in the prompt's first colour."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from hpc.operator import FAILED, Batched, Column, Damage, Item, Row, Shard
from recap.data.inputs import DataConfig, list_shards
from recap.data.remote import open_shard
from recap.data.tars import Sample, read_samples
from tests.clip.world import COLOURS

SIDE = 32


@dataclass
class PaintConfig:
    data: DataConfig = field(default_factory=DataConfig)
    guidance: list[float] = field(default_factory=lambda: [4.0])
    noise: int = 0


def paint(prompt: str, noise: int, seed: int) -> bytes:
    colour = next((rgb for word in prompt.split() if (rgb := COLOURS.get(word))), (128, 128, 128))
    pixels = np.full((SIDE, SIDE, 3), colour) + np.random.default_rng(seed).normal(0, noise, (SIDE, SIDE, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Paint(Batched):
    Config: ClassVar[type] = PaintConfig
    version: ClassVar[int] = 1

    def __init__(self, config: PaintConfig) -> None:
        super().__init__()
        self.config = config

    def plan(self) -> list[Shard]:
        return list_shards(self.config.data)

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return []

    def column(self) -> Column:
        kinds = {"image": pa.binary(), "prompt": pa.string(), "guidance": pa.float32(), "cut": pa.bool_()}
        return Column("image", list(kinds.items()))

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        index = 0
        with open_shard(shard) as file:
            for sample in read_samples(file):
                assert isinstance(sample, Sample)
                for guidance in self.config.guidance:
                    payload = (sample.members["txt"].decode(), guidance)
                    yield Item(shard.id, index, f"{sample.key}@{guidance:g}", payload)
                    index += 1

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._row(item, *item.payload) for item in items]

    def _row(self, item: Item, prompt: str, guidance: float) -> Row:
        if item.index == 5:
            return Row(item.shard, item.index, item.key, FAILED, "sampler: not finite", values={"guidance": guidance})
        image = paint(prompt, self.config.noise + int(guidance), item.index)
        values = {"image": image, "prompt": prompt, "guidance": guidance, "cut": item.index % 4 < 2}
        return Row(item.shard, item.index, item.key, values=values)
