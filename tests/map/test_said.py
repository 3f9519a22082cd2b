"""What status and logs say where something is missing: published files, logs, slots, counts, a place in the queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc import logs
from hpc.base.errors import Exit, UserError
from hpc.map import status as map_status
from hpc.map import tally
from hpc.run import lost
from hpc.run.published import Published
from hpc.slurm.queue import NoSqueueAnswer
from tests.support.jobs import EchoJob, inline, texts


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoJob]:
    """A run with a failed shard and a damaged one."""
    lines = {"a": texts(9), "b": ["unreadable"], "c": [*texts(2), "damaged"], "d": texts(3)}
    job = EchoJob(tmp_path_factory.mktemp("said"), lines, map={"attempts": 1})
    job.submit()
    assert job.work() == Exit.SOME_FAILED, job.log()
    yield job
    job.close()


def test_a_published_file_that_is_deleted(finished: EchoJob) -> None:
    run = finished.run
    file = finished.file("a")
    data = file.read_bytes()
    watching = map_status.current(run)
    assert map_status.read_status(run, watching)["lost"] == []
    file.unlink()
    try:
        shown = inline("hpc.status", str(run.path), "--json")
        assert json.loads(shown.stdout)["lost"] == ["a"]
        said = inline("hpc.status", str(run.path)).stdout
        assert "1 published files are gone (first: a)" in said and "--shards a" in said.replace("\n", "")
        again = inline("hpc.launch", str(finished.config_file), "--dry-run").stderr
        assert f"are gone (first: a). Make them again:\npython -m hpc.rerun {run.path} --shards a\n" in again
        assert map_status.read_status(run, watching)["lost"] == [], "a watch looks once a minute"
        watching.lost._next = 0.0
        assert map_status.read_status(run, watching)["lost"] == ["a"]
        assert "column file is gone" in inline("hpc.verify", str(run.path)).stdout
        gone = next(shard for shard in Published(run.path) if shard.shard.id == "a")
        with pytest.raises(UserError, match=f"is gone. Make it again: python -m hpc.rerun {run.path} --shards a "):
            gone.table()
        assert inline("hpc.rerun", str(run.path), "--shards", "a", "--no-submit").returncode == Exit.COMPLETE
        assert json.loads(inline("hpc.status", str(run.path), "--json").stdout)["lost"] == [], "it is open again"
        assert "are gone" not in inline("hpc.launch", str(finished.config_file), "--dry-run").stderr
    finally:
        for name in run.generations.folder.iterdir():
            name.unlink()
        file.write_bytes(data)


def test_a_look_has_its_time(finished: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "_LOOK_S", 0.0)
    looker = tally.Tally(finished.run, finished.run.latest()).lost
    looker.look()
    buckets = finished.ledger.buckets()
    assert sorted(looker._left) == buckets
    monkeypatch.setattr(lost, "_LOOK_S", 60.0)
    looker.look()
    assert looker._left == [] and sorted(looker._found) == buckets


def test_damaged_shards_are_listed(finished: EchoJob) -> None:
    said = inline("hpc.status", str(finished.run.path), "--damaged")
    uri = str(finished.inputs / "c.txt")
    assert said.stdout == f"c\ttext: ends too early\tas the test wanted\t{uri}\n" and said.returncode == Exit.COMPLETE


def test_a_rerun_of_what_failed_names_what_is_damaged(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": [*texts(2), "damaged"], "b": texts(3)})
    job.submit()
    assert job.work() == Exit.COMPLETE, job.log()
    said = inline("hpc.rerun", str(job.run.path))
    assert said.returncode == Exit.COMPLETE and "nothing to rerun: no shard failed\ndamaged, " in said.stdout
    assert "counts as done: 1 (" in said.stdout and said.stdout.strip().endswith("--shards ID,ID")
    job.close()


def test_logs_always_say_something(finished: EchoJob, tmp_path: Path) -> None:
    path = str(finished.run.path)
    unknown = inline("hpc.logs", path, "--shard", "aa")
    assert unknown.returncode == Exit.USAGE and "aa is no shard" in unknown.stderr and "nearest is a." in unknown.stderr
    assert "claim" in inline("hpc.logs", path, "--shard", "a").stdout
    typed = inline("hpc.logs", path, "--shard", "folder/a")  # as a path, though ids have no slash
    assert "folder%2Fa is no shard" in typed.stderr
    assert inline("hpc.logs", path, "--failed").stdout.startswith("b: input: unreadable")
    slot = inline("hpc.logs", path, "--slot", "77")
    assert slot.returncode == Exit.USAGE and "Slots that have started: 0;" in slot.stderr
    fresh = EchoJob(tmp_path, {"a": texts(1)})
    fresh.submit()
    path = str(fresh.run.path)
    assert "no slot of" in inline("hpc.logs", path).stdout
    assert "nothing has happened to shard a yet" in inline("hpc.logs", path, "--shard", "a").stdout
    assert "no shard of" in inline("hpc.logs", path, "--failed").stdout


def test_logs_are_followed(finished: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slot writes from now on; half a line waits for its end."""
    (beat,) = finished.heartbeats()
    log = finished.folder / "slot-0.log"
    monkeypatch.setattr(logs.heartbeat, "read_all", lambda folder: [{**beat, "log": str(log)}])
    parts = iter(["new ", "line\n"])

    def sleep(seconds: float) -> None:
        with log.open("a") as file:
            file.write(next(parts))

    monkeypatch.setattr(logs.time, "sleep", sleep)
    assert next(logs.follow({"": finished.run}, None, None)) == "0: new line"


def test_slurms_reason_is_told(finished: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def squeue(*arguments: str, timeout: float = 30) -> str:
        if "%F %r" in arguments:
            return "7 PartitionConfig\n7 PartitionConfig\n"
        if "%F_%K %T" in arguments:
            return "7_0 PENDING\n7_1 PENDING\n"
        raise NoSqueueAnswer("not asked here")

    latest = finished.run.latest()
    latest.job_ids = ["7"]
    finished.run.save(latest)
    monkeypatch.setattr("hpc.slurm.queue._squeue", squeue)
    try:
        said = " ".join(inline("hpc.status", str(finished.run.path)).stdout.split())
        assert "squeue: 2 PENDING (PartitionConfig)" in said
    finally:
        latest.job_ids = []
        finished.run.save(latest)


def test_what_is_left_is_not_said_where_it_is_not_known(finished: EchoJob) -> None:
    samples = {name: 0 for name in ("ok", "skipped", "failed", "quarantined")}
    assert "400 left" in map_status._samples({**samples, "left": 400}, True)
    assert "left" not in map_status._samples({**samples, "left": 400}, False)
    facts = map_status.read_status(finished.run)
    assert facts["left_known"], "nothing is left"
