"""Where the hours of engines went: told apart as they happened, through deaths, hangs, kills and reruns."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc import config as configs
from hpc import rerun
from hpc.base import atomic
from hpc.base.errors import Exit
from hpc.map import counters, hours, local
from hpc.map.engine_time import BROKEN, IDLE, INPUT, KINDS, REDONE, START, WORK, EngineTime
from hpc.map.launch import prepare, record
from hpc.map.life import Life, kinds_of
from hpc.run.allocations import Allocation, Allocations
from hpc.run.journal_reader import Activity
from hpc.slurm import accounting
from tests.support.jobs import ENVIRONMENT, ROOT, EchoJob, inline, texts, wait_for

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
    spent.turn_to(IDLE)
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
    spent.turn_to(IDLE)
    clock.after(10)
    spent.reported({"made": 40, "input_s": 0.0, "idle_s": 0.0})
    spent.saved(30)
    assert spent.unsaved_s() == 2.5
    spent.died()
    clock.after(5)
    assert kinds(spent) == {WORK: 7.5, REDONE: 2.5, START: 5}
    spent.turn_to(IDLE)
    clock.after(6)
    spent.reported({"made": 0, "input_s": 0.0, "idle_s": 0.0})
    spent.died()  # before its first sample was finished
    assert kinds(spent) == {WORK: 7.5, REDONE: 8.5, START: 5}


@pytest.mark.parametrize("polls", [True, False])
def test_a_hang_is_no_work(polls: bool) -> None:
    """Whether the hung engine goes on saying that it lives, or is silent."""
    clock = Clock()
    spent = EngineTime(0.0, clock)
    spent.turn_to(IDLE)
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


def lived(slot: local._Slot, begun: float) -> Iterator[float]:
    """Seconds that each life of a supervised slot lasts, as an onlooker's clock says. begun: of the first."""
    process = slot._process
    while not slot.poll(stopping=False):
        if slot._process is not process:
            process, begun = slot._process, time.monotonic()
        if slot._again:  # it has ended, and waits to be started again
            yield time.monotonic() - begun
            wait_for(lambda: slot.poll(stopping=False) or not slot._again)
        time.sleep(0.01)
    yield time.monotonic() - begun


@pytest.mark.slow(ci=True)
def test_through_a_kill_and_a_rerun(make: Make, tmp_path: Path) -> None:
    """Known stalls: half a second of set-up a process, lines that take 0.15 s to be read and 0.05 s of work, a
    kill with nothing saved, one of two shards done again. The whole is what the processes lasted.
    """
    job = make(
        {"a": texts(8), "b": texts(8)}, setup_s=0.5, delay_s=0.05, read_s=0.15, batch=1, cluster={"price": 3600.0},
        applied=str(tmp_path / "applied"), map={"segment": 10, "save_s": 600.0},
    )  # fmt: skip
    for code in job.run.code.iterdir():
        code.unlink()  # a link to the working tree, which a supervised slot does not take
    submission = record(prepare(configs.load(job.config_file, [])))
    begun, slot = time.monotonic(), local._Slot(job.run, submission, 0)
    wait_for(lambda: job.heartbeats() and job.heartbeats()[0].get("time", {}).get("unsaved", 0) > 0.1)
    slot._process.kill()
    lasted = list(lived(slot, begun))
    assert len(lasted) == 2 and slot.code == Exit.COMPLETE
    assert rerun.main([str(job.run.path), "--shards", "a", "--no-submit"]) == 0
    begun, slot = time.monotonic(), local._Slot(job.run, submission, 0)
    lasted += lived(slot, begun)
    assert slot.code == Exit.COMPLETE
    effort = job.status()["effort"]
    found = {kind: 3600 * spent["hours"] for kind, spent in effort["by_kind"].items()}
    assert effort["hours"] * 3600 == pytest.approx(sum(found.values()), rel=0.01)
    assert sum(found.values()) == pytest.approx(sum(lasted), rel=0.01, abs=0.3 * len(lasted))
    assert counters.count(job.run).engine_seconds == pytest.approx(sum(found.values()), rel=0.01), (
        "as Prometheus has it"
    )
    assert effort["accounted"]["lives"] == {"starter": 3} and effort["accounted"]["hours"] == effort["hours"]
    assert found["start"] >= 0.5 * 3 and "broken" not in found
    lines = len((tmp_path / "applied").read_text().splitlines())
    worked = found["useful"] + found["redone"]
    assert worked >= 0.05 * lines * 0.9 and found["input"] > 0
    assert 0.8 < (worked + found["input"]) / (0.15 * lines) < 2.5, "as fast as they are read"
    assert found["redone"] / worked == pytest.approx(1 - 16 / lines, abs=0.15)
    assert effort["by_kind"]["input"]["cost"] == pytest.approx(found["input"], rel=0.01), "a second costs 1"
    said = inline("hpc.status", str(job.run.path)).stdout
    assert "hours of the slots are accounted for" in " ".join(said.split())
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


def life(seconds: float = 100.0, samples: int = 0, job: str = "", since: float = 0.0, **spent: float) -> Life:
    """Of a slot with two engines. since: when Slurm began it, as the record of its start says."""
    activity = Activity("n1", 0.0, seconds, samples=samples, job=job)
    found = {**dict.fromkeys(KINDS, 0.0), **spent} if spent else {}
    allocation = Allocation("u", job, "n1", 0.0, since, since) if since else None
    return Life("u-0000-0", 0, "n1", "exited", 2, sum(found.values()) / 2 or seconds, activity, {}, found, allocation)


def test_saved_twice_is_redone() -> None:
    found = hours.by_kind([life(work=7200.0, start=360.0, samples=300)], [], 200, 0.0)
    assert found == pytest.approx({"useful": 2 * 2 / 3, "redone": 2 / 3, "start": 0.1})
    assert hours.by_kind([life(seconds=1800.0)], [], 0, 0.0) == {"unknown": 1.0}, "slots of an earlier version"
    assert hours.by_kind([], [life(work=3600.0, idle=36.0), life()], 0, 0.0) == {"redone": 1.0, "idle": 0.01}


@pytest.mark.parametrize("damaged", [None, 3, [], {}, {"seconds": 3}, {"seconds": {"work": 1}}, {"seconds": None}])
def test_damaged_words_of_a_slot(damaged: Any) -> None:
    assert kinds_of(damaged) == {}


def test_what_slurm_counts(make: Make) -> None:
    """Its accounts may lack jobs or lives, know more than the lives, or less."""
    job = make({"a": texts(3)}, cluster={"engines_per_node": 2})
    submission = job.run.latest()
    submission.job_ids = ["7"]
    job.run.save(submission)
    said = accounting.parse("7_0|1000|100\n7_0|2000|80\n7_1|1000|90\n7_2|9|15\n7_[3-9]|Unknown|0\n8_0|1|1000\n7_4||\nx")
    assert said == {"7_0": {1000: 100, 2000: 80}, "7_1": {1000: 90}, "7_2": {9: 15}, "8_0": {1: 1000}}

    def unseen(*found: Life) -> tuple[float, list[float], list[str]]:
        beyond = hours.apply_accounts(said, found, job.run)
        return beyond, [round(one.seconds, 6) for one in found], [one.by for one in found]

    # moments are not known: an element's accounts against all of its lives
    old = (life(work=200.0, job="7_0"), life(work=60.0, job="7_0"), life(work=300.0, job="7_1"))
    assert unseen(*old) == ((360 - 260) + 0 + 30, [100, 30, 150], ["signs"] * 3)
    assert hours.apply_accounts({}, old, job.run) == 0
    # they are: each life by its own
    one, two = life(work=150.0, start=30.0, job="7_0", since=1001.0), life(work=200.0, job="7_0", since=2000.0)
    lacking, strange = life(work=50.0, job="7_0", since=3000.0), life(work=9000.0, job="7_1", since=1000.0)
    beyond, seconds, by = unseen(one, two, lacking, strange)
    assert beyond == (100 - 90) * 2 + 30 and seconds == [90, 80, 25, 4500]
    assert by == ["slurm", "slurm", "signs", "signs"], "what Slurm lacks, or cannot be, lasts as long as it did"
    assert two.kinds["work"] == 160, "a slot that drained after scancel"


def test_accounts_are_asked_for_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real command in the place of sacct: one answer a minute; none is as good as no accounts."""
    calls = tmp_path / "calls"
    sacct = tmp_path / "sacct"
    sacct.write_text(f"#!/bin/sh\necho \"$@\" >> {calls}\nprintf '7_0|5|100\\n'\n")
    sacct.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    asked = accounting.Accounting()
    assert asked.look([]) == {} and not calls.exists(), "nothing was submitted to Slurm"
    assert asked.look(["7"]) == asked.look(["7"]) == {"7_0": {5: 100}}
    assert len(calls.read_text().splitlines()) == 1
    sacct.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    assert accounting.elapsed(["7"]) is None and accounting.Accounting().look(["7"]) == {}
    asked._next = 0.0
    assert asked.look(["7"]) == {"7_0": {5: 100}}, "what was known stays"


WORD = {"seconds": {**dict.fromkeys(KINDS, 0.0), "work": 6.0, "start": 4.0}, "unsaved": 2.0}
DAY = 86400.0


def past_lives(job: EchoJob, count: int) -> None:
    """Of one slot, in turns: one that stopped, one that was killed, one whose node died, one that never said a word,
    and one whose words are all lost but a journal's first. Clocks jump by a day meanwhile, forwards and back.
    """
    uuid, run = job.run.latest().uuid, job.run
    seen = []
    for number in range(count):
        instance, name, up = f"{uuid}-0000-{number}", f"{1000 + number}.0", 50.0 * number
        t, jump = 1e9 + 20 * number, (DAY, -DAY)[number // 5 % 2]
        at = {"life": name, "job": "7_0", "host": "n1", "since": 0}
        seen.append({"event": "begin", "up": up, "t": int(t), **at})
        seen += [{"event": "end", "up": up + 13, "t": int(t + jump), **at}] if number % 5 != 2 else []
        if number % 5 == 3:
            continue
        events: list[dict[str, Any]] = [{"t": t, "event": "start", "host": "n1", "job": "7_0", "allocation": name}]
        word = {**WORD, "up": up + 10}
        if number % 5 == 0:
            events.append({"t": t + 10 + jump, "event": "stop", "code": 75, "time": {**word, "unsaved": 0.0}})
        (run.journals / f"{instance}.jsonl").write_bytes(b"".join(atomic.as_json(event) + b"\n" for event in events))
        beat = {"instance": instance, "slot": 0, "life": number, "submission": uuid, "t": t + jump}
        (run.slots / f"{instance}.json").write_bytes(
            atomic.as_json(beat if number % 5 == 4 else {**beat, "time": word})
        )
    (run.allocations / f"{uuid}-0.jsonl").write_bytes(b"".join(atomic.as_json(line) + b"\n" for line in seen))


# The peak of this process's own memory: what wait4 says begins with that of the process which forked it.
LOOK = """
import json, re, sys, time
from hpc import status
status.main(sys.argv[1:])
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"seconds": time.process_time(), "kib": peak}), file=sys.stderr)
"""


@pytest.mark.parametrize("count", [50, pytest.param(5000, marks=pytest.mark.slow(ci=True))])
def test_past_lives_without_ends_and_clocks_that_jump(make: Make, count: int) -> None:
    """By the machine's time since its boot each of them lasted 13 s, the one whose node died at least 10. A look takes
    bounded time and memory.
    """
    job = make({"a": texts(3)})
    past_lives(job, count)
    command = [sys.executable, "-c", LOOK, str(job.run.path), "--json"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    effort, used = json.loads(done.stdout)["effort"], json.loads(done.stderr.splitlines()[-1])
    found = {kind: 3600 * spent["hours"] for kind, spent in effort["by_kind"].items()}
    each = count // 5
    assert found == pytest.approx(
        {"useful": (6 + 4 + 4) * each, "redone": (2 + 3 + 2) * each, "start": (7 + 4 + 4) * each, "broken": 13 * each}
        | {"unknown": 13 * each}
    )
    assert effort["accounted"]["lives"] == {"starter": 4 * each, "signs": each}
    assert counters.count(job.run).engine_seconds == pytest.approx((4 * 13 + 10) * each)
    assert used["seconds"] < 20 and used["kib"] < 600 * 1024


def test_words_of_who_started_it(tmp_path: Path) -> None:
    """Torn and damaged lines are left out; machines' clocks that disagree add nothing."""
    begun = '{"event":"begin","life":"9.0","job":"7_0","host":"n1","up":100.5,"t":1000,"since":990}'
    lines = [
        "",
        "nothing",
        "{}",
        '{"event":"end","life":"8.0","up":1,"t":1}',
        begun,
        '{"event":"begin","life":"9.1","up":"x"}',
    ]
    file = tmp_path / "0123456789ab-4.jsonl"
    file.write_text("\n".join([*lines, '{"event":"end","life":"9.0","up":160.5,"t"']))
    found = Allocations(tmp_path)
    assert list(found.refresh()) == ["9.0"] and found.lives["9.0"].lasted() is None
    assert found.lives["9.0"].lasted(120.5) == 30, "ten seconds of a prolog, twenty until the last sign of life"
    with open(file, "a") as more:
        more.write(':1060,"since":990}\n')
    one = found.refresh()["9.0"]
    assert one.launch == "0123456789ab" and one.lasted(120.5) == 70 and one.lasted(200.5) == 110
    for since in (0.0, 1001.0, 1000 - DAY, 1000 + DAY):
        assert replace(one, since=since).lasted() == 60
    assert Allocations(tmp_path / "nowhere").refresh() == {}
