"""How a finished map run ends that has nothing to show for it: exit 2 and the reason, wherever its end is looked at."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hpc import gate
from hpc.base.errors import Exit
from hpc.kinds import progress
from hpc.map import verdict
from hpc.run.directory import Run
from recap.worlds.tars import write_tar
from tests.support.jobs import command, inline

PICTURE = b"the picture that a dead link was replaced by"


Tar = bytes | dict[str, dict[str, bytes]]  # as it is, or members by key


def launched(folder: Path, tars: dict[str, Tar], **data: object) -> tuple[Run, str, int]:
    """The run, what the launch printed, and its exit code."""
    (folder / "in").mkdir()
    for name, content in tars.items():
        with open(folder / "in" / f"{name}.tar", "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                write_tar(file, list(content.items()))
    (folder / "c.yaml").write_text(
        f"name: r\nruns: {folder}/runs\noperator: tests.support.instant.InstantOperator\n"
        "captioner: {model: 'instant:0'}\n"
        f"data: {json.dumps({'shards': [f'{folder}/in'], **data})}\ncluster: {{kind: local}}\n"
        "map: {lease_s: 3, segment: 8, min_free_gb: 0}\n"
    )
    done = command("hpc.launch", str(folder / "c.yaml"), COLUMNS="150")
    return Run(folder / "runs" / "r"), done.stdout + done.stderr, done.returncode


def test_a_run_of_skipped_samples_fails_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples = {f"{n:03d}": {"cls": b"not asked for"} for n in range(5)} | {"900": {"jpg": PICTURE}}
    placeholder = hashlib.sha256(PICTURE).hexdigest()
    run, said, code = launched(tmp_path, {"00000": samples}, placeholders=[placeholder])
    why = "no sample is ok; of 6, 5 are skipped: image: missing"
    assert code == Exit.SOME_FAILED and said.strip().splitlines()[-1] == why
    shown = inline("hpc.status", str(run.path), "--json")
    assert shown.returncode == Exit.SOME_FAILED and json.loads(shown.stdout)["nothing"] == [why]
    of_all = inline("hpc.status", str(run.path.parent)).stdout
    assert why in " ".join(of_all.split())
    late = inline("hpc.worker", str(run.path), "--slot", "0")  # what an array element of Slurm runs
    assert late.returncode == Exit.SOME_FAILED and why in caplog.text
    assert gate.decide(run, 0) == Exit.INCOMPLETE
    assert (progress(run).complete, progress(run).hopeless, progress(run).left) == (False, True, why)
    again = inline("hpc.launch", str(tmp_path / "c.yaml"), "map.allow_nothing=true")  # the config says that it may be
    assert again.returncode == Exit.COMPLETE, again.stdout + again.stderr
    shown = inline("hpc.status", str(run.path), "--json")
    assert shown.returncode == Exit.COMPLETE and json.loads(shown.stdout)["nothing"] == []
    assert gate.decide(run, 0) == Exit.COMPLETE and progress(run).complete


@pytest.mark.slow
def test_what_a_rule_drops_is_no_failure(tmp_path: Path) -> None:
    samples = {f"{n:03d}": {"jpg": PICTURE} for n in range(3)}
    run, said, code = launched(tmp_path, {"00000": samples}, placeholders=[hashlib.sha256(PICTURE).hexdigest()])
    assert code == Exit.COMPLETE and "no sample is ok" not in said
    assert gate.decide(run, 0) == Exit.COMPLETE and progress(run).complete


@pytest.mark.slow
def test_tars_that_are_none_are_told_last(tmp_path: Path) -> None:
    page = b"<!DOCTYPE html><title>404</title>" * 40
    tars: dict[str, Tar] = {"00000": {"000": {"jpg": b"a picture"}}, "00001": page, "00002": b""}
    run, said, code = launched(tmp_path, tars)
    assert code == Exit.SOME_FAILED, said
    assert said.strip().splitlines()[-1] == "2 unreadable shards gave nothing (tar: not a tar, tar: zero bytes)"
    assert json.loads(inline("hpc.status", str(run.path), "--json").stdout)["shards"]["done"] == 3
    assert f"once their files are replaced: python -m hpc.rerun {run.path} --shards ID,ID" in said
    with open(tmp_path / "in" / "00001.tar", "wb") as file:
        write_tar(file, [("000", {"jpg": b"another picture"})])
    again = command("hpc.rerun", str(run.path), "--shards", "00001", COLUMNS="150").stdout
    assert again.strip().splitlines()[-1] == "1 unreadable shard gave nothing (tar: zero bytes)", again


@pytest.mark.parametrize(
    "samples, reasons, why",
    [
        ({"ok": 1, "skipped": 99}, {"skipped: image: missing": 99}, ""),
        (
            {"skipped": 9},
            {"skipped: rule": 6, "skipped: a": 1, "skipped: b": 2},
            "no sample is ok; of 9, 2 are skipped: b",
        ),
        ({"skipped": 9}, {"skipped: rule": 9}, ""),
        ({"failed": 2, "skipped": 1}, {"failed: x": 2, "skipped: a": 1}, "no sample is ok; of 3, 2 are failed: x"),
        ({"skipped": 2}, {}, "no sample is ok; of 2, 2 are no reason given"),
        ({}, {}, "no shard holds a sample"),
    ],
)
def test_the_reason_that_most_have(samples: dict[str, int], reasons: dict[str, int], why: str) -> None:
    assert verdict.fruitless(samples, reasons, ["rule"]) == why
