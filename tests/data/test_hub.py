"""hf:// addresses, by huggingface_hub's own file system against a local Hub: pinned to a commit, read in ranges."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hpc.base.errors import UserError
from hpc.operator import Shard
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import kind_of, samples_of
from recap.data.tars import Sample
from recap.worlds.tars import write_tar
from tests.data.flags import flags, table
from tests.data.hub_files import HubFiles, served

SET = "hf://datasets/me/set"
WANTED = Wanted(("png",), "", frozenset(["txt"]))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubFiles]:
    with served(monkeypatch) as found:
        yield found


def parquet(shard: int, count: int | None = None) -> bytes:
    out = io.BytesIO()
    pq.write_table(table(flags(shard, count)), out, row_group_size=10)
    return out.getvalue()


def texts(shards: list[Shard]) -> list[bytes]:
    return [s.members["txt"] for shard in shards for s in samples_of(shard, WANTED) if isinstance(s, Sample)]


def test_parquet_files_are_read_at_the_commit_that_was_planned(hub: HubFiles) -> None:
    """The repository moves on: a launch again goes on with the run's commit, another run takes the newest."""
    first = hub.commit({f"data/train-{n}.parquet": parquet(n) for n in range(2)} | {"README.md": b"x"})
    config = DataConfig(shards=[f"{SET}/data/*.parquet"])
    shards = list_shards(config)
    assert [(s.id, s.uri) for s in shards] == [
        (f"train-{n}", f"{SET}@{first}/data/train-{n}.parquet") for n in range(2)
    ]
    assert all(s.etag and s.bytes for s in shards) and f"{SET} is commit {first[:12]} (its newest)" in config.pins.notes
    second = hub.commit({"data/train-0.parquet": parquet(3)})
    expected = [s.members["txt"] for n in range(2) for s in flags(n)]
    assert texts(shards) == expected

    again = DataConfig(shards=[f"{SET}/data"])
    again.keep_root(shards)
    assert list_shards(again) == shards and "(as this run was planned)" in again.pins.notes[0]
    [newest] = list_shards(DataConfig(shards=[f"{SET}@main/data"]))
    assert newest.uri.startswith(f"{SET}@{second}/") and texts([newest]) == [s.members["txt"] for s in flags(3)]
    assert texts(list_shards(DataConfig(shards=[f"{SET}@{first}/data"]))) == expected


def test_blocks_are_ranges(hub: HubFiles) -> None:
    hub.commit({"0.parquet": parquet(0)})
    shards = list_shards(DataConfig(shards=[SET]))
    index = Index.open_or_make(None, shards)
    hub.requests.clear()
    block = kind_of(shards[0].uri).block(shards[0], index.block(0), WANTED, lambda size: None)
    assert [s.members["txt"] for s in block] == [s.members["txt"] for s in flags(0)]
    read = [request for request in hub.requests if "/resolve/" in request]
    assert read and all("bytes=" in request for request in read)


def test_tars_and_folders_of_images(hub: HubFiles, tmp_path: Path) -> None:
    out = io.BytesIO()
    write_tar(out, ((s.key, s.members) for s in flags(0, 3)))
    files = {"tars/0.tar": out.getvalue()}
    for sample in flags(1, 3):
        files |= {f"images/{sample.key}.png": sample.members["png"], f"images/{sample.key}.txt": sample.members["txt"]}
    first = hub.commit(files)
    config = DataConfig(shards=[f"{SET}/tars", f"{SET}/images"])
    config.lists = tmp_path
    shards = list_shards(config)
    config.frozen.write(tmp_path)
    assert [s.id for s in shards] == ["0", "images-000000"]
    assert sorted(texts(shards)) == sorted(s.members["txt"] for n in range(2) for s in flags(n, 3))
    hub.commit({})
    again = DataConfig(shards=[f"{SET}/tars", f"{SET}/images"])
    again.lists = tmp_path
    again.keep_root(shards)
    assert list_shards(again) == shards and not again.frozen.new and first in shards[0].uri


def test_what_the_hub_does_not_have_is_said(hub: HubFiles) -> None:
    hub.commit({"0.parquet": parquet(0, 2)})
    with pytest.raises(UserError, match=r"me/set@v9: the Hub gives no such revision \(RevisionNotFoundError"):
        list_shards(DataConfig(shards=[f"{SET}@v9/0.parquet"]))
    with pytest.raises(UserError, match=r"no such revision \(RepositoryNotFoundError"):
        list_shards(DataConfig(shards=["hf://datasets/me/other/0.parquet"]))
    with pytest.raises(UserError, match=r"shards do not exist \(first: .*1\.parquet\)"):
        list_shards(DataConfig(shards=[f"{SET}/1.parquet"]))
