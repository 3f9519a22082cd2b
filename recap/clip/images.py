"""Decodes images to uint8 pixels for training, with a random crop that depends on a hash."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from recap.data.images import EncodedImage
from recap.data.memory import memory_to_decode
from recap.randomness import draw


def training_crop(
    data: bytes, size: int, seed: int, epoch: int, key: str, area: float = 0.4, ratio: float = 4 / 3
) -> np.ndarray:
    """A random resized crop (Inception's): uint8 [3, size, size]. It is drawn by a hash of (seed, epoch, key).

    Args:
        area: the smallest share of the image that the crop has. ratio: the largest ratio of its sides.

    Raises:
        BadImage: the image cannot be decoded.
    """
    encoded = EncodedImage(data)
    left, top, width, height = _box(*encoded.size, area, ratio, seed, epoch, key)
    with memory_to_decode(encoded.cost):
        return _resize(encoded, size, (left, top, left + width, top + height))


def _box(width: int, height: int, area: float, ratio: float, seed: int, epoch: int, key: str) -> tuple[float, ...]:
    """(left, top, width, height) of a crop with `area` to 1 of the image's area, and sides in a ratio of 1/ratio to
    ratio."""
    for attempt in range(10):
        bits = [draw(seed, epoch, key, "crop", attempt, i) / 2**64 for i in range(4)]
        wanted = (area + (1 - area) * bits[0]) * width * height
        aspect = math.exp((2 * bits[1] - 1) * math.log(ratio))
        w, h = math.sqrt(wanted * aspect), math.sqrt(wanted / aspect)
        if w <= width and h <= height:
            return (width - w) * bits[2], (height - h) * bits[3], w, h
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def _resize(encoded: EncodedImage, size: int, box: tuple[float, ...]) -> np.ndarray:
    width, height = encoded.size
    scale = min((box[2] - box[0]) / size, (box[3] - box[1]) / size)
    enough = (math.ceil(width / scale), math.ceil(height / scale)) if scale >= 2 else None
    image = encoded.rgb(enough)  # a JPEG may be decoded at a fraction of its size
    across, down = image.width / width, image.height / height
    box = (box[0] * across, box[1] * down, min(box[2] * across, image.width), min(box[3] * down, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box)).transpose(2, 0, 1)
