"""What stands in a user's environment, in the names of directories and in settings must reach Slurm as it was meant,
or not at all. On a real Slurm and with a real bash.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc import cancel, config, launcher, slurm
from hpc.errors import UserError
from hpc.launcher import Launcher
from hpc.rundir import Run, Submission
from tests.slurm_cluster import Cluster
from tests.test_slurm import EchoJob

ODD = "a b%c\\d'e\"f$(g)"  # a directory's name
HOSTILE = {
    "SBATCH_ARRAY_INX": "7", "SBATCH_OUTPUT": "elsewhere-%j.out", "SBATCH_ERROR": "elsewhere-%j.err",
    "SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "2", "SBATCH_JOB_NAME": "foo", "SBATCH_OPEN_MODE": "t",
    "SBATCH_SIGNAL": "USR1@10", "SBATCH_EXPORT": "NONE", "SBATCH_MEM_PER_CPU": "1", "SBATCH_GPUS": "99",
    "SBATCH_WAIT": "1", "SBATCH_CLUSTERS": "other", "SBATCH_PARTITION": "high", "SBATCH_ACCOUNT": "payer",
    "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "high", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT": "%i",
    "SQUEUE_FORMAT2": "jobid", "SQUEUE_NAMES": "other", "SCANCEL_USER": "nobody", "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_NAME": "other", "SLURM_CLUSTERS": "other", "SLURM_TIME_FORMAT": "relative",
}  # fmt: skip


@pytest.fixture
def odd(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EchoJob]:
    """A job in a directory with an odd name, for a user with an odd environment."""
    (tmp_path / ODD).mkdir()
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(slurm.env, name, value)
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    yield EchoJob(slurm, tmp_path / ODD, shards=4, lines=5)


def facts(job: str) -> dict[str, str]:
    said = slurm.run(["scontrol", "--oneliner", "show", "job", job], timeout=60).stdout.splitlines()[0]
    return dict(re.findall(r"(\w+)=(\S*)", said))


@pytest.mark.slurm
def test_what_the_script_states_wins_and_a_directory_may_be_called_anything(odd: EchoJob) -> None:
    odd.launch("slots=2", "partition=debug", "cpus_per_node=1", "sbatch.begin='now+1hour'", "sbatch.wckey=null")
    waiting = facts(odd.id)
    stated = {"JobName": "echo", "Partition": "debug", "TimeLimit": "00:10:00", "Requeue": "1", "WCKey": "(null)"}
    assert {name: waiting.get(name, "(null)") for name in stated} == stated
    assert waiting["ArrayTaskId"] == "0-1" and waiting["Account"] == "payer", "not stated: stays a default"
    assert launcher.find_job(odd.run.latest().uuid) == odd.id
    assert set(launcher.surely_live([odd.id])) == {f"{odd.id}_0", f"{odd.id}_1"}
    odd.slurm.run(sys.executable, "-m", "hpc.cancel", str(odd.run.path), "--now")
    assert launcher.surely_live([odd.id]) == {}, "cancelled, whatever SCANCEL_* says"
    odd.launch("slots=2", "cpus_per_node=1")
    said = facts(odd.id)
    odd.wait_over()
    assert said["Partition"] == "high", "nothing states it"
    odd.check()
    assert "begins" in odd.log() or odd.log(), "each slot has its own log, in the run's directory"
    assert not list(odd.run.path.parents[2].rglob("elsewhere*")) and not list(odd.run.path.parents[2].rglob("*.out"))
    assert sorted(p.name for p in odd.run.path.parents[2].iterdir()) == [ODD], "no stray folder"
