"""What the scorers that look through a CLIP have in common: its files, and one opened CLIP for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from recap.clip.preprocessing import pixel_rules
from recap.engine.decode import Geometry
from recap.score.model_folder import check_precision, files_of
from recap.score.scorer import ScoreInput
from recap.score.settings import ModelSettings

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

Settings = TypeVar("Settings", bound=ModelSettings)


class ClipBased(Generic[Settings]):
    """Base of every scorer by a CLIP.

    Args:
        key: the scorer's place in the config, for errors: `scorers.clip.NAME`.
        name: of the scorer, which its fields are named after.
        encoders: CLIPs that are open already, by folder and precision. All scorers of a job share this dict.
    """

    def __init__(self, key: str, name: str, config: Settings, encoders: dict[tuple[str, str], ClipEncoder]) -> None:
        self.name, self.config, self._key, self._encoders = name, config, key, encoders
        check_precision(config.precision, key)
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = []

    def identity(self) -> dict[str, Any]:
        return {"model": clip_files(self.config.model, f"{self._key}.model")}

    def setup(self, device: str) -> None:
        from recap.score.encoder import ClipEncoder

        self._encoder = ClipEncoder.shared(self._encoders, self.config.model, self.config.precision, device)
        self.geometries = [self._encoder.geometry]


class ImageAndTexts(ClipBased[Settings], ABC):
    """Base of the scorers that look at a row's image and at each of its texts."""

    def identity(self) -> dict[str, Any]:
        return super().identity() | pixel_rules(self.config.model)

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        images = self._encoder.images(rows)
        texts, cut = self._encoder.texts(rows)
        return [
            self._row_values(row, image, {name: texts[row.texts[name]] for name in row.texts}, cut)
            for row, image in zip(rows, images, strict=True)
        ]

    @abstractmethod
    def _row_values(
        self, row: ScoreInput, image: np.ndarray | None, texts: dict[str, np.ndarray], cut: dict[str, bool]
    ) -> dict[str, Any]:
        """Values of one row's fields.

        Args:
            image: the image's feature, float64 [D] of length 1; None where the row has no image.
            texts: the feature of each text by the text's name, float64 [D] of length 1.
            cut: by the text itself, whether the CLIP's context did not hold all of it.
        """


def clip_files(folder: str, key: str) -> dict[str, str]:
    """sha256 by name of a CLIP's weights, configs and tokenizer. UserError where there are no weights."""
    made = "an export of this toolkit, Recap-CLIP in open_clip's form or what CLIPModel.save_pretrained wrote"
    return files_of(folder, key, made)
