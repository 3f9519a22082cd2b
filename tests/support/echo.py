"""A torch-free operator for protocol tests: a shard is a text file, a sample is one of its lines.

Faults are lines of their own: "segv", "kill", "exit", "hang", "raise", "transient", "skip", "bad" do what they say;
"lost" is none that the input holds, "flaky" is transient at its first try in a process, "wait" waits until there is a
file `go` among the inputs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import ShardError
from hpc.operator import FAILED, LOST, SKIPPED, Batched, Column, Damage, Item, Row, Shard


@dataclass
class EchoConfig:
    inputs: str = field(default="", metadata={"execution": True})  # a directory of .txt files
    prefix: str = ""
    column: str = "echo"
    delay_s: float = field(default=0.0, metadata={"execution": True})
    read_s: float = field(default=0.0, metadata={"execution": True})  # for each line
    setup_s: float = field(default=0.0, metadata={"execution": True})
    setup_fault: str = field(default="", metadata={"execution": True})  # "exit"
    batch: int = field(default=16, metadata={"execution": True})
    applied: str = field(default="", metadata={"execution": True})  # file that gets a line "pid shard index" per sample


class Echo(Batched):
    Config: ClassVar[type] = EchoConfig
    version: ClassVar[int] = 1

    def __init__(self, config: EchoConfig) -> None:
        super().__init__()
        self.config = config
        self.batch_size = config.batch
        self._tried: set[tuple[str, int]] = set()

    def plan(self) -> list[Shard]:
        files = sorted(Path(self.config.inputs).glob("*.txt"))
        return [Shard(f.stem, str(f), f.stat().st_size) for f in files]

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return [("echo", f"prefix {self.config.prefix!r}")]

    def one_gpu(self) -> str:
        return ""

    def column(self) -> Column:
        return Column(self.config.column, [("text", pa.string()), ("sha256", pa.string())])

    def setup(self, device: str) -> None:
        time.sleep(self.config.setup_s)
        if self.config.setup_fault == "exit":
            os._exit(3)

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        lines = Path(shard.uri).read_text().splitlines()
        if lines and lines[0] == "unreadable":
            raise ShardError("input: unreadable", shard.uri)
        for index, line in enumerate(lines):
            time.sleep(self.config.read_s)
            yield Item(shard.id, index, f"{shard.id}-{index:05d}", line, lost=f"{LOST}gone" if line == "lost" else "")
        if lines and lines[-1] == "damaged":
            yield Damage("text: ends too early", "as the test wanted")

    def apply(self, items: list[Item]) -> list[Row]:
        begun = time.monotonic()
        rows = [self._one(item) for item in items]
        if self.config.applied:  # how long it took, for tests that count the time
            with open(f"{self.config.applied}.seconds", "a") as file:
                file.write(f"{time.monotonic() - begun}\n")
        return rows

    def _one(self, item: Item) -> Row:
        time.sleep(self.config.delay_s)
        if self.config.applied:
            with open(self.config.applied, "a") as file:
                file.write(f"{os.getpid()} {item.shard} {item.index}\n")
        fault = item.payload
        while fault == "wait" and not (Path(self.config.inputs) / "go").exists():
            time.sleep(0.01)
        if fault == "flaky" and (item.shard, item.index) not in self._tried:
            self._tried.add((item.shard, item.index))
            fault = "transient"
        if fault == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "exit":
            os._exit(3)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "raise":
            raise RuntimeError(f"cannot echo {item.key}")
        elif fault == "transient":
            return Row(item.shard, item.index, item.key, FAILED, "line: transient", transient=True)
        elif fault == "skip":
            return Row(item.shard, item.index, item.key, SKIPPED, "line: to skip")
        elif fault == "bad":
            return Row(item.shard, item.index, item.key, FAILED, "line: bad")
        values = {
            "text": self.config.prefix + item.payload,
            "sha256": hashlib.sha256(item.payload.encode()).hexdigest(),
        }
        return Row(item.shard, item.index, item.key, values=values)
