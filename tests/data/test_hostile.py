"""Hostile tars take time in proportion to their size, and memory within limits."""

from __future__ import annotations

import gzip
import io
import queue
import tarfile
import time
from collections.abc import Callable
from typing import Any

import pytest

from hpc.map import reader
from hpc.operator import Damage, Item
from recap.data import archive, tars, unindexed
from recap.data.joined import Joined
from recap.data.tars import Sample, read_samples, split_name
from tests.data.oddities import pack, with_pax


def seconds(work: Callable[..., Any]) -> float:
    """CPU time of the quickest of three."""
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def raw_member(name: bytes, kind: bytes, data: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(data)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[:100] = name[:100].ljust(100, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def long_name(size: int) -> bytes:
    return raw_member(b"././@LongLink", tarfile.GNUTYPE_LONGNAME, b"/" * size + b"\0") + pack(("a.png", b"1"))


def pax_records(size: int) -> bytes:
    return raw_member(b"p", tarfile.XHDTYPE, b"5 a=\n" * (size // 5)) + pack(("a.png", b"1"))


def long_number(size: int) -> bytes:
    record = b"path=" + b"1" * size
    return raw_member(b"p", tarfile.XHDTYPE, b"9" * size + b" " + record + b"\n") + pack(("a.png", b"1"))


def extensions(size: int) -> bytes:
    """One sample of very many members."""
    return pack(*((f"a.{number}", b"") for number in range(size // 500)), format=tarfile.USTAR_FORMAT)


def links(size: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(size // 1000):
            info = tarfile.TarInfo(f"{number}.png")
            tar.addfile(info)
            info = tarfile.TarInfo(f"{number}.txt")
            info.type, info.linkname = tarfile.LNKTYPE, f"{number}.png"
            tar.addfile(info)
    return buffer.getvalue()


def sparse_pieces(size: int) -> bytes:
    return with_pax(
        {"GNU.sparse.size": "5", "GNU.sparse.map": "0,0," * (size // 4) + "0,5", "GNU.sparse.name": "b.png"}
    )


@pytest.mark.parametrize("make", [long_name, pax_records, long_number, extensions, links, sparse_pieces])
def test_time_grows_as_the_size_does(make: Callable[[int], bytes]) -> None:
    """Eight times the bytes take eight times as long, where a quadratic step would take 64 times."""
    small, large = make(60_000), make(480_000)
    times = [seconds(lambda data=data: list(read_samples(io.BytesIO(data)))) for data in (small, large)]
    assert times[1] < 24 * max(times[0], 0.001)


@pytest.mark.parametrize("letter", "/._a")
def test_splitting_a_name_is_linear(letter: str) -> None:
    times = [seconds(lambda n=n: split_name(letter * n + ".a")) for n in (100_000, 800_000)]
    assert times[1] < 24 * max(times[0], 0.0005)


def test_a_name_of_slashes_hides_one_member(monkeypatch: pytest.MonkeyPatch) -> None:
    *samples, damage = read_samples(io.BytesIO(long_name(400_000)))
    assert samples == []
    assert isinstance(damage, Damage) and damage.reason == "tar: header too large"


def read(data: bytes) -> list[Sample | Damage]:
    return list(read_samples(io.BytesIO(data)))


@pytest.mark.parametrize("packed", [False, True])
def test_the_largest_members_of_a_large_sample_are_left_out(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    monkeypatch.setattr(tars, "LARGEST_SAMPLE", 10_000)
    members = [("a.png", b"1" * 3000), ("a.mp4", b"2" * 9000), ("a.txt", b"3"), ("a.wav", b"4" * 6000), ("b.png", b"5")]
    data = pack(*members)
    a, b = read(gzip.compress(data) if packed else data)
    assert isinstance(a, Sample) and isinstance(b, Sample)
    assert {e: len(d) for e, d in a.members.items()} == {"png": 3000, "txt": 1, "wav": 6000}
    assert a.odd == {"mp4": "left out of a sample larger than 0 MiB"}
    assert b.members == {"png": b"5"}


def test_a_gzip_bomb_is_stepped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MiB in 32 KiB: nothing of it is held."""
    import tracemalloc

    monkeypatch.setattr(archive, "LARGEST_MEMBER", 1 << 20)
    data = gzip.compress(pack(("a.png", bytes(32 << 20)), ("b.png", b"image")), 9)
    assert len(data) < 100_000
    tracemalloc.start()
    found = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = [s for s in found if isinstance(s, Sample)]
    assert len(kept) == len(found)
    assert [s.odd or s.members for s in kept] == [{"png": "larger than 1 MiB"}, {"png": b"image"}]
    assert peak < 16 << 20


def test_the_keys_of_a_tar_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MOST_NAMES", 50_000)
    *samples, damage = read(pack(*((f"{n:06d}.png", b"1") for n in range(1000))))
    assert isinstance(damage, Damage) and damage.reason == "tar: too many samples"
    assert 300 < len(samples) < 500


def test_a_link_beyond_the_window_of_a_packed_tar_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_WINDOW", 20_000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in ("a", "b", "c"):
            info = tarfile.TarInfo(f"{key}.png")
            info.size = 9000
            tar.addfile(info, io.BytesIO(key.encode() * 9000))
        for key, target in (("x", "a"), ("y", "c")):
            info = tarfile.TarInfo(f"{key}.png")
            info.type, info.linkname = tarfile.LNKTYPE, f"{target}.png"
            tar.addfile(info)
    x, y = read(gzip.compress(buffer.getvalue()))[3:]
    assert isinstance(x, Sample) and isinstance(y, Sample)
    assert (x.members, x.odd) == ({}, {"png": archive.UNREADABLE_LINK})
    assert y.members == {"png": b"c" * 9000}


def test_what_is_read_ahead_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_AHEAD_BYTES", 1000)
    ahead = reader.ReadAhead(reader.READ_AHEAD)
    task: Any = None
    for number in range(2):  # below the limit, then over it by one item
        ahead.put((task, Item("s", number, "k", size=900)))
    with pytest.raises(queue.Full):
        ahead.put((task, Item("s", 2, "k", size=1)), block=False)
    assert ahead.get()[1].index == 0  # type: ignore[union-attr]
    ahead.put((task, Item("s", 2, "k", size=1)), block=False)
    assert [ahead.get()[1].index for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    with pytest.raises(queue.Empty):
        ahead.get(block=False)


def test_what_the_stream_shuffles_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unindexed, "_POOL_BYTES", 1000)
    held: list[int] = []

    def source() -> Any:
        for number in range(50):
            held.append(number)
            yield Joined("", str(number), {"png": bytes(300)}, {})

    drawn = []
    for sample in unindexed._shuffled(source(), 4096, unindexed.random.Random(0)):
        drawn.append(int(sample.key))
        assert len(held) - len(drawn) <= 4
    assert sorted(drawn) == list(range(50))
    assert drawn != sorted(drawn)
