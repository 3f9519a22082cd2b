"""What `hpc.clean` removes, and what it leaves: only what nobody will read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from hpc import clean
from hpc.base.errors import Exit
from hpc.operator import Shard
from hpc.run.directory import Run
from hpc.run.ledger import DONE, FAILED, Claim
from hpc.run.segments import Segments, Writer
from tests.support.jobs import inline

IDENTITY = "12345678"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.make()
    return run


def saved(run: Run, shard: str, generation: int) -> Path:
    """Segments of a shard, as an engine saves them."""
    segments = Segments(run.segments(IDENTITY, shard, generation))
    Writer(segments.path(0), []).append([(0, pa.table({"key": ["a", "b"]}))])
    return segments.path(0)


def saved_by_an_earlier_version(run: Run, shard: str, generation: int) -> Path:
    folder = run.segments(IDENTITY, shard, generation)
    folder.mkdir(parents=True)
    (folder / "00000000-00000002.parquet").write_bytes(b"x")
    return folder


def mark(run: Run, shard: str, generation: int, mark: str) -> None:
    claim = Claim(Shard(shard, "", 0), generation, 0)
    run.ledger(IDENTITY).claim(claim, "me")
    run.ledger(IDENTITY).mark(claim, mark, {"file": "x"})


def test_segments_that_nobody_needs(run: Run) -> None:
    """Every combination of what a generation came to, and of a rerun after it."""
    goes: list[Path] = []
    stays: list[Path] = []
    for shard, ended in (("done", DONE), ("failed", FAILED), ("open", "")):
        for keep in (None, False, True):
            name = f"{shard}-{keep}"
            both = [saved(run, name, 0), saved_by_an_earlier_version(run, name, 0)]
            if ended:
                mark(run, name, 0, ended)
            if keep is not None:
                run.generations.open({name: 1}, "rerun", keep=keep)
                stays.append(saved(run, name, 1))
            needed = (ended != DONE) if keep is None else (keep and ended != DONE)
            (stays if needed else goes).extend(both)
    late = saved(run, "again", 0)
    mark(run, "again", 0, FAILED)
    run.generations.open({"again": 1}, "rerun", keep=True)
    mark(run, "again", 1, DONE)
    goes += [late, saved(run, "again", 1)]
    said = inline("hpc.clean", str(run.path))
    assert said.returncode == Exit.COMPLETE and "nothing was removed" in said.stdout
    assert clean.find(run).segments == sorted(goes, key=lambda p: (p.parent.name, p.name))
    assert all(part.exists() for part in goes)
    said = inline("hpc.clean", str(run.path), "--delete")
    assert f"removed: {len(goes)} saved parts" in said.stdout
    assert not any(part.exists() for part in goes) and all(part.exists() for part in stays)
    assert "can be removed: 0 saved parts" in inline("hpc.clean", str(run.path)).stdout


def test_old_temporary_files_by_the_servers_clock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    old, young = run.slots / ".tmp-n1-7-0-aa", run.journals / ".tmp-n1-7-1-bb"
    other = run.slots / "tmp-mine"
    for path in (old, young, other):
        path.write_bytes(b"12345")
    hours_ago = time.time() - 2 * clean.TEMPORARY_S
    os.utime(old, (hours_ago, hours_ago))
    os.utime(other, (hours_ago, hours_ago))
    monkeypatch.setattr(time, "time", lambda: 4e9)  # this machine's clock is wrong
    found = clean.find(run)
    assert (found.temporary, found.bytes) == ([old], 5)
    inline("hpc.clean", str(run.path), "--delete")
    assert not old.exists() and young.exists() and other.exists()


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".tmp-mine").write_bytes(b"")
    os.utime(tmp_path / ".tmp-mine", (1e9, 1e9))
    assert inline("hpc.clean", str(tmp_path), "--delete").returncode == Exit.USAGE
    assert (tmp_path / ".tmp-mine").exists()
