"""Try a map job's work on a few of its own samples, as a slot would do it (`hpc.launch CONFIG --check` starts this).

    python -m hpc.map.check RUN --check ID

Reads RUN/checks/ID.json (the launch, and shards from all over its plan), loads what the work loads, applies it to their
first samples and writes what came of it to RUN/checks/ID.answer.json. Nothing is claimed or published.

Exit codes: 0 the work works, 1 it does not (the answer says why; a process that dies leaves none).
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc.base import atomic
from hpc.base.errors import Exit, Parser, ShardError, UserError
from hpc.config.devices import devices
from hpc.map import machine, preflight
from hpc.operator import FAILED, OK, Damage, Item, Operator, Row, Shard, waits_for
from hpc.run import column as columns
from hpc.run.directory import Run, Submission

log = logging.getLogger("check")

SAMPLES = 4  # of as many shards, from all over the plan: folders differ
AWAY_S = 30.0  # that a service may be away
LAST = 15  # lines of a log that are shown
_FOR_PEOPLE = (UserError, ShardError, ValueError, FileNotFoundError, TimeoutError)  # errors whose texts explain them


@dataclass
class Answer:
    """What came of a check.

    problem: why the work does not work, "" if it does. said: the last lines of the log, where they may tell more.
    unread: shards that could not be read. setup_s, seconds: of the set-up, and of the samples.
    """

    host: str
    device: str
    problem: str = ""
    said: list[str] = field(default_factory=list)
    setup_s: float = 0.0
    seconds: float = 0.0
    unread: list[str] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)


def task_file(run: Run, name: str) -> Path:
    return run.checks / f"{name}.json"


def answer_file(run: Run, name: str) -> Path:
    return run.checks / f"{name}.answer.json"


def write(run: Run, submission: Submission, shards: list[Shard]) -> None:
    """Write what the check is to try: the launch, and SAMPLES shards from all over the plan."""
    run.checks.mkdir(exist_ok=True)
    count = min(SAMPLES, len(shards))
    chosen = [shards[number * len(shards) // count] for number in range(count)]
    task = {"submission": asdict(submission), "shards": [asdict(shard) for shard in chosen]}
    atomic.replace(task_file(run, submission.uuid), atomic.as_json(task, indent=1), durable=True)


def attempt(run: Run, submission: Submission, shards: list[Shard]) -> Answer:
    """Load the work's models and apply them to a few samples."""
    config = submission.checked()
    device = next(iter(devices(config.run.cluster)))
    os.environ["CUDA_VISIBLE_DEVICES"] = device["CUDA_VISIBLE_DEVICES"]
    answer = Answer(machine.describe()["host"], device["device"])
    operator = config.operator()
    try:
        answer.problem = "; ".join(preflight.problems(run, submission, config, operator))
        if not answer.problem:
            begun = time.monotonic()
            # A step that hangs in a library ends with every thread's stack in the log, and without an answer.
            faulthandler.dump_traceback_later(config.run.map.setup_s, exit=True)
            operator.setup(device["device"])
            answer.setup_s = time.monotonic() - begun
            faulthandler.dump_traceback_later(config.run.map.hang_s + 2 * AWAY_S, exit=True)
            _apply(operator, shards, config.run.map.hang_s, answer, submission.identity)
    except Exception as error:
        answer.problem = error_text(error)
        if not isinstance(error, _FOR_PEOPLE):
            answer.said = last_lines(Path(machine.log_name()))
        log.exception("the work fails")
    finally:
        faulthandler.cancel_dump_traceback_later()
        operator.close()
    return answer


def error_text(error: Exception) -> str:
    """An error for people; its type is named where its text alone would not explain it."""
    return str(error) if isinstance(error, _FOR_PEOPLE) and str(error) else f"{type(error).__name__}: {error}"


def last_lines(path: Path) -> list[str]:
    """The end of a log, [] where there is none."""
    try:
        return [line for line in path.read_text(errors="replace").splitlines() if line.strip()][-LAST:]
    except OSError:
        return []


def _apply(operator: Operator, shards: list[Shard], patience_s: float, answer: Answer, identity: str) -> None:
    begun = time.monotonic()
    a_shard = -(-SAMPLES // len(shards))
    items = [item for shard in shards for item in _items(operator, shard, a_shard, answer)]
    place = {(item.shard, item.index): number for number, item in enumerate(items)}
    rows = sorted(_rows(operator, items, patience_s), key=lambda row: place[row.shard, row.index])
    columns.to_table(rows, columns.schema(operator.column(), identity))  # raises for values of another type
    answer.seconds = time.monotonic() - begun
    names = [name for name, _ in operator.column().fields]
    answer.samples = [_shown(row, names) for row in rows]
    answer.problem = _verdict(rows, answer.unread)


def _items(operator: Operator, shard: Shard, most: int, answer: Answer) -> list[Item]:
    """The first samples of a shard; [] where it cannot be read, which is noted."""
    found, lost = list[Item](), False
    try:
        for item in operator.read(shard):
            if isinstance(item, Damage):
                answer.unread.append(f"{shard.uri}: {item.reason}{f': {item.detail}' if item.detail else ''}")
                break
            if item.lost:
                answer.unread += [] if lost else [f"{shard.uri}: {item.lost}"]
                lost = True
                continue
            found.append(item)
            if len(found) == most:
                break
    except (ShardError, OSError) as error:
        answer.unread.append(f"{shard.uri}: {error_text(error)}")
    return found


def _rows(operator: Operator, items: list[Item], patience_s: float) -> Iterator[Row]:
    """What the work makes of these samples. Raises TimeoutError where nothing is finished for `patience_s` seconds, or
    where the operator waits for a service for longer than AWAY_S.
    """
    left, waiting = len(items), deque(items)
    finished = served = time.monotonic()  # when a sample was last finished; when it last waited for no service
    while left:
        while waiting and operator.want() > 0:
            operator.put(waiting.popleft())
        made = operator.poll(0.5)
        left -= len(made)
        yield from made
        now = time.monotonic()
        why = waits_for(operator)
        served, finished = served if why else now, now if made else finished
        if now - served > AWAY_S:
            raise TimeoutError(why)
        if now - finished > patience_s:
            raise TimeoutError(f"no sample was finished in {patience_s:g} s (map.hang_s)")


def _verdict(rows: list[Row], unread: list[str]) -> str:
    """What is wrong with these rows, "" where the work works."""
    if not rows:
        return f"no sample could be read: {'; '.join(unread[:3]) or 'the shards looked into are empty'}"
    ok, failed = sum(row.status == OK for row in rows), [row for row in rows if row.status == FAILED]
    if ok and not failed:
        return ""
    reasons = Counter(f"{row.reason}{f' ({row.detail})' if row.detail else ''}" for row in failed or rows)
    said = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
    return f"of {len(rows)} samples {ok} are ok: {said}"


def _shown(row: Row, names: list[str]) -> dict[str, Any]:
    """A row for people: digests and null values are left out."""
    seen = {name: row.values.get(name) for name in names if "sha256" not in name}
    values = {name: _text(value) for name, value in seen.items() if value is not None}
    why = ": ".join(filter(None, (row.reason, row.detail)))
    return {"shard": row.shard, "key": row.key, "status": row.status, "why": why, "values": values}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:400]} …"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.map.check", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--check", required=True, metavar="ID", help="which check of it")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    run = Run(args.run)
    task = json.loads(task_file(run, args.check).read_bytes())
    answer = attempt(run, Submission(**task["submission"]), [Shard(**shard) for shard in task["shards"]])
    atomic.replace(answer_file(run, args.check), atomic.as_json(asdict(answer), indent=1), durable=True)
    return Exit.INCOMPLETE if answer.problem else Exit.COMPLETE


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a library's threads must not keep a process that is done
