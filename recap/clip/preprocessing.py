"""How images are prepared for evaluating a CLIP, as its checkpoint says: this toolkit's, open_clip's or
transformers'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpc.base.errors import UserError
from recap.clip.settings import OPENAI, ClipModelConfig
from recap.engine.decode import Geometry, decode

_MODES = {"squash": "squash", "shortest": "crop", "longest": "fit"}
_FILTERS = {  # "random" is for training: open_clip evaluates with bicubic then
    "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "random": Image.Resampling.BICUBIC,
}  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """geometry: how an image becomes a square. mean, std: of each channel, of pixels in [0, 1]."""

    geometry: Geometry
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, data: bytes) -> np.ndarray:
        """uint8 [3, size, size] of an image file. Raises recap.data.images.BadImage."""
        return decode(data, self.geometry).transpose(2, 0, 1)

    def for_transformers(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json with which CLIPImageProcessor does the same."""
        side = {"height": self.geometry.size, "width": self.geometry.size}
        return {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": side,
            "resample": self.geometry.resample, "do_center_crop": False, "crop_size": side, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": self.mean, "image_std": self.std,
        }  # fmt: skip

    def for_open_clip(self) -> dict[str, Any]:
        """The `preprocess_cfg` with which open_clip does the same."""
        return {"mean": self.mean, "std": self.std, "interpolation": "bilinear", "resize_mode": "squash"}


def ours(config: ClipModelConfig, image: int) -> Preprocessing:
    """The preprocessing of this toolkit's models: the whole image, squashed to a square of `image` pixels."""
    return Preprocessing(Geometry(image, "squash", resample=int(Image.Resampling.BILINEAR)), *config.normalisation)


def of_open_clip(given: dict[str, Any], image: int) -> Preprocessing:
    """The preprocessing of open_clip's `preprocess_cfg`, with open_clip's defaults. image: pixels of the square's
    side."""
    mode, filter_ = given.get("resize_mode") or "shortest", given.get("interpolation") or "bicubic"
    if mode not in _MODES or filter_ not in _FILTERS:
        raise UserError(f"clip: preprocess_cfg: resize_mode {mode!r} with interpolation {filter_!r} is not known here.")
    fill = int(given.get("fill_color") or 0)
    geometry = Geometry(image, _MODES[mode], (fill, fill, fill), int(_FILTERS[filter_]), halves="even")
    return Preprocessing(geometry, _three(given.get("mean") or OPENAI[0]), _three(given.get("std") or OPENAI[1]))


def of_transformers(folder: Path, image: int) -> Preprocessing:
    """The preprocessing of a processor's config; without one, that of OpenAI's models: centre crop, bicubic."""
    from recap.engine.checkpoint import geometry_of

    names = ("preprocessor_config.json", "processor_config.json")
    if not any((folder / name).is_file() for name in names):
        return Preprocessing(Geometry(image, "crop", resample=int(Image.Resampling.BICUBIC)), *OPENAI)
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        geometry = geometry_of(processor, image, None)
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"clip: {folder}: its image processor cannot be used: {str(error)[:300]}") from error
    # The processor computes (pixels * factor - mean) / std of pixels from 0 to 255; here pixels are in [0, 1].
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return Preprocessing(geometry, *(tuple(value / factor for value in _three(values)) for values in (mean, std)))


def _three(values: float | Sequence[float]) -> tuple[float, ...]:
    """A value for each of three channels. Both libraries accept a single number for all of them."""
    return tuple(values) if isinstance(values, Sequence) else (float(values),) * 3


def of_folder(folder: str | Path, config: ClipModelConfig, image: int) -> Preprocessing:
    """The preprocessing of a folder that `recap.clip.weights.opened` opens. config, image: as it returns them."""
    path = Path(folder)
    if (path / "recap_clip.json").is_file():
        return ours(config, image)
    if (path / "open_clip_config.json").is_file():
        return of_open_clip(_read_json(path / "open_clip_config.json").get("preprocess_cfg", {}), image)
    return of_transformers(path, image)


def pixel_rules(folder: str | Path) -> dict[str, Any]:
    """The part of a scoring job's identity that concerns pixels: a version for CLIPs whose preprocessing was corrected,
    {} for others."""
    if (Path(folder) / "recap_clip.json").is_file():
        return {}
    said = _read_json(Path(folder, "open_clip_config.json")).get("preprocess_cfg", {})
    cropped = said and said.get("resize_mode") != "squash"
    return {"pixels": 2} if cropped or _read_json(Path(folder, "preprocessor_config.json")).get("do_pad") else {}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
