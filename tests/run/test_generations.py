"""What reruns opened: read once, flat for an agent however many shards were reopened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpc.operator import Shard
from hpc.run import plan
from hpc.run.generations import Generations
from hpc.run.ledger import DONE, FAILED, Claim, Ledger, bucket_of


def test_the_highest_generation_counts_and_keep_is_of_its_generation(tmp_path: Path) -> None:
    run, other = Generations(tmp_path), Generations(tmp_path)
    run.open({"a": 1, "b": 1}, "rerun")
    assert other.opened() == {"a": 1, "b": 1} and other.count() == 1
    run.open({"a": 2}, "rerun", keep=True)
    assert other.opened() == {"a": 2, "b": 1}
    assert other.by_bucket()[bucket_of("b")]["b"] == 1
    assert [other.keeps("a", g) for g in (0, 1, 2, 3)] == [False, False, True, False]
    assert not other.keeps("b", 1)


def test_a_rerun_that_another_slot_saw_first_is_read_when_its_claim_comes(tmp_path: Path) -> None:
    ours, theirs = Generations(tmp_path), Generations(tmp_path)
    assert ours.opened() == {}
    theirs.open({"a": 1}, "rerun", keep=True)
    assert ours.keeps("a", 1)


def test_files_are_read_once_however_often_a_claim_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = Path.read_bytes

    def counted(self: Path) -> bytes:
        reads.append(self.name)
        return read(self)

    for number in range(3):
        Generations(tmp_path).open({f"s{number}": 1}, "rerun", keep=number == 2)
    run = Generations(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", counted)
    for _ in range(100):
        assert run.opened() and run.keeps("s2", 1) and not run.keeps("s0", 1)
    assert sorted(reads) == ["000000.json", "000001.json", "000002.json"]


def test_the_outcome_of_a_plan_stops_at_the_first_open_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [Shard(f"{i:04d}", f"/{i}", 1) for i in range(500)]
    stored = plan.Plan(tmp_path, plan.write(tmp_path, shards))
    ledger, generations = Ledger(tmp_path / "ledger"), Generations(tmp_path / "generations")
    generations.folder.mkdir()
    for number, shard in enumerate(stored.shards()):
        mark = FAILED if number % 100 == 0 else DONE
        assert ledger.claim(Claim(shard, 0, 0), "me") and ledger.mark(Claim(shard, 0, 0), mark, {})
    assert ledger.outcome(stored.ids(), generations.by_bucket()) == Counter({DONE: 495, FAILED: 5})

    listed: list[str] = []
    names = Ledger.names

    def counted(self: Ledger, bucket: str) -> list[str]:
        listed.append(bucket)
        return names(self, bucket)

    monkeypatch.setattr(Ledger, "names", counted)
    generations.open({next(iter(stored.ids())): 1}, "rerun")
    assert ledger.outcome(stored.ids(), generations.by_bucket()) is None
    assert len(listed) == 1, "the first bucket has an open shard"


def test_a_walk_over_reopened_shards_costs_what_a_walk_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listing is given the reopened shards of its own bucket, not all of them."""
    from hpc.base.heartbeat import Observer
    from hpc.map import claiming
    from hpc.run.directory import Run

    run = Run(tmp_path / "run")
    run.make()
    shards = [Shard(f"{i:04d}", f"/{i}", 1) for i in range(2000)]
    stored = plan.Plan(run.plans, plan.write(run.plans, shards))
    run.generations.open({s.id: 1 for s in shards}, "rerun")
    given: list[int] = []
    states = claiming.states

    def counted(names: list[str], reopened: Any = None) -> Any:
        given.append(len(reopened or ()))
        return states(names, reopened)

    monkeypatch.setattr(claiming, "states", counted)
    found = claiming.Candidates(run, stored, run.ledger("x"), Observer(run.slots, "me", 300.0), "me", 0, 1, 60.0)
    claims = 0
    while found.acquire(0.0, ()) is not None:
        claims += 1
    assert claims == len(shards) and sum(given) <= 2 * len(shards)
