"""The tar reader against webdataset's own on intact archives, and on archives that are not."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from hpc.operator import Damage
from recap.data import archive
from recap.data.tars import Sample, read_samples, split_name

BLOCK = 512


def pack(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def simple(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    return [(f"{i:04d}.{e}", bytes([i % 256]) * size) for i in range(count) for e in ("jpg", "txt")]


def read(data: bytes) -> tuple[list[Sample], Damage | None]:
    found = list(read_samples(io.BytesIO(data)))
    samples = [f for f in found if isinstance(f, Sample)]
    damage = [f for f in found if isinstance(f, Damage)]
    assert found == samples + damage and len(damage) < 2, "damage comes last"
    return samples, next(iter(damage), None)


def by_webdataset(path: Path) -> list[tuple[str, dict[str, Any]]]:
    made = []
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        made.append((sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}))
    return made


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("zipped", [False, True])
def test_agrees_with_webdataset_on_intact_tars(tmp_path: Path, format: int, zipped: bool) -> None:
    chance = random.Random(f"{format} {zipped}")
    stems = ["a", "folder/b", "v1.0/c", "x" * 90, "__not_meta", "with space", "ending."]
    if format != tarfile.USTAR_FORMAT:  # which cannot say these
        stems += ["ключ/图", "new\nline", "y" * 200, "../../etc/passwd", "z" * 120 + "/" + "z" * 120]
    members = []
    for number, stem in enumerate(stems):
        for extension in chance.sample(["jpg", "TXT", "json", "seg.png", "cls"], 3):
            members.append((f"{stem}{number}.{extension}", chance.randbytes(chance.randrange(3000))))
    members += [("no_extension", b"x"), ("__meta__", b"x"), ("__meta__/info.json", b"x"), ("last.jpg", b"")]
    data = pack(members, format)
    path = tmp_path / "shard.tar"
    path.write_bytes(gzip.compress(data) if zipped else data)
    samples, damage = read(path.read_bytes())
    assert damage is None
    assert [(s.key, s.members) for s in samples] == by_webdataset(path)
    assert not any(s.problems or s.odd for s in samples)


def test_names_follow_webdataset() -> None:
    assert split_name("a/b.c.JPG") == ("a/b", "c.jpg")
    assert split_name("v1.0/b.jpg") == ("v1.0/b", "jpg")
    for name in ("noext", "__key__", "__meta__/a.jpg", ".hidden", "a/.hidden.jpg"):
        assert split_name(name) == ("", ""), name


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 1025, 5000])
def test_every_whole_sample_before_a_cut_is_read(cut: int) -> None:
    """And the damage is told; webdataset's reader raises at some cuts and ends in silence at others."""
    data = pack(simple(10))
    samples, damage = read(data[:cut])
    assert damage is not None
    assert damage.reason.startswith("tar: ")
    whole = simple(10)
    read_members = [(f"{s.key}.{e}", d) for s in samples for e, d in s.members.items()]
    assert read_members == whole[: len(read_members)]
    assert len(read_members) == cut // 1536  # a header and two blocks each


@pytest.mark.parametrize("seed", range(30))
def test_random_cuts_and_flips_never_crash(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(pack(simple(6), chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))
    for _ in range(chance.randrange(1, 60)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    samples, _ = read(bytes(data[: chance.randrange(len(data))]))
    assert len(samples) <= 12


def test_reads_on_after_a_garbage_header() -> None:
    data = bytearray(pack(simple(10)))
    data[3 * 1536 : 3 * 1536 + BLOCK] = b"\xa5" * BLOCK  # the header of 0001.txt
    samples, damage = read(bytes(data))
    assert [s.key for s in samples] == [f"{i:04d}" for i in range(10)]
    assert set(samples[1].members) == {"jpg"}
    assert damage == Damage("tar: garbage header", "at byte 4,608; read on after 1,536 bytes")


def test_two_garbage_headers_and_one_without_an_end() -> None:
    data = bytearray(pack(simple(10)))
    for at in (2, 8):
        data[at * 1536 : at * 1536 + BLOCK] = b"\xa5" * BLOCK
    samples, damage = read(bytes(data[: 15 * 1536]))
    assert len(samples) == 8
    assert damage is not None
    assert damage.detail.endswith("; 2 more places are damaged")


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "tar: zero bytes", "the file is empty"),
        (b"PK\3\4" + bytes(2000), "tar: not a tar", "the file looks like zip"),
        (b"<html>404</html>" * 100, "tar: not a tar", "the file looks like HTML or XML"),
        (b"<html>404</html>", "tar: not a tar", "the file looks like HTML or XML"),
        (pack(simple(2)) + pack(simple(2)), "tar: data after the end of the archive", "the end mark is at byte 6,144"),
        (pack(simple(2))[: 4 * 1536], "tar: no end of archive", None),
        (gzip.compress(pack(simple(2)), mtime=0)[:80], "tar: gzip ends early or is damaged", None),
    ],
)
def test_reasons(data: bytes, reason: str, detail: str | None) -> None:
    _, damage = read(data)
    assert damage is not None
    assert damage.reason == reason
    assert detail is None or damage.detail == detail


def test_an_empty_tar_is_whole() -> None:
    assert read(pack([])) == ([], None)


def test_split_and_duplicate_keys() -> None:
    samples, damage = read(
        pack([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3"), ("b.jpg", b"4"), ("c.jpg", b"5"), ("c.jpg", b"6")])
    )
    assert damage is None
    assert [(s.key, s.problems) for s in samples] == [
        ("a", []), ("b", []), ("a", ["key: split"]), ("b", ["key: duplicate"]), ("c", []), ("c", ["key: duplicate"]),
    ]  # fmt: skip


def test_links_devices_and_huge_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_MEMBER", 5000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, size in (("d.jpg", 5001), ("e.jpg", 5000)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    samples, damage = read(buffer.getvalue())
    assert damage is None
    assert [(s.key, s.odd, len(s.members)) for s in samples] == [
        *[(key, {"jpg": "a link or device"}, 0) for key in "abc"],
        ("d", {"jpg": "larger than 0 MiB"}, 0),
        ("e", {}, 1),
    ]


def test_names_that_are_not_utf8_become_text() -> None:
    data = pack([("caf\udce9.jpg", b"1")], tarfile.GNU_FORMAT)
    samples, _ = read(data)
    assert samples[0].key == "caf\\xe9"
