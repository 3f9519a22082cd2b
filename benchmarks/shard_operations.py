"""What one shard costs the shared file system: the calls of a real worker, counted.

A model in a tenth of the time: blocks of 51 samples, saved every 3 s, a heartbeat every 3 s, are to a shard of 1,000
images at 65 a second what the defaults are to one of 10,000. Counted are the calls that strace sees below the run
directory and the inputs: those that name a file (open, stat, link, ...) and the listings as operations, fsync and
fdatasync apart. Calls on what is open already cost a metadata server nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import ROOT
from benchmarks.ledger_tree import SHARD_S, write_config, write_tar_of
from benchmarks.targets import Target
from hpc import config as configs
from hpc.map import launch as map_launch
from hpc.map import local
from hpc.run.directory import Run

RATE = 65.0  # images a second and GPU
ENGINES = 8  # a node: they share their slot's heartbeats and looks at control files
IMAGES, SHARDS = 1000, 5  # the first and the last one are begun and ended with the worker: three are counted
TENTH = ("map.segment=51", "map.save_s=3", "map.lease_s=18")

_LINE = re.compile(r"\d+ +([\d.]+) (\w+)\((.*)")


@dataclass(frozen=True)
class ShardCost:
    """What was counted, for a worker with default settings.

    Attributes:
        names: operations that name a file, of a shard, without those of its saves.
        syncs: fsync and fdatasync calls of a shard, without those of its saves.
        saves: fsync and fdatasync calls of all saves of a shard that takes `seconds`.
        seconds: that a shard took.
        slot_names: operations that name a file, of a slot, a second.
    """

    names: float
    syncs: float
    saves: float
    seconds: float
    slot_names: float

    def operations(self, seconds: float, engines: int = ENGINES) -> float:
        """Operations that name a file, of a shard that takes `seconds`: its own, and its share of its slot's."""
        return self.names + self.slot_names * seconds / engines

    def summary(self) -> str:
        return (
            f"a shard, counted: {self.names:.1f} operations on names and {self.slot_names:.2f} a second of its slot "
            f"(shared by {ENGINES} engines); {self.syncs:.1f} fsyncs, and {self.saves / self.seconds:.3f} a second: "
            f"at {SHARD_S:.0f} s {self.operations(SHARD_S):.0f} and {self.forced(SHARD_S):.1f}"
        )

    def forced(self, seconds: float) -> float:
        """fsync and fdatasync calls of a shard that takes `seconds`."""
        return self.syncs + self.saves * seconds / self.seconds


def measure(work: Path) -> ShardCost:
    """Run a worker over SHARDS shards under strace."""
    with tempfile.TemporaryDirectory(prefix="operations-", dir=work) as made:
        folder = Path(made)
        (folder / "in").mkdir()
        for number in range(SHARDS):
            write_tar_of(folder / "in" / f"{number:05d}.tar", os.urandom(2000), IMAGES)
        write_config(folder / "c.yaml", "run", folder / "in", 1 / RATE)
        config = configs.load(folder / "c.yaml", list(TENTH))
        supervise = local.supervise
        local.supervise = lambda run, submission: 0  # the worker is started here, under strace
        try:
            map_launch.submit(map_launch.prepare(config))
        finally:
            local.supervise = supervise
        return _counted(folder)


def targets(cost: ShardCost) -> list[Target]:
    what = f"a shard of {SHARD_S:.0f} s"
    return [
        Target(f"{what}: operations on names", cost.operations(SHARD_S), 65, ""),
        Target(f"{what}: fsyncs", cost.forced(SHARD_S), 12, ""),
    ]


def _counted(folder: Path) -> ShardCost:
    log = folder / "trace"
    strace = ["strace", "-f", "-qq", "-y", "-ttt", "-e", "signal=none", "-o", str(log)]
    calls = ["-e", "trace=%file,getdents64,fsync,fdatasync"]
    worker = [sys.executable, "-m", "hpc.worker", str(Run(folder / "run").path), "--slot", "0"]
    subprocess.run([*strace, *calls, *worker], cwd=ROOT, check=True, capture_output=True)
    found = [match.groups() for line in log.read_text().splitlines() if (match := _LINE.match(line))]
    mine = [(float(t), call, rest) for t, call, rest in found if str(folder) in rest and "AT_EMPTY_PATH" not in rest]
    claims = [at for at, (_, call, rest) in enumerate(mine) if call == "link" and re.search(r"\.g0\.e0\"", rest)]
    mine = mine[claims[1] : claims[-1]]
    shards, seconds = len(claims) - 2, mine[-1][0] - mine[0][0]
    kinds: Counter[str] = Counter()
    for _, call, rest in mine:
        slot = f"{folder}/run/slots/" in rest or f"{folder}/run/control/" in rest
        saved = call == "fdatasync"
        kinds["saves" if saved else "syncs" if call == "fsync" else "slot" if slot else "names"] += 1
    return ShardCost(
        names=kinds["names"] / shards, syncs=kinds["syncs"] / shards, saves=kinds["saves"] / shards,
        seconds=10 * seconds / shards, slot_names=kinds["slot"] / seconds / 10,
    )  # fmt: skip
