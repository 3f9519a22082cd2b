"""Pipelines: stages that need one another, here and on a real Slurm.

The jobs are the echo operator's and the tiny trainer's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.pipeline_run import PipelineRun
from hpc.rundir import Run
from hpc.stage_progress import progress
from tests.jobs import ROOT, command, inline
from tests.slurm_cluster import Cluster, wait

ECHO = {"operator": "tests.echo.Echo", "map": {"lease_s": 2.0, "segment": 4, "drain_s": 3.0, "min_free_gb": 0.0}}
TINY = {
    "trainer": "tests.train.tiny.TinyTrainer",
    "train": {"samples": 48, "batch": 12, "save_every": 24, "threads": 1},
}
STAGES: dict[str, Any] = {
    "echo": {"config": "echo.yaml"},
    "train": {"config": "tiny.yaml", "needs": ["echo"]},
    "report": {"command": ["python", "-m", "hpc.verify", "${echo}"], "needs": ["train"]},
}


class Bench:
    """A pipeline in a folder."""

    def __init__(self, folder: Path, stages: dict[str, Any], shards: int = 3, lines: int = 4, **top: Any) -> None:
        (folder / "in").mkdir()
        for shard in range(shards):
            (folder / "in" / f"shard-{shard}.txt").write_text("".join(f"line {line}\n" for line in range(lines)))
        (folder / "echo.yaml").write_text(yaml.safe_dump({**ECHO, "inputs": str(folder / "in")}))
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        self.folder, self.config = folder, folder / "pipe.yaml"
        self.write(stages, **top)
        self.run = PipelineRun(folder / "runs" / "pipe")

    def write(self, stages: dict[str, Any], **top: Any) -> None:
        tree = {"name": "pipe", "runs": str(self.folder / "runs"), "cluster": {"kind": "local"}, **top}
        self.config.write_text(yaml.safe_dump({**tree, "stages": stages}, sort_keys=False))

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command("hpc.launch", str(self.config), *arguments)

    def markers(self) -> dict[str, str]:
        return {p.parent.name: p.read_text() for p in self.run.path.glob("*/stage.json")}


# --- on Slurm ---------------------------------------------------------------------------------


def states(slurm: Cluster, jobs: dict[str, str]) -> dict[str, str]:
    found = {}
    for name, job in jobs.items():
        said = slurm.run("scontrol", "--oneliner", "show", "job", job)
        found[name] = re.findall(r"JobState=(\S+)", said)[0]
    return found


@pytest.mark.slurm
@pytest.mark.timeout(280)
def test_a_cancelled_slot_does_not_break_the_chain(slurm: Cluster, tmp_path: Path) -> None:
    """Map, gang and command, submitted at once. The only slot of the map is scancelled at work."""
    cluster = {"kind": "slurm", "time": "10", "mem_gb": 1.0, "python": sys.executable, "signal_delay_s": 60}
    stages = json.loads(json.dumps(STAGES))
    stages["echo"]["set"] = {"delay_s": 0.1}
    bench = Bench(tmp_path, stages, shards=6, lines=10, cluster=cluster)
    said = slurm.run(sys.executable, "-m", "hpc.launch", str(bench.config))
    jobs = {s.config["stage"]: s.job_ids[0] for s in bench.run.submissions()}
    assert list(jobs) == ["echo", "train", "report"] and f"stage job {jobs['train']} behind {jobs['echo']}" in said
    again = slurm.run(sys.executable, "-m", "hpc.launch", str(bench.config))
    assert again.count("in Slurm's hands already") == 3 and len(bench.run.submissions()) == 3
    echo = Run(bench.run.path / "echo")
    wait(lambda: echo.submissions() and progress(echo).done >= 1, "a shard is done")
    first = echo.latest().job_ids[0]
    assert progress(echo).done < 6
    slurm.run("scancel", first)
    wait(lambda: len(echo.submissions()) == 2, "the stage job has launched again", 60)
    wait(lambda: progress(echo).complete, "the second array has done the rest")
    assert re.search(r"ArrayTaskId=0 .*JobState=CANCELLED", slurm.run("scontrol", "--oneliner", "show", "job", first))
    wait(lambda: len(bench.markers()) == 3, "all stages are finished", 150)
    wait(lambda: set(states(slurm, jobs).values()) == {"COMPLETED"}, "all stage jobs have ended well")
    assert (bench.run.path / "report" / "stdout.txt").read_text().strip() == "verify: 6 markers hold"
