"""The operator of a drill's small run: samples that take a moment each, and orders to do harm, each carried out once.

An order is a file in a folder that all slots share: `engine` kills an engine, `slot` a slot, and `stall` stops a slot
until there is `resume`. The engine that manages to rename the file carries it out. Until there is `finish`, each sample
takes a while, so that the harm comes while there is work.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base import atomic
from hpc.operator import Batched, Column, Damage, Item, Row, Shard

ENGINE, SLOT, STALL, RESUME, FINISH = "engine", "slot", "stall", "resume", "finish"
STALLED_S = 900.0  # for which a slot is stopped at most, should the drill be gone
_PACE_S, _LOOK_S = 0.25, 0.25


@dataclass
class WorkConfig:
    orders: str = field(default="", metadata={"execution": True})
    shards: int = 60
    samples: int = 8  # of a shard


def value(key: str) -> str:
    """What the output must hold for a sample."""
    return hashlib.sha256(key.encode()).hexdigest()


class Work(Batched):
    """Torch-free, and without input: a shard is a number."""

    Config: ClassVar[type] = WorkConfig
    version: ClassVar[int] = 1
    batch_size = 1

    def __init__(self, config: WorkConfig) -> None:
        super().__init__()
        self.config, self._orders = config, Path(config.orders)
        self._looked, self._finish = 0.0, False

    def plan(self) -> list[Shard]:
        count = self.config.samples
        return [Shard(f"s{number:03d}", "drill:", 1, expected=count) for number in range(self.config.shards)]

    def identity(self) -> dict[str, Any]:
        return {}

    def describe(self) -> list[tuple[str, str]]:
        return [("drill", f"{self.config.shards} shards of {self.config.samples} samples")]

    def one_gpu(self) -> str:
        return ""

    def column(self) -> Column:
        return Column("drill", [("value", pa.string())])

    def setup(self, device: str) -> None: ...

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        for index in range(self.config.samples):
            key = f"{shard.id}-{index}"
            yield Item(shard.id, index, key, key)

    def apply(self, items: list[Item]) -> list[Row]:
        if not self._finish:
            time.sleep(_PACE_S * len(items))
            self._obey()
        return [Row(item.shard, item.index, item.key, values={"value": value(item.key)}) for item in items]

    def _obey(self) -> None:
        """Look for orders, and carry out those that this engine can take."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        orders = set(os.listdir(self._orders))
        self._finish = FINISH in orders
        if ENGINE in orders and self._has(ENGINE):
            os.kill(os.getpid(), signal.SIGKILL)
        if SLOT in orders and self._has(SLOT):
            os.kill(os.getppid(), signal.SIGKILL)
        if STALL in orders and self._has(STALL):
            os.kill(os.getppid(), signal.SIGSTOP)
            threading.Thread(target=self._resume, args=(os.getppid(),), daemon=True).start()

    def _has(self, order: str) -> bool:
        """Take an order; False where another engine was faster. It is on record before it is carried out."""
        try:
            os.rename(self._orders / order, self._orders / f"{order}.{os.uname().nodename}.{os.getpid()}")
        except OSError:
            return False
        inflight = Path(sys.argv[sys.argv.index("--inflight") + 1]).name
        atomic.replace(self._orders / f"{order}.taken", inflight.rpartition(".")[0].encode())
        return True

    def _resume(self, agent: int) -> None:
        begun = time.monotonic()
        while not (self._orders / RESUME).exists() and time.monotonic() - begun < STALLED_S:
            time.sleep(_LOOK_S)
        os.kill(agent, signal.SIGCONT)
