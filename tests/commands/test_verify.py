"""hpc.verify in several processes says what one says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc import verify
from hpc.base import on_all_cores
from hpc.base.errors import Exit
from tests.support.jobs import EchoJob, inline, texts


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
