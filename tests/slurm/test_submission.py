"""What sbatch can do wrong: answers that are lost, decorated, refused, or a controller that is away. Never two jobs
for one launch, never a lost one. A fake Slurm on PATH, since a real one does none of this on demand; the rest of the
tests use the real one."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import submitit
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from hpc.base.errors import Exit
from hpc.run.directory import Run
from hpc.slurm.submission import Launcher

ROOT = Path(__file__).resolve().parents[2]

# Takes jobs into a file; misbehaves as the words of $FAKE/plan say, one a call of sbatch.
SBATCH = """#!{python}
import json, os, re, sys
folder = os.environ["FAKE"]
plan = open(f"{{folder}}/plan").read().split()
word, rest = (plan[0], plan[1:]) if plan else ("ok", [])
open(f"{{folder}}/plan", "w").write(" ".join(rest))
open(f"{{folder}}/calls", "a").write(word + "\\n")
text = open(sys.argv[-1]).read()
comment = re.search(r"#SBATCH --comment=(\\S+)", text)[1]
if word == "away":
    sys.exit("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)")
if word == "qos":
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit\\nsbatch: error: submission failed: Job violates QOS policy")
if word == "limit" and not re.search(r"--array=0-[01]%", text):
    sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
jobs = json.load(open(f"{{folder}}/jobs"))
jobs[str(1000 + len(jobs))] = comment
json.dump(jobs, open(f"{{folder}}/jobs", "w"))
job = list(jobs)[-1]
if word == "late":
    sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
if word == "mute":
    print("Welcome to the cluster!")
elif word == "decorated":
    print(f"*** budget left: 4,711 hours ***\\n{{job}};alpha\\nhave a nice day")
else:
    print(job)
"""

SQUEUE = """#!{python}
import json, os, sys
folder = os.environ["FAKE"]
away = int(open(f"{{folder}}/squeue_away").read())
if away:
    open(f"{{folder}}/squeue_away", "w").write(str(away - 1))
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
jobs = json.load(open(f"{{folder}}/jobs"))
if "-j" in sys.argv:
    asked = sys.argv[sys.argv.index("-j") + 1].split(",")
    known = [name for name in asked if name.split("_")[0] in jobs]
    print("\\n".join(f"{{name if '_' in name else name + '_0'}} RUNNING" for name in known))
else:
    print("\\n".join(f"{{job}} {{comment}}" for job, comment in jobs.items()))
"""


class FakeSlurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
            path = folder / name
            path.write_text(text.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.plan()
        (folder / "jobs").write_text("{}")

    def plan(self, *words: str, squeue_away: int = 0) -> None:
        (self.folder / "plan").write_text(" ".join(words))
        (self.folder / "calls").write_text("")
        (self.folder / "squeue_away").write_text(str(squeue_away))

    def jobs(self) -> dict[str, str]:
        return json.loads((self.folder / "jobs").read_text())

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()


@pytest.fixture
def fake(tmp_path: Path) -> FakeSlurm:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for i in range(20):
        (inputs / f"s{i}.txt").write_text("a\n")
    tree = {"operator": "tests.support.echo.Echo", "name": "run", "runs": str(tmp_path / "runs"), "inputs": str(inputs)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**tree, "cluster": {"kind": "slurm", "slots": 8}}))
    return FakeSlurm(tmp_path / "fake")


def launch(fake: FakeSlurm, patience_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    patience = f"from hpc.slurm import queue; queue.PATIENCE_S = {patience_s}"
    code = f"import sys; {patience}; from hpc.launch import main; sys.exit(main())"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment |= {"FAKE": str(fake.folder), "PATH": f"{fake.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(fake.folder.parent / "config.yaml")]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def submissions(fake: FakeSlurm) -> list[dict[str, Any]]:
    run = Run(fake.folder.parent / "runs" / "run")
    return [{"state": s.state, "jobs": s.job_ids, "uuid": s.uuid, "slots": s.slots} for s in run.submissions()]


@pytest.mark.parametrize("word", ["ok", "decorated", "late", "mute"])
def test_one_job_whatever_sbatch_says(fake: FakeSlurm, word: str) -> None:
    """late: committed, then timed out. mute: committed, no id printed."""
    fake.plan(word)
    done = launch(fake)
    assert done.returncode == Exit.COMPLETE, done.stderr
    assert fake.calls() == [word], "sbatch was called once"
    (submission,) = submissions(fake)
    assert fake.jobs() == {"1000": submission["uuid"]}
    assert submission["state"] == "submitted" and submission["jobs"] == ["1000"]


@pytest.mark.slow(ci=True)
def test_a_controller_that_is_away_for_a_while(fake: FakeSlurm) -> None:
    """Its lost answer is looked up before anything is submitted again."""
    fake.plan("away", "away", "late", squeue_away=2)
    done = launch(fake)
    assert done.returncode == Exit.COMPLETE, done.stderr
    assert fake.calls() == ["away", "away", "late"]
    assert len(fake.jobs()) == 1 and submissions(fake)[0]["jobs"] == ["1000"]


@pytest.mark.slow(ci=True)
def test_a_controller_that_stays_away_leaves_the_question_open(fake: FakeSlurm) -> None:
    """The next launch answers it: no second job for the same work."""
    fake.plan("late", squeue_away=1000)
    first = launch(fake, patience_s=3.0)
    assert first.returncode == Exit.USAGE and "Launch again later" in first.stderr
    assert submissions(fake)[0]["state"] == "unanswered" and len(fake.jobs()) == 1
    fake.plan()
    second = launch(fake)
    assert second.returncode == Exit.COMPLETE and "submitted after all, as job 1000" in second.stdout
    assert fake.calls() == [] and len(fake.jobs()) == 1
    assert [s["state"] for s in submissions(fake)] == ["submitted"]


def test_a_launch_that_died_between_intent_and_answer(fake: FakeSlurm) -> None:
    fake.plan("ok")
    assert launch(fake).returncode == Exit.COMPLETE
    run = Run(fake.folder.parent / "runs" / "run")
    (submission,) = run.submissions()
    submission.state, submission.job_ids = "intent", []
    run.save(submission)
    fake.plan()
    assert launch(fake).returncode == Exit.COMPLETE
    assert fake.calls() == [] and submissions(fake)[0]["jobs"] == ["1000"]


def test_refusals_are_said_in_slurms_words(fake: FakeSlurm) -> None:
    fake.plan("qos")
    done = launch(fake)
    assert done.returncode == Exit.USAGE and "violates QOS policy" in done.stderr
    assert fake.calls() == ["qos"] and not fake.jobs() and submissions(fake)[0]["state"] == "refused"


def test_an_array_that_is_too_large_is_halved(fake: FakeSlurm) -> None:
    fake.plan("limit", "limit", "limit")
    done = launch(fake)
    assert done.returncode == Exit.COMPLETE, done.stderr
    assert len(fake.jobs()) == 1 and submissions(fake)[0]["slots"] == 2


# --- submitit ---------------------------------------------------------------------------------


def test_what_of_submitit_is_ours() -> None:
    """These methods of submitit's are replaced, two of them private: another version may call them otherwise."""
    theirs = {name for kind in submitit.SlurmExecutor.__mro__[:-1] for name in vars(kind)}
    replaced = {name for name in vars(Launcher) if name in theirs and not name.startswith(("__", "_abc"))}
    assert replaced == {"affinity", "_make_submission_file_text", "_get_job_id_from_submission_command"}
    assert Version(submitit.__version__) in SpecifierSet(">=1.5.3,<1.6")
    assert '"submitit>=1.5.3,<1.6"' in (ROOT / "pyproject.toml").read_text()
