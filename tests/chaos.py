"""Chaos on a real Slurm: random deaths for some minutes, then proof that nothing was lost or done twice.

    python -m tests.chaos --minutes 1 --seed 0

Kills engines, agents, slurmds, whole nodes and the controller; requeues, preempts, cancels and launches again;
stalls agents for longer than their lease; reopens finished shards; asks for status meanwhile. Time limits of one
minute run out beside. Ends with exit code 0 if every sample is there exactly once, `verify --full` is clean, status
tells the truth, no process is left, and no agent's open files or memory grew; prints each fault with how often it hit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from hpc.errors import Exit
from hpc.operator import STATUSES
from hpc.published import Published
from tests.slurm_cluster import NODES, ROOT, Cluster, alive, wait
from tests.test_slurm import EchoJob

SHARDS, LINES = 48, 40
LEASE_S = 2.0
SETTLED_S = 10.0  # before that an agent imports
MOST_FILES, MOST_MEMORY, MOST_GROWTH = (
    64,
    192 << 20,
    16 << 20,
)  # open files of an agent; bytes it may hold, and may grow


class Chaos:
    """One run under fire."""

    def __init__(self, slurm: Cluster, folder: Path, seed: int) -> None:
        self.slurm = slurm
        self.random = random.Random(seed)
        self.hits: Counter[str] = Counter()
        self.files: dict[int, list[int]] = {}
        self.memory: dict[int, list[int]] = {}
        self.reopened = 0
        self.job = EchoJob(slurm, folder, SHARDS, LINES, delay_s=0.05)
        self.faults: dict[str, Callable[[], bool]] = {
            "engine killed": lambda: self._kill("hpc.engine"),
            "agent killed": lambda: self._kill("hpc.worker"),
            "agent stalled longer than its lease": self._stall,
            "slurmd killed": self._slurmd,
            "node lost": self._node,
            "controller killed": self._controller,
            "slot requeued": self._requeue,
            "slot preempted": self._preempt,
            "slot cancelled": self._cancel_slot,
            "run cancelled and launched again": self._relaunch,
            "second launch beside the first": self._second_launch,
            "finished shard reopened": self._reopen,
            "status asked": self._status,
        }

    # --- the course -------------------------------------------------------------------------

    def launch(self) -> None:
        """Until the controller has taken it: after a kill -9 it may be away for seconds."""
        words = ["time='1'", "signal_delay_s=10", f"slots={NODES}", "gpus_per_node=2", "device=cpu"]
        command = self.job.command(*(f"cluster.{word}" for word in words))
        wait(lambda: self._run(*command).returncode == Exit.COMPLETE, "a launch is taken")

    def run(self, minutes: float) -> None:
        self.launch()
        end = time.monotonic() + 60 * minutes
        wait(lambda: self.job.processes("hpc.engine"), "an engine runs")
        waiting: list[str] = []
        while time.monotonic() < end:
            if not waiting:  # every kind once, in random order, then again
                waiting = self.random.sample(list(self.faults), len(self.faults))
            name = waiting.pop()
            if self.faults[name]():
                self.hits[name] += 1
            self._watch()
            if not self._unfinished():
                self._reopen(count=SHARDS // 2)
                self._relaunch()
            time.sleep(self.random.uniform(0.2, 1.0))

    def settle(self, timeout: float = 240.0) -> None:
        """No more faults: launch until the run is complete."""
        end = time.monotonic() + timeout
        while self._unfinished():
            assert time.monotonic() < end, f"not complete after {timeout:.0f} s: {self._unfinished()}"
            if not self._live():
                self.launch()
            self._watch()
            time.sleep(0.5)
        wait(lambda: not self._live(), "the last slot has ended")

    def check(self) -> None:
        """Every sample exactly once, files whole, status true, nothing left behind, nothing grown."""
        published = Published(self.job.run.path)
        assert not published.missing()
        for shard in published:
            lines = Path(shard.shard.uri).read_text().splitlines()
            table = pq.read_table(shard.file)
            assert table["key"].to_pylist() == [f"{shard.shard.id}-{i:05d}" for i in range(len(lines))]
            assert table["text"].to_pylist() == lines and set(table["status"].to_pylist()) == {"ok"}
        self.slurm.run(sys.executable, "-m", "hpc.verify", str(self.job.run.path), "--full")
        facts = json.loads(self.slurm.run(sys.executable, "-m", "hpc.status", str(self.job.run.path), "--json"))
        planned = sum(facts["samples"][s] for s in STATUSES)
        assert planned == SHARDS * LINES and facts["samples"]["left"] == 0, facts
        assert facts["shards"]["done"] == SHARDS and facts["samples"]["ok"] == SHARDS * LINES, facts
        wait(lambda: not self.job.processes(), "no process is left", 10)
        for pid, counts in self.files.items():
            assert max(counts) <= MOST_FILES, f"agent {pid} had {max(counts)} open files"
            seen = self.memory[pid]
            assert max(seen, default=0) <= MOST_MEMORY, f"agent {pid} holds too much: {seen}"
            assert not seen or seen[-1] - seen[0] <= MOST_GROWTH, f"agent {pid} grew: {seen}"

    # --- what is observed -------------------------------------------------------------------

    def _unfinished(self) -> list[str]:
        return Published(self.job.run.path).missing()

    def _live(self) -> str:
        return self._try("squeue", "-h", "-n", self.job.run.name)

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

    def _try(self, *command: str) -> str:
        """A command that may fail meanwhile (the controller may be down); what it printed."""
        done = self._run(*command)
        return done.stdout.strip() if done.returncode == 0 else ""

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.slurm.env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )

    def _elements(self) -> list[str]:
        return self._try("squeue", "-h", "-r", "-t", "R", "-n", self.job.run.name, "-o", "%F_%K").split()

    # --- the faults; each returns whether it hit --------------------------------------------

    def _kill(self, what: str) -> bool:
        processes = self.job.processes(what)
        if not processes:
            return False
        victim = self.random.choice(processes)
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        wait(lambda: not alive(victim), "it is dead", 10)
        return True

    def _stall(self) -> bool:
        agents = self.job.processes("hpc.worker")
        if not agents:
            return False
        victim = self.random.choice(agents)
        try:
            victim.suspend()
            time.sleep(LEASE_S + 1.0)
            stalled = victim.status() == psutil.STATUS_STOPPED
            victim.resume()
        except psutil.NoSuchProcess:
            return False
        return stalled

    def _any_node(self) -> str:
        return f"n{self.random.randint(1, NODES)}"

    def _slurmd(self) -> bool:
        node = self._any_node()
        killed = self.slurm.mini_slurm("slurmd-kill", node).returncode == 0
        time.sleep(self.random.uniform(0.5, 3.0))
        self.slurm.mini_slurm("node-start", node)
        return killed

    def _node(self) -> bool:
        node = self._any_node()
        killed = self.slurm.mini_slurm("node-kill", node).returncode == 0
        time.sleep(self.random.uniform(1.0, 3.0))
        self.slurm.mini_slurm("node-start", node)
        return killed

    def _controller(self) -> bool:
        killed = self.slurm.kill_controller()
        time.sleep(self.random.uniform(0.5, 2.0))
        self.slurm.start()
        return killed

    def _requeue(self) -> bool:
        elements = self._elements()
        if not elements:
            return False
        self._try("scontrol", "requeue", self.random.choice(elements))
        return True

    def _preempt(self) -> bool:
        """A short job of higher priority that needs a whole node."""
        if not self._elements():
            return False
        wrap = (
            "sbatch",
            "--parsable",
            "-p",
            "high",
            "--exclusive",
            "-n1",
            "-t1",
            "-o",
            "/dev/null",
            "--wrap",
            "sleep 2",
        )
        return bool(self._try(*wrap))

    def _cancel_slot(self) -> bool:
        elements = self._elements()
        if not elements:
            return False
        self._try("scancel", self.random.choice(elements))
        if not self._live():
            self.launch()
        return True

    def _relaunch(self) -> bool:
        had = bool(self._live())
        self._try("scancel", "-n", self.job.run.name)
        self.launch()
        return had

    def _second_launch(self) -> bool:
        had = bool(self._live())
        self.launch()
        return had

    def _reopen(self, count: int = 1) -> bool:
        done = sorted(self.job.done())
        if not done:
            return False
        names = ",".join(self.random.sample(done, min(count, len(done))))
        self._try(sys.executable, "-m", "hpc.rerun", str(self.job.run.path), "--shards", names, "--no-submit")
        self.reopened += count
        return True

    def _status(self) -> bool:
        """Status answers in time, whatever state the run and the controller are in."""
        started = time.monotonic()
        done = self._run(sys.executable, "-m", "hpc.status", str(self.job.run.path), "--json")
        assert done.returncode in (Exit.COMPLETE, Exit.INCOMPLETE), done.stderr
        facts = json.loads(done.stdout)["shards"]
        assert facts["total"] == SHARDS and sum(facts[s] for s in ("done", "running", "open", "failed")) == SHARDS
        assert time.monotonic() - started < 30
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults are made")
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
        finally:
            slurm.down()
    looks = sum(len(v) for v in chaos.files.values())
    for name, hits in chaos.hits.most_common():
        sys.stdout.write(f"{hits:5d}  {name}\n")
    sys.stdout.write(
        f"{sum(chaos.hits.values())} faults survived (seed {args.seed}, {args.minutes:g} min): {SHARDS} shards, "
        f"{SHARDS * LINES:,} samples exactly once, {chaos.reopened} reopened, "
        f"{len(chaos.files)} agents in {looks} looks\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
