"""Odd tars, and what must become of each sample: the same for the map job, the index, the stream and the exports."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OK, SKIPPED = "ok", "skipped"
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One sample. image, text: what is read of it; None where there is none."""

    key: str
    image: bytes | None = b"image"
    text: str | None = "text"
    status: str = OK
    reason: str = ""


@dataclass(frozen=True)
class Oddity:
    """A tar (made in a folder for its sources), its rows, its damage; and what docs/input.md says of it."""

    name: str
    says: str
    make: Callable[[Path], bytes]
    rows: list[Row]
    damage: str | None = None

    @property
    def packed(self) -> bool:
        return self.name.startswith("gzipped")


def pack(*members: tuple[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, image: bytes = b"image", text: bytes = b"text") -> list[tuple[str, bytes]]:
    return [(f"{key}.png", image), (f"{key}.txt", text)]


# --- sparse files and links, made by GNU tar itself -------------------------------------------

HOLED = b"\1" * 5000 + bytes(20_000) + b"\2" * 5000 + bytes(9000)
HOLED_TEXT = b"a text" + bytes(20_000) + b"tail"


def _sparse(path: Path, data: bytes) -> None:
    """Blocks of zeros become holes."""
    with path.open("wb") as file:
        file.truncate(len(data))
        for at in range(0, len(data), 4096):
            if data[at : at + 4096].strip(b"\0"):
                file.seek(at)
                file.write(data[at : at + 4096])


def _tar(folder: Path, *options: str, names: list[str] | None = None) -> bytes:
    names = names or sorted(os.listdir(folder))
    return subprocess.run(["tar", *options, "-C", folder, "-cf", "-", *names], check=True, capture_output=True).stdout


def sparse(*options: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        _sparse(folder / "a.png", HOLED)
        (folder / "a.txt").write_text("text")
        _sparse(folder / "b.txt", HOLED_TEXT)
        (folder / "b.png").write_bytes(b"image")
        _sparse(folder / "c.png", bytes(30_000))  # no data at all
        data = _tar(folder, "--sparse", *options)
        assert len(data) < 45_000, "the holes are not stored"
        return data

    return make


SPARSE_ROWS = [
    Row("a", HOLED),
    Row("b", text=HOLED_TEXT.decode()),
    Row("c", bytes(30_000), None, reason="text: missing"),
]


def hard_links(folder: Path) -> bytes:
    _sparse(folder / "a.png", HOLED)
    (folder / "a.txt").write_text("text")
    for key in ("b", "c"):
        for kind in ("png", "txt"):
            os.link(folder / f"a.{kind}", folder / f"{key}.{kind}")
    data = _tar(folder, "--sparse")
    assert len(data) < 40_000, "the links are not stored as links"
    return data


def far_links(folder: Path) -> bytes:
    """A link that leads out of its block of 512 samples, and one to a long name."""
    long = "d" * 120 + "/" + "e" * 120
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key in [*(f"{i:04d}" for i in range(600)), long]:
            info = tarfile.TarInfo(f"./{key}.png")
            info.size = len(key)
            tar.addfile(info, io.BytesIO(key.encode()))
        for key, target in (("x", "0007.png"), ("y", f"{long}.png"), ("z", "nowhere.png")):
            info = tarfile.TarInfo(f"{key}.png")
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


FAR_ROWS = [
    *(Row(f"{i:04d}", f"{i:04d}".encode(), None, reason="text: missing") for i in range(600)),
    Row(f"{'d' * 120}/{'e' * 120}", f"{'d' * 120}/{'e' * 120}".encode(), None, reason="text: missing"),
    Row("x", b"0007", None, reason="text: missing"),
    Row("y", f"{'d' * 120}/{'e' * 120}".encode(), None, reason="text: missing"),
    Row("z", None, None, SKIPPED, "image: a link or device"),
]


def symbolic(folder: Path) -> bytes:
    (folder / "a.png").write_bytes(b"image")
    (folder / "b.png").symlink_to("a.png")
    return _tar(folder)


def far_duplicates(folder: Path) -> bytes:
    keys = [*(f"{i:04d}" for i in range(600)), "0003", "0004"]
    members = [(f"{key}.png", key.encode()) for key in keys[:-1]] + [("0004.txt", b"torn")]
    return pack(*members)


DUPLICATE_ROWS = [
    *(Row(f"{i:04d}", f"{i:04d}".encode(), None, reason="text: missing") for i in range(600)),
    Row("0003", None, None, SKIPPED, "key: duplicate"),
    Row("0004", None, "torn", SKIPPED, "key: split"),
]


# --- headers ----------------------------------------------------------------------------------


def with_pax(records: dict[str, str]) -> bytes:
    """A sample whose first member has these pax records, between two others."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key in "abc":
            info = tarfile.TarInfo(f"{key}.png")
            info.size = 5
            info.pax_headers = records if key == "b" else {}
            tar.addfile(info, io.BytesIO(b"image"))
    return buffer.getvalue()


def large_claim(folder: Path) -> bytes:
    """A member that says it has 300 MiB, all of them holes."""
    records = {"GNU.sparse.size": str(300 * MIB), "GNU.sparse.map": f"{300 * MIB},0", "GNU.sparse.name": "b.png"}
    return with_pax(records)


THREE = [Row(key, b"image", None, reason="text: missing") for key in "abc"]
LEFT_OUT = [THREE[0], THREE[2]]


def garbage(folder: Path) -> bytes:
    data = bytearray(pack(*sample("a"), *sample("b"), *sample("c")))
    data[2048:2560] = b"\xa5" * 512  # the header of b.png
    return bytes(data)


UNREAD = [
    *(Row(key, None, None, SKIPPED, "image: not an image") for key in "abcd"),
    Row("e", None, None, SKIPPED, "image: missing"),  # a JPEG by its bytes: data.image may name the extension
    *(Row(key) for key in "fghijk"),
]
TWO = [*sample("a"), *sample("b")]
PLAIN = [Row("a"), Row("b")]

ODDITIES = [
    Oddity("sparse, old GNU", "filled up with zeros", sparse("--format=gnu"), SPARSE_ROWS),
    *(
        Oddity(
            f"sparse, pax {version}", "filled up with zeros", sparse("--format=pax", f"--sparse-version={version}"),
            SPARSE_ROWS,
        )
        for version in ("0.0", "0.1", "1.0")
    ),
    Oddity(
        "sparse, damaged map", "the sample is skipped: `image: a damaged sparse file`",
        lambda _: with_pax({"GNU.sparse.size": "9", "GNU.sparse.map": "7,99", "GNU.sparse.name": "b.png"}),
        [THREE[0], Row("b", None, None, SKIPPED, "image: a damaged sparse file"), THREE[2]],
    ),
    Oddity(
        "hard links", "they hold what the earlier member holds", hard_links,
        [Row("a", HOLED), Row("b", HOLED), Row("c", HOLED)],
    ),
    Oddity("hard links to another block", "the index knows where they lead", far_links, FAR_ROWS),
    Oddity(
        "gzipped, hard links", "within the last 64 MiB; farther ones are `a link or device`",
        lambda folder: gzip.compress(far_links(folder), 1), FAR_ROWS,
    ),
    Oddity(
        "symbolic links and devices", "the sample is skipped: `image: a link or device`", symbolic,
        [THREE[0], Row("b", None, None, SKIPPED, "image: a link or device")],
    ),
    Oddity(
        "names with a leading ./", "the key has none, also in columns and in the downloader's parquet",
        lambda _: pack(*sample("./a"), *sample(".//././d/b")), [Row("a"), Row("d/b")],
    ),
    Oddity(
        "a member a.__key__", "webdataset's own metadata: it is no member",
        lambda _: pack(("a.__key__", b"other"), *sample("a"), ("__meta__/b.png", b"image")), [Row("a")],
    ),
    Oddity(
        "dots in names (22.05.png)", "the key ends at the first dot: one sample, `image: missing`; the shard says so",
        lambda _: pack(*(m for n in range(5, 9) for m in sample(f"22.{n:02d}"))),
        [Row("22", None, None, SKIPPED, "image: missing")], "image: most samples have none that data.image names",
    ),
    Oddity(
        "images of unknown extensions", "`image: missing`; row and shard name the extensions",
        lambda _: pack(("a.xyz", b"image"), ("a.txt", b"text"), ("b.xyz", b"image"), *sample("c")),
        [
            Row("a", None, "text", SKIPPED, "image: missing"), Row("b", None, None, SKIPPED, "image: missing"),
            Row("c"),
        ],
        "image: most samples have none that data.image names",
    ),
    Oddity(
        "images that nobody reads (HEIC, JPEG XL, SVG)", "the sample is skipped: `image: not an image`",
        lambda _: pack(("a.heic", b"\0\0\0\x18ftypheic" + bytes(99)), ("b.jxl", b"\xff\x0a" + bytes(9)),
                       ("c.svg", b"<svg/>"), ("d.svgz", b"\x1f\x8b"), ("e.HEIC", b"\xff\xd8\xff"), *sample("f"),
                       *sample("g"), *sample("h"), *sample("i"), *sample("j"), *sample("k"), ("k.svg", b"<svg/>")),
        UNREAD,
    ),
    Oddity(
        "text with a byte order mark", "the mark is no part of the text",
        lambda _: pack(*sample("a", text=b"\xef\xbb\xbftext")), [Row("a")],
    ),
    Oddity(
        "text in UTF-16", "converted, with or without a mark; the row notes it",
        lambda _: pack(*(m for i, t in enumerate(("\ufefft\xe4xt", "t\xe4xt")) for e in ("le", "be")
                         for m in sample(f"{i}{e}", text=t.encode(f"utf-16-{e}")))),
        [Row(f"{i}{e}", text="t\xe4xt", reason="text: UTF-16 (converted)") for i in range(2) for e in ("le", "be")],
    ),
    Oddity(
        "text that is not UTF-8", "kept with replacement characters; the row notes it",
        lambda _: pack(*sample("a", text=b"caf\xe9")),
        [Row("a", text="caf\ufffd", reason="text: not UTF-8 (kept as replaced)")],
    ),
    Oddity(
        "a key that comes back", "`key: duplicate`, or `key: split` where it brings other members", far_duplicates,
        DUPLICATE_ROWS,
    ),
    Oddity(
        "names of more than 4,096 bytes", "the member is left out, the shard says so",
        lambda _: pack(*sample("a"), ("x/" * 2100 + "y.png", b"image"), *sample("b")), PLAIN, "tar: header too large",
    ),
    Oddity(
        "pax headers of more than 20,000 records or 1 MiB", "the member is left out, the shard says so",
        lambda _: with_pax({f"k{i}": "" for i in range(20_001)}), LEFT_OUT, "tar: header too large",
    ),
    Oddity(
        "members of more than 256 MiB", "the sample is skipped: `image: larger than 256 MiB`", large_claim,
        [THREE[0], Row("b", None, None, SKIPPED, "image: larger than 256 MiB"), THREE[2]],
    ),
    Oddity("garbage between members", "read on at the next good header; the shard says so", garbage,
           [Row("a"), Row("b", None, "text", SKIPPED, "image: missing"), Row("c")], "tar: garbage header"),
    Oddity(
        "a tar that is cut off", "its samples up to there; the shard says so",
        lambda _: pack(*sample("a"), *sample("b"), *sample("c"))[: 4 * 1024 + 514], PLAIN,
        "tar: ends in the middle of a member",
    ),
    Oddity("no end of archive", "all samples; the shard says so", lambda _: pack(*TWO)[: 4 * 1024], PLAIN,
           "tar: no end of archive"),
    Oddity("gzipped tars", "read by map jobs and streams; a training index refuses them",
           lambda _: gzip.compress(pack(*TWO)), PLAIN),
    Oddity("gzipped and cut off", "its samples up to there; the shard says so",
           lambda _: gzip.compress(pack(*TWO, ("c.png", os.urandom(4000))))[:-1000], PLAIN,
           "tar: gzip ends early or is damaged"),
    Oddity("two tars in one file", "the first is read; the shard says so", lambda _: pack(*TWO) * 2, PLAIN,
           "tar: data after the end of the archive"),
    Oddity("a file that is no tar", "no samples; the shard says what it looks like", lambda _: b"<html>" * 1000, [],
           "tar: not a tar"),
    Oddity("an empty file", "no samples; the shard says so", lambda _: b"", [], "tar: zero bytes"),
]  # fmt: skip
