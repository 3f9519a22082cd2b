"""Pipelines: stages that need one another, on this machine (on Slurm: test_pipeline_slurm.py).

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

from hpc import config as configs
from hpc.gang import launch as gang_launch
from hpc.kinds import progress
from hpc.pipeline.directory import PipelineRun
from hpc.pipeline.stage import begin_anew
from hpc.run.directory import Run
from hpc.slurm import container
from tests.support.jobs import ROOT, command, inline
from tests.support.slurm_cluster import wait

ECHO = {
    "operator": "tests.support.echo.Echo",
    "map": {"lease_s": 2.0, "segment": 4, "drain_s": 3.0, "min_free_gb": 0.0},
}
TINY = {
    "trainer": "tests.train.tiny.TinyTrainer",
    "train": {"samples": 48, "batch": 12, "save_every": 24, "threads": 1},
}
NEEDS_FLAG = ["python", "-c", "import os, sys; sys.exit(None if os.path.exists(sys.argv[1]) else 'no flag')"]
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
        return inline("hpc.launch", str(self.config), *arguments)

    def markers(self) -> dict[str, str]:
        return {p.parent.name: p.read_text() for p in self.run.path.glob("*/stage.json")}


CHAIN: dict[str, Any] = {
    "last": {"command": ["python", "-c", "print('seen', '${check}')"], "needs": ["check"]},
    "echo": {"config": "echo.yaml"},
    "check": {"command": [*NEEDS_FLAG, "flag"], "needs": ["echo"]},
}


def shown(bench: Bench) -> dict[str, Any]:
    return json.loads(inline("hpc.status", str(bench.run.path), "--json").stdout)


def test_a_failed_stage_stops_what_needs_it_and_nothing_is_done_twice(tmp_path: Path) -> None:
    bench, flag = Bench(tmp_path, CHAIN), tmp_path / "flag"
    bench.write({**CHAIN, "check": {**CHAIN["check"], "command": [*NEEDS_FLAG, str(flag)]}})
    failed = bench.launch()
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "stage check is not finished: its command exited with 1: no flag" in failed.stderr
    assert f"to go on: python -m hpc.launch {bench.config}" in failed.stderr
    stages = shown(bench)["stages"]
    assert [(n, s["state"]) for n, s in stages.items()] == [
        ("echo", "finished"),
        ("check", "failed"),
        ("last", "waiting"),
    ]
    assert "no flag" in stages["check"]["why"] and "no flag" in inline("hpc.logs", str(bench.run.path)).stdout
    shard = inline("hpc.logs", str(bench.run.path), "--shard", "shard-0")
    assert shard.returncode == 64 and f"Name one of them: {bench.run.path}/echo." in shard.stderr.replace("\n", " ")

    before = bench.markers()
    flag.touch()
    assert bench.launch().returncode == 0
    after = bench.markers()
    assert set(before) == {"echo"} and after["echo"] == before["echo"] and set(after) == set(CHAIN)
    assert (bench.run.path / "last" / "stdout.txt").read_text() == f"seen {bench.run.path}/check\n"
    attempts = [s.config["stage"] for s in bench.run.submissions()]
    assert attempts == ["echo", "check", "check", "last"]

    assert bench.launch().returncode == 0
    assert bench.markers() == after and len(bench.run.submissions()) == 4
    facts = shown(bench)
    assert facts["exit"] == 0 and all(s["state"] == "finished" and s["seconds"] >= 0 for s in facts["stages"].values())

    kept = str(bench.run.path / "config.yaml")  # what the run itself has kept is the same pipeline
    bench.config.unlink()
    assert inline("hpc.launch", kept).returncode == 0
    assert bench.markers() == after and len(bench.run.submissions()) == 4
    assert inline("hpc.launch", kept, "--only", "last").returncode == 0
    assert bench.markers().keys() == after.keys() and bench.markers()["echo"] == after["echo"]
    assert [s.config["stage"] for s in bench.run.submissions()][4:] == ["last"]


@pytest.mark.slow(ci=True)
def test_what_changed_is_done_again_with_all_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "flag").touch()
    stages = {**CHAIN, "check": {**CHAIN["check"], "command": [*NEEDS_FLAG, str(tmp_path / "flag")]}}
    bench = Bench(tmp_path, stages, shards=1)
    assert bench.launch().returncode == 0
    first = bench.markers()
    refused = bench.launch("echo.prefix=new ")
    assert (
        refused.returncode == 1
        and "stage echo is not finished: launch: what makes the output changed (prefix" in refused.stderr
    )
    assert bench.markers() == first
    assert bench.launch("echo.prefix=new ", "--supersede").returncode == 0
    second = bench.markers()
    assert all(second[name] != first[name] for name in CHAIN)
    assert bench.launch("echo.prefix=new ", "--only", "last").returncode == 0
    third = bench.markers()
    assert [name for name in CHAIN if third[name] != second[name]] == ["last"]
    assert bench.launch("echo.prefix=new ", "--from", "check").returncode == 0
    fourth = bench.markers()
    assert [name for name in CHAIN if fourth[name] != third[name]] == ["last", "check"]


def test_a_superseded_training_begins_anew(tmp_path: Path) -> None:
    """It must not go on from checkpoints that were made of other data."""
    bench = Bench(tmp_path, STAGES)
    config = tmp_path / "train.yaml"
    config.write_text(
        yaml.safe_dump({**TINY, "name": "pipe/train", "runs": str(tmp_path / "runs"), "cluster": "local"})
    )
    loaded = configs.load(config, [])
    train = Run(bench.run.path / "train")
    train.make()
    facts = gang_launch.record(gang_launch.prepare(loaded, supersede=False), "")
    train.new_submission(**facts)
    begin_anew(config)
    assert train.is_run(), "the same training goes on"
    train.new_submission(**{**facts, "identity": "another"})
    begin_anew(config)
    assert not train.path.exists() and Run(bench.run.path / "train.1").latest().identity == "another"


@pytest.mark.parametrize(
    ("runtime", "around"),
    [
        ("apptainer", ["apptainer", "exec", "--nv", "--bind", "/runs/p:/runs/p", "--bind", "/d:/d", "image"]),
        ("pyxis", ["srun", "--container-image=image", "--container-mounts=/runs/p:/runs/p,/d:/d"]),
    ],
)
def test_commands_in_containers(runtime: str, around: list[str]) -> None:
    inside = configs.ContainerConfig(runtime=runtime, image="image", mounts=["/d"])
    cluster = configs.ClusterConfig(kind="slurm", gpus_per_node=1, container=inside)
    run = Path("/runs/p")
    assert container.command(cluster, run, ["python", "-m", "recap.report"]) == [
        *around, "python3", "-P", "-m", "recap.report",
    ]  # fmt: skip
    assert container.command(cluster, run, ["ls", "-l"]) == [*around, "ls", "-l"]


@pytest.mark.slow
def test_cancelled_here(tmp_path: Path) -> None:
    """The stage that works drains, the pipeline ends, and goes on with the next launch."""
    stages = {
        "echo": {"config": "echo.yaml", "set": {"delay_s": 0.2}},
        "last": {"command": ["true"], "needs": ["echo"]},
    }
    bench = Bench(tmp_path, stages, shards=40, lines=8)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "hpc.launch", str(bench.config)]
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as launched:
        echo = Run(bench.run.path / "echo")
        wait(lambda: echo.submissions() and progress(echo).done >= 1, "a shard is done")
        assert command("hpc.cancel", str(bench.run.path)).returncode == 0
        assert launched.wait(30) == 1
    assert 1 <= progress(echo).done < 40 and not bench.markers()
    assert shown(bench)["stages"]["echo"]["state"] == "failed"
    assert bench.launch("echo.delay_s=0").returncode == 0 and progress(echo).done == 40


# --- before anything runs ---------------------------------------------------------------------


def test_dry_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, STAGES)
    before = sorted(tmp_path.rglob("*"))
    keys = ["cluster=slurm", "cluster.partition=gpu", "cluster.price=2", "train.rate=0.02", "train.samples=48"]
    keys += ["report.cluster.gpus_per_node=1", "report.cluster.time=3:00:00"]
    said = inline("hpc.launch", str(bench.config), *keys, "--dry-run")
    assert said.returncode == 0 and sorted(tmp_path.rglob("*")) == before
    table, *scripts = said.stdout.split("### stage job of ")
    flat = " ".join(table.split())
    assert "train echo gang 1 node × 8 GPUs 48 40.0 GPU minutes" in flat and "checked after echo" in flat
    assert "echo map array of 1 × 8 GPUs ? unknown: no rate" in flat and "at most 3.0 GPU hours" in flat
    assert "total 40.0 GPU minutes + at most 3.0 GPU hours of commands · $1.33 at 2.00/h; without echo" in flat
    assert [s.split()[0] for s in scripts] == list(STAGES)
    assert "--dependency" not in scripts[0] and "--dependency='afterok:<echo>'" in scripts[1]
    assert "--dependency='afterok:<echo>:<train>'" in scripts[2] and "--gpus-per-node=1" in scripts[2]
    assert all("--kill-on-invalid-dep=yes" in s and "--partition=gpu" in s for s in scripts)
    assert "--gpus" not in scripts[0] + scripts[1] and "--cpus-per-task=1" in scripts[0]


@pytest.mark.parametrize(
    ("stages", "arguments", "told"),
    [
        ({"a": {"command": ["true", "${b}"]}, "b": {"command": ["true", "${a}"]}}, [], "a and b wait for one another"),
        ({**STAGES, "x": {"command": ["ls"], "needs": ["ecko"]}}, [], "'ecko' is no other stage. Did you mean echo?"),
        ({**STAGES, "more": {"command": ["ls", "${trainn}"]}}, [], "${trainn} is no stage. Did you mean train?"),
        ({"a": {"command": ["true"], "config": "echo.yaml"}}, [], "stage a: write either `config`"),
        ({"a": {"commands": ["true"]}}, [], "stage a: `commands`: unknown key. Did you mean `command`"),
        ({"echo": {"config": "echo.yaml", "set": {"prefx": 1}}}, [], "`prefx`: unknown key. Did you mean `prefix`"),
        ({"echo": {"config": "eko.yaml"}}, [], "eko.yaml does not exist"),
        ({"logs": {"command": ["true"]}}, [], "`stages.logs`: cannot be a stage's name"),
        ({}, [], "`stages`: empty"),
        ({"echo": {"config": "echo.yaml", "set": {"cluster.time": 1}}}, [], "`cluster` has its own place in a stage"),
        (STAGES, ["ecko.prefix=a"], "Did you mean echo?"),
        (STAGES, ["report.prefix=a"], "a command has no config"),
        (STAGES, ["report.command=ls"], "`report.command`: 'ls' is no list of a program and its arguments"),
        (STAGES, ["report.command=[ls, '${ecko}']"], "${ecko} is no stage. Did you mean echo?"),
        (STAGES, ["echo.command=[ls]"], "`command`: unknown key"),
        (STAGES, ["--only", "train"], "needs echo, which is not finished"),
        (STAGES, ["--from", "trian"], "no stage 'trian'. Did you mean train?"),
        (STAGES, ["--detach"], "not for a pipeline"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, stages: dict[str, Any], arguments: list[str], told: str) -> None:
    bench = Bench(tmp_path, stages)
    said = inline("hpc.launch", str(bench.config), *arguments)
    assert said.returncode == 64 and told in " ".join(said.stderr.split()), said.stderr
    assert not bench.run.path.exists()


def test_a_command_is_replaced_on_the_command_line(tmp_path: Path) -> None:
    """As a whole; what it names makes its needs anew."""
    bench = Bench(tmp_path, {"a": {"command": ["true"]}, "b": {"command": ["ls", "/nowhere"]}})
    said = inline("hpc.launch", str(bench.config), 'b.command=[echo, "${a}/x", 7, größe]')
    assert said.returncode == 0, said.stderr
    assert (bench.run.path / "b" / "stdout.txt").read_text() == f"{bench.run.path}/a/x 7 größe\n"


def test_other_directories_and_keys_given_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"a": {"command": ["true"]}})
    bench.run.path.mkdir(parents=True)
    (bench.run.path / "something").touch()
    assert "not a pipeline's directory" in inline("hpc.launch", str(bench.config)).stderr
    bench.config.write_text(bench.config.read_text() + "  a: {command: [ls]}\n")
    assert "`a` is given twice" in " ".join(inline("hpc.launch", str(bench.config)).stderr.split())
    said = inline("hpc.launch", str(tmp_path / "echo.yaml"), "name=x", "--only", "a")
    assert said.returncode == 64 and "are for pipelines" in said.stderr


def test_shipped_pipelines_are_whole() -> None:
    """Every stage of the paper's and of the toy's is checked, and printed in an order that can be."""
    few = [f"{stage}.data.shards=[{ROOT}/recap/demo/flags]" for stage in ("caption", "latents")]
    for name, first, more in (("recap_demo", "world", []), ("recap_datacomp1b", "start", few)):
        said = inline("hpc.launch", str(ROOT / f"configs/pipeline/{name}.yaml"), "cluster=slurm", "--dry-run", *more)
        order = re.findall(r"### stage job of (\w+)", said.stdout)
        assert said.stdout.count("def digest(") == 1  # what all scripts hold is shown in the first
        assert (order[0], order[-1]) == (first, "table") and {"caption", "latents", "clip", "dit"} <= set(order)
        for number, script in enumerate(said.stdout.split("### stage job of ")[1:]):
            assert set(re.findall(r"<(\w+)>", script)) <= set(order[:number])
