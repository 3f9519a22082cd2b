"""Small echo jobs for tests: inputs, a run directory, workers, and what must hold when all is over."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from hpc import config as configs
from hpc import launch, verify
from hpc.base import snapshot
from hpc.map import status as map_status
from hpc.run import column as columns
from hpc.run import plan
from hpc.run.directory import Run, Submission
from hpc.run.ledger import DONE, State
from hpc.run.segments import Segments
from tests.support.echo import Echo, EchoConfig

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}


def wait_for(what: Callable[..., Any], timeout: float = 240.0) -> Any:
    """Poll until `what()` is true; returns its value. AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


class EchoJob:
    """One echo job in `folder`: `lines` by shard id; further keys of the config as keywords (`map`, `cluster`, ...)."""

    def __init__(self, folder: Path, lines: dict[str, list[str]], **settings: Any) -> None:
        self.folder, self.lines = folder, dict(lines)
        self.inputs = folder / "in"
        self.inputs.mkdir(parents=True, exist_ok=True)
        for shard, texts in lines.items():
            (self.inputs / f"{shard}.txt").write_text("\n".join(texts))
        tree: dict[str, Any] = {
            "name": "job", "operator": "tests.support.echo.Echo", "runs": str(folder / "runs"),
            "inputs": str(self.inputs),
            "cluster": {"kind": "local"}, "map": {},
        }  # fmt: skip
        for key, value in settings.items():
            tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) else value
        tree["map"] = {"lease_s": 2.0, "segment": 8, "save_s": 0.0, "drain_s": 10.0, "min_free_gb": 0.0} | tree["map"]
        self.config_file = folder / "config.yaml"
        self.config_file.write_text(yaml.safe_dump(tree))
        self.run = Run(folder / "runs" / "job")
        self.processes: list[subprocess.Popen[bytes]] = []

    # --- doing ------------------------------------------------------------------------------

    def submit(self, *overrides: str, supersede: bool = False) -> Submission:
        """Write what a launch writes, and start nothing. The code snapshot is a link to the working tree."""
        job = launch.prepare(configs.load(self.config_file, list(overrides)), supersede=supersede)
        self.run.make()
        code = snapshot.digest()
        if not (self.run.code / code).exists():
            (self.run.code / code).symlink_to(ROOT)
        return self.run.new_submission(
            plan=plan.write(self.run.plans, job.shards), identity=job.identity, column=job.operator.column().name,
            code=code, slots=job.config.run.cluster.slots, config=job.config.resolved, source=str(self.config_file),
        )  # fmt: skip

    def worker(
        self, slot: int = 0, submission: Submission | None = None, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        which = ["--submission", submission.uuid] if submission else []
        command = [*before, sys.executable, "-m", "hpc.worker", str(self.run.path), "--slot", str(slot), *which]
        with open(self.folder / f"slot-{slot}.log", "ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def work(self, slot: int = 0, timeout: float = 240.0) -> int:
        """Run one worker to its end; returns its exit code."""
        return self.worker(slot).wait(timeout)

    def launch(self, *arguments: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        return command("hpc.launch", str(self.config_file), *arguments, timeout=timeout)

    def log(self, slot: int = 0) -> str:
        return (self.folder / f"slot-{slot}.log").read_text(errors="replace")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    # --- looking ----------------------------------------------------------------------------

    @property
    def ledger(self) -> Any:
        return self.run.ledger(self.run.latest().identity)

    def states(self) -> dict[str, State]:
        return self.ledger.survey(self.run.generations.opened())

    def names(self) -> list[str]:
        """All names in the ledger."""
        return sorted(n for b in self.ledger.buckets() for n in self.ledger.names(b) if not n.startswith("."))

    def record(self, name: str) -> dict[str, Any]:
        """A ledger file's content, by its whole name."""
        shard = max((s for s in self.lines if name.startswith(f"{s}.")), key=len)
        return self.ledger.read(shard, name.removeprefix(f"{shard}."))

    def ends(self, how: str) -> list[str]:
        return [n for n in self.names() if n.endswith(".end") and self.record(n).get("how") == how]

    def file(self, shard: str) -> Path:
        latest = self.run.latest()
        return self.run.column_file(latest.column, latest.identity, shard, self.states()[shard].generation)

    def rows(self, shard: str) -> list[dict[str, Any]]:
        return pq.read_table(self.file(shard)).to_pylist()

    def digests(self) -> dict[str, str]:
        """sha256 of every finished shard's file, as its marker has it."""
        found = {i: s for i, s in self.states().items() if s.status == DONE}
        return {i: self.ledger.read(i, f"g{s.generation}.done")["sha256"] for i, s in found.items()}

    def saved(self, shard: str) -> int:
        """Samples of an unfinished shard that its next owner would find."""
        latest = self.run.latest()
        schema = columns.schema(Echo(EchoConfig()).column(), latest.identity)
        folder = self.run.segments(latest.identity, shard, self.states()[shard].generation)
        return len(Segments(folder).read(schema)[0].keys())

    def status(self) -> dict[str, Any]:
        return map_status.read_status(self.run)

    def heartbeats(self) -> list[dict[str, Any]]:
        from hpc.base import heartbeat

        return heartbeat.read_all(self.run.slots)

    def check(self, but: tuple[str, ...] = ()) -> None:
        """Every shard (`but` some) is done, holds each of its samples once and in order, and `verify --full` is
        clean.
        """
        for shard, texts in self.lines.items():
            if shard in but:
                continue
            assert self.states()[shard].status == DONE, (shard, self.states()[shard], self.names())
            rows = self.rows(shard)
            assert [r["key"] for r in rows] == [f"{shard}-{i:05d}" for i in range(len(texts))]
            for row, text in zip(rows, texts, strict=True):
                if row["status"] == "ok":
                    assert row["text"] == text
        assert verify.main([str(self.run.path), "--full"]) == 0


def command(
    module: str, *arguments: str, timeout: float = 240.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module arguments` from the project's root."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        env={**ENVIRONMENT, **environment}, check=False,
    )  # fmt: skip


def inline(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, for what needs no process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(module).main(list(arguments))
    return subprocess.CompletedProcess([module, *arguments], code, out.getvalue(), err.getvalue())


def texts(count: int, name: str = "line") -> list[str]:
    return [f"{name} {i}" for i in range(count)]
