"""SIGKILL at real system calls, with a competitor and a successor: one winner, nothing lost, nothing twice.

The default run takes every link, rename and save of samples (the calls that decide) and, of the others, the first and
last of each phase of the protocol; `-m slow` takes every call, each alone and against a competitor.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpc.operator import STATUSES
from hpc.run.directory import Run
from hpc.run.ledger import DONE
from tests.support import crashes
from tests.support.jobs import EchoJob, texts, wait_for

pytestmark = pytest.mark.skipif(not crashes.HAVE_STRACE, reason="strace is not installed")
SAVES = ("pwrite64", "fdatasync")  # alone and against a competitor, in every run
DECISIVE = ("link", "rename", *SAVES)  # taken in full in the default run


def points(trace: crashes.Trace, full: bool) -> list[tuple[str, int]]:
    """(call, n) to kill at: every call, or the decisive ones and the first and last of each other call in each
    phase.
    """
    seen: Counter[str] = Counter()
    by_kind: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for call, line in trace.calls:
        seen[call] += 1
        by_kind.setdefault((phase(line), call), []).append((call, seen[call]))
    found: list[tuple[str, int]] = []
    for (_, call), of_kind in by_kind.items():
        found += of_kind if full or call in DECISIVE or len(of_kind) < 3 else [of_kind[0], of_kind[-1]]
    return found


def phase(line: str) -> str:
    """Which part of the protocol a traced call belongs to, by the path that it names."""
    ledger = re.search(r"/ledger/[0-9a-f]{8}/[0-9a-f]{3}/.*\.g\d+\.(e\d+(?:\.end)?|done|failed)\b", line)
    if ledger:
        return "claim" if ledger[1].startswith("e") else "record"
    parts = {"columns": "publish", "segments": "segment", "slots": "heartbeat"}
    for name in (
        "segments",
        "columns",
        "journal",
        "slots",
        "inflight",
        "ledger",
        "generations",
        "plan",
        "code",
        "submissions",
    ):
        if f"/{name}/" in line or f'/{name}"' in line:
            return parts.get(name, name)
    return "other"


def report(title: str, hit: Counter[tuple[str, str]]) -> None:
    print(f"\n{title}: {sum(hit.values())} kills hit")  # noqa: T201
    for name in sorted({p for p, _ in hit}):
        print(f"  {name:<12}" + "  ".join(f"{c} {n}" for (p, c), n in sorted(hit.items()) if p == name))  # noqa: T201


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where possible: a life has dozens of fsyncs."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def forks() -> Iterator[crashes.Forks]:
    server = crashes.Forks()
    yield server
    server.close()


# --- claim, segment, publish, record, journal ---------------------------------------------------


class Owners:
    """Runs of one small job, each in a directory of its own, all from one template."""

    def __init__(self, forks: crashes.Forks, folder: Path) -> None:
        lines = {"a": texts(20), "b": texts(3), "empty": []}
        self.job = EchoJob(folder / "template", lines, cluster={"slots": 2}, map={"lease_s": 1.0})
        self.job.submit()
        self.forks, self.folder, self.number = forks, folder, 0
        self._undisturbed()

    def _undisturbed(self) -> None:
        undisturbed = self.fresh()
        assert len(self.life(undisturbed, 0)) == 3
        undisturbed.check()
        self.digests = undisturbed.digests()
        assert len(self.digests) == 3

    def reopen_samples(self) -> None:
        """From now on a life begins with a rerun of bad samples: of each shard's, all but every third are kept."""
        worked = self.fresh()
        self.life(worked, 0)
        for shard in self.job.lines:
            file = worked.file(shard)
            table = pq.read_table(file)
            status = pa.array(["failed" if i % 3 == 0 else "ok" for i in range(len(table))], pa.string())
            at = table.schema.get_field_index("status")
            pq.write_table(table.set_column(at, table.schema.field(at), status), file)
        worked.run.generations.open(dict.fromkeys(self.job.lines, 1), "a rerun", keep=True)
        self.job = worked
        self._undisturbed()

    def fresh(self) -> EchoJob:
        self.number += 1
        folder = self.folder / str(self.number)
        shutil.copytree(self.job.folder / "runs", folder / "runs", symlinks=True)
        job = EchoJob.__new__(EchoJob)
        job.__dict__ |= {**vars(self.job), "folder": folder, "run": Run(folder / "runs" / "job"), "processes": []}
        return job

    def owner(self, job: EchoJob, slot: int) -> crashes.Fork:
        return crashes.Fork(self.forks, job.folder / f"published-{slot}", "own", str(job.run.path), slot)

    def life(self, job: EchoJob, slot: int) -> list[str]:
        """An undisturbed life of a slot; what it published."""
        fork = self.owner(job, slot)
        fork.go()
        assert fork.code() == 0
        return fork.result()

    def trace(self) -> crashes.Trace:
        fork = self.owner(self.fresh(), 0)
        traced = crashes.Traced(fork, self.folder / "trace")
        assert fork.code() == 0 and len(fork.result()) == 3
        return traced.finish()

    def kill_at(
        self, call: str, when: int, compete: bool, between: Callable[[EchoJob], object] = lambda job: None
    ) -> tuple[str, str] | None:
        """One point of the matrix; (phase, call) that was hit, None if the owner did not come so far.

        Args:
            between: done to the run after the death, before the successor begins.
        """
        job = self.fresh()
        victim = self.owner(job, 0)
        competitor = self.owner(job, 1) if compete else None
        traced = crashes.Traced(victim, job.folder / "trace", call, when)
        if competitor:
            competitor.go()
        code, trace = victim.code(), traced.finish()
        published = victim.result() or []
        if competitor:
            assert competitor.code() == 0
            published += competitor.result()
        else:
            between(job)
            published += self.life(job, 0)  # the successor: the same slot's next life
        self.check(job, published)
        shutil.rmtree(job.folder)
        if code == 0:
            return None
        assert code == -signal.SIGKILL and trace.last[0] == call
        return phase(trace.last[1]), call

    def stall_at(self, call: str, when: int) -> list[dict[str, Any]]:
        """An owner stands still in one call, longer than its lease, and goes on beside its successor; all events."""
        job = self.fresh()
        zombie, successor = self.owner(job, 0), self.owner(job, 1)
        traced = crashes.Traced(zombie, job.folder / "trace", call, when, fault="delay_enter=3s")
        wait_for(lambda: f"{call}(" in traced.so_far() and traced.so_far().count(f"{call}(") >= when)
        successor.go()
        assert successor.code() == 0 and zombie.code() == 0
        traced.finish()
        self.check(job, zombie.result() + successor.result())
        events = _events(job)
        shutil.rmtree(job.folder)
        return events

    def check(self, job: EchoJob, published: list[str]) -> None:
        """Nothing is lost, nothing is there twice."""
        assert len({p.split()[0] for p in published}) == len(published), f"a shard was published twice: {published}"
        finished = Counter((e["shard"], e["g"]) for e in _events(job) if e["event"] == DONE)
        assert set(finished.values()) <= {1}, finished
        job.check()
        assert job.digests() == self.digests
        status = job.status()
        assert sum(status["samples"][s] for s in STATUSES) == 23, "planned = ok + skipped + failed + quarantined"
        assert status["samples"]["ok"] == 23 and status["samples"]["left"] == 0 and status["exit"] == 0


def _events(job: EchoJob) -> list[dict]:
    lines = [line for file in job.run.journals.glob("*.jsonl") for line in file.read_bytes().split(b"\n")]
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def _owner_matrix(forks: crashes.Forks, folder: Path, full: bool, rerun: bool = False) -> None:
    owners = Owners(forks, folder)
    if rerun:
        owners.reopen_samples()
    hit: Counter[tuple[str, str]] = Counter()
    missed, alone = 0, 0
    # heartbeats follow a clock, so a life that the machine slowed makes more calls: the shortest of three is the plan
    trace = min((owners.trace() for _ in range(3)), key=lambda trace: len(trace.calls))
    for number, (call, when) in enumerate(points(trace, full)):
        for compete in (False, True) if full or call in SAVES else (number % 4 == 3,):
            found = owners.kill_at(call, when, compete) or owners.kill_at(call, when, compete)
            if found:
                hit[found] += 1
            else:
                missed += 1
                alone += not compete
    report(f"owner ({missed} points were not reached, {missed - alone} because the competitor was faster)", hit)
    assert alone <= len(points(trace, full)) // 20, "alone, all but a heartbeat's points are reached"
    assert {"claim", "segment", "publish", "record", "journal"} <= {p for p, _ in hit}


def test_owner_killed(forks: crashes.Forks, folder: Path) -> None:
    _owner_matrix(forks, folder, full=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_owner_killed_at_every_call(forks: crashes.Forks, folder: Path) -> None:
    _owner_matrix(forks, folder, full=True)


def _torn_and_cut_otherwise(job: EchoJob) -> None:
    """The last frame of each claim's file is torn, and the successor saves blocks of another size."""
    for file in job.run.path.glob("segments/*/*/*.rows"):
        os.truncate(file, max(0, file.stat().st_size - 7))
    job.submit("map.segment=5")


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("rerun", [False, True])
def test_frames_torn_and_of_another_size(forks: crashes.Forks, folder: Path, rerun: bool) -> None:
    """The owner dies at each of its saves; in a rerun of bad samples too, which begins with what it keeps."""
    owners = Owners(forks, folder)
    if rerun:
        owners.reopen_samples()
    saves = [point for point in points(owners.trace(), full=True) if point[0] in SAVES]
    hit = Counter(owners.kill_at(call, when, False, _torn_and_cut_otherwise) for call, when in saves)
    assert hit == Counter(("segment", call) for call, _ in saves) and len(saves) >= 5


def test_a_zombie_appends_beside_its_successor(forks: crashes.Forks, folder: Path) -> None:
    """It stands still in its second save of a shard, and writes that frame when its successor has begun."""
    events = Owners(forks, folder).stall_at("pwrite64", 2)
    taken_over = min(e["t"] for e in events if e["event"] == "claim" and e.get("e") == 1)
    late = [e for e in events if e["event"] == "segment" and e["e"] == 0 and e["shard"] == "a" and e["t"] > taken_over]
    assert late, "the zombie saved nothing beside its successor"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rerun_of_samples_killed_at_every_call(forks: crashes.Forks, folder: Path) -> None:
    _owner_matrix(forks, folder, full=True, rerun=True)


# --- plan and generation ----------------------------------------------------------------------


def _launch_matrix(forks: crashes.Forks, folder: Path, full: bool) -> None:
    """A launch is killed; the next one goes on, and the work is done once."""
    job = EchoJob(folder / "job", {"a": texts(9), "b": texts(3)})

    def launch() -> crashes.Fork:
        return crashes.Fork(forks, folder / "launched", "submit", str(job.config_file))

    fork = launch()
    traced = crashes.Traced(fork, folder / "trace")
    assert fork.code() == 0
    hit: Counter[tuple[str, str]] = Counter()
    for call, when in points(traced.finish(), full):
        shutil.rmtree(job.run.path.parent)
        victim = launch()
        traced = crashes.Traced(victim, folder / "trace", call, when)
        assert victim.code() == -signal.SIGKILL
        at = phase(traced.finish().last[1]), call
        hit[at] += 1
        again = launch()
        again.go()
        assert again.code() == 0 and again.result() == 0
        assert len(job.run.submissions()) <= 2 and job.run.config_file.exists()
        assert sorted(os.listdir(job.run.path / "code" / job.run.latest().code)) == ["hpc", "recap"]
        if hit[at] == 1:
            own = crashes.Fork(forks, folder / "own", "own", str(job.run.path), 0)
            own.go()
            assert own.code() == 0 and len(own.result()) == 2
            job.check()
    report("launch", hit)
    assert {"plan", "code", "submissions"} <= {p for p, _ in hit}


@pytest.mark.slow
def test_launch_killed(forks: crashes.Forks, folder: Path) -> None:
    _launch_matrix(forks, folder, full=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_launch_killed_at_every_call(forks: crashes.Forks, folder: Path) -> None:
    _launch_matrix(forks, folder, full=True)


@pytest.mark.slow
def test_rerun_killed(forks: crashes.Forks, folder: Path) -> None:
    """A rerun is killed at every call while another is under way: the shard is reopened once."""
    owners = Owners(forks, folder)
    done = owners.fresh()
    owners.life(done, 0)

    def rerun(name: str) -> crashes.Fork:
        return crashes.Fork(forks, folder / name, "reopen", str(done.run.path), {"a": 1})

    fork = rerun("victim")
    traced = crashes.Traced(fork, folder / "trace")
    assert fork.code() == 0 and done.run.generations.opened() == {"a": 1}
    hit: Counter[tuple[str, str]] = Counter()
    for call, when in points(traced.finish(), full=True):
        shutil.rmtree(done.run.path / "generations")
        (done.run.path / "generations").mkdir()
        victim, other = rerun("victim"), rerun("other")
        traced = crashes.Traced(victim, folder / "trace", call, when)
        other.go()
        assert victim.code() == -signal.SIGKILL and other.code() == 0
        hit[phase(traced.finish().last[1]), call] += 1
        assert done.run.generations.opened() == {"a": 1} and len(done.states()) == 3
    report("rerun", hit)
    assert len(owners.life(done, 0)) == 1
    done.check()
    assert done.digests() == owners.digests  # the fresh generation's file has the same bytes
    assert done.states()["a"].generation == 1


# --- whole jobs -------------------------------------------------------------------------------

WHOLE = {"a": texts(40), "b": texts(17), "c": [*texts(5), "skip"]}


def _whole_job(folder: Path, call: str, when: int, calm: EchoJob) -> Counter[tuple[str, str]]:
    """A worker with a real engine process; each of the two, and each engine started later, dies at its `when`-th
    call.
    """
    job = EchoJob(folder / f"{call}-{when}", WHOLE, inputs=str(calm.inputs))  # the files say where these lie
    job.submit()
    log = folder / "trace"
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
    victim = job.worker(before=("strace", "-f", "-qq", "-y", "-s", "200", "-o", str(log), *inject))
    code = victim.wait(120)
    assert "+++ killed by SIGKILL" in log.read_text(errors="replace"), f"{call} {when} was not reached"
    agent_died = code in (128 + signal.SIGKILL, -signal.SIGKILL)
    if agent_died:
        assert job.work() == 0, job.log()
    else:
        assert code == 0, job.log()
    job.check()
    assert job.digests() == calm.digests()
    return Counter({("agent", call): int(agent_died), ("engine", call): job.log().count("died: killed by SIGKILL")})


def _whole_jobs(folder: Path, which: list[tuple[str, int]]) -> None:
    calm = EchoJob(folder / "calm", WHOLE)
    calm.submit()
    assert calm.work() == 0
    hit: Counter[tuple[str, str]] = Counter()
    for call, when in which:
        hit += _whole_job(folder, call, when, calm)
    report("whole job", hit)
    assert {p for p, _ in hit} == {"agent", "engine"}


@pytest.mark.slow(ci=True)
def test_whole_job_killed(folder: Path) -> None:
    _whole_jobs(folder, [("link", 8), ("pwrite64", 3)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_job_killed_at_many_calls(folder: Path) -> None:
    links = [("link", n) for n in range(1, 12)]
    saves = [*(("pwrite64", n) for n in range(3, 8)), *(("fdatasync", n) for n in range(2, 6))]
    others = [*(("fsync", n) for n in range(1, 22, 3)), ("rename", 1), *(("write", n) for n in range(5, 120, 9))]
    _whole_jobs(folder, links + saves + others)
