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
import yaml

from hpc import launch
from hpc.base import lock as module
from hpc.base.errors import Exit, UserError
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run
from hpc.run.launch_lock import launch_lock
from tests.gang.test_gang import config_file, finish, start
from tests.support.jobs import wait_for


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "run")
    found.make()
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOUCH_S", 0.1)
    monkeypatch.setattr(module, "_DEAD_S", 5.0)


def lock(run: Run) -> Path:
    return run.control / "launching"


def leave(run: Run, **facts: object) -> dict:
    """A lock as a launch that was killed leaves it."""
    with launch_lock(run):
        held = json.loads(lock(run).read_bytes()) | facts
    lock(run).write_text(json.dumps(held))
    return held


def ended() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_live_one_is_left_alone(run: Run, quick: None) -> None:
    """However long it works: it touches its lock."""
    with launch_lock(run):
        before = time.monotonic()
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is at work"), launch_lock(run, 3.0):
            pass
        assert time.monotonic() - before >= 3.0
    with pytest.raises(KeyError), launch_lock(run):
        raise KeyError
    assert not list(run.control.iterdir())


def test_a_dead_one_is_taken_over(run: Run) -> None:
    """At once where its process is known to have ended, or its number to be another's."""
    for facts in ({"pid": ended()}, {"started": "7"}):
        leave(run, **facts)
        before = time.monotonic()
        with launch_lock(run):
            assert json.loads(lock(run).read_bytes())["pid"] == os.getpid()
        assert time.monotonic() - before < module._DEAD_S / 2 and not list(run.control.iterdir())


def test_a_dead_one_of_another_host_is_taken_over(run: Run, quick: None) -> None:
    leave(run, host="another")
    before = time.monotonic()
    with launch_lock(run):
        assert time.monotonic() - before >= 5.0


@pytest.mark.slow(ci=True)
def test_a_takeover_that_was_killed_is_told(run: Run, quick: None) -> None:
    held = leave(run, pid=ended())
    (run.control / f"launching.over-{held['token']}").touch()
    with pytest.raises(UserError, match=r"Remove .*launching\*"), launch_lock(run):
        pass


def test_another_s_lock_is_not_released(run: Run) -> None:
    with launch_lock(run):
        lock(run).unlink()
        other = leave(run)
    assert json.loads(lock(run).read_bytes()) == other


def _count(path: Path, number: int) -> None:
    """Add to a number in a file, in a way that loses what is done at the same time."""
    run = Run(path)
    for _ in range(number):
        with launch_lock(run, 60.0):
            before = int((path / "number").read_text())
            time.sleep(0.005)
            (path / "number").write_text(str(before + 1))


def test_four_that_see_one_dead_lose_nothing(run: Run) -> None:
    (run.path / "number").write_text("0")
    for round_ in range(1, 4):
        leave(run, pid=ended())
        processes = [multiprocessing.Process(target=_count, args=(run.path, 3)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert (run.path / "number").read_text() == str(12 * round_)
        assert not list(run.control.iterdir())


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


@pytest.mark.slow(ci=True)
def test_ranks_of_a_killed_launch_are_waited_for(tmp_path: Path) -> None:
    """They notice at their step's end; two gangs never write one directory."""
    first = start(tmp_path, steps=3, step_s=6.0)
    wait_for(lambda: any("running" in p.read_text() for p in (tmp_path / "runs/gang/slots").glob("*.json")))
    first.kill()
    first.communicate()
    code, said, run = finish(tmp_path, steps=3, step_s=0.0)
    assert code == 0 and "waiting for ranks of a launch that was killed" in said
    assert len(run.submissions()) == 2


def test_a_refused_pipeline_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "pipe.yaml"
    stages = {"one": {"command": ["true"]}}
    tree = {"name": "pipe", "runs": str(tmp_path / "runs"), "cluster": {"kind": "local"}, "stages": stages}
    config.write_text(yaml.safe_dump(tree))
    assert launch.main([str(config)]) == 0
    run = PipelineRun(tmp_path / "runs" / "pipe")
    (run.control / "cancelled").write_text("by the test")
    with launch_lock(run):
        before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
        assert launch.main([str(config), "--from", "one"]) == Exit.USAGE
        assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before
    assert "is at work" in " ".join(capsys.readouterr().err.split())
