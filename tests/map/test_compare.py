"""Runs that are compared with their pilots: simulated ones, and journals of slots that live and die."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpc import config as configs
from hpc.base import atomic, heartbeat
from hpc.base.journal import Journal
from hpc.map import pilot_watch
from hpc.map.compare import STEP, WINDOW, Comparison, Estimate, Measure, _chi_square, _student
from hpc.map.launch import prepare, record
from hpc.run.directory import Run
from tests.support.jobs import EchoJob, wait_for

BLOCK = 512


class Corpus:
    """Rows of shards that differ from one another, drawn block by block, as so many engines make them."""

    def __init__(self, seed: int, between: float, engines: int = 1, rows: int = BLOCK) -> None:
        self._rng, self._between, self._engines, self._rows = np.random.default_rng(seed), between, engines, rows

    def blocks(self, rows: int, drift_at: int = -1, drift: float = 0.05) -> list[tuple[str, Measure]]:
        """A tenth of the rows is odd, a hundredth failed; from the row `drift_at` on more are odd."""
        rng, count = self._rng, rows // BLOCK
        at = np.arange(count)
        a_shard = -(-self._rows // BLOCK)
        shard = at % self._engines + self._engines * (at // self._engines // a_shard)
        shards = int(shard.max()) + 1
        spread = 0.09 / self._between**2 - 1
        odd = rng.beta(0.1 * spread, 0.9 * spread, shards)[shard] + drift * ((drift_at >= 0) & (at * BLOCK >= drift_at))
        failed = rng.binomial(BLOCK, rng.beta(2, 198, shards)[shard])
        long = BLOCK - failed
        tokens = rng.normal(rng.normal(80, 3, shards)[shard] * long, 20 * np.sqrt(long)).astype(int)
        squares = (long * (20**2 + (tokens / long) ** 2)).astype(int)
        numbers = np.stack([np.full(count, BLOCK), rng.binomial(BLOCK, odd.clip(0, 1)), failed, long, tokens, squares])
        return [(f"s{name}", Measure(*made)) for name, made in zip(shard.tolist(), numbers.T.tolist(), strict=True)]

    def pilot(self, shards: int) -> Comparison:
        alone = Corpus(int(self._rng.integers(1 << 30)), self._between)
        return Comparison([made for _, made in alone.blocks(shards * BLOCK)])

    def paused(self, rows: int, drift_at: int = -1) -> int:
        """After how many rows a run pauses, 0 where it does not."""
        comparison = self.pilot(40)
        made = enumerate(self.blocks(rows, drift_at), 1)
        return next((at * BLOCK for at, (shard, like) in made if comparison.add(shard, like)), 0)


@pytest.mark.parametrize(("between", "engines"), [(0.01, 8), pytest.param(0.02, 64, marks=pytest.mark.slow)])
def test_200_runs_like_their_pilots_and_as_many_that_drift(between: float, engines: int) -> None:
    corpus = Corpus(7, between, engines, rows=5000)
    assert not any(corpus.paused(160_000) for _ in range(200))
    late = [corpus.paused(130_000, drift_at=60_000) - 60_000 for _ in range(200)]
    assert min(late) > WINDOW and max(late) <= 60_000  # one window alone does not stop a run


@pytest.mark.slow
def test_two_windows_of_one_large_shard_are_no_two_witnesses() -> None:
    corpus = Corpus(11, 0.04, rows=200_000)
    assert not any(corpus.paused(400_000) for _ in range(60))


def test_failures_and_lengths_count_and_small_differences_do_not() -> None:
    def run(odd: int, failed: int, tokens: int) -> str:
        """10 of 512 rows are odd, none failed and 20 tokens long in the pilot."""
        comparison = Comparison([Measure(512, 10, 0, 512, 512 * 20, 512 * 404) for _ in range(20)])
        made = Measure(500, odd, failed, 500 - failed, (500 - failed) * tokens, (500 - failed) * tokens**2)
        return next((said for at in range(100) if (said := comparison.add(f"s{at}", made))), "")

    assert run(10, 0, 20) == run(13, 3, 20) == ""  # 0.6 points are of no matter
    assert run(10, 20, 20).startswith("failed rows: 4.00 % and 4.00 % in the last two windows of 20,000 rows; by its")
    assert run(10, 0, 23).startswith("tokens a row: 23.0 and 23.0")
    assert run(0, 0, 20).startswith("odd rows: 0.00 %")
    assert "odd rows" in (said := run(60, 0, 30)) and "tokens a row" in said
    few = Comparison([Measure(512, 10, 0, 512, 512 * 20, 512 * 404) for _ in range(7)])
    assert few.estimates == [] and not any(few.add("s", Measure(5000, 5000)) for _ in range(20))


def test_quantiles() -> None:
    """Against the tables of Abramowitz and Stegun."""
    assert _student(0.9995, 7) == pytest.approx(5.408, rel=0.01) and _student(0.995, 10) == pytest.approx(
        3.169, rel=1e-3
    )
    assert _chi_square(0.01, 40) == pytest.approx(22.164, rel=0.01) and _chi_square(0.01, 10) == pytest.approx(
        2.558, rel=0.03
    )


# --- slots --------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    job = EchoJob(tmp_path, {f"s{at}": ["line"] * 4 for at in range(12)}, map={"lease_s": 0.5})
    yield job
    job.close()


def watching(run: Run, number: int) -> tuple[pilot_watch.PilotWatch, Journal, heartbeat.Heartbeat]:
    """A slot's part, its journal and its heartbeat."""
    latest = run.latest()
    instance, _ = heartbeat.register(run.slots, latest.uuid, number, {})
    beat, observer = heartbeat.Heartbeat(run.slots, instance, 0.5), heartbeat.Observer(run.slots, instance, 0.5)
    return (
        pilot_watch.PilotWatch(run, latest, instance, beat, observer, 0.0),
        Journal(run.journals / f"{instance}.jsonl"),
        beat,
    )


def test_a_slot_that_goes_on_where_the_one_before_died(job: EchoJob) -> None:
    record(prepare(configs.load(job.config_file, [])))
    latest = job.run.latest()
    latest.compared = "like"
    job.run.save(latest)
    (job.run.path / "pilot").mkdir()
    units = [Measure(512, 51, 0) for _ in range(20)]
    (job.run.path / "pilot" / "like.like.json").write_bytes(atomic.as_json({"units": units}))
    first, journal, _ = watching(job.run, 0)
    second, other, beat = watching(job.run, 1)

    def rows(to: Journal, odd: int, first: int, count: int) -> None:
        for at in range(first, first + count):
            to.write("measured", shard=f"s{at}", like=Measure(1000, odd, 0))

    rows(journal, 100, 0, 2 * WINDOW // 1000)
    first.look()
    assert job.status()["compared"]["difference"] == "" and job.status()["paused"] is None
    rows(journal, 180, 100, STEP // 1000)
    rows(other, 180, 200, STEP // 1000 - 1)
    first.look()
    second.look()  # the first one lives
    saved = pilot_watch.read_state(pilot_watch.state_file(job.run, latest.uuid))
    assert len(saved["offsets"]) == 2 and len(saved["steps"]) == 5  # and it alone has read
    rows(other, 180, 300, 2 * STEP // 1000 + 1)

    def goes_on() -> bool:
        beat.advance({}, force=True)
        second.look()
        return job.status()["paused"] is not None

    wait_for(goes_on)
    facts = job.status()
    assert "odd rows: 14.00 % and 18.00 % in the last two windows" in facts["paused"]
    assert "launch again" in facts["paused"] and "map.compare=false" in facts["paused"]
    assert facts["compared"]["difference"].startswith("odd rows")


def test_estimates_of_one_shard_are_not_taken_for_many() -> None:
    """A pilot of equal blocks from shards that differ: the interval of a window of two shards is wider."""
    estimate = Corpus(3, 0.04).pilot(100).estimates[0]
    assert isinstance(estimate, Estimate) and estimate.mean == pytest.approx(0.1, abs=0.015)
    assert estimate.half_width(WINDOW, 2, 1e-3) > 3 * estimate.half_width(WINDOW, 100, 1e-3)
    assert estimate.half_width(WINDOW, 2, 1e-3) == pytest.approx(3.39 * 0.045 / 2**0.5, rel=0.35)
