"""What a map job reads of other runs: its launch looks where it lies, once, and its slots read that."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import scale
from hpc import config as configs
from hpc import rerun
from hpc.base.errors import Exit, UserError
from hpc.map import launch, survey
from hpc.operator import Item, Shard
from hpc.run.directory import Run, Submission
from hpc.run.published import Published
from recap.data import manifest
from recap.data.manifest import Manifest
from tests.support import crashes


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """The config of a merge of two columns of three shards."""
    scale.build(tmp_path, 3)
    columns = {name: {"run": str(tmp_path / run), "field": "caption"} for name, run in (("a", "run"), ("b", "run1"))}
    return {
        "name": "merged", "runs": str(tmp_path / "runs"), "operator": "recap.data.merge.MergeOperator",
        "cluster": {"kind": "local"}, "data": {"shards": [str(tmp_path / "tars")], "columns": columns},
    }  # fmt: skip


def launched(tree: dict[str, Any]) -> Submission:
    return launch.record(launch.prepare(configs.check(tree, "test")))


def engine(run: Run, submission: Submission) -> Any:
    """The operator of one of a launch's engines."""
    return survey.operator(run, submission, submission.checked())


def values(operator: Any, shard: Shard) -> set[str]:
    return {item.payload.columns["a"] for item in operator.read(shard) if isinstance(item, Item)}


def made_again(folder: Path, shard: Shard) -> None:
    """A rerun of the column's run publishes another file of a shard."""
    found = Published(folder / "run")
    new = found.run.path / "columns/recap/5ca1e000/new.parquet"
    table = scale.pq.read_table(new.with_name("all.parquet"))
    captions = scale.pa.array(["another caption"] * len(table))
    scale.pq.write_table(table.set_column(1, "caption", captions), new)
    marker = found.run.ledger(found.identity).directory(shard.id) / f"{shard.id}.g1.done"
    marker.write_text(json.dumps({"file": str(new.relative_to(found.run.path))}))


def test_engines_look_for_nothing(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    submission = launched(tree)
    run = Run(f"{tree['runs']}/merged")
    assert set(submission.manifests) == {"a", "b"} and run.submission(submission.uuid).manifests == submission.manifests
    assert [len(Manifest(run.manifests / name)) for name in submission.manifests.values()] == [3, 3]
    assert len(list(run.manifests.iterdir())) == 1  # both are of the same files
    monkeypatch.setattr(Published, "_done", property(lambda self: pytest.fail("an engine has surveyed the ledger")))
    monkeypatch.setattr(Published, "shards", property(lambda self: pytest.fail("an engine has read the plan")))
    operator = engine(run, submission)
    operator.column()
    shards = [Shard(f"{n:08d}", f"{tree['data']['shards'][0]}/{n:08d}.tar", 0) for n in range(3)]
    assert all(values(operator, shard) == {"a caption"} for shard in shards)


def test_a_launch_looks_anew_and_slots_go_on_with_theirs(tmp_path: Path, tree: dict[str, Any]) -> None:
    first, run = launched(tree), Run(tmp_path / "runs/merged")
    shard = Published(tmp_path / "run").shards[1]
    made_again(tmp_path, shard)
    assert values(engine(run, first), shard) == {"a caption"}, "a slot that is requeued reads what its launch found"
    second = launched(tree)
    assert second.identity == first.identity and second.manifests != first.manifests
    assert values(engine(run, second), shard) == {"another caption"}
    assert launched(tree).manifests == second.manifests and len(list(run.manifests.iterdir())) == 2


def test_a_shard_that_is_reopened_is_read_as_its_rerun_finds_it(
    tmp_path: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """By slots that still run, too, which read all other shards as their own launch has found them."""
    submission, run = launched(tree), Run(tmp_path / "runs/merged")
    shards = Published(tmp_path / "run").shards
    for shard in shards:
        made_again(tmp_path, shard)
    ledger = run.ledger(submission.identity)
    claim = ledger.directory(shards[1].id) / f"{shards[1].id}.g0.done"
    claim.parent.mkdir(parents=True)
    claim.write_text("{}")
    code = rerun.main([str(run.path), "--shards", shards[1].id, "--no-submit"])
    assert code == Exit.COMPLETE, capsys.readouterr().err
    running, reruns = engine(run, submission), Run(run.path).generations
    for number, wanted in ((0, "a caption"), (1, "another caption"), (2, "a caption")):
        shard, generation = shards[number], int(number == 1)
        if found := reruns.manifests(shard.id, generation, submission.reruns):  # as an agent tells its engine
            running.surveyed(run.manifests, found, shard.id)
        assert values(running, shard) == {wanted}
    later = launched(tree)
    assert later.reruns == 1 and not reruns.manifests(shards[1].id, 1, later.reruns), "a later launch knows it all"


def test_a_file_that_is_gone_is_named(tmp_path: Path, tree: dict[str, Any]) -> None:
    submission, run = launched(tree), Run(tmp_path / "runs/merged")
    shard = Published(tmp_path / "run").shards[2]
    (tmp_path / "run/columns/recap/5ca1e000/all.parquet").unlink()
    with pytest.raises(UserError, match=rf"all\.parquet, which holds shard {shard.id}, is gone.*hpc\.rerun"):
        values(engine(run, submission), shard)
    shutil.rmtree(run.manifests)
    manifest.open_once.cache_clear()  # as another process
    with pytest.raises(UserError, match="no column manifest"):
        values(engine(run, submission), shard)


@pytest.mark.slow
@pytest.mark.skipif(not crashes.HAVE_STRACE, reason="needs strace")
def test_a_launch_that_is_killed_while_it_looks(tmp_path: Path, tree: dict[str, Any]) -> None:
    """At each of its calls on manifests and submissions; the next launch does the work, with manifests of its own."""
    config, run, forks = tmp_path / "c.yaml", Run(tmp_path / "runs/merged"), crashes.Forks()
    config.write_text(yaml.safe_dump(tree))

    def fork() -> crashes.Fork:
        return crashes.Fork(forks, tmp_path / "launched", "submit", str(config))

    victim = fork()
    traced = crashes.Traced(victim, tmp_path / "trace")
    assert victim.code() == 0
    seen, points = Counter[str](), list[tuple[str, int]]()
    for call, line in traced.finish().calls:
        seen[call] += 1
        if call not in ("openat", "write") and ("/manifests" in line or "/submissions" in line):
            points.append((call, seen[call]))
    assert {"link", "rename", "fsync", "unlink"} <= {call for call, _ in points}
    hit = 0
    for call, when in points:
        shutil.rmtree(run.path.parent)  # as it was for the first
        victim = fork()
        traced = crashes.Traced(victim, tmp_path / "trace", call, when)
        assert victim.code() == -signal.SIGKILL, (call, when)
        hit += any(word in traced.finish().last[1] for word in ("/manifests", "/submissions"))
        again = fork()
        again.go()
        assert again.code() == 0 and again.result() == 0
        slot = crashes.Fork(forks, tmp_path / "slot", "own", str(run.path), 0)
        slot.go()
        assert slot.code() == 0 and len(slot.result()) == 3
        for shard in Published(run.path):
            assert set(shard.table()["a"].to_pylist()) == {"a caption"}, (call, when)
    assert hit >= len(points) / 2, "what other calls there are before may differ"
    forks.close()
