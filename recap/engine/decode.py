"""An encoded image in, the model's square of pixels out. Needs Pillow and numpy only: decode workers start
fast.

Equal, bit for bit, to transformers' Pillow image processors fed with `PIL.Image.open(file)` (tested), except where
`recap.data.images`, which decodes, says otherwise, and for very long images (1:16 and beyond): they are resampled in
the part that is kept, where the full result would take gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recap.data.images import LARGEST, BadImage, EncodedImage

__all__ = ["BadImage", "Geometry", "decode", "decode_all", "decode_noted"]

# Longer side over shorter side from which on the whole image is no longer resampled or padded.
LONGEST_ASPECT = 16


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square of `size` x `size` pixels.

    mode: "pad" to a square with `fill`, then resize (LLaVA-1.5's original); "crop": resize the shorter side,
        then cut out the centre (llava-hf, CLIP); "squash": resize both sides.
    fill: colour of the padding, 0-255, int(mean * 255) in transformers.
    resample: Pillow's number of the filter; 3 is bicubic.
    """

    size: int
    mode: str = "crop"
    fill: tuple[int, int, int] = (122, 116, 104)
    resample: int = 3


def decode(data: bytes, geometry: Geometry, max_pixels: int = LARGEST, fast: bool = False) -> np.ndarray:
    """Decode an image file.

    Args:
        data: the file's bytes.
        geometry: what to make of it.
        max_pixels: larger images are refused from their header, before any pixel is decoded.
        fast: let libjpeg shrink large JPEGs while decoding (draft mode), which gives other pixels in less
            time; `python -m benchmarks.decode` measures both.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        BadImage: the bytes are not a whole image.
    """
    return decode_noted(EncodedImage(data, max_pixels), geometry, fast)[0]


def decode_noted(encoded: EncodedImage, geometry: Geometry, fast: bool = False) -> tuple[np.ndarray, str]:
    """As `decode`, of an image whose header is read: the pixels, and what is odd about it though they are there."""
    return decode_all(encoded, [geometry], fast)[0][0], encoded.note


def decode_all(
    encoded: EncodedImage, geometries: Sequence[Geometry], fast: bool = False
) -> tuple[list[np.ndarray], str]:
    """As `decode_noted`, for several squares of an image that is decoded once."""
    enough = [_enough(encoded.size, geometry) for geometry in geometries] if fast else [None]
    wanted = [size for size in enough if size is not None]
    image = encoded.rgb(max(wanted) if len(wanted) == len(enough) else None)
    return [np.asarray(_square(image, geometry)) for geometry in geometries], encoded.note


def _enough(size: tuple[int, int], geometry: Geometry) -> tuple[int, int] | None:
    """The smallest size that still has all the pixels which the square needs."""
    width, height = size
    scale = geometry.size / (max(width, height) if geometry.mode == "pad" else min(width, height))
    return (max(1, int(width * scale)), max(1, int(height * scale))) if scale < 1 else None


def _square(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The square, as transformers' processors make it: pad then resize, resize then crop, or resize."""
    size, resample = geometry.size, Image.Resampling(geometry.resample)
    if geometry.mode == "squash" or image.width == image.height:
        return image.resize((size, size), resample)
    if geometry.mode == "pad":
        return _padded(image, geometry)
    short, long = min(image.size), max(image.size)
    new_long = int(size * long / short)  # transformers truncates, and does not round
    start = (new_long - size) // 2
    if long < LONGEST_ASPECT * short:
        if image.width < image.height:
            return image.resize((size, new_long), resample).crop((0, start, size, start + size))
        return image.resize((new_long, size), resample).crop((start, 0, start + size, size))
    first, last = start * long / new_long, (start + size) * long / new_long
    box = (0, first, short, last) if image.width < image.height else (first, 0, last, short)
    return image.resize((size, size), resample, box=box)


def _padded(image: Image.Image, geometry: Geometry) -> Image.Image:
    size, resample = geometry.size, Image.Resampling(geometry.resample)
    long = max(image.size)
    if long < LONGEST_ASPECT * min(image.size) or long <= 4096:
        if long * long > LARGEST:  # the square would take more than any image does
            image = image.reduce(-(-long // math.isqrt(LARGEST)))
            long = max(image.size)
        square = Image.new("RGB", (long, long), geometry.fill)
        square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
        return square.resize((size, size), resample)
    # A 1 x 100000 image would be padded to 10 gigapixels: shrink it first.
    width, height = (max(1, round(side * size / long)) for side in image.size)
    square = Image.new("RGB", (size, size), geometry.fill)
    square.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return square
