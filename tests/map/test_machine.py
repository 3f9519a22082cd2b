"""The GPUs of a node, dealt out to its engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc import launch
from hpc.base.errors import Exit
from hpc.config import ClusterConfig
from hpc.config.devices import devices
from hpc.map import machine, preflight


@pytest.mark.parametrize(
    "given",
    ["0,1,2,3", "7,5,3,1", "GPU-1f,GPU-2e,GPU-3d,GPU-4c", "MIG-aa/1/0,MIG-aa/2/0,MIG-bb/1/0,MIG-bb/2/0"],
)
def test_given_devices_are_split_and_never_renumbered(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    ids = given.split(",")
    for each in (1, 2, 4):
        cluster = ClusterConfig(gpus_per_node=4, gpus_per_engine=each)
        seen = [device["CUDA_VISIBLE_DEVICES"] for device in devices(cluster)]
        assert seen == [",".join(ids[at : at + each]) for at in range(0, 4, each)]
        assert len(seen) == machine.engines(cluster) == cluster.workers_per_node
        assert len(seen) * machine.hour_weight(cluster) == cluster.devices_per_node == 4  # hours count GPUs


def test_without_a_word_of_slurm_they_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices(ClusterConfig(gpus_per_node=4, gpus_per_engine=2))
    assert [device["CUDA_VISIBLE_DEVICES"] for device in found] == ["0,1", "2,3"]
    cpu = ClusterConfig(engines_per_node=3)
    assert len(list(devices(cpu))) == machine.engines(cpu) == cpu.devices_per_node == 3


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            ["cluster.gpus_per_node=4", "cluster.gpus_per_engine=3"],
            "4 GPUs a node (cluster.gpus_per_node) cannot",
        ),
        (["cluster.gpus_per_engine=2"], "0 GPUs a node"),
        (["cluster.gpus_per_node=2", "cluster.gpus_per_engine=0"], "gpus_per_engine`: 0 is less than 1"),
        (["cluster.gpus_per_node=2", "cluster.gpus_per_engine=2"], "2, and captioner.backend=native uses one"),
    ],
)
def test_what_does_not_divide_is_refused_at_launch(
    keys: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["configs/caption/demo.yaml", f"runs={tmp_path}", "--dry-run", *keys]) == Exit.USAGE
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = ["configs/caption/served.yaml", f"runs={tmp_path}", "cluster.gpus_per_node=8", "cluster.gpus_per_engine=4"]
    assert launch.main([*served, "--dry-run"]) == 0
    assert "2 engines of 4 GPUs" in " ".join(capsys.readouterr().out.split())


SMI = """#!/bin/sh
case "$*" in *--id=*MIG*) echo "No devices were found"; exit 6;; esac
for i in 0 1 2 3; do echo "$i, 10, 80000"; done
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [("0,1,2,3", ""), ("GPU-1f,GPU-2e,GPU-3d,GPU-4c", ""), ("MIG-a,MIG-b,MIG-c,MIG-d", ""), ("", ""),
     ("MIG-a,MIG-b,MIG-c", "3 visible, the job wants 4"), ("2,3", "2 visible, the job wants 4")],
)  # fmt: skip
def test_a_node_that_gives_fewer_is_unfit(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None stays idle unseen. nvidia-smi knows no MIG devices by their names, which makes no node unfit."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert said in (found := "; ".join(preflight._gpus(4))) and bool(found) is bool(said)
