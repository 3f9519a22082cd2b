"""One slot and its engines: what a death costs, whom it is blamed on, and how a slot ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc.base import heartbeat
from hpc.map.compare import Measure
from hpc.run import column as columns
from hpc.run.ledger import CLAIMED, DONE, FAILED
from tests.support.jobs import ENVIRONMENT, ROOT, EchoJob, command, texts, wait_for
from tests.support.slurm_cluster import alive

Make = Callable[..., EchoJob]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes submitted jobs, and ends their workers afterwards."""
    made: list[EchoJob] = []

    def job(lines: dict[str, list[str]], submit: bool = True, **settings: Any) -> EchoJob:
        found = EchoJob(tmp_path / str(len(made)), lines, applied=str(tmp_path / f"applied-{len(made)}"), **settings)
        made.append(found)
        if submit:
            found.submit()
        return found

    yield job
    for one in made:
        one.close()


def applied(job: EchoJob) -> list[str]:
    """Lines "pid shard index" of every sample that was applied."""
    file = job.folder.parent / f"applied-{job.folder.name}"
    return file.read_text().splitlines() if file.exists() else []


def engine_of(job: EchoJob, agent: int) -> psutil.Process:
    return wait_for(lambda: psutil.Process(agent).children())[0]


def statuses(job: EchoJob, shard: str) -> Counter[str]:
    return Counter(r["status"] for r in job.rows(shard))


# --- partial work -----------------------------------------------------------------------------


def test_a_killed_engine_resumes_from_its_segments(make: Make) -> None:
    job = make({"a": texts(120)}, delay_s=0.01, batch=4, map={"segment": 16})
    worker = job.worker()
    for deaths, wanted in ((1, 30), (2, 70)):
        wait_for(lambda wanted=wanted: len(applied(job)) > wanted)
        engine_of(job, worker.pid).kill()
        wait_for(lambda deaths=deaths: len(job.ends("died")) == deaths)
    assert worker.wait(60) == 0
    job.check()
    assert statuses(job, "a") == {"ok": 120}
    redone = len(applied(job)) - 120
    print(f"\n2 engine deaths: {redone} of 120 samples were applied again")  # noqa: T201
    assert 0 <= redone <= 2 * (16 + 4)  # a segment and what was in flight, each time
    assert job.status()["engine_deaths"] == {"killed by SIGKILL": 2}


def test_a_killed_agent_leaves_no_orphan_and_resumes(make: Make) -> None:
    job = make({"a": texts(100)}, delay_s=0.01, batch=4, map={"segment": 16})
    worker = job.worker()
    wait_for(lambda: len(applied(job)) > 40)
    engine = engine_of(job, worker.pid)
    worker.kill()
    worker.wait()
    wait_for(lambda: not alive(engine), 5.0)
    assert job.work() == 0
    job.check()
    assert len(applied(job)) - 100 <= 16 + 4
    assert [n for n in job.names() if ".e" in n] == ["a.g0.e0", "a.g0.e1"]  # at once, without waiting for the lease
    status = job.status()
    assert status["samples"]["ok"] == 100 and status["samples"]["left"] == 0


def test_status_counts_a_segment_once_however_often_it_is_named(make: Make) -> None:
    """Half a shard is saved, its owner dies, the next one adopts: the samples are counted once while the shard is
    open.
    """
    job = make({"a": texts(100)}, delay_s=0.02, batch=4, map={"segment": 16})
    for _ in range(2):
        worker = job.worker()
        before = len(applied(job))
        wait_for(lambda before=before: len(applied(job)) > before + 30)
        worker.kill()
        worker.wait()
        saved = job.saved("a")
        assert (
            saved - 16 <= job.status()["samples"]["ok"] <= saved
        )  # the agent may have died before it wrote the last one down
    assert job.status()["shards"]["done"] == 0


# --- poison -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", ["segv", *(pytest.param(f, marks=pytest.mark.slow) for f in ("kill", "exit", "raise"))]
)
def test_poison_is_isolated_and_quarantined(make: Make, fault: str) -> None:
    job = make({"a": [*texts(20), fault, *texts(20)], "b": texts(30)})
    assert job.work() == 0, job.log()
    job.check()
    assert statuses(job, "a") == {"ok": 40, "quarantined": 1} and statuses(job, "b") == {"ok": 30}
    assert job.rows("a")[20]["status"] == "quarantined" and job.rows("a")[20]["reason"]
    assert sum(job.status()["engine_deaths"].values()) <= 3
    assert not job.ends("failed")


@pytest.mark.slow
def test_poison_neighbours(make: Make) -> None:
    job = make({"a": ["segv", *texts(3), "exit", "kill", *texts(30), "segv"], "b": texts(30)})
    assert job.work() == 0, job.log()
    job.check()
    assert statuses(job, "a") == {"ok": 33, "quarantined": 4} and statuses(job, "b") == {"ok": 30}
    assert sum(job.status()["engine_deaths"].values()) <= 3 * 4


@pytest.mark.slow
def test_a_hanging_sample_is_dumped_and_quarantined(make: Make) -> None:
    job = make({"a": [*texts(3), "hang", *texts(3)]}, map={"hang_s": 3.0, "segment": 2}, batch=4)
    assert job.work() == 0, job.log()
    job.check()
    assert statuses(job, "a") == {"ok": 6, "quarantined": 1}
    assert "no progress for 3 s" in job.log() and "in _one" in job.log(), "no stack of the hung engine in the log"
    assert sum(job.status()["engine_deaths"].values()) <= 3


@pytest.mark.slow(ci=True)
def test_a_sample_that_takes_the_agent_along(make: Make) -> None:
    """Out of memory takes the whole step: no end is ever written, and what was in flight tells the successors."""
    job = make({"a": [*texts(5), "hang", *texts(5)]}, batch=4)
    for _ in range(4):
        before = len(applied(job))
        worker = job.worker()
        wait_for(lambda before=before: any(line.endswith(" a 5") for line in applied(job)[before:]))
        worker.kill()
        worker.wait()
    assert job.work() == 0, job.log()
    job.check()
    assert statuses(job, "a") == {"ok": 10, "quarantined": 1}


# --- sample and shard failures ----------------------------------------------------------------


def test_transient_samples_are_tried_again(make: Make) -> None:
    job = make({"a": [*texts(20), "flaky", *texts(5)]})
    assert job.work() == 0
    assert statuses(job, "a") == {"ok": 26} and not job.ends("failed")
    assert sum(line.endswith(" a 20") for line in applied(job)) == 2


def test_lasting_trouble_fails_the_shard_and_its_good_samples_are_kept(make: Make) -> None:
    job = make({"a": [*texts(20), "transient"], "b": texts(5)}, map={"attempts": 2})
    assert job.work() == 2
    job.check(but=("a",))
    state = job.states()["a"]
    assert state.status == FAILED and job.record("a.g0.failed")["reason"] == "samples: line: transient"
    assert sum(line.endswith(" a 0") for line in applied(job)) == 1  # good samples were saved at once
    assert sum(line.endswith(" a 20") for line in applied(job)) == 2 * 3  # attempts × tries
    failures = job.status()["failures"]
    assert failures["samples: line: transient"]["count"] == 1 and failures["samples: line: transient"]["example"] == "a"


def test_too_many_failed_samples_fail_the_shard(make: Make) -> None:
    job = make({"a": [*texts(9), "bad"], "b": [*texts(39), "bad"], "c": ["skip"] * 7, "unread": ["unreadable"]})
    assert job.work() == 2
    job.check(but=("a", "unread"))
    assert job.record("a.g0.failed")["reason"].startswith("too many samples failed: failed: line: bad")
    assert job.record("unread.g0.failed")["reason"] == "input: unreadable"
    assert len(job.record("a.g0.failed")["epochs"]) == 3
    assert statuses(job, "b") == {"ok": 39, "failed": 1}  # 2.5 % is allowed
    assert statuses(job, "c") == {"skipped": 7}  # nothing but skipped samples is a finished shard
    assert not list(job.run.path.glob("columns/*/*/*/a.g0.parquet")), "a failed shard left a file"
    status = job.status()
    assert status["shards"] == {"total": 4, "done": 2, "damaged": 0, "running": 0, "open": 0, "failed": 2}
    assert status["samples"] | {"left": 0} == {"ok": 39, "skipped": 7, "failed": 1, "quarantined": 0, "left": 0}
    assert status["exit"] == 2


def test_what_the_input_lost_is_failed_and_fails_no_shard(make: Make) -> None:
    """However much it is: nothing after it moves, and the operator is not asked. Others of the shard count as ever."""
    job = make({"a": ["first", *["lost"] * 600, "last"], "b": [*["lost"] * 90, "bad", *texts(9)]})
    assert job.work() == 2
    job.check(but=("b",))
    rows = job.rows("a")
    assert [(row["text"], row["status"]) for row in (rows[0], rows[601])] == [("first", "ok"), ("last", "ok")]
    assert {(r["status"], r["reason"], r["text"]) for r in rows[1:601]} == {("failed", "input: gone", None)}
    assert {line.rpartition(" ")[2] for line in applied(job) if " a " in line} == {"0", "601"}
    assert job.record("b.g0.failed")["detail"].endswith("line: bad: 1 of 10, allowed 5.0%")
    assert Measure.of(columns.read(job.file("a"))).failed == 0, "what a pilot compares is the work's"


def test_damage_and_emptiness(make: Make) -> None:
    job = make({"a": [*texts(4), "damaged"], "empty": []})
    assert job.work() == 0
    job.check()
    assert job.record("a.g0.done")["damage"]["reason"] == "text: ends too early"
    assert job.rows("empty") == []
    status = job.status()
    assert status["shards"]["damaged"] == 1 and status["damaged"]["text: ends too early"]["example"] == "a"


@pytest.mark.slow
def test_another_segment_size_adopts_what_was_saved(make: Make) -> None:
    job = make({"a": texts(60)}, delay_s=0.02, batch=4, map={"segment": 16})
    worker = job.worker()
    wait_for(lambda: job.states() and job.saved("a") >= 32)
    worker.kill()
    worker.wait()
    before = len(applied(job))
    job.submit("map.segment=7", "delay_s=0")
    assert job.work() == 0, job.log()
    job.check()
    assert before + 60 - len(applied(job)) >= 32  # at least the two segments were not done again


# --- drain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR2, 75), (signal.SIGINT, 1)])
def test_drain(make: Make, number: int, code: int) -> None:
    job = make({"a": texts(200)}, delay_s=0.01, batch=4, map={"segment": 16, "save_s": 3600.0})
    worker = job.worker()
    wait_for(lambda: len(applied(job)) > 40)
    engine = engine_of(job, worker.pid)
    engine.send_signal(number)  # Slurm signals every process of a step: engines must not care
    worker.send_signal(number)
    assert worker.wait(30) == code
    assert not psutil.pid_exists(engine.pid)
    assert [job.record(n)["how"] for n in job.names() if n.endswith(".end")] == ["released"]
    [facts] = job.heartbeats()
    assert facts["state"] == "exited" and facts["code"] == code
    first = len(applied(job))
    assert job.saved("a") == first, "finished, and not saved at the drain"
    other = job.worker(slot=1)  # another slot takes it up without waiting for a lease
    wait_for(lambda: len(applied(job)) > first)
    assert job.states()["a"].epoch == 1
    other.kill()


def test_drain_while_the_model_loads(make: Make) -> None:
    job = make({"a": texts(3)}, setup_s=60.0)
    worker = job.worker()
    engine_of(job, worker.pid)
    wait_for(lambda: "life 0" in job.log())
    time.sleep(0.3)  # into setup; before it the result is the same
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 143
    assert job.names() == []  # nothing was claimed before setup returned


# --- zombies, leases, heartbeats --------------------------------------------------------------


def test_a_zombie_that_comes_back_publishes_nothing_twice(make: Make) -> None:
    """A stopped agent's shard is taken over after a lease; when it runs on, it finds itself superseded or fenced."""
    job = make({"a": texts(40)}, delay_s=0.01, batch=4, map={"lease_s": 1.0}, cluster={"slots": 2})
    zombie = job.worker(slot=0)
    wait_for(lambda: applied(job))
    zombie.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    successor = job.worker(slot=1)
    wait_for(lambda: job.states()["a"].epoch == 1)
    assert time.monotonic() - began > 1.0, "taken over within the lease"
    zombie.send_signal(signal.SIGCONT)
    assert successor.wait(60) == 0 and zombie.wait(60) == 0
    job.check()
    finished = [e for f in job.run.journals.glob("*.jsonl") for e in map(json.loads, f.open()) if e["event"] == "done"]
    assert len(finished) == 1
    # Whichever it sees first: that another has the shard, or that its own heartbeat is too old to be believed.
    said = job.log(slot=0)
    assert job.record("a.g0.done")["epoch"] == 1 and ("superseded" in said or "could not write its heartbeat" in said)


def test_the_later_life_of_a_slot_goes_on(make: Make) -> None:
    """Two processes of one slot: the later takes the earlier's claims at once; the earlier stops and is not
    requeued.
    """
    job = make({"a": texts(100)}, delay_s=0.05, batch=4, map={"lease_s": 60.0})  # longer than the first takes to look
    first = job.worker()
    wait_for(lambda: len(applied(job)) > 4)
    second = job.worker()
    wait_for(lambda: job.states()["a"].epoch == 1)
    assert first.wait(30) == 1 and second.wait(60) == 0
    job.check()
    assert "a later life of this slot has started" in job.log()


# --- reruns and launches meanwhile --------------------------------------------------------------


def test_rerun_while_running(make: Make) -> None:
    """Running slots take up reopened shards: a finished one, and one that is in work right now."""
    job = make({"a": texts(3), "b": [*texts(10), "wait", *texts(10)]}, batch=2, cluster={"engines_per_node": 2})
    worker = job.worker()
    wait_for(lambda: {i: s.status for i, s in job.states().items()} == {"a": DONE, "b": CLAIMED})
    done = command("hpc.rerun", str(job.run.path), "--shards", "a,b")
    assert done.returncode == 0 and "running slots will take them up" in done.stdout, done.stdout + done.stderr
    wait_for(lambda: job.states()["a"].status == DONE)
    assert "b.g1.e0" not in job.names()  # b's next generation waits for the present one
    (job.inputs / "go").touch()
    assert worker.wait(60) == 0
    job.check()
    assert {i: (s.generation, s.status) for i, s in job.states().items()} == {"a": (1, DONE), "b": (1, DONE)}


def test_two_launches_at_once(make: Make) -> None:
    job = make({i: texts(15) for i in "abcdef"}, delay_s=0.005, batch=4)
    first = job.run.latest()
    second = job.submit()
    workers = [job.worker(0, first), job.worker(1, second)]
    assert [w.wait(60) for w in workers] == [0, 0]
    job.check()
    assert len(applied(job)) == 6 * 15  # no shard was done by both


# --- how a slot ends --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_slot_gives_up_after_five_lives_without_progress(make: Make) -> None:
    job = make({"a": texts(3)}, setup_fault="exit")
    assert job.work() == 1  # three engines that die alike in set-up pause the run
    assert "setup: exited with 3" in job.log()
    for _ in range(4):
        heartbeat.register(job.run.slots, job.run.latest().uuid, 0, {"rows": 0})
    assert job.work() == 1
    assert "5 lives without progress" in job.log() and job.names() == []


def test_lives_with_progress_do_not_count(make: Make) -> None:
    job = make({"a": texts(3)})
    for rows in (0, 0, 7, 0, 0):
        heartbeat.register(job.run.slots, job.run.latest().uuid, 0, {"rows": rows})
    assert job.work() == 0


@pytest.mark.slow(ci=True)
def test_the_local_supervisor_restarts_on_75_and_drains(make: Make) -> None:
    job = make({"a": texts(100)}, submit=False, delay_s=0.02, batch=4)
    arguments = [sys.executable, "-m", "hpc.launch", str(job.config_file)]
    with open(job.folder / "launch.log", "wb") as log:
        supervisor = subprocess.Popen(
            arguments, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    job.processes.append(supervisor)
    wait_for(lambda: applied(job))
    [facts] = job.heartbeats()
    os.kill(facts["pid"], signal.SIGUSR2)
    wait_for(lambda: len(job.heartbeats()) == 2)
    before = len(applied(job))
    wait_for(lambda: len(applied(job)) > before)
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(30) == 1
    assert {h["state"] for h in job.heartbeats()} == {"exited"} and {h["code"] for h in job.heartbeats()} == {75, 143}
    assert job.launch("delay_s=0").returncode == 0
    job.check()
