"""Where the hours of a run on a real Slurm went, against stalls that are known and counted."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.slurm_cluster import Cluster, alive, wait
from tests.support.slurm_job import EchoJob


@pytest.fixture
def make(slurm: Cluster, tmp_path: Path) -> Iterator[Callable[..., EchoJob]]:
    made: list[EchoJob] = []

    def new(**arguments: int | float) -> EchoJob:
        made.append(EchoJob(slurm, tmp_path, **arguments))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for job in made:
        job.cancel()
        job.wait_over()


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_where_the_hours_went(make: Callable[..., EchoJob]) -> None:
    """Known stalls: 2 s of set-up a process, 0.4 s a line of waiting for it, hangs of 8 s, a kill before anything was
    saved, a requeue, a shard of four done again. Within 1 % they are the time for which Slurm's jobs had the slot.
    """
    job = make(shards=4, lines=10, delay_s=0.2)
    (job.inputs / "shard-01.txt").write_text("line\n" * 4 + "hang\n" + "line\n" * 5)
    seconds = ("setup_s=2", "read_s=0.6", "map.hang_s=8", "map.save_s=600")
    job.slurm.run(*job.command(f"applied={job.inputs}/applied", "batch=1", "map.segment=20", *seconds))
    lasted = []

    def life(until: Callable[[psutil.Process], None]) -> None:
        """Wait for a life of the slot to begin, and to end; how long Slurm gave it the node."""
        wait(lambda: job.lives() and job.processes("hpc.worker"), "the slot lives")
        agent, script = job.agent(), batch_script(job)
        begun = script.create_time() - psutil.boot_time()
        until(agent)
        script.wait()
        lasted.append(time.clock_gettime(time.CLOCK_BOOTTIME) - begun)

    def working(agent: psutil.Process) -> None:
        wait(lambda: job.lives()[-1].get("time", {}).get("unsaved", 0.0) > 1.5, "it has worked")

    def kill(agent: psutil.Process) -> None:
        working(agent)
        agent.kill()

    def requeue(agent: psutil.Process) -> None:
        working(agent)
        job.slurm.run("scontrol", "requeue", f"{job.id}_0")

    life(kill)
    life(requeue)
    life(lambda agent: None)
    job.wait_over()
    job.slurm.run(sys.executable, "-m", "hpc.rerun", str(job.run.path), "--shards", "shard-00")
    life(lambda agent: None)
    job.wait_over()
    facts = json.loads(job.slurm.run(sys.executable, "-m", "hpc.status", str(job.run.path), "--json"))
    found = {kind: 3600 * spent["hours"] for kind, spent in facts["effort"]["by_kind"].items()}
    assert sum(found.values()) == pytest.approx(3600 * facts["effort"]["hours"], rel=1e-3)
    hangs = sum(facts["engine_deaths"].values())
    assert hangs >= 2 and found["broken"] == pytest.approx(8.5 * hangs, rel=0.15)
    done = (job.inputs / "applied").read_text().splitlines()
    good = [line for line in done if not line.endswith(" shard-01 4")]  # but the one that hangs
    # a shard whose reading is under suspicion is read as a whole before any of it is applied
    assert 0.4 * len(good) * 0.9 < found["input"] < 0.4 * len(good) * 1.1 + 0.6 * 10 * hangs
    assert found["useful"] + found["redone"] == pytest.approx(0.2 * len(good), rel=0.25)
    assert found["redone"] / (found["useful"] + found["redone"]) == pytest.approx(1 - 39 / len(good), abs=0.05)
    assert found["start"] > 2 * (4 + hangs)
    assert len(lasted) == 4 and facts["effort"]["accounted"]["lives"] == {"starter": 4}
    assert sum(found.values()) == pytest.approx(sum(lasted), rel=0.01, abs=0.1 * len(lasted))


def batch_script(job: EchoJob) -> psutil.Process:
    """Of the slot's present life."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "slurm_script" in " ".join(process.cmdline()) and alive(process):
                found += [process] if process.environ().get("SLURM_ARRAY_JOB_ID") == job.id else []
    (script,) = found
    return script
