"""The block index as a by-product of a job over the samples: the same bytes as of an index read from the corpus, which
is then not read; of shards that are another file by now, or not noted, the corpus counts.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hpc.operator import Shard
from hpc.run.directory import Run
from hpc.run.published import Published
from recap.data.blocks import ShardBlocks
from recap.data.column import ColumnConfig
from recap.data.freeze import main as freeze
from recap.data.index import Index, scan_shard
from recap.data.index_job import main, of_input
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.noted_blocks import NotedBlocks, noted, of_marker
from recap.data.samples import JoinedDataConfig, shared_input
from recap.worlds.tars import write_tar
from tests.data import test_block_items
from tests.data.conftest import ObjectStore
from tests.data.corpus import build, keys
from tests.support.jobs import command
from tests.support.published import published

IMAGES = Wanted(("jpg", "png"), "", frozenset({"txt"}))


def job(folder: Path, shards: str, **data: Any) -> Run:
    """A finished job over the images, in this process."""
    tree = {"name": "small", "runs": str(folder / "runs"), "operator": "recap.data.shrink.ShrinkOperator"}
    return published({**tree, "data": {"shards": [shards], **data}})


def bytes_of(index: Index, path: Path) -> bytes:
    index.save(path)
    return path.read_bytes()


def no_scan(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards that are scanned from now on."""
    scanned: list[str] = []

    def scan(shard: Shard, wanted: Wanted) -> ShardBlocks:
        scanned.append(shard.id)
        return scan_shard(shard, wanted)

    monkeypatch.setattr("recap.data.index.scan_shard", scan)
    return scanned


# --- as they are found by the way ---------------------------------------------------------------------


def odd_tar(path: Path) -> None:
    test_block_items.tar(path)  # no image, keys that come back, a hard link out of its block


def cut_tar(path: Path) -> None:
    odd_tar(path)
    os.truncate(path, path.stat().st_size * 2 // 3 + 100)


def foreign_names(path: Path) -> None:
    with path.open("wb") as file:
        write_tar(file, ((f"ordner/bild-é{i}", {"jpg": b"x", "info.json": b"{}"}) for i in range(513)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def arrow(path: Path, stream: bool = True) -> None:
    table = pa.table(
        {"image": [b"\xff\xd8" + bytes([i % 256]) for i in range(1300)], "id": [f"k{i}" for i in range(1300)]}
    )
    with path.open("wb") as file, (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)


@pytest.mark.parametrize("key", ["", "id"])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tar", odd_tar), ("a.tar", cut_tar), ("a.tar", foreign_names), ("a.tar", empty),
        ("a.parquet", test_block_items.table), ("a.arrow", arrow), ("a.arrow", lambda path: arrow(path, False)),
    ],
)  # fmt: skip
def test_what_is_found_by_the_way_is_what_a_scan_finds(tmp_path: Path, name: str, write: Any, key: str) -> None:
    if key and name == "a.tar":
        return  # tars have no columns
    wanted = Wanted(IMAGES.image, key, IMAGES.members)
    write(tmp_path / name)
    (shard,) = list_shards(DataConfig(shards=[str(tmp_path / name)]))
    blocks = ShardBlocks()
    samples = list(samples_of(shard, wanted, blocks))
    found = scan_shard(shard, Wanted(key=wanted.key))
    assert blocks.ended and blocks == found and len(samples) >= sum(found.count)
    marker = {"input": {"uri": shard.uri, "bytes": shard.bytes, "etag": shard.etag}}
    marker |= {"noted": json.loads(json.dumps(noted(blocks, wanted)))}
    assert of_marker(marker, shard, Wanted(key=wanted.key)) == found


def test_a_folder_s_list(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for at in range(600):
        Image.new("RGB", (1, 1), (at % 256, 0, 0)).save(tmp_path / f"images/{at:04d}.png")
    freeze([str(tmp_path / "images"), str(tmp_path / "lists")])
    for shard in list_shards(DataConfig(shards=[str(tmp_path / "lists")])):
        blocks = ShardBlocks()
        assert len(list(samples_of(shard, IMAGES, blocks))) == 600
        assert blocks.ended and blocks == scan_shard(shard) and blocks.count == [512, 88]


def test_what_has_no_blocks_or_too_much_to_say_is_not_noted(tmp_path: Path) -> None:
    """A gzipped tar; a table of which a part cannot be read; a shard whose keys all come back."""
    odd_tar(tmp_path / "plain.tar")
    (tmp_path / "packed.tar").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    pq.write_table(pa.table({"image": [random.Random(at).randbytes(400) for at in range(900)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[2000:3000] = bytes(1000)
    (tmp_path / "a.parquet").write_bytes(data)
    with (tmp_path / "again.tar").open("wb") as file:
        write_tar(file, ((key, {"jpg": b"x"}) for _ in range(3) for key in keys(0, 2500)))
    for name in ("packed.tar", "a.parquet", "again.tar"):
        (shard,) = list_shards(DataConfig(shards=[str(tmp_path / name)]))
        blocks = ShardBlocks()
        assert list(samples_of(shard, IMAGES, blocks)) and noted(blocks, IMAGES) == {}, name


# --- an index of them ---------------------------------------------------------------------------------


def test_an_index_of_what_a_job_has_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training over the column takes it from the run; so does the command; no tar is opened."""
    build(tmp_path, (60, 512, 1))
    odd_tar(tmp_path / "tars/00002.tar")
    shards = list_shards(DataConfig(shards=[str(tmp_path / "tars")]))
    wanted = bytes_of(Index.open_or_make(None, shards), tmp_path / "scanned.index")
    run = job(tmp_path, str(tmp_path / "tars"))
    scanned = no_scan(monkeypatch)
    assert bytes_of(of_input(run.path), tmp_path / "of_input.index") == wanted

    columns = {"small": ColumnConfig(run=str(run.path), field="image"), "txt": ColumnConfig(member="txt")}
    data = JoinedDataConfig(shards=[str(tmp_path / "tars")], columns=columns)
    shared = shared_input(data, SimpleNamespace(rank=0, directory=tmp_path / "training"))
    assert shared and shared.index.read_bytes() == wanted and not scanned

    some = list_shards(DataConfig(shards=[str(tmp_path / "tars/00001.tar")], root=str(tmp_path / "tars")))
    of_one = Index.open_or_make(None, some, known=[Published(run.path)])
    assert of_one.samples == 512 and of_one.shard(0) == some[0] and not scanned


def test_a_shard_that_is_another_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size; the same size, written again; another folder's; a marker that is damaged, or of before notes."""
    shards = build(tmp_path, (30, 30, 30, 30, 30, 30, 30))
    run = job(tmp_path, str(tmp_path / "tars"))
    folder = tmp_path / "tars"
    with (folder / "00000.tar").open("wb") as file:
        write_tar(file, ((key, {"jpg": b"x"}) for key in keys(9, 700)))
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"alt ", b"ALT "))
    os.utime(tar, (1_000_000_000, 1_000_000_000))
    published_, ledger = Published(run.path), run.ledger(run.latest().identity)

    def spoil(number: int, change: Any) -> None:
        path = ledger.directory(shards[number].id) / f"{shards[number].id}.g0.done"
        marker = json.loads(path.read_bytes())
        change(marker)
        path.write_text(json.dumps(marker))

    spoil(2, lambda marker: marker.pop("noted"))
    spoil(3, lambda marker: marker["noted"]["blocks"]["start"].reverse())
    spoil(4, lambda marker: marker["noted"]["blocks"].update(version=99))
    spoil(5, lambda marker: marker.update(input=None, noted="?"))
    now = list_shards(DataConfig(shards=[str(folder)]))
    wanted = bytes_of(Index.open_or_make(None, now), tmp_path / "scanned.index")
    scanned = no_scan(monkeypatch)
    index = Index.open_or_make(None, now, known=[published_])
    assert bytes_of(index, tmp_path / "noted.index") == wanted
    assert sorted(scanned) == [f"{number:05d}" for number in range(6)]

    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere/00006.tar"
    copy.write_bytes((folder / "00006.tar").read_bytes())
    (shard,) = list_shards(DataConfig(shards=[str(copy)]))
    assert shard.id == "00006" and NotedBlocks([published_]).find(shard, Wanted()) is None


def test_other_keys_are_other_blocks(tmp_path: Path) -> None:
    test_block_items.table(tmp_path / "a.parquet")
    run = job(tmp_path, str(tmp_path / "a.parquet"), key="id", image=["jpg"])
    shard, noted_ = Published(run.path).shards[0], NotedBlocks([Published(run.path)])
    assert noted_.find(shard, Wanted()) is None
    assert noted_.find(shard, Wanted(key="id")) == scan_shard(shard, Wanted(key="id"))
    assert [of_input(run.path).block(at).first for at in range(3)] == ["k0", "k512", "k1024"]


@pytest.mark.slow(ci=True)
def test_of_an_object_store_nothing_is_read_twice(tmp_path: Path, object_store: ObjectStore) -> None:
    build(tmp_path, (520, 20, 30))
    odd_tar(tmp_path / "tars/00001.tar")
    object_store.upload(tmp_path)
    run = job(tmp_path, "s3://corpus/tars")
    shards = list_shards(DataConfig(shards=["s3://corpus/tars"]))
    object_store.requests.clear()
    index = Index.open_or_make(None, shards, known=[Published(run.path)])
    assert object_store.requests == []
    assert bytes_of(index, tmp_path / "a") == bytes_of(Index.open_or_make(None, shards), tmp_path / "b")
    assert object_store.requests
    build(tmp_path / "changed", (0, 1030))
    object_store.upload(tmp_path / "changed")  # shards 0 and 1
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # what it remembers of listings
    with pytest.raises(SystemExit, match="input: changed since the plan") as told:
        (run.ledger(run.latest().identity).directory("00001") / "00001.g0.done").unlink()
        main([str(run.path), str(tmp_path / "c")])
    assert "00001" in str(told.value)


def test_a_run_without_samples_is_refused(tmp_path: Path) -> None:
    run = job(tmp_path, str(build(tmp_path, (3,))[0].uri))
    path = next((run.path / "submissions").iterdir())
    facts = json.loads(path.read_bytes())
    facts["config"]["data"]["shards"] = []
    path.write_text(json.dumps(facts))
    with pytest.raises(SystemExit, match="is no job over samples"):
        main([str(run.path), str(tmp_path / "x.index")])


@pytest.mark.slow(ci=True)
def test_a_real_run_notes_blocks(tmp_path: Path) -> None:
    """Launched, worked off by engines, published: its markers say where the blocks lie."""
    shards = build(tmp_path, (600, 520, 3))
    runs = ["name=small", f"runs={tmp_path / 'runs'}", f"data.shards=[{tmp_path / 'tars'}]"]
    command("hpc.launch", "configs/data/shrink.yaml", *runs)
    done = command("recap.data.index_job", str(tmp_path / "runs/small"), str(tmp_path / "noted.index"))
    assert f"the blocks of 3 of 3 shards were noted by {tmp_path / 'runs/small'}" in done.stdout + done.stderr
    assert (tmp_path / "noted.index").read_bytes() == bytes_of(
        Index.open_or_make(None, shards), tmp_path / "scanned.index"
    )
