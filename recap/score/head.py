"""Scores of images by a head over a CLIP's image features: aesthetics, safety.

A head is one linear layer or several, read from a safetensors file. LAION's aesthetic predictor has five, with no
activation between them.
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
from recap.model_files import file_digest
from recap.score.clip_based import ClipBased
from recap.score.model_folder import json_of
from recap.score.scorer import IMAGE, ScoreInput
from recap.score.settings import ImageHead

if TYPE_CHECKING:
    from recap.score.encoder import ClipEncoder

_ACTIVATIONS = ("none", "relu")
_WIDTH = 512  # numbers of a feature where a CLIPConfig of transformers does not name its projection_dim
Layer = tuple[np.ndarray, np.ndarray]


class HeadScorer(ClipBased[ImageHead]):
    """See recap.score.scorer.Scorer. The head is applied to the CLIP's image features, normalised to length 1."""

    needs = frozenset({IMAGE})

    def __init__(self, name: str, config: ImageHead, encoders: dict[tuple[str, str], ClipEncoder]) -> None:
        super().__init__(f"scorers.head.{name}", name, config, encoders)
        if config.activation not in _ACTIVATIONS:
            known = " or ".join(_ACTIVATIONS)
            raise UserError(f"config: `{self._key}.activation`: {config.activation!r} is unknown. Write {known}.")
        self.fields.append((name, pa.float32()))

    def identity(self) -> dict[str, Any]:
        files = super().identity()
        layers = layers_of(self.config.weights, f"{self._key}.weights")
        if (given := width_of(self.config.model, f"{self._key}.model")) != (taken := layers[0][0].shape[1]):
            raise UserError(
                f"config: `{self._key}`: {self.config.weights} takes features of {taken} numbers, {self.config.model} "
                f"makes {given}: it was trained on those of another CLIP."
            )
        return {**files, "weights": file_digest(Path(self.config.weights))}

    def describe(self) -> str:
        return f"{Path(self.config.weights).name} over the image features of {self.config.model}"

    def setup(self, device: str) -> None:
        super().setup(device)
        self._layers = layers_of(self.config.weights, f"{self._key}.weights")

    def score(self, rows: Sequence[ScoreInput]) -> list[dict[str, Any]]:
        return [{} if one is None else {self.name: self._value(one)} for one in self._encoder.images(rows)]

    def _value(self, feature: np.ndarray) -> float:
        """The head's one output for a feature [D]."""
        made = feature
        for number, (weight, bias) in enumerate(self._layers):
            made = np.maximum(made, 0) if number and self.config.activation == "relu" else made
            made = weight @ made + bias
        value = float(made[0])
        if not self.config.sigmoid:
            return value
        return float(1 / (1 + np.exp(-value))) if value >= 0 else float(np.exp(value) / (1 + np.exp(value)))


def width_of(folder: str, key: str) -> int:
    """How many numbers a feature of this CLIP has, as the config in its folder says (ours, open_clip's or
    transformers')."""
    root = Path(folder)
    if (root / "recap_clip.json").is_file():
        return int(json_of(root / "recap_clip.json", key)["model"]["embed"])
    if (root / "open_clip_config.json").is_file():
        return int(json_of(root / "open_clip_config.json", key)["model_cfg"]["embed_dim"])
    return int(json_of(root / "config.json", key).get("projection_dim", _WIDTH))


def layers_of(file: str, key: str) -> list[Layer]:
    """Weights [out, in] and biases [out] of a head's linear layers, float64, first to last.

    Raises:
        UserError: the file is not a safetensors file, or its layers do not fit one another or do not end in one number.
    """
    try:
        if Path(file).suffix != ".safetensors":
            raise ValueError("not *.safetensors; a pickle may run code, save it as safetensors first")
        return _checked_layers(load_file(file))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"config: `{key}`: {file or 'empty'} is no head ({error}).") from error


def _checked_layers(tensors: Mapping[str, np.ndarray]) -> list[Layer]:
    """ValueError where the tensors are not linear layers of which each takes what the one before makes."""
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
    """Sort key that counts numbers in names as numbers, so that `layers.10` comes after `layers.2`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
