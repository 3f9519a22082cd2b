"""hpc.verify in several processes says what one says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpc import verify
from hpc.base import on_all_cores
from hpc.base.errors import Exit
from tests.data.corpus import build
from tests.support.jobs import EchoJob, inline, texts
from tests.support.published import published


@pytest.mark.slow
def test_several_processes_say_what_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = EchoJob(tmp_path, {f"s{i}": texts(3) for i in range(8)})
    job.submit()
    assert job.work() == 0
    for shard in ("s6", "s1"):
        with job.file(shard).open("r+b") as file:
            file.seek(30)
            file.write(b"\0\xff\0\xff")
    alone = inline("hpc.verify", str(job.run.path), "--full")
    monkeypatch.setattr(verify, "CHUNK", 1)
    monkeypatch.setattr(on_all_cores, "WORTHWHILE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    several = inline("hpc.verify", str(job.run.path), "--full")
    assert several.returncode == alone.returncode == Exit.INCOMPLETE
    assert several.stdout == alone.stdout and "2 of 8 markers do not hold" in alone.stdout


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"counts": {"ok": None}}, "`counts` is {'ok': None}"),
        ({"counts": {"ok": "2"}}, "`counts` is {'ok': '2'}"),
        ({"reasons": {"failed: x": [1]}}, "`reasons` is {'failed: x': [1]}"),
        ({"rows": True}, "`rows` is True"),
        ("[" * 100_000, "marker is empty or not JSON"),
    ],
)
def test_a_marker_that_holds_other_things_than_numbers(tmp_path: Path, said: object, told: str) -> None:
    """It is named, and status counts the others."""
    build(tmp_path, (2, 2))
    tree = {"name": "small", "runs": str(tmp_path / "runs"), "operator": "recap.data.shrink.ShrinkOperator"}
    run = published({**tree, "data": {"shards": [str(tmp_path / "tars")]}})
    marker = run.ledger(run.latest().identity).directory("00001") / "00001.g0.done"
    if isinstance(said, dict):
        said = json.dumps({**json.loads(marker.read_bytes()), **said})
    marker.write_text(str(said))
    done = inline("hpc.verify", str(run.path))
    assert done.returncode == Exit.INCOMPLETE and "1 of 2 markers do not hold" in done.stdout
    assert told in " ".join(done.stdout.split())
    assert "2 of 2 done" in " ".join(inline("hpc.status", str(run.path)).stdout.split())
