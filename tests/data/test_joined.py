"""Joined reading: tars and columns by key, equal for any number of ranks, from disk and from an object store."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from hpc.base.errors import UserError
from hpc.config import ClusterConfig
from hpc.gang import rank as gang
from hpc.operator import Damage, Shard
from recap.data import joined
from recap.data.column import ColumnConfig
from recap.data.columns import open_column
from recap.data.index import Index, scan_shard
from recap.data.index_job import collect
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Joined, Reader
from recap.data.kinds import tar as tar_kind
from recap.data.memory import rank_memory
from recap.data.remote import fetch
from recap.data.samples import JoinedDataConfig, check_columns, check_memory, describe_reading, shared_input
from recap.data.streams import StreamPlan
from recap.data.tars import read_samples
from recap.worlds.tars import write_tar
from tests.data.corpus import build, keys, write_column

COUNTS = (1100, 600, 512, 30, 800)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    build(folder, COUNTS)
    write_column(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def shards(corpus) -> list[Shard]:
    return list_shards(DataConfig(shards=[str(corpus / "tars")]))


def reader_of(corpus: Path, shards: list[Shard], streams: int = 12, window: int = 3, seed: int = 0) -> Reader:
    columns = {
        "org_caption": open_column("org_caption", ColumnConfig(member="txt")),
        "re_caption": open_column("re_caption", ColumnConfig(folder=str(corpus / "recap"), field="caption")),
    }
    return Reader(StreamPlan(Index.open_or_make(None, shards), seed, streams, window), columns)


def usable(slot) -> Joined:
    return next(s for s in slot.candidates() if s.columns["re_caption"] is not None)


@pytest.mark.slow
def test_the_same_samples_for_one_to_four_ranks(corpus, shards) -> None:
    """A batch holds the same samples however many ranks read it, and wherever reading begins."""
    whole = reader_of(corpus, shards)
    batches = [[usable(s).name for s in whole.batch(k * 240, 240)] for k in range(16)]  # past the first epoch
    assert whole.plan.epoch_size < 16 * 240
    for world in (2, 3, 4):
        ranks = [reader_of(corpus, shards) for _ in range(world)]
        for k in (3, 4, 14, 15):  # a resume in the middle, elastic in ranks
            got = [usable(s).name for rank in range(world) for s in ranks[rank].batch(k * 240, 240, rank, world)]
            assert got == batches[k]


def test_columns_are_joined_by_key_and_unusable_samples_replaced(corpus, shards) -> None:
    reader = reader_of(corpus, shards)
    slots = reader.batch(0, reader.plan.epoch_size)
    own = [next(slot.candidates()) for slot in slots]
    assert len({s.name for s in own}) == reader.plan.epoch_size
    for sample in own:
        assert sample.columns["org_caption"] == f"alt {sample.key}"
        assert sample.columns["re_caption"] in (f"recap {sample.key}", None)
    bad = [i for i, s in enumerate(own) if s.columns["re_caption"] is None]
    assert 20 < len(bad) < 45  # every 97th
    replaced = [usable(slots[i]) for i in bad]
    assert all(s.columns["re_caption"] for s in replaced)
    assert len({s.name for s in replaced}) > len(bad) // 2  # drawn, not always the same
    window_blocks = [
        {reader.plan.index.shard(reader.plan.index.shard_of(p.block)).id for p in slots[i].window.pieces} for i in bad
    ]
    assert all(s.shard in blocks for s, blocks in zip(replaced, window_blocks, strict=True))


def test_a_corpus_without_a_usable_sample_says_so(corpus, shards) -> None:
    slot = reader_of(corpus, shards).batch(0, 12)[0]
    with pytest.raises(UserError, match="cannot be used, nor 64 others"):
        for _ in slot.candidates():
            pass


def test_columns_of_a_run_are_read_through_its_markers(corpus, shards, tmp_path) -> None:
    """A real run of the launcher, joined; and the index as a map job, equal to the one made on first use."""
    config = {
        "operator": "tests.data.shout.Shout", "data": {"shards": [str(corpus / "tars")]}, "cluster": "local",
        "runs": str(tmp_path), "name": "shout", "map": {"lease_s": 2},
    }  # fmt: skip
    (tmp_path / "shout.yaml").write_text(yaml.safe_dump(config))
    config |= {"operator": "recap.data.index_job.IndexOperator", "name": "index"}
    (tmp_path / "index.yaml").write_text(yaml.safe_dump(config))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # for this test's operator
    for name in ("shout", "index"):
        done = subprocess.run(
            [sys.executable, "-m", "hpc.launch", str(tmp_path / f"{name}.yaml")],
            capture_output=True,
            text=True,
            env=env,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    index = collect(tmp_path / "index")
    index.check(shards)
    scanned = Index.open_or_make(None, shards)
    assert [index.block(i) for i in range(len(index))] == [scanned.block(i) for i in range(len(scanned))]
    column = open_column("re_caption", ColumnConfig(run=str(tmp_path / "shout")))
    column.check(shards)
    sample = usable(Reader(StreamPlan(index, 0, 4), {"re_caption": column}).batch(0, 4)[0])
    assert sample.columns["re_caption"] == f"ALT {sample.key}!"
    with pytest.raises(UserError, match=r"is of identity .*, not 00000000"):
        open_column("re_caption", ColumnConfig(run=str(tmp_path / "shout"), identity="00000000"))
    with pytest.raises(UserError, match="lacks 1 of 6 shards"):
        column.check([*shards, Shard("99999", str(corpus / "tars/99999.tar"), 1)])


# --- what does not fit together ---------------------------------------------------------------------


def test_columns_that_do_not_belong_to_the_tars_are_refused(corpus, shards, tmp_path) -> None:
    def read(name: str, **settings) -> None:
        column = open_column("re_caption", ColumnConfig(folder=str(tmp_path / name), field="caption", **settings))
        column.check(shards)
        Reader(StreamPlan(Index.open_or_make(None, shards), 0, 4), {"re_caption": column}).batch(0, 2048)

    write_column(tmp_path, COUNTS[:3], "short")
    with pytest.raises(UserError, match=r"lacks 2 of 5 shards \(first: 00003\)"):
        read("short")
    read("short", missing="null")
    write_column(tmp_path, COUNTS, "mixed")
    write_column(tmp_path, COUNTS[:1], "mixed", identity="44f0a9b1")
    with pytest.raises(UserError, match=r"is of identity .*, not .*: another prompt"):
        read("mixed")
    with pytest.raises(UserError, match=r"no field 'caption'|does not exist"):
        read("nowhere")
    others = write_column(tmp_path, COUNTS, "others")
    (others / "00001.parquet").replace(others / "00000.parquet")
    with pytest.raises(UserError, match="key 00001000000 is not among the tar's"):
        read("others", missing="null")


def test_a_tar_that_changed_is_refused(tmp_path) -> None:
    shards = build(tmp_path, (600, 40))
    index = Index.open_or_make(tmp_path / "blocks.index", shards)
    with (tmp_path / "tars" / "00001.tar").open("wb") as file:
        write_tar(file, [(key, {"jpg": b"x", "txt": b"y"}) for key in keys(7, 40)])
    changed = list_shards(DataConfig(shards=[str(tmp_path / "tars")]))
    with pytest.raises(UserError, match=r"1 shards changed since .*blocks.index.*00001"):
        Index.open_or_make(tmp_path / "blocks.index", changed)
    with pytest.raises(UserError, match="the index says 40 from 00001000000 on"):
        Reader(StreamPlan(index, 0, 1), {}).batch(0, 640)
    with pytest.raises(UserError, match=r"lacks 1 of 1 shards"):
        Index.open_or_make(tmp_path / "blocks.index", [Shard("other", "x", 1)])


def test_batches_that_do_not_divide_are_refused(corpus, shards) -> None:
    reader = reader_of(corpus, shards)
    with pytest.raises(UserError, match=r"train.batch.*smaller than the 4 ranks"):
        reader.batch(0, 2, 0, 4)
    with pytest.raises(UserError, match=r"12 streams do not divide among 5 ranks. Use 4 ranks"):
        reader.batch(0, 240, 0, 5)
    with pytest.raises(UserError, match=r"250 does not divide among 12 streams. Write 240"):
        reader.batch(0, 250)


@pytest.mark.parametrize("damage", ["whole", "cut in a member", "cut between", "not a tar"])
def test_the_index_groups_samples_as_the_reader_does(tmp_path, damage) -> None:
    build(tmp_path, (1200,))
    tar = tmp_path / "tars" / "00000.tar"
    data = tar.read_bytes()
    cut = {
        "whole": len(data),
        "cut in a member": 512 * (4 * 733 + 1) + 20,
        "cut between": 512 * 4 * 700,
        "not a tar": len(data),
    }[damage]
    tar.write_bytes(data[:cut] if damage != "not a tar" else b"<html>" * 1000)
    shard = list_shards(DataConfig(shards=[str(tar)]))[0]
    found = scan_shard(shard)
    if damage == "not a tar":
        assert (found.first, found.damage and found.damage.reason) == ([], "tar: not a tar")
        return
    with tar.open("rb") as file:
        read = [s.key for s in read_samples(file) if not isinstance(s, Damage)]
    assert found.first == [key for i, key in enumerate(read) if i % 512 == 0]
    assert sum(found.count) == len(read)
    assert bool(found.damage) == (damage != "whole") or damage == "cut between"
    Reader(StreamPlan(Index.open_or_make(None, [shard]), 0, 1), {}).batch(0, len(read))


# --- memory ------------------------------------------------------------------------------------------


def test_a_large_block_is_asked_for_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples, hard links across pieces among them; no request is larger than a piece."""
    build(tmp_path, (600,), image_bytes=3000)
    tar = tmp_path / "tars" / "00000.tar"
    with tarfile.open(tar, "a") as file:
        link = tarfile.TarInfo("zz.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, file.getnames()[-150]
        file.addfile(link)
    index = Index.open_or_make(None, list_shards(DataConfig(shards=[str(tar)])))

    def read() -> dict[str, dict[str, bytes]]:
        reader = Reader(StreamPlan(index, 0, 1), {})
        found = {s.key: dict(s.members) for slot in reader.batch(0, index.samples) for s in slot.samples}
        assert reader.bytes_read >= sum(index.block(i).end - index.block(i).start for i in range(len(index)))
        reader.close()
        return found

    whole, sizes = read(), list[int]()
    assert len(whole) == 601 and whole["zz"]

    def recorded(uri: str, start: int, end: int) -> bytes:
        sizes.append(end - start)
        return fetch(uri, start, end)

    monkeypatch.setattr(tar_kind, "fetch", recorded)
    monkeypatch.setattr(tar_kind, "PIECE", 1 << 16)
    assert read() == whole
    assert max(sizes) == 1 << 16 and len(sizes) > 30


def test_windows_that_the_machine_cannot_hold_are_refused(
    corpus: Path, shards: list[Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read, at launch where there is an index; where there is room for one window, none is read
    ahead.
    """
    free = reader_of(corpus, shards, streams=1, window=2)
    held = [free._bytes(free.plan.window(0, p)) for p in range(0, free.plan.epoch_size, 100)]
    monkeypatch.setattr(joined, "rank_memory", lambda: max(held) / joined._MEMORY)
    tight = reader_of(corpus, shards, streams=1, window=2)
    most, ahead = {free: 0, tight: 0}, {free: 0, tight: 0}
    for first in range(0, free.plan.epoch_size, 100):
        names = []
        for reader in (free, tight):
            if reader is free:
                monkeypatch.setattr(joined, "rank_memory", lambda: 1 << 40)
            else:
                monkeypatch.setattr(joined, "rank_memory", lambda: max(held) / joined._MEMORY)
            names.append([usable(slot).name for slot in reader.batch(first, 100)])
            most[reader] = max(most[reader], sum(h.bytes for h in reader._in_memory()))
            ahead[reader] += len(reader._ahead)
        assert names[0] == names[1]
    assert most[tight] == max(held) < most[free] and ahead[tight] == 0 < ahead[free]
    monkeypatch.setattr(joined, "rank_memory", lambda: min(held) / joined._MEMORY - 1)
    with pytest.raises(UserError, match=r"`data.window`: 1 windows of 2 blocks hold .* Write about 1, use more nodes"):
        reader_of(corpus, shards, streams=1, window=2).batch(0, 100)
    data, index = JoinedDataConfig(shards=[str(corpus / "tars")], streams=1, window=2), tmp_path / "blocks.index"
    check_memory(data, 0, 1, tmp_path, 1)  # no index tells yet
    Index.open_or_make(index, shards)
    for memory in (None, int(held[0] / joined._MEMORY) + 1):
        check_memory(data, 0, 1, tmp_path, memory)
    with pytest.raises(UserError, match=r"`data.window`: 1 windows of 2 blocks hold .* Write about 1, use more nodes"):
        check_memory(data, 0, 1, tmp_path, int(held[0] / joined._MEMORY) - 1)


def test_rank_memory_is_its_part_of_what_slurm_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    assert rank_memory() > 1 << 28
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "100")
    assert rank_memory() == 100 << 20
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert rank_memory() == (100 << 20) // 8
    cluster = ClusterConfig(kind="slurm", gpus_per_node=4)
    for name, value in {"PROCID": "5", "NTASKS": "8", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # so that they are restored
    assert gang._rank_numbers(cluster) == (5, 8, 1) and rank_memory() == (100 << 20) // 4
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gang._rank_numbers(ClusterConfig(kind="local")) and rank_memory() == (100 << 20) // 2


# --- an object store ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_epoch_from_an_object_store_reads_little_more_than_the_data(tmp_path, object_store) -> None:
    """Bytes that the store sent for one epoch, over the bytes of its tars and columns: at most 1.05."""
    counts = [1024] * 24
    build(tmp_path, counts, image_bytes=3000)
    write_column(tmp_path, counts)
    object_store.upload(tmp_path)
    shards = list_shards(DataConfig(shards=["s3://corpus/tars"]))
    index = Index.open_or_make(None, list_shards(DataConfig(shards=[str(tmp_path / "tars")])))
    remote = Index.open_or_make(tmp_path / "remote.index", shards)
    assert [remote.block(i) for i in range(len(remote))] == [index.block(i) for i in range(len(index))]
    column = open_column("re_caption", ColumnConfig(folder="s3://corpus/recap", field="caption"))
    column.check(shards)
    reader = Reader(StreamPlan(remote, seed=0, streams=2, window=4), {"re_caption": column}, total=sum(counts))
    before = object_store.sent()
    names = set()
    for first in range(0, reader.plan.epoch_size, 1024):
        names |= {usable(slot).name for slot in reader.batch(first, 1024)}
    reader.close()
    sent = object_store.sent() - before
    held = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.suffix in (".tar", ".parquet"))
    assert len(names) > 0.98 * sum(counts)
    assert sent / held <= 1.05, f"{sent:,} bytes sent for {held:,}: {sent / held:.3f}"


def test_damaged_shards_are_told_when_the_index_is_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, (20, 20))
    tar = tmp_path / "tars/00001.tar"
    with tar.open("r+b") as file:
        file.truncate(tar.stat().st_size // 2 + 700)  # in the midst of a member
    gang = SimpleNamespace(rank=0, directory=tmp_path)
    made = shared_input(JoinedDataConfig(shards=[str(tmp_path / "tars")]), gang)
    assert made and made.index == tmp_path / "blocks.index"
    assert "1 of 2 shards are damaged" in caplog.text and "First: 00001:" in caplog.text


def test_gzipped_tars_are_refused_at_launch(tmp_path: Path) -> None:
    """By name and by content, with shard and file: trainings read ranges."""
    build(tmp_path, (20, 20))
    tar = tmp_path / "tars/00001.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match=f"shard 00001: {tar} is gzipped"):
        check_columns(JoinedDataConfig(shards=[str(tmp_path / "tars")]), [])
    check_columns(JoinedDataConfig(shards=[str(tmp_path / "tars")], indexed=False), [])
    tar.rename(tmp_path / "tars/00001.tar.gz")
    with pytest.raises(UserError, match=r"shard 00001\.tar\.gz: .*00001\.tar\.gz is gzipped"):
        check_columns(JoinedDataConfig(shards=[str(tmp_path / "tars")]), [])


def test_what_is_read_before_the_first_step(tmp_path: Path) -> None:
    """As a dry run says; in the shipped configs at most 1 GB a rank, 2 GB held, with 8 ranks and 100 kB an image."""
    shards = build(tmp_path, [512] * 12)
    blocks = Index.open_or_make(None, shards)
    reader = Reader(StreamPlan(blocks, 0, 4, 1), {})
    reader.batch(0, 4)
    reader.close()
    data = JoinedDataConfig(streams=4, window=1)
    assert describe_reading(data, 1).startswith("2,048 samples a rank before the first step, 2,662 held")
    assert reader.bytes_read <= 4 * (blocks.block(0).end - blocks.block(0).start)
    for name in ("clip/recap_b16", "dit/recap_b4"):
        said = yaml.safe_load((Path(__file__).parents[2] / f"configs/{name}.yaml").read_text())["data"]
        told = describe_reading(JoinedDataConfig(streams=said["streams"], window=said["window"]), 8)
        first, held = map(float, re.findall(r"held: ([0-9.]+) and ([0-9.]+) GB", told)[0])
        assert first <= 1 and held <= 2, (name, told)
