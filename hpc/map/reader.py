"""The thread of an engine that reads shards ahead of the operator, and can be made to stand still.

It stands still while a suspect is applied alone, and while anything is in flight of a shard whose reading may have
killed an engine before: then a death says whether it was the reading or the sample.
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
    """What was read and not yet applied: full at READ_AHEAD items, or as soon as they hold READ_AHEAD_BYTES."""

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
        self.open = 0  # tasks not yet read to their end; changed by the main thread only
        self.waited_s = 0.0  # that the main thread has waited for it, in all
        self._may_read = threading.Event()
        self._may_read.set()
        self._reading = threading.Lock()  # held while the operator's code reads
        self.ahead = threading.Event()  # the shard is read to its end; what is left of it is in `out`

    def add(self, task: ShardTask) -> None:
        self.open += 1
        self.ahead.clear()
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
            self.ahead.set()

    def _read(self, task: ShardTask) -> Iterable[Item | Damage]:
        return self._operator.read(task.shard) if task.only is None else items(self._operator, task.shard, task.only)

    def _step(self, read: Callable[[], Any]) -> Any:
        """Run the operator's code, once it may."""
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

    def is_ahead(self, wait_s: float) -> bool:
        """Whether the shard is read as far as it can be before anything of it is taken; waits for that a while."""
        begun = time.monotonic()
        done = self.ahead.wait(wait_s) or self.out.full()
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
