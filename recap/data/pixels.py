"""Opening image bytes: what is common to training crops, evaluation and shrinking."""

from __future__ import annotations

import io

from PIL import Image

LARGEST = 100_000_000  # pixels


class BadImage(Exception):
    """An image that cannot be used; the text is a fixed phrase."""


def opened(data: bytes) -> Image.Image:
    """The image, not decoded yet. Raises BadImage."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:
        raise BadImage("image: cannot be identified") from error
    if image.width * image.height > LARGEST or min(image.size) < 1:
        raise BadImage("image: too large")
    return image


def rgb(image: Image.Image) -> Image.Image:
    """Colours; transparency on white."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
