"""Forecasts: ranges that earlier runs on the same kind of nodes have taught."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc import config as configs
from hpc import launch
from hpc.base import atomic
from hpc.base.errors import Exit
from hpc.map import forecast, track_record
from hpc.map import launch as map_launch
from hpc.map.engine_time import KINDS
from hpc.operator import Shard
from hpc.run.directory import Run
from tests.support.jobs import EchoJob, inline, texts


def past(folder: Path, name: str, seconds: float, rate: float = 0.0, **settings: Any) -> EchoJob:
    """A run of one engine that made 100 samples: so many seconds of its life, of which 20 were between its first claim
    and its last block.
    """
    job = EchoJob(folder / name, {"a": texts(100)}, name=name, runs=str(folder / "runs"), **settings)
    job.run = Run(folder / "runs" / name)
    submission = job.submit()
    submission.rate = rate
    job.run.save(submission)
    block = {"shard": "a", "g": 0, "e": 0, "engine": 0, "start": 0, "counts": {"ok": 100}, "adopted": False}
    spent = {"seconds": {**dict.fromkeys(KINDS, 0.0), "work": 20.0, "start": seconds - 20.0}, "unsaved": 0.0}
    events: list[dict[str, Any]] = [
        {"t": 1e9, "event": "start", "host": "n1"},
        {"t": 1e9 + 10, "event": "claim", "shard": "a"},
        {"t": 1e9 + 30, "event": "segment", **block},
        {"t": 1e9 + seconds, "event": "stop", "code": 75, "time": spent},
    ]
    lines = b"".join(atomic.as_json(event) + b"\n" for event in events)
    (job.run.journals / f"{submission.uuid}-0000-0.jsonl").write_bytes(lines)
    return job


def said(folder: Path, config: Any, rate: float) -> str:
    """Of 36,000 samples on two nodes of one engine."""
    job: Any = SimpleNamespace(directory=folder / "runs" / "next", run=config.run, resolved=config.resolved)
    return forecast.lines(job, "00000000", [Shard("a", "", 1, expected=36_000)], 2, rate)[0]


def test_ranges_are_learned_from_runs_of_the_same_profile(tmp_path: Path) -> None:
    first = past(tmp_path, "one", 30.0, cluster={"price": 2.0})
    config = configs.load(first.config_file, [])
    past(tmp_path, "elsewhere", 900.0, cluster={"cpus_per_node": 64})
    (tmp_path / "runs" / "no-run").mkdir()
    hurt = tmp_path / "runs" / "hurt" / "submissions"
    hurt.mkdir(parents=True)
    (hurt / "0123456789ab.json").write_bytes(b"torn")
    # alone it took 1.5 times the hours of its working rate, 5 samples a second
    line = said(tmp_path, config, 10.0)
    assert "→ 1.0 engine hours to 1.5 engine hours ≈ 30.0 min to 45.0 min on 2 nodes" in line, line
    assert "$2.00 to $3.00 at 2.00/h: 1 earlier run on this kind of nodes took 1.50 times the hours" in line, line
    past(tmp_path, "two", 25.0)
    past(tmp_path, "three", 20.0, rate=8.0)  # what was tuned, and foreseen, is what counts: 1.6
    line = said(tmp_path, config, 10.0)
    assert "→ 1.2 engine hours to 1.6 engine hours" in line, line
    assert "3 earlier runs on this kind of nodes took 1.25 to 1.60 times the hours of their rate (last: three)" in line
    known = track_record.past_runs(tmp_path / "runs", config.resolved["cluster"])
    assert {one.run: one.times for one in known} == {"one": 1.5, "two": 1.25, "three": 1.6}


def test_without_a_past_it_is_at_least(tmp_path: Path) -> None:
    config = configs.load(EchoJob(tmp_path, {"a": texts(3)}).config_file, [])
    line = said(tmp_path, config, 10.0)
    assert "→ at least 1.0 engine hours ≈ 30.0 min on 2 nodes: no earlier run here" in line, line


def test_a_launch_keeps_its_rate_and_status_says_how_it_was_met(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(8)}, delay_s=0.02)
    assert job.launch("--rate", "50").returncode == 0
    assert job.run.latest().rate == 50.0
    facts = json.loads(inline("hpc.status", str(job.run.path), "--json").stdout)
    assert facts["effort"]["times_foreseen"] == pytest.approx(3600 * facts["effort"]["hours"] * 50 / 8, rel=0.01)
    assert "times the hours that its forecast's rate says" in " ".join(
        inline("hpc.status", str(job.run.path)).stdout.split()
    )
    again = map_launch.record(map_launch.prepare(configs.load(job.config_file, [])))
    assert again.rate == 50.0, "a launch that goes on has begun with it"
    other = map_launch.prepare(configs.load(job.config_file, ["name=other"]))
    assert map_launch.record(other).rate > 0, "measured in the run beside it"


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_a_rate_that_is_none(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.main(["configs/caption/demo.yaml", "--dry-run", "--rate", rate])
    assert ended.value.code == Exit.USAGE and "argument --rate" in capsys.readouterr().err
