"""Pipelines on a real Slurm: the stages of test_pipeline.py, submitted at once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from hpc.kinds import progress
from hpc.run.directory import Run
from tests.pipeline.test_pipeline import NEEDS_FLAG, STAGES, Bench
from tests.support.slurm_cluster import Cluster, wait


def states(slurm: Cluster, jobs: dict[str, str]) -> dict[str, str]:
    found = {}
    for name, job in jobs.items():
        said = slurm.run("scontrol", "--oneliner", "show", "job", job)
        found[name] = re.findall(r"JobState=(\S+)", said)[0]
    return found


def newest(bench: Bench) -> dict[str, str]:
    """The newest stage job of each stage."""
    return {s.config["stage"]: s.job_ids[0] for s in bench.run.submissions()}


@pytest.mark.slow
@pytest.mark.slurm
def test_a_cancelled_slot_does_not_break_the_chain(slurm: Cluster, tmp_path: Path) -> None:
    """Map, gang and command, submitted at once, by two launches at once. The only slot of the map is scancelled at
    work.
    """
    cluster = {"kind": "slurm", "time": "10", "mem_gb": 1.0, "python": sys.executable, "signal_delay_s": 60}
    stages = json.loads(json.dumps(STAGES))
    stages["echo"]["set"] = {"delay_s": 0.1}
    bench = Bench(tmp_path, stages, shards=6, lines=10, cluster=cluster)
    launch = [sys.executable, "-m", "hpc.launch", str(bench.config)]
    said = slurm.twice_at_once(*launch, second="in Slurm's hands already")
    jobs = newest(bench)
    assert list(jobs) == ["echo", "train", "report"] and f"stage job {jobs['train']} behind {jobs['echo']}" in said
    assert len(bench.run.submissions()) == 3
    echo = Run(bench.run.path / "echo")
    wait(lambda: echo.submissions() and progress(echo).done >= 1, "a shard is done")
    first = echo.latest().job_ids[0]
    assert progress(echo).done < 6
    slurm.run("scancel", first)
    wait(lambda: len(echo.submissions()) == 2, "the stage job has launched again")
    wait(lambda: progress(echo).complete, "the second array has done the rest")
    assert re.search(r"ArrayTaskId=0 .*JobState=CANCELLED", slurm.run("scontrol", "--oneliner", "show", "job", first))
    wait(lambda: len(bench.markers()) == 3, "all stages are finished")
    wait(lambda: set(states(slurm, jobs).values()) == {"COMPLETED"}, "all stage jobs have ended well")
    assert (bench.run.path / "report" / "stdout.txt").read_text().strip() == "verify: 6 markers hold"


@pytest.mark.slurm
@pytest.mark.slow
def test_cancelled_as_a_whole_then_a_stage_fails(slurm: Cluster, tmp_path: Path) -> None:
    cluster = {"kind": "slurm", "time": "10", "mem_gb": 1.0, "python": sys.executable, "signal_delay_s": 60}
    flag = tmp_path / "flag"
    stages = {
        "echo": {"config": "echo.yaml", "set": {"delay_s": 0.1}},
        "check": {"command": [*NEEDS_FLAG, str(flag)], "needs": ["echo"]},
        "last": {"command": ["python", "-m", "hpc.verify", "${echo}"], "needs": ["check"]},
    }
    bench = Bench(tmp_path, stages, shards=6, lines=10, cluster=cluster)
    slurm.run(sys.executable, "-m", "hpc.launch", str(bench.config))
    echo = Run(bench.run.path / "echo")
    wait(lambda: echo.submissions() and progress(echo).done >= 1, "a shard is done")
    slurm.run(sys.executable, "-m", "hpc.cancel", str(bench.run.path))
    assert 1 <= progress(echo).done < 6 and len(echo.submissions()) == 1
    assert set(states(slurm, newest(bench)).values()) == {"CANCELLED"}

    slurm.run(sys.executable, "-m", "hpc.launch", str(bench.config))
    wait(lambda: set(states(slurm, newest(bench)).values()) == {"COMPLETED", "FAILED", "CANCELLED"}, "check failed")
    assert states(slurm, newest(bench)) == {"echo": "COMPLETED", "check": "FAILED", "last": "CANCELLED"}
    said = slurm.run(sys.executable, "-m", "hpc.status", str(bench.run.path), "--json", code=2)
    assert "no flag" in json.loads(said)["stages"]["check"]["why"]

    flag.touch()
    before, attempts = bench.markers(), len(bench.run.attempts("echo"))
    slurm.run(sys.executable, "-m", "hpc.launch", str(bench.config))
    wait(lambda: len(bench.markers()) == 3, "all stages are finished")
    assert bench.markers()["echo"] == before["echo"] and len(bench.run.attempts("echo")) == attempts
    facts = json.loads(slurm.run(sys.executable, "-m", "hpc.status", str(bench.run.path), "--json"))
    assert {stage["state"] for stage in facts["stages"].values()} == {"finished"}
