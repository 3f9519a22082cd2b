"""What claims save of a shard that is not finished: whatever is torn, late or written at the same time, no sample is
lost that was told of, none is there twice, none is replaced.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.map.shard_task import ShardTask, good_of
from hpc.operator import Row, Shard
from hpc.run import column
from hpc.run.segments import Rows, Segments, Writer

SCHEMA = column.schema(column.Column("c", [("text", pa.string())]), "id")
SEGMENT = 4


def table(first: int, count: int, by: str, status: str = "ok") -> pa.Table:
    rows = [Row("a", i, f"k{i}", status, values={"text": by}) for i in range(first, first + count)]
    return column.to_table(rows, SCHEMA)


def texts_of(rows: Rows) -> dict[int, str]:
    return {f + i: text for f, t in rows.tables().items() for i, text in enumerate(t["text"].to_pylist())}


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "segments").mkdir()
    return Segments(tmp_path / "segments" / "id" / "00f" / "a.g0")


def owner(segments: Segments, epoch: int) -> Writer:
    """Who begins this epoch now."""
    rows, found = segments.read(SCHEMA, epoch)
    made = Writer(segments.path(epoch), found)
    if rows.tables():
        made.append([], sync=False)
    return made


def seen(segments: Segments, epoch: int | None = None) -> dict[int, str]:
    return texts_of(segments.read(SCHEMA, epoch)[0])


def span(first: int, stop: int, by: str) -> dict[int, str]:
    return dict.fromkeys(range(first, stop), by)


# --- one file ---------------------------------------------------------------------------------


def test_a_torn_last_frame_costs_that_frame_alone(segments: Segments) -> None:
    """Cut anywhere, and with another byte anywhere: what is before stays, nothing half is taken."""
    writer = owner(segments, 0)
    writer.append([(0, table(0, 4, "first"))])
    path = segments.path(0)
    whole = path.stat().st_size
    writer.append([(4, table(4, 4, "second"))])
    second = path.stat().st_size
    writer.append([(12, table(12, 2, "third"))])
    data = path.read_bytes()
    assert seen(segments) == span(0, 4, "first") | span(4, 8, "second") | span(12, 14, "third")
    for cut in [*range(whole, whole + 60), *range(whole + 60, len(data), 97), second - 1, second, len(data) - 1]:
        expected = span(0, 4, "first") | (span(4, 8, "second") if cut >= second else {})
        damaged = bytearray(data)
        damaged[cut] ^= 0x55
        for content in (data[:cut], damaged):
            path.write_bytes(content)
            assert seen(segments) == expected
    path.write_bytes(data[:10])
    assert seen(segments) == {}


def test_a_write_that_failed_is_written_over(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = owner(segments, 0)
    writer.append([(0, table(0, 4, "first"))])
    real = os.pwrite

    def full(fd: int, data: bytes, at: int) -> int:
        real(fd, data[:20], at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            writer.append([(4, table(4, 4, "lost"))])
    assert seen(segments) == span(0, 4, "first")
    writer.append([(4, table(4, 4, "second"))])
    assert seen(segments) == span(0, 4, "first") | span(4, 8, "second")


def test_the_file_of_a_claim_is_made_once(segments: Segments) -> None:
    owner(segments, 0).append([(0, table(0, 4, "first"))])
    with pytest.raises(FileExistsError):
        Writer(segments.path(0), []).append([(0, table(0, 4, "another process"))])
    assert seen(segments) == span(0, 4, "first")


def test_a_reader_beside_a_writer_sees_whole_frames(segments: Segments) -> None:
    """A zombie appends while successors read, again and again: always a beginning of what it writes."""
    zombie = owner(segments, 0)
    counts: list[int] = []

    def read() -> None:
        while not counts or counts[-1] < 400:
            found = seen(segments, 1)
            assert found == span(0, len(found), "zombie") and len(found) % SEGMENT == 0
            counts.append(len(found))

    reader = threading.Thread(target=read)
    reader.start()
    for first in range(0, 400, SEGMENT):
        zombie.append([(first, table(first, SEGMENT, "zombie"))], sync=False)
    reader.join(60)
    assert counts[-1] == 400 and counts == sorted(counts)


# --- several claims ---------------------------------------------------------------------------


def test_what_comes_late_adds_and_never_replaces(segments: Segments) -> None:
    zombie = owner(segments, 0)
    zombie.append([(0, table(0, 4, "zombie, in time"))])
    successor = owner(segments, 1)
    successor.append([(4, table(4, 8, "successor"))])
    zombie.append([(4, table(4, 4, "zombie, late")), (12, table(12, 4, "zombie, late"))])
    mine = span(0, 4, "zombie, in time") | span(4, 12, "successor")
    assert seen(segments, 1) == mine, "its publisher sees what it has seen and done itself"
    assert seen(segments, 2) == mine | span(12, 16, "zombie, late"), "to the next owner it adds"
    third = owner(segments, 2)
    zombie.append([(16, table(16, 4, "zombie, later"))])
    successor.append([(12, table(12, 8, "successor, late"))])
    assert seen(segments, 2) == mine | span(12, 16, "zombie, late")
    third.append([(16, table(16, 4, "third"))])
    assert seen(segments, 2) == seen(segments, 3) == mine | span(12, 16, "zombie, late") | span(16, 20, "third")


def test_two_owners_with_other_frames(segments: Segments) -> None:
    """7 samples a frame here, 4 there, with gaps: each sample once, by who was first."""
    owner(segments, 0).append([(0, table(0, 7, "sevens")), (14, table(14, 7, "sevens"))])
    fours = owner(segments, 1)
    fours.append([(8, table(8, 4, "fours")), (4, table(4, 4, "fours")), (12, table(12, 4, "fours"))])
    expected = span(0, 7, "sevens") | span(7, 14, "fours") | span(14, 21, "sevens")
    assert seen(segments, 1) == seen(segments) == expected
    rows, _ = segments.read(SCHEMA)
    assert rows.complete(21) and not rows.complete(20) and rows.keys() == [f"k{i}" for i in range(21)]


def test_an_owner_that_saved_nothing_leaves_all_to_the_next(segments: Segments) -> None:
    owner(segments, 0).append([(0, table(0, 4, "first"))])
    owner(segments, 1)
    owner(segments, 2).append([(4, table(4, 4, "third"))])
    assert seen(segments, 3) == span(0, 4, "first") | span(4, 8, "third")


def test_a_frame_that_a_file_server_lost_is_missing_and_not_mistaken(segments: Segments) -> None:
    """The successor has read what was not on storage yet: it is done again, by the one after."""
    first = owner(segments, 0)
    first.append([(0, table(0, 4, "first"))])
    kept = segments.path(0).stat().st_size
    first.append([(4, table(4, 4, "lost"))], sync=False)
    owner(segments, 1).append([(8, table(8, 4, "second"))])
    os.truncate(segments.path(0), kept)
    rows, _ = segments.read(SCHEMA, 1)
    assert not rows.complete(12) and texts_of(rows) == span(0, 4, "first") | span(8, 12, "second")
    owner(segments, 2).append([(4, table(4, 4, "third"))])
    assert segments.read(SCHEMA, 2)[0].complete(12)


def test_samples_of_another_input_count_no_more(segments: Segments) -> None:
    zombie = owner(segments, 0)
    zombie.append([(0, table(0, 4, "old input"))])
    finds = owner(segments, 1)
    finds.append([(4, table(4, 4, "old input"))])
    finds.void()
    assert seen(segments, 2) == {}
    third = owner(segments, 2)
    third.append([(0, table(0, 4, "new input"))])
    assert seen(segments, 2) == seen(segments, 3) == span(0, 4, "new input")


def test_all_files_go_with_the_finished_shard_and_no_others(segments: Segments) -> None:
    beside = [Segments(segments.path(0).parent / name) for name in ("a.g1", "b.g0", "a.g0.e1.g0")]
    for made in (segments, *beside):
        for epoch in (0, 1):
            owner(made, epoch).append([(0, table(0, 4, "x"))])
    segments.remove()
    assert seen(segments) == {} and all(seen(other) == span(0, 4, "x") for other in beside)


# --- an earlier version's folder --------------------------------------------------------------


def folder_of(segments: Segments) -> Path:
    folder = segments.path(0).parent / "a.g0"
    folder.mkdir(parents=True)
    for first, by in ((0, "old"), (8, "old")):
        pq.write_table(table(first, 4, by), folder / f"{first:08d}-{first + 4:08d}.parquet")
    return folder


def task(segments: Segments, epoch: int, **facts: Any) -> ShardTask:
    made: dict[str, Any] = dict(suspects=set(), quarantine=set(), apart=False, segment=SEGMENT, save_s=0.0) | facts
    return ShardTask(Shard("a", "a", 1), 0, epoch, segments=segments, schema=SCHEMA, **made)


def test_a_folder_of_an_earlier_version_is_adopted(segments: Segments) -> None:
    folder = folder_of(segments)
    (folder / "00000004-00000008.parquet").write_bytes(b"torn")
    first = task(segments, 1)
    assert first.load_saved([]) == [(0, {"ok": 4}), (8, {"ok": 4})] and len(first.saved) == 8
    assert seen(segments, 1) == span(0, 4, "old") | span(8, 12, "old")
    pq.write_table(table(4, 4, "old, late"), folder / "00000004-00000008.parquet")  # its owner still lives
    assert seen(segments, 1) == span(0, 4, "old") | span(8, 12, "old"), "no more than the owner has seen"
    assert len(task(segments, 2).load_saved([])) == 3
    segments.remove()
    assert not folder.exists() and seen(segments) == {}


def test_a_folder_of_another_input_is_not_adopted_again(segments: Segments) -> None:
    folder_of(segments)
    first = task(segments, 1)
    first.load_saved([])
    first.discard()
    assert task(segments, 2).load_saved([]) == []


# --- a rerun of samples -----------------------------------------------------------------------


def test_good_samples_of_the_generation_before(segments: Segments) -> None:
    """They come first from this generation's own files, then from the one before: bad ones are left out."""
    before = [(0, table(0, 4, "before")), (4, table(4, 2, "bad", "failed")), (6, table(6, 3, "before", "skipped"))]
    owner(segments, 0).append([(2, table(2, 3, "this one"))])
    first = task(segments, 1)
    assert first.load_saved(good_of(before)) == [(0, {"ok": 4}), (4, {"ok": 1, "skipped": 2}), (8, {"skipped": 1})]
    assert seen(segments, 1) == span(0, 2, "before") | span(2, 5, "this one") | span(6, 9, "before")


# --- when it is saved -------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("hpc.map.shard_task.time.monotonic", lambda: now[0])
    return now


def finish(made: ShardTask, *indices: int) -> None:
    for i in indices:
        made.add(Row("a", i, f"k{i}", values={"text": "x"}))


def test_whole_blocks_are_saved_every_save_s(segments: Segments, clock: list[float]) -> None:
    made = task(segments, 0, save_s=30.0)
    assert made.load_saved([]) == []
    finish(made, 0, 1, 2, 3, 4)
    clock[0] += 29
    assert not made.due()
    clock[0] += 1
    assert made.due() and made.save() == [(0, {"ok": 4})] and not made.due()
    assert seen(segments) == span(0, 4, "x")
    clock[0] += 100
    assert not made.due(), "there is no complete block"
    finish(made, 5, 6, 7, 9)
    assert made.due() and made.save() == [(4, {"ok": 4})]
    finish(made, 8)
    assert made.save(all_finished=True) == [(8, {"ok": 2})]
    finish(made, 10, 11)
    assert made.save() == [(8, {"ok": 2})], "a block in two parts is named in two parts"
    assert seen(segments) == span(0, 12, "x")


def test_a_successor_saves_its_first_block_at_once(segments: Segments, clock: list[float]) -> None:
    """Otherwise a shard whose engines die every twenty seconds would get nowhere."""
    made = task(segments, 1, save_s=30.0)
    made.load_saved([])
    finish(made, *range(4))
    assert made.due() and made.save()
    finish(made, *range(4, 8))
    assert not made.due()


def test_much_is_saved_before_its_time(segments: Segments, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc.map.shard_task.ASIDE_BYTES", 10)
    made = task(segments, 0, save_s=30.0)
    made.load_saved([])
    finish(made, *range(4))
    assert made.due()
