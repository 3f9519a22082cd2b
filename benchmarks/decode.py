"""What decoding costs: seconds of a core by image size, exact and fast, and memory by format.

    python -m benchmarks.decode                      a table; on a machine that does nothing else
    python -m benchmarks.decode --captions 40        and how many captions of the demo's captioner differ
    python -m benchmarks.decode --json out.json
    python -m benchmarks.decode --check              exit 1 where a format takes more memory than is stated

Exact pixels are those of `captioner.decode=exact`, fast ones let libjpeg shrink a JPEG while it decodes.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpc.base.errors import Parser
from recap.data.images import EncodedImage
from recap.data.tars import Sample, read_samples
from recap.demo import CAPTIONER, FLAGS
from recap.engine.decode import Geometry, decode

SIZES = ((512, 384), (1024, 768), (2048, 1536), (4096, 3072))
GPUS, RATE = 8, 65  # of a node, and images a second of each
_BARE = "from recap.engine.decode import Geometry, decode\n"
_MEASURE = (
    _BARE
    + """
import sys
def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = open(sys.argv[1], "rb").read()
decode(open(sys.argv[2], "rb").read(), Geometry(336, "pad"))
before = peak()
decode(data, Geometry(336, "pad"))
print(peak() - before)
"""
)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with the detail of a photo: noise of several scales."""
    noise = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (4, 16, 64, 256):
        part = Image.fromarray(noise.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray((total / 4).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_size(rounds: int) -> list[dict[str, float]]:
    """CPU seconds of one JPEG (quality 85), the best of some rounds, and how far fast pixels are from exact ones."""
    rows = []
    for width, height in SIZES:
        data = encoded(scene(width, height), "JPEG", quality=85)
        spent: dict[bool, float] = {}
        pixels: dict[bool, np.ndarray] = {}
        for fast in (False, True):
            times = []
            for _ in range(rounds):
                start = time.process_time()
                pixels[fast] = decode(data, Geometry(336, "pad"), fast=fast)
                times.append(time.process_time() - start)
            spent[fast] = min(times)
        away = np.abs(pixels[True].astype(int) - pixels[False])
        rows.append(
            {"width": width, "height": height, "exact_s": spent[False], "fast_s": spent[True],
             "mean": float(away.mean()), "worst": float(away.max())}
        )  # fmt: skip
    return rows


def by_format(side: int = 2000) -> list[dict[str, Any]]:
    """Bytes a pixel that decoding takes in a process of its own, against what `EncodedImage.cost` states."""
    image = scene(side, side)
    alpha = image.convert("RGBA")
    files = {
        "JPEG": encoded(image, "JPEG"),
        "JPEG, progressive, 4:4:4": encoded(image, "JPEG", progressive=True, subsampling=0),
        "JPEG, progressive, CMYK": encoded(image.convert("CMYK"), "JPEG", progressive=True),
        "PNG": encoded(image, "PNG", compress_level=1),
        "PNG with alpha": encoded(alpha, "PNG", compress_level=1),
        "WebP": encoded(image, "WEBP", method=0),
        "WebP with alpha": encoded(alpha, "WEBP", method=0),
        "AVIF": encoded(image, "AVIF", speed=10),
        "JPEG 2000": encoded(image, "JPEG2000"),
        "TIFF, 32-bit": encoded(Image.fromarray(np.zeros((side, side), np.int32)), "TIFF"),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "small")
        small.write_bytes(encoded(scene(64, 64), "JPEG"))
        for name, data in files.items():
            path = Path(folder, "image")
            path.write_bytes(data)
            command = [sys.executable, "-c", _MEASURE, str(path), str(small)]
            took = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"format": name, "bytes": took / side**2, "stated": EncodedImage(data).cost / side**2})
    return rows


def captions(count: int) -> tuple[int, int]:
    """(captions that differ, images): the demo's captioner on its flags as JPEGs of 2048 pixels, exact and fast."""
    from recap.engine import CaptionerConfig, Request, load_engine

    pictures: list[bytes] = []
    for tar in sorted(Path(FLAGS).glob("*.tar")):
        with tar.open("rb") as file:
            samples = [s for s in read_samples(file) if isinstance(s, Sample)]
        for sample in samples:
            data = next(m for e, m in sample.members.items() if e in ("png", "jpg"))
            image = Image.open(io.BytesIO(data)).convert("RGB")
            pictures.append(encoded(image.resize((2048, 1365), Image.Resampling.BICUBIC), "JPEG", quality=85))
            if len(pictures) == count:
                break
        if len(pictures) == count:
            break
    found: dict[str, dict[int, str]] = {}
    for mode in ("exact", "fast"):
        engine = load_engine(CaptionerConfig(model=str(CAPTIONER), decode=mode, threads=1), "cpu")
        todo = list(enumerate(pictures))
        said: dict[int, str] = {}
        while len(said) < len(pictures):
            while todo and engine.want():
                number, data = todo.pop()
                engine.put(Request(number, data))
            said.update({c.id: c.text for c in engine.poll(0.1)})
        engine.close()
        found[mode] = said
    return sum(found["exact"][i] != found["fast"][i] for i in found["exact"]), len(pictures)


def main() -> int:
    parser = Parser(
        prog="python -m benchmarks.decode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the best counts")
    parser.add_argument("--captions", type=int, default=0, metavar="N", help="caption N images, exact and fast")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--check", action="store_true", help="exit 1 where memory is above what is stated")
    given = parser.parse_args()
    sizes, formats = by_size(given.rounds), by_format()
    say(f"{'JPEG':>12}{'exact':>10}{'fast':>10}{'cores of a node':>20}{'differs by':>22}")
    for row in sizes:
        cores = [GPUS * RATE * row[key] for key in ("exact_s", "fast_s")]
        say(
            f"{row['width']:>7}x{row['height']:<4}{row['exact_s'] * 1e3:>7.1f} ms{row['fast_s'] * 1e3:>7.1f} ms"
            f"{cores[0]:>10.1f} / {cores[1]:<7.1f}{row['mean']:>10.2f}, at most {row['worst']:.0f}"
        )
    say(f"(cores: {GPUS} GPUs at {RATE} images/s each, exact / fast; differences in levels of 255)\n")
    for row in formats:
        say(f"{row['format']:>26}{row['bytes']:>7.1f} bytes a pixel (stated: {row['stated']:.0f})")
    made: dict[str, Any] = {"sizes": sizes, "formats": formats}
    if given.captions:
        differ, count = captions(given.captions)
        made["captions"] = {"differ": differ, "of": count}
        say(f"\n{differ} of {count} captions differ between exact and fast")
    if given.json:
        given.json.write_text(json.dumps(made, indent=1))
    return int(given.check and any(row["bytes"] > row["stated"] + 1 for row in formats))


if __name__ == "__main__":
    sys.exit(main())
