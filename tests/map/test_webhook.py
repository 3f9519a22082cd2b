"""The webhook of map runs, with a receiver that refuses, loses answers and is slow, and slots that are killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpc.base import heartbeat
from hpc.base.errors import Exit, UserError
from hpc.map import webhook
from hpc.map.drain import Drain
from hpc.map.webhook import Webhook
from hpc.run import events
from hpc.run.events import unsent
from tests.support import jobs
from tests.support.jobs import EchoJob, texts, wait_for
from tests.support.receiver import SECRET, Receiver


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    found = Receiver()
    monkeypatch.setenv(events.VARIABLE, found.url)
    monkeypatch.setitem(jobs.ENVIRONMENT, events.VARIABLE, found.url)
    yield found
    found.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    echo = EchoJob(tmp_path, {"a": texts(5), "b": ["unreadable"]}, map={"attempts": 1, "lease_s": 1.0})
    yield echo
    echo.close()


def slot(job: EchoJob, number: int) -> Webhook:
    submission = job.run.latest()
    config = submission.checked().run
    instance, _ = heartbeat.register(job.run.slots, submission.uuid, number, {})
    beat = heartbeat.Heartbeat(job.run.slots, instance, config.map.lease_s)
    found = Webhook(job.run, instance, beat, Drain(job.run, instance, beat, config, 1.0), config.map)
    found.beat = beat  # type: ignore[attr-defined]
    return found


def pause(one: Webhook, why: str = "paused: disk", reruns: int = 0) -> None:
    one.leave(Exit.INCOMPLETE, why, reruns, lambda: one.beat.advance({}))  # type: ignore[attr-defined]


@pytest.mark.slow(ci=True)
def test_real_slots_killed_while_they_send_and_answers_lost(job: EchoJob, receiver: Receiver) -> None:
    submission = job.submit()
    receiver.answers = ["hold", 503, "lose", 302]
    first = job.worker()
    wait_for(lambda: receiver.seen)
    first.kill()  # it has sent, and knows no answer
    first.wait()
    assert job.status()["unsent"] == ["failed.g0"]
    assert job.work() == Exit.SOME_FAILED
    name = f"job-{submission.uuid}-failed-0"
    assert [key for key, _ in receiver.seen] == [name] * 5 and receiver.answered == {name: 1}
    bodies = [body for _, body in receiver.seen]
    assert all(body == bodies[0] for body in bodies)  # the same words under one name
    assert bodies[0]["name"] == name and bodies[0]["kind"] == "failed" and bodies[0]["shards"]["failed"] == 1
    assert "1 shards failed" in bodies[0]["text"]
    assert job.status()["unsent"] == []
    written = [path.read_bytes() for path in job.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(written) > 10 and not any(SECRET.encode() in data for data in written)


def test_of_many_slots_one_sends_however_slow_the_receiver(job: EchoJob, receiver: Receiver) -> None:
    job.submit()
    receiver.answers = ["lose", 503]
    slots = [slot(job, number) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(pause, slots))
    assert len(receiver.seen) == 3 and set(receiver.answered.values()) == {1}
    assert {body["kind"] for _, body in receiver.seen} == {"paused"}
    pause(slot(job, 9))
    assert len(receiver.seen) == 3  # told once
    pause(slot(job, 10), reruns=1)  # after a rerun it is another event
    assert len(receiver.seen) == 4 and len(receiver.answered) == 2


def test_what_a_slot_left_unsent_another_sends(job: EchoJob, receiver: Receiver) -> None:
    """Killed between the event and its sending: as owner (whose lease runs out), and before that."""
    submission = job.submit()
    job.run.event_files.mkdir()
    (job.run.event_files / "paused.g0.json").write_text(json.dumps({"name": "x-paused-0"}))
    (job.run.event_files / "paused.g1.json").write_text(json.dumps({"name": "x-paused-1"}))
    dead, _ = heartbeat.register(job.run.slots, submission.uuid, 5, {})
    (job.run.event_files / "paused.g1.e0").write_text(dead)
    one = slot(job, 0)
    one.leave(Exit.REQUEUE, "time limit", 0, lambda: one.beat.advance({}))  # type: ignore[attr-defined]
    assert [key for key, _ in receiver.seen] == ["x-paused-0", "x-paused-1"] and unsent(job.run) == []


def test_a_signal_ends_the_tries_and_the_event_stays(job: EchoJob, receiver: Receiver) -> None:
    job.submit()
    receiver.answers = [503] * 1000
    one = slot(job, 0)
    drain = one._drain

    def advance() -> None:
        if receiver.seen:
            drain._on_signal(15, None)

    one.leave(Exit.INCOMPLETE, "paused: disk", 0, advance)
    assert unsent(job.run) == ["paused.g0"]
    receiver.answers = []


def test_without_an_address_nothing_is_written(job: EchoJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(events.VARIABLE, raising=False)
    job.submit()
    pause(slot(job, 0))
    assert not job.run.event_files.exists()


@pytest.mark.parametrize(
    "wrong",
    ["x", "ftp://h/x", "http://", "https://h:99999/x", "https://h/a b\n c", "http://[::1/x", "https://u:secret@h/"],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(UserError) as refused:
        webhook.address({events.VARIABLE: wrong})
    assert str(refused.value).startswith(f"webhook: what is in ${events.VARIABLE} is no http(s) address")
    assert "99999" not in str(refused.value) and "secret" not in str(refused.value)
    assert webhook.address({}) == "" and webhook.address({events.VARIABLE: " https://h/x\n"}) == "https://h/x"
