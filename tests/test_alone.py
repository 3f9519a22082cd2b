"""One launch of a run at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc import alone as module
from hpc import launch
from hpc.alone import alone
from hpc.errors import Exit, UserError
from hpc.rundir import Run
from tests.jobs import wait_for
from tests.train.test_gang import config_file, start


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "run")
    found.make()
    return found


def lock(run: Run) -> Path:
    return run.control / "launching"


def leave(run: Run, **facts: object) -> None:
    """A lock as a launch that was killed leaves it."""
    with alone(run):
        held = json.loads(lock(run).read_bytes())
    lock(run).write_text(json.dumps({**held, **facts}))


def test_another_is_refused_then_let_in(run: Run) -> None:
    with alone(run):
        before = time.monotonic()
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* remove .*launching"), alone(run, 0.5):
            pass
        assert time.monotonic() - before >= 0.5
    with pytest.raises(KeyError), alone(run):
        raise KeyError
    assert not lock(run).exists()


def test_of_a_process_that_is_gone(run: Run) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leave(run, pid=gone.pid)
    with alone(run):
        assert json.loads(lock(run).read_bytes())["pid"] == os.getpid()
    leave(run, pid=gone.pid, host="another")  # who knows whether it lives?
    with pytest.raises(UserError, match="on another"), alone(run):
        pass


def test_the_lock_of_a_third_is_not_removed(run: Run) -> None:
    """Two saw a dead one; the slower of them comes when the faster has taken its place."""
    leave(run, pid=1)
    module._remove(lock(run), {"pid": 2})
    assert json.loads(lock(run).read_bytes())["pid"] == 1
    assert [path.name for path in run.control.iterdir()] == ["launching"]


def _count(path: Path, number: int) -> None:
    """Add to a number in a file, in a way that loses what is done at the same time."""
    run = Run(path)
    for _ in range(number):
        with alone(run, 60.0):
            before = int((path / "number").read_text())
            time.sleep(0.005)
            (path / "number").write_text(str(before + 1))


def test_four_at_once_lose_nothing(run: Run) -> None:
    (run.path / "number").write_text("0")
    processes = [multiprocessing.Process(target=_count, args=(run.path, 5)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (run.path / "number").read_text() == "20"


def test_a_second_launch_of_a_training_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = start(tmp_path, steps=10**6, step_s=0.05)
    try:
        training = Run(tmp_path / "runs" / "gang")
        wait_for(lock(training).exists)
        assert launch.main([str(config_file(tmp_path, steps=10**6, step_s=0.05))]) == Exit.USAGE
        assert f"process {first.pid}" in " ".join(capsys.readouterr().err.split())
        assert len(training.submissions()) <= 1
    finally:
        first.kill()
        first.communicate()
