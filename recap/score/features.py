"""A CLIP's features of images and texts, written as they are, for metrics that compare many of them: retrieval,
likeness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recap.score.clip_based import ImageAndTexts
from recap.score.scorer import IMAGE, TEXTS_IF_ANY, ScoreInput, text_field
from recap.score.settings import ClipFeatures

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

FEATURE_TYPE = pa.list_(pa.float32())


class FeaturesScorer(ImageAndTexts[ClipFeatures]):
    """See recap.score.scorer.Scorer. A row without a text has its image's features all the same, because retrieval
    looks for the texts of other rows among all images."""

    needs = frozenset({IMAGE, TEXTS_IF_ANY})

    def __init__(
        self, name: str, config: ClipFeatures, texts: Sequence[str], encoders: dict[tuple[str, str], ClipEncoder]
    ) -> None:
        super().__init__(f"scorers.features.{name}", name, config, encoders)
        self.fields.append((name, FEATURE_TYPE))
        for text in texts:
            self.fields += [(text_field(name, text), FEATURE_TYPE), (text_field(f"cut_{name}", text), pa.bool_())]

    def describe(self) -> str:
        return f"features by {self.config.model} · {self.config.precision}"

    def _row_values(
        self, row: ScoreInput, image: np.ndarray | None, texts: dict[str, np.ndarray], cut: dict[str, bool]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {} if image is None else {self.name: listed(image)}
        for name, feature in texts.items():
            found[text_field(self.name, name)] = listed(feature)
            found[text_field(f"cut_{self.name}", name)] = cut[row.texts[name]]
        return found


def listed(feature: np.ndarray) -> list[float] | float:
    """A feature [D] as float32 numbers. NaN where one of them is not finite: the job then writes the row as skipped."""
    return feature.astype(np.float32).tolist() if np.isfinite(feature).all() else float("nan")
