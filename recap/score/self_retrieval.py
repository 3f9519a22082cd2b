"""Whether a text finds its own image among others, the bag: self-retrieval (Dessi et al. 2023, Gaur et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hpc.base.errors import ShardError
from hpc.operator import Damage, Item
from recap.engine.decode import Geometry
from recap.score.clip import clip_files
from recap.score.model_folder import check_precision
from recap.score.scorer import BAG, IMAGE, TEXTS, Scored, named
from recap.score.settings import SelfRetrieval

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

LARGEST = 512  # rows of a bag: their images are held


class SelfRetrievalScorer:
    """See recap.score.scorer.Scorer."""

    needs = frozenset({IMAGE, TEXTS, BAG})

    def __init__(
        self, name: str, config: SelfRetrieval, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        self.name, self.config, self._key, self._encoders = name, config, f"scorers.self_retrieval.{name}", encoders
        check_precision(config.precision, self._key)
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = [(f"bag_{name}", pa.int32())]
        for text in texts:
            self.fields += [(named(name, text), pa.float32()), (named(f"rank_{name}", text), pa.int32())]
            self.fields += [(named(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        return {"model": clip_files(self.config.model, f"{self._key}.model")}

    def describe(self) -> str:
        return f"own image among its bag's by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.encoder import ClipEncoder

        self._encoder = ClipEncoder.shared(self._encoders, self.config.model, self.config.precision, device)
        self.geometries = [self._encoder.geometry]

    def score(self, rows: Sequence[Scored]) -> list[dict[str, Any]]:
        images, bags = self._encoder.images(rows), self._encoder.bags(rows)
        texts, cut = self._encoder.texts(rows)
        found: list[dict[str, Any]] = []
        for row, own, others in zip(rows, images, bags, strict=True):
            made: dict[str, Any] = {}
            if own is not None and row.bag is not None:
                everything = np.stack([own, *others])
                made[f"bag_{self.name}"] = len(everything)
                for name, text in row.texts.items():
                    value, rank = among(everything @ texts[text], self._encoder.temperature)
                    made |= {named(self.name, name): value, named(f"rank_{self.name}", name): rank}
                    made[named(f"cut_{self.name}", name)] = cut[text]
            found.append(made)
        return found


def among(cosines: np.ndarray, temperature: float) -> tuple[float, int]:
    """Log-probability of the first of some images under the softmax of a text's cosines, and its rank: 1 is found.

    >>> value, rank = among(np.array([0.5, 0.5, 0.9]), 0.0)
    >>> round(value + np.log(3), 6), rank
    (0.0, 2)
    """
    logits = temperature * cosines
    top = logits.max()
    value = float(logits[0] - top - np.log(np.exp(logits - top).sum()))
    return value, 1 + int((cosines > cosines[0]).sum())


def in_bags(items: Iterator[Item | Damage], rows: int) -> Iterator[Item | Damage]:
    """Items whose payloads (recap.score.operator.Given) hold the images of their bag: so many rows of the shard that
    follow one another, or, where `rows` is 0, those that follow one another with one value of `Given.bag_of`.

    All rows of a shard pass here whatever was saved of it before, so that bags are the same after a restart.
    """
    numbered = ((item, at // rows if rows else None) for at, item in enumerate(items))
    for _, found in groupby(numbered, lambda one: _bag(*one)):
        members = [item for item, _ in islice(found, LARGEST + 1)]
        if len(members) > LARGEST and isinstance(first := members[0], Item):
            raise ShardError(
                "bag: too many rows",
                f"more than {LARGEST} rows that follow one another have {first.payload.bag_of!r} in the column of bags",
            )
        for item in members:
            yield item if isinstance(item, Damage) else _with_bag(item, members)


def _bag(item: Item | Damage, number: int | None) -> Any:
    if isinstance(item, Damage):
        return "damage", None
    if number is not None:
        return "rows", number
    value = item.payload.bag_of
    return ("column", str(value)) if str("" if value is None else value).strip() else ("alone", item.index)


def _with_bag(item: Item, members: Sequence[Item | Damage]) -> Item:
    others = [one.payload for one in members if isinstance(one, Item) and one is not item]
    images = [other.image for other in others if other.image is not None and not other.reason]
    return replace(item, payload=replace(item.payload, bag=images))
