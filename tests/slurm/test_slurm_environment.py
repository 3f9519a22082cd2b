"""What stands in a user's environment, in the names of directories and in settings must reach Slurm as it was meant,
or not at all. On a real Slurm and with a real bash.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc import config
from hpc.base.errors import UserError
from hpc.run.directory import Run, Submission
from hpc.slurm import commands as slurm
from hpc.slurm import queue
from hpc.slurm.submission import Launcher
from tests.support.slurm_cluster import ROOT, Cluster
from tests.support.slurm_job import EchoJob

ODD = "a b%c%j\\d'e\"f$(g)"  # a directory's name
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
def odd(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EchoJob:
    """A job in a directory with an odd name."""
    (tmp_path / ODD).mkdir()
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    return EchoJob(slurm, tmp_path / ODD, shards=4, lines=5)


def facts(job: str) -> dict[str, str]:
    said = slurm.run(["scontrol", "--oneliner", "show", "job", job], timeout=60).stdout.splitlines()[0]
    return dict(re.findall(r"(\w+)=(\S*)", said))


@pytest.mark.slow(ci=True)
@pytest.mark.slurm
def test_what_the_script_states_wins_and_a_directory_may_be_called_anything(
    odd: EchoJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hostile:
        for name, value in HOSTILE.items():
            hostile.setenv(name, value)
            hostile.setitem(odd.slurm.env, name, value)
        odd.launch("slots=2", "partition=debug", "cpus_per_node=1", "sbatch.begin='now+1hour'", "sbatch.wckey=null")
        waiting = facts(odd.id)
        assert set(queue.wait_for_live_jobs([odd.id])) == {f"{odd.id}_0", f"{odd.id}_1"}
        assert queue.find_job(odd.run.latest().uuid) == odd.id
        again = odd.slurm.run(*odd.command("cluster.slots=2"))
        assert f"job {odd.id} of this run" in again and len(odd.run.submissions()) == 1, "no second job"
        said = odd.slurm.run(sys.executable, "-m", "hpc.cancel", str(odd.run.path), "--now")
        assert queue.wait_for_live_jobs([odd.id]) == {} and f"jobs {odd.id} (2 pending)" in said
        odd.launch("slots=2", "cpus_per_node=1", f"prelude=['export PYTHONPATH={ROOT}']")  # for this test's operator
        unstated = facts(odd.id)
    stated = {"JobName": "echo", "Partition": "debug", "TimeLimit": "00:10:00", "Requeue": "1", "Account": "payer"}
    assert {name: waiting.get(name) for name in stated} == stated
    assert waiting["ArrayTaskId"].startswith("0-1") and unstated["Partition"] == "high", "not stated"
    odd.wait_over()
    odd.check()
    assert "slot" in odd.log(0) and "slot" in odd.log(1), "each has its own log, in the run's directory"
    assert sorted(p.name for p in odd.run.path.parents[2].iterdir()) == [ODD], "no stray folder, no stray log"
    assert sorted(p.name for p in (odd.run.path.parents[1]).iterdir()) == ["echo.yaml", "inputs", "runs"]


@pytest.mark.slurm
def test_a_job_that_is_no_array_has_its_bare_number(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue calls its index N/A, and scancel does not take that back: it is what cancel hands on."""
    monkeypatch.setenv("SLURM_CONF", slurm.env["SLURM_CONF"])
    said = slurm.run("sbatch", "--parsable", "--begin=now+1hour", "--mem=1", "--wrap", "true", "-o", "/dev/null")
    assert queue.wait_for_live_jobs([said.strip()]) == {said.strip(): "PENDING"}
    slurm.run("scancel", *queue.wait_for_live_jobs([said.strip()]))
    assert queue.wait_for_live_jobs([said.strip()]) == {}


# --- without Slurm ----------------------------------------------------------------------------


def script(run: Path, **cluster: Any) -> str:
    settings = {"kind": "slurm", "python": sys.executable, **cluster}
    tree = {"name": "r", "operator": "tests.support.echo.Echo", "inputs": "in", "cluster": settings}
    checked = config.check(tree, "test")
    submission = Submission("5b1e", 0.0, plan="", identity="", column="", code="c0de", slots=2, config={}, source="")
    return Launcher(Run(run), submission, checked.run.cluster).script()


@pytest.mark.parametrize("name", [ODD, "`touch owned`", "-rf", "x;touch owned", "$HOME", " ", "#", "a\\", "é!*?~"])
def test_bash_takes_a_path_as_it_is(tmp_path: Path, name: str) -> None:
    """The whole script, with commands that only write down what they were given in the place of Slurm's."""
    run = tmp_path / name / "r"
    (run / "logs").mkdir(parents=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$HPC_LOG" "$@" > "$SAID"\nexit 1\n')
    (tools / "srun").chmod(0o755)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SAID": str(tmp_path / "said"), "SLURM_ARRAY_JOB_ID": "12"}
    done = subprocess.run(
        ["bash", "-c", script(run)], cwd=tmp_path, env={**env, "SLURM_ARRAY_TASK_ID": "3"}, check=False
    )
    said = (tmp_path / "said").read_text()
    assert done.returncode == 1 and said.startswith(f"{run}/logs/12_3.log\n")
    assert f"\n{run}/code/c0de\nhpc.worker\n{run}\n--submission\n5b1e\n--slot\n3\n" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "said", "tools"])


@pytest.mark.parametrize(
    "cluster",
    [{"partition": "gpu #\ntouch owned"}, {"account": "a\rb"}, {"sbatch": {"reservation": "x\n#SBATCH --uid=0"}},
     {"sbatch": {"a b": 1}}, {"sbatch": {"x\ny": 1}}, {"srun_args": ["--mpi=none\nrm"]}, {"python": "python3\nrm"},
     {"container": {"image": "a\nb"}}, {"sbatch": {"array": "0-9"}}, {"sbatch": {"clusters": "other"}}],
)  # fmt: skip
def test_what_cannot_be_written_in_one_line_is_refused(cluster: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"`cluster\."):
        script(Path("/runs/r"), **cluster)


def test_null_and_false_leave_an_option_out() -> None:
    text = script(Path("/runs/r"), sbatch={"wckey": None, "requeue": False, "exclusive": True, "nice": 3})
    options = slurm.options_in(text)
    assert "wckey" not in options and "requeue" not in options and "None" not in text.partition("# setup")[0]
    assert "#SBATCH --exclusive\n" in text and "#SBATCH --nice=3\n" in text


def test_only_defaults_reach_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JWT", "token")
    kept = slurm.sbatch_environment(["time", "mem", "output", "signal", "requeue", "job-name", "open-mode"])
    ours = {name for name in kept if name in HOSTILE}
    assert ours == {"SBATCH_EXPORT", "SBATCH_PARTITION", "SBATCH_ACCOUNT"} and kept["SLURM_JWT"] == "token"
    assert not {name for name in slurm.environment() if name in HOSTILE}
