"""Pilots: what is drawn, that the full run takes it over, and what is refused."""

from __future__ import annotations

import json
import shlex
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import yaml

from hpc import config as configs
from hpc import relaunch
from hpc.base.errors import Exit, UserError
from hpc.map.launch import prepare, record
from hpc.operator import Column, Damage, Item, Row, Shard
from hpc.pipeline import definition
from hpc.run import pilot
from hpc.run.pilot import BLOCK
from tests.support.echo import Echo, EchoConfig
from tests.support.jobs import EchoJob, command, inline


@dataclass
class TalkingConfig(EchoConfig):
    seeks: bool = field(default=True, metadata={"execution": True})  # blocks can be read alone
    drift: int = field(default=0, metadata={"execution": True})  # of a hundred rows that look wrong besides


class Talking(Echo):
    """Echo whose blocks can be read alone, and whose rows have lengths; lines "odd" look wrong."""

    Config: ClassVar[type] = TalkingConfig

    def column(self) -> Column:
        return Column("echo", [("text", pa.string()), ("tokens", pa.int32()), ("lint", pa.list_(pa.string()))])

    def block_counts(self, shards: Sequence[Shard]) -> dict[str, list[int]]:
        if not self.config.seeks:  # type: ignore[attr-defined]
            return {}
        lines = {shard.id: len(Path(shard.uri).read_text().splitlines()) for shard in shards}
        return {name: [min(BLOCK, count - at) for at in range(0, count, BLOCK)] for name, count in lines.items()}

    def read_blocks(self, shard: Shard, numbers: Sequence[int]) -> Iterator[Item | Damage]:
        return (item for item in self.read(shard) if isinstance(item, Item) and item.index // BLOCK in numbers)

    def _one(self, item: Item) -> Row:
        row = super()._one(item)
        drifts = zlib.crc32(item.key.encode()) % 100 < self.config.drift  # type: ignore[attr-defined]
        odd = item.payload == "odd" or drifts
        words = {"text": row.values.get("text"), "tokens": len(item.payload), "lint": ["cut"] * odd}
        return replace(row, values=words)


def shards_of(*counts: int | None) -> list[Shard]:
    return [Shard(f"shard-{at:03d}", f"/data/{at}", 10, expected=count) for at, count in enumerate(counts)]


def counted(*shards: Shard) -> dict[str, list[int]]:
    return {s.id: [min(BLOCK, (s.expected or 0) - at) for at in range(0, s.expected or 0, BLOCK)] for s in shards}


def test_whole_blocks_from_all_over_the_plan() -> None:
    shards = shards_of(*[10_000] * 400)
    drawn = pilot.draw(shards, 100_000, counted(*shards))
    assert 196 <= drawn.count <= 210 and 100_000 <= drawn.samples < 100_000 + BLOCK and not drawn.first_only
    numbers = Counter(number for blocks in drawn.blocks.values() for number in blocks)
    assert len(drawn.blocks) > 140 and len(numbers) == 20  # of 400 shards; of the 20 blocks of each
    assert max(numbers.values()) < 30  # about ten each
    more = pilot.draw(shards, 200_000, counted(*shards))
    assert all(set(blocks) <= set(more.blocks[name]) for name, blocks in drawn.blocks.items())
    grown = [*shards, *(replace(s, id=f"new-{s.id}") for s in shards)]
    among = pilot.draw(grown, 100_000, counted(*grown))
    kept = sum(set(drawn.blocks[name]) <= set(among.blocks.get(name, [])) for name in drawn.blocks)
    assert 30 < kept < len(drawn.blocks) - 30  # about half of the blocks are of new shards now
    assert pilot.draw(shards[::-1], 100_000, counted(*shards)).blocks == drawn.blocks


def test_without_an_index_each_shards_first_block() -> None:
    shards = shards_of(*[None] * 10, 100, 5000, 0)
    drawn = pilot.draw(shards, 12 * BLOCK - 500, counted(shards[11]))
    assert {number for name, blocks in drawn.blocks.items() for number in blocks if name != "shard-011"} == {0}
    assert len(drawn.blocks["shard-011"]) > 1 and "shard-012" not in drawn.blocks
    assert "at most" in drawn.described(13) and "of 12 shards only the first block" in drawn.described(13)
    everything = sum(10 * [BLOCK], 100 + 5000)
    assert pilot.draw(shards, everything, counted(shards[11])).samples == everything
    with pytest.raises(
        UserError, match=rf"{everything + 1:,} .* more than the {everything:,} .* index .*pilot={everything}"
    ):
        pilot.draw(shards, everything + 1, counted(shards[11]))
    with pytest.raises(UserError, match=r"513 samples are more than the 512 .* launch without a pilot"):
        pilot.draw(shards_of(512), 513, counted(*shards_of(512)))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[EchoJob]:
    rng = np.random.default_rng(5)
    counts = rng.integers(400, 1200, 14)
    lines = {
        f"s{at}": ["odd" if rng.random() < 0.1 else f"line {line} of {at}" for line in range(count)]
        for at, count in enumerate(counts)
    }
    job = EchoJob(tmp_path, lines, operator="tests.map.test_pilot.Talking", batch=128, map={"segment": 100})
    yield job
    job.close()


def applied(job: EchoJob) -> Counter[tuple[str, int]]:
    lines = (line.split() for line in (job.folder / "applied").read_text().splitlines())
    return Counter((shard, int(index)) for _, shard, index in lines)


@pytest.mark.slow(ci=True)
def test_the_full_run_takes_a_pilot_over(job: EchoJob) -> None:
    asked = (f"applied={job.folder / 'applied'}",)
    made = job.launch("pilot=4000", *asked)
    assert made.returncode == Exit.COMPLETE, made.stdout
    drawn = pilot.read(job.run, job.run.latest().pilot)
    wanted = {
        (shard, at)
        for shard, blocks in drawn.blocks.items()
        for block in blocks
        for at in range(block * BLOCK, min((block + 1) * BLOCK, len(job.lines[shard])))
    }
    assert 4000 <= len(wanted) == drawn.samples < 4000 + BLOCK and any(
        blocks != [0] for blocks in drawn.blocks.values()
    )
    assert applied(job) == Counter(wanted)
    rows = {(shard.id, first + at): key for shard, first, table in pilot.saved(job.run, job.run.latest())
            for at, key in enumerate(table["key"].to_pylist())}  # fmt: skip
    assert rows == {(shard, at): f"{shard}-{at:05d}" for shard, at in wanted}
    facts = job.status()
    assert facts["exit"] == Exit.COMPLETE and facts["shards"]["done"] == 0 and not facts["samples"]["left"]
    assert facts["pilot"]["complete"] and facts["pilot"]["samples_saved"] == len(wanted) == facts["samples"]["ok"]
    assert "pilot" not in yaml.safe_load(job.run.config_file.read_text())  # which makes all of the run
    assert relaunch.command_for_job(job.run)[-1] == "pilot=0"
    full = job.launch(*asked)
    assert full.returncode == Exit.COMPLETE and "the run pauses where its rows" in " ".join(full.stdout.split())
    counts = applied(job)
    assert set(counts.values()) == {1} and len(counts) == sum(map(len, job.lines.values()))
    assert all([row["text"] for row in job.rows(shard)] == lines for shard, lines in job.lines.items())
    units = json.loads((job.run.path / "pilot" / f"{job.run.latest().compared}.like.json").read_text())["units"]
    odd = sum(job.lines[shard][at] == "odd" for shard, at in wanted)
    assert np.sum(units, axis=0)[:3].tolist() == [len(wanted), odd, 0]
    with pytest.raises(UserError, match="is complete: its rows are there"):
        job.submit("pilot=4000")


@pytest.mark.slow
def test_a_run_pauses_whose_rows_drift_and_goes_on(tmp_path: Path) -> None:
    """A real run: a pilot on data with 10 % odd rows, then a model that makes 30 % of them odd."""
    rng = np.random.default_rng(6)
    lines = {
        f"s{at:02d}": ["odd" if rng.random() < 0.1 else f"line {line} of {at}" for line in range(1100)]
        for at in range(80)
    }
    job = EchoJob(
        tmp_path, lines, operator="tests.map.test_pilot.Talking", batch=256, delay_s=0.0003, map={"segment": 512}
    )
    assert job.launch("pilot=10000").returncode == Exit.COMPLETE
    assert len(pilot.read(job.run, job.run.latest().pilot).blocks) >= 10
    drifting = job.launch("drift=22", timeout=550)
    assert drifting.returncode == Exit.INCOMPLETE
    facts = job.status()
    assert "no longer like its pilot's" in facts["paused"] and "odd rows" in facts["paused"], facts["compared"]
    assert "odd rows" in facts["compared"]["difference"]
    made = sum(facts["samples"][status] for status in ("ok", "failed"))
    assert 40_000 <= made < len(lines) * 1100, "it paused after two windows, before its end"
    said = inline("hpc.status", str(job.run.path))
    assert said.returncode == Exit.INCOMPLETE and "To go on, launch again" in " ".join(said.stdout.split())
    named = shlex.split(said.stdout.partition("launch again: python -m hpc.launch ")[2].replace("\\\n", " "))
    assert named[:2] == [str(job.config_file), "drift=22"], said.stdout
    on = command("hpc.launch", *named, "map.compare=false", timeout=550)
    assert on.returncode == Exit.COMPLETE, on.stdout
    now = job.status()
    assert now["paused"] is None and now["samples"]["ok"] == len(lines) * 1100 and now["compared"] is None


def test_what_is_refused(job: EchoJob, tmp_path: Path) -> None:
    def refused(words: str, *arguments: str) -> None:
        with pytest.raises(UserError, match=words):
            prepare(configs.load(job.config_file, list(arguments)))

    total = sum(map(len, job.lines.values()))
    refused(f"more than the {total:,} that can be drawn", f"pilot={total + 1}")
    refused("first block of 512 alone, for without an index", "seeks=false", f"pilot={total}")
    refused("-3 is not a number of samples", "pilot=-3")
    refused("pilot", "pilot=many")
    record(prepare(configs.load(job.config_file, ["pilot=2000"])))
    refused("0 finished shards and its pilot would be stale", "pilot=2000", "prefix=other")
    (job.run.path / "pilot" / f"{job.run.latest().pilot}.json").write_text("{")
    with pytest.raises(UserError, match="pilot"):
        job.status()
    tree: dict[str, Any] = {"name": "p", "stages": {"a": {"config": str(job.config_file), "set": {"pilot": 100}}}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match="`pilot`: later stages need all of this one"):
        definition.load(tmp_path / "pipeline.yaml", [])
