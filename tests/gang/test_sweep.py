"""A sweep: one array whose elements are gangs. Arms are named, told apart, taken up again, and not done twice."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc import cancel, launch, logs, status
from hpc.base.errors import Exit
from hpc.gang import sweep_status
from hpc.run.directory import Run
from tests.gang.test_gang_slurm import ranks_of, steps
from tests.slurm.test_submission import FakeSlurm
from tests.slurm.test_submission import launch as launch_with
from tests.support.slurm_cluster import Cluster, wait
from tests.train import ranks

ROOT = Path(__file__).parents[2]
PLAIN = "tests.train.plain.Plain"


def config_file(folder: Path, sweep: dict[str, Any], trainer: str = PLAIN, **more: Any) -> Path:
    tree = {
        "trainer": trainer, "name": "sweep", "runs": str(folder / "runs"), "sweep": sweep,
        "cluster": {"kind": "local", "engines_per_node": 2},
    }  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree | more, sort_keys=False))
    return path


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.slurm
def test_element_killed_and_resumed(slurm: Cluster, tmp_path: Path) -> None:
    """Two arms in one array; kill -9 of the second's rank: its element alone is requeued, and goes on where it was."""
    train = {"samples": 240, "batch": 12, "save_every": 48, "seed": 3, "threads": 1}
    cluster = {"kind": "slurm", "engines_per_node": 1, "time": "10", "mem_gb": 2.0, "python": sys.executable}
    arms = {"short": {"train.samples": 120}, "w8": {"width": 8, "delay_s": 0.2}}
    config = config_file(tmp_path, arms, "tests.train.tiny.TinyTrainer", cluster=cluster, train=train)
    launched = [sys.executable, "-m", "hpc.launch", str(config)]
    said = slurm.twice_at_once(*launched, second="nothing is left to submit")
    run, broken = Run(tmp_path / "runs/sweep"), Run(tmp_path / "runs/sweep/w8")
    (job,) = run.latest().job_ids
    assert "2 arms" in said and broken.latest().job_ids == [f"{job}_1"]
    wait(lambda: steps(broken) >= 6, "the second arm has made six steps", timeout=240)
    ranks_of(broken)[-1].kill()
    assert "nothing is left to submit" in slurm.run(*launched) and run.latest().job_ids == [job]  # one array a sweep
    wait(lambda: set(slurm.elements(job)) == {0, 1}, "both elements are known")
    wait(lambda: all(e.over for e in slurm.elements(job).values()), "the array is over", timeout=240)
    found = slurm.elements(job)
    assert (found[0].restarts, found[1].restarts) == (0, 1), found
    log = (broken.logs / f"{job}_1.log").read_text(errors="replace")
    assert re.search(r"arm w8: exit code 1(37|43): requeue", log) and "resumed after step" in log
    shown = json.loads(slurm.run(sys.executable, "-m", "hpc.status", str(run.path), "--json"))
    assert shown["exit"] == 0
    assert [(a["state"], a["samples"], a["lives"]) for a in shown["arms"].values()] == [
        ("complete", 120, 1), ("complete", 240, 2),
    ]  # fmt: skip
    assert [step for step, _ in ranks.curve(broken.path)] == list(range(1, 21))


def test_only_what_is_left_is_launched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here, one after another: a failed arm stops no other, and is the only one that the next launch runs."""
    arms: dict[str, Any] = {"bad": {"steps": 300, "step_s": 0.1, "does": "usage"}, "good": {"steps": 2}}
    run = Run(tmp_path / "runs/sweep")
    assert launch.main([str(config_file(tmp_path, arms))]) == Exit.SOME_FAILED
    assert [facts["state"] for facts in sweep_status.read_status(run)["arms"].values()] == ["failed", "complete"]
    capsys.readouterr()
    assert status.main([str(run.path)]) == Exit.SOME_FAILED
    assert re.search(r"bad .* failed\b.*good +\d+.* complete", " ".join(capsys.readouterr().out.split()))
    assert logs.main([str(run.path)]) == Exit.COMPLETE
    bad, good = capsys.readouterr().out.split("arm good")
    assert bad.startswith("arm bad\nslot 0") and "only this rank sees that it is wrong" in bad and "slot 0" in good
    for arguments, word in {
        ("--shard", "0"): "a training, it has no shards",
        ("--slot", "7"): "no log of such a slot",
    }.items():
        assert logs.main([str(run.path), *arguments]) == Exit.USAGE and word in capsys.readouterr().err
    arms["bad"] = {"steps": 300}
    assert launch.main([str(config_file(tmp_path, arms))]) == Exit.COMPLETE
    assert [len(Run(run.path / name).submissions()) for name in arms] == [2, 1]


@pytest.mark.slow(ci=True)
def test_cancel_stops_the_sweep(tmp_path: Path) -> None:
    """The running arm ends at a checkpoint, the waiting one is not begun; a new launch goes on with both."""
    arms = {"one": {"steps": 1000}, "two": {"steps": 1001}}
    config = config_file(tmp_path, arms, step_s=0.05)
    process = subprocess.Popen([sys.executable, "-m", "hpc.launch", str(config)], cwd=ROOT, stdout=subprocess.PIPE)
    run = Run(tmp_path / "runs/sweep")
    try:
        wait(lambda: run.submissions() and state(run, "one") == "running", "the first arm runs")
        cancel.main([str(run.path)])
        process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == Exit.INCOMPLETE
    config_file(tmp_path, arms, step_s=0.0)
    assert [state(run, name) for name in arms] == ["cancelled", "cancelled"]
    assert launch.main([str(config)]) == Exit.COMPLETE


def state(run: Run, name: str) -> str:
    return str(sweep_status.read_status(run)["arms"].get(name, {}).get("state"))


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = {"kind": "slurm", "gpus_per_node": 8, "parallel": 4, "time": "24:00:00"}
    config = config_file(tmp_path, {f"p{n}": {"steps": n} for n in range(1, 13)}, cluster=cluster, gang={"nodes": 4})
    assert launch.main([str(config), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for line in ("#SBATCH --array=0-11%4", "#SBATCH --nodes=4", "arms=(p1 p2 p3 p4 p5 p6 p7 p8 p9 p10 p11 p12)"):
        assert line in said, line
    assert said.count("sbatch") == 0 and said.count("#!/bin/bash") == 1
    assert (
        subprocess.run(["bash", "-n"], input=said[said.index("#!") : said.index("\nnothing")], text=True).returncode
        == 0
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("sweep", "word"),
    [
        ({"a b": {"steps": 1}}, "cannot be an arm's directory"),
        ({"logs": {"steps": 1}}, "cannot be an arm's directory"),
        ({"a": {"stepz": 1}}, "`sweep.a`: `stepz`: unknown key. Did you mean `steps`"),
        ({"a": {}}, "is no mapping of keys to values"),
        ({"a": {"cluster.time": "1"}}, "`cluster.time` is the same for all arms"),
        ({"a": {"steps": 1}, "b": {"steps": 1, "step_s": 1.0}}, "a and b are the same training"),
        ({"a": {"does": "refuse"}}, "sweep, arm a: config: `does`: refused on 2 ranks"),
    ],
)
def test_usage(tmp_path: Path, sweep: dict[str, Any], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([str(config_file(tmp_path, sweep))]) == Exit.USAGE
    assert word in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_map_job_and_taken_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        launch.main([str(config_file(tmp_path, {"a": {"steps": 1}}, operator="tests.support.echo.Echo", trainer=""))])
        == 64
    )
    assert "`sweep`: is for trainings; this is a map job" in " ".join(capsys.readouterr().err.split())
    assert launch.main([str(config_file(tmp_path, {}))]) == 0
    assert launch.main([str(config_file(tmp_path, {"a": {"steps": 1}}))]) == Exit.USAGE
    assert "exists and is not a sweep's" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("sweep", [{"a": {"steps": 1}, "b": {"steps": 2}}, {}], ids=["sweep", "gang"])
def test_one_job_although_the_controller_is_away(tmp_path: Path, sweep: dict[str, Any]) -> None:
    """sbatch commits, its answer is lost and squeue says nothing: the next launch finds the job, and submits none."""
    fake = FakeSlurm(tmp_path / "fake")
    config_file(tmp_path, sweep, cluster={"kind": "slurm"}).rename(tmp_path / "config.yaml")
    fake.plan("late", squeue_away=1000)
    first = launch_with(fake, patience_s=2.0)
    assert first.returncode == Exit.USAGE and "Launch again later" in first.stderr
    fake.plan()
    second = launch_with(fake)
    assert second.returncode == Exit.COMPLETE and "nothing" in second.stdout, second.stderr
    assert fake.calls() == [] and len(fake.jobs()) == 1
    run = Run(tmp_path / "runs/sweep")
    assert run.latest().job_ids == ["1000"]
    assert [Run(run.path / name).latest().job_ids for name in sweep] == [[f"1000_{n}"] for n in range(len(sweep))]
    fake.plan(squeue_away=1000)
    third = launch_with(fake, patience_s=2.0)  # the job is known; whether it lives is not
    assert third.returncode == Exit.USAGE and "does not answer" in third.stderr
    assert fake.calls() == [] and len(fake.jobs()) == 1


def test_a_launcher_killed_before_it_told_the_arms(tmp_path: Path) -> None:
    """The array is known, its arms do not know their elements: the next launch tells them, and submits nothing."""
    fake, sweep = FakeSlurm(tmp_path / "fake"), {"a": {"steps": 1}, "b": {"steps": 2}}
    config_file(tmp_path, sweep, cluster={"kind": "slurm"}).rename(tmp_path / "config.yaml")
    assert launch_with(fake).returncode == Exit.COMPLETE
    arm = Run(tmp_path / "runs/sweep/b")
    cut = arm.latest()
    cut.state, cut.job_ids = "intent", []
    arm.save(cut)
    assert "nothing is left to submit" in launch_with(fake).stdout
    assert arm.latest().job_ids == ["1000_1"] and len(fake.jobs()) == 1
