"""A drawing model that knows the world of shapes: it draws what a caption says, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar

from hpc.operator import FAILED, SKIPPED, Item, Row
from recap.dit.contact_sheet import as_png
from recap.dit.sample_job import SampleConfig, SampleOperator
from recap.worlds import shape_claims
from recap.worlds.shape_scenes import Group, Scene, draw

SIDE = 48
UNDRAWABLE = "NaN"


def scene_of(caption: str) -> Scene:
    """What a caption of recap.worlds.shapes tells."""
    claims = shape_claims.parse(caption)
    groups = [Group(c.count or 1, c.size or "small", c.colour or "black", c.kind, c.place or "center") for c in claims]
    return Scene(caption.partition("background is ")[2].rstrip(".") or "white", tuple(groups))


class Render(SampleOperator):
    """See hpc.operator.Operator. A prompt that holds NaN fails, as a model's arithmetic may."""

    Config: ClassVar[type] = SampleConfig

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return []

    def preflight(self) -> list[str]:
        return []

    def setup(self, device: str) -> None: ...

    def apply(self, items: list[Item]) -> list[Row]:
        return [self._drawn(item) for item in items]

    @staticmethod
    def _drawn(item: Item) -> Row:
        order = item.payload
        if order.problem:
            return Row(item.shard, item.index, item.key, SKIPPED, order.problem, values={"prompt": order.prompt})
        if UNDRAWABLE in order.prompt:
            return Row(item.shard, item.index, item.key, FAILED, "image: not a number", values={"prompt": order.prompt})
        values = {
            "image": as_png(draw(scene_of(order.prompt), SIDE)), "prompt": order.prompt, "guidance": order.guidance,
            "seed": order.seed, "cut": len(order.prompt.split()) > 20,
        }  # fmt: skip
        return Row(item.shard, item.index, item.key, values=values)
