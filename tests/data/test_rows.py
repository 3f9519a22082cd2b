"""The one reader of map jobs: tars joined with columns, a column's rows alone, children; wrong columns are refused."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, Item, Shard
from recap.data import rows as module
from recap.data.column import ColumnConfig
from recap.data.rows import JoinedRow, Rows, RowsConfig
from recap.worlds.tars import write_tar

COUNT = 1500  # more than the window of the join


def keys(count: int = COUNT) -> list[str]:
    return [f"{number:05d}" for number in range(count)]


def write_column(folder: Path, found: Sequence[str], group: int = 512, shard: str = "0", **columns: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"key": list(found), **(columns or {"text": [f"text of {key}" for key in found]})})
    pq.write_table(table, folder / f"{shard}.parquet", row_group_size=group)
    return folder


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    with (tmp_path / "0.tar").open("wb") as file:
        write_tar(file, ((key, {"jpg": b"image " + key.encode(), "txt": f"alt {key}".encode()}) for key in keys()))
    return tmp_path


def reader(tars: Path, names: list[str], image: bool = True, rows: str = "", **columns: dict[str, Any]) -> Rows:
    config = RowsConfig(
        shards=[f"{tars}/0.tar"], rows=rows, columns={name: ColumnConfig(**given) for name, given in columns.items()}
    )
    return Rows(config, names, image)


def read(found: Rows) -> list[Item | Damage]:
    shards, _ = found.plan()
    return [item for shard in shards for item in found.read(shard, lambda row: (row, 0))]


def rows_of(found: Rows) -> list[JoinedRow]:
    items = read(found)
    assert [item.index for item in items if isinstance(item, Item)] == list(range(len(items)))
    return [item.payload for item in items if isinstance(item, Item)]


def test_tars_joined_with_columns(tars: Path) -> None:
    write_column(tars / "a", keys(), group=7)
    write_column(tars / "b", keys(), n=list(range(COUNT)), status=["ok", "skipped"] * (COUNT // 2))
    found = rows_of(reader(
        tars, ["alt", "a", "b"], alt={"member": "txt"}, a={"folder": str(tars / "a")},
        b={"folder": str(tars / "b"), "field": "n"},
    ))  # fmt: skip
    assert [row.key for row in found] == keys()
    for number, row in enumerate(found):
        value = None if number % 2 else number
        assert row.columns == {"alt": f"alt {row.key}", "a": f"text of {row.key}", "b": value}
        assert row.sample is not None and row.sample.members["jpg"] == f"image {row.key}".encode()


def test_a_columns_rows_alone_open_no_tar(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_column(tars / "a", keys())
    write_column(tars / "b", keys()[::-1][::-1], group=100)
    opened: list[Shard] = []
    monkeypatch.setattr(module, "samples_of", lambda shard, wanted: opened.append(shard))
    monkeypatch.setattr("recap.data.pictures.samples_of", lambda shard, wanted: opened.append(shard))
    found = reader(tars, ["a", "b"], False, a={"folder": str(tars / "a")}, b={"folder": str(tars / "b")})
    assert found.main == "a" and not found.tars
    rows = rows_of(found)
    assert not opened and [row.columns["b"] for row in rows] == [f"text of {key}" for key in keys()]
    assert all(row.sample is None for row in rows)
    assert not reader(tars, ["alt", "a"], False, alt={"member": "txt"}, a={"folder": str(tars / "a")}).main


def test_rows_that_a_column_lacks_have_no_value(tars: Path) -> None:
    lacking = [key for number, key in enumerate(keys()) if number % 3 and not 100 <= number < 1300]
    write_column(tars / "a", lacking)
    found = rows_of(reader(tars, ["a"], a={"folder": str(tars / "a")}))
    assert [row.key for row in found if row.columns["a"] is not None] == lacking and len(found) == COUNT


def test_a_field_that_a_column_lacks_is_said_when_it_is_planned(tars: Path) -> None:
    write_column(tars / "a", keys())
    with pytest.raises(UserError, match=r"data.columns.a.: its first file has no field 'captions'.*text"):
        reader(tars, ["a"], a={"folder": str(tars / "a"), "field": "captions"}).plan()


def test_a_few_rows_in_another_order_are_found(tars: Path) -> None:
    mixed = [key for start in range(0, COUNT, 50) for key in reversed(keys()[start : start + 50])]
    write_column(tars / "a", mixed)
    assert all(
        row.columns["a"] == f"text of {row.key}" for row in rows_of(reader(tars, ["a"], a={"folder": str(tars / "a")}))
    )


@pytest.mark.parametrize("place", [0, 700, COUNT])
def test_columns_of_other_tars_are_refused(tars: Path, place: int) -> None:
    for name, found in {
        "all": [f"x{key}" for key in keys()],
        "one": [*keys()[:place], "foreign", *keys()[place:]],
    }.items():
        write_column(tars / name, found)
        with pytest.raises(
            UserError, match=r"column a: shard 0: key (x00000|foreign) is none of .* made from other tars"
        ):
            read(reader(tars, ["a"], a={"folder": str(tars / name)}))
    with pytest.raises(UserError, match="column 'c' is not among"):
        reader(tars, ["c"], a={"folder": str(tars / "all")})
    with pytest.raises(UserError, match="lacks 1 of 1 shards"):
        read(reader(tars, ["a"], a={"folder": str(write_column(tars / "other", keys(), shard="9"))}))


def test_images_digests_are_compared(tars: Path) -> None:
    right = [hashlib.sha256(b"image " + key.encode()).hexdigest() for key in keys()]
    wrong = [*right[:1400], *right[:100]]
    for name, digests in {"right": right, "wrong": wrong}.items():
        write_column(tars / name, keys(), text=keys(), image_sha256=digests)
    found = rows_of(reader(tars, ["a"], a={"folder": str(tars / "right")}))
    assert [row.image for row in found] == right
    with pytest.raises(UserError, match="sample 01400: column a was made from an image with sha256"):
        read(reader(tars, ["a"], a={"folder": str(tars / "wrong")}))
    both: dict[str, Any] = {"a": {"folder": str(tars / "right")}, "b": {"folder": str(tars / "wrong")}}
    with pytest.raises(UserError, match="sample 01400: column b was made"):
        read(reader(tars, ["a", "b"], False, **both))


# --- children ---------------------------------------------------------------------------------------


def children() -> list[str]:
    """None of the first 1,200 samples, three of each fourth then, one of 01499."""
    return [*(f"{key}#{n}" for key in keys()[1200:1499:4] for n in range(3)), "01499#0"]


def test_children_find_their_samples(tars: Path) -> None:
    write_column(tars / "each", children())
    write_column(tars / "a", [key for key in keys() if key != "01204"])  # one that has children is lacking
    write_column(tars / "scores", [f"{key}#1" for key in keys()[1200:1499:4]], score=[1.0] * 75)
    columns = {
        "each": {"folder": str(tars / "each")}, "a": {"folder": str(tars / "a")}, "alt": {"member": "txt"},
        "scores": {"folder": str(tars / "scores"), "field": "score"},
    }  # fmt: skip
    for image in (True, False):
        found = rows_of(reader(tars, ["alt", "a", "scores"], image, "each", **columns))
        assert [row.key for row in found] == children()
        for row in found:
            parent = row.key.partition("#")[0]
            assert row.columns["alt"] == f"alt {parent}" and row.columns["each"] == f"text of {row.key}"
            assert row.columns["a"] == (None if parent == "01204" else f"text of {parent}")
            assert row.columns["scores"] == (1.0 if row.key.endswith("#1") else None)
            assert row.sample is not None and row.sample.key == parent
    alone = reader(tars, ["a"], False, "each", each=columns["each"], a=columns["a"])
    assert not alone.tars and all(row.sample is None for row in rows_of(alone))
    assert alone.plan()[0][0].expected is None


def test_children_elsewhere_are_refused(tars: Path) -> None:
    each = write_column(tars / "each", children())
    with pytest.raises(UserError, match="name the column in data"):
        read(reader(tars, ["each"], True, each={"folder": str(each)}))
    foreign = write_column(tars / "foreign", [*children(), "none#0"])
    with pytest.raises(ShardError, match="rows of other tars"):
        read(reader(tars, ["each"], True, "each", each={"folder": str(foreign)}))
    turned = write_column(tars / "turned", keys()[::-1])
    with pytest.raises(UserError, match="comes earlier than in the column whose rows are worked on"):
        read(reader(tars, ["a"], False, "each", each={"folder": str(each)}, a={"folder": str(turned)}))
    with pytest.raises(UserError, match="is a member of the tars"):
        reader(tars, ["alt"], False, "alt", alt={"member": "txt"})


# --- sizes ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Of the join itself; one row group a block, as our files have them."""
    (tmp_path / "0.tar").touch()

    def peak(count: int) -> int:
        def tables() -> Iterator[pa.Table]:
            for start in range(0, count, 512):
                found = [f"{number:08d}" for number in range(start, min(start + 512, count))]
                yield pa.table({"key": found, "text": [key * 20 for key in found]})

        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            with pq.ParquetWriter(
                tmp_path / name / "0.parquet", pa.schema({"key": "string", "text": "string"})
            ) as file:
                for table in tables():
                    file.write_table(table)
        found = reader(
            tmp_path, ["a", "b"], False, a={"folder": str(tmp_path / "a")}, b={"folder": str(tmp_path / "b")}
        )
        (shard,), _ = found.plan()
        arrow = [0]
        tracemalloc.start()
        for _ in found.read(shard, lambda row: (None, 0)):
            arrow.append(pa.total_allocated_bytes())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(arrow) == count + 1
        return most + max(arrow)

    small, large = peak(2_000), peak(10_000)
    assert large < 1.2 * small + 100_000, (small, large)
