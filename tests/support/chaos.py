"""Chaos on a real Slurm: random deaths for some minutes, then proof that nothing was lost or done twice.

    python -m tests.support.chaos --minutes 1 --seed 0

Kills engines, agents, slurmds, whole nodes and the controller; requeues, preempts, cancels and launches again;
stalls agents for longer than their lease; reopens finished shards; asks for status meanwhile. Time limits of one
minute run out beside. A fault counts once its effect was seen (chaos_faults.py), and each kind must have hit: after
its minutes the run goes on for those that have not, five minutes at most. Ends with exit code 0 if each column file is
byte for byte that of an undisturbed run, `verify --full` is clean, status tells the truth, no process that the run
started is left, and no agent's open files or memory grew; prints how often each kind hit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from hpc.base import heartbeat
from hpc.operator import STATUSES
from hpc.run.published import Published
from tests.support.chaos_faults import Effect, Faults
from tests.support.slurm_cluster import Cluster, alive, wait
from tests.support.slurm_job import EchoJob

SHARDS, LINES = 48, 40
MARK = "CHAOS_RUN"  # in the environment of all that a run starts
SETTLED_S = 10.0  # before that an agent imports
MOST_FILES = 64  # open files of an agent
MOST_MEMORY, MOST_GROWTH = 192 << 20, 16 << 20  # bytes that an agent may hold, and may grow
LONGER_S = 300.0  # after its minutes, for the kinds of fault that have not hit


class Chaos:
    """One run that suffers random faults."""

    def __init__(self, slurm: Cluster, folder: Path, seed: int) -> None:
        self.slurm = slurm
        self.job = EchoJob(slurm, folder, SHARDS, LINES, delay_s=0.05)
        self.mark = uuid.uuid4().hex
        self.faults = Faults(slurm, self.job, seed, {**slurm.env, MARK: self.mark})
        self.random = self.faults.random
        self.tried: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.expected: list[tuple[str, Effect]] = []  # effects that have not been seen yet
        self.resumed: Counter[str] = Counter()  # Slurm's reasons for draining nodes, that were then resumed
        self.files: dict[int, list[int]] = {}
        self.memory: dict[int, list[int]] = {}

    # --- the course -------------------------------------------------------------------------

    def run(self, minutes: float) -> None:
        """Cause faults for so many minutes, until every kind has had its effect. AssertionError where one has not."""
        self.faults.launch()
        end = time.monotonic() + 60 * minutes
        wait(lambda: self.job.processes("hpc.map.engine"), "an engine runs")
        waiting: list[str] = []
        while not (over := time.monotonic() > end) or self.never():
            assert time.monotonic() < end + LONGER_S, f"without effect: {self.never()}; tried {self.tried}"
            if not waiting:  # every kind once, in random order, then again
                kinds = self.never() if over else list(self.faults.kinds)
                waiting = self.random.sample(kinds, len(kinds))
            self._do(waiting.pop())
            self._observe()
            if not self._unfinished():
                self.faults.reopen(count=SHARDS // 2)
                self.faults.relaunch()
            time.sleep(self.random.uniform(0.2, 1.0))

    def never(self) -> list[str]:
        """Kinds of fault whose effect was never seen."""
        return [kind for kind in self.faults.kinds if not self.hits[kind]]

    def _do(self, kind: str) -> None:
        effect = self.faults.kinds[kind]()
        self.tried[kind] += 1
        if effect is not None:
            self.expected.append((kind, effect))

    def settle(self, timeout: float = 240.0) -> None:
        """Launch, without further faults, until the run is complete and its last slot has ended."""
        end = time.monotonic() + timeout
        while (unfinished := self._unfinished()) or self.faults.live():
            assert time.monotonic() < end, f"stands still after {timeout:.0f} s:\n{self.standing()}"
            if unfinished and not self.faults.live():
                self.faults.launch()
            self._observe()
            time.sleep(0.5)
        self._observe()

    # --- what is observed -------------------------------------------------------------------

    def _unfinished(self) -> list[str]:
        return Published(self.job.run.path).missing()

    def _observe(self) -> None:
        """Note which effects can be seen by now, and which nodes and agents there were."""
        left = []
        for kind, effect in self.expected:
            if effect():
                self.hits[kind] += 1
            else:
                left.append((kind, effect))
        self.expected = left
        # A slurmd that comes back beside its jobs is drained ("Duplicate jobid"), until an administrator looks at it:
        # without one a run would wait for its nodes for ever.
        for node, reason in self.slurm.drained().items():
            self.slurm.resume(node)
            self.resumed[reason] += 1
        self._watch()

    def _watch(self) -> None:
        for process in self.job.processes("hpc.worker"):
            try:
                files, memory = process.num_fds(), process.memory_info().rss
            except psutil.Error:
                continue
            self.files.setdefault(process.pid, []).append(files)
            looks = self.memory.setdefault(process.pid, [])
            if time.time() - process.create_time() > SETTLED_S:
                looks.append(memory)

    def left_behind(self) -> list[str]:
        """Every process that descends from one of the run's commands, whatever it has become."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark and alive(process):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            except psutil.Error:
                continue
        return found

    def standing(self) -> str:
        """What the run, Slurm and the slots say, for the error of a run that stands still."""
        run = self.job.run
        control = [f"{p.relative_to(run.path)}: {p.read_text()}" for p in run.control.rglob("*") if p.is_file()]
        lives = [{k: f.get(k) for k in ("instance", "state", "why", "host")} for f in heartbeat.read_all(run.slots)]
        return "\n".join(
            [
                f"unfinished: {self._unfinished()}", *control,
                self.faults.ask("squeue", "-a", "-r", "-o", "%F_%K %T %r %P %N"),
                self.faults.ask("sinfo", "-N", "-p", "debug", "-o", "%N %T %E"),
                *map(str, lives[-12:]), *self.left_behind(),
            ]
        )  # fmt: skip

    # --- the verdict ------------------------------------------------------------------------

    def check(self) -> None:
        """Assert that bytes and status are right, no process is left, and neither memory nor open files grew."""
        self._check_bytes()
        self.slurm.run(sys.executable, "-m", "hpc.verify", str(self.job.run.path), "--full")
        facts = json.loads(self.slurm.run(sys.executable, "-m", "hpc.status", str(self.job.run.path), "--json"))
        planned = sum(facts["samples"][s] for s in STATUSES)
        assert planned == SHARDS * LINES and facts["samples"]["left"] == 0, facts
        assert facts["shards"]["done"] == SHARDS and facts["samples"]["ok"] == SHARDS * LINES, facts
        wait(lambda: not self.left_behind(), "no process is left", 20)
        for pid, counts in self.files.items():
            assert max(counts) <= MOST_FILES, f"agent {pid} had {max(counts)} open files"
            seen = self.memory[pid]
            assert max(seen, default=0) <= MOST_MEMORY, f"agent {pid} holds too much: {seen}"
            assert not seen or seen[-1] - seen[0] <= MOST_GROWTH, f"agent {pid} grew: {seen}"

    def _check_bytes(self) -> None:
        """Each column file is that of a run of one quiet process, whose rows are the input's."""
        run = self.job.run.path.with_name("calm")
        overrides = (f"runs={run.parent}", "name=calm", "delay_s=0", "cluster.kind=local", "cluster.device=cpu")
        self.slurm.run(sys.executable, "-m", "hpc.launch", str(self.job.config), *overrides)
        calm = {shard.shard.id: shard for shard in Published(run)}
        published = list(Published(self.job.run.path))
        assert [shard.shard.id for shard in published] == sorted(calm) and len(calm) == SHARDS
        for shard in published:
            undisturbed = calm[shard.shard.id].file
            assert shard.file.read_bytes() == undisturbed.read_bytes(), f"{shard.file} and {undisturbed} differ"
            lines, table = Path(shard.shard.uri).read_text().splitlines(), pq.read_table(shard.file)
            assert table["key"].to_pylist() == [f"{shard.shard.id}-{i:05d}" for i in range(len(lines))]
            assert table["text"].to_pylist() == lines and set(table["status"].to_pylist()) == {"ok"}

    def report(self) -> str:
        lines = [f"{self.hits[kind]:5d} of {self.tried[kind]:3d}  {kind}" for kind in self.faults.kinds]
        lines += [f"{count:5d}         node resumed that Slurm had drained: {r}" for r, count in self.resumed.items()]
        lives = Counter(str(f.get("why") or "without a word")[:40] for f in heartbeat.read_all(self.job.run.slots))
        lines += [f"{count:5d}         lives ended: {why}" for why, count in lives.most_common()]
        looks = sum(len(counts) for counts in self.files.values())
        lines.append(
            f"{sum(self.hits.values())} faults survived: {SHARDS} shards, {SHARDS * LINES:,} samples exactly once, "
            f"every byte as without faults; {len(self.files)} agents in {looks} looks"
        )
        return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults are made, at least")
    parser.add_argument("--seed", type=int, default=0, help="which faults, in which order")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    slurm = Cluster()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos = Chaos(slurm, Path(folder), args.seed)
        try:
            chaos.run(args.minutes)
            chaos.settle()
            chaos.check()
            sys.stdout.write(chaos.report())
        finally:
            slurm.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
