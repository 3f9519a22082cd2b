"""What a launch says of a job that no node could hold, from what sinfo prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc.config import ClusterConfig
from hpc.slurm.nodes import too_large, unknown_partition

# Slurm 22.05 to 24.05: a star for the default partition, a plus where nodes differ, sockets behind a gres.
SINFO = """cpu*|128|512000|(null)
gpu|64|1031000+|gpu:h100:8(S:0-1)
gpu|96+|2063000|gpu:a100:4(S:0-1),gpu:h100:4,nvme:1
"""


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"partition": "gpu", "cpus_per_node": 96, "gpus_per_node": 8, "mem_gb": 2000}, ""),
        ({"partition": "gpu", "cpus_per_node": 128}, "cluster.cpus_per_node=96 (128 CPUs asked for)"),
        ({"cpus_per_node": 128, "mem_gb": 500}, ""),
        ({"cpus_per_node": 128, "gpus_per_node": 1}, "the default partition is so large"),
        ({"partition": "gpu,cpu", "gpus_per_node": 16}, "cluster.gpus_per_node=8 (16 GPUs asked for)"),
        ({"partition": "gpu", "mem_gb": 4000}, "cluster.mem_gb=2014 (4000 GB of memory asked for)"),
        ({"partition": "hidden", "cpus_per_node": 999}, ""),
    ],
)
def test_what_no_node_could_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, object], said: str
) -> None:
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\ncat <<'END'\n{SINFO}END\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    found = too_large(ClusterConfig(kind="slurm", **asked))  # type: ignore[arg-type]
    assert said in found and bool(said) is bool(found)


def test_a_slurm_that_does_not_answer_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert too_large(ClusterConfig(kind="slurm", cpus_per_node=9999)) == ""
    assert unknown_partition(ClusterConfig(kind="slurm", partition="gpu")) == ""


@pytest.mark.parametrize(
    ("asked", "said"),
    [("gpu", ""), ("gpu,cpu", ""), ("none,gpu", ""), ("", ""), ("gpus", "gpus"), ("GPU,old", "GPU,old")],
)
def test_a_partition_that_slurm_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, said: str
) -> None:
    (tmp_path / "sinfo").write_text("#!/bin/sh\nprintf 'gpu\\ncpu\\n'\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    found = unknown_partition(ClusterConfig(kind="slurm", partition=asked or None))
    assert bool(found) is bool(said) and (not said or (f"called {said}," in found and "cpu, gpu" in found))
