"""`recap.export --keep`: what a selecting job kept, and nothing else, in every form; wrong selections are refused."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.base.errors import Exit
from recap import export
from tests.data.corpus import build, keys
from tests.select.worlds import given, kept, selecting
from tests.support.jobs import inline
from tests.support.published import published, rows_of

COUNTS = [30, 20]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """captions/ (every 7th row has none), scores/, selected/ (scores above 10)."""
    folder = tmp_path_factory.mktemp("keep")
    build(folder, COUNTS)
    numbered = [(key, n) for shard, count in enumerate(COUNTS) for n, key in enumerate(keys(shard, count))]
    said = {key: {"text": f"alt {key}", "caption": f"new {key}", "sha256": ""} if n % 7 else {} for key, n in numbered}
    given(folder, "captions", said)
    given(folder, "scores", {key: {"score": n} for key, n in numbered})
    rules = {"good": {"column": "score", "above": 10}}
    published(selecting(folder, columns={"score": ("scores", "score")}, rules=rules))
    return folder


def wanted() -> list[str]:
    return [key for s, count in enumerate(COUNTS) for n, key in enumerate(keys(s, count)) if n > 10 and n % 7]


def test_rows_that_were_kept(world: Path, tmp_path: Path) -> None:
    assert len(kept(rows_of(world / "selected"))) == 19 + 9
    keep = ("--keep", str(world / "selected"))
    assert export.main([str(world / "captions"), str(tmp_path / "rows"), *keep]) == Exit.COMPLETE
    table = pa.concat_tables(pq.read_table(file) for file in sorted((tmp_path / "rows" / "data").iterdir()))
    assert table["key"].to_pylist() == wanted()
    assert table["re_caption"].to_pylist() == [f"new {key}" for key in wanted()]
    assert "- of the selection: " in (tmp_path / "rows" / "README.md").read_text()
    more = ("--where", f"key < '{wanted()[3]}'")
    assert export.main([str(world / "captions"), str(tmp_path / "both"), *keep, *more]) == Exit.COMPLETE
    assert pq.read_table(next((tmp_path / "both" / "data").iterdir()))["key"].to_pylist() == wanted()[:3]


def test_tars_of_what_was_kept(world: Path, tmp_path: Path) -> None:
    assert (
        export.main(
            [str(world / "captions"), str(tmp_path / "tars"), "--webdataset", "--keep", str(world / "selected")]
        )
        == 0
    )
    found = []
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [name.partition(".")[0] for name in tar.getnames() if name.endswith(".jpg")]
    assert found == wanted()


def test_a_selection_that_lacks_shards_is_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "00000.tar").symlink_to(world / "tars" / "00000.tar")
    given(tmp_path, "part", {key: {"score": 1} for key in keys(0, 30)})
    done = inline("recap.export", str(world / "captions"), str(tmp_path / "out"), "--keep", str(tmp_path / "part"))
    assert done.returncode == Exit.USAGE and "part lacks 1 shards (first: 00001)" in done.stderr
    assert not (tmp_path / "out").exists()
