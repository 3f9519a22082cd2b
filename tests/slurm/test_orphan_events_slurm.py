"""Runs on a real Slurm whose slots never start: refused, cancelled while they wait, behind a job that has failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc.base.errors import Exit
from hpc.run import events
from tests.support.receiver import SECRET, Receiver
from tests.support.slurm_cluster import Cluster, wait
from tests.support.slurm_job import EchoJob


@pytest.fixture
def receiver(slurm: Cluster) -> Iterator[Receiver]:
    found = Receiver()
    slurm.env[events.VARIABLE] = found.url
    yield found
    del slurm.env[events.VARIABLE]
    found.close()


def look(job: EchoJob) -> None:
    job.slurm.run(sys.executable, "-m", "hpc.status", str(job.run.path), code=Exit.INCOMPLETE)


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_slots_that_never_start(slurm: Cluster, receiver: Receiver, tmp_path: Path) -> None:
    def job(name: str) -> EchoJob:
        (tmp_path / name).mkdir()
        return EchoJob(slurm, tmp_path / name, shards=1, lines=2)

    def told(count: int) -> str:
        """What the last of so many events says. A second look tells nothing more."""
        assert len(receiver.seen) == count and receiver.seen[-1][1]["kind"] == "failed"
        return str(receiver.seen[-1][1]["reason"])

    refused = job("refused")
    slurm.run(*refused.command("cluster.partition=nosuch"), code=Exit.USAGE)
    assert "Slurm refused it" in told(1) and "partition" in told(1)
    look(refused)
    assert told(1)

    cancelled = job("cancelled")
    slurm.run(*cancelled.command("cluster.sbatch={begin: now+1hour}"))
    look(cancelled)
    assert told(1), "it waits"
    slurm.run("scancel", cancelled.id)
    wait(lambda: cancelled.id not in slurm.run("squeue", "-h", "-o", "%F"), "it is gone")
    look(cancelled)
    look(cancelled)
    assert "cancelled" in told(2)

    failed = slurm.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 1").strip()
    wait(lambda: failed not in slurm.run("squeue", "-h", "-o", "%F"), "it has failed")
    behind = job("behind")
    slurm.run(*behind.command(f"cluster.dependency=afterok:{failed}"))
    wait(lambda: "DependencyNeverSatisfied" in slurm.run("squeue", "-h", "-o", "%r", "-j", behind.id), "Slurm sees it")
    look(behind)
    assert "none of them will start" in told(3)
    behind.cancel()
    text = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(text) > 10 and not any(SECRET.encode() in data for data in text)
