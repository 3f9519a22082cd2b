"""Heartbeats: whose life counts, and by whose clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc.base import heartbeat
from tests.support.jobs import wait_for


def test_observers_use_their_own_clock(tmp_path: Path) -> None:
    """A heartbeat's age is nothing but how long an observer has seen it unchanged; a new observer waits a whole
    lease.
    """
    instance, _ = heartbeat.register(tmp_path, "sub", 3, {})
    (tmp_path / f"{instance}.json").write_text(json.dumps({"beat": 7, "t": 0.0}))  # written in 1970, by its clock
    observer = heartbeat.Observer(tmp_path, "sub-0001-0", 0.4)
    assert not observer.dead(instance)
    (tmp_path / f"{instance}.json").write_text(json.dumps({"beat": 8, "t": 0.0}))
    wait_for(lambda: observer.dead(instance))
    assert not heartbeat.Observer(tmp_path, "sub-0001-0", 0.4).dead(instance)
    (tmp_path / f"{instance}.json").write_text(json.dumps({"beat": 9, "state": "exited"}))
    wait_for(lambda: observer.dead(instance))


def test_own_slot_lives() -> None:
    assert heartbeat.earlier_life("sub-0001-0", "sub-0001-2")
    assert not heartbeat.earlier_life("sub-0001-2", "sub-0001-2")
    assert not heartbeat.earlier_life("sub-0001-3", "sub-0001-2")  # of two that are alive, the later goes on
    assert not heartbeat.earlier_life("sub-0002-0", "sub-0001-2")
    assert not heartbeat.earlier_life("other-0001-0", "sub-0001-2")


def test_a_slot_that_cannot_write_its_heartbeat_fences_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, _ = heartbeat.register(tmp_path, "sub", 0, {})
    beat = heartbeat.Heartbeat(tmp_path, instance, 0.5)
    beat.advance({})
    assert not beat.fenced()
    with monkeypatch.context() as broken:
        broken.setattr("hpc.base.atomic.replace", _no_space)
        beat.advance({}, force=True)
        wait_for(beat.fenced)
    beat.advance({}, force=True)  # the file system is back, and so is the slot
    assert not beat.fenced()


def _no_space(*arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


def test_lives_that_have_ended_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def beat(instance: str, **facts: Any) -> None:
        (tmp_path / f"{instance}.json").write_text(json.dumps({"instance": instance, **facts}))

    for life in range(12):
        beat(f"sub-0001-{life}", state="exited")
    beat("sub-0002-0", state="running")
    read: list[str] = []
    really = heartbeat.read
    monkeypatch.setattr(heartbeat, "read", lambda slots, name: read.append(name) or really(slots, name))
    exited: dict[str, dict[str, Any]] = {}
    for _ in range(2):
        assert [f["instance"] for f in heartbeat.newest(tmp_path, exited)] == ["sub-0001-11", "sub-0002-0"]
    assert read == ["sub-0001-11", "sub-0002-0", "sub-0002-0"]
    (tmp_path / "sub-0002-1.json").write_text("torn")
    beat("sub-0001-12", state="running")
    assert {f["instance"] for f in heartbeat.newest(tmp_path, exited)} == {"sub-0001-12", "sub-0002-0"}
    assert exited == {}
