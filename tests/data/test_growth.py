"""Runs that grow: whatever folders are added in whatever order, what exists keeps its ids, and with them its place."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from hpc import launch
from hpc.base.errors import Exit, UserError
from hpc.operator import Shard
from hpc.run.directory import Run
from hpc.run.ledger import bucket_of
from hpc.run.plan import Plan
from hpc.run.published import Published
from recap.data.inputs import DataConfig, list_shards, root_of
from recap.worlds.tars import write_tar

FOLDERS = ("D/laion", "D/laion/part 1", "D/misc", "E/cc12m/a#b", "D", "E/cc12m/a%2Fb")


def tar(path: Path, key: str = "0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_tar(file, [(key, {"txt": key.encode()})])
    return path


def planned(patterns: Sequence[str], before: Sequence[Shard], root: str | None = None) -> list[Shard]:
    config = DataConfig(shards=list(patterns), root=root)
    if before:
        config.keep_root(before)
    return list_shards(config)


@pytest.mark.parametrize("seed", range(12))
def test_ids_of_what_exists_never_move(tmp_path: Path, seed: int) -> None:
    """Random sequences of added folders, named as folders, globs and files, with and without a root at first."""
    rng = random.Random(seed)
    for folder in FOLDERS:
        for number in range(2):
            tar(tmp_path / folder / f"{number:05d}.tar")
    ways = [lambda f: f, lambda f: f"{f}/*.tar", lambda f: f"{f}/{{00000..00001}}.tar"]
    order = [rng.choice(ways)(f"{tmp_path}/{folder}") for folder in rng.sample(FOLDERS, len(FOLDERS))]
    root = str(tmp_path) if seed % 4 == 0 else None
    known: dict[str, str] = {}
    shards: list[Shard] = []
    for count in range(1, len(order) + 1):
        rng.shuffle(named := order[:count])
        shards = planned(named, shards, root if count == 1 else None)
        ids = {shard.uri: shard.id for shard in shards}
        assert len(ids) == 2 * count and len(set(ids.values())) == len(ids)
        assert {uri: ids[uri] for uri in known} == known
        assert {uri: bucket_of(name) for uri, name in known.items()} == {u: bucket_of(ids[u]) for u in known}
        known = ids
        rng.shuffle(shards)  # whatever the plan's order


def test_what_lies_outside_gets_its_whole_path(tmp_path: Path) -> None:
    first = planned([str(tar(tmp_path / "laion/00000.tar").parent)], [])
    assert [s.id for s in first] == ["00000"] and root_of(first) == str(tmp_path / "laion")
    tar(tmp_path / "misc/00000.tar")
    grown = planned([f"{tmp_path}/laion", f"{tmp_path}/misc"], first)
    assert sorted(s.id for s in grown) == ["00000", f"{tmp_path}/misc/00000".lstrip("/").replace("/", "%2F")]
    assert root_of(grown) == root_of(grown[::-1]) == str(tmp_path / "laion")
    inside = tar(Path(f"{tmp_path}/laion/{tmp_path}/misc/00000.tar"))
    with pytest.raises(UserError, match=f"{inside} and {tmp_path}/misc/00000.tar would both be shard") as caught:
        planned([f"{tmp_path}/laion", str(inside.parent), f"{tmp_path}/misc"], first)
    assert "data.root" in str(caught.value)


def test_data_that_moved_as_a_whole_keeps_its_ids(tmp_path: Path) -> None:
    for name in "ab":
        tar(tmp_path / "old" / name / "0.tar")
    before = planned([f"{tmp_path}/old/*/0.tar"], [])
    (tmp_path / "old").rename(tmp_path / "new")
    assert [s.id for s in planned([f"{tmp_path}/new/*/0.tar"], before)] == [s.id for s in before] == ["a%2F0", "b%2F0"]


@pytest.mark.slow(ci=True)
def test_a_run_grows_by_launches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As typed: a folder is added, then --append names a third alone; finished shards are not done again."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for this test's operator
    for name in ("laion", "misc", "cc"):
        tar(tmp_path / name / "00000.tar", name)
        os.utime(tmp_path / name / "00000.tar", (0, len(name)))  # not of one moment
    config = tmp_path / "c.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "operator": "tests.data.shout.Shout", "name": "r", "runs": str(tmp_path / "runs"),
                "cluster": "local", "map": {"lease_s": 2}, "data": {"shards": []},
            }
        )
    )  # fmt: skip

    def typed(*words: str) -> tuple[int, str]:
        code = launch.main([str(config), *words])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    run = Run(tmp_path / "runs/r")
    code, said = typed(f"data.shards=[{tmp_path}/laion]")
    assert code == Exit.COMPLETE, said
    first = {p: p.stat().st_mtime_ns for p in run.path.glob("columns/**/*.parquet")}
    assert [p.name for p in first] == ["00000.g0.parquet"]
    code, said = typed(f"data.shards=[{tmp_path}/cc]")
    assert code == Exit.USAGE and "belongs to another plan" in said and "--append" in said
    assert typed(f"data.shards=[{tmp_path}/laion,{tmp_path}/misc]")[0] == Exit.COMPLETE
    code, said = typed(f"data.shards=[{tmp_path}/laion]")
    assert code == Exit.USAGE and "1 shards are gone" in said and "--append" in said
    code, said = typed(f"data.shards=[{tmp_path}/cc]", "--append")
    assert code == Exit.COMPLETE, said
    published = {s.shard.uri: s for s in Published(run.path)}
    assert {Path(uri).parent.name for uri in published} == {"laion", "misc", "cc"}
    assert all(s.table()["caption"].to_pylist() == [f"{Path(u).parent.name.upper()}!"] for u, s in published.items())
    assert {p: p.stat().st_mtime_ns for p in first} == first
    assert len(Plan(run.plans, run.latest().plan)) == 3 and run.latest().append
    assert launch.main([str(run.config_file), "--dry-run"]) == Exit.COMPLETE, capsys.readouterr().err  # as it is
