"""The engine process: reads shards, applies the operator, saves segments. One per GPU, started and obeyed by its
node's agent alone.

It speaks JSON lines: tasks come on stdin, events go out on what was stdout (prints go to the log). When stdin ends,
the agent is dead and the engine stops. It never claims, publishes or decides anything about other shards.

    in   {"do": "shard", "shard": {...}, "generation": 0, "epoch": 1, "suspects": [7], "quarantine": [], "keep": false}
         {"do": "drain"}
    out  ready | progress | hungry | segment | finished | failed | storage | drained
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import queue
import select
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from hpc import atomic, object_store
from hpc import column as columns
from hpc import config as configs
from hpc.errors import Exit, Parser, ShardError, fingerprint, storage_full
from hpc.operator import FAILED, QUARANTINED, Damage, Item, Operator, Row, Shard
from hpc.rundir import Run

log = logging.getLogger("engine")

TRIES = 3  # of an item whose failure is transient, inside one engine
READ_AHEAD = 64  # items the reader thread may be ahead
READ_AHEAD_BYTES = 1 << 28  # of their payloads; one item may be larger
IN_FLIGHT_BYTES = 1 << 30  # of the payloads that the operator holds; then it gets no more
KILLED = "engine: killed the worker twice"


Saved = tuple[int, Counter[str]]  # first sample, samples by status


@dataclass(eq=False)
class Task:
    """One claimed shard on its way through this engine."""

    shard: Shard
    generation: int
    epoch: int
    suspects: set[int]
    quarantine: set[int]
    segment: int
    folder: Path
    schema: pa.Schema
    saved: dict[int, str] = field(default_factory=dict)  # index -> key of samples in adopted segments
    rows: dict[int, Row] = field(default_factory=dict)  # finished, not yet saved
    held: int = 0  # samples that the operator holds
    finished_in: Counter[int] = field(default_factory=Counter)  # samples finished or adopted, by block
    seen: int = 0  # samples that the reader has delivered
    total: int | None = None  # known when the reader has come to the end
    damage: Damage | None = None
    written: set[int] = field(default_factory=set)  # blocks that need nothing more
    transient: Counter[str] = field(default_factory=Counter)
    error: BaseException | None = None

    def name(self) -> dict[str, Any]:
        return {"shard": self.shard.id, "generation": self.generation, "epoch": self.epoch}

    def adopt(self) -> Iterator[Saved]:
        """Take over the segments that earlier owners saved."""
        for start, table in columns.read_segments(self.folder, self.schema).items():
            for index, key in enumerate(table["key"].to_pylist(), start):
                self.saved[index] = key
                self.finished_in[index // self.segment] += 1
            yield start, Counter(table["status"].to_pylist())

    def add(self, row: Row) -> list[Saved]:
        """Take a finished row; when its block is complete, save it."""
        self.rows[row.index] = row
        if row.transient:
            self.transient[row.reason] += 1
        block = row.index // self.segment
        self.finished_in[block] += 1
        if self.finished_in[block] < self.segment and self.total is None:
            return []
        return self.save(block)

    def save(self, block: int) -> list[Saved]:
        """Save a block if all of its samples are finished."""
        first, last = block * self.segment, (block + 1) * self.segment
        if self.total is not None:
            last = min(last, self.total)
        indices = [i for i in range(first, last) if i not in self.saved]
        if block in self.written or not all(i in self.rows for i in indices):
            return []
        rows = [self.rows[i] for i in indices]
        if any(r.transient for r in rows):
            return []  # not saved, so that the next epoch tries these samples again
        runs = list(_runs(rows))
        for run in runs:
            columns.write_segment(self.folder, run[0].index, columns.to_table(run, self.schema))
        for row in rows:
            self.saved[row.index] = row.key
            del self.rows[row.index]
        self.written.add(block)
        return [(run[0].index, Counter(r.status for r in run)) for run in runs]

    def save_all_but_transient(self) -> list[Saved]:
        """At the end of a shard that fails for some samples: what is good need not be done again."""
        rows = [self.rows[i] for i in sorted(self.rows) if not self.rows[i].transient]
        runs = list(_runs(rows))
        for run in runs:
            columns.write_segment(self.folder, run[0].index, columns.to_table(run, self.schema))
        return [(run[0].index, Counter(r.status for r in run)) for run in runs]

    def finished(self) -> bool:
        if self.total is None:
            return False
        return len(self.saved) + len(self.rows) >= self.total


def _runs(rows: list[Row]) -> Iterator[list[Row]]:
    """Maximal runs of consecutive indices (adopted segments may lie between)."""
    run: list[Row] = []
    for row in rows:
        if run and row.index != run[-1].index + 1:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


class InFlight:
    """Which samples the operator holds, in a file that outlives this process: `+id<TAB>generation<TAB>index`, `-…`.

    Written before the operator sees a sample. Not fsynced: the kernel keeps it when the process dies, and when the
    machine dies no sample is to blame.
    """

    ROTATE = 1 << 20

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        self.items: dict[tuple[str, int], tuple[Task, Item, int]] = {}  # (shard, index) -> task, item, tries
        self.bytes = 0  # of their payloads

    def add(self, task: Task, item: Item, tries: int) -> None:
        self.items[item.shard, item.index] = (task, item, tries)
        self.bytes += item.size
        self._log("+", task, item.index)

    def remove(self, row: Row) -> tuple[Task, Item, int]:
        found = self.items.pop((row.shard, row.index))
        self.bytes -= found[1].size
        self._log("-", found[0], row.index)
        return found

    def _log(self, sign: str, task: Task, index: int) -> None:
        line = self._line(sign, task, index)
        os.write(self._fd, line)
        self._size += len(line)
        if self._size > self.ROTATE:
            self._compact()

    def _compact(self) -> None:
        """Write what is held into a new file, so that weeks of samples do not pile up."""
        held = b"-\t0\t0\n"  # something was finished: this is no engine that dies without progress
        held += b"".join(self._line("+", task, item.index) for task, item, _ in self.items.values())
        atomic.replace(self._path, held)
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._size = len(held)

    @staticmethod
    def _line(sign: str, task: Task, index: int) -> bytes:
        return f"{sign}{task.shard.id}\t{task.generation}\t{index}\n".encode()

    @staticmethod
    def read(path: Path) -> tuple[list[tuple[str, int, int]], int]:
        """((shard, generation, index) that were in flight when the writer died, how many it had finished)."""
        held: dict[tuple[str, int, int], None] = {}
        finished = 0
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return [], 0
        for line in lines:
            parts = line[1:].split("\t")
            if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
                continue  # torn last line: its sample had not reached the operator
            at = (parts[0], int(parts[1]), int(parts[2]))
            if line[0] == "+":
                held[at] = None
            else:
                held.pop(at, None)
                finished += 1
        return list(held), finished


Delivered = tuple[Task, Item | Damage | BaseException | None]


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
    """Reads shards ahead of the operator. Errors travel through the queue as values, in order."""

    def __init__(self, operator: Operator) -> None:
        super().__init__(daemon=True, name="reader")
        self._operator = operator
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self.out = ReadAhead(READ_AHEAD)
        self.open = 0  # tasks not yet read to their end; changed by the main thread only

    def add(self, task: Task) -> None:
        self.open += 1
        self._tasks.put(task)

    def run(self) -> None:
        while True:
            task = self._tasks.get()
            try:
                for item in self._operator.read(task.shard):
                    self.out.put((task, item))
                self.out.put((task, None))
            except Exception as error:  # noqa: BLE001 - whatever an operator raises is this shard's failure
                self.out.put((task, error))


class Engine:
    """Feeds the operator from the reader and saves what comes out."""

    def __init__(self, run: Run, config: configs.Config, identity: str, operator: Operator, inflight: Path) -> None:
        self.run, self.config, self.identity, self.operator = run, config, identity, operator
        self.schema = columns.schema(operator.column(), identity)
        columns.to_table([], self.schema)  # pyarrow's first table imports pandas: now, before the hang clock runs
        self.inflight = InFlight(inflight)
        self.reader = Reader(operator)
        self.tasks: list[Task] = []
        self.isolated: deque[tuple[Task, Item, int]] = deque()  # each is applied alone: it may kill the process
        self.again: deque[tuple[Task, Item, int]] = deque()  # transient failures to try again
        self.draining = False
        self.done = 0
        self._events = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._input = b""
        self._last_progress = 0.0

    def emit(self, event: str, **facts: Any) -> None:
        self._events.write(json.dumps({"event": event, **facts}) + "\n")
        self._events.flush()

    # --- the loop ---------------------------------------------------------------------------

    def loop(self) -> None:
        self.reader.start()
        self.emit("ready")
        self.emit("hungry")
        while True:
            idle = not (self.inflight.items or self.isolated or self.again or self.reader.open)
            if not self.commands(0.5 if idle else 0.0):
                return  # the agent is gone
            if self.draining and not self.inflight.items:
                for task in self.tasks:
                    for saved in task.save_all_but_transient():
                        self.saved(task, saved)
                self.emit("drained")
                return
            self.feed()
            for row in self.operator.poll(0.2):
                self.take(row)
            self.progress()

    def commands(self, timeout: float) -> bool:
        ready, _, _ = select.select([0], [], [], timeout)
        if not ready:
            return True
        data = os.read(0, 1 << 16)
        if not data:
            return False
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            if command["do"] == "drain":
                self.draining = True
            else:
                self.begin(command)
        return True

    def begin(self, command: dict[str, Any]) -> None:
        shard = Shard(**command["shard"])
        task = Task(
            shard,
            command["generation"],
            command["epoch"],
            set(command["suspects"]),
            set(command["quarantine"]),
            self.config.run.map.segment,
            self.run.segments(self.identity, shard.id, command["generation"]),
            self.schema,
        )
        if command["keep"]:
            try:
                self.inherit(task)
            except (OSError, pa.ArrowException) as error:
                if storage_full(error):
                    raise
                log.warning("%s: what it had cannot be read, all of it is done again: %s", shard.id, error)
        for adopted in task.adopt():
            self.saved(task, adopted, adopted=True)
        self.tasks.append(task)
        self.reader.add(task)

    def inherit(self, task: Task) -> None:
        """A rerun of bad samples alone: the good ones come from the generation before, published or not."""
        before = task.generation - 1
        marker = self.run.ledger(self.identity).read(task.shard.id, f"g{before}.done")
        if not marker:
            folder = self.run.segments(self.identity, task.shard.id, before)
            columns.keep_good(columns.read_segments(folder, self.schema), task.folder)
            return
        with object_store.fetched(self.run.locate(marker["file"])) as path:
            columns.keep_good({0: columns.read(path)}, task.folder)

    def feed(self) -> None:
        """Hand the operator what it wants; suspects go alone."""
        while not self.draining and self.operator.want() > 0 and self.inflight.bytes < IN_FLIGHT_BYTES:
            if self.suspect_in_flight():
                return  # it is applied alone: whatever dies now, it was this sample
            if self.isolated:
                if self.isolated[0][0].error:
                    self.isolated.popleft()
                    continue
                if not self.inflight.items:
                    task, item, tries = self.isolated.popleft()
                    log.warning("%s: sample %s was in flight at a death; applying it alone", item.shard, item.key)
                    self.put(task, item, tries)
                return
            if self.again:
                task, item, tries = self.again.popleft()
                if not task.error:
                    self.put(task, item, tries)
                continue
            try:
                # With nothing in flight there is nothing to poll: wait for the reader instead of spinning.
                wait = 0.2 if self.reader.open and not self.inflight.items else 0.0
                delivered = self.reader.out.get(block=wait > 0, timeout=wait or None)
            except queue.Empty:
                return
            self.receive(*delivered)

    def suspect_in_flight(self) -> bool:
        """Whether a suspect is applied now; it always is the only one."""
        if len(self.inflight.items) != 1:
            return False
        task, item, _ = next(iter(self.inflight.items.values()))
        return item.index in task.suspects

    def receive(self, task: Task, item: Item | Damage | BaseException | None) -> None:
        if isinstance(item, Item):
            task.seen = item.index + 1
            self.consider(task, item)
        elif isinstance(item, Damage):
            task.damage = item
        else:
            self.reader.open -= 1
            if isinstance(item, BaseException):
                self.fail(task, item)
            elif not task.error:
                self.end(task)
            if not self.reader.open:
                self.emit("hungry")

    def consider(self, task: Task, item: Item) -> None:
        if task.error:
            return
        if item.index in task.saved:
            self.done += 1
            if task.saved[item.index] != item.key:
                columns.remove_segments(task.folder)
                self.fail(task, ShardError("input: changed while the shard was worked on", f"sample {item.key}"))
            return
        if item.index in task.quarantine:
            self.settle(task, self.operator.refuse(item, QUARANTINED, KILLED))
        elif item.index in task.suspects:
            self.isolated.append((task, item, 0))
        else:
            self.put(task, item, 0)

    def put(self, task: Task, item: Item, tries: int) -> None:
        task.held += 1
        self.inflight.add(task, item, tries)
        self.operator.put(item)

    def take(self, row: Row) -> None:
        task, item, tries = self.inflight.remove(row)
        task.held -= 1
        self.done += 1
        if task.error:
            self.tell_failure(task)
        elif row.transient and tries + 1 < TRIES:
            waiting = self.isolated if item.index in task.suspects else self.again
            waiting.append((task, item, tries + 1))
        else:
            self.settle(task, row)

    def settle(self, task: Task, row: Row) -> None:
        for saved in task.add(row):
            self.saved(task, saved)
        if task.finished():
            self.close(task)

    def end(self, task: Task) -> None:
        """The reader has come to the shard's end: now the number of samples is known."""
        task.total = task.seen
        if any(index >= task.total for index in task.saved):
            columns.remove_segments(task.folder)
            self.fail(task, ShardError("input: changed while the shard was worked on"))
            return
        for block in range(-(-task.total // task.segment)):
            for saved in task.save(block):
                self.saved(task, saved)
        if task.finished():
            self.close(task)

    def saved(self, task: Task, saved: Saved, adopted: bool = False) -> None:
        start, counts = saved
        facts = {"start": start, "rows": sum(counts.values()), "counts": counts, "adopted": adopted}
        self.emit("segment", **task.name(), **facts)

    def close(self, task: Task) -> None:
        if task not in self.tasks:
            return
        self.tasks.remove(task)
        if task.transient:
            for saved in task.save_all_but_transient():
                self.saved(task, saved)
            reason, count = task.transient.most_common(1)[0]
            detail = f"{count} samples failed {TRIES} times in a row"
            self.emit("failed", **task.name(), reason=f"samples: {reason}", detail=detail, counts={FAILED: count})
        else:
            damage = asdict(task.damage) if task.damage else None
            self.emit("finished", **task.name(), rows=task.total, damage=damage)

    def fail(self, task: Task, error: BaseException) -> None:
        task.error = task.error or error
        self.tell_failure(task)

    def tell_failure(self, task: Task) -> None:
        """Only when the operator has given all of the shard back: its next epoch may come to this same engine."""
        if task in self.tasks and not task.held:
            assert task.error is not None
            self.tasks.remove(task)
            log.error("%s: cannot be processed: %s", task.shard.id, task.error, exc_info=task.error)
            self.emit("failed", **task.name(), reason=fingerprint(task.error), detail=str(task.error)[:500])

    def progress(self) -> None:
        now = time.monotonic()
        if now - self._last_progress > 0.5:
            self._last_progress = now
            self.emit("progress", done=self.done, in_flight=len(self.inflight.items))


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--submission", required=True)
    parser.add_argument("--device", required=True, help="cpu or cuda")
    parser.add_argument("--inflight", required=True, type=Path)
    args = parser.parse_args()
    faulthandler.enable()  # the agent's SIGABRT to a hung engine leaves every thread's stack in the log
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    run = Run(args.run)
    submission = run.submission(args.submission)
    config = configs.check(submission.config, submission.source)
    operator = config.operator()
    engine = Engine(run, config, submission.identity, operator, args.inflight)
    try:
        operator.setup(args.device)
    except Exception as error:  # told, so that deaths alike are known as such; the traceback is for the log
        engine.emit("broken", reason=fingerprint(error), detail=str(error)[:1000])
        raise
    try:
        engine.loop()
    except OSError as error:
        if not storage_full(error):
            raise
        log.error("the run directory cannot be written: %s", error)
        engine.emit("storage", reason=f"storage: {error}")
    finally:
        operator.close()
    # The reader may be inside a blocking read of a dead file system: do not wait for it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(Exit.COMPLETE)


if __name__ == "__main__":
    main()
