"""A record of the samples and the shard that an engine is working on, in a file that outlives it: what it was working
on when it died may have killed it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base import atomic
from hpc.map.shard_task import ShardTask
from hpc.operator import Item, Row


@dataclass(frozen=True)
class Held:
    """What an engine was working on when it died.

    samples: (shard, generation, index) that the operator held; reading: (shard, generation) that its reader was
    reading;
    finished: the number of samples that it had finished before.
    """

    samples: list[tuple[str, int, int]] = field(default_factory=list)
    reading: list[tuple[str, int]] = field(default_factory=list)
    finished: int = 0


class InFlight:
    """Samples that the operator holds (`+id<TAB>generation<TAB>index`, `-…`), and the shard that is read (`<…`, `>…`).

    Each line is written before the operator or the reader begins, with one write for all samples that are handed over
    together. There is no fsync: the kernel keeps the file when the process dies, and when the machine dies no sample is
    to blame.
    """

    ROTATE = 1 << 20

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        self.items: dict[tuple[str, int], tuple[ShardTask, Item, int]] = {}  # (shard, index) -> task, item, tries
        self.bytes = 0  # of their payloads
        self.reading: ShardTask | None = None
        self._unwritten = b""

    def add(self, task: ShardTask, item: Item, tries: int) -> None:
        self.items[item.shard, item.index] = (task, item, tries)
        self.bytes += item.size
        self._unwritten += _line("+", task, item.index)

    def remove(self, row: Row) -> tuple[ShardTask, Item, int]:
        found = self.items.pop((row.shard, row.index))
        self.bytes -= found[1].size
        self._unwritten += _line("-", found[0], row.index)
        return found

    def begin_reading(self, task: ShardTask) -> None:
        self.reading = task
        self._unwritten += _line("<", task, 0)
        self.write()

    def end_reading(self) -> None:
        if self.reading is not None:
            self._unwritten += _line(">", self.reading, 0)
            self.write()
            self.reading = None

    def write(self) -> None:
        """Write down what was added and removed since the last call."""
        if not self._unwritten:
            return
        os.write(self._fd, self._unwritten)
        self._size += len(self._unwritten)
        self._unwritten = b""
        if self._size > self.ROTATE:
            self._compact()

    def _compact(self) -> None:
        """Write what is held into a new file, so that weeks of samples do not pile up."""
        held = b"-\t0\t0\n"  # stands for all samples that were finished before
        held += b"".join(_line("+", task, item.index) for task, item, _ in self.items.values())
        if self.reading is not None:
            held += _line("<", self.reading, 0)
        atomic.replace(self._path, held)
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._size = len(held)

    @staticmethod
    def read(path: Path) -> Held:
        """What the writer of this file had in its hands when it died."""
        samples: dict[tuple[str, int, int], None] = {}
        reading: dict[tuple[str, int], None] = {}
        finished = 0
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return Held()
        for line in lines:
            parts = line[1:].split("\t")
            if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
                continue  # torn last line: its sample had not reached the operator
            shard, generation, index = parts[0], int(parts[1]), int(parts[2])
            if line[0] == "+":
                samples[shard, generation, index] = None
            elif line[0] == "<":
                reading[shard, generation] = None
            elif line[0] == ">":
                reading.pop((shard, generation), None)
            else:
                samples.pop((shard, generation, index), None)
                finished += 1
        return Held(list(samples), list(reading), finished)


def _line(sign: str, task: ShardTask, index: int) -> bytes:
    return f"{sign}{task.shard.id}\t{task.generation}\t{index}\n".encode()
