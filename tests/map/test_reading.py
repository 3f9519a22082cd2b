"""A shard that hangs or kills whoever reads it is failed with its reason; its neighbours and nodes are not charged."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from hpc.base import heartbeat
from hpc.map import breaker, suspects
from hpc.map.agent import Agent
from hpc.map.in_flight import Held, InFlight
from hpc.map.shard_task import ShardTask
from hpc.operator import Damage, Item, Row, Shard
from hpc.run.ledger import DONE, Claim
from hpc.run.segments import Segments
from tests.support.echo import Echo, EchoConfig
from tests.support.jobs import EchoJob, texts


class BadReads(Echo):
    """Echo whose reading hangs, or kills the process, where a line says so."""

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        for item in super().read(shard):
            if isinstance(item, Item) and item.payload == "read: hang":
                time.sleep(3600)
            if isinstance(item, Item) and item.payload == "read: kill":
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


class Hoarder(Echo):
    """Says that each sample holds 400 MiB, and applies none while it is given more."""

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(config)
        self._given = self._since = 0

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        for item in super().read(shard):
            yield replace(item, size=400 << 20) if isinstance(item, Item) else item

    def poll(self, timeout: float) -> list[Row]:
        time.sleep(0.01)
        self._since = self._since + 1 if len(self._waiting) == self._given else 0
        self._given = len(self._waiting)
        return super().poll(timeout) if self._since >= 20 else []

    def apply(self, items: list[Item]) -> list[Row]:
        with open(Path(self.config.inputs) / "batches", "a") as file:
            file.write(f"{len(items)}\n")
        return super().apply(items)


def job(folder: Path, lines: dict[str, list[str]], **settings: object) -> EchoJob:
    made = EchoJob(folder, lines, operator="tests.map.test_reading.BadReads", batch=4, **settings)
    made.submit()
    return made


@pytest.mark.parametrize(
    "where, fault, reason",
    [
        pytest.param(30, "kill", "input: reading it kills the engine", marks=pytest.mark.slow(ci=True)),
        pytest.param(0, "hang", "input: reading it hangs", marks=pytest.mark.slow),
    ],
)
def test_a_shard_that_cannot_be_read_fails_alone(tmp_path: Path, where: int, fault: str, reason: str) -> None:
    """Two of them in a row, before anything else: the slot goes on with the others, and no sample is blamed."""
    bad = [*texts(where), f"read: {fault}", *texts(3)]
    echo = job(tmp_path, {"a": bad, "b": bad, "c": texts(30), "d": [*texts(5), "skip"]}, map={"hang_s": 2.0})
    assert echo.work() == 2, echo.log()
    echo.check(but=("a", "b"))
    for shard in ("a", "b"):
        record = echo.record(f"{shard}.g0.failed")
        assert record["reason"] == reason, record
        assert len(record["epochs"]) == 3 and all(e["reading"] for e in record["epochs"])
    status = echo.status()
    assert sum(status["engine_deaths"].values()) == 6 and status["samples"]["quarantined"] == 0
    assert len(echo.heartbeats()) == 1 and status["excluded"] == {}, "neither the slot nor the node was given up"


def test_what_is_in_flight_is_bounded_in_bytes(tmp_path: Path) -> None:
    """An operator that wants 32 samples is given those of one GiB."""
    echo = EchoJob(tmp_path, {"a": texts(7)}, operator="tests.map.test_reading.Hoarder", batch=32)
    echo.submit()
    assert echo.work() == 0, echo.log()
    echo.check()
    assert (echo.inputs / "batches").read_text().split() == ["3", "3", "1"]


def test_a_node_is_excluded_only_for_what_others_can_read(tmp_path: Path) -> None:
    echo = job(tmp_path, {"a": texts(2), "b": texts(2)}, cluster={"slots": 2})
    agent = Agent(echo.run, echo.run.latest(), 0)
    dead: Any = SimpleNamespace(unread=[("a", 0), ("b", 0)], last_words="no progress for 600 s")
    agent.engines = [dead]
    facts = {"host": "another", "good": 5, "submission": echo.run.latest().uuid}
    heartbeat.register(echo.run.slots, echo.run.latest().uuid, 1, facts)
    assert "excluded" not in agent._given_up() and breaker.excluded(echo.run) == {}, "they may be hostile files"
    agent.ledger.claim(Claim(Shard("b", "", 0), 0, 0), "another")
    agent.ledger.mark(Claim(Shard("b", "", 0), 0, 0), DONE, {"rows": 2})
    assert "excluded" in agent._given_up() and list(breaker.excluded(echo.run)) == [agent.facts["host"]]


def test_what_is_in_hand_is_on_the_record(tmp_path: Path) -> None:
    segments, schema = Segments(tmp_path / "segments"), pa.schema([])
    first, second = (
        ShardTask(Shard(i, "", 0), 0, 0, set(), set(), False, 8, 0.0, segments, schema) for i in ("a", "b")
    )
    record = InFlight(tmp_path / "record")
    record.begin_reading(first)
    for index in range(3):
        record.add(first, Item("a", index, "k"), 0)
    record.remove(Row("a", 2, "k"))
    assert InFlight.read(tmp_path / "record").samples == [], "what is handed over together is one write"
    record.write()
    assert InFlight.read(tmp_path / "record") == Held([("a", 0, 0), ("a", 0, 1)], [("a", 0)], 1)
    record.remove(Row("a", 1, "k"))
    record.end_reading()
    record.begin_reading(second)
    record._compact()
    assert InFlight.read(tmp_path / "record") == Held([("a", 0, 0)], [("b", 0)], 1)
    with open(tmp_path / "record", "ab") as file:
        file.write(b"+b\t0\t")  # torn
    assert InFlight.read(tmp_path / "record").samples == [("a", 0, 0)]


def test_who_is_blamed(tmp_path: Path) -> None:
    echo = EchoJob(tmp_path, {"a": texts(1)})
    claim = Claim(Shard("a", "", 0), 0, 5)

    def died(held: list[int], together: int, **reading: object) -> dict[str, object]:
        return {"how": "died", "reason": "killed by SIGSEGV", "in_flight": held, "together": together, **reading}

    both = died([3], 1, reading=True, reads=1)
    reads = died([], 0, reading=True, reads=1)
    judge = suspects.judge
    assert judge(echo.run, claim, []) == suspects.Precautions([], [], False, "")
    assert judge(echo.run, claim, [both, both]) == suspects.Precautions([3], [], True, ""), "never one of two suspects"
    assert judge(echo.run, claim, [both, died([3], 1), died([3], 1)]) == suspects.Precautions([], [3], True, "")
    assert judge(echo.run, claim, [both, reads, reads]).unreadable == "input: reading it kills the engine"
    assert judge(echo.run, claim, [both, both, reads]).unreadable == ""
    assert judge(echo.run, claim, [died([3], 1), died([3], 1)]).quarantine == [3], "as older versions wrote it"
