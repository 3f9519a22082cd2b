"""`hpc.launch CONFIG --check`, as typed: the work is tried on a few of its own samples before anything is submitted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc.map import check as trial
from hpc.map import launch as map_launch
from hpc.run.directory import Submission
from tests.support.echo import Echo
from tests.support.jobs import ROOT, EchoJob, command, inline, texts

DEMO = str(ROOT / "configs/caption/demo.yaml")


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def check(job: EchoJob) -> tuple[int, str]:
    """Exit code, and all that was said. Nothing is left behind."""
    before = sorted(os.walk(job.folder))
    done = inline("hpc.launch", str(job.config_file), "--check")
    said = done.stdout + done.stderr
    assert sorted(os.walk(job.folder)) == before and "nothing was submitted (--check)" in said, said
    return done.returncode, said


def tried(job: EchoJob) -> trial.Answer:
    """What the process of a check finds, without one."""
    planned = map_launch.prepare(configs.load(job.config_file, []))
    facts: dict[str, Any] = {"plan": "", "identity": planned.identity, "column": "", "code": "", "slots": 1}
    submission = Submission("0", 0.0, **facts, config=planned.config.resolved, source="")
    planned.run.make()
    return trial.attempt(planned.run, submission, planned.shards)


def test_samples_from_all_over_the_plan(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {f"s{number}": texts(3, f"line of s{number}") for number in range(8)}, prefix="seen: ")
    code, said = check(job)
    assert code == 0 and "4 of 4 samples ok" in said, said
    for shard in ("s0", "s2", "s4", "s6"):
        assert f"{shard} · {shard}-00000 · ok" in said and f"text: seen: line of {shard} 0" in said


def test_a_process_that_dies(tmp_path: Path) -> None:
    """By its own hand, or since its set-up takes longer than a slot would wait: that ends with its stack."""
    code, said = check(EchoJob(tmp_path / "a", {"a": texts(5)}, setup_fault="exit"))
    assert code == 1 and "the process that tries the work exited with 3" in said, said
    code, said = check(EchoJob(tmp_path / "b", {"a": texts(5)}, map={"setup_s": 0.5}, setup_s=3600.0))
    assert code == 1 and "exited with 1" in said and "in setup" in said, said


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["bad", *texts(5)], "of 4 samples 3 are ok: 1 × line: bad"),
        (["skip", *texts(5)], ""),
        (["skip"], "of 1 samples 0 are ok: 1 × line: to skip"),
        (["raise"], "RuntimeError: cannot echo a-00000"),
        (["unreadable"], "no sample could be read: {uri}: input: unreadable: {uri}"),
        ([], "no sample could be read: the shards looked into are empty"),
    ],
)
def test_what_is_wrong(tmp_path: Path, lines: list[str], problem: str) -> None:
    job = EchoJob(tmp_path, {"a": lines})
    assert tried(job).problem == problem.format(uri=job.inputs / "a.txt")


def test_some_shards_cannot_be_read(tmp_path: Path) -> None:
    answer = tried(EchoJob(tmp_path, {"a": texts(5), "b": ["unreadable"]}))
    assert answer.problem == "" and [s["shard"] for s in answer.samples] == ["a", "a"] and len(answer.unread) == 1


def test_a_service_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "AWAY_S", 0.2)
    monkeypatch.setattr(Echo, "poll", lambda self, timeout: [])
    job = EchoJob(tmp_path, {"a": texts(5)}, map={"hang_s": 0.3})
    assert tried(job).problem == "no sample was finished in 0.3 s (map.hang_s)"
    monkeypatch.setattr(Echo, "waiting", lambda self: "http://there does not answer", raising=False)
    assert tried(job).problem == "http://there does not answer"


def test_beside_a_run_that_exists(tmp_path: Path) -> None:
    job = EchoJob(tmp_path, {"a": texts(5)})
    job.submit()
    code, said = check(job)
    assert code == 0 and "4 of 4 samples ok" in said


def test_what_it_is_not_for(tmp_path: Path) -> None:
    training = inline("hpc.launch", str(ROOT / "configs/sft/demo.yaml"), "--check")
    assert training.returncode == 64 and "--dry-run" in training.stderr
    pipeline = inline("hpc.launch", str(ROOT / "configs/pipeline/recap_demo.yaml"), "--check")
    assert pipeline.returncode == 64 and "pipeline" in pipeline.stderr


@pytest.mark.slow  # opens the shipped captioner twice: 25 seconds of a core
def test_a_captioner(tmp_path: Path) -> None:
    place = (f"runs={tmp_path}/runs", "name=tried")
    good = command("hpc.launch", DEMO, *place, "--check")
    assert good.returncode == 0 and good.stdout.count("caption: This flag") == 4, good.stdout + good.stderr
    shutil.copytree(ROOT / "recap/demo/captioner", tmp_path / "cut")
    weights = tmp_path / "cut/model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    cut = command("hpc.launch", DEMO, *place, f"captioner.model={tmp_path}/cut", "--check")
    assert cut.returncode == 1 and "SafetensorError" in cut.stderr, cut.stdout + cut.stderr
    blind = command("hpc.launch", DEMO, *place, "data.image=[webp]", "--check")
    assert blind.returncode == 1 and "4 × image: missing (members png, txt, json)" in blind.stderr
    assert not (tmp_path / "runs").exists()
