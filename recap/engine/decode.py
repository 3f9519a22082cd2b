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
from typing import Any

import numpy as np
from PIL import Image

from recap.data.images import LARGEST, BadImage, EncodedImage

__all__ = ["BadImage", "Geometry", "decode", "decode_all", "decode_noted"]

# Longer side over shorter side from which on the whole image is no longer resampled or padded.
LONGEST_ASPECT = 16


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square of `size` x `size` pixels.

    mode: "pad" to a square with `fill`, then resize (LLaVA-1.5's original); "crop": resize, then cut out the centre
        (llava-hf, CLIP), black where the image ends before; "squash": resize both sides; "fit": resize the longer
        side, then pad with `fill` (open_clip's "longest").
    fill: colour of the padding, 0-255, int(mean * 255) in transformers.
    resample: Pillow's number of the filter; 3 is bicubic.
    whole: what "crop" cuts from. (): the image with a shorter side of `size`; (n,): with one of n pixels;
        (height, width): of these; None: as it is.
    halves: where the crop begins if what is left over is odd: "down", as transformers cuts, or "even", as torchvision.
    """

    size: int
    mode: str = "crop"
    fill: tuple[int, int, int] = (122, 116, 104)
    resample: int = 3
    whole: tuple[int, ...] | None = ()
    halves: str = "down"

    @staticmethod
    def of_json(given: dict[str, Any]) -> Geometry:
        """What `dataclasses.asdict` and JSON made of one."""
        facts: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
        return Geometry(**facts)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what "crop" cuts from, for an image of this width and height."""
        if self.whole is None:
            return size
        if len(self.whole) == 2:
            return self.whole[1], self.whole[0]
        (edge,) = self.whole or (self.size,)
        width, height = size
        longer = int(edge * max(size) / min(size))  # transformers truncates, and does not round
        return (edge, longer) if width <= height else (longer, edge)


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
    if geometry.mode == "crop":
        wide, high = geometry.resized(size)
        scale = max(wide / width, high / height)
    else:
        scale = geometry.size / (min(size) if geometry.mode == "squash" else max(size))
    return (max(1, int(width * scale)), max(1, int(height * scale))) if scale < 1 else None


def _square(image: Image.Image, geometry: Geometry) -> Image.Image:
    """The square, as transformers' processors make it: pad then resize, resize then crop, or resize."""
    if geometry.mode == "crop":
        return _cropped(image, geometry)
    if geometry.mode == "squash" or image.width == image.height:
        return image.resize((geometry.size, geometry.size), Image.Resampling(geometry.resample))
    if geometry.mode == "pad":
        return _padded(image, geometry)
    ratio = max(image.size) / geometry.size
    return _laid(image, [round(side / ratio) for side in image.size], geometry)


def _cropped(image: Image.Image, geometry: Geometry) -> Image.Image:
    size, resample = geometry.size, Image.Resampling(geometry.resample)
    whole = geometry.resized(image.size)
    left, top = (_first(side - size, geometry.halves) for side in whole)
    if max(whole) < LONGEST_ASPECT * min(whole):
        resized = image if whole == image.size else image.resize(whole, resample)
        return resized.crop((left, top, left + size, top + size))
    kept = (max(left, 0), max(top, 0), min(left + size, whole[0]), min(top + size, whole[1]))
    across, down = image.width, image.height
    box = (
        kept[0] * across / whole[0],
        kept[1] * down / whole[1],
        kept[2] * across / whole[0],
        kept[3] * down / whole[1],
    )
    part = image.resize((kept[2] - kept[0], kept[3] - kept[1]), resample, box=box)
    if part.size == (size, size):
        return part
    square = Image.new("RGB", (size, size))
    square.paste(part, (kept[0] - left, kept[1] - top))
    return square


def _first(over: int, halves: str) -> int:
    """Where a crop begins along a side that has `over` pixels more than are kept; negative: black is put before it."""
    return round(over / 2) if halves == "even" else over // 2


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
    return _laid(image, [round(side * size / long) for side in image.size], geometry)


def _laid(image: Image.Image, sides: Sequence[int], geometry: Geometry) -> Image.Image:
    """The image, resized to these sides, in the middle of the square."""
    width, height = (max(1, side) for side in sides)
    square = Image.new("RGB", (geometry.size, geometry.size), geometry.fill)
    resized = image.resize((width, height), Image.Resampling(geometry.resample))
    square.paste(resized, ((geometry.size - width) // 2, (geometry.size - height) // 2))
    return square
