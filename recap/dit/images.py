"""Decodes images to uint8 pixels as ADM and DiT do: halve, resize, crop the centre. A hash decides on mirroring."""

from __future__ import annotations

import numpy as np
from PIL import Image

from recap.data.images import LARGEST, BadImage, EncodedImage
from recap.data.memory import memory_to_decode
from recap.randomness import draw


def centre_crop(data: bytes, side: int) -> np.ndarray:
    """The centre of an image whose shorter side is resized to `side` pixels: uint8 [side, side, 3].

    Equal to `center_crop_arr` of DiT (Peebles and Xie; from ADM's `image_datasets.py`): halved with a box filter while
    twice the side fits, then bicubic. Raises BadImage.
    """
    return centre_of(EncodedImage(data), side)


def centre_of(encoded: EncodedImage, side: int) -> np.ndarray:
    """`centre_crop` of an `EncodedImage`."""
    long, short = max(encoded.size), min(encoded.size)
    if long * side // short * side > LARGEST:  # a very flat image would be resized to gigabytes
        raise BadImage("image: too narrow")
    with memory_to_decode(encoded.cost):
        return cropped(encoded.rgb(), side)


def cropped(picture: Image.Image, side: int) -> np.ndarray:
    """`centre_crop` of an RGB picture."""
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = side / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side].copy()


def flipped(seed: int, epoch: int, name: str) -> bool:
    """Whether a sample is mirrored in an epoch, by a hash of (seed, epoch, name)."""
    return draw(seed, epoch, name, "flip") % 2 == 1
