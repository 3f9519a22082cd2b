"""A CLIP's features of images and texts themselves, for metrics that compare many of them: retrieval, likeness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recap.clip.preprocessing import rules
from recap.engine.decode import Geometry
from recap.score.clip import clip_files
from recap.score.model_folder import check_precision
from recap.score.scorer import IMAGE, TEXTS_IF_ANY, Scored, named
from recap.score.settings import ClipFeatures

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

KIND = pa.list_(pa.float32())


class FeaturesScorer:
    """See recap.score.scorer.Scorer. A row without a text has its image's features all the same: among those of others
    it is still an image."""

    needs = frozenset({IMAGE, TEXTS_IF_ANY})

    def __init__(
        self, name: str, config: ClipFeatures, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        self.name, self.config, self._key, self._encoders = name, config, f"scorers.features.{name}", encoders
        check_precision(config.precision, self._key)
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = [(name, KIND)]
        for text in texts:
            self.fields += [(named(name, text), KIND), (named(f"cut_{name}", text), pa.bool_())]

    def identity(self) -> dict[str, Any]:
        return {"model": clip_files(self.config.model, f"{self._key}.model"), **rules(self.config.model)}

    def describe(self) -> str:
        return f"features by {self.config.model} · {self.config.precision}"

    def setup(self, device: str) -> None:
        from recap.score.encoder import ClipEncoder

        self._encoder = ClipEncoder.shared(self._encoders, self.config.model, self.config.precision, device)
        self.geometries = [self._encoder.geometry]

    def score(self, rows: Sequence[Scored]) -> list[dict[str, Any]]:
        images = self._encoder.images(rows)
        texts, cut = self._encoder.texts(rows)
        return [
            self._of(row, image, {name: texts[row.texts[name]] for name in row.texts}, cut)
            for row, image in zip(rows, images, strict=True)
        ]

    def _of(
        self, row: Scored, image: np.ndarray | None, texts: dict[str, np.ndarray], cut: dict[str, bool]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {} if image is None else {self.name: listed(image)}
        for name, feature in texts.items():
            found[named(self.name, name)] = listed(feature)
            found[named(f"cut_{self.name}", name)] = cut[row.texts[name]]
        return found


def listed(feature: np.ndarray) -> list[float] | float:
    """The numbers of a feature; not a number where one of them is none, which is never written."""
    return feature.astype(np.float32).tolist() if np.isfinite(feature).all() else float("nan")
