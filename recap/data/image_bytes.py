"""Encoded images as bytes: formats, sizes and repairs that need no decoded pixels."""

from __future__ import annotations

import io
import zlib
from collections import defaultdict

from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"

# Image formats that are not read here, by the first bytes of their files.
_OTHERS = [
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"icns", "ICNS"),
    (b"SIMPLE  =", "FITS"),
]
NOT_READ = {
    "heic": "HEIC", "heif": "HEIC", "hif": "HEIC", "jxl": "JPEG XL", "svg": "SVG", "svgz": "SVG", "eps": "EPS",
    "pdf": "PDF", "psd": "PSD", "dds": "DDS", "qoi": "QOI", "exr": "OpenEXR", "hdr": "Radiance HDR", "wmf": "WMF",
    "icns": "ICNS", "fits": "FITS",
}  # fmt: skip
"""Image formats that are not read here, by the extensions of their files."""

COMMON = (b"\xff\xd8\xff", PNG[:4], b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""First bytes of files in formats that are read."""

CONVERT = "convert it to JPEG, PNG or WebP"

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Data that is appended to a scan to see whether it changes pixels: noise, also behind each restart marker that the
# decoder may wait for. No byte of the noise is 0xff, which would begin a marker.
_NOISE = [bytes((7 * i * i + 31 * i + 89 * n) % 255 for i in range(96)) for n in range(3)]
_FILLERS = [noise + b"".join(bytes([0xFF, 0xD0 + n]) + noise for n in range(8)) for noise in _NOISE]
_NEEDED = 3  # bytes: without so many at its end, a whole scan decodes to other pixels


def unread_format(data: bytes) -> str:
    """The name of an image format that is not read here; "" where the bytes look like none of them."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC and b"avif" not in data[8:64]:
        return "HEIC"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in head):
        return "SVG"
    return next((name for start, name in _OTHERS if data.startswith(start)), "")


def sizes_in_icon(data: bytes) -> list[tuple[int, int]]:
    """(width, height) of each PNG in an ICO file; [] for other files. The sizes in an ICO's directory may be wrong."""
    if not data.startswith(b"\0\0\1\0"):
        return []
    found = []
    for entry in range(min(int.from_bytes(data[4:6], "little"), len(data) // 16)):
        start = int.from_bytes(data[18 + 16 * entry : 22 + 16 * entry], "little")
        if data.startswith(PNG, start):
            found.append((int.from_bytes(data[start + 16 : start + 20]), int.from_bytes(data[start + 20 : start + 24])))
    return found


def png_without_extras(data: bytes) -> bytes:
    """A PNG with only the chunks that its pixels need: the critical ones and tRNS. Of an animation, the first picture.

    Decoders refuse a file whose text or colour profile is large or damaged, although its pixels are whole. A tRNS chunk
    with a wrong checksum is dropped, as libpng does; critical chunks are left as they are.
    """
    kept: list[bytes] = []
    start, at = 0, len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        ancillary = bool(kind[0] & 0x20)
        if end > len(data):
            if ancillary:  # the file ends in it
                return b"".join([*kept, data[start:at]])
            break
        whole = kind == b"tRNS" and zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if ancillary and not whole:
            kept.append(data[start:at])
            start = end
        at = end
        if kind == b"IEND":
            break
    return b"".join([*kept, data[start:]]) if kept else data


def jpeg_with_end(data: bytes) -> bytes | None:
    """A JPEG that lacks its end marker and nothing else, with the marker; None where more is missing.

    libjpeg silently invents what a truncated file lacks. Where the last scan is whole, data appended to it changes no
    pixel; where it is not, appended data does. The second comparison makes sure that the file's last bytes are part of
    the scan: without them, appended data must change pixels.
    """
    data = data.removesuffix(b"\xff")  # half of the marker
    if not _has_all_scans(data):
        return None
    pixels = _pixels(data)
    if pixels is None or any(_pixels(data + filler) != pixels for filler in _FILLERS):
        return None
    if all(_pixels(data[:-_NEEDED] + filler) == pixels for filler in _FILLERS):
        return None  # the scan ends before the file does
    return data + b"\xff\xd9"


def _pixels(data: bytes) -> int | None:
    """A checksum of the pixels of a JPEG whose end marker is missing; None where it cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=("JPEG",))
        return zlib.crc32(image.tobytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans of a (progressive) JPEG, by their headers, bring every coefficient to its last bit."""
    components: list[int] = []
    known: dict[int, set[int]] = defaultdict(set)
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:  # of a scan, or without content
            at += 1 if marker == 0xFF else 2
            continue
        content = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2) and len(content) >= 6 + 3 * content[5]:
            components = [content[6 + 3 * number] for number in range(content[5])]
        elif marker == 0xDA and content and len(content) >= 4 + 2 * content[0]:
            first, last, bits = content[-3:]
            for number in range(content[0]):
                if bits & 15 == 0:
                    known[content[1 + 2 * number]].update(range(first, last + 1))
        at += 2 + length
    return bool(components) and all(len(known[component]) == 64 for component in components)
