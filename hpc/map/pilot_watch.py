"""Compares what all slots make with the run's pilot, and pauses the run where it differs. One slot does so for all.

It reads the events `measured` in the journals of its launch, in the order of their times. How far it has read, and the
state of the comparison, stand in `<run>/pilot/<launch>.watch.json`, so that another slot goes on when this one dies.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc.base import atomic, heartbeat, journal
from hpc.map import breaker
from hpc.map.compare import Comparison, Measure, pilot_units
from hpc.map.election import Election
from hpc.run.directory import Run, Submission

log = logging.getLogger("agent")

HOW_TO_GO_ON = (
    "Look at its newest rows. To go on, launch again: it is compared anew, and with map.compare=false no more; to end "
    "it, cancel it (hpc.cancel)"
)
_LOOKS = 6  # the agent looks this many times at shared files for one time that the journals are read: they are many


class PilotWatch:
    """One slot's part in it; it does nothing where the launch is not compared with a pilot.

    Args:
        look_s: how often the agent looks at shared files that rarely change.
    """

    def __init__(
        self, run: Run, submission: Submission, instance: str, beat: heartbeat.Heartbeat,
        observer: heartbeat.Observer, look_s: float,
    ) -> None:  # fmt: skip
        self._run, self._launch, self._every_s = run, submission.uuid, _LOOKS * look_s
        self._compared = submission.compared
        self._comparison = Comparison(pilot_units(run, self._compared) if self._compared else [])
        self._election = Election(run.path / "pilot", f"{submission.uuid}.watch", instance, beat, observer)
        self._offsets: dict[str, int] = {}
        self._begun, self._next = False, 0.0

    def look(self) -> None:
        """Called in each turn of the agent's loop: does its work when it is time and this slot is the leader."""
        if not self._compared or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        try:
            if self._election.is_leader():
                self.read_on()
        except OSError as error:  # it is tried again; where the run directory is gone, the heartbeat's errors say so
            log.warning("comparison with the pilot: %s", error)

    def read_on(self) -> None:
        """Take in what the journals hold beyond what was read before, and pause the run where it differs."""
        file = state_file(self._run, self._launch)
        if not self._begun:
            self._begun = True
            if saved := read_state(file):
                self._offsets = saved["offsets"]
                self._comparison.restore(saved["steps"])
        for shard, made in self._new():
            if different := self._comparison.add(shard, made):
                reason = f"its rows are no longer like its pilot's: {different}. {HOW_TO_GO_ON}"
                log.warning("pausing the run: %s", reason)
                breaker.pause(self._run, reason)
                break
        atomic.replace(file, atomic.as_json({"offsets": self._offsets, "steps": self._comparison.dump()}))

    def _new(self) -> Iterator[tuple[str, Measure]]:
        """(shard, measure) of each event since the last call, in the order of their times."""
        found: list[tuple[float, str, Measure]] = []
        for path in self._run.journals.glob(f"{self._launch}-*.jsonl"):
            data, self._offsets[path.name] = journal.complete_lines(path, self._offsets.get(path.name, 0))
            for line in data.split(b"\n"):
                if b'"event": "measured"' in line and (event := journal.parse(line)):
                    try:
                        found.append((float(event["t"]), str(event["shard"]), Measure(*map(int, event["like"]))))
                    except (KeyError, TypeError, ValueError):  # damaged: passed over, as a torn line is
                        continue
        return ((shard, made) for _, shard, made in sorted(found, key=lambda one: one[0]))


def state_file(run: Run, launch: str) -> Path:
    return run.path / "pilot" / f"{launch}.watch.json"


def read_state(file: Path) -> dict[str, Any]:
    """{} where there is none, or a damaged one: then all is read again."""
    try:
        saved = json.loads(file.read_bytes())
        return saved if isinstance(saved, dict) and {"offsets", "steps"} <= saved.keys() else {}
    except (OSError, ValueError):
        return {}
