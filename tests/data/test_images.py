"""One decoder for all: the captioner, CLIP, DiT, shrinking, latents and FID see the same pixels, or the same reason."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from hpc.operator import Item
from recap.clip.images import training_crop
from recap.clip.preprocessing import ours
from recap.clip.settings import ClipModelConfig
from recap.data import memory
from recap.data.images import BadImage, EncodedImage, decode_rgb
from recap.data.memory import Memory
from recap.data.pictures import FoundImage
from recap.data.shrink import ShrinkConfig, ShrinkOperator, shrunk
from recap.dit.images import centre_crop
from recap.engine.decode import Geometry, decode
from recap.evaluate.fid import _pixels
from recap.evaluate.image_sets import ImageItem
from recap.sft.example import decoded

SIDE = 64
RAMP = np.tile(np.linspace(0, 1, SIDE), (SIDE, 1))
EIGHT = np.repeat((RAMP * 255).astype(np.uint8)[..., None], 3, 2)  # what a grey ramp is to look like


def enc(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(values: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    return enc(Image.fromarray(values), kind, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, rows: list[bytes], *chunks: bytes, side: int = SIDE) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, len(rows), depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + chunk(b"IEND", b"")


def png16(values: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    return png(16, colour, [row.astype(">u2").tobytes() for row in values.reshape(len(values), -1)], *chunks)


def tiff32(values: np.ndarray) -> bytes:
    """Unsigned 32-bit integers, which Pillow reads but does not write."""
    data = values.astype("<u4").tobytes()
    tags = [(256, SIDE), (257, SIDE), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, SIDE), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def ends(cut: int = 16) -> np.ndarray:
    """A photo-like picture that ends in detail, so that every byte of a JPEG counts."""
    noise = np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


PLAIN = enc(Image.fromarray(EIGHT))
PHOTO = enc(Image.fromarray(ends()), "JPEG", quality=90)
TIME = chunk(b"tIME", b"\7\xe8\1\1\0\0\0")
DEEP = {
    "16-bit PNG": grey((RAMP * 65535).astype(np.uint16)),
    "16-bit TIFF": grey((RAMP * 65535).astype(np.uint16), "TIFF"),
    "16-bit PGM": b"P5\n64 64\n65535\n" + (RAMP * 65535).astype(">u2").tobytes(),
    "10-bit PGM": b"P5\n64 64\n1023\n" + (RAMP * 1023).astype(">u2").tobytes(),
    "16-bit JPEG 2000": grey((RAMP * 65535).astype(np.uint16), "JPEG2000"),
    "16-bit RGB PNG": png16(np.stack([RAMP * 65535] * 3, -1), 2),
    "16-bit grey and alpha PNG": png16(np.stack([RAMP * 65535, np.full_like(RAMP, 65535)], -1), 4),
    "signed 32-bit TIFF": grey((RAMP * (2**31 - 1)).astype(np.int32), "TIFF"),
    "unsigned 32-bit TIFF": tiff32(RAMP * (2**32 - 1)),
    "32-bit TIFF of 16-bit values": grey((RAMP * 65535).astype(np.int32), "TIFF"),
    "32-bit TIFF of 8-bit values": grey((RAMP * 255).astype(np.int32), "TIFF"),
    "float TIFF of 0-1": grey(RAMP.astype(np.float32), "TIFF"),
    "float TIFF of 0-255": grey((RAMP * 255).astype(np.float32), "TIFF"),
    "float TIFF of 0-65535": grey((RAMP * 65535).astype(np.float32), "TIFF", compression="tiff_lzw"),
    "float TIFF of 0-1e6": grey((RAMP * 1e6).astype(np.float32), "TIFF"),
    "PNG with 2 MB of text": PLAIN[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000))) + PLAIN[33:],
    "PNG with 2 MB of profile": PLAIN[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2_000_000))) + PLAIN[33:],
    "PNG with a damaged time": PLAIN[:33] + TIME[:-1] + b"\0" + PLAIN[33:],
    "PNG with a damaged end of text": PLAIN[:-12] + chunk(b"tEXt", b"a\0b")[:-4] + b"none" + PLAIN[-12:],
    "PNG cut in a text behind its pixels": PLAIN[:-12] + chunk(b"tEXt", b"a\0" + bytes(900))[:500],
}


CLIP = ours(ClipModelConfig(), SIDE)


def consumers(data: bytes) -> dict[str, np.ndarray]:
    """What each of them sees of a whole image of 64 x 64, or the reason that it gives."""
    seen: dict[str, Callable[[], np.ndarray]] = {
        "captioner": lambda: decode(data, Geometry(SIDE, "squash")),
        "clip": lambda: CLIP.pixels(data).transpose(1, 2, 0),
        "dit": lambda: centre_crop(data, SIDE),
        "shrink": lambda: np.asarray(decode_rgb(shrunk(EncodedImage(data), SIDE, 95))),
        "fid": lambda: _pixels(ImageItem("k", "n", data)).permute(1, 2, 0).numpy(),
        "rgb": lambda: np.asarray(decode_rgb(data)),
    }
    return {name: look().astype(int) for name, look in seen.items()}


@pytest.mark.parametrize("name", list(DEEP))
def test_every_consumer_sees_the_same_ramp(name: str) -> None:
    for who, pixels in consumers(DEEP[name]).items():
        away = np.abs(pixels - EIGHT).max()
        assert away <= (4 if who == "shrink" else 1), (who, away)


def test_transparency_is_white_at_every_depth() -> None:
    """The left half is transparent: by alpha, or by a transparent colour of the palette, 2, 4, 8 or 16 bits."""
    half = np.zeros((SIDE, SIDE), np.uint16)
    half[:, SIDE // 2 :] = 0x8123
    rgb = np.stack([half] * 3, -1)
    right = 0x81
    rows = [bytes([0x55] * 8 + [0xAA] * 8)] * SIDE  # values 1 and 2 of 2 bits
    nibbles = [bytes([0x77] * 16 + [0x99] * 16)] * SIDE  # values 7 and 9 of 4 bits
    palette = Image.fromarray((half > 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 90, 200])
    cases = {
        "RGBA": (enc(Image.fromarray(np.dstack([rgb >> 8, (half > 0) * 255]).astype(np.uint8))), right),
        "LA": (enc(Image.fromarray(np.dstack([half >> 8, (half > 0) * 255]).astype(np.uint8))), right),
        "RGB, 8 bits": (enc(Image.fromarray((rgb >> 8).astype(np.uint8)), transparency=(0, 0, 0)), right),
        "RGB, 16 bits": (png16(rgb + 0x100, 2, chunk(b"tRNS", struct.pack(">3H", 256, 256, 256))), right + 1),
        "grey, 16 bits": (png16(half + 0x100, 0, chunk(b"tRNS", struct.pack(">H", 256))), right + 1),
        "grey, 2 bits": (png(2, 0, rows, chunk(b"tRNS", struct.pack(">H", 1))), 170),
        "grey, 4 bits": (png(4, 0, nibbles, chunk(b"tRNS", struct.pack(">H", 7))), 153),
        "palette": (enc(palette, transparency=0), 9),
        "palette of alphas": (enc(palette, transparency=b"\0\xff"), 9),
        "GIF": (enc(palette, "GIF", transparency=0), 9),
        "WebP": (enc(Image.fromarray(np.dstack([rgb >> 8, (half > 0) * 255]).astype(np.uint8)), "WEBP", lossless=True),
                 right),
    }  # fmt: skip
    for name, (data, expected) in cases.items():
        seen = consumers(data)
        for who in ("captioner", "clip", "dit", "fid", "rgb"):
            assert (seen[who][:, :30] == 255).all() and (seen[who][:, 34:, 0] == expected).all(), (name, who)


def test_a_damaged_transparent_colour_is_left_out() -> None:
    data = png16(np.full((SIDE, SIDE), 0x4000), 0, chunk(b"tRNS", b"\x40\0")[:-1] + b"!")
    assert (np.asarray(decode_rgb(data)) == 0x40).all()


@pytest.mark.parametrize(
    "name, data, note",
    [
        ("12 of 16 bits", grey((RAMP * 4095).astype(np.uint16)), "image: 12-bit values in a 16-bit file"),
        ("colours", png16(np.stack([RAMP * 4095] * 3, -1), 2), "image: 12-bit values in a 16-bit file"),
        ("alpha", png16(np.dstack([RAMP * 4095] * 3 + [RAMP * 0 + 65535]), 6), "image: 12-bit values in a 16-bit file"),
        ("floats to 1,000", grey((RAMP * 1000).astype(np.float32), "TIFF"), "image: 10-bit values in a 32-bit file"),
        ("floats to 40,000", grey((RAMP * 40000).astype(np.float32), "TIFF"), ""),
        ("floats to 255", grey((RAMP * 255).astype(np.float32), "TIFF"), ""),
        ("16 of 16 bits", DEEP["16-bit PNG"], ""),
        ("10-bit PGM", DEEP["10-bit PGM"], ""),
        ("8 bits", PLAIN, ""),
        ("no end", PHOTO[:-2], "image: no end marker"),
        ("half an end", PHOTO[:-1], "image: no end marker"),
    ],
)  # fmt: skip
def test_what_is_odd_is_noted(name: str, data: bytes, note: str) -> None:
    encoded = EncodedImage(data)
    encoded.rgb()
    assert encoded.note == note


def test_a_note_is_in_the_row() -> None:
    operator = ShrinkOperator(ShrinkConfig(side=32))
    operator.setup("cpu")
    (row,) = operator.apply([Item("s", 0, "k", FoundImage(PHOTO[:-2]))])
    operator.close()
    assert (row.status, row.reason) == ("ok", "image: no end marker") and row.values["width"] == SIDE


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"optimize": True, "subsampling": 0}], ids=str
)
def test_a_jpeg_is_decoded_whole_or_refused(options: dict[str, object]) -> None:
    """Cut anywhere: it is decoded where its end marker alone is missing, never with made-up pixels."""
    data = enc(Image.fromarray(ends()), "JPEG", quality=85, **options)
    pixels = np.asarray(decode_rgb(data))
    restarts = [i for i in range(600, len(data) - 1) if data[i] == 255 and 0xD0 <= data[i + 1] <= 0xD7]
    markers = [i + n for i in restarts[::3] for n in (0, 2)]
    decoded = []
    for cut in sorted({*range(len(data) - 12, len(data)), *range(len(data) // 2, len(data), 97), *markers}):
        try:
            assert np.array_equal(np.asarray(decode_rgb(data[:cut])), pixels), cut
            decoded.append(cut)
        except BadImage as error:
            assert error.reason in ("image: truncated", "image: damaged")
    assert len(data) - 2 in decoded and all(cut > len(data) - 12 for cut in decoded)


def test_what_is_refused_is_refused_alike(tmp_path_factory: pytest.TempPathFactory) -> None:
    """EPS would start Ghostscript; the others are formats that nobody reads, named in the detail."""
    cases = {
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "EPS, which is not read",
        b"%PDF-1.4\n": "PDF, which is not read",
        b"\0\0\0\x18ftypheic" + bytes(200): "HEIC, which is not read",
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200): "HEIC, which is not read",
        b"\xff\x0a" + bytes(100): "JPEG XL, which is not read",
        b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>": "SVG, which is not read",
        enc(Image.new("RGB", (8, 8)), "PCX"): "",
        enc(Image.new("RGB", (8, 8)), "EPS"): "EPS, which is not read",
    }
    for data, detail in cases.items():
        looks: list[Callable[[], object]] = [
            lambda d=data: decode(d, Geometry(SIDE)), lambda d=data: CLIP.pixels(d),  # type: ignore[misc]
            lambda d=data: centre_crop(d, SIDE), lambda d=data: EncodedImage(d),  # type: ignore[misc]
        ]  # fmt: skip
        for look in looks:
            with pytest.raises(BadImage) as caught:
                look()
            assert caught.value.reason == "image: not an image" and detail in caught.value.detail


def test_sizes_that_hide_behind_the_header_s() -> None:
    """A huge PNG in an icon, a huge tile in a TIFF: refused before anything is made room for."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0))
    bomb = PLAIN[:8] + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    sizes = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1), (322, 40_000), (323, 40_000)]
    tags = [*sizes, (324, 8), (325, 8)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    tiff = struct.pack("<2sHI", b"II", 42, 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4)
    for data in (icon, tiff):
        with pytest.raises(BadImage, match="larger than 100000000 pixels"):
            decode_rgb(data)


def test_what_a_server_is_sent() -> None:
    """The file itself where all decoders agree on it, else a PNG of our pixels."""
    assert EncodedImage(PHOTO).portable() == PHOTO and EncodedImage(PLAIN).portable() == PLAIN
    for data in (DEEP["16-bit PNG"], DEEP["float TIFF of 0-1"], PHOTO[:-2]):
        sent = Image.open(io.BytesIO(EncodedImage(data).portable()))
        assert sent.format == "PNG" and np.array_equal(np.asarray(sent), np.asarray(decode_rgb(data)))


MEASURE = """
import sys
from recap.engine.decode import Geometry, decode
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = open(sys.argv[1], "rb").read()
decode(open(sys.argv[2], "rb").read(), Geometry(64, "pad"))
before = peak()
decode(data, Geometry(64, "pad"))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_stated_memory_is_enough(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of 8 megapixels, transparent and with alpha: what `cost` says bounds what a process really takes."""
    folder = tmp_path_factory.mktemp("images")
    image = Image.new("RGBA", (4000, 2000), (9, 90, 200, 99))
    (folder / "small").write_bytes(PHOTO)
    for kind in ("PNG", "WEBP"):
        data = enc(image, kind, **({"compress_level": 1} if kind == "PNG" else {"lossless": True, "method": 0}))
        (folder / kind).write_bytes(data)
        command = [sys.executable, "-c", MEASURE, str(folder / kind), str(folder / "small")]
        took = int(subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout)
        assert 0 < took <= EncodedImage(data).cost + (16 << 20), kind


class Counting(Memory):
    """Counts how often it lent, and to how many at the same time."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.wanted: list[int] = []
        self.now = self.most = 0

    @contextlib.contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        with super().reserved(wanted):
            self.wanted.append(wanted)
            self.now += 1
            self.most = max(self.most, self.now)
            yield
            self.now -= 1


def test_threads_that_decode_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of trainings, fine-tuning, latents and shrinking: large images wait for each other, small ones do not ask."""
    large = enc(Image.new("RGB", (3000, 2000), (9, 9, 9)), "PNG")
    cost = EncodedImage(large).cost
    assert cost > memory.FREE > EncodedImage(enc(Image.new("RGB", (300, 200)), "PNG")).cost
    shared = Counting(cost)
    monkeypatch.setattr(memory, "_DECODING", shared)
    small = enc(Image.new("RGB", (300, 200)), "PNG")
    shrink = ShrinkOperator(ShrinkConfig())
    uses: list[Callable[[bytes], object]] = [
        lambda data: training_crop(data, SIDE, 0, 0, "k"), lambda data: centre_crop(data, SIDE),
        lambda data: decoded(data, "k"), lambda data: shrink._shrink(Item("s", 0, "k", FoundImage(data))),
    ]  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda use: use(large), uses))
        assert (shared.wanted, shared.most) == ([cost] * len(uses), 1)
        list(pool.map(lambda use: use(small), uses))
    assert len(shared.wanted) == len(uses)
