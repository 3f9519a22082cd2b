"""An encoded image in, the model's square of pixels out. Needs Pillow and numpy only: decode workers start
fast.

Equal, bit for bit, to transformers' Pillow image processors fed with `PIL.Image.open(file)` (tested), except
where those fail or spoil the image:
- 16-bit and 32-bit grey images are scaled to 8 bits (`convert("RGB")` would clip them to white);
- very long images are resampled in the part that is kept (1:16 and beyond), where the full result would take
  gigabytes.
As with those processors, EXIF orientation is *not* applied: the caption tells what a trainer sees that reads
the same bytes. The first frame of an animation stands for it. Transparency is laid on white.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

# Only formats found on the web, and none that runs a program (EPS would start Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "TGA", "JPEG2000")
# Longer side over shorter side from which on the whole image is no longer resampled or padded.
LONGEST_ASPECT = 16
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class BadImage(Exception):
    """An image that cannot be decoded. `reason` is a fixed phrase, `detail` the particulars."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


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


def decode(data: bytes, geometry: Geometry, max_pixels: int = 100_000_000, fast: bool = False) -> np.ndarray:
    """Decode an image file.

    Args:
        data: the file's bytes.
        geometry: what to make of it.
        max_pixels: larger images are refused from their header, before any pixel is decoded.
        fast: let libjpeg shrink large JPEGs while decoding (draft mode), which gives other pixels in less
            time; `python -m benchmarks.caption` measures both.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        BadImage: the bytes are not a whole image.
    """
    with _quiet():
        image = _open(data, max_pixels)
        try:
            if fast:
                _draft(image, geometry)
            return np.asarray(_square(_to_rgb(image), geometry))
        except Exception as error:
            raise _damage(error) from error


def decode_rgb(data: bytes, max_pixels: int = 100_000_000) -> Image.Image:
    """The whole image in RGB, for models that take images of any shape. Raises BadImage as `decode` does."""
    with _quiet():
        image = _open(data, max_pixels)
        try:
            return _to_rgb(image)
        except Exception as error:
            raise _damage(error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings of bombs (`max_pixels` is the limit here) and of odd tags."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _damage(error: Exception) -> BadImage:
    text = str(error).lower()
    truncated = "truncated" in text or "not enough image data" in text or "unexpected end" in text
    return BadImage("image: truncated" if truncated else "image: damaged", _particulars(error))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("image: zero bytes")
    too_large = f"image: larger than {max_pixels} pixels"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(too_large, _particulars(error)) from error
    except UnidentifiedImageError as error:
        known = data.startswith(_MAGIC)
        raise BadImage("image: damaged" if known else "image: not an image", f"{len(data)} bytes") from error
    except Exception as error:
        raise BadImage("image: damaged", _particulars(error)) from error
    if image.width * image.height > max_pixels:
        raise BadImage(too_large, f"{image.width} x {image.height}")
    return image


def _particulars(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB with transparency on white; as transformers' convert_to_rgb, plus deep grey images."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _deep_grey(image)
    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of 16- or 32-bit integers (the high byte) or floats (0-1, or 0-255 where above 1)."""
    values = np.asarray(image).astype(np.float64)
    top = float(values.max(initial=0.0))
    if image.mode == "F":
        values = np.nan_to_num(values) * (255.0 if top <= 1.0 else 1.0)
    elif image.mode != "I" or top > 255:
        values = values // 256
    return Image.fromarray(values.clip(0, 255).astype(np.uint8), "L")


def _draft(image: Image.Image, geometry: Geometry) -> None:
    """Have libjpeg decode at 1/2, 1/4 or 1/8 of the size, never below the size that is needed."""
    width, height = image.size
    scale = geometry.size / (max(width, height) if geometry.mode == "pad" else min(width, height))
    if scale < 1:
        image.draft("RGB", (max(1, int(width * scale)), max(1, int(height * scale))))


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
        square = Image.new("RGB", (long, long), geometry.fill)
        square.paste(image, ((long - image.width) // 2, (long - image.height) // 2))
        return square.resize((size, size), resample)
    # A 1 x 100000 image would be padded to 10 gigapixels: shrink it first.
    width, height = (max(1, round(side * size / long)) for side in image.size)
    square = Image.new("RGB", (size, size), geometry.fill)
    square.paste(image.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return square
