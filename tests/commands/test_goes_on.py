"""What a user types after a run: what it says of how to go on, all runs at a glance, the same shards again, what is
there to be typed at all.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hpc import config, keys, relaunch
from hpc.base import atomic, heartbeat
from hpc.base.errors import Exit, UserError
from hpc.map import launch as map_launch
from hpc.run.directory import Run
from tests.commands.test_launch import everything
from tests.gang.test_gang import config_file
from tests.support.jobs import ROOT, EchoJob, command, inline, texts, wait_for

OVERRIDES = ("prefix=a b", "map.segment=4", "cluster.prelude=[echo $HOME]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoJob]:
    job = EchoJob(tmp_path_factory.mktemp("finished"), {"a": texts(5), "b": texts(3)})
    assert job.launch(*OVERRIDES).returncode == Exit.COMPLETE
    yield job
    job.close()


def copied(finished: EchoJob, folder: Path) -> EchoJob:
    """The run with its input, moved to another place."""
    job = EchoJob(folder / "moved", finished.lines)
    shutil.copytree(finished.run.path, job.run.path, symlinks=True)
    return job


def again(said: str) -> list[str]:
    """The arguments of the launch that a command's output names, as a shell would take them."""
    found = re.search(r"python -m hpc\.launch.*", said.replace("\\\n", " "))
    assert found is not None, said
    return shlex.split(found[0])[3:]


# --- how to go on -----------------------------------------------------------------------------


def test_a_finished_run_says_how_it_was_launched(finished: EchoJob) -> None:
    typed = again(inline("hpc.status", str(finished.run.path)).stdout)
    assert typed == [str(finished.config_file), *OVERRIDES]
    made = map_launch.prepare(config.load(typed[0], typed[1:]))
    assert made.run.path == finished.run.path and made.identity == finished.run.latest().identity


def test_cancel_of_a_finished_run_changes_nothing(finished: EchoJob) -> None:
    before = everything(finished.run.path)
    done = inline("hpc.cancel", str(finished.run.path))
    assert done.returncode == Exit.COMPLETE and "is finished: nothing to cancel, nothing was changed" in done.stdout
    assert everything(finished.run.path) == before and again(done.stdout) == [str(finished.config_file), *OVERRIDES]


def test_a_run_s_config_is_launched_as_it_is_wherever_it_lies(finished: EchoJob, tmp_path: Path) -> None:
    moved = tmp_path / "else where" / "new name"
    shutil.copytree(finished.run.path, moved, symlinks=True)
    typed = again(inline("hpc.status", str(moved)).stdout)
    assert typed == [str(moved / "config.yaml")]
    made = map_launch.prepare(config.load(typed[0], []))
    assert made.run.path == moved and made.previous is not None and made.identity == made.previous.identity
    other = map_launch.prepare(config.load(typed[0], ["name=other"]))
    assert other.run.path == moved.parent / "other" and other.identity == made.identity


def test_cancel_says_what_it_could_not_reach(tmp_path: Path) -> None:
    """A slot of another machine that was heard of a moment ago, and one of this machine that hangs."""
    job = EchoJob(tmp_path, {"a": texts(4)}, map={"drain_s": 0.1})
    job.submit()
    facts = {"submission": job.run.latest().uuid, "state": "running", "host": "elsewhere", "pid": 1, "t": time.time()}
    heartbeat.register(job.run.slots, job.run.latest().uuid, 3, facts)
    done = command("hpc.cancel", str(job.run.path), "--now")
    assert done.returncode == Exit.INCOMPLETE
    assert "not reached: slot 3 on elsewhere" in done.stdout and "control/cancelled" in done.stdout
    assert socket.gethostname() in (job.run.control_text("cancelled") or "")


# --- the same shards again --------------------------------------------------------------------


def test_rerun_of_shards_that_did_not_fail(finished: EchoJob, tmp_path: Path) -> None:
    """One is done, one was never begun; the run has moved, and has another name."""
    job = copied(finished, tmp_path)
    run = Run(job.run.path.with_name("a b"))
    job.run.path.rename(run.path)
    ledger = run.ledger(run.latest().identity)
    (ledger.directory("b") / "b.g0.done").unlink()
    for left in ledger.directory("b").glob("b.g0.*"):
        left.unlink()
    done = command("hpc.rerun", str(run.path), "--shards", "a,b")
    assert done.returncode == Exit.COMPLETE, done.stdout + done.stderr
    assert "reopened 1 shards (first: a): 1 that were done, and are made again" in done.stdout
    assert "1 shards are not finished yet: nothing to reopen" in done.stdout
    states = ledger.survey(run.generations.opened())
    assert {i: (s.generation, s.status) for i, s in states.items()} == {"a": (1, "done"), "b": (0, "done")}
    assert relaunch.command_for_job(run)[3:] == [
        str(finished.config_file),
        *OVERRIDES,
        f"runs={run.path.parent}",
        "name=a b",
    ]


def test_slots_that_run_cannot_take_up_a_replaced_file(finished: EchoJob, tmp_path: Path) -> None:
    """They know the file's old size and would fail the shard; slots of the next launch know the new one."""
    job = copied(finished, tmp_path)
    (job.inputs / "a.txt").write_text("\n".join(texts(9)))
    before = everything(job.run.path)
    wanted = ["hpc.rerun", str(job.run.path), "--shards", "a", f"inputs={job.inputs}"]
    done = inline(*wanted, "--no-submit")
    assert done.returncode == Exit.USAGE and "first: a" in done.stderr and "hpc.cancel" in done.stderr
    assert everything(job.run.path) == before
    assert inline(*wanted).returncode == Exit.COMPLETE
    assert len(job.rows("a")) == 9 and {i: s.generation for i, s in job.states().items()} == {"a": 1, "b": 0}


# --- at a glance ------------------------------------------------------------------------------


def test_jobs_that_ended_before_a_slot_could_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of a `cluster.python` that is not there: status says where to read why."""
    for name, squeue in (("ended", "exit 0"), ("waiting", "echo 123_0 PENDING")):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
        (tmp_path / "squeue").chmod(0o755)
        job = EchoJob(tmp_path / name, {"a": texts(3)})
        submission = job.submit()
        submission.job_ids = ["123"]
        job.run.save(submission)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
            said = " ".join(inline("hpc.status", str(job.run.path)).stdout.split())
        assert ("squeue lists no job of it" in said) is (name == "ended"), said


def test_all_runs_of_a_folder(finished: EchoJob, tmp_path: Path) -> None:
    job = copied(finished, tmp_path)
    folder = job.run.path.parent
    shutil.copytree(job.run.path, folder / "stopped", symlinks=True)
    stopped = Run(folder / "stopped")
    stopped.generations.open({"a": 1}, "test")
    atomic.create(stopped.control / "cancelled", b"by me")
    (folder / "broken" / "submissions").mkdir(parents=True)
    (folder / "broken" / "submissions" / "x.json").write_text("{")
    (folder / "notes").mkdir()
    done = inline("hpc.status", str(folder), "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == facts["exit"] == Exit.INCOMPLETE
    assert [(r["run"], r["kind"], r["state"]) for r in facts["runs"]] == [
        ("broken", "", "?"), ("job", "map", "complete"), ("stopped", "map", "cancelled"),
    ]  # fmt: skip
    assert facts["runs"][1]["share"] == 1.0 and facts["runs"][2]["doing"] == "1 of 2 shards"
    said = inline("hpc.status", str(folder)).stdout.splitlines()
    assert len([line for line in said if line.startswith(("broken", "job", "stopped"))]) == 3
    assert "not a run directory" in inline("hpc.status", str(folder / "notes")).stderr


# --- what can be typed ------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["hpc", "recap"])
def test_commands_are_listed(package: str) -> None:
    said = command(package).stdout
    listed = re.findall(r"^python -m (\S+) +(\S.*)$", said, re.MULTILINE)
    assert len(listed) >= 8 and all(line for _, line in listed)
    assert {"hpc": "hpc.keys", "recap": "recap.export"}[package] in dict(listed)
    for name, _ in listed:
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
    if package == "hpc":
        assert re.fullmatch(r"recap-hpc \d+\.\d+\.\d+", command("hpc", "--version").stdout.strip())
        assert "python -m hpc.launch" in command("hpc", "launch").stderr


def test_every_key_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main(["--markdown"]) == 0
    made = capsys.readouterr().out
    assert made == (ROOT / "docs/keys.md").read_text(), "run: python -m hpc.keys --markdown > docs/keys.md"
    assert keys.main(["captioner.max_tokens"]) == 0
    said = capsys.readouterr().out
    assert "captioner.max_tokens: int = 128 · semantic" in said and "captioner.prompt:" not in said
    assert keys.main(["cluster.slots"]) == 0 and "· semantic" not in capsys.readouterr().out
    assert keys.main(["map.lea"]) == 0 and "map.lease_s: float" in capsys.readouterr().out
    assert keys.main(["train.max_rejected"]) == 0
    told = capsys.readouterr().out
    assert told.count("train.max_rejected: float") == 1 and "--- recap.clip.trainer.ClipTrainer, " in told
    assert "recap.sft.trainer.SftTrainer\n" in told
    assert keys.main(["cluster.slotz"]) == Exit.USAGE and "cluster.slots" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "keys_", "said"),
    [
        ("sft/demo", {"data": [{"path": "x"}, {"pth": "y"}]}, "`data[1].pth`: unknown key. Did you mean `data[1].p"),
        ("sft/demo", {"data": {"path": "x"}}, "`data`: {'path': 'x'} is not a list"),
        ("sft/demo", {"data": ["x"]}, "`data[0]`: 'x' is not a group of keys"),
        ("clip/demo", {"stages": [{"sampels": 3}]}, "Did you mean `stages[0].samples`"),
        ("clip/demo", {"data": {"columns": {"c": {"rn": "x"}}}}, "Did you mean `data.columns.c.run`"),
        ("clip/demo", {"cluster": {"kind": "local", "sbatch": [1]}}, "`cluster.sbatch`: [1] is not a group of keys"),
    ],
)
def test_keys_in_lists_are_told_as_others(file: str, keys_: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        config.check({**config.read(ROOT / "configs" / f"{file}.yaml"), "cluster": {"kind": "local"}, **keys_}, "f")


# --- in the background ------------------------------------------------------------------------


@pytest.mark.slow(ci=True)
def test_a_training_goes_on_without_the_terminal(tmp_path: Path) -> None:
    """Detached, seen at work, refused a second time, cancelled with its process; then told how to go on."""
    path = config_file(tmp_path, steps=100_000, step_s=0.02)
    tree = yaml.safe_load(path.read_text())
    run = Run(Path(tree["runs"]) / tree["name"])
    started = command("hpc.launch", str(path), "--detach")
    assert started.returncode == 0 and "started in the background" in started.stdout, started.stderr
    assert "nothing was launched" not in command("hpc.status", str(run.path)).stderr
    wait_for(lambda: any(facts["state"] == "running" for facts in heartbeat.read_all(run.slots)))
    assert "is at work" in command("hpc.launch", str(path), "--detach").stderr
    done = command("hpc.cancel", str(run.path))
    assert done.returncode == Exit.COMPLETE and re.search(r"cancelling \d+ processes here", done.stdout), done.stdout
    assert again(done.stdout) == [str(path)]
    assert "gang" in (run.logs / "launch.log").read_text()


def test_a_training_in_the_background_that_cannot_begin(tmp_path: Path) -> None:
    path = config_file(tmp_path, steps=10)
    tree = yaml.safe_load(path.read_text())
    run = Run(Path(tree["runs"]) / tree["name"])
    run.make()
    run.config_file.mkdir()  # where the launch in the background wants to write
    done = command("hpc.launch", str(path), "--detach")
    assert done.returncode == Exit.USAGE and "it ended before it had begun: " in done.stderr, done.stderr
    assert str(run.logs / "launch.log") in done.stderr.replace("\n", "")
