"""A run on the small Slurm: its commands, files, processes, and how a test waits for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from hpc.base import heartbeat, journal
from hpc.run.directory import Run
from hpc.run.ledger import CLAIMED, DONE, State
from hpc.run.plan import Plan
from tests.support.slurm_cluster import Cluster, wait


class Job:
    """A run on Slurm: its config, and what it has left on disk."""

    def __init__(self, slurm: Cluster, config: Path, run: Path, *overrides: str) -> None:
        self.slurm, self.config, self.run = slurm, config, Run(run)
        self._overrides = (f"runs={run.parent}", f"name={run.name}", *overrides)

    # --- commands -----------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "hpc.launch", str(self.config), *self._overrides, *arguments]

    def launch(self, *cluster: str, inside: tuple[str, ...] = ()) -> str:
        """Submit with these overrides of `cluster`; returns the array's job id."""
        self.slurm.run(*inside, *self.command(*(f"cluster.{key}" for key in cluster)))
        return self.id

    @property
    def id(self) -> str:
        return self.run.latest().job_ids[0]

    def cancel(self) -> None:
        for submission in self.run.submissions():
            for job in submission.job_ids:
                self.slurm.run("scancel", job)

    # --- what is on disk ----------------------------------------------------------------------

    def states(self) -> dict[str, State]:
        return self.run.ledger(self.run.latest().identity).survey(self.run.generations.opened())

    def done(self) -> dict[str, int]:
        """Generation of every finished shard."""
        return {shard: state.generation for shard, state in self.states().items() if state.status == DONE}

    def claims(self, instance: str) -> list[str]:
        """Ids of the shards that one life of a slot works on."""
        ledger = self.run.ledger(self.run.latest().identity)
        claimed = {shard: state for shard, state in self.states().items() if state.status == CLAIMED}
        return [s for s, state in claimed.items() if ledger.owner(s, state.generation, state.epoch) == instance]

    def marker(self, shard: str) -> dict[str, Any]:
        return self.run.ledger(self.run.latest().identity).read(shard, f"g{self.done()[shard]}.done")

    def markers(self) -> dict[str, dict[str, Any]]:
        return {shard: self.marker(shard) for shard in self.done()}

    def lives(self, slot: int = 0) -> list[dict[str, Any]]:
        """The heartbeats of a slot of the latest submission, one a life."""
        uuid = self.run.latest().uuid
        return [f for f in heartbeat.read_all(self.run.slots) if (f["submission"], f["slot"]) == (uuid, slot)]

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = [e for path in sorted(self.run.journals.glob("*.jsonl")) for e in journal.read(path)[0]]
        return [e for e in found if e["event"] == kind]

    def log(self, slot: int = 0) -> str:
        """The log of one slot, where its heartbeat says that it is."""
        path = Path(self.lives(slot)[-1]["log"])
        assert path == self.run.logs / f"{self.id}_{slot}.log"
        return path.read_text(errors="replace")

    # --- its processes ------------------------------------------------------------------------

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this run whose command line holds all of `words`, on all nodes; slurmstepd and srun left out."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                alive = process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                continue
            if alive and line[:1] == [sys.executable] and str(self.run.path) in line and set(words) <= set(line):
                found.append(process)
        return found

    def agent(self, slot: int = 0) -> psutil.Process:
        (process,) = self.processes("hpc.worker", "--submission", self.run.latest().uuid, "--slot", str(slot))
        return process

    # --- waiting and judging ------------------------------------------------------------------

    def wait_working(self, shards: int = 1, slots: int = 1) -> None:
        """Wait until so many shards are finished and so many slots work, while much is left to do."""
        self.wait_shards(shards)
        wait(lambda: all(self._busy(slot) for slot in range(slots)), "every slot works")
        assert len(self.done()) < len(Plan(self.run.plans, self.run.latest().plan)), "the work was over too soon"

    def _busy(self, slot: int) -> bool:
        lives = self.lives(slot)
        return bool(lives and lives[-1].get("shards") and lives[-1]["state"] == "running")

    def wait_shards(self, count: int) -> None:
        wait(lambda: len(self.done()) >= count, f"{count} shards are done")

    def wait_over(self, timeout: float = 240.0) -> None:
        """Wait until no element of the newest array will run any more."""
        slots = self.run.latest().slots
        wait(lambda: self._over() == slots, f"the {slots} elements are over", timeout)

    def _over(self) -> int:
        return sum(e.over for e in self.slurm.elements(self.id).values())

    def table(self, shard: str) -> pa.Table:
        return pq.read_table(self.run.path / self.marker(shard)["file"])

    def verify(self, shards: int) -> None:
        """Every shard is done, and every byte is as it was published."""
        said = self.slurm.run(sys.executable, "-m", "hpc.verify", str(self.run.path), "--full")
        assert f"{shards} markers hold" in said


class EchoJob(Job):
    """A run of the echo operator, with its input."""

    def __init__(self, slurm: Cluster, folder: Path, shards: int, lines: int, delay_s: float = 0.0) -> None:
        config = {
            "operator": "tests.support.echo.Echo",
            "inputs": str(folder / "inputs"),
            "batch": 2,
            "delay_s": delay_s,
            "cluster": {"kind": "slurm", "time": "10", "mem_gb": 1.0, "python": sys.executable},
            "map": {"lease_s": 2.0, "segment": 4, "drain_s": 3.0},
        }
        super().__init__(slurm, folder / "echo.yaml", folder / "runs" / "echo")
        self.config.write_text(yaml.safe_dump(config))
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        for shard in range(shards):
            text = "".join(f"line {line} of shard {shard}\n" for line in range(lines))
            (self.inputs / f"shard-{shard:02d}.txt").write_text(text)

    def check(self) -> None:
        """Each sample is in the output exactly once, with the right content, and every byte is as it was published."""
        shards = {path.stem: path.read_text().splitlines() for path in self.inputs.glob("*.txt")}
        assert self.done().keys() == shards.keys()
        for shard, lines in shards.items():
            assert [(r["key"], r["text"], r["status"]) for r in self.table(shard).to_pylist()] == [
                (f"{shard}-{index:05d}", line, "ok") for index, line in enumerate(lines)
            ]
        self.verify(len(shards))
