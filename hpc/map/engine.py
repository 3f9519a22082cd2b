"""The engine process: reads shards, applies the operator, saves finished blocks. There is one per GPU; its node's agent
starts it and tells it what to do.

It speaks JSON lines: tasks come on stdin, events go out on what was stdout (prints go to the log). When stdin ends,
the agent is dead and the engine stops. It never claims, publishes or decides anything about other shards.

    in   {"do": "shard", "shard": {...}, "generation": 0, "epoch": 1, "suspects": [7], "quarantine": [],
          "apart": false, "keep": false, "manifests": {}, "only": null}
         {"do": "drain"}
    out  ready | progress | hungry | segment | measured | finished | piloted | failed | storage | drained
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import select
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base.errors import Exit, Parser, ShardError, fingerprint, storage_full
from hpc.map import survey
from hpc.map.compare import Measure
from hpc.map.in_flight import InFlight
from hpc.map.reader import Reader
from hpc.map.shard_task import Saved, ShardTask, good_before
from hpc.operator import FAILED, QUARANTINED, Damage, Item, Operator, ReadsOtherRuns, Row, Shard, starved_s, waits_for
from hpc.run import column as columns
from hpc.run.directory import Run
from hpc.run.segments import Segments

log = logging.getLogger("engine")

TRIES = 3  # of an item whose failure is transient, inside one engine
IN_FLIGHT_BYTES = 1 << 30  # of the payloads that the operator holds, above which it gets no more
KILLED = "engine: killed the worker twice"


class ShardWorker:
    """Feeds the operator from the reader and saves what comes out."""

    def __init__(self, run: Run, config: configs.Config, identity: str, operator: Operator, inflight: Path) -> None:
        self.run, self.config, self.identity, self.operator = run, config, identity, operator
        self.schema = columns.schema(operator.column(), identity)
        columns.to_table([], self.schema)  # pyarrow's first table is slow: made before hangs are watched for
        self.inflight = InFlight(inflight)
        self.reader = Reader(operator)
        self.tasks: list[ShardTask] = []
        # (task, item, tries before) of samples that wait to be applied.
        self.isolated: deque[tuple[ShardTask, Item, int]] = deque()  # each is applied alone: it may kill the process
        self.again: deque[tuple[ShardTask, Item, int]] = deque()  # transient failures to try again
        self.to_read: ShardTask | None = None  # the shard that the reader reads
        self.next_items: list[Item] = []  # for the operator, once they are on record as in flight
        self.still = False  # the reader was made to stand still
        self.draining = False
        self.done = self.made = 0  # finished samples, and those of them that were made here, not adopted
        self.idle_s = 0.0  # without a shard
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
            idle = not (self.inflight.items or self.isolated or self.again or self.reader.open_tasks)
            begun = time.monotonic()
            if not self.commands(0.5 if idle else 0.0):
                return  # the agent is gone
            self.idle_s += time.monotonic() - begun if idle else 0.0
            if self.draining and not self.inflight.items:
                self.save_finished()
                self.emit("drained")
                return
            self.save_due()
            self.feed()
            self.put_next()
            for row in self.operator.poll(0.2):
                self.on_row(row)
            self.inflight.write()
            self.progress()

    def commands(self, timeout: float) -> bool:
        """Carry out commands of the agent, waiting for one at most `timeout` seconds. False where the agent is gone."""
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
                self.save_finished()  # at once: what is in flight may take longer than we are given
            else:
                self.begin_shard(command)
        return True

    def begin_shard(self, command: dict[str, Any]) -> None:
        """The agent has claimed a shard: load what earlier owners saved of it, and let the reader go on behind that.

        command: as `agent` sends it: the shard, its generation and epoch, the samples that are suspected or
            quarantined, whether it is worked on `apart` from others, whether good rows of the generation before
            are kept, the `manifests` of the rerun that reopened it, and, of a pilot, the `only` blocks that are wanted.
        """
        shard = Shard(**command["shard"])
        if command["manifests"] and isinstance(self.operator, ReadsOtherRuns):
            self.operator.surveyed(self.run.manifests, command["manifests"], shard.id)
        segments = Segments(self.run.segments(self.identity, shard.id, command["generation"]))
        task = ShardTask(
            shard, command["generation"], command["epoch"], set(command["suspects"]), set(command["quarantine"]),
            command["apart"], self.config.run.map.segment, self.config.run.map.save_s, segments, self.schema,
            command.get("only"),
        )  # fmt: skip
        good = good_before(self.run, self.identity, task) if command["keep"] else []
        self.report_saved(task, task.load_saved(good), adopted=True)
        self.tasks.append(task)
        self.to_read = task
        if task.apart:
            self.stand_still()  # until nothing is in flight any more
        elif not self.still:
            self.inflight.begin_reading(task)
        self.reader.add(task)

    def feed(self) -> None:
        """Choose items for the operator, as many as it wants; a suspect is applied alone."""
        in_flight = self.inflight
        while not self.draining and self.operator.want() > len(self.next_items) and in_flight.bytes < IN_FLIGHT_BYTES:
            if self.suspect_in_flight():
                return  # it is applied alone: if the process dies now, this sample is to blame
            if self.isolated:
                if self.isolated[0][0].error:
                    self.isolated.popleft()
                    continue
                if not self.inflight.items and self.stand_still():
                    task, item, tries = self.isolated.popleft()
                    log.warning("%s: sample %s was in flight at a death; applying it alone", item.shard, item.key)
                    self.put(task, item, tries)
                return
            if not self.may_take():
                return
            if self.again:
                task, item, tries = self.again.popleft()
                if not task.error:
                    self.put(task, item, tries)
                continue
            # With nothing in flight there is nothing to poll: wait for the reader instead of spinning.
            wait_s = 0.2 if self.reader.open_tasks and not (self.inflight.items or self.still) else 0.0
            delivered = self.reader.take(wait_s)
            if delivered is None:
                return
            self.on_delivery(*delivered)

    def may_take(self) -> bool:
        """Whether what was read may be applied now. A shard whose reading may have killed an engine is read while
        nothing is in flight, and its samples are applied while the reader stands still: so a death tells which it was.
        """
        if self.to_read is None or not self.to_read.apart:
            self.go_on()
            return True
        if not self.still:
            return self.reader.has_read_ahead(0.05) and self.stand_still()
        if self.reader.out.empty() and not (self.inflight.items or self.again):
            self.go_on()
        return self.still

    def stand_still(self) -> bool:
        """Stop the reader and take it off the record. False while it is inside a read."""
        if not self.still and self.reader.stand_still(0.2):
            self.inflight.end_reading()
            self.still = True
        return self.still

    def go_on(self) -> None:
        if self.still:
            if self.to_read is not None:
                self.inflight.begin_reading(self.to_read)
            self.reader.go_on()
            self.still = False

    def suspect_in_flight(self) -> bool:
        """Whether a suspect is applied now; it always is the only one."""
        if len(self.inflight.items) != 1:
            return False
        task, item, _ = next(iter(self.inflight.items.values()))
        return item.index in task.suspects

    def on_delivery(self, task: ShardTask, item: Item | Damage | BaseException | None) -> None:
        """The reader has delivered something of a shard: an item, its damage, an error, or its end (None)."""
        if isinstance(item, Item):
            task.count_delivered(item.index)
            self.on_item(task, item)
        elif isinstance(item, Damage):
            task.damage = item
        else:
            self.reader.open_tasks -= 1
            self.to_read = None
            self.inflight.end_reading()
            if isinstance(item, BaseException):
                self.fail(task, item)
            elif not task.error:
                self.end(task)
            if not self.reader.open_tasks:
                self.emit("hungry")

    def on_item(self, task: ShardTask, item: Item) -> None:
        """Put a sample where it belongs: it may be saved already, refused, suspected, or simply the next one."""
        if task.error:
            return
        if item.index in task.saved:
            self.done += 1
            if task.saved[item.index] != item.key:
                self.fail_for_change(task, f"sample {item.key}")
            return
        if item.index in task.quarantine:
            self.finish_item(task, self.operator.refuse(item, QUARANTINED, KILLED))
        elif item.lost:
            self.finish_item(task, Row(item.shard, item.index, item.key, FAILED, item.lost))
        elif item.index in task.suspects:
            self.isolated.append((task, item, 0))
        else:
            self.put(task, item, 0)

    def put(self, task: ShardTask, item: Item, tries: int) -> None:
        task.held += 1
        self.inflight.add(task, item, tries)
        self.next_items.append(item)

    def put_next(self) -> None:
        """Give the operator the items that were chosen for it, once it is on record that they are in flight."""
        self.inflight.write()
        for item in self.next_items:
            self.operator.put(item)
        self.next_items = []

    def on_row(self, row: Row) -> None:
        """The operator has finished a sample: keep its row, or try it again after a transient failure."""
        task, item, tries = self.inflight.remove(row)
        task.held -= 1
        self.done += 1
        self.made += 1
        if task.error:
            task.add(row)  # the shard failed, this sample did not: it is saved with the others
            self.report_failure(task)
        elif row.transient and tries + 1 < TRIES:
            waiting = self.isolated if item.index in task.suspects else self.again
            waiting.append((task, item, tries + 1))
        else:
            self.finish_item(task, row)

    def finish_item(self, task: ShardTask, row: Row) -> None:
        """The sample has its row; the last one of a shard closes it."""
        task.add(row)
        if task.finished():
            self.close(task)

    def end(self, task: ShardTask) -> None:
        """The reader has come to the shard's end: now the number of samples is known."""
        if not task.end():
            self.fail_for_change(task, f"it has {task.total} samples now")
        elif task.finished():
            self.close(task)

    # --- saving -----------------------------------------------------------------------------

    def save_due(self) -> None:
        for task in self.tasks:
            if task.due() and not task.error:
                self.report_saved(task, task.save())

    def save_finished(self) -> None:
        """Everything that is finished, whether it is time or not."""
        for task in self.tasks:
            if not task.changed:
                self.report_saved(task, task.save(all_finished=True))

    def report_saved(self, task: ShardTask, blocks: list[Saved], adopted: bool = False) -> None:
        for start, counts in blocks:
            facts = {"start": start, "rows": sum(counts.values()), "counts": counts, "adopted": adopted}
            self.emit("segment", **task.name(), **facts)
        if task.unreported.rows:
            self.emit("measured", **task.name(), like=task.unreported)
            task.unreported = Measure()

    # --- the end of a shard -----------------------------------------------------------------

    def close(self, task: ShardTask) -> None:
        if task not in self.tasks:
            return
        # What the column file is made of at once need not be forced to storage before.
        sync = bool(task.transient) or task.only is not None
        self.report_saved(task, task.save(all_finished=True, sync=sync))
        self.forget(task)
        if task.transient:
            reason, count = task.transient.most_common(1)[0]
            detail = f"{count} samples failed {TRIES} times in a row"
            self.emit("failed", **task.name(), reason=f"samples: {reason}", detail=detail, counts={FAILED: count})
        elif task.only is not None:
            self.emit("piloted", **task.name())
        else:
            damage = asdict(task.damage) if task.damage else None
            self.emit("finished", **task.name(), rows=task.total, damage=damage, noted=task.noted)

    def forget(self, task: ShardTask) -> None:
        self.tasks.remove(task)
        task.close()

    def fail_for_change(self, task: ShardTask, how: str) -> None:
        """The samples that were saved are not those of this input: the next epoch begins afresh."""
        task.discard()
        self.fail(task, ShardError("input: changed while the shard was worked on", how))

    def fail(self, task: ShardTask, error: BaseException) -> None:
        task.error = task.error or error
        self.report_failure(task)

    def report_failure(self, task: ShardTask) -> None:
        """Report it when the operator has given back all of the shard: its next epoch may come to this engine."""
        if task in self.tasks and not task.held and task.error is not None:
            if not task.changed:
                self.report_saved(task, task.save(all_finished=True))
            self.forget(task)
            log.error("%s: cannot be processed: %s", task.shard.id, task.error, exc_info=task.error)
            self.emit("failed", **task.name(), reason=fingerprint(task.error), detail=str(task.error)[:500])

    def progress(self) -> None:
        now = time.monotonic()
        if now - self._last_progress > 0.5:
            self._last_progress = now
            input_s = self.reader.waited_s + starved_s(self.operator)
            self.emit(
                "progress", done=self.done, in_flight=len(self.inflight.items), made=self.made,
                input_s=round(input_s, 3), idle_s=round(self.idle_s, 3), waiting=waits_for(self.operator),
            )  # fmt: skip


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
    config = submission.checked()
    operator = survey.operator(run, submission, config)
    engine = ShardWorker(run, config, submission.identity, operator, args.inflight)
    try:
        operator.setup(args.device)
    except Exception as error:  # told, so that deaths alike are known as such; the traceback is for the log
        engine.emit("broken", reason=fingerprint(error), detail=str(error)[:1000])
        raise
    code = int(Exit.COMPLETE)
    try:
        engine.loop()
    except Exception as error:
        if isinstance(error, OSError) and storage_full(error):
            log.error("the run directory cannot be written: %s", error)
            engine.emit("storage", reason=f"storage: {error}")
        else:  # of the operator: what it has finished is not lost with it
            with contextlib.suppress(OSError):
                engine.save_finished()
            log.exception("the work failed")
            code = 1
    finally:
        operator.close()
    # The reader may be inside a blocking read of a dead file system, requests may wait for a server: not waited for.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
