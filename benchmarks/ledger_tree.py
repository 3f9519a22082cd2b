"""A run directory with as many shards as one likes, built in bulk: what benchmarks measure in."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.commands import LINKS
from hpc import config as configs
from hpc.map.publish import Publisher
from hpc.operator import Row, Shard
from hpc.run import column as columns
from hpc.run import plan
from hpc.run.directory import Run
from hpc.run.ledger import Claim
from hpc.run.segments import Segments, Writer
from recap.data.inputs import DataConfig, list_shards
from recap.worlds.tars import write_tar

OPEN_SHARDS = 200  # shards left open in a tree: claimed and published one by one
ROWS = 512  # of a published shard
SLOTS, ENGINES = 256, 8
BLOCKS = 20  # of a shard of 10,000 samples, each a line of a journal
SHARD_S = 154.0  # at 65 samples a second


class Tree:
    """A run directory with `count` shards, all but OPEN of them done."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self.folder = folder
        self.inputs = folder / "in"
        self.config_file = folder / "c.yaml"
        write_config(self.config_file, "run", self.inputs, 0.0)
        self.config = configs.load(self.config_file, [])
        self.run = Run(folder / "run")

    def make_inputs(self) -> None:
        """Empty tars with img2dataset's statistics: hard links, so that there are as many names and few inodes."""
        self.inputs.mkdir()
        for number in range(self.count):
            if number % LINKS == 0:
                sources = [self.folder / f"tar-{number}", self.folder / f"stats-{number}"]
                sources[0].write_bytes(b"x")
                sources[1].write_bytes(b'{"successes": 10000}')
            for source, suffix in zip(sources, (".tar", "_stats.json"), strict=True):
                os.link(source, self.inputs / f"{number:08d}{suffix}")

    def plan(self) -> float:
        started = time.perf_counter()
        shards = list_shards(DataConfig(shards=[str(self.inputs)]))
        self.run.make()
        self.name = plan.write(self.run.plans, shards)
        seconds = time.perf_counter() - started
        self.shards = shards
        return seconds

    def build(self) -> None:
        """Claims, markers and journals of all shards but OPEN, in bulk."""
        identity = configs.identity(self.config, self.config.operator())
        self.submission = self.run.new_submission(
            plan=self.name, identity=identity, column="recap", code="", slots=SLOTS, source="",
            config=self.config.resolved,
        )  # fmt: skip
        self.ledger = self.run.ledger(identity)
        self.left = self.shards[:: max(1, self.count // OPEN_SHARDS)][:OPEN_SHARDS]
        left = {s.id for s in self.left}
        done = [s for s in self.shards if s.id not in left]
        made: set[Path] = set()
        for number, shard in enumerate(done):
            folder = self.ledger.directory(shard.id)
            if folder not in made:
                folder.mkdir(parents=True)
                made.add(folder)
            if number % LINKS == 0:
                claim, marker = self.folder / f"claim-{number}", self.folder / f"marker-{number}"
                claim.write_text('{"owner": "x"}')
                marker.write_text("{}")
            os.link(claim, folder / f"{shard.id}.g0.e0")
            os.link(marker, folder / f"{shard.id}.g0.done")
        now = time.time()
        for slot in range(SLOTS):
            name = f"{self.submission.uuid}-{slot:04d}-0.jsonl"
            (self.run.journals / name).write_text("".join(_journal(done[slot::SLOTS], now)))
        os.sync()

    def claim(self, number: int) -> float:
        """Seconds of one claim: link, fsync of file and directory."""
        started = time.perf_counter()
        assert self.ledger.claim(Claim(self.left[number], 0, 0), "me")
        return time.perf_counter() - started

    def publish(self, number: int) -> float:
        """Seconds of publishing one shard of ROWS samples: write, fsync, read back, verify, link, marker."""
        shard, identity = self.left[number], self.submission.identity
        schema = columns.schema(self.config.operator().column(), identity)
        publisher = Publisher(self.run, self.ledger, "recap", identity, schema, 0.05, output=None, owner={"slot": 0})
        values = {"caption": "A picture of a flag.", "sha256": "f" * 64, "text": "flag", "finish": "stop"}
        table = columns.to_table([Row(shard.id, i, f"{i:05d}", values=values) for i in range(ROWS)], schema)
        Writer(Segments(self.run.segments(identity, shard.id, 0)).path(0), []).append([(0, table)])
        started = time.perf_counter()
        assert publisher.publish(Claim(shard, 0, 0), ROWS, None, time.time())
        return time.perf_counter() - started


def _journal(shards: list[Shard], now: float) -> Iterator[str]:
    """The lines that a slot's agent writes about its shards, one engine after another; the last one ends now."""
    begun = now - len(shards) * SHARD_S / ENGINES - SHARD_S
    yield _line(begun, "start", instance="x", host="n1")
    for number, shard in enumerate(shards):
        at, engine = begun + number * SHARD_S / ENGINES, number % ENGINES
        facts = {"shard": shard.id, "g": 0}
        yield _line(at, "claim", **facts, e=0, engine=engine)
        for block in range(BLOCKS):
            saved = {"start": 512 * block, "counts": {"ok": 497, "skipped": 3}, "adopted": False}
            yield _line(at + (block + 1) * SHARD_S / BLOCKS, "segment", **facts, e=0, engine=engine, **saved)
        facts |= {"counts": {"ok": 9940, "skipped": 60}, "reasons": {"skipped: image: truncated": 60}, "rows": 10000}
        yield _line(at + SHARD_S, "done", **facts, seconds=SHARD_S, damage=None, detail=None)


def write_config(path: Path, name: str, inputs: Path, delay: float) -> None:
    tree = {
        "name": name, "runs": str(path.parent), "operator": "tests.support.instant.InstantOperator",
        "captioner": {"model": f"instant:{delay}"}, "data": {"shards": [str(inputs)]}, "cluster": {"kind": "local"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))


def write_tar_of(path: Path, image: bytes, count: int) -> None:
    with open(path, "wb") as file:
        write_tar(file, ((f"{i:06d}", {"jpg": image + b" %d" % i, "txt": b"text"}) for i in range(count)))


def _line(t: float, event: str, **facts: Any) -> str:
    return json.dumps({"t": round(t, 3), "event": event, **facts}) + "\n"
