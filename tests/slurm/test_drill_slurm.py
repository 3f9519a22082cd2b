"""`hpc.drill` on a real Slurm: it is found fit, what a site does not allow turns its line, and no job is left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.base.errors import Exit
from hpc.drilling.board import LINES
from tests.support import unfit_files
from tests.support.slurm_cluster import ROOT, Cluster, wait

pytestmark = [pytest.mark.slurm]
SMALL = ("slot", "stall", "engine", "run")


def command(tmp_path: Path, *words: str, drain_s: int = 2, **keys: Any) -> list[str]:
    """A drill with a profile of small jobs; this Slurm's KillWait is 5 s."""
    profile = tmp_path / "site.yaml"
    profile.write_text(yaml.safe_dump({"kind": "slurm", "slots": 4, "time": "10", "mem_gb": 1.0, **keys}))
    settings = (
        "--cluster",
        str(profile),
        f"runs={tmp_path}/runs",
        f"map.drain_s={drain_s}",
        "map.min_free_gb=0",
        "--json",
    )
    return [sys.executable, "-m", "hpc.drill", *settings, *words]


def drill(slurm: Cluster, words: list[str], code: int, **environment: str) -> dict[str, dict[str, Any]]:
    """The lines by name; and nothing of it is left."""
    done = subprocess.run(
        words, env={**slurm.env, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert [line["name"] for line in facts["lines"]] == list(LINES) and not facts["left"]
    folder = Path(facts["folder"])
    assert not folder.exists() and slurm.run("squeue", "-h", "-n", folder.name) == ""
    return {line["name"]: line for line in facts["lines"]}


def names(lines: dict[str, dict[str, Any]], verdict: str) -> set[str]:
    return {name for name, line in lines.items() if line["verdict"] == verdict}


@pytest.mark.slow(ci=True)
def test_fit(slurm: Cluster, tmp_path: Path) -> None:
    lines = drill(slurm, command(tmp_path, "--minutes", "8"), Exit.COMPLETE)
    assert names(lines, "fit") == LINES.keys() - {"preemption"}, lines
    assert "PreemptMode = REQUEUE" in lines["preemption"]["seen"] and not lines["preemption"]["again"]
    assert "4 elements" in lines["array"]["seen"] and "MaxArraySize is 1,001" in lines["array"]["seen"]
    nodes = {word.strip(",") for word in lines["nodes"]["seen"].split()}
    assert len(nodes & {"n1", "n2", "n3"}) == 2, "two nodes, and this machine"


@pytest.mark.slow
def test_what_a_site_does_not_allow(slurm: Cluster, tmp_path: Path) -> None:
    """Requeueing; and slots that need longer to drain than KillWait."""
    denied = ["scontrol() { echo Access denied >&2; return 1; }"]
    lines = drill(slurm, command(tmp_path, "--minutes", "8", prelude=denied), Exit.INCOMPLETE)
    assert names(lines, "unfit") == {"requeue"} and "Access denied" in lines["requeue"]["seen"]
    assert "JobRequeue" in lines["requeue"]["set"]
    assert {"signals", "engine", "slot", "run"} <= names(lines, "fit"), lines
    assert {"cancel", "stall"} <= names(lines, "not tried") and not lines["stall"]["again"]
    slow = drill(slurm, command(tmp_path, "--minutes", "8", drain_s=20), Exit.INCOMPLETE)
    assert names(slow, "unfit") == {"cancel"} and "map.drain_s=" in slow["cancel"]["set"]


@pytest.mark.slow(ci=True)
def test_an_unfit_file_system_on_nodes(slurm: Cluster, tmp_path: Path) -> None:
    faults = unfit_files.environment("stale", tmp_path / "runs")
    words = command(tmp_path, "--minutes", "1.5", "map.lease_s=60")
    lines = drill(slurm, words, Exit.INCOMPLETE, **faults)
    assert names(lines, "unfit") == {"attributes"} and "a new name, by stat" in lines["attributes"]["seen"]
    assert {lines[name]["seen"] for name in SMALL} == {"unfit: attributes"}
    assert {"nodes", "exclusion", "link", "rename"} <= names(lines, "fit")


@pytest.mark.slow(ci=True)
def test_refused(slurm: Cluster, tmp_path: Path) -> None:
    lines = drill(slurm, command(tmp_path, partition="nowhere"), Exit.INCOMPLETE)
    assert names(lines, "unfit") == {"request"} and "cluster.partition" in lines["request"]["set"]
    assert {"link", "fsync", "rename"} <= names(lines, "fit") and lines["start"]["seen"] == "unfit: request"
    lines = drill(slurm, command(tmp_path, "--minutes", "0.01", slots=2000), Exit.INCOMPLETE)
    assert names(lines, "unfit") == {"array"} and "cluster.slots=1000" in lines["array"]["set"]


@pytest.mark.slow(ci=True)
def test_killed_with_jobs(slurm: Cluster, tmp_path: Path) -> None:
    words = command(tmp_path, "--minutes", "8")
    process = subprocess.Popen(words, env=slurm.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    runs = tmp_path / "runs"
    wait(lambda: list(runs.glob("hpc-drill-*/lives/0.jsonl")), "a job of the drill runs")
    process.kill()
    process.communicate()
    (place,) = runs.iterdir()
    assert slurm.run("squeue", "-h", "-n", place.name)
    second = [word for word in words if word != "--json"]
    said = slurm.run(*second, "--minutes", "0.01", code=Exit.INCOMPLETE)
    assert f"left by an earlier drill: {place}; cleaned" in said.replace("\n", "")
    assert slurm.run("squeue", "-h", "-n", place.name) == "" and not runs.exists()


@pytest.mark.slow
def test_the_controller_goes_away(slurm: Cluster, tmp_path: Path) -> None:
    """What is left then is cleaned by the next drill."""
    words = command(tmp_path, "--minutes", "0.7")
    process = subprocess.Popen(
        words, env=slurm.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = tmp_path / "runs"
    try:
        wait(lambda: list(runs.glob("hpc-drill-*/lives/0.jsonl")), "a job of the drill runs")
        assert slurm.kill_controller()
        out, said = process.communicate(timeout=400)
    finally:
        slurm.start()
    facts = json.loads(out)
    lines = {line["name"]: line for line in facts["lines"]}
    assert facts["exit"] == process.returncode == Exit.INCOMPLETE and "is not known" in facts["left"], said
    assert not names(lines, "unfit") and lines["requeue"]["again"]
    place = Path(facts["folder"])
    assert place.exists()
    wait(lambda: slurm.run("sinfo", "-h"), "the controller is back")
    drill(slurm, command(tmp_path, "--minutes", "0.01"), Exit.INCOMPLETE)
    assert not place.exists() and slurm.run("squeue", "-h", "-n", place.name) == ""
