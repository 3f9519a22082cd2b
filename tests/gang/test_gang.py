"""A gang on this machine: restarts, stops, gives up, says why; and what status shows of it."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hpc import launch
from hpc.base import heartbeat
from hpc.base.errors import Exit
from hpc.config import ClusterConfig, importable
from hpc.gang import rank as gang
from hpc.gang import status as gang_status
from hpc.gang.launch import GangJob, _check_memory
from hpc.run.directory import Run
from tests.support.jobs import inline, wait_for
from tests.train.plain import Plain

ROOT = Path(__file__).parents[2]


def config_file(folder: Path, ranks: int = 2, trainer: str = "tests.train.plain.Plain", **more: Any) -> Path:
    tree = {
        "trainer": trainer, "name": "gang", "runs": str(folder / "runs"),
        "cluster": {"kind": "local", "engines_per_node": ranks}, **more,
    }  # fmt: skip
    path = folder / "gang.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(folder: Path, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpc.launch", str(config_file(folder, **more))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def finish(folder: Path, **more: Any) -> tuple[int, str, Run]:
    process = start(folder, **more)
    said = process.communicate(timeout=240)[0]
    run = Run(folder / "runs" / "gang")
    logs = "".join(path.read_text(errors="replace") for path in sorted(run.logs.glob("*.log")))
    return process.returncode, said + logs, run


def test_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, run = finish(tmp_path, ranks=3)
    assert code == 0
    monkeypatch.setattr(Plain, "next_steps", lambda self, run: [f"python -m look {run}", "and then"], raising=False)
    said = inline("hpc.status", str(run.path)).stdout
    assert f"next     python -m look {run.path}\n         and then\nlaunch again: " in said
    facts = gang_status.read_status(run)
    assert (facts["exit"], facts["state"], facts["ranks"], facts["lives"]) == (0, "exited", 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cluster", "asked"),
    [
        ({"kind": "local"}, [(8, None)]),
        ({"kind": "slurm", "sbatch": {"mem": "64G"}}, [(8, 16 << 30)]),
        ({"kind": "slurm", "sbatch": {"mem": 4000}}, [(8, 1000 << 20)]),
        ({"kind": "slurm", "sbatch": {"mem": "0"}}, []),
        ({"kind": "slurm"}, []),
    ],
)
def test_memory_is_asked_about_where_it_is_known(tmp_path: Path, cluster: dict[str, Any], asked: list[Any]) -> None:
    said: list[tuple[int, int | None]] = []
    trainer: Any = SimpleNamespace(check_memory=lambda ranks, run, memory: said.append((ranks, memory)))
    settings = SimpleNamespace(cluster=ClusterConfig(**cluster, gpus_per_node=4), gang=SimpleNamespace(nodes=2))
    _check_memory(GangJob(SimpleNamespace(run=settings), trainer, Run(tmp_path), ""))  # type: ignore[arg-type]
    assert said == asked


@pytest.mark.slow(ci=True)
def test_gives_up_after_five_lives_without_progress(tmp_path: Path) -> None:
    """A rank that dies at once takes the other with it, is restarted four times, and no more."""
    code, said, run = finish(tmp_path, does="die")
    assert code == Exit.INCOMPLETE
    assert "gave up: 5 lives without a new checkpoint" in said
    assert len(heartbeat.read_all(run.slots)) == 5


def test_one_rank_knows_better(tmp_path: Path) -> None:
    """A final code of one rank ends the job, although the others were killed."""
    code, said, run = finish(tmp_path, does="usage", steps=1000, step_s=0.1)
    assert code == Exit.USAGE and "only this rank sees that it is wrong" in said
    assert len(heartbeat.read_all(run.slots)) <= 2
    assert "failed: data: only this rank sees that it is wrong" in gang_status.read_status(run)["failures"]


def test_a_trainer_that_only_the_launcher_can_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch cannot foresee (a prelude, a package that goes away) is said by the first rank that dies of it."""
    monkeypatch.setattr(importable, "problem", lambda config: "")
    (tmp_path / "elsewhere.py").write_text("from tests.train.plain import Plain\n")
    monkeypatch.syspath_prepend(tmp_path)
    config_file(tmp_path, trainer="elsewhere.Plain")
    assert launch.main([str(tmp_path / "gang.yaml")]) == Exit.USAGE
    facts = gang_status.read_status(Run(tmp_path / "runs" / "gang"))
    assert (facts["exit"], facts["state"]) == (Exit.USAGE, "exited")
    assert any("does not import" in reason for reason in facts["failures"])


@pytest.mark.slow
def test_hung_rank_shows_every_stack(tmp_path: Path) -> None:
    """Rank 1 hangs in reading its data, rank 0 waits for it in a collective: both print where, and the life ends."""
    gang = {"nodes": 1, "hang_s": 4.0, "setup_s": 100.0}
    train = {"samples": 960, "batch": 12, "threads": 1}
    process = start(tmp_path, trainer="tests.train.tiny.TinyTrainer", gang=gang, train=train, hang_at=100)
    run = Run(tmp_path / "runs" / "gang")
    for rank in (0, 1):
        text = said_until(run, f"rank {rank}: no sign of life for 4 s")
    (run.control / "cancelled").write_text("by the test")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=240)
    waiting, reading = 'loop.py", line [0-9]+ in agree', 'tiny.py", line [0-9]+ in batch'
    assert re.search(waiting, text) and re.search(reading, text)


def test_a_rank_that_stalls_twice_shows_its_newest_stacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open(tmp_path / "stacks", "w") as stacks:
        rank: Any = SimpleNamespace(_stacks=stacks, rank=0, _limit=2.0)
        for _ in range(2):
            size = os.fstat(stacks.fileno()).st_size
            faulthandler.dump_traceback_later(0.01, file=stacks)
            wait_for(lambda size=size: os.fstat(stacks.fileno()).st_size > size)
            time.sleep(0.5)  # until all of it is written
            gang.Rank._show(rank)
    first, second = (record.getMessage() for record in caplog.records)
    for text in (first, second):
        assert text.startswith("rank 0: no sign of life for 2 s") and "test_gang.py" in text
    assert second.count("most recent call first") == first.count("most recent call first")


def said_until(run: Run, word: str) -> str:
    """The run's logs, once they hold a word, or after four minutes."""
    end, text = time.monotonic() + 240, ""
    while word not in text and time.monotonic() < end:
        time.sleep(0.2)
        text = "".join(path.read_text(errors="replace") for path in run.logs.glob("*.log")) if run.logs.is_dir() else ""
    return text


def stop_when_running(folder: Path, *numbers: int, **more: Any) -> tuple[subprocess.Popen[str], str, float]:
    """Launch, send the signals once steps are made, a second apart; (process, what it said, seconds to its end)."""
    process = start(folder, **more)
    while gang_status_state(Run(folder / "runs" / "gang")) != "running":
        time.sleep(0.1)
    told = time.monotonic()
    for number in numbers:
        time.sleep(1.0)
        process.send_signal(number)
    said = process.communicate(timeout=240)[0]
    return process, said, time.monotonic() - told


def test_ctrl_c_stops_and_launch_goes_on(tmp_path: Path) -> None:
    process, said, _ = stop_when_running(tmp_path, signal.SIGINT, steps=400, step_s=0.05)
    assert process.returncode == Exit.INCOMPLETE and "stopping at a checkpoint" in said
    assert finish(tmp_path, steps=400, step_s=0.0)[0] == 0  # the same identity: steps is semantic, step_s is not


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    process, said, took = stop_when_running(tmp_path, signal.SIGINT, signal.SIGINT, does="long")
    assert process.returncode == Exit.INCOMPLETE and "killed" in said and took < 50


@pytest.mark.slow
def test_a_long_step_is_waited_for(tmp_path: Path) -> None:
    """Told to stop in the midst of a step of more than a minute, it ends well, however often it is told."""
    process, said, took = stop_when_running(tmp_path, signal.SIGTERM, signal.SIGTERM, does="long")
    assert process.returncode == Exit.INCOMPLETE and "killed" not in said and took > 60
    assert stop_code(tmp_path) == Exit.REQUEUE


@pytest.mark.slow(ci=True)
def test_told_to_stop_while_it_loads(tmp_path: Path) -> None:
    """Before its first step a life has nothing to save: it ends within seconds, all ranks alike."""
    process, _, took = stop_when_running(tmp_path, signal.SIGTERM, does="load")
    assert process.returncode == Exit.INCOMPLETE and took < 60
    assert stop_code(tmp_path) == Exit.REQUEUE


def stop_code(folder: Path) -> Any:
    return gang_status.read_status(Run(folder / "runs" / "gang"))["code"]


def gang_status_state(run: Run) -> str:
    try:
        return str(gang_status.read_status(run)["state"])
    except Exception:  # noqa: BLE001 - not there yet
        return ""


def test_cancelled_by_control_file(tmp_path: Path) -> None:
    process = start(tmp_path, steps=10**6, step_s=0.05)
    run = Run(tmp_path / "runs" / "gang")
    while gang_status_state(run) != "running":
        time.sleep(0.1)
    (run.control / "cancelled").write_text("by the test")
    said = process.communicate(timeout=240)[0]
    assert process.returncode == Exit.INCOMPLETE and "cancelled: by the test" in said


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"does": "refuse"}, "refused on 2 ranks"),
        ({"trainer": "tests.train.plain.Nobody"}, "`trainer`: 'tests.train.plain.Nobody' does not import"),
        ({"operator": "tests.support.echo.Echo"}, "one of the two"),
        ({"stepz": 3}, "Did you mean `steps`"),
        ({"gang": {"nodes": 0}}, "gang.nodes"),
    ],
)
def test_usage(tmp_path: Path, change: dict[str, Any], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([str(config_file(tmp_path, **change))]) == Exit.USAGE
    assert word in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_another_training_in_the_same_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([str(config_file(tmp_path, steps=1))]) == 0
    assert launch.main([str(config_file(tmp_path, steps=2))]) == Exit.USAGE
    assert "what is trained changed (steps;" in " ".join(capsys.readouterr().err.split())


def test_shards_of_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands of map jobs say what this is."""
    from hpc import rerun, verify

    assert launch.main([str(config_file(tmp_path, steps=1))]) == 0
    says = {rerun: "is a training, which goes on from its checkpoint", verify: "is a training, it has no shards"}
    for command, said in says.items():
        assert command.main([str(tmp_path / "runs" / "gang")]) == Exit.USAGE
        assert said in " ".join(capsys.readouterr().err.split())


def test_launch_does_not_import_torch(tmp_path: Path) -> None:
    """Login nodes check, describe and dry-run without it."""
    source = (
        "import sys; from hpc import launch, status; from recap.sft import trainer;"
        "trainer.table = lambda given: ['the table']; code = launch.main(['configs/sft/demo.yaml', '--dry-run']);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the table" in done.stdout and "RANK=0 WORLD_SIZE=2" in done.stdout


@pytest.mark.slow(ci=True)
def test_status_shows_a_training(tmp_path: Path) -> None:
    """Two real ranks of the tiny task; then what people and scripts are shown."""
    train = {"samples": 96, "batch": 12, "save_every": 48, "evaluate_every": 48, "threads": 1, "max_rejected": 0.1}
    assert finish(tmp_path, trainer="tests.train.tiny.TinyTrainer", train=train, reject=20)[0] == 0
    code, shown = status(tmp_path)
    assert code == 0
    for word in (
        "96 of 96",
        "step 8",
        "samples/s",
        "tokens/s",
        "waiting for data",
        "checkpoint",
        "2 ranks",
        "held_out",
    ):
        assert word in shown, word
    facts = json.loads(status(tmp_path, "--json")[1])
    assert facts["failures"] == {"rejected: odd": facts["rejected"]} and facts["rejected"] > 1
    assert facts["checkpoint"]["samples"] == 96 and facts["mfu"] is None and facts["loss"] > 0
    assert facts["evaluation"]["samples"] == 96 and facts["evaluation"]["held_out"] > 0


def status(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "hpc.status", str(folder / "runs" / "gang"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout
