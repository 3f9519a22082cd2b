"""The one decoder of images, the same for captions, training, shrinking and evaluation: an encoded file in, 8-bit RGB
out. Needs Pillow and numpy only.

Equal, bit for bit, to `PIL.Image.open(file)` with the RGB conversion of transformers' image processors, except where
that fails or spoils the picture:
- grey images of 12, 16 or 32 bits and of floats are scaled to 8 bits (`convert("RGB")` would clip them to white);
- a transparent colour of a PNG counts at every bit depth;
- PNG chunks that no pixel needs are not read, so that a large or damaged text or colour profile refuses no image;
- a JPEG that lacks only its end marker is decoded, and noted.
EXIF orientation is *not* applied (a TIFF's own is), nor are colour profiles. The first frame of an animation stands
for it. Transparency is laid on white. Values of 12 bits in a 16-bit file stay as dark as they are, and are noted.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from recap.data.image_bytes import COMMON, CONVERT, PNG, jpeg_with_end, png_without_extras, sizes_in_icon, unread_format

LARGEST = 100_000_000  # pixels
NOT_AN_IMAGE = "image: not an image"

# Only formats found on the web, and none that runs a program (EPS would start Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "TGA", "JPEG2000")
# Pillow calls a JPEG file of several pictures MPO.
_JPEG = ("JPEG", "MPO")
_BITS, _PHOTOMETRIC, _TILE_WIDTH, _TILE_LENGTH, _SAMPLE_FORMAT = 258, 262, 322, 323, 339  # tags of TIFF
# Bytes a pixel that a format takes while it is decoded and made 8-bit RGB, the rarer kinds of it included.
_COST = {"JPEG": 14, "MPO": 14, "PNG": 13, "GIF": 10, "WEBP": 18, "JPEG2000": 21, "AVIF": 13}
_BAND = 1 << 20  # pixels that are converted at a time: an image of 100 megapixels is held twice, not six times

# `max_pixels` is the limit on size here, and warnings about odd tags help nobody. The filters are set once for the
# process, because setting and resetting them around each image is not thread-safe.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class BadImage(Exception):
    """An image that cannot be decoded. `reason` is a fixed phrase, `detail` the particulars."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class EncodedImage:
    """An image file whose header is read; nothing is decoded before `rgb`.

    size: width and height, pixels.
    note: after `rgb`, a fixed phrase where something is odd about an image that could be decoded, else "".

    Args:
        data: the file's bytes.
        max_pixels: larger images are refused, before any pixel is decoded.

    Raises:
        BadImage: it is no image, of a format that is not read, damaged, or too large.
    """

    def __init__(self, data: bytes, max_pixels: int = LARGEST) -> None:
        self._data = png_without_extras(data) if data.startswith(PNG) else data
        self._max_pixels = max_pixels
        self._file = _opened(self._data, max_pixels)
        self._layout, self._format = _layout(self._file), str(self._file.format)
        self.size: tuple[int, int] = self._file.size
        self.note = ""

    def rgb(self, smallest: tuple[int, int] | None = None) -> Image.Image:
        """The pixels, in mode RGB. Can be called only once.

        Args:
            smallest: libjpeg may decode a JPEG at 1/2, 1/4 or 1/8 of its width and height, but no smaller than this:
                other pixels in less time.

        Raises:
            BadImage: damaged or truncated.
        """
        try:
            return self._flat(self._loaded(smallest))
        except BadImage:
            raise
        except Exception as error:
            raise _damage(error) from error
        finally:
            del self._file  # its pixels are needed no more

    def portable(self) -> bytes:
        """The file's own bytes where every decoder gets the same pixels from it, else a PNG of what `rgb` returns.

        Raises:
            BadImage: as `rgb`.
        """
        file = self._file
        plain = file.format in ("JPEG", "PNG", "WEBP") and file.mode in ("RGB", "L") and ";16" not in self._layout
        plain = plain and not getattr(file, "is_animated", False) and file.info.get("transparency") is None
        image = self.rgb()
        if plain and not self.note:
            return self._data
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()

    @property
    def cost(self) -> int:
        """The most bytes of memory that decoding takes, or padding to a square (see `python -m benchmarks.decode`)."""
        pixels, square = self.size[0] * self.size[1], min(max(self.size) ** 2, LARGEST)
        return max(pixels * _COST.get(self._format, 12), 4 * (pixels + square))

    def _loaded(self, smallest: tuple[int, int] | None) -> Image.Image:
        image = self._file
        if smallest is not None:
            image.draft("RGB", smallest)
        try:
            image.load()
        except OSError as error:
            ended = jpeg_with_end(self._data) if image.format in _JPEG and _is_truncated(error) else None
            if ended is None:
                raise
            self.note = "image: no end marker"
            image = self._file = _opened(ended, self._max_pixels)
            if smallest is not None:
                image.draft("RGB", smallest)
            image.load()
        _check_size(image.size, self._max_pixels)
        return image

    def _flat(self, image: Image.Image) -> Image.Image:
        """8-bit RGB without transparency."""
        if image.mode.startswith("I") or image.mode == "F":
            image, note = _float_grey(image) if image.mode == "F" else _deep_grey(image)
            self.note = self.note or note
            return image.convert("RGB")
        if ";16" in self._layout and image.mode.startswith(("LA", "RGB")):
            self.note = self.note or _dark(_brightest(image) << 8 | 255, 16, 16)
        if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
            return _on_white(image, self._layout)
        return image if image.mode == "RGB" else image.convert("RGB")


def decode_rgb(data: bytes, max_pixels: int = LARGEST) -> Image.Image:
    """The whole image in RGB. Raises BadImage."""
    return EncodedImage(data, max_pixels).rgb()


# --- the file ---------------------------------------------------------------------------------


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise BadImage("image: zero bytes")
    for size in sizes_in_icon(data):
        _check_size(size, max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"image: larger than {max_pixels} pixels", _particulars(error)) from error
    except Exception as error:
        if kind := unread_format(data):
            raise BadImage(NOT_AN_IMAGE, f"{kind}, which is not read: {CONVERT}") from error
        if isinstance(error, UnidentifiedImageError):
            known = data.startswith(COMMON)
            raise BadImage("image: damaged" if known else NOT_AN_IMAGE, f"{len(data)} bytes") from error
        raise BadImage("image: damaged", _particulars(error)) from error
    _check_size(image.size, max_pixels)
    tags = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags and _TILE_LENGTH in tags:  # a whole tile is allocated, however small the image
        _check_size((tags[_TILE_WIDTH], tags[_TILE_LENGTH]), max_pixels)
    return image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise BadImage(f"image: larger than {max_pixels} pixels", f"{size[0]} x {size[1]}")


def _damage(error: Exception) -> BadImage:
    return BadImage("image: truncated" if _is_truncated(error) else "image: damaged", _particulars(error))


def _is_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return "truncated" in text or "not enough image data" in text or "unexpected end" in text


def _layout(image: Image.Image) -> str:
    """Pillow's name for the layout of the file's pixels, such as RGB;16B. Loading the pixels removes it."""
    tiles = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    if isinstance(args, tuple) and image.format == "PPM" and len(args) > 1 and args[1] > 255:
        return f"{args[0]};16"
    return str(args[0] if isinstance(args, tuple) and args else args)


def _particulars(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


# --- the pixels -------------------------------------------------------------------------------


def _bands(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """(left, top) and the pixels of one strip after another."""
    step = max(1, _BAND // image.width)
    for top in range(0, image.height, step):
        yield (0, top), image.crop((0, top, image.width, min(top + step, image.height)))


def _on_white(image: Image.Image, layout: str) -> Image.Image:
    """The image on a white background, as transformers' convert_to_rgb makes it."""
    clear: Any = image.info.get("transparency")
    if isinstance(clear, tuple) and ";16" in layout:  # Pillow keeps the 8 highest bits of each colour
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif layout in ("L;2", "L;4"):  # Pillow scales these greys to 0 to 255
        image.info["transparency"] = clear * 255 // (2 ** int(layout[-1]) - 1)
    flat = Image.new("RGB", image.size)
    for place, band in _bands(image):
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        flat.paste(Image.alpha_composite(white, band.convert("RGBA")).convert("RGB"), place)
    return flat


def _deep_grey(image: Image.Image) -> tuple[Image.Image, str]:
    """(8-bit grey, note) of an image of integers with more bits, scaled by the range of their type.

    Files of 32 bits may hold values of 8 or of 16 bits: the smallest of these ranges that holds all values is taken.
    """
    tags = getattr(image, "tag_v2", {})
    bits, signed = int(tags.get(_BITS, (16,))[0]), tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    kind = np.uint32 if bits == 32 and not signed else None  # Pillow holds all 32-bit values as signed
    top = max(int(_numbers(band, kind).max()) for _, band in _bands(image))
    used = next(b for b in ([8, 16] if bits == 32 else []) + [bits - signed] if top < 2**b)
    clear = image.info.get("transparency")
    grey = Image.new("L", image.size)
    for place, band in _bands(image):
        values = _numbers(band, kind)
        high = (np.maximum(values, 0) >> (used - 8)).astype(np.uint8)
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero
            high = 255 - high
        if clear is not None:
            high[values == clear] = 255
        grey.paste(Image.fromarray(high), place)
    return grey, _dark(top, used, bits)


def _float_grey(image: Image.Image) -> tuple[Image.Image, str]:
    """(8-bit grey, note) of an image of floats. They are taken to range from 0 to 1, 255 or 65535, whichever is the
    first to hold all of them, else to the largest value; NaN becomes black.
    """
    finite = (values[np.isfinite(values)] for values in (_numbers(band) for _, band in _bands(image)))
    top = max(float(values.max(initial=0.0)) for values in finite)
    full = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    grey = Image.new("L", image.size)
    for place, band in _bands(image):
        shares = np.nan_to_num(_numbers(band) / full, posinf=1.0, neginf=0.0).clip(0.0, 1.0)
        grey.paste(Image.fromarray(np.rint(shares * 255).astype(np.uint8)), place)
    return grey, _dark(int(top), 16, 32) if full == 65535.0 else ""


def _numbers(image: Image.Image, kind: Any = None) -> np.ndarray:
    values = np.asarray(image)
    return values if kind is None else values.view(kind)


def _dark(top: int, used: int, bits: int) -> str:
    """A note where the brightest value uses two bits less than it could, as a camera's 12 bits in a 16-bit file do.

    Args:
        top: the brightest value. used: bits of the range that was assumed. bits: of the file.
    """
    if used <= 8 or not top or top.bit_length() > used - 2:
        return ""
    return f"image: {top.bit_length()}-bit values in a {bits}-bit file"


def _brightest(image: Image.Image) -> int:
    """The largest 8-bit value of the colours."""
    colours = len(image.getbands()) - ("A" in image.getbands())
    return max(int(np.max(band.getextrema())) for band in image.split()[:colours])
