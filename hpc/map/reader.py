"""The thread of an engine that reads shards ahead of the operator. It can be made to stand still.

It does so while a suspect is applied alone, and while samples are in flight of a shard whose reading may have killed an
engine before. Then a death in that time was caused by a sample and not by the reading.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hpc.map.shard_task import ShardTask
from hpc.operator import Damage, Item, Operator, noted_of
from hpc.run.pilot import items

READ_AHEAD = 64  # items the reader thread may be ahead
READ_AHEAD_BYTES = 1 << 28  # of their payloads; one item may be larger

Delivered = tuple[ShardTask, Item | Damage | BaseException | None]  # None: the shard's end


class ReadAhead(queue.Queue[Delivered]):
    """Items that were read and not yet taken. It is full at READ_AHEAD items, or when they hold READ_AHEAD_BYTES."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._bytes = 0

    def _qsize(self) -> int:
        return self.maxsize if self._bytes >= READ_AHEAD_BYTES else super()._qsize()

    def _put(self, item: Delivered) -> None:
        super()._put(item)
        self._bytes += item[1].size if isinstance(item[1], Item) else 0

    def _get(self) -> Delivered:
        item = super()._get()
        self._bytes -= item[1].size if isinstance(item[1], Item) else 0
        return item


class Reader(threading.Thread):
    """Reads shards in the order in which they were added. Errors travel through the queue as values, in order."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(daemon=True, name="reader")
        self._operator = operator
        self._tasks: queue.SimpleQueue[ShardTask] = queue.SimpleQueue()
        self.out = ReadAhead(READ_AHEAD)
        self.open_tasks = 0  # tasks not yet read to their end; changed by the main thread only
        self.waited_s = 0.0  # that the main thread has waited for it, in all
        self._may_read = threading.Event()
        self._may_read.set()
        self._reading = threading.Lock()  # held while the operator's code reads
        self.at_end = threading.Event()  # the shard was read to its end; what is not taken of it yet is in `out`

    def add(self, task: ShardTask) -> None:
        self.open_tasks += 1
        self.at_end.clear()
        self._tasks.put(task)

    def run(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                found_items = iter(self._step(partial(self._read, task)))
                while (found := self._step(partial(next, found_items, None))) is not None:
                    self.out.put((task, found))
                if task.only is None:
                    task.noted = noted_of(self._operator, task.shard.id)
                self.out.put((task, None))
            except Exception as error:  # noqa: BLE001 - whatever an operator raises is this shard's failure
                self.out.put((task, error))
            self.at_end.set()

    def _read(self, task: ShardTask) -> Iterable[Item | Damage]:
        return self._operator.read(task.shard) if task.only is None else items(self._operator, task.shard, task.only)

    def _step(self, read: Callable[[], Any]) -> Any:
        """Run code of the operator, as soon as reading is allowed."""
        while True:
            self._may_read.wait()
            with self._reading:
                if self._may_read.is_set():
                    return read()

    # --- for the main thread ------------------------------------------------------------------

    def take(self, wait_s: float) -> Delivered | None:
        """What was read next; None where nothing comes within `wait_s` seconds."""
        begun = time.monotonic()
        try:
            return self.out.get(block=wait_s > 0, timeout=wait_s or None)
        except queue.Empty:
            return None
        finally:
            self.waited_s += time.monotonic() - begun

    def has_read_ahead(self, wait_s: float) -> bool:
        """Whether the shard was read to its end, or as far as `out` has room; waits `wait_s` seconds for that."""
        begun = time.monotonic()
        done = self.at_end.wait(wait_s) or self.out.full()
        self.waited_s += time.monotonic() - begun
        return done

    def stand_still(self, timeout: float) -> bool:
        """Read nothing more until `go_on`. False where it is still inside a read after `timeout` seconds."""
        self._may_read.clear()
        if not self._reading.acquire(timeout=timeout):
            return False
        self._reading.release()
        return True

    def go_on(self) -> None:
        self._may_read.set()
