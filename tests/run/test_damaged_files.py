"""Damaged truth files of a run (submission, generation, plan, marker): each command names the file and goes on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from hpc import config as configs
from hpc import worker
from hpc.base import damage
from hpc.base.errors import Exit, UserError
from hpc.gang import launch as gang_launch
from hpc.gang import rank as gang
from hpc.map.agent import Agent
from hpc.run import plan
from hpc.run.directory import Run
from hpc.run.published import Published
from tests.pipeline.test_pipeline import TINY, Bench
from tests.support.jobs import EchoJob, inline, texts

FOR_PIPELINES = [["hpc.status"], ["hpc.status", "--json"], ["hpc.logs"], ["hpc.cancel"]]
COMMANDS = [
    ["hpc.status"], ["hpc.status", "--by", "error"], ["hpc.status", "--json"], ["hpc.verify"], ["hpc.verify", "--full"],
    ["hpc.logs", "--failed"], ["hpc.logs", "--shard", "a"], ["hpc.rerun", "--no-submit"], ["hpc.gate"],
    ["hpc.clean"], ["recap.report", "--text"], ["hpc.cancel", "--now"],
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoJob]:
    """A run with a done shard, a failed one, and two reruns."""
    job = EchoJob(tmp_path_factory.mktemp("damaged"), {"a": texts(20), "b": ["unreadable"]}, map={"attempts": 1})
    job.submit()
    for generation in (1, 2):
        job.run.generations.open({"a": generation}, "rerun", keep=False)
    assert job.work() == Exit.SOME_FAILED, job.log()
    yield job
    job.close()


@pytest.fixture
def job(finished: EchoJob) -> Iterator[EchoJob]:
    """The same, to be damaged: restored afterwards."""
    damage.warn_once.cache_clear()
    shutil.copytree(finished.run.path, finished.folder / "whole", symlinks=True)
    yield finished
    shutil.rmtree(finished.run.path)
    (finished.folder / "whole").rename(finished.run.path)


def damages(data: bytes, seed: int) -> list[bytes]:
    chance = random.Random(seed)
    flipped = []
    for _ in range(4):
        spot = chance.randrange(len(data))
        flipped.append(data[:spot] + bytes([data[spot] ^ 1 << chance.randrange(8)]) + data[spot + 1 :])
    return [b"", bytes(len(data)), data[: len(data) // 2], b"{}", b"[]", b'{"a": {"b": null}}', *flipped]


def truth(run: Run, kind: str) -> Path:
    if kind == "marker":
        return next(run.path.glob("ledger/*/*/a.g2.done"))
    return sorted((run.path / kind).iterdir())[0]


@pytest.mark.parametrize("kind", ["submissions", "journal", "marker"])
def test_a_file_that_cannot_be_read_breaks_no_command(
    job: EchoJob, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder in its place: what root may not read either, as a file without permission is to others."""
    path = truth(job.run, kind)
    path.unlink()
    path.mkdir()
    for command in (["hpc.status"], ["hpc.verify"], ["hpc.logs", "--failed"], ["hpc.rerun", "--no-submit"]):
        damage.warn_once.cache_clear()
        done = inline(command[0], str(job.run.path), *command[1:])
        assert done.returncode in tuple(Exit), (command, done)
    assert kind == "marker" or path.name in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["submissions", "generations", "plan", "marker"])
def test_no_command_breaks(job: EchoJob, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = truth(job.run, kind)
    whole = path.read_bytes()
    for number, damaged in enumerate(damages(whole, seed=len(kind))):
        path.write_bytes(damaged)
        for module, *arguments in COMMANDS:
            said = inline(module, str(job.run.path), *arguments)  # raises what would be a traceback
            assert said.returncode in (0, 1, 2, 64), (number, module, said)
        out = str(job.folder / f"export-{kind}-{number}")
        assert inline("recap.export", str(job.run.path), out, "--partial").returncode in (1, 64)
        for launch in (["--dry-run"], ["--no-submit"]):
            said = inline("hpc.launch", str(job.config_file), *launch)
            assert said.returncode in (0, 64), (number, said)
        path.write_bytes(whole)


@pytest.mark.slow
def test_no_command_breaks_over_a_damaged_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    bench = Bench(tmp_path, {"one": {"command": ["true"]}, "echo": {"config": "echo.yaml", "needs": ["one"]}}, shards=1)
    assert bench.launch().returncode == 0
    for path in (bench.run.record, next(bench.run.path.glob("jobs/*.json")), bench.run.path / "one" / "stage.json"):
        whole = path.read_bytes()
        for number, damaged in enumerate(damages(whole, seed=3)):
            path.write_bytes(damaged)
            for module, *arguments in FOR_PIPELINES:
                said = inline(module, str(bench.run.path), *arguments)
                assert said.returncode in (0, 1, 2, 64), (path, number, module, said)
            said = bench.launch("--dry-run")
            assert said.returncode == 0, (path, number, said)
            path.write_bytes(whole)


def test_a_damaged_pipeline_is_named_cancelled_and_launched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path, {"one": {"command": ["false"]}, "two": {"command": ["true"], "needs": ["one"]}})
    assert bench.launch().returncode == 1
    for damaged in (b"", b"stages: [", b"{}", bench.run.record.read_bytes().replace(b"needs:", b"heeds:")):
        bench.run.record.write_bytes(damaged)
        said = inline("hpc.status", str(bench.run.path))
        assert said.returncode == Exit.USAGE and f"{bench.run.record} is damaged" in said.stderr, said
        assert f"python -m hpc.launch {bench.run.config_file}" in said.stderr
    assert "stage 'one': `needs` is None" in said.stderr
    cancelled = inline("hpc.cancel", str(bench.run.path))
    assert cancelled.returncode == 0 and "stopped. To go on:" in cancelled.stdout, cancelled
    assert (bench.run.control / "cancelled").exists() and str(bench.run.config_file) in cancelled.stdout
    for attempt in bench.run.path.glob("jobs/*.json"):
        attempt.write_bytes(attempt.read_bytes().replace(b'"stage"', b'"stahe"'))
    bench.write({"one": {"command": ["true"]}})
    assert bench.launch().returncode == 0
    assert inline("hpc.status", str(bench.run.path)).returncode == 0
    assert "`config`: `stage` is None" in caplog.text


def test_a_plan_that_cannot_be_read_for_a_moment_is_waited_for(job: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO once when the agent starts, then in the middle of its work: neither ends the slot for good."""
    latest, opened, failures = job.run.latest(), pq.ParquetFile, [OSError(5, "Input/output error")]

    def away(*arguments: Any, **settings: Any) -> Any:
        if failures and arguments[0] == job.run.plans / f"{latest.plan}.parquet":
            raise failures.pop()
        return opened(*arguments, **settings)

    monkeypatch.setattr(pq, "ParquetFile", away)
    agent = Agent(job.run, latest, 0)
    assert not failures and len(agent.plan) == 2
    failures.append(OSError(5, "Input/output error"))
    with pytest.raises(plan.DamagedPlan, match="Input/output error"):  # which commands show
        plan.Plan(job.run.plans, latest.plan)
    with pytest.raises(plan.DamagedPlan) as raised:
        plan.Plan(job.run.plans, "0" * 12)
    assert isinstance(raised.value, OSError)

    def hurt(*_: Any) -> Any:
        raise plan.UnreadPlan(job.run.plans, "Input/output error")

    monkeypatch.setattr(Agent, "main", hurt)
    assert worker.main([str(job.run.path), "--slot", "0"]) == Exit.CRASHED, "which the batch script requeues"


def test_a_gang_of_a_later_version_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path / "runs" / "tiny")
    tree = {**TINY, "name": "tiny", "runs": str(tmp_path / "runs"), "cluster": {"kind": "local"}}
    run.make()
    loaded = configs.check(tree, "tiny.yaml")
    made = run.new_submission(**gang_launch.record(gang_launch.prepare(loaded, supersede=False), "code"))
    path = run.path / "submissions" / f"{made.uuid}.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "toolkit": "99.1", "slots": "many"}))
    for arguments in (["--begin"], []):
        caplog.clear()
        assert gang.main([str(run.path), "--submission", made.uuid, *arguments]) == Exit.USAGE
        assert "`slots` is 'many' (written by version 99.1)" in caplog.text and str(path) in caplog.text
    record["config"]["gang"]["elastic"] = True  # a key that only the later version knows
    path.write_text(json.dumps({**record, "toolkit": "99.1"}))
    caplog.clear()
    monkey = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in monkey.items():
            patch.setenv(key, value)
        assert gang.main([str(run.path), "--submission", made.uuid]) == Exit.USAGE
    assert "gang.elastic" in caplog.text and "version 99.1" in caplog.text


def test_a_damaged_submission_is_named_and_the_older_one_counts(job: EchoJob, caplog: pytest.LogCaptureFixture) -> None:
    newer = job.submit()
    path = job.run.path / "submissions" / f"{newer.uuid}.json"
    path.write_bytes(path.read_bytes()[:100])
    (path.parent / "README").write_text("notes")
    (path.parent / "notes.json").write_text("{}")
    assert inline("hpc.status", str(job.run.path)).returncode == Exit.SOME_FAILED
    assert str(path) in caplog.text and "Launching again" in caplog.text
    assert "notes" not in caplog.text
    assert job.run.damaged_submissions() == [newer.uuid]
    assert inline("hpc.verify", str(job.run.path)).returncode == Exit.INCOMPLETE
    for other in job.run.submissions():
        (path.parent / f"{other.uuid}.json").write_bytes(b"")
    said = inline("hpc.status", str(job.run.path))
    assert said.returncode == Exit.USAGE and "every submission" in said.stderr


def test_a_later_version_may_have_more_keys(job: EchoJob, caplog: pytest.LogCaptureFixture) -> None:
    latest = job.run.latest()
    path = job.run.path / "submissions" / f"{latest.uuid}.json"
    record = json.loads(path.read_bytes())
    assert record["toolkit"]
    path.write_text(json.dumps({**record, "toolkit": "99.1", "priority": 3}))
    assert job.run.latest().identity == latest.identity
    assert "priority" in caplog.text and "version 99.1" in caplog.text
    path.write_text(json.dumps({**record, "toolkit": "99.1", "slots": "many"}))
    with pytest.raises(UserError, match=r"`slots` is 'many' \(written by version 99.1\)"):
        job.run.submission(latest.uuid)
    del record["toolkit"], record["by_rule"]  # an older version's
    path.write_text(json.dumps(record))
    assert job.run.latest().identity == latest.identity


def test_reruns_beside_strange_and_damaged_files(job: EchoJob, caplog: pytest.LogCaptureFixture) -> None:
    folder = job.run.generations.folder
    (folder / "README").write_text("what is this?")
    (folder / "000001.json~").write_text("an editor's")
    assert Run(job.run.path).generations.opened() == {"a": 2}
    (folder / "000001.json").write_bytes(b"\0" * 40)
    again = Run(job.run.path)
    assert again.generations.opened() == {"a": 1}
    assert str(folder / "000001.json") in caplog.text and "hpc.rerun" in caplog.text
    assert again.generations.open({"b": 1}, "rerun").name == "000002.json"
    (folder / "000000.json").unlink()
    assert Run(job.run.path).generations.open({"b": 2}, "rerun").name == "000003.json"


def test_a_flipped_plan_is_found_and_written_anew(job: EchoJob) -> None:
    latest = job.run.latest()
    path = job.run.plans / f"{latest.plan}.parquet"
    whole = path.read_bytes()
    spot = whole.index(b"b.txt") if b"b.txt" in whole else 60
    path.write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
    said = inline("hpc.verify", str(job.run.path))
    assert said.returncode == Exit.INCOMPLETE and str(path) in said.stdout and "1 markers hold" in said.stdout
    shards = [s for s in plan.Plan(job.folder / "whole" / "plan", latest.plan).shards()]
    path.write_bytes(whole)
    other = plan.write(job.run.plans, shards[:1])
    (job.run.plans / f"{other}.parquet").rename(path)  # whole, but another plan
    assert "it holds another plan" in inline("hpc.verify", str(job.run.path)).stdout
    path.write_bytes(whole[:-9])
    assert inline("hpc.status", str(job.run.path)).returncode == Exit.USAGE
    dry = inline("hpc.launch", str(job.config_file), "--dry-run")
    assert dry.returncode == Exit.USAGE and path.read_bytes() == whole[:-9], "a dry run writes nothing"
    (job.run.code / latest.code).unlink()  # the tests' link to the working tree
    said = inline("hpc.launch", str(job.config_file), "--no-submit")
    assert said.returncode == Exit.COMPLETE, said
    assert inline("hpc.verify", str(job.run.path)).returncode == Exit.COMPLETE


def test_stray_files_in_ledger_and_columns(job: EchoJob) -> None:
    latest = job.run.latest()
    (job.run.ledger(latest.identity).root / "README").write_text("x")
    folder = job.file("a").parent
    (folder / "notes.parquet").write_bytes(b"x")
    (folder / "a.gX.parquet").write_bytes(b"x")
    said = inline("hpc.verify", str(job.run.path), "--full")
    assert said.returncode == Exit.COMPLETE and said.stdout.count("not a file of this run") == 2
    said = inline("recap.report", str(job.run.path), "--text")  # of a job that captions nothing
    assert said.returncode == Exit.USAGE and "has no caption, finish, lint" in said.stderr, said
    job.file("a").write_bytes(b"PAR1")
    said = inline("recap.export", str(job.run.path), str(job.folder / "out"), "--partial")
    assert said.returncode == Exit.USAGE and f"hpc.rerun {job.run.path} --shards a " in said.stderr, said
    truth(job.run, "marker").write_text("{}")
    with pytest.raises(UserError, match=r"marker of shard a is damaged.*hpc.rerun"):
        list(Published(job.run.path))
