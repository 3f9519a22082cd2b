"""Columns are joined to the images they were made from, wherever the tars are named from, and to no others."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hpc import launch
from hpc.base.errors import UserError
from hpc.operator import Shard
from hpc.run.published import Published
from recap.data import same_image
from recap.data.column import ColumnConfig, Values
from recap.data.columns import open_column
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import Reader
from recap.data.same_image import SameImages, digest
from recap.data.streams import StreamPlan
from recap.worlds.tars import write_tar

COUNT = 560  # a block and a bit


def png(*colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def write_set(folder: Path, blue: int, tars: int = 2) -> Path:
    """Tars with keys as img2dataset makes them: the same in every data set. All sets' tars are of one size."""
    folder.mkdir(parents=True)
    for number in range(tars):
        with (folder / f"{number:05d}.tar").open("wb") as file:
            rows = ((f"{number:05d}{i:04d}", {"png": png(i % 256, i // 256, blue + number)}) for i in range(COUNT))
            write_tar(file, rows)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """laion, misc, and other: the same shards and keys; and `small`, a run of ours over laion and misc."""
    folder = tmp_path_factory.mktemp("sets")
    for number, name in enumerate(("laion", "misc", "other")):
        write_set(folder / name, 100 * number)
    (folder / "small.yaml").write_text(
        yaml.safe_dump(
            {
                "operator": "recap.data.shrink.ShrinkOperator",
                "name": "small",
                "runs": str(folder / "runs"),
                "data": {"shards": [str(folder / "laion"), f"{folder}/misc/*.tar"]},
                "cluster": "local",
            }
        )
    )
    assert launch.main([str(folder / "small.yaml")]) == 0
    return folder


def listed(*places: Path) -> list[Shard]:
    return list_shards(DataConfig(shards=[str(place) for place in places]))


def read(shards: Sequence[Shard], *columns: ColumnConfig, tar: bool = True) -> list[str]:
    """One epoch's samples, by name; without `tar`, of the first column alone."""
    made = {f"c{n}": open_column(f"c{n}", config) for n, config in enumerate(columns)}
    for column in made.values():
        column.check(shards)
    plan = StreamPlan(Index.open_or_make(None, list(shards)), 0, 4)
    reader = Reader(plan, made, keys_from=None if tar else "c0")
    try:
        return [next(slot.candidates()).name for slot in reader.batch(0, plan.epoch_size)]
    finally:
        reader.close()


def small(data: Path) -> ColumnConfig:
    return ColumnConfig(run=str(data / "runs/small"), field="image")


def folder_of(data: Path, out: Path, of: str = "") -> ColumnConfig:
    """The run's files as a folder, each under the id that the run gave it."""
    out.mkdir()
    for shard in Published(data / "runs/small"):
        if shard.shard.id.startswith(of):
            shutil.copy(shard.file, out / f"{shard.shard.id}.parquet")
    return ColumnConfig(folder=str(out), field="image")


def test_a_run_is_found_by_where_its_tars_lie(data: Path, tmp_path: Path) -> None:
    """Its ids are laion%2F00000, ...; a reader that names laion alone has 00000 and keeps it."""
    shards = listed(data / "laion")
    assert [s.id for s in shards] == ["00000", "00001"]
    (tmp_path / "link").symlink_to(data / "laion")
    for given in (shards, listed(tmp_path / "link"), listed(data / "laion/00001.tar", data / "misc")):
        names = read(given, small(data))
        assert {name.rpartition("/")[0] for name in names} == {s.id for s in given}
    told = open_column("c0", small(data)).check(shards)
    assert told == "column c0: found 2 of 2 shards by their uri (here 00000, there laion%2F00000)"
    assert read(shards, folder_of(data, tmp_path / "folder"))


def test_other_images_under_the_same_names_are_refused(data: Path, tmp_path: Path) -> None:
    """Shard, key and both digests are named: of runs, of folders, and of columns that name no tar."""
    shards = listed(data / "laion", data / "other")  # ids laion%2F00000 (found by uri), other%2F00000
    with pytest.raises(UserError, match=r"lacks 2 of 4 shards \(first: other%2F00000"):
        read(shards, small(data))
    config = yaml.safe_load((data / "small.yaml").read_text())
    config |= {"data": {"shards": [str(data / "misc")]}, "name": "misc"}
    (tmp_path / "misc.yaml").write_text(yaml.safe_dump(config))
    assert launch.main([str(tmp_path / "misc.yaml")]) == 0
    misc = ColumnConfig(run=str(data / "runs/misc"), field="image")
    told = r"shard 0000(\d), sample \d{5}(\d+): column c0 was made from an image with sha256 (\w+), the tar has (\w+)"
    with pytest.raises(UserError, match=told) as caught:
        read(listed(data / "other"), misc)
    tar, number, theirs, ours = re.search(told, str(caught.value)).groups()  # type: ignore[union-attr]
    at = int(number) % 256, int(number) // 256
    assert (theirs, ours) == (digest(png(*at, 100 + int(tar))), digest(png(*at, 200 + int(tar))))
    bare = tmp_path / "bare"  # as an export has them: the digest, and no word of the tar
    bare.mkdir()
    for shard in Published(data / "runs/misc"):
        table = shard.table(["key", "width", "image_sha256"]).replace_schema_metadata({})
        pq.write_table(table, bare / f"{shard.shard.id}.parquet")
    assert read(listed(data / "misc"), ColumnConfig(folder=str(bare), field="width"))
    with pytest.raises(UserError, match=told):
        read(listed(data / "other"), ColumnConfig(folder=str(bare), field="width"))


def test_moved_tars_are_believed_where_their_images_are_the_same(data: Path, tmp_path: Path) -> None:
    moved = listed(
        shutil.copytree(data / "laion", tmp_path / "D/laion"), shutil.copytree(data / "misc", tmp_path / "D/misc")
    )
    assert "2 of 4 by id and size" not in open_column("c0", small(data)).check(moved)
    assert (
        open_column("c0", small(data)).check(moved).endswith("4 of 4 by id and size, their first images are compared")
    )
    assert len(read(moved, small(data))) == 4 * COUNT
    with pytest.raises(UserError, match=f"is {data}/(.*.tar) for .*, and {tmp_path}/D/(.*.tar) here, and"):
        read(moved, small(data), tar=False)  # nothing to compare with
    assert len(read(moved, small(data), small(data), tar=False)) == 4 * COUNT  # a column with a column
    tar = tmp_path / "D/laion/00000.tar"
    tar.write_bytes(tar.read_bytes() + bytes(512))
    with pytest.raises(UserError, match="nothing proves that these are the same images"):
        read(listed(tmp_path / "D/laion", tmp_path / "D/misc"), small(data))


def test_a_tar_that_changed_since_is_refused(tmp_path: Path, data: Path) -> None:
    shards = listed(data / "laion", data / "misc")
    changed = [Shard(s.id, s.uri, s.bytes, s.etag + "1") for s in shards]
    with pytest.raises(UserError, match=r"00000.tar changed since .*small read it \(version"):
        open_column("c0", small(data)).check(changed)


def test_the_digests_are_compared_once_a_shard_and_once_a_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One sha256 a sample of the first block that is met, one of any other; what cannot be compared is said once."""
    hashed: list[bytes] = []
    monkeypatch.setattr(same_image, "digest", lambda data: hashed.append(data) or digest(data))
    same, keys = SameImages(["img"]), [str(i) for i in range(512)]
    members = [{"txt": b"a", "img": key.encode()} for key in keys]
    good: list[str | None] = [digest(key.encode()) for key in keys]
    captions = {"recap": Values([None] * 512, good), "texts": Values([None] * 512)}
    for expected in (512, 1, 1):
        hashed.clear()
        same.check("00000", keys, members, captions)
        assert len(hashed) == expected and b"a" not in hashed
    assert caplog.text.count("column texts carries no image_sha256") == 1 and "column recap" not in caplog.text
    same.check("00001", keys, [{**m, "mask.png": b"x"} for m in members], captions)  # any image member may match
    with pytest.raises(UserError, match=r"sample 0: column recap .* the tar has"):
        same.check("00002", keys, [{"png": b"x"}] * 512, captions)
    with pytest.raises(UserError, match=r"sample 5: column other was made from .* column recap has"):
        same.check(
            "00003", keys, [{}] * 512, captions | {"other": Values([None] * 512, [*good[:5], "0" * 64, *good[6:]])}
        )


@pytest.mark.parametrize("field", ["sha256", "image_sha256"])
def test_digests_of_unknown_origin_are_not_compared(tmp_path: Path, data: Path, field: str) -> None:
    """The downloader's sha256 of an export is not that of the file in the tar; a caption column's is."""
    shards = listed(data / "laion")
    facts = {"caption": "x", "tokens": 1, "finish": "stop"}
    for name, extra in (("export", {}), ("captions", facts)):
        (tmp_path / name).mkdir()
        for number, shard in enumerate(shards[:2]):
            rows = [{"key": f"{number:05d}{i:04d}", "text": "x", field: "f" * 64, **extra} for i in range(COUNT)]
            table = pa.Table.from_pylist(rows).replace_schema_metadata({"identity": "00"})
            pq.write_table(table, tmp_path / name / f"{shard.id}.parquet", row_group_size=512)
    if field == "sha256":
        assert read(shards, ColumnConfig(folder=str(tmp_path / "export")))
    for name in ("captions", "export")[: 2 - (field == "sha256")]:
        with pytest.raises(UserError, match="made from an image with sha256 ffff"):
            read(shards, ColumnConfig(folder=str(tmp_path / name)))
