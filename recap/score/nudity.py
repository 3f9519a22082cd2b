"""Nudity and faces by NudeNet's detector (a YOLOv8 of 18 parts of bodies), which its package ships as an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.model_files import file_digest
from recap.score.scorer import IMAGE, ScoreInput
from recap.score.settings import Nudity

SQUARE = Geometry(320, "pad", (0, 0, 0), int(Image.Resampling.BILINEAR))
CLASSES = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED",
    "ARMPITS_EXPOSED", "FACE_MALE", "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # fmt: skip
"""The classes in the order of the model's outputs, which follow the four numbers of a box."""
_FIELDS = {
    "nudity": ("BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "ANUS_EXPOSED",
               "MALE_GENITALIA_EXPOSED"),
    "face": ("FACE_FEMALE", "FACE_MALE"),
}  # fmt: skip
_BOX = 4


class NudityScorer:
    """See recap.score.scorer.Scorer. The whole image is padded with black to a square, on both sides; NudeNet pads on
    one side only. For square images of 320 pixels the values equal NudeNet's."""

    needs = frozenset({IMAGE})
    geometries = [SQUARE]
    fields: list[tuple[str, pa.DataType]] = [(name, pa.float32()) for name in _FIELDS]

    def __init__(self, config: Nudity) -> None:
        self._file = Path(config.model) if config.model else packaged()
        runs = find_spec("onnxruntime") is not None
        if not runs or not self._file.is_file():
            raise UserError(
                f"config: `scorers.nudity`: no {self._file if runs else 'onnxruntime'} is here. pip install "
                "'recap-hpc[systems]', or write scorers.nudity.model=FILE of NudeNet's 320n.onnx."
            )

    def identity(self) -> dict[str, Any]:
        return {"model": file_digest(self._file)}

    def describe(self) -> str:
        return f"nudity and faces by NudeNet's {self._file.name}"

    def setup(self, device: str) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(str(self._file), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        squares = [row.picture.squares[SQUARE] for row in rows if row.picture]
        made = iter(self._image_values(np.stack(squares)) if squares else [])
        return [next(made) if row.picture else {} for row in rows]

    def _image_values(self, squares: np.ndarray) -> list[dict[str, float]]:
        """The fields of each of b images. squares: uint8 [b, 320, 320, 3] in RGB; the model takes BGR."""
        pixels = np.ascontiguousarray(squares[..., ::-1].transpose(0, 3, 1, 2)).astype(np.float32) / 255
        [out] = self._session.run(None, {self._input: pixels})  # [b, 4 + classes, places]
        best = out[:, _BOX:].max(-1)
        places = {name: [CLASSES.index(one) for one in classes] for name, classes in _FIELDS.items()}
        return [{name: float(row[at].max()) for name, at in places.items()} for row in best]


def packaged() -> Path:
    """320n.onnx as nudenet ships it; a path that does not exist where that is not installed."""
    found = find_spec("nudenet")
    folder = Path(found.origin).parent if found and found.origin else Path("nudenet")
    return folder / "320n.onnx"
