"""Image bytes to uint8 pixels: for training a random crop by hash, for evaluation the whole image, squashed."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image

from recap.train.order import draw

LARGEST = 100_000_000  # pixels


class BadImage(Exception):
    """An image that cannot be used; the text is a fixed phrase."""


def training_crop(
    data: bytes, size: int, seed: int, epoch: int, key: str, area: float = 0.4, ratio: float = 4 / 3
) -> np.ndarray:
    """A random crop (Inception's), resized: uint8 [3, size, size]. The draw is a hash of (seed, epoch, key)."""
    image = _open(data)
    left, top, width, height = _box(*image.size, area, ratio, seed, epoch, key)
    return _resize(image, size, (left, top, left + width, top + height))


def whole(data: bytes, size: int) -> np.ndarray:
    """The whole image, squashed to a square: uint8 [3, size, size]."""
    image = _open(data)
    return _resize(image, size, (0, 0, *image.size))


def _box(width: int, height: int, area: float, ratio: float, seed: int, epoch: int, key: str) -> tuple[float, ...]:
    """Left, top, width and height of a crop of `area` to 1 of the image, its sides' ratio within 1/ratio to ratio."""
    for attempt in range(10):
        bits = [draw(seed, epoch, key, "crop", attempt, i) / 2**64 for i in range(4)]
        wanted = (area + (1 - area) * bits[0]) * width * height
        aspect = math.exp((2 * bits[1] - 1) * math.log(ratio))
        w, h = math.sqrt(wanted * aspect), math.sqrt(wanted / aspect)
        if w <= width and h <= height:
            return (width - w) * bits[2], (height - h) * bits[3], w, h
    side = min(width, height)
    return (width - side) / 2, (height - side) / 2, side, side


def _open(data: bytes) -> Image.Image:
    """The image, not decoded yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own about large images and odd metadata
        try:
            image = Image.open(io.BytesIO(data))
        except Exception as error:
            raise BadImage("image: cannot be identified") from error
    if image.width * image.height > LARGEST or min(image.size) < 1:
        raise BadImage("image: too large")
    return image


def _resize(image: Image.Image, size: int, box: tuple[float, ...]) -> np.ndarray:
    width, height = image.size
    try:
        if image.format == "JPEG":  # decoded at 1/2, 1/4 or 1/8 where the crop allows it
            scale = min((box[2] - box[0]) / size, (box[3] - box[1]) / size)
            if scale >= 2:
                image.draft("RGB", (math.ceil(width / scale), math.ceil(height / scale)))
        image.load()
        across, down = image.width / width, image.height / height
        box = (box[0] * across, box[1] * down, min(box[2] * across, image.width), min(box[3] * down, image.height))
        pixels = _rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
    except Exception as error:
        raise BadImage("image: cannot be decoded") from error
    return np.asarray(pixels).transpose(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    """Colours; transparency on white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
