"""Workers whose run directory is hurt or gone leave, with the reason where people look, and bring nothing back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc.base import heartbeat
from hpc.base.errors import Exit
from hpc.map import local
from hpc.map.breaker import LIVES
from hpc.operator import Damage, Item, Shard
from hpc.run.ledger import Claim, Ledger
from tests.support.echo import Echo
from tests.support.jobs import EchoJob, inline, texts, wait_for


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    job = EchoJob(tmp_path, {"a": [*texts(3), "wait"]}, map={"lease_s": 0.5})
    yield job
    job.close()


@pytest.mark.parametrize("folder", ["journal", "slots", "ledger", "segments", "columns", "inflight", "control"])
def test_a_folder_that_is_missing(job: EchoJob, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    job.submit()
    (job.run.path / folder).rmdir()
    assert inline("hpc.worker", str(job.run.path), "--slot", "0").returncode == Exit.USAGE
    assert "trying again" in caplog.text
    facts = json.loads(inline("hpc.status", str(job.run.path), "--json").stdout)
    assert f"{folder}/ is missing" in facts["hurt"][0]
    if folder != "slots":
        assert "slot: it cannot work in the run directory" in facts["hurt"][1]
        assert folder in inline("hpc.status", str(job.run.path)).stdout
    assert not (job.run.path / folder).exists(), "a worker that makes slots/ anew would take its own name again"
    job.run.make()  # as a launch does
    assert (job.run.path / folder).is_dir()


def test_folders_of_the_work_that_are_missing_are_named(job: EchoJob) -> None:
    job.submit()
    assert job.status()["hurt"] == []
    for folder in ("ledger", "segments", "columns"):
        shutil.rmtree(job.run.path / folder)
    assert [said.partition("/")[0] for said in job.status()["hurt"]] == ["ledger", "segments", "columns"]


class Losing(Echo):
    """Echo that has read a shard when a folder of the run is gone."""

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        yield from super().read(shard)
        shutil.rmtree(Path(self.config.inputs).parent / "runs/job" / shard.id, ignore_errors=True)


@pytest.mark.parametrize(
    "folder", ["columns", *(pytest.param(f, marks=pytest.mark.slow) for f in ("segments", "ledger"))]
)
def test_a_folder_that_goes_under_a_worker(tmp_path: Path, folder: str) -> None:
    """No shard is charged; the next life waits for it as long as a lease, and leaves for good."""
    job = EchoJob(tmp_path, {folder: texts(3)}, operator="tests.map.test_leaving.Losing", map={"lease_s": 1.0})
    job.submit()
    assert job.work() == Exit.REQUEUE, job.log()
    assert job.heartbeats()[0]["why"].startswith("storage: ") and folder in job.heartbeats()[0]["why"]
    assert job.ends("failed") == job.ends("died") == [] and not any(n.endswith("failed") for n in job.names())
    assert job.work() == Exit.USAGE, job.log()
    assert f"{folder}/ missing in" in job.heartbeats()[1]["why"]


def test_a_slot_that_is_given_up_needs_no_journal(job: EchoJob) -> None:
    submission = job.submit()
    for _ in range(LIVES):
        heartbeat.register(job.run.slots, submission.uuid, 0, {})
    assert inline("hpc.worker", str(job.run.path), "--slot", "0").returncode == Exit.INCOMPLETE
    assert list(job.run.journals.iterdir()) == []
    hurt = json.loads(inline("hpc.status", str(job.run.path), "--json").stdout)["hurt"]
    assert hurt == [f"1 slot left: gave up: {LIVES} lives without progress, the last: it was killed"]


@pytest.mark.slow
def test_a_run_directory_that_is_deleted_under_a_worker(job: EchoJob) -> None:
    job.submit()
    worker = job.worker()
    wait_for(lambda: list(job.run.inflight.glob("*.0")))
    wait_for(lambda: any(f.get("state") == "running" for f in job.heartbeats()))
    shutil.rmtree(job.run.path)
    assert worker.wait(240) not in (Exit.COMPLETE, Exit.SOME_FAILED)
    assert "no heartbeat could be written" in job.log()
    assert not job.run.path.exists()


def test_claims_do_not_bring_a_ledger_back(tmp_path: Path) -> None:
    claim = Claim(Shard("a", "", 0), 0, 0)
    with pytest.raises(FileNotFoundError):
        Ledger(tmp_path / "run" / "ledger" / "12345678").claim(claim, "me")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "ledger").mkdir(parents=True)
    assert Ledger(tmp_path / "run" / "ledger" / "12345678").claim(claim, "me")


def test_the_supervisor_waits_longer_each_time(job: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = job.submit()
    monkeypatch.setattr(local, "command", lambda *_: ["/bin/sh", "-c", f"echo begun; exit {Exit.REQUEUE}"])
    monkeypatch.setattr(local, "_PAUSE_S", 0.01)
    slot = local._Slot(job.run, submission, 0)
    wait_for(lambda: slot.poll(False) or slot._pause_s >= 0.3)
    log = job.run.logs / f"local-{submission.uuid}_0.log"
    assert slot.code is None and 5 <= log.read_text().count("begun") <= 7
    wait_for(lambda: slot.poll(True))
    assert slot.code == Exit.REQUEUE
