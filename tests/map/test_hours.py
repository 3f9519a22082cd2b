"""Where the hours of engines went: told apart as they happened, through deaths, hangs, kills and reruns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc import rerun
from hpc.base import atomic
from hpc.base.errors import Exit
from hpc.map import hours
from hpc.map import status as map_status
from hpc.map.cost import Life, kinds_of
from hpc.map.engine_time import BROKEN, IDLE, INPUT, KINDS, REDONE, START, WORK, EngineTime
from hpc.run.journal_reader import Activity
from hpc.slurm import accounting
from tests.support.jobs import EchoJob, inline, texts, wait_for

Make = Callable[..., EchoJob]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[EchoJob] = []

    def new(lines: dict[str, list[str]], **settings: Any) -> EchoJob:
        made.append(EchoJob(tmp_path, lines, **settings))
        made[-1].submit()
        return made[-1]

    yield new
    for job in made:
        job.close()


# --- one engine, by its own clock -------------------------------------------------------------


class Clock:
    """Seconds as the test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float) -> None:
        self.now += seconds


def kinds(spent: EngineTime) -> dict[str, float]:
    return {kind: round(seconds, 6) for kind, seconds in spent.seconds().items() if round(seconds, 6)}


def test_every_second_has_a_kind() -> None:
    clock = Clock()
    spent = EngineTime(3.0, clock)
    clock.after(10)  # the model loads
    spent.turns(IDLE)
    clock.after(2)
    spent.reported({"made": 0, "input_s": 0.5, "idle_s": 1.5})
    clock.after(8)
    spent.reported({"made": 40, "input_s": 2.5, "idle_s": 1.5})
    clock.after(4)
    spent.reported({"made": 40, "input_s": 2.5, "idle_s": 1.5, "waiting": "server away"})
    assert kinds(spent) == {START: 13, IDLE: 1.5, INPUT: 2.5, WORK: 6, BROKEN: 4}
    clock.after(1)  # not heard of yet
    assert sum(spent.seconds().values()) == 28


def test_what_was_not_saved_is_redone() -> None:
    clock = Clock()
    spent = EngineTime(0.0, clock)
    spent.turns(IDLE)
    clock.after(10)
    spent.reported({"made": 40, "input_s": 0.0, "idle_s": 0.0})
    spent.saved(30)
    assert spent.unsaved_s() == 2.5
    spent.died()
    clock.after(5)
    assert kinds(spent) == {WORK: 7.5, REDONE: 2.5, START: 5}
    spent.turns(IDLE)
    clock.after(6)
    spent.reported({"made": 0, "input_s": 0.0, "idle_s": 0.0})
    spent.died()  # before its first sample was finished
    assert kinds(spent) == {WORK: 7.5, REDONE: 8.5, START: 5}


@pytest.mark.parametrize("polls", [True, False])
def test_a_hang_is_no_work(polls: bool) -> None:
    """Whether the hung engine goes on saying that it lives, or is silent."""
    clock = Clock()
    spent = EngineTime(0.0, clock)
    spent.turns(IDLE)
    clock.after(10)
    spent.reported({"made": 40, "input_s": 0.0, "idle_s": 0.0})
    spent.saved(40)
    for _ in range(600):
        clock.after(1)
        if polls:
            spent.reported({"made": 40, "input_s": 0.0, "idle_s": 0.0})
    spent.died(hung=True)
    assert kinds(spent) == {WORK: 10, BROKEN: 600}


def test_a_node_that_may_not_work() -> None:
    clock = Clock()
    spent = EngineTime(30.0, clock)
    clock.after(2)
    spent.unfit()
    assert kinds(spent) == {BROKEN: 32}


# --- a real run -------------------------------------------------------------------------------


@pytest.mark.slow(ci=True)
def test_through_a_kill_and_a_rerun(make: Make, tmp_path: Path) -> None:
    """Known stalls: half a second of set-up a process, lines that take 0.15 s to be read and 0.05 s of work, a
    kill with nothing saved, one of two shards done again. The whole is what the processes lasted.
    """
    job = make(
        {"a": texts(8), "b": texts(8)}, setup_s=0.5, delay_s=0.05, read_s=0.15, batch=1, cluster={"price": 3600.0},
        applied=str(tmp_path / "applied"), map={"segment": 10, "save_s": 600.0},
    )  # fmt: skip
    lasted = []
    started = time.monotonic()
    worker = job.worker()
    wait_for(lambda: job.heartbeats() and job.heartbeats()[0].get("time", {}).get("unsaved", 0) > 0.1)
    worker.kill()
    worker.wait()
    lasted.append(time.monotonic() - started)
    assert sum(job.status()["samples"].values()) == job.status()["samples"]["left"], "something was saved"
    for _ in range(2):
        started = time.monotonic()
        assert job.work() == Exit.COMPLETE, job.log()
        lasted.append(time.monotonic() - started)
        if len(lasted) == 2:
            assert rerun.main([str(job.run.path), "--shards", "a", "--no-submit"]) == 0
    effort = job.status()["effort"]
    found = {kind: 3600 * spent["hours"] for kind, spent in effort["by_kind"].items()}
    assert effort["hours"] * 3600 == pytest.approx(sum(found.values()), rel=0.01)
    assert sum(found.values()) == pytest.approx(sum(lasted), rel=0.1, abs=3.0)
    assert found["start"] >= 0.5 * 3 and "broken" not in found
    lines = len((tmp_path / "applied").read_text().splitlines())
    work = found["useful"] + found["redone"]
    assert work >= 0.05 * lines * 0.9 and found["input"] > 0
    assert 0.8 < (work + found["input"]) / (0.15 * lines) < 2.5, "as fast as they are read"
    assert found["redone"] / work == pytest.approx(1 - 16 / lines, abs=0.15)
    assert effort["by_kind"]["input"]["cost"] == pytest.approx(found["input"], rel=0.01), "a second costs 1"
    said = inline("hpc.status", str(job.run.path)).stdout
    assert "waiting for input" in said and "redone" in said and "start-up and model load" in said
    again = json.loads(inline("hpc.status", str(job.run.path), "--json").stdout)["effort"]
    assert again == effort, "nothing of it depends on when it is asked"


def test_another_identity_has_its_hours_too(make: Make) -> None:
    job = make({"a": texts(20)}, delay_s=0.02)
    assert job.work() == Exit.COMPLETE
    before = job.status()["effort"]["by_kind"]
    job.submit("prefix=x", supersede=True)
    now = job.status()["effort"]["by_kind"]
    assert now["redone"]["hours"] == pytest.approx(before["useful"]["hours"], abs=1e-5)
    assert "useful" not in now and now["start"] == before["start"]


# --- what a run directory may hold ------------------------------------------------------------


def life(seconds: float = 100.0, samples: int = 0, job: str = "", **spent: float) -> Life:
    activity = Activity("n1", 0.0, seconds, samples=samples, job=job)
    found = {**dict.fromkeys(KINDS, 0.0), **spent} if spent else {}
    return Life("u-0000-0", 0, "n1", "exited", 2, sum(found.values()) / 2 or seconds, activity, {}, found)


def test_saved_twice_is_redone() -> None:
    found = hours.by_kind([life(work=7200.0, start=360.0, samples=300)], [], 200, 0.0)
    assert found == pytest.approx({"useful": 2 * 2 / 3, "redone": 2 / 3, "start": 0.1})
    assert hours.by_kind([life(seconds=1800.0)], [], 0, 0.0) == {"unknown": 1.0}, "slots of an earlier version"
    other = {"time": {"seconds": {**dict.fromkeys(KINDS, 0.0), "work": 3600.0, "idle": 36.0}, "unsaved": 0.0}}
    assert hours.by_kind([], [other, {}, {"time": 3}], 0, 0.0) == {"redone": 1.0, "idle": 0.01}


@pytest.mark.parametrize("damaged", [None, 3, [], {}, {"seconds": 3}, {"seconds": {"work": 1}}, {"seconds": None}])
def test_damaged_words_of_a_slot(damaged: Any) -> None:
    assert kinds_of(damaged) == {}


def test_what_slurm_alone_has_seen(make: Make) -> None:
    """Its accounts may lack jobs, know more than the lives, or less."""
    job = make({"a": texts(3)}, cluster={"engines_per_node": 2})
    submission = job.run.latest()
    submission.job_ids = ["7"]
    job.run.save(submission)
    lives = [life(work=200.0, job="7_0"), life(work=60.0, job="7_0"), life(work=300.0, job="7_1")]
    said = accounting.parse("7_0|100\n7_0|80\n7_1|90\n7_2|15\n7_[3-9]|0\n8_0|1000\nnothing\n7_4|\n")
    assert said == {"7_0": 180, "7_1": 90, "7_2": 15, "8_0": 1000}
    assert hours.unseen_s(job.run, lives, [], said) == (360 - 260) + 0 + 30
    assert hours.unseen_s(job.run, lives, [], {}) == 0


def test_accounts_are_asked_for_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real command in the place of sacct: one answer a minute; none is as good as no accounts."""
    calls = tmp_path / "calls"
    sacct = tmp_path / "sacct"
    sacct.write_text(f"#!/bin/sh\necho \"$@\" >> {calls}\nprintf '7_0|100\\n'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asked = accounting.Accounting()
    assert asked.look([]) == {} and not calls.exists(), "nothing was submitted to Slurm"
    assert asked.look(["7"]) == asked.look(["7"]) == {"7_0": 100}
    assert len(calls.read_text().splitlines()) == 1
    sacct.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    assert accounting.elapsed(["7"]) is None and accounting.Accounting().look(["7"]) == {}
    asked._next = 0.0
    assert asked.look(["7"]) == {"7_0": 100}, "what was known stays"


def test_five_thousand_past_lives_and_clocks_that_jump(make: Make) -> None:
    """A third stopped, a third was killed, a third left no word but its journal; clocks jumped by a day meanwhile. By
    the slots' own clocks each lasted 10 s.
    """
    job = make({"a": texts(3)})
    uuid, run = job.run.latest().uuid, job.run
    word = {"seconds": {**dict.fromkeys(KINDS, 0.0), "work": 6.0, "start": 4.0}, "unsaved": 0.0}
    for number in range(5000):
        instance = f"{uuid}-0000-{number}"
        jump = 86400.0 * (number % 2)
        events: list[dict[str, Any]] = [{"t": 1e9 + 20 * number, "event": "start", "host": "n1", "job": "7_0"}]
        if number % 3 == 0:
            events.append({"t": 1e9 + 20 * number + 10 + jump, "event": "stop", "code": 75, "time": word})
        lines = b"".join(atomic.as_json(event) + b"\n" for event in events)
        (run.journals / f"{instance}.jsonl").write_bytes(lines)
        beat = {"instance": instance, "slot": 0, "life": number, "submission": uuid, "t": 1e9 + 20 * number + jump}
        if number % 3 == 1:
            beat["time"] = {**word, "unsaved": 2.0}
        (run.slots / f"{instance}.json").write_bytes(atomic.as_json(beat))
    started = time.monotonic()
    tally = map_status.current(run)
    effort = map_status.read_status(run, tally)["effort"]
    first = time.monotonic() - started
    found = {kind: 3600 * spent["hours"] for kind, spent in effort["by_kind"].items()}
    counts = [len(range(which, 5000, 3)) for which in range(3)]
    assert found["useful"] == pytest.approx(6 * counts[0] + 4 * counts[1], rel=1e-3)
    assert found["redone"] == pytest.approx(2 * counts[1], rel=1e-3)
    assert found["start"] == pytest.approx(4 * (counts[0] + counts[1]), rel=1e-3)
    assert map_status.read_status(run, tally)["effort"] == effort
    assert first < 20, "a look takes seconds"
