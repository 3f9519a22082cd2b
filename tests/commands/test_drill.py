"""`hpc.drill` without Slurm: each planted fault turns its line to unfit and no other, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc import drill
from hpc.base.errors import Exit
from hpc.drilling import file_system
from hpc.drilling.board import LINES, Board
from hpc.drilling.place import FACTS, Place, clean_earlier
from hpc.drilling.session import Session
from tests.support import unfit_files
from tests.support.jobs import ENVIRONMENT, ROOT, wait_for

SLOW, SLOW_CI = pytest.mark.slow, pytest.mark.slow(ci=True)
FILES = ("access", "space", "link", "fsync", "rename", "exclusion", "attributes")


def start(runs: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """A drill of this machine, with a lease by which changes must be seen in 15 s."""
    settings = ("--cluster", "local", "--minutes", "4", "map.lease_s=60", "map.min_free_gb=0", f"runs={runs}")
    return subprocess.Popen(
        [sys.executable, "-m", "hpc.drill", *settings, *words], cwd=ROOT, env={**ENVIRONMENT, **environment},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def verdict(process: subprocess.Popen[str], code: int) -> dict[str, dict[str, Any]]:
    """The lines by name, of a drill with --json that ends with an exit code."""
    out, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    facts = json.loads(out)
    assert facts["exit"] == code and not facts["left"] and not Path(facts["folder"]).exists()
    assert [line["name"] for line in facts["lines"]] == list(LINES)
    return {line["name"]: line for line in facts["lines"]}


def check_unfit(lines: dict[str, dict[str, Any]], name: str, words: str) -> None:
    """One line is, for this reason, with what to set; no other is; and nothing was built upon it."""
    assert [line["name"] for line in lines.values() if line["verdict"] == "unfit"] == [name], lines
    assert words in lines[name]["seen"] and lines[name]["set"]
    for other in ("engine", "slot", "stall", "run"):
        assert (lines[other]["verdict"], lines[other]["seen"]) == ("not tried", f"unfit: {name}")
    tried = set(FILES) - {name} - ({"exclusion"} if name == "link" else set())
    assert {lines[one]["verdict"] for one in tried} == {"fit"}


def planted(tmp_path: Path, fault: str) -> dict[str, dict[str, Any]]:
    runs = tmp_path / "runs"
    lines = verdict(start(runs, "--json", **unfit_files.environment(fault, runs)), Exit.INCOMPLETE)
    assert not runs.exists(), "a folder that was not there before stayed"
    return lines


def test_no_links(tmp_path: Path) -> None:
    lines = planted(tmp_path, "nolink")
    check_unfit(lines, "link", "no hard link can be made")
    assert lines["exclusion"]["seen"] == "unfit: link"
    assert lines["requeue"]["seen"] == "cluster.kind is local" and not lines["requeue"]["again"]


@pytest.mark.parametrize(
    ("fault", "name", "words"),
    [
        pytest.param("stale", "attributes", "a new name, by stat: not in", marks=SLOW),
        pytest.param("overlink", "link", "a name that exists is no error", marks=SLOW),
        pytest.param("fsync", "fsync", "fsync of a file fails", marks=SLOW),
        pytest.param("rename", "rename", "found no file", marks=SLOW_CI),
        pytest.param("quota", "space", "Disk quota exceeded", marks=SLOW_CI),
    ],
)
def test_each_fault_turns_its_line(tmp_path: Path, fault: str, name: str, words: str) -> None:
    check_unfit(planted(tmp_path, fault), name, words)


@pytest.mark.slow
def test_this_machine_is_fit(tmp_path: Path) -> None:
    lines = verdict(start(tmp_path, "--json"), Exit.COMPLETE)
    here = {name for name, line in lines.items() if line["seen"] != "cluster.kind is local"}
    assert {lines[name]["verdict"] for name in here} == {"fit"} and {*FILES, "engine", "slot", "stall", "run"} == here
    assert list(tmp_path.iterdir()) == []


def test_killed_then_cleaned_by_the_next(tmp_path: Path) -> None:
    process = start(tmp_path)
    place = wait_for(lambda: next(tmp_path.glob("hpc-drill-*"), None))
    (tmp_path / "hpc-drill-notours").mkdir()
    wait_for(lambda: list((place / "meeting").glob("started-*")))
    process.kill()
    process.communicate()
    assert place.exists()
    said: list[str] = []
    clean_earlier(tmp_path, said.append)
    assert said == [f"left by an earlier drill: {place}; cleaned"]
    assert [path.name for path in tmp_path.iterdir()] == ["hpc-drill-notours"]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, Exit.INCOMPLETE, marks=SLOW),
        pytest.param(signal.SIGTERM, Exit.TERMINATED, marks=SLOW_CI),
    ],
)
def test_stopped(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, "--json")
    wait_for(lambda: list(tmp_path.glob("hpc-drill-*/meeting/started-*")))
    process.send_signal(number)
    lines = verdict(process, code)
    assert lines["link"]["again"] and lines["link"]["seen"] == "the drill was stopped"
    assert lines["space"]["verdict"] == "fit"


def test_a_live_or_kept_one_is_left_alone(tmp_path: Path) -> None:
    mine, kept = Place.new(tmp_path), Place.new(tmp_path)
    for place in (mine, kept):
        place.make()
    assert kept.keep() == ""
    said: list[str] = []
    clean_earlier(tmp_path, said.append)
    assert mine.path.exists() and kept.path.exists() and len(said) == 2
    assert any(f"process {os.getpid()}" in line for line in said) and any("kept by" in line for line in said)
    assert mine.clean() == "" and not mine.path.exists()


def test_nothing_can_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code = drill.main(["--cluster", "local", "--json", f"runs={tmp_path}/file/runs"])
    facts = json.loads(capsys.readouterr().out)
    assert code == facts["exit"] == Exit.INCOMPLETE
    assert [line["name"] for line in facts["lines"] if line["verdict"] == "unfit"] == ["access"]
    assert "Not a directory" in facts["lines"][0]["seen"]


def test_a_folder_that_others_may_replace(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    place, board = Place.new(tmp_path), Board(lambda line: None)
    place.make()
    config = configs.check_run({"name": "drill", "map": {"min_free_gb": 1e9}}, "test")
    drill.try_place(Session(place, config, board, nodes=2, minutes=1.0))
    assert board.unfit(*LINES) == ["access", "space"]
    assert "everybody may write" in board.lines["access"].seen
    assert "map.min_free_gb" in board.lines["space"].seen
    assert place.clean() == ""


def test_what_another_machine_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner is watched for a while; what is no drill's stays."""
    place, said = Place.new(tmp_path), list[str]()
    place.make()
    (place.path / FACTS).write_text(json.dumps({**place.facts(), "host": "elsewhere"}))
    with place.owned():
        clean_earlier(tmp_path, said.append)
    assert "on elsewhere, is at work" in said.pop() and place.path.exists()
    monkeypatch.setattr("hpc.drilling.place.DEAD_S", 1.0)
    others = {"hpc-drill-0badcafe", "hpc-drill-0badcaff"}
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / FACTS).write_text("[1]")
    clean_earlier(tmp_path, said.append)
    assert said == [f"left by an earlier drill: {place.path}; cleaned"]
    assert {path.name for path in tmp_path.iterdir()} == others


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("{kind: slurm, slots: 64, partition: gpu, gpus_per_node: 8}")
    runs = tmp_path / "runs"
    assert drill.main(["--cluster", str(profile), f"runs={runs}", "--dry-run"]) == Exit.COMPLETE
    said = capsys.readouterr().out
    assert f"{runs}/hpc-drill-" in said and not runs.exists()
    assert said.count("#SBATCH --partition=gpu") == 4
    assert "#SBATCH --array=0-63" in said and "#SBATCH --hold" in said and "#SBATCH --signal=USR2@60" in said
    assert said.count("#SBATCH --job-name=hpc-drill-00000000") == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["captioner.model=x"], "a drill takes"),
        (["map.leases=3"], "Did you mean"),
        (["--minutes", "0"], "--minutes"),
        (["--nodes", "0"], "--nodes"),
        (["--cluster", "nowhere"], "there is no profile"),
        (["runs=s3://bucket/runs"], "object store"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = words if "--cluster" in words else [*words, "--cluster", "local"]
    assert drill.main(words) == Exit.USAGE
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_one_machine_answers(tmp_path: Path) -> None:
    for number, ask in enumerate((file_system.link, file_system.fsync, file_system.rename)):
        (folder := tmp_path / str(number)).mkdir()
        assert ask(folder)[0] == ""
    (folder := tmp_path / "space").mkdir()
    problem, seen = file_system.space(folder, lambda path: ["disk: 0.1 GB free"])
    assert problem == "disk: 0.1 GB free" and seen == ""


def test_readings_tell_torn_and_older_content(tmp_path: Path) -> None:
    seen, file = file_system.Readings(), tmp_path / "file"
    for data in (file_system.content(1), file_system.content(3), file_system.content(2), b"00000004" * 7):
        file.write_bytes(data)
        seen.look(file)
    seen.look(tmp_path / "none")
    assert (seen.whole, seen.older, seen.torn, seen.missing) == (2, 1, 1, 1)
