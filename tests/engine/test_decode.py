"""Decoding: equal to transformers' Pillow processors, whole or refused with a reason, and never fatal."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from benchmarks.random_captioner import photo
from recap.data.images import BadImage, decode_rgb
from recap.data.memory import Memory
from recap.engine.checkpoint import Normalisation
from recap.engine.decode import Geometry, decode
from recap.engine.decode_pool import Decoded, DecodePool

SIZE = 56
RAW = {"do_rescale": False, "do_normalize": False, "size": {"shortest_edge": SIZE}}
RAW["crop_size"] = {"height": SIZE, "width": SIZE}


def save(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def hugging_face(data: bytes, mode: str) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    processor = LlavaImageProcessorPil(**RAW, do_pad=True) if mode == "pad" else CLIPImageProcessorPil(**RAW)
    return np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0).astype(np.uint8)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize(
    "size", [(48, 40), (40, 48), (56, 56), (57, 56), (300, 201), (33, 480), (1, 1), (1, 2), (2, 1), (640, 41)]
)
def test_pixels_equal_transformers(mode: str, size: tuple[int, int]) -> None:
    data = photo(sum(size), *size)
    assert np.array_equal(decode(data, Geometry(SIZE, mode)), hugging_face(data, mode))


@pytest.mark.parametrize("scale", [1 / 255, 1 / 127.5, 0.0123])
def test_normalised_pixels_equal_transformers(scale: float) -> None:
    image = Image.fromarray(np.arange(SIZE * SIZE * 3).reshape(SIZE, SIZE, 3).astype(np.uint8))
    processor = CLIPImageProcessorPil(size=RAW["size"], crop_size=RAW["crop_size"], rescale_factor=scale)
    expected = torch.from_numpy(np.stack(processor(image)["pixel_values"]))
    ours = Normalisation.of(processor)(torch.from_numpy(np.array(image))[None], torch.float32)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("size", [(1, 700), (700, 1), (20, 400), (1000, 9)])
def test_very_long_images(mode: str, size: tuple[int, int]) -> None:
    """Past 1:16 only the kept part is resampled: at most one level away from transformers."""
    data = photo(3, *size, format="PNG")
    away = np.abs(decode(data, Geometry(SIZE, mode)).astype(int) - hugging_face(data, mode))
    assert away.max() <= (1 if mode == "crop" else 0)


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_extreme_length_needs_little_memory(mode: str) -> None:
    data = save(Image.new("RGB", (1, 60_000), (200, 10, 10)))
    assert decode(data, Geometry(SIZE, mode))[SIZE // 2, SIZE // 2, 0] >= (122 if mode == "pad" else 200)


def modes() -> dict[str, bytes]:
    noise = np.random.default_rng(0)
    rgba = Image.fromarray(noise.integers(0, 256, (40, 48, 4), dtype=np.uint8), "RGBA")
    palette = rgba.convert("RGB").quantize(16)
    return {
        "rgba": save(rgba),
        "la": save(rgba.convert("LA")),
        "grey": save(rgba.convert("L")),
        "bilevel": save(rgba.convert("1")),
        "palette": save(palette),
        "palette with transparency": save(palette, transparency=3),
        "grey with transparency": save(rgba.convert("L"), transparency=7),
        "cmyk": save(rgba.convert("RGB").convert("CMYK"), "JPEG"),
        "webp": save(rgba, "WEBP"),
        "gif": save(palette, "GIF"),
        "exif rotation": save(
            rgba.convert("RGB"),
            "JPEG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
        ),
    }


@pytest.mark.parametrize("name", list(modes()))
def test_colour_modes_equal_transformers(name: str) -> None:
    data = modes()[name]
    assert np.array_equal(decode(data, Geometry(SIZE)), hugging_face(data, "crop"))


def test_deep_grey_is_scaled() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(save(Image.fromarray(ramp)), Geometry(SIZE))
    assert 100 < pixels.mean() < 155
    floats = save(Image.fromarray((ramp / 65535).astype(np.float32), "F"), "TIFF")
    assert 100 < decode(floats, Geometry(SIZE)).mean() < 155


def test_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (60, 60), (255, 0, 0)), Image.new("RGB", (60, 60), (0, 0, 255))
    for format in ("GIF", "WEBP", "PNG"):
        data = save(
            first,
            format,
            save_all=True,
            append_images=[second],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert decode(data, Geometry(SIZE))[0, 0].tolist() == [255, 0, 0]


def test_bad_images_have_fixed_reasons() -> None:
    jpeg, png = photo(0, 200, 200), photo(0, 200, 200, "PNG")
    cases = {
        b"": "image: zero bytes",
        b"<html>404</html>": "image: not an image",
        jpeg[: len(jpeg) // 2]: "image: truncated",
        png[: len(png) // 2]: "image: truncated",
        jpeg[:12]: "image: damaged",
        png[:60] + b"\0" * 200: "image: damaged",
    }
    for data, reason in cases.items():
        with pytest.raises(BadImage) as caught:
            decode(data, Geometry(SIZE))
        assert caught.value.reason == reason, (data[:20], caught.value)


def test_bomb_is_refused_from_its_header() -> None:
    bomb = save(Image.new("1", (12_000, 12_000)))
    start = time.process_time()
    for read in (lambda: decode(bomb, Geometry(SIZE)), lambda: decode_rgb(bomb)):
        with pytest.raises(BadImage) as caught:
            read()
        assert caught.value.reason == "image: larger than 100000000 pixels"
    assert time.process_time() - start < 0.5


def test_random_damage_never_raises_anything_else() -> None:
    noise = np.random.default_rng(5)
    sources = [
        photo(1),
        photo(1, format="PNG"),
        photo(1, format="WEBP"),
        photo(1, format="GIF"),
        photo(1, format="TIFF"),
    ]
    for trial in range(300):
        data = bytearray(sources[trial % len(sources)])
        for at in noise.integers(0, len(data), 12):
            data[at] = noise.integers(0, 256)
        try:
            assert decode(bytes(data), Geometry(SIZE)).shape == (SIZE, SIZE, 3)
        except BadImage as error:
            assert error.reason.startswith("image: ")


def test_fast_decode_is_close() -> None:
    data = photo(2, 1024, 768)
    exact, fast = (decode(data, Geometry(SIZE), fast=fast).astype(int) for fast in (False, True))
    assert 0 < np.abs(exact - fast).mean() < 3


# The pool.


def collect(pool: DecodePool, count: int, limit_s: float = 30.0) -> dict[int, Decoded]:
    found: dict[int, Decoded] = {}
    deadline = time.monotonic() + limit_s
    while len(found) < count:
        assert time.monotonic() < deadline
        found |= {done.id: done for done in pool.poll(0.1)}
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_pool_decodes_as_the_function_does(workers: int) -> None:
    pool = DecodePool(Geometry(SIZE, whole=(70,)), 8, workers, 10**6, False, 30)
    images = {i: photo(i) for i in range(6)} | {6: photo(6)[:-2], 7: b"not an image"}
    for id, image in images.items():
        pool.put(id, image)
    assert pool.room() == 0
    with pytest.raises(ValueError, match="full"):
        pool.put(8, b"")
    for id, done in collect(pool, 8).items():
        if id == 7:
            assert (done.reason, done.transient) == ("image: not an image", False)
        else:
            assert np.array_equal(pool.ring[done.place], decode(images[id], Geometry(SIZE, whole=(70,))))
            assert done.note == ("image: no end marker" if id == 6 else "")
        pool.release(done.place)
    assert pool.room() == 8
    pool.close()


class Watched(Memory):
    """Counts how often it lent, and to how many at the same time."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.times = self.now = self.most = 0

    @contextlib.contextmanager
    def reserved(self, wanted: int) -> Iterator[None]:
        with super().reserved(wanted):
            self.times, self.now = self.times + 1, self.now + 1
            self.most = max(self.most, self.now)
            yield
            self.now -= 1


def test_large_images_wait_for_memory() -> None:
    """One that needs more than there is is decoded all the same, without others; small ones do not ask."""
    memory = Watched(1)
    pool = DecodePool(Geometry(SIZE), 8, 2, 10**8, False, 60, memory)
    images = {i: save(Image.new("RGB", (3500, 2500), (i * 9, 0, 0)), compress_level=1) for i in range(3)}
    for id, image in {**images, 3: photo(3)}.items():
        pool.put(id, image)
    found = collect(pool, 4, 120)
    assert not any(done.reason for done in found.values())
    assert all(pool.ring[found[i].place][0, 0, 0] == i * 9 for i in images)
    assert (memory.times, memory.most) == (3, 1)
    pool.close()


def test_memory_is_lent_in_turn() -> None:
    """Small wishes do not overtake a large one for ever."""
    memory, order = Memory(10), []

    def ask(name: str, wanted: int) -> None:
        with memory.reserved(wanted):
            order.append(name)

    with memory.reserved(6):
        threads = []
        for name, wanted in (("large", 10), ("small", 1)):
            threads.append(threading.Thread(target=ask, args=(name, wanted)))
            threads[-1].start()
            while len(memory._waiting) < len(threads):
                time.sleep(0.001)
        assert not order
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]


def test_a_killed_decoder_costs_one_image() -> None:
    pool = DecodePool(Geometry(SIZE), 4, 1, 10**9, False, 30)
    pool.put(0, photo(0))
    collect(pool, 1)
    (process,) = pool._processes
    slow = save(Image.new("RGB", (9000, 9000)))
    for id, image in enumerate([slow, photo(1), photo(2)], start=1):
        pool.put(id, image)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    found = collect(pool, 3)
    assert (found[1].reason, found[1].transient) == ("image: decoder died", True)
    assert not found[2].reason and not found[3].reason
    pool.close()


def test_an_endless_decode_is_given_up() -> None:
    pool = DecodePool(Geometry(SIZE), 4, 1, 10**9, False, 30)
    pool.put(0, photo(0))
    collect(pool, 1)
    (process,) = pool._processes
    pool.timeout_s = 0.3
    process.send_signal(signal.SIGSTOP)
    pool.put(1, photo(1))
    done = collect(pool, 1)[1]
    assert (done.reason, done.transient) == ("image: decoding took too long", True)
    pool.timeout_s = 30
    pool.put(2, photo(2))
    assert not collect(pool, 1)[2].reason
    pool.close()


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from recap.engine.decode import Geometry
from recap.engine.decode_pool import DecodePool
pool = DecodePool(Geometry(56), 2, 1, 10**6, False, 30)
pool.put(0, open({image!r}, "rb").read())
while not pool.poll(0.1): pass
assert "torch" not in sys.modules
print(next(iter(pool._processes)).pid, flush=True)
time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_decoders_ignore_step_signals_and_die_with_their_parent(tmp_path: Path) -> None:
    image = tmp_path / "photo.jpg"
    image.write_bytes(photo(0))
    root = str(Path(__file__).resolve().parents[2])
    source = PARENT.format(root=root, image=str(image))
    parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        os.kill(child, number)
    time.sleep(0.2)
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)
