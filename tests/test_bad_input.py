"""What is found in web-scale tars, in one run of the real captioner: a reason for each sample, and none is lost."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpc import verify
from hpc.base.errors import Exit
from hpc.map import status as map_status
from hpc.run.published import Published

ROOT = Path(__file__).resolve().parent.parent


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def flag(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((250, 250, 250), (0, height // 3, width, 2 * height // 3))
    return image.convert(mode)


def bomb(side: int = 50_000) -> bytes:
    """A PNG of a few hundred bytes that says it has 2.5 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(flag(), "JPEG", exif=exif.tobytes())


PNG = encoded(flag(), "PNG")
JPEG = encoded(flag(300, 200), "JPEG", quality=95)
DEAD = encoded(Image.new("RGB", (50, 50), (90, 90, 90)), "PNG")
GREY16 = Image.frombytes("I;16", (40, 40), bytes(range(200)) * 16)


@dataclass(frozen=True)
class Case:
    """One sample of the odd shard, and what must become of it."""

    key: str
    image: bytes | None
    status: str
    reason: str = ""
    text: bytes | None = b"a flag"
    extension: str = "png"
    keeps: str | None = "a flag"  # the text in the output


OK, SKIPPED = "ok", "skipped"
NOT_UTF8, CUT = "text: not UTF-8 (kept as replaced)", "text: cut at 65,536 characters"
CASES = [
    Case("plain", PNG, OK),
    Case("palette", encoded(flag().convert("P"), "PNG"), OK),
    Case("one-bit", encoded(flag().convert("1"), "PNG"), OK),
    Case("alpha", encoded(flag().convert("RGBA"), "PNG"), OK),
    Case("grey16", encoded(GREY16, "PNG"), OK),
    Case("one-pixel", encoded(flag(1, 1), "PNG"), OK),
    Case("1to700", encoded(flag(1, 700), "PNG"), OK),
    Case("700to1", encoded(flag(700, 1), "PNG"), OK),
    Case("cmyk", encoded(flag().convert("CMYK"), "JPEG"), OK, extension="jpg"),
    Case("rotated", rotated(), OK, extension="jpg"),
    Case("progressive", encoded(flag(), "JPEG", progressive=True), OK, extension="jpeg"),
    Case("webp", encoded(flag(), "WEBP"), OK, extension="webp"),
    Case("animated", encoded(flag(), "GIF", save_all=True, append_images=[flag().rotate(90)]), OK, extension="gif"),
    Case("animated-webp", encoded(flag(), "WEBP", save_all=True, append_images=[flag()]), OK, extension="webp"),
    Case("tiff", encoded(flag(), "TIFF"), OK, extension="tif"),
    Case("wrong-name", encoded(flag(61, 40), "JPEG"), OK, extension="PNG"),
    Case("no-end", encoded(flag(310, 200), "JPEG")[:-2], OK, "image: no end marker", extension="jpg"),
    Case("dark16", encoded(Image.frombytes("I;16", (40, 40), b"\xff\x0f" * 1600), "PNG"), OK,
         "image: 12-bit values in a 16-bit file"),
    Case("avif", encoded(flag(75, 40), "AVIF"), OK, extension="avif"),
    Case("truncated", JPEG[: len(JPEG) // 2], SKIPPED, "image: truncated", extension="jpg"),
    Case("truncated-png", PNG[: len(PNG) * 2 // 3], SKIPPED, "image: truncated"),
    Case("corrupt", PNG[:40] + b"\xff" * 30 + PNG[70:], SKIPPED, "image: damaged"),
    Case("zero-byte", b"", SKIPPED, "image: zero bytes"),
    Case("not-an-image", b"<html>404 Not Found</html>", SKIPPED, "image: not an image", extension="jpg"),
    Case("svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", SKIPPED, "image: not an image"),
    Case("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", SKIPPED, "image: not an image"),
    Case("bomb", bomb(), SKIPPED, "image: larger than 100000000 pixels"),
    Case("no-image", None, SKIPPED, "image: missing"),
    Case("no-text", encoded(flag(62, 40), "PNG"), OK, "text: missing", text=None, keeps=None),
    Case("dead-link", DEAD, SKIPPED, "image: placeholder"),
    Case("copy-of-plain", PNG, OK),
    Case("latin1", encoded(flag(63, 40), "PNG"), OK, NOT_UTF8, b"caf\xe9", keeps="caf\ufffd"),
    Case("empty-text", encoded(flag(64, 40), "PNG"), OK, text=b"", keeps=""),
    Case("nul", encoded(flag(65, 40), "PNG"), OK, text=b"a\0b", keeps="a\0b"),
    Case("ansi", encoded(flag(66, 40), "PNG"), OK, text=b"\x1b[2J\x1b]0;owned\x07", keeps="\x1b[2J\x1b]0;owned\x07"),
    Case("huge", encoded(flag(67, 40), "PNG"), OK, CUT, b"x" * 3_000_000, keeps="x" * 65536),
    Case("<script>alert(1)</script>", encoded(flag(68, 40), "PNG"), OK),
    Case("../../../tmp/escape", encoded(flag(69, 40), "PNG"), OK),
    Case("/absolute/name", encoded(flag(70, 40), "PNG"), OK),
    Case("new\nline", encoded(flag(71, 40), "PNG"), OK),
    Case("\x1b[31mred", encoded(flag(72, 40), "PNG"), OK),
    Case("Fähnchen/旗", encoded(flag(73, 40), "PNG"), OK),
    Case("k" * 200, encoded(flag(74, 40), "PNG"), OK),
]  # fmt: skip


def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def samples(*keys: str, **settings: Any) -> bytes:
    """A tar with an image and a text a key. The images differ."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **settings) as tar:
        for number, key in enumerate(keys):
            member(tar, f"{key}.png", encoded(flag(80 + number, 50), "PNG"))
            member(tar, f"{key}.txt", f"flag {key}".encode())
    return buffer.getvalue()


def odd_keys() -> bytes:
    """Links, devices, duplicate and torn keys, names that are not UTF-8, members without a key."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for key in ("a", "b", "a"):
            member(tar, f"{key}.png", PNG)
        member(tar, "b.txt", b"torn off")
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("null", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(f"{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        member(tar, "README", b"no extension")
        member(tar, "__meta__", b"webdataset's own")
        member(tar, ".hidden.png", PNG)
        member(tar, "caf\udce9.png", PNG)
    return buffer.getvalue()


def garbage(data: bytes, member_number: int) -> bytes:
    """With noise instead of the header of one member."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        at = tar.getmembers()[member_number].offset
    return data[:at] + b"\xa5" * 512 + data[at + 512 :]


def cut(data: bytes, member_number: int) -> bytes:
    """Up to the middle of one member's content."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = tar.getmembers()[member_number]
    return data[: found.offset_data + found.size // 2]


FIVE = samples(*"abcde")
SHARDS: dict[str, tuple[bytes, int, str | None]] = {  # content, rows that must come out, damage
    "cut-in-a-member": (cut(FIVE, 5), 3, "tar: ends in the middle of a member"),
    "cut-in-a-header": (FIVE[:10], 0, "tar: truncated"),
    "no-end": (FIVE.rstrip(b"\0") + bytes(-len(FIVE.rstrip(b"\0")) % 512), 5, "tar: no end of archive"),
    "empty-tar": (samples(), 0, None),
    "zero-bytes": (b"", 0, "tar: zero bytes"),
    "html": (b"<html>403 Forbidden</html>" * 100, 0, "tar: not a tar"),
    "gzipped": (gzip.compress(FIVE), 5, None),
    "gzip-cut": (gzip.compress(FIVE)[:-200], 3, "tar: gzip ends early or is damaged"),
    "garbage-header": (garbage(FIVE, 4), 5, "tar: garbage header"),  # the image of c: its text is left
    "twice": (FIVE + FIVE, 5, "tar: data after the end of the archive"),
    "odd-keys": (odd_keys(), 8, None),
    "short-count": (FIVE, 5, "tar: fewer samples than expected"),
    "folder/nested name": (FIVE, 5, None),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Published, Path, str]:
    """One launch over all of it, with the captioner that ships."""
    folder = tmp_path_factory.mktemp("bad")
    inputs = folder / "in"
    for name, (data, _, _) in SHARDS.items():
        path = inputs / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (inputs / "short-count_stats.json").write_text('{"successes": 9}')
    with tarfile.open(inputs / "cases.tar", "w") as tar:
        for case in CASES:
            if case.image is not None:
                member(tar, f"{case.key}.{case.extension}", case.image)
            if case.text is not None:
                member(tar, f"{case.key}.txt", case.text)
            member(tar, f"{case.key}.json", b"{}")
    command = [
        sys.executable, "-m", "hpc.launch", str(ROOT / "configs/caption/demo.yaml"), f"runs={folder}", "name=bad",
        f"data.shards=[{inputs},{inputs}/folder]", f"data.placeholders=[{hashlib.sha256(DEAD).hexdigest()}]",
        "captioner.max_tokens=8", "map.segment=16",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "COLUMNS": "160"})
    assert done.returncode == Exit.SOME_FAILED, done.stdout + done.stderr
    return Published(folder / "bad"), folder / "bad", done.stdout


def rows(run: tuple[Published, Path, str], shard: str) -> list[dict[str, Any]]:
    found = next(s for s in run[0] if s.shard.id == shard)
    return pq.read_table(found.file).to_pylist()


@pytest.mark.parametrize("case", CASES, ids=lambda c: ascii(c.key[:20]))
def test_each_sample_has_its_reason(run: tuple[Published, Path, str], case: Case) -> None:
    [row] = [r for r in rows(run, "cases") if r["key"] == case.key]
    assert (row["status"], row["reason"]) == (case.status, case.reason)
    assert row["text"] == case.keeps
    assert bool(row["caption"]) == (case.status == OK)
    assert row["sha256"] == (hashlib.sha256(case.image).hexdigest() if case.image is not None else None)


def test_a_copy_has_the_caption_of_its_original(run: tuple[Published, Path, str]) -> None:
    found = {r["key"]: r["caption"] for r in rows(run, "cases")}
    assert found["copy-of-plain"] == found["plain"]


def test_the_order_is_the_tar_s(run: tuple[Published, Path, str]) -> None:
    assert [r["key"] for r in rows(run, "cases")] == [c.key for c in CASES]


@pytest.mark.parametrize("name", SHARDS)
def test_each_shard_gives_what_can_be_read(run: tuple[Published, Path, str], name: str) -> None:
    _, count, damage = SHARDS[name]
    shard = next(s for s in run[0] if s.shard.id == name.replace("/", "%2F").replace(" ", "%20"))
    assert (shard.marker["damage"] or {}).get("reason") == damage
    assert shard.marker["rows"] == count
    assert sum(shard.marker["counts"].values()) == shard.marker["rows"] == pq.read_metadata(shard.file).num_rows


def test_odd_keys_and_links(run: tuple[Published, Path, str]) -> None:
    assert [(r["key"], r["status"], r["reason"]) for r in rows(run, "odd-keys")] == [
        ("a", "ok", "text: missing"),
        ("b", "ok", "text: missing"),
        ("a", "skipped", "key: duplicate"),
        ("b", "skipped", "key: split"),
        ("link", "skipped", "image: a link or device"),
        ("hard", "skipped", "image: a link or device"),
        ("null", "skipped", "image: a link or device"),
        ("caf\\xe9", "ok", "text: missing"),
    ]


def test_garbage_costs_the_members_it_hid(run: tuple[Published, Path, str]) -> None:
    assert [(r["key"], r["status"], r["reason"]) for r in rows(run, "garbage-header")] == [
        ("a", "ok", ""), ("b", "ok", ""), ("c", "skipped", "image: missing"), ("d", "ok", ""), ("e", "ok", ""),
    ]  # fmt: skip


def test_every_sample_is_accounted_for(run: tuple[Published, Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    published, path, screen = run
    assert published.missing() == []
    facts = map_status.read_status(published.run)
    total: Counter[str] = Counter()
    for shard in published:
        total.update(shard.marker["counts"])
    assert {k: v for k, v in facts["samples"].items() if v} == dict(total)
    damaged = [d for _, _, d in SHARDS.values() if d]
    assert facts["shards"]["done"] == facts["shards"]["total"] == len(SHARDS) + 1
    assert facts["shards"]["damaged"] == len(damaged)
    assert {reason: group["count"] for reason, group in facts["damaged"].items()} == dict(Counter(damaged))
    assert verify.main([str(path), "--full"]) == Exit.COMPLETE
    assert "\x1b[31mred" not in screen
    for name in ("/tmp/escape.png", "/absolute/name.png", "/tmp/escape"):
        assert not Path(name).exists()


@pytest.mark.parametrize("command", ["launch", "dry run"])
def test_a_model_that_does_not_exist(tmp_path: Path, command: str) -> None:
    arguments = [str(ROOT / "configs/caption/demo.yaml"), f"runs={tmp_path}", "captioner.model=/nowhere/llava"]
    flags = ["--dry-run"] if command == "dry run" else []
    done = subprocess.run(
        [sys.executable, "-m", "hpc.launch", *arguments, *flags], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == Exit.USAGE
    assert "/nowhere/llava" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
