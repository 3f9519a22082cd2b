"""What images show without a model: size, aspect, the uniformity of their border, and a perceptual hash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from recap.engine.decode import Geometry
from recap.score.scorer import IMAGE, Picture, ScoreInput

SQUARE = Geometry(64, "squash", resample=int(Image.Resampling.BILINEAR))
_NEAR = 12  # levels of 255 within which a pixel has the border's colour
_RIM = 3  # pixels of the square's border


class FactsScorer:
    """See recap.score.scorer.Scorer."""

    needs = frozenset({IMAGE})
    geometries = [SQUARE]
    fields = [
        ("width", pa.int32()), ("height", pa.int32()), ("aspect", pa.float32()), ("file_bytes", pa.int32()),
        ("uniform", pa.float32()), ("phash", pa.int64()),
    ]  # fmt: skip

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> str:
        return "size, aspect, uniformity and perceptual hash of images"

    def setup(self, device: str) -> None: ...

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        return [facts(row.picture) if row.picture else {} for row in rows]


def facts(picture: Picture) -> dict[str, Any]:
    """The values of `FactsScorer.fields` of a decoded image."""
    width, height = picture.size
    square = picture.squares[SQUARE]
    return {
        "width": width, "height": height, "aspect": max(width, height) / min(width, height),
        "file_bytes": len(picture.data), "uniform": uniform(square), "phash": phash(square),
    }  # fmt: skip


def uniform(square: np.ndarray) -> float:
    """Share of the border's pixels that have the border's median colour: 1.0 for a product on white.

    Args:
        square: uint8 [64, 64, 3].
    """
    inner = np.zeros(square.shape[:2], bool)
    inner[_RIM:-_RIM, _RIM:-_RIM] = True
    rim = square[~inner].astype(np.int16)
    return float((np.abs(rim - np.median(rim, axis=0)) <= _NEAR).all(-1).mean())


def phash(square: np.ndarray) -> int:
    """A perceptual hash of 64 bits as a signed integer: which of the 8 x 8 lowest frequencies of the grey picture are
    above their median.

    Copies of a picture that were resized or encoded again differ in few bits or none.

    Args:
        square: uint8 [64, 64, 3].
    """
    grey = square.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    low = (_cosines() @ grey @ _cosines().T)[:8, :8].round(6)
    bits = low.flatten() > np.median(low.flatten()[1:])  # the first coefficient is the mean brightness: left out
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


@cache
def _cosines() -> np.ndarray:
    """The first 8 rows of the 64-point DCT-II."""
    places = np.arange(SQUARE.size) + 0.5
    return np.cos(np.outer(np.arange(8), places) * math.pi / SQUARE.size)
