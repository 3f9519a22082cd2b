"""One engine of a trial, in a process of its own: loads what the job loads, waits for its neighbours, and applies it to
real samples. Started by recap.engine.tuning.trial with a file that says what to do; writes an answer beside it.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc import config as configs
from hpc.base import atomic
from hpc.base.errors import ShardError, UserError
from hpc.operator import FAILED, OK, Damage, Item, Operator, Row, Shard, waits_for

READ_AHEAD = 64  # samples
_REFUSALS = (UserError, FileNotFoundError)


@dataclass(frozen=True)
class Task:
    """What one engine of a trial does. seconds, samples: after which of both it ends; patience_s: without a sample."""

    config: dict[str, Any]
    source: str
    shards: list[dict[str, Any]]
    engine: int
    engines: int
    device: str
    seconds: float
    samples: int
    patience_s: float
    go: str  # the file whose appearance starts all engines at once


@dataclass
class Answer:
    """What came of it. rate, tokens: samples and tokens a second; problem: why there is none, kind: of what sort.
    read, read_bytes: samples that were read, and the bytes of the shards that they fill.
    """

    rate: float = 0.0
    tokens: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    setup_s: float = 0.0
    problem: str = ""
    kind: str = ""
    reasons: dict[str, int] = field(default_factory=dict)
    read: int = 0
    read_bytes: int = 0


def main(task_file: Path) -> Answer:
    task = Task(**json.loads(task_file.read_bytes()))
    answer, begun = Answer(), time.monotonic()
    try:
        operator = configs.check(task.config, task.source).operator()
        operator.setup(task.device)
        answer.setup_s = time.monotonic() - begun
        atomic.replace(task_file.with_suffix(".ready"), b"")
        while not Path(task.go).exists():
            time.sleep(0.05)
        _apply(operator, task, answer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the trial's outcome
        answer.problem, answer.kind = f"{type(error).__name__}: {error}", _kind(error)
        sys.excepthook(type(error), error, error.__traceback__)
    return answer


def _kind(error: Exception) -> str:
    """What an error's class alone says."""
    return "refused" if isinstance(error, _REFUSALS) else "hung" if isinstance(error, TimeoutError) else ""


def _apply(operator: Operator, task: Task, answer: Answer) -> None:
    """Feed it until the time is over or the samples are out, then see how fast it was."""
    items = _ahead(itertools.islice(_items(operator, task, answer), task.samples))
    bursts: list[tuple[float, list[Row]]] = []
    begun = last = time.monotonic()
    flying, item = 0, next(items, None)
    while (flying or item is not None) and not (bursts and last - bursts[0][0] > task.seconds):
        while item is not None and operator.want() > 0:
            operator.put(item)
            flying, item = flying + 1, next(items, None)
        rows = operator.poll(0.2)
        flying -= len(rows)
        if rows:
            last = time.monotonic()
            bursts.append((last, rows))
        elif time.monotonic() - last > task.patience_s:
            waits = waits_for(operator)
            raise TimeoutError(f"no sample was finished in {task.patience_s:g} s{f': {waits}' if waits else ''}")
    _count(answer, begun, bursts)


def _count(answer: Answer, begun: float, bursts: list[tuple[float, list[Row]]]) -> None:
    """The rate from the first rows, which waited for the engine to fill, to the last; of all where there is one lot."""
    rows = [row for _, some in bursts for row in some]
    if not rows:
        raise ShardError("no sample could be read")
    failed = Counter(f"{row.reason}: {row.detail}"[:200] for row in rows if row.status == FAILED)
    answer.reasons = dict(failed.most_common(3))
    if 2 * sum(failed.values()) >= len(rows):
        answer.kind, answer.problem = "samples failed", f"{sum(failed.values())} of {len(rows)}: {next(iter(failed))}"
        return
    first, last = bursts[0][0], bursts[-1][0]
    counted = rows[len(bursts[0][1]) :]
    if 2 * len(counted) < len(rows) or last <= first:
        first, counted = begun, rows
    good = [row for row in counted if row.status == OK]
    answer.samples, answer.seconds = len(counted), last - first
    answer.rate = len(counted) / answer.seconds
    answer.tokens = sum(row.values.get("tokens") or 0 for row in good) / answer.seconds


def _items(operator: Operator, task: Task, answer: Answer) -> Iterator[Item]:
    """This engine's share of the sample: whole shards, or of few shards every so many samples. Counts what it reads."""
    shards = [Shard(**shard) for shard in task.shards]
    whole = len(shards) >= task.engines
    for shard in shards[task.engine :: task.engines] if whole else shards:
        before, number = (answer.read, answer.read_bytes), 0
        try:
            for item in operator.read(shard):
                if isinstance(item, Damage) or item.lost:
                    continue
                number += 1
                answer.read, answer.read_bytes = answer.read + 1, answer.read_bytes + item.size
                if whole or item.index % task.engines == task.engine:
                    yield item
        except (ShardError, OSError):
            continue  # others tell as much
        answer.read, answer.read_bytes = before[0] + number, before[1] + shard.bytes  # its headers, too


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, read in a thread of its own."""
    read: queue.Queue[Item | Exception | None] = queue.Queue(READ_AHEAD)

    def fill() -> None:
        try:
            for item in items:
                read.put(item)
            read.put(None)
        except Exception as error:  # noqa: BLE001 - raised where the items are taken
            read.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while (found := read.get()) is not None:
        if isinstance(found, Exception):
            raise found
        yield found


if __name__ == "__main__":
    file = Path(sys.argv[1])
    atomic.replace(file.with_suffix(".answer"), atomic.as_json(asdict(main(file))))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # requests in flight, and a library's threads, are not waited for; our keeper ends what is left
