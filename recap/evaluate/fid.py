"""Fréchet distances of image sets (Heusel et al. 2017): FID with Inception's features, FD(<name>) with any others.

Features are computed here, batch by batch; torchmetrics' `FrechetInceptionDistance` keeps their sums and computes the
distance, in float64. Memory does not grow with the number of images. The distance depends on that number, so that only
sets of equal size can be compared.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hpc.base.errors import UserError
from recap.data.images import BadImage, decode_rgb
from recap.dit.images import centre_crop
from recap.evaluate.clip_score import Clip
from recap.evaluate.image_sets import ImageItem
from recap.evaluate.inception import Inception, load_inception
from recap.model_files import file_digest


class FeatureModule(Protocol):
    """Turns images into features. name: of the distance; only Inception's is called FID. about: the features in words.
    digest: of the weights."""

    name: str
    about: str
    digest: str
    dimension: int

    def __call__(self, images: Sequence[ImageItem]) -> torch.Tensor:
        """Features [N, dimension]. UserError for an image that cannot be decoded."""


def open_features(which: str, device: str, clip: Callable[[str], Clip]) -> FeatureModule:
    """The module that `inception:FILE` or `clip:FOLDER` names.

    Args:
        clip: opens the CLIP in a folder.
    """
    kind, _, path = which.partition(":")
    if kind == "inception" and path:
        return InceptionFeatures(path, device)
    if kind == "clip" and path:
        return ClipFeatures(clip(path))
    raise UserError(
        f"evaluate: --features {which}: write inception:FILE (its weights are never downloaded) or clip:FOLDER."
    )


class InceptionFeatures:
    """The features of FID: 2,048 numbers, the output of Inception's last pooling layer."""

    name, dimension = "FID", Inception.num_features
    about = "Inception (TensorFlow 2015-12-05), images resized to 299 with antialiasing, as in torchmetrics"

    def __init__(self, path: str, device: str) -> None:
        self._network, self._device = load_inception(path).to(device), device
        self.digest = file_digest(Path(path))

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageItem]) -> torch.Tensor:
        with ThreadPoolExecutor(4) as pool:
            pixels = list(pool.map(_pixels, images))
        if len({p.shape for p in pixels}) == 1:
            return self._network(torch.stack(pixels).to(self._device)).cpu()
        return torch.cat([self._network(p[None].to(self._device)) for p in pixels]).cpu()


class ClipFeatures:
    """The image features of a CLIP, of length 1."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.name = f"FD({clip.name})"
        self.about = f"image features of length 1 of the CLIP {clip.name}; not FID, and not comparable with it"
        self.dimension = clip.encoder.images([_blank], ["a blank image"]).shape[1]
        self.digest = "".join(file_digest(f)[:16] for f in sorted(clip.folder.glob("*.safetensors")))

    def __call__(self, images: Sequence[ImageItem]) -> torch.Tensor:
        return self.clip.encoder.images([partial(bytes, i.data) for i in images], [i.name for i in images])


def _pixels(item: ImageItem) -> torch.Tensor:
    """The pixels of an image, uint8 [3, H, W]."""
    try:
        return torch.from_numpy(np.array(decode_rgb(item.data))).permute(2, 0, 1)
    except BadImage as error:
        raise UserError(f"evaluate: {item.name}: this image cannot be decoded ({error}).") from error


def _blank() -> bytes:
    return _encoded(np.zeros((8, 8, 3), np.uint8))


def _encoded(pixels: np.ndarray) -> bytes:
    """A BMP file of uint8 [H, W, 3], which is fast to write and lossless."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


# --- reference ------------------------------------------------------------------------------------


@dataclass
class Statistics:
    """Sums over the features of a set of images, which are all that a Fréchet distance needs.

    Args:
        total: float64 [D], the sum of the features f.
        outer: float64 [D, D], the sum of f f^T.
        count: number of images.
        about: the features and their digest, the side and source of the images, and how many could not be read.
    """

    total: torch.Tensor
    outer: torch.Tensor
    count: int
    about: dict[str, str]

    def save(self, path: Path) -> None:
        tensors = {"total": self.total, "outer": self.outer, "count": torch.tensor(self.count)}
        save_file(tensors, path, {"recap_evaluate": json.dumps(self.about)})

    @staticmethod
    def load(path: Path, features: FeatureModule) -> Statistics:
        """UserError where the file holds no statistics, or those of other features."""
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["recap_evaluate"])
                found = Statistics(
                    file.get_tensor("total"), file.get_tensor("outer"), int(file.get_tensor("count")), about
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"evaluate: {path} holds no reference statistics ({error}). Make them with --save-reference."
            ) from error
        if about["digest"] != features.digest:
            raise UserError(
                f"evaluate: {path} was made with other features ({about['features']}, {about['digest'][:8]}) than "
                f"{features.name} ({features.digest[:8]}). Make it again with --save-reference."
            )
        return found


def reference_statistics(
    features: FeatureModule, images: Iterable[ImageItem], side: int, source: str, batch: int
) -> Statistics:
    """Statistics of real images, which are centre cropped and resized to `side` pixels, as DiT does for training.

    Images that cannot be decoded are left out and counted, since reference sets come from the web.
    """
    metric = _metric(features.dimension)
    unreadable = 0
    for items in batches(images, batch):
        cropped = []
        for item in items:
            try:
                cropped.append(ImageItem(item.key, item.name, _encoded(centre_crop(item.data, side))))
            except BadImage:
                unreadable += 1
        if cropped:
            metric.update(features(cropped).double(), real=True)
    count = int(metric.real_features_num_samples)
    if count < 2:
        raise UserError(
            f"evaluate: the reference {source} holds {count} images that can be read, at least 2 are needed."
        )
    about = {
        "features": features.name, "digest": features.digest, "side": str(side), "source": source,
        "unreadable": str(unreadable),
    }  # fmt: skip
    return Statistics(metric.real_features_sum, metric.real_features_cov_sum, count, about)


# --- distance -------------------------------------------------------------------------------------


class FrechetDistance:
    """The distance of generated images, added batch by batch, from a reference."""

    def __init__(self, reference: Statistics) -> None:
        self._metric = _metric(len(reference.total))
        self._metric.real_features_sum = reference.total
        self._metric.real_features_cov_sum = reference.outer
        self._metric.real_features_num_samples = torch.tensor(reference.count)

    def add(self, features: torch.Tensor) -> None:
        """Add features [N, D] of generated images."""
        self._metric.update(features.double(), real=False)

    def value(self) -> float:
        """At least 0. UserError with fewer than two images."""
        if self._metric.fake_features_num_samples < 2:
            raise UserError("evaluate: a Fréchet distance needs at least 2 generated images.")
        return max(float(self._metric.compute()), 0.0)  # rounding may go below


class _Computed(torch.nn.Module):
    """Stands for torchmetrics' feature network: it is given features that are already computed."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _metric(dimension: int) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise UserError("evaluate: torchmetrics is not installed. pip install torchmetrics") from error
    return FrechetInceptionDistance(feature=_Computed(dimension))


def batches(items: Iterable[ImageItem], size: int) -> Iterable[list[ImageItem]]:
    """The items in lists of up to `size`."""
    held: list[ImageItem] = []
    for item in items:
        held.append(item)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held
