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
from recap.score.clip_based import ClipBased
from recap.score.scorer import BAG, IMAGE, TEXTS, ScoreInput, text_field
from recap.score.settings import SelfRetrieval

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

LARGEST_BAG = 512  # rows; the images of a bag are held in memory together


class SelfRetrievalScorer(ClipBased[SelfRetrieval]):
    """See recap.score.scorer.Scorer."""

    needs = frozenset({IMAGE, TEXTS, BAG})

    def __init__(
        self, name: str, config: SelfRetrieval, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        super().__init__(f"scorers.self_retrieval.{name}", name, config, encoders)
        self.fields.append((f"bag_{name}", pa.int32()))
        for text in texts:
            self.fields += [(text_field(name, text), pa.float32()), (text_field(f"rank_{name}", text), pa.int32())]
            self.fields += [(text_field(f"cut_{name}", text), pa.bool_())]

    def describe(self) -> str:
        return f"own image among its bag's by {self.config.model} · {self.config.precision}"

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        images, bags = self._encoder.images(rows), self._encoder.bags(rows)
        texts, cut = self._encoder.texts(rows)
        found: list[dict[str, Any]] = []
        for row, own, others in zip(rows, images, bags, strict=True):
            made: dict[str, Any] = {}
            if own is not None and row.bag is not None:
                everything = np.stack([own, *others])
                made[f"bag_{self.name}"] = len(everything)
                for name, text in row.texts.items():
                    value, rank = own_image_rank(everything @ texts[text], self._encoder.temperature)
                    made |= {text_field(self.name, name): value, text_field(f"rank_{self.name}", name): rank}
                    made[text_field(f"cut_{self.name}", name)] = cut[text]
            found.append(made)
        return found


def own_image_rank(cosines: np.ndarray, temperature: float) -> tuple[float, int]:
    """How well a text finds its own image, the first of [N] cosines with images.

    Returns:
        (log-probability of the own image under the softmax of `temperature` times the cosines,
        its rank: 1 where no other image has a larger cosine)

    >>> value, rank = own_image_rank(np.array([0.5, 0.5, 0.9]), 0.0)
    >>> round(value + np.log(3), 6), rank
    (0.0, 2)
    """
    logits = temperature * cosines
    top = logits.max()
    value = float(logits[0] - top - np.log(np.exp(logits - top).sum()))
    return value, 1 + int((cosines > cosines[0]).sum())


def in_bags(items: Iterator[Item | Damage], rows: int) -> Iterator[Item | Damage]:
    """A shard's items, with the images of their bag in each payload (recap.score.operator.ScorePayload).

    A bag is `rows` consecutive rows of the shard or, where `rows` is 0, consecutive rows with the same value of
    `ScorePayload.bag_of`. After a restart all rows of the shard pass here again, those with saved scores too, so that
    the bags are the same.

    Raises:
        ShardError: more than LARGEST_BAG consecutive rows have the same value.
    """
    numbered = ((item, at // rows if rows else None) for at, item in enumerate(items))
    for _, found in groupby(numbered, lambda one: _bag(*one)):
        members = [item for item, _ in islice(found, LARGEST_BAG + 1)]
        if len(members) > LARGEST_BAG and isinstance(first := members[0], Item):
            raise ShardError(
                "bag: too many rows",
                f"more than {LARGEST_BAG} rows that follow one another have {first.payload.bag_of!r} in the column of "
                "bags",
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
