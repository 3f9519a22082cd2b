"""Numbers of images by a head over a CLIP's image features: aesthetics, safety. A linear layer or several, as
safetensors hold them; LAION's aesthetic predictor is five without an activation between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hpc.base.errors import UserError
from recap.engine.decode import Geometry
from recap.model_files import file_digest
from recap.score.clip import clip_files
from recap.score.model_folder import check_precision, json_of
from recap.score.scorer import IMAGE, Scored
from recap.score.settings import ImageHead

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

_ACTIVATIONS = ("none", "relu")
_WIDTH = 512  # of a CLIPConfig that does not say
Layer = tuple[np.ndarray, np.ndarray]


class HeadScorer:
    """See recap.score.scorer.Scorer. Features are the CLIP's, of length 1, and shared with its other scorers."""

    needs = frozenset({IMAGE})

    def __init__(self, name: str, config: ImageHead, encoders: dict[tuple[str, str], ClipEncoder]) -> None:
        self.name, self.config, self._key, self._encoders = name, config, f"scorers.head.{name}", encoders
        check_precision(config.precision, self._key)
        if config.activation not in _ACTIVATIONS:
            known = " or ".join(_ACTIVATIONS)
            raise UserError(f"config: `{self._key}.activation`: {config.activation!r} is unknown. Write {known}.")
        self.geometries: list[Geometry] = []
        self.fields: list[tuple[str, pa.DataType]] = [(name, pa.float32())]

    def identity(self) -> dict[str, Any]:
        files = clip_files(self.config.model, f"{self._key}.model")
        layers = layers_of(self.config.weights, f"{self._key}.weights")
        if (given := width_of(self.config.model, f"{self._key}.model")) != (taken := layers[0][0].shape[1]):
            raise UserError(
                f"config: `{self._key}`: {self.config.weights} takes features of {taken} numbers, {self.config.model} "
                f"makes {given}: it was trained on those of another CLIP."
            )
        return {"model": files, "weights": file_digest(Path(self.config.weights))}

    def describe(self) -> str:
        return f"{Path(self.config.weights).name} over the image features of {self.config.model}"

    def setup(self, device: str) -> None:
        from recap.score.encoder import ClipEncoder

        self._encoder = ClipEncoder.shared(self._encoders, self.config.model, self.config.precision, device)
        self._layers = layers_of(self.config.weights, f"{self._key}.weights")
        self.geometries = [self._encoder.geometry]

    def score(self, rows: Sequence[Scored]) -> list[dict[str, Any]]:
        return [{} if one is None else {self.name: self._of(one)} for one in self._encoder.images(rows)]

    def _of(self, feature: np.ndarray) -> float:
        made = feature
        for number, (weight, bias) in enumerate(self._layers):
            made = np.maximum(made, 0) if number and self.config.activation == "relu" else made
            made = weight @ made + bias
        value = float(made[0])
        if not self.config.sigmoid:
            return value
        return float(1 / (1 + np.exp(-value))) if value >= 0 else float(np.exp(value) / (1 + np.exp(value)))


def width_of(folder: str, key: str) -> int:
    """Numbers of a feature of a CLIP, as its configuration says, whoever wrote it."""
    root = Path(folder)
    if (root / "recap_clip.json").is_file():
        return int(json_of(root / "recap_clip.json", key)["model"]["embed"])
    if (root / "open_clip_config.json").is_file():
        return int(json_of(root / "open_clip_config.json", key)["model_cfg"]["embed_dim"])
    return int(json_of(root / "config.json", key).get("projection_dim", _WIDTH))


def layers_of(file: str, key: str) -> list[Layer]:
    """Weights [out, in] and biases [out] of a head's linear layers, float64, first to last.

    Raises:
        UserError: the file is none of safetensors, or its layers do not follow one another down to one number.
    """
    try:
        if Path(file).suffix != ".safetensors":
            raise ValueError("not *.safetensors; a pickle may run code, save it as safetensors first")
        return _chained(load_file(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"config: `{key}`: {file or 'empty'} is no head ({error}).") from error


def _chained(tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    names = sorted((n for n in tensors if n.endswith("weight")), key=_natural)
    if not names:
        raise ValueError("no tensor is called weight")
    layers: list[Layer] = []
    for name in names:
        weight = tensors[name].astype(np.float64)
        bias = tensors.get(f"{name.removesuffix('weight')}bias")
        if weight.ndim != 2:
            raise ValueError(f"{name} has {weight.ndim} dimensions, 2 are expected")
        if layers and weight.shape[1] != len(layers[-1][1]):
            raise ValueError(f"{name} takes {weight.shape[1]} numbers, the layer before makes {len(layers[-1][1])}")
        layers.append((weight, np.zeros(len(weight)) if bias is None else bias.astype(np.float64)))
    if len(layers[-1][1]) != 1:
        raise ValueError(f"{names[-1]} makes {len(layers[-1][1])} numbers, 1 is expected")
    if lost := set(tensors) - set(names) - {f"{name.removesuffix('weight')}bias" for name in names}:
        raise ValueError(f"{min(lost)} is of no linear layer")
    return layers


def _natural(name: str) -> list[tuple[int, str]]:
    """`layers.10` behind `layers.2`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
