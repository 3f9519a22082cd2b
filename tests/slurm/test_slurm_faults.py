"""On a real Slurm: a sample that runs the whole step out of memory, and a gate that mends a cancelled array.

Both at once.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from hpc.operator import Item, Row
from hpc.run.published import Published
from tests.support.echo import Echo, EchoConfig
from tests.support.slurm_cluster import Cluster, wait
from tests.support.slurm_job import EchoJob


class Hungry(Echo):
    """A line "oom" takes more memory than its job may have: Slurm kills the step, agent and all."""

    Config: ClassVar[type] = EchoConfig

    def _one(self, item: Item) -> Row:
        if item.payload == "oom":
            hoard = bytearray(b"x" * (2 << 30))
            time.sleep(30)
            assert hoard
        return super()._one(item)


def _configure(job: EchoJob, **keys: Any) -> None:
    tree = yaml.safe_load(job.config.read_text())
    for key, value in keys.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    job.config.write_text(yaml.safe_dump(tree))


@pytest.mark.slow
@pytest.mark.slurm
def test_out_of_memory_and_gate(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "oom").mkdir()
    (tmp_path / "gate").mkdir()
    oom = EchoJob(slurm, tmp_path / "oom", shards=6, lines=10)
    poisoned = oom.inputs / "shard-03.txt"
    poisoned.write_text("first\noom\n" + "more\n" * 6)
    _configure(oom, operator="tests.slurm.test_slurm_faults.Hungry", batch=3, map={"segment": 4})
    gated = EchoJob(slurm, tmp_path / "gate", shards=8, lines=20, delay_s=0.05)
    try:
        oom.launch("mem_gb=1", "nodelist=n1")
        gated.launch("gate=true", "nodelist=n2")
        gate = gated.run.latest().gate
        witness = tmp_path / "after-the-gate"
        after = ("sbatch", "--parsable", "--nodelist=n3", "-o", "/dev/null", "--kill-on-invalid-dep=yes")
        slurm.run(*after, f"--dependency=afterok:{gate}", f"--wrap=touch {witness}")
        _check_gate(gated, witness)
        _check_poison(oom)
    finally:
        oom.cancel()
        gated.cancel()


def _check_gate(job: EchoJob, witness: Path) -> None:
    """The array is cancelled half-way; its gate launches again, waits, and lets the next job run only then."""
    job.wait_working()
    first = job.id
    job.slurm.run("scancel", first)
    wait(lambda: len(job.run.submissions()) == 2 and job.run.latest().job_ids, "the gate has launched again")
    assert not witness.exists() and job.id != first
    wait(witness.exists, "the job behind the gate has run")
    job.check()


def _check_poison(job: EchoJob) -> None:
    """Found, quarantined, and nobody else charged."""
    wait(lambda: len(job.done()) == 6, "every shard is done")
    job.wait_over()
    kills = [e for e in job.lives() if e.get("state") != "exited"]
    assert 3 <= len(kills) <= 5, f"the step was killed {len(kills)} times"
    published = {s.shard.id: s for s in Published(job.run.path)}
    rows = published["shard-03"].table().to_pylist()
    assert [(r["key"], r["reason"]) for r in rows if r["status"] != "ok"] == [
        ("shard-03-00001", "engine: killed the worker twice")
    ]
    assert published["shard-03"].marker["counts"] == {"ok": 7, "quarantined": 1}
    assert all(s.marker["counts"] == {"ok": 10} for i, s in published.items() if i != "shard-03")
    ledger = job.run.ledger(job.run.latest().identity)
    assert not list(ledger.root.glob("*/*.failed")), "no shard was charged"
    job.slurm.run(sys.executable, "-m", "hpc.verify", str(job.run.path), "--full")
