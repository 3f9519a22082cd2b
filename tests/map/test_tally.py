"""Counting with a cache gives what counting from nothing gives; what it says of slow nodes, hours and money."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpc.base.atomic import as_json
from hpc.config import ClusterConfig
from hpc.map import cost, forecast, tally
from hpc.map.tally import Tally
from hpc.operator import STATUSES, Shard
from hpc.run import ledger, plan
from hpc.run.directory import Run, Submission
from hpc.run.journal_reader import Activity, JournalReader
from hpc.run.ledger import CLAIMED, DONE, FAILED, Claim, State

SAMPLES, SEGMENT = 10, 5  # in every shard of a Play


class Play:
    """A run whose slots do random things, zombies and reruns among them, with the true counts beside it."""

    def __init__(self, folder: Path, seed: int, shards: int) -> None:
        self.chance = random.Random(seed)
        self.run = Run(folder / "run")
        self.run.make()
        expected = [self.chance.choice([SAMPLES, None]) for _ in range(shards)]
        self.shards = [Shard(f"s{i:03d}", f"/in/s{i:03d}", 1, expected=e) for i, e in enumerate(expected)]
        self.submission = self.run.new_submission(
            plan=plan.write(self.run.plans, self.shards), identity="abc", column="c", code="", slots=2,
            config={"cluster": {"gpus_per_node": 0, "engines_per_node": 1, "kind": "local"}}, source="",
        )  # fmt: skip
        self.ledger = self.run.ledger("abc")
        self.saved: dict[tuple[str, int], set[int]] = {}  # (shard, generation) -> first samples of its segments

    def write(self, instance: int, **event: Any) -> None:
        with open(self.run.journals / f"{self.submission.uuid}-{instance:04d}-0.jsonl", "ab") as file:
            file.write(as_json({"t": time.time(), **event}) + b"\n")

    @staticmethod
    def outcome(shard: str, generation: int, start: int) -> Counter[str]:
        """What becomes of a segment's samples, whoever applies them."""
        statuses = random.Random(f"{shard} {generation} {start}").choices(STATUSES, (8, 2, 1, 1), k=SEGMENT)
        return Counter(statuses)

    def whole(self, shard: str, generation: int) -> Counter[str]:
        return sum((self.outcome(shard, generation, s) for s in range(0, SAMPLES, SEGMENT)), Counter())

    def save_segment(self, shard: str, generation: int) -> None:
        start = self.chance.randrange(0, SAMPLES, SEGMENT)
        counts = self.outcome(shard, generation, start)
        adopted = start in self.saved.setdefault((shard, generation), set()) and self.chance.random() < 0.5
        self.saved[shard, generation].add(start)
        at = {"shard": shard, "g": generation, "start": start}
        self.write(self.chance.randrange(2), event="segment", counts=counts, adopted=adopted, **at)

    def finish(self, shard: Shard, state: State, journaled: bool) -> None:
        counts = self.whole(shard.id, state.generation)
        damage = self.chance.choice([None, "tar: truncated"])
        marker = {"rows": SAMPLES, "counts": counts, "reasons": {"skipped: image: truncated": counts["skipped"]}}
        self.ledger.directory(shard.id).mkdir(parents=True, exist_ok=True)  # it may be the shard's first name
        record = {**marker, "damage": {"reason": damage, "detail": ""} if damage else None}
        self.ledger.mark(Claim(shard, state.generation, max(state.epoch, 0)), DONE, record)
        if journaled:
            self.write(0, event="done", **marker, damage=damage, shard=shard.id, g=state.generation)

    def step(self) -> None:
        shard = self.chance.choice(self.shards)
        state = self.ledger.state(shard.id, self.run.generations.opened())
        claim = Claim(shard, state.generation, max(state.epoch, 0))
        action = self.chance.random()
        if action < 0.1:  # a zombie: of this generation or one before, finished or not
            self.save_segment(shard.id, self.chance.randint(0, state.generation))
        elif state.terminal:
            if action < 0.3:
                self.run.generations.open({shard.id: state.generation + 1}, "test")
        elif state.status != CLAIMED:
            self.ledger.claim(Claim(shard, state.generation, state.epoch + 1), "me")
        elif action < 0.4:
            self.save_segment(shard.id, state.generation)
        elif action < 0.5:
            self.ledger.end(claim, "released")
        elif action < 0.8:
            self.finish(shard, state, journaled=action < 0.7)  # else its writer died before the journal's line
        else:
            self.ledger.mark(claim, FAILED, {"reason": "input: forbidden"})
            if action < 0.95:
                facts = {"reason": "input: forbidden", "shard": shard.id, "g": state.generation}
                self.write(1, event="failed", **facts)

    def truth(self) -> Counter[str]:
        """Samples by status: of each shard's present generation, each once."""
        samples: Counter[str] = Counter()
        for shard in self.shards:
            state = self.ledger.state(shard.id, self.run.generations.opened())
            if state.status == DONE:
                samples += self.whole(shard.id, state.generation)
            elif state.status == FAILED:
                samples["failed"] += shard.expected or 0
            else:
                for start in self.saved.get((shard.id, state.generation), ()):
                    samples += self.outcome(shard.id, state.generation, start)
        return +samples

    def facts(self, counter: Tally) -> dict[str, Any]:
        totals = counter.count()
        return {"settled": totals.settled, "samples": +totals.samples, "claimed": totals.claimed, "left": totals.left}


@pytest.mark.parametrize("seed", range(6))
def test_counting_again_is_counting_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One counter that goes on, one that is loaded from the cache, one from nothing: after each few steps all agree."""
    monkeypatch.setattr("os.fsync", lambda fd: None)  # a thousand of them, and no machine dies here
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
        assert fresh["samples"] == play.truth()
        survey = play.ledger.survey(play.run.generations.opened())
        states = Counter(state.status for state in survey.values())
        assert fresh["settled"].shards == +Counter({s: states[s] for s in (DONE, FAILED)})
        assert fresh["claimed"] == states[CLAIMED]
    for shard in play.shards:  # reopen what failed, finish all: planned = ok + skipped + failed + quarantined
        state = play.ledger.state(shard.id, play.run.generations.opened())
        if state.status == FAILED:
            play.run.generations.open({shard.id: state.generation + 1}, "mended")
            state = State(generation=state.generation + 1)
        if not state.terminal:
            play.finish(shard, state, journaled=play.chance.random() < 0.5)
    for counter in (lasting, Tally(play.run, play.submission)):
        totals = counter.count()
        assert totals.samples == play.truth() and totals.left == 0
        assert sum(totals.samples.values()) == len(play.shards) * SAMPLES


def test_owners_with_other_segment_sizes_count_no_sample_twice(tmp_path: Path) -> None:
    play = Play(tmp_path, 0, 1)
    play.ledger.claim(Claim(play.shards[0], 0, 0), "me")
    for start, count in ((0, 4), (4, 4), (2, 3), (8, 2)):  # the third is a zombie's
        play.write(0, event="segment", shard="s000", g=0, start=start, counts={"ok": count}, adopted=False)
    assert play.facts(Tally(play.run, play.submission))["samples"] == {"ok": 10}


def test_a_long_look_takes_up_the_journals_of_a_later_launch(tmp_path: Path) -> None:
    play = Play(tmp_path, 0, 3)
    lasting = Tally(play.run, play.submission)
    assert lasting.count().samples.total() == 0
    facts = {**vars(play.submission)}
    play.submission = play.run.new_submission(
        **{k: facts[k] for k in ("plan", "identity", "column", "code", "slots", "config", "source")}
    )
    play.ledger.claim(Claim(play.shards[0], 0, 0), "me")
    play.save_segment("s000", 0)
    assert +lasting.count().samples == play.truth() != {}


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
    settled, claimed = ledger.settled_and_claimed(names, None)
    assert settled == {"a.g0.b": State(DONE), "d": State(DONE)}
    assert claimed == ["c"]
    settled, claimed = ledger.settled_and_claimed([*names, "d.g1.e0"], {"a.g0.b": 1})
    assert settled == {}
    assert sorted(claimed) == ["c", "d"]


# --- slow nodes, hours, money -----------------------------------------------------------------


def life(host: str, rates: dict[str, int], hours: float = 2.0, **deaths: int) -> cost.Life:
    """A life that made these samples a minute, by engine, for 20 minutes until now."""
    now = int(NOW) // 60
    minutes = {e: Counter({now - m: rate for m in range(1, 20)}) for e, rate in rates.items()}
    activity = Activity(
        host, NOW - hours * 3600, NOW, samples=sum(rates.values()) * 19, deaths=Counter(deaths), minutes=minutes
    )
    return cost.Life(f"u-{host}-0", 0, host, "running", len(rates), hours * 3600, activity)


NOW = 1_795_000_000.0


def test_slow_nodes_and_engines() -> None:
    found = [life(f"n{i}", {"0": 600, "1": 610}) for i in range(4)]
    assert cost.slow(found, NOW) == []
    found += [life("n8", {"0": 300, "1": 320}), life("n9", {"0": 600, "1": 450})]
    found[0].activity.deaths["1: no progress for 600 s"] = 2
    rows = cost.slow(found, NOW)
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
    said = cost.spent(found, submission, totals, speed=40.0, hours=6.0)
    assert (said["unit"], said["hours"], said["cost"], said["currency"]) == ("GPU", 6.0, 18.0, "€")
    assert said["hours_left"] == pytest.approx(4.0)  # 144,000 samples at 40 a second are an hour, on four GPUs
    assert said["cost_left"] == pytest.approx(12.0)


def test_engines_idle_after_the_last_claim(tmp_path: Path) -> None:
    """Two lives of two engines: the last claim at 1000 s, shards end then and later, all is over at 1600."""
    for number in range(2):
        events = [{"t": 400, "event": "claim"}, {"t": 1000 - number, "event": "claim"}]
        events += [{"t": t, "event": "done", "shard": f"{number} {t}"} for t in ((900, 1100), (1000, 1500))[number]]
        lines = b"".join(as_json(event) + b"\n" for event in [*events, {"t": 1600, "event": "stop"}])
        (tmp_path / f"u-000{number}-0.jsonl").write_bytes(lines)
    reader = JournalReader(tmp_path)
    reader.refresh()
    found = [cost.Life(n, 0, "n", "exited", 2, 1200.0, reader.lives[n]) for n in reader.lives]
    assert cost.idle_at_the_end(found, reader, 0, 1600.0) == pytest.approx((4 * 600 - 100 - 500) / 3600, abs=1e-3)
    assert cost.idle_at_the_end(found, reader, 1, 1600.0) == pytest.approx((4 * 600 - 1200) / 3600, abs=1e-3)


def test_a_dry_run_warns_of_long_shards(tmp_path: Path) -> None:
    cluster = ClusterConfig(gpus_per_node=8)
    resolved = {"cluster": {"gpus_per_node": 8}}
    config: Any = SimpleNamespace(directory=tmp_path / "run", run=SimpleNamespace(cluster=cluster), resolved=resolved)
    for samples, said in ((30_000, False), (60_000, True)):
        shards = [Shard("a", "", 1, expected=10_000), Shard("b", "", 1, expected=samples)]
        line = forecast.lines(config, "00000000", shards, 4, 65.0)[0]
        assert ("A shard takes up to 15.4 min" in line and "Shards of 39,000 samples" in line) == said, line
