"""Ends of a run that no slot is left to tell of: whoever looks at the run tells the webhook, once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc.base import atomic, heartbeat
from hpc.base.errors import UserError
from hpc.map import orphan_events
from hpc.run import events
from hpc.run.events import unsent
from tests.support.jobs import EchoJob, inline, texts
from tests.support.receiver import Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv(events.VARIABLE, found.url)
    yield found
    found.close()


class SlurmJob(EchoJob):
    """A run that was submitted as job 7, and a squeue that says of it what a test wants."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"a": texts(3), "b": texts(3)})
        latest = self.submit()
        latest.config["cluster"]["kind"], latest.state, latest.job_ids, latest.webhook = (
            "slurm",
            "submitted",
            ["7"],
            True,
        )
        self.run.save(latest)
        self.bin = folder / "bin"
        self.bin.mkdir()

    def squeue(self, states: str = "", reason: str = "", code: int = 0) -> None:
        """states: of element 7_0, "" where it lists none. code: of a squeue that does not answer."""
        line = f'case "$*" in *%T*) echo "7_0 {states}" ;; *) echo "7 {reason}" ;; esac'
        file = self.bin / "squeue"
        file.write_text(f"#!/bin/sh\n{line if states else ':'}\nexit {code}\n")
        file.chmod(0o755)

    def look(self) -> None:
        assert inline("hpc.status", str(self.run.path), "--json").returncode == 1, "shards are left"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmJob]:
    made = SlurmJob(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    made.squeue()
    yield made
    made.close()


def kinds(receiver: Receiver) -> list[tuple[str, str]]:
    return [(body["kind"], body["reason"]) for _, body in receiver.seen]


def test_slots_that_never_started_or_were_all_cancelled(job: SlurmJob, receiver: Receiver) -> None:
    for states, reason, code in (("RUNNING", "", 0), ("PENDING", "Priority", 0), ("", "", 1)):
        job.squeue(states, reason, code)
        job.look()
        assert not receiver.seen, "it goes on, or nobody knows"
    job.squeue()
    receiver.answers = [503]
    job.look()
    assert kinds(receiver) == [("failed", "its jobs have all ended or were cancelled, and shards are left")]
    job.look()
    assert len(receiver.seen) == 1 and unsent(job.run) == ["failed.g0"], "another look is patient with the first"
    (old,) = job.run.event_files.glob("failed.g0.e0")
    os.utime(old, (time.time() - 100, time.time() - 100))
    job.look()
    job.look()
    name = f"job-{job.run.latest().uuid}-failed-0"
    assert [key for key, _ in receiver.seen] == [name] * 2 and receiver.answered == {name: 1}
    assert unsent(job.run) == [] and json.loads((job.run.event_files / "failed.g0.json").read_bytes())["name"] == name


def test_what_is_said_of_them(job: SlurmJob, receiver: Receiver) -> None:
    def said() -> tuple[str, str]:
        for file in job.run.path.glob("events/*"):
            file.unlink()
        job.look()
        return kinds(receiver)[-1]

    job.squeue("PENDING", "DependencyNeverSatisfied")
    assert said() == (
        "failed", "its jobs wait for others that have failed (DependencyNeverSatisfied): none of them will start"
    )  # fmt: skip
    job.squeue()
    latest = job.run.latest()
    latest.state, latest.error, latest.job_ids = "refused", "Invalid qos", []
    job.run.save(latest)
    assert said() == ("failed", "Slurm refused it: Invalid qos")
    (job.run.control / "cancelled").write_text("by me on here")
    assert said() == ("failed", "cancelled by me on here")
    (job.run.control / "pause").write_text("disk")
    assert said() == ("paused", "paused: disk")


def test_a_submission_that_is_refused_is_told_at_once(job: SlurmJob, receiver: Receiver) -> None:
    latest = job.run.latest()
    latest.job_ids, latest.state, latest.error = [], "refused", "no such partition"
    with pytest.raises(UserError), orphan_events.sent_if_refused(job.run):
        job.run.save(latest)
        raise UserError("launch: sbatch refused the job: no such partition")
    assert kinds(receiver) == [("failed", "Slurm refused it: no such partition")]


def test_a_run_that_lives_or_that_nobody_wanted_to_hear_of(job: SlurmJob, receiver: Receiver) -> None:
    latest = job.run.latest()
    by_hand = {"state": "running", "t": time.time(), "slot": 9, "submission": latest.uuid, "instance": "x", "beat": 3}
    file = job.run.slots / f"{latest.uuid}-0009-0.json"
    file.write_bytes(atomic.as_json(by_hand))
    job.look()
    assert not receiver.seen, "a worker by hand goes on"
    file.write_bytes(atomic.as_json({**by_hand, "job": "7_0"}))  # one of the job's, killed a moment ago
    latest.webhook = False
    job.run.save(latest)
    job.look()
    assert not receiver.seen, "it was launched without a webhook"
    latest.webhook = True
    job.run.save(latest)
    job.look()
    assert [kind for kind, _ in kinds(receiver)] == ["failed"]


def test_what_a_slot_sends_is_left_to_it_while_it_lives(job: SlurmJob, receiver: Receiver) -> None:
    job.run.event_files.mkdir()
    (job.run.event_files / "paused.g0.json").write_text(json.dumps({"name": "x-paused-0"}))
    owner, _ = heartbeat.register(job.run.slots, job.run.latest().uuid, 3, {"job": "8_1"})
    (job.run.event_files / "paused.g0.e0").write_text(owner)
    orphan_events.send(job.run)
    assert "x-paused-0" not in [key for key, _ in receiver.seen]
    beat = job.run.slots / f"{owner}.json"
    os.utime(beat, (time.time() - 200, time.time() - 200))
    orphan_events.send(job.run)
    assert "x-paused-0" in [key for key, _ in receiver.seen]


@pytest.mark.slow
def test_a_run_that_ends_well_after_its_jobs_were_gone(job: SlurmJob, receiver: Receiver) -> None:
    job.look()
    latest = job.run.latest()
    latest.config["cluster"]["kind"] = "local"
    job.run.save(latest)
    assert job.work() == 0, job.log()
    assert inline("hpc.status", str(job.run.path)).returncode == 0
    assert [kind for kind, _ in kinds(receiver)] == ["failed", "complete"]
