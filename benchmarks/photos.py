"""JPEGs like photographs, and what decoding them costs."""

from __future__ import annotations

import io
import time

import numpy as np
from PIL import Image as Picture

from benchmarks.timing import say
from recap.engine.decode import Geometry, decode


def encoded_photos(count: int, width: int, height: int) -> list[bytes]:
    """JPEGs with the spectrum of photos (noise whose amplitude falls with frequency), quality 90."""
    noise = np.random.default_rng(1)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height))
    found = []
    for _ in range(min(count, 16)):
        planes = []
        for _ in range(3):
            plane = np.fft.irfft2(np.fft.rfft2(noise.standard_normal((height, width))) * fall, (height, width))
            planes.append(np.clip(128 + 48 * plane / plane.std(), 0, 255).astype(np.uint8))
        file = io.BytesIO()
        Picture.fromarray(np.stack(planes, -1)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return [found[i % len(found)] for i in range(count)]


def decoding(sizes: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of one core to decode a JPEG to 336 pixels, exact and fast, and the mean difference in levels of 255."""
    found = {}
    for width, height in ((512, 384), (1024, 768), (2048, 1536))[:sizes]:
        photos = encoded_photos(2, width, height)
        spent: dict[bool, float] = {}
        pixels: dict[bool, np.ndarray] = {}
        for fast in (False, True):
            times = []
            for data in photos * 3:
                start = time.perf_counter()
                pixels[fast] = decode(data, Geometry(336), fast=fast)
                times.append(time.perf_counter() - start)
            spent[fast] = min(times)
        away = float(np.abs(pixels[True].astype(int) - pixels[False]).mean())
        found[f"{width}x{height}"] = {"exact_s": spent[False], "fast_s": spent[True], "difference": away}
        say(
            f"  decoding a {width}x{height} JPEG: {spent[False] * 1e3:.1f} ms of a core exact, "
            f"{spent[True] * 1e3:.1f} ms fast (mean difference {away:.2f} of 255)"
        )
    return found
