"""A gang on a real Slurm: 2 nodes x 2 ranks (gloo), preempted, a rank killed, requeued, resumed; bit for bit."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from hpc import config as configs
from hpc.run.directory import Run, Submission
from hpc.slurm.jobs import GangLauncher
from tests.slurm.test_slurm import without_bootstrap
from tests.support.slurm_cluster import Cluster, wait
from tests.train.ranks import curve, launch

GOLDEN = Path(__file__).parent / "golden_gang_script.sh"
TRAIN = {"samples": 480, "batch": 12, "save_every": 48, "seed": 3, "threads": 1, "workers": 1}
WORK: dict[str, Any] = {"delay_s": 0.2, "train": TRAIN}


def test_batch_script() -> None:
    """The whole text, so that no change of it goes unseen."""
    tree: dict[str, Any] = {"trainer": "tests.train.tiny.TinyTrainer", "name": "align", "gang": {"nodes": 4}}
    tree["cluster"] = {"kind": "slurm", "gpus_per_node": 8, "cpus_per_node": 96, "python": "python3"}
    config = configs.check(tree, "test")
    submission = Submission(
        "5b1e7a90c3d2", 0.0, plan="", identity="", column="", code="c0ffee123456", slots=1, config={}, source=""
    )
    made = GangLauncher(Run("/shared/runs/align"), submission, config.run.cluster, config.run.gang).script()
    assert without_bootstrap(made) == GOLDEN.read_text()


def ranks_of(run: Run) -> list[psutil.Process]:
    """The ranks of a run on all nodes, without their data workers, which are forked from them."""
    found = {}
    for process in psutil.process_iter():
        try:
            line, parent = process.cmdline(), process.ppid()
        except psutil.Error:
            continue
        if line[:1] == [sys.executable] and str(run.path) in line and "hpc.gang.rank" in line and "--begin" not in line:
            found[process] = parent
    numbers = {process.pid for process in found}
    return [process for process, parent in found.items() if parent not in numbers]


def steps(run: Run) -> int:
    path = run.path / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def job_facts(slurm: Cluster, job: str) -> dict[str, str]:
    said = slurm.run("scontrol", "--oneliner", "show", "job", job)
    return dict(re.findall(r"(\w+)=(\S*)", said))


@pytest.mark.slow
@pytest.mark.slurm
def test_preempted_and_killed_and_resumed(slurm: Cluster, tmp_path: Path) -> None:
    """USR2 to all processes of the step, data workers too, as before a time limit or a preemption; then kill -9 of one
    rank on the second node."""
    config = tmp_path / "gang.yaml"
    cluster = {"kind": "slurm", "engines_per_node": 2, "time": "10", "mem_gb": 2.0, "python": sys.executable}
    tree = {"trainer": "tests.train.tiny.TinyTrainer", "name": "gang", "runs": str(tmp_path / "runs"), **WORK}
    config.write_text(yaml.safe_dump({**tree, "gang": {"nodes": 2}, "cluster": cluster}))
    launched = [sys.executable, "-m", "hpc.launch", str(config)]
    said = slurm.twice_at_once(*launched, second="has not ended; nothing was submitted")
    run = Run(tmp_path / "runs" / "gang")
    assert "2 nodes, 4 ranks" in said and len(run.submissions()) == 1
    job = run.latest().job_ids[0]
    wait(lambda: steps(run) >= 6, "six steps are done", timeout=240)
    assert len(ranks_of(run)) == 4
    slurm.run("scancel", "--signal=USR2", job)
    log = run.logs / f"{job}.log"
    wait(lambda: "gang: exit code 75: requeue" in log.read_text(errors="replace"), "all ranks left with 75")
    wait(lambda: steps(run) >= 20, "the second life goes on", timeout=240)
    ranks_of(run)[-1].kill()
    wait(lambda: job_facts(slurm, job)["JobState"] == "COMPLETED", "the job is complete", timeout=240)
    facts = job_facts(slurm, job)
    assert (facts["Restarts"], facts["NumNodes"]) == ("2", "2"), facts
    text = log.read_text(errors="replace")
    assert re.search(r"gang: exit code 1(37|43): requeue", text)
    stopped = [json.loads(line) for p in run.journals.glob("*-r0.jsonl") for line in p.read_text().splitlines()]
    assert {0, 75} <= {e["code"] for e in stopped if e["event"] == "stop"}
    assert text.count("resumed after step") == 2
    shown = json.loads(slurm.run(sys.executable, "-m", "hpc.status", str(run.path), "--json"))
    assert (shown["exit"], shown["samples"], shown["total"], shown["lives"]) == (0, 480, 480, 3)
    assert launch(tmp_path / "alone", 4, WORK | {"delay_s": 0.0}) == [0] * 4
    assert curve(run.path) == curve(tmp_path / "alone")
    mine, other = (torch.load(p / "exports/final/weights.pt") for p in (run.path, tmp_path / "alone"))
    assert all(torch.equal(mine[name], other[name]) for name in other)
