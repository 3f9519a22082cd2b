"""Tuning a job on its own data: trials with real engines and servers, what fails in them, and going on after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc import launch
from hpc.base.errors import Exit, UserError
from hpc.config import tuned
from recap.demo import CAPTIONER, FLAGS
from recap.engine.tuning import grid as grids
from recap.engine.tuning.grid import Grid
from recap.engine.tuning.trial import Trial
from tests.support.jobs import ENVIRONMENT, ROOT, wait_for
from tests.support.surfaces import SHAPES, Point, surface

SIZES = (5, 4)


def living(control: Path) -> list[int]:
    found = [int(path.read_text() or path.name) for path in (control / "pids").glob("*")]
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def job_tree(folder: Path, shape: str = "tent", seed: int = 0, sizes: Point = SIZES, **server: Any) -> dict[str, Any]:
    """A captioning job by servers whose speed is that of a surface."""
    command = [
        sys.executable, "-m", "tests.support.scripted_server", "--port", "{port}", "--control", str(folder),
        "--surface", shape, "--seed", str(seed), "--sizes", ",".join(map(str, sizes)), "--at", "{slots},{micro_batch}",
    ]  # fmt: skip
    given = {"command": command, "env": {"PYTHONPATH": str(ROOT)}, "start_s": 100.0, **server}
    return {
        "name": "job", "operator": "recap.caption.operator.CaptionOperator", "runs": str(folder / "runs"),
        "data": {"shards": [str(FLAGS)]},
        "captioner": {"backend": "openai", "model": str(CAPTIONER), "slots": 1, "micro_batch": 1, "window": 4,
                      "server": given},
        "cluster": {"kind": "local", "price": 2.0}, "map": {"setup_s": 120.0, "min_free_gb": 0.0, "lease_s": 5.0},
    }  # fmt: skip


def job_file(folder: Path, *arguments: Any, **server: Any) -> Path:
    # With slots and micro_batch as positions on the surface's axes.
    file = folder / "job.yaml"
    file.write_text(configs.dump(job_tree(folder, *arguments, **server)))
    return file


def grid_words(sizes: Point) -> list[str]:
    values = [",".join(str(value + 1) for value in range(size)) for size in sizes]
    return ["--grid", f"captioner.slots={values[0]}", "--grid", f"captioner.micro_batch={values[1]}"]


def tune(file: Path, *words: str, sizes: Point = SIZES) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "recap.engine.tune", str(file), *grid_words(sizes), "--json", *words]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)


def test_a_trial_measures_or_says_why_not(tmp_path: Path) -> None:
    """At one point the server is as fast as its surface says, at another its memory does not suffice."""
    rates = surface("tent", 0, SIZES)
    job = configs.check(job_tree(tmp_path), "job")
    shards = job.operator().plan()
    fast = max((point for point in rates if rates[point]), key=lambda point: rates[point] or 0.0)
    ended = {}
    for point in (fast, (SIZES[0] - 1, SIZES[1] - 1)):
        changes = {"captioner.slots": point[0] + 1, "captioner.micro_batch": point[1] + 1}
        config = grids.config_of(job, changes)
        ended[point] = Trial(config, shards, tmp_path / "trial", 1.0, 40).run()
        assert not living(tmp_path)
    good, bad = ended.values()
    assert good.kind == "ok" and good.samples > 0 and good.engines == 1 and good.tokens > good.rate
    assert 0 < good.rate <= 1.3 * (rates[fast] or 0), "no faster than it can be"
    assert bad.kind == "out of memory" and "CUDA out of memory" in bad.why and bad.rate == 0


def test_what_is_no_grid_and_what_a_launch_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grids.parsed(["a.b=1,2", "c=[x, null]"]) == {"a.b": [1, 2], "c": ["x", None]}
    grid = Grid.checked({"a": [4, 1, 4, 2], "b": ["fp8", "bf16"]})
    assert grid.values == {"a": [1, 2, 4], "b": ["fp8", "bf16"]} and grid.axes.ordered == (True, False)
    assert grid.changes((2, 1)) == {"a": 4, "b": "bf16"}
    job = configs.check(job_tree(tmp_path), "job")
    mistakes: list[dict[str, Any]] = [{}, {"a": 3}, {"a": []}, {"a": list(range(50)), "b": list(range(50))}]
    for wrong in mistakes:
        with pytest.raises(UserError, match="tune: grid"):
            Grid.checked(wrong)
    for changes, told in (
        ({"captioner.precision": "fp8"}, "the openai backend has no fp8"),
        ({"captioner.slotz": 1}, "captioner.slots"),
        ({"cluster.gpus_per_node": 8, "cluster.gpus_per_engine": 3}, "cannot be dealt out"),
        ({"captioner.slots": None}, "wants {slots}"),
    ):
        with pytest.raises(UserError, match=told):
            grids.config_of(job, changes)
    changed = grids.config_of(job, {"captioner.server.command.6": 7})
    assert changed.work.captioner.server.command[6] == "7"
    assert grids.name_of(changed) != grids.name_of(job) == grids.name_of(configs.check(job.resolved, "again"))


def test_forecasts_count_on_a_trial_with_just_these_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = job_file(tmp_path)
    config = configs.load(file, [])
    folder = tmp_path / "runs" / "job-tune" / tuned.FOLDER
    folder.mkdir(parents=True)
    identity = configs.identity(config, config.operator())
    record = {"rate": 12.5, "identity": identity, "settings": tuned.settings(config), "when": 1.0}
    (folder / "abc.json").write_text(json.dumps(record))
    (folder / "damaged.json").write_text("{")
    assert launch.main([str(file), "--dry-run"]) == Exit.COMPLETE
    shown = " ".join(capsys.readouterr().out.split())
    assert "data.expected" in shown or "12.5 samples/s per CPU engine (tuned in job-tune)" in shown
    assert tuned.find(tmp_path / "runs", config, identity) == tuned.Tuned(12.5, "tuned in job-tune")
    other = configs.load(file, ["captioner.slots=2"])
    assert tuned.find(tmp_path / "runs", other, identity) is None
    assert tuned.find(tmp_path / "runs", config, "another") is None


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """kill -9 of all that tunes, in the middle: the same command does what is missing, and nothing twice."""
    file = job_file(tmp_path)
    words = ["--trials", "4", "--seconds", "1", "--samples", "40"]
    first, trials = tune(file, *words), tmp_path / "runs" / "job-tune" / tuned.FOLDER

    def ended() -> list[Path]:
        return [path for path in trials.glob("*.json") if path.name != "sample.json"]

    wait_for(lambda: len(ended()) >= 1 and living(tmp_path))
    import psutil

    everyone = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    ours = [p for p in everyone if any(name in " ".join(p.cmdline()) for name in ("recap.engine.tune", "hpc."))]
    keepers = [p for p in ours if "hpc.base.keeper" in p.cmdline()]
    for process in (p for p in ours if p not in keepers):
        process.kill()
    first.wait()
    wait_for(lambda: not living(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in ended()}
    again = tune(file, *words)
    assert again.stdout is not None
    found = json.loads(again.stdout.read())
    assert again.wait() == Exit.COMPLETE
    assert len(found["trials"]) == 4 and not found["left"] and len({t["shard"] for t in found["trials"]}) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    page = (tmp_path / "runs" / "job-tune" / "tune.html").read_text()
    assert "<svg" in page and "<script" not in page
    assert found["best"]["cost"] == pytest.approx(found["best"]["hours"] * 2.0)
    assert found["launch"].startswith("python -m hpc.launch") and "captioner.slots=" in found["launch"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_server_is_tuned_within_five_percent(shape: str, tmp_path: Path) -> None:
    """The whole command, by servers that are really started: at most twelve trials of the sixty points."""
    sizes = (10, 6)
    rates = surface(shape, 1, sizes)
    process = tune(job_file(tmp_path, shape, 1, sizes), "--seconds", "4", "--samples", "120", sizes=sizes)
    assert process.stdout is not None
    found = json.loads(process.stdout.read())
    assert process.wait() == Exit.COMPLETE and found["points"] == 60 and len(found["trials"]) <= 12
    changes = found["best"]["changes"]
    best = rates[changes["captioner.slots"] - 1, changes["captioner.micro_batch"] - 1]
    assert best is not None and best >= 0.95 * max(rate for rate in rates.values() if rate)
    for row in found["trials"]:
        rate = rates[row["changes"]["captioner.slots"] - 1, row["changes"]["captioner.micro_batch"] - 1]
        assert row["kind"] == ("ok" if rate else "out of memory"), row
    assert not living(tmp_path)
