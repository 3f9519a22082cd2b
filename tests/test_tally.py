"""Counting with a cache gives what counting from nothing gives; what it says of slow nodes, hours and money."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hpc import effort, plan, tally
from hpc.atomic import as_json
from hpc.ledger import CLAIMED, DONE, FAILED, Claim, State
from hpc.operator import Shard
from hpc.rundir import Run, Submission
from hpc.tally import Activity, Tally


class Play:
    """A run whose slots do random things, with the true counts beside it."""

    def __init__(self, folder: Path, seed: int, shards: int) -> None:
        self.chance = random.Random(seed)
        self.run = Run(folder / "run")
        self.run.make()
        expected = [self.chance.choice([10, None]) for _ in range(shards)]
        self.shards = [Shard(f"s{i:03d}", f"/in/s{i:03d}", 1, expected=e) for i, e in enumerate(expected)]
        self.submission = self.run.new_submission(
            plan=plan.write(self.run.plans, self.shards), identity="abc", column="c", code="", slots=2,
            config={"cluster": {"gpus_per_node": 0, "engines_per_node": 1, "kind": "local"}}, source="",
        )  # fmt: skip
        self.ledger = self.run.ledger("abc")

    def write(self, instance: int, **event: Any) -> None:
        with open(self.run.journals / f"{self.submission.uuid}-{instance:04d}-0.jsonl", "ab") as file:
            file.write(as_json({"t": time.time(), **event}) + b"\n")

    def step(self) -> None:
        shard = self.chance.choice(self.shards)
        state = self.ledger.state(shard.id, self.run.generations.opened())
        claim = Claim(shard, state.generation, max(state.epoch, 0))
        at = {"shard": shard.id, "g": state.generation}
        action = self.chance.random()
        if state.terminal:
            if action < 0.1:
                self.run.generations.open({shard.id: state.generation + 1}, "test")
        elif state.status != CLAIMED:
            self.ledger.claim(Claim(shard, state.generation, state.epoch + 1), "me")
        elif action < 0.3:
            counts = {"ok": self.chance.randrange(1, 5)}
            start = self.chance.randrange(10)
            self.write(self.chance.randrange(2), event="segment", start=start, counts=counts, adopted=False, **at)
        elif action < 0.4:
            self.ledger.end(claim, "released")
        elif action < 0.8:
            counts = {"ok": self.chance.randrange(10), "skipped": 1}
            reasons = {"skipped: image: truncated": 1}
            damage = self.chance.choice([None, "tar: truncated"])
            marker = {"rows": sum(counts.values()), "counts": counts, "reasons": reasons}
            self.ledger.mark(claim, DONE, {**marker, "damage": {"reason": damage, "detail": ""} if damage else None})
            if action < 0.7:  # else its writer died before the journal's line
                self.write(0, event="done", **marker, damage=damage, **at)
        else:
            self.ledger.mark(claim, FAILED, {"reason": "input: forbidden"})
            if action < 0.95:
                self.write(1, event="failed", reason="input: forbidden", **at)

    def facts(self, counter: Tally) -> dict[str, Any]:
        totals = counter.count()
        return {"settled": totals.settled, "samples": +totals.samples, "claimed": totals.claimed, "left": totals.left}


@pytest.mark.parametrize("seed", range(6))
def test_counting_again_is_counting_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One counter that goes on, one that is loaded from the cache, one from nothing: after each few steps all agree."""
    monkeypatch.setattr(tally, "WORTHWHILE", 0)
    monkeypatch.setattr(tally, "_RACY_S", 60.0 if seed % 2 else 0.005)
    play = Play(tmp_path, seed, 40)
    lasting = Tally(play.run, play.submission)
    cache = play.run.path / "tally" / "abc.arrow"
    for _ in range(12):
        for _ in range(play.chance.randrange(25)):
            play.step()
        time.sleep(0.01)
        cached = play.facts(Tally(play.run, play.submission))
        if cache.exists():
            cache.rename(cache.with_suffix(".old"))
        anew = Tally(play.run, play.submission)
        fresh = play.facts(anew)
        assert play.facts(lasting) == fresh == cached
        survey = play.ledger.survey(play.run.generations.opened())
        states = Counter(state.status for state in survey.values())
        assert fresh["settled"].shards == +Counter({s: states[s] for s in (DONE, FAILED)})
        assert fresh["claimed"] == states[CLAIMED]


def test_a_cache_that_does_not_fit_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "WORTHWHILE", 0)
    play = Play(tmp_path, 1, 10)
    for _ in range(60):
        play.step()
    right = play.facts(Tally(play.run, play.submission))
    cache = play.run.path / "tally" / "abc.arrow"
    for damage in (b"", b"garbage", cache.read_bytes()[:-20]):
        cache.write_bytes(damage)
        assert play.facts(Tally(play.run, play.submission)) == right
    grown = [*play.shards, Shard("new", "/in/new", 1)]
    play.submission.plan = plan.write(play.run.plans, grown)
    play.run.save(play.submission)
    counted = Tally(play.run, play.submission).count()
    assert counted.total == 11
    assert counted.settled == right["settled"]


def test_names_with_dots_and_later_generations() -> None:
    names = ["a.g0.b.g0.e0", "a.g0.b.g0.done", "c.g0.e0", "c.g0.e0.end", "c.g0.e1"]
    names += ["d.g0.e0", "d.g0.failed", "d.g0.done"]
    settled, claimed = tally._states(names, None)
    assert settled == {"a.g0.b": State(DONE), "d": State(DONE)}
    assert claimed == ["c"]
    settled, claimed = tally._states([*names, "d.g1.e0"], {"a.g0.b": 1})
    assert settled == {}
    assert sorted(claimed) == ["c", "d"]


# --- slow nodes, hours, money -----------------------------------------------------------------


def life(host: str, rates: dict[str, int], hours: float = 2.0, **deaths: int) -> effort.Life:
    """A life that made these samples a minute, by engine, for 20 minutes until now."""
    now = int(NOW) // 60
    minutes = {e: Counter({now - m: rate for m in range(1, 20)}) for e, rate in rates.items()}
    activity = Activity(
        host, NOW - hours * 3600, NOW, samples=sum(rates.values()) * 19, deaths=Counter(deaths), minutes=minutes
    )
    return effort.Life(f"u-{host}-0", 0, host, "running", len(rates), hours * 3600, activity)


NOW = 1_795_000_000.0


def test_slow_nodes_and_engines() -> None:
    found = [life(f"n{i}", {"0": 600, "1": 610}) for i in range(4)]
    assert effort.slow(found, NOW) == []
    found += [life("n8", {"0": 300, "1": 320}), life("n9", {"0": 600, "1": 450})]
    found[0].activity.deaths["1: no progress for 600 s"] = 2
    rows = effort.slow(found, NOW)
    assert [(r["node"], r["engine"]) for r in rows] == [("n8", ""), ("n9", "1"), ("n0", "1")]
    assert rows[0]["of_median"] == pytest.approx(310 / 600 - 1, abs=0.01)
    assert rows[2]["reason"] == "no progress for 600 s"


def test_hours_and_money() -> None:
    submission = Submission(
        "u", 0.0, plan="", identity="", column="", code="", slots=1, source="",
        config={"cluster": {"gpus_per_node": 2, "engines_per_node": 1, "price": 3.0, "currency": "€"}},
    )  # fmt: skip
    found = [life("n1", {"0": 600, "1": 600}), life("n2", {"0": 600, "1": 600}, hours=1.0)]
    totals = tally.Totals(tally.Settled(), 10, 2, Counter(), left=144_000)
    said = effort.spent(found, submission, totals, speed=40.0)
    assert (said["unit"], said["hours"], said["cost"], said["currency"]) == ("GPU", 6.0, 18.0, "€")
    assert said["hours_left"] == pytest.approx(4.0)  # 144,000 samples at 40 a second are an hour, on four GPUs
    assert said["cost_left"] == pytest.approx(12.0)
