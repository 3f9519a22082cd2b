"""A tuning as one array on a real Slurm: nodes measure side by side, and what is killed is measured again."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc import config as configs
from hpc.config import tuned
from tests.engine.test_tune import grid_words, job_tree
from tests.support.slurm_cluster import Cluster, wait
from tests.support.slurm_job import Job
from tests.support.surfaces import surface

SIZES = (4, 3)
TRIALS = 5
MEASURE, SERVER = "recap.engine.tuning.measure", "tests.support.scripted_server"


@pytest.mark.slow
@pytest.mark.slurm
def test_nodes_measure_side_by_side(slurm: Cluster, tmp_path: Path) -> None:
    """Two slots. The engine of a trial, and the agent that runs another, are killed (SIGKILL) on the way: every trial
    is there in the end, each point once, with the rate of its surface or why it has none.
    """
    tree = job_tree(tmp_path, "quadratic", 2, SIZES)
    tree["cluster"] |= {"kind": "slurm", "time": "30", "mem_gb": 3.0, "python": sys.executable}
    file, run = tmp_path / "job.yaml", tmp_path / "runs" / "job-tune"
    file.write_text(configs.dump(tree))
    command = [
        sys.executable, "-m", "recap.engine.tune", str(file), *grid_words(SIZES), "--slots", "2",
        "--trials", str(TRIALS), "--seconds", "3", "--samples", "60",
    ]  # fmt: skip
    slurm.run(*command)
    job = Job(slurm, file, run)
    try:
        wait(lambda: len(list((run / tuned.FOLDER).glob("*.claim"))) == 2, "both nodes have a point")
        wait(lambda: here(MEASURE, tmp_path) and here(SERVER, tmp_path), "an engine has a server")
        here(MEASURE, tmp_path)[0].kill()
        wait(lambda: ended(run), "a trial has ended")
        wait(lambda: job.processes("hpc.map.engine"), "a trial is at work")
        job.processes("hpc.map.engine")[0].kill()
        job.wait_over(timeout=900)
    finally:
        job.cancel()
    found = json.loads(slurm.run(sys.executable, "-m", "recap.engine.tune", str(run), "--json"))
    assert len(found["trials"]) == TRIALS and not found["left"]
    rates = surface("quadratic", 2, SIZES)
    points = [
        (row["changes"]["captioner.slots"] - 1, row["changes"]["captioner.micro_batch"] - 1) for row in found["trials"]
    ]
    assert len(set(points)) == TRIALS
    kinds = {point: row["kind"] for point, row in zip(points, found["trials"], strict=True)}
    killed = [point for point, kind in kinds.items() if kind != ("ok" if rates[point] else "out of memory")]
    assert len(killed) <= 1 and all(kinds[point] in ("crashed", "out of memory") for point in killed), kinds
    assert (run / "tune.html").exists() and found["best"]["cost"] > 0
    wait(lambda: not here(SERVER, tmp_path), "nothing of the servers is left")


def here(module: str, folder: Path) -> list[psutil.Process]:
    """Processes that run a module for this test, on any node: a node numbers its processes itself. No keepers."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            line = process.cmdline()
            if module in line[:4] and any(word.startswith(str(folder)) for word in line):
                found.append(process)
    return found


def ended(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (run / tuned.FOLDER).glob("*.json") if path.stem != "sample"]
