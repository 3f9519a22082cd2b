"""What several machines do at the same time in one folder. They make the same names, replace files that others read,
and measure how late they see what others have changed.

Each participant writes files of its own and records what it saw, by its own monotonic clock; no two clocks are
compared. The reports hold all of that, and the drill reads them at the end. A meeting goes on without those that do not
come.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpc.base import atomic
from hpc.drilling.file_system import Readings, content
from hpc.map import machine

NAMES, RACE_S = 500, 1.0  # how many names all try to make, one after the other, and for how long at most
REPLACE_S = 2.0  # for which each replaces its file
QUIET_S = 5.0  # without a change, so that the caches of file systems hold old values before the change comes
_POLL_S = 0.05
COME_S = 90.0  # to wait at least for a participant that starts late, or is on a busy machine
_STEPS = ["came", "raced", "replaced", "laid", "looked"]


@dataclass
class Report:
    """What one participant saw. wins: names that it made. late: seconds until it saw a change of the others, by the
    kind of change; None where it did not see it at all. absent: participants that it did not see come.
    """

    name: str
    host: str
    wins: list[str] = field(default_factory=list)
    refused: str = ""  # an error of link() that is no refusal
    reading: str = ""  # what is wrong with readings beside replacements
    readings: int = 0
    late: dict[str, float | None] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    local: dict[str, tuple[str, str]] = field(default_factory=dict)  # hpc.drilling.file_system's answers there

    @classmethod
    def read(cls, path: Path) -> Report | None:
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


class Meeting:
    """One participant of the meeting.

    Args:
        names: of all participants. patience_s: to wait for those that are late, and for changes that are not seen yet.
        stop: whether to give up.
    """

    def __init__(self, folder: Path, me: str, names: list[str], patience_s: float, stop: Callable[[], bool]) -> None:
        self._folder, self._me, self._patience_s, self._stop = folder, me, patience_s, stop
        self._others = [name for name in names if name != me]
        self.report = Report(me, machine.describe()["host"])

    def attend(self) -> Report:
        """Go through all steps; returns the report."""
        atomic.replace(self._folder / f"whole-{self._me}", content(0))
        self._wait_for_others("came")
        self._race()
        self._wait_for_others("raced")
        self._replace()
        self._wait_for_others("replaced")
        self._look_how_late()
        return self.report

    def write(self) -> None:
        atomic.replace(self._folder / f"report-{self._me}.json", atomic.as_json(asdict(self.report)))

    def _wait_for_others(self, step: str) -> None:
        """Wait until each other participant has come to a step. Either sign of that will do: a new name in a folder, or
        the content of a file. One that does not come is not waited for again.
        """
        atomic.replace(self._folder / "steps" / f"{step}-{self._me}", b"")
        atomic.replace(self._folder / f"step-{self._me}", step.encode())
        end = time.monotonic() + max(self._patience_s, COME_S)
        while missing := [name for name in self._others if not self._has_come(name, step)]:
            if self._stop():  # then nobody is recorded as absent
                self._others = []
            elif time.monotonic() > end:
                self.report.absent += missing
                self._others = [name for name in self._others if name not in missing]
            time.sleep(_POLL_S)

    def _has_come(self, name: str, step: str) -> bool:
        come = _STEPS[_STEPS.index(step) :]
        listed = set(os.listdir(self._folder / "steps"))
        return any(f"{later}-{name}" in listed for later in come) or self._step(name) in come

    def _step(self, name: str) -> str:
        try:
            return (self._folder / f"step-{name}").read_text()
        except OSError:
            return ""

    def _race(self) -> None:
        """Try to make the name after the highest that is there: so one that is late tries the same as the others."""
        race, number, end = self._folder / "race", 0, time.monotonic() + RACE_S
        while number < NAMES and time.monotonic() < end:
            number = max([number, *(int(name) for name in os.listdir(race) if name.isdecimal())]) + 1
            try:
                if atomic.create(race / str(number), self._me.encode(), durable=False):
                    self.report.wins.append(str(number))
            except OSError as error:
                self.report.refused = str(error.strerror or error)
                return

    def _replace(self) -> None:
        """Replace our file again and again, and read those of the others meanwhile."""
        seen = {name: Readings() for name in self._others}
        number, end = 0, time.monotonic() + REPLACE_S
        while time.monotonic() < end:
            number += 1
            atomic.replace(self._folder / f"whole-{self._me}", content(number))
            for name, readings in seen.items():
                readings.look(self._folder / f"whole-{name}")
            time.sleep(0.002)
        self.report.reading = "; ".join(f"{r.problem()} ({name}'s)" for name, r in seen.items() if r.problem())
        self.report.readings = sum(readings.whole for readings in seen.values())

    def _look_how_late(self) -> None:
        """Look at the others' files, wait until caches hold their old state, change our own, and measure how long it
        takes until we see the changes of the others.

        All change theirs when all have come to that step. How long it takes to see that they have come is part of what
        is measured.
        """
        late = self._folder / "late"
        with open(late / f"grown-{self._me}", "ab", buffering=0) as growing:
            growing.write(b"old\n")
            atomic.replace(late / f"changed-{self._me}", b"old")
            self._wait_for_others("laid")
            for name in self._others:
                for _, seen in _changes(late, name):
                    seen()
            time.sleep(QUIET_S)
            self._wait_for_others("looked")
            begun = time.monotonic()
            growing.write(b"new\n")
            atomic.replace(late / f"changed-{self._me}", b"new...")
            atomic.replace(late / f"made-{self._me}", b"")
            waited = {(name, what): seen for name in self._others for what, seen in _changes(late, name)}
            found: dict[str, float | None] = {}
            while waited and time.monotonic() - begun < self._patience_s and not self._stop():
                for name, what in [key for key, seen in waited.items() if seen()]:
                    del waited[name, what]
                    found[what] = max(found.get(what) or 0.0, time.monotonic() - begun)
                time.sleep(_POLL_S if waited else 0.0)
            unseen: dict[str, float | None] = {} if self._stop() else {what: None for _, what in waited}
            self.report.late = found | unseen


def _changes(late: Path, name: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What participant `name` changes: (kind of change, whether we see it)."""
    changed, made, grown = late / f"changed-{name}", late / f"made-{name}", late / f"grown-{name}"
    yield "a replaced file, by open", lambda: _bytes(changed) == b"new..."
    yield "a replaced file, by stat", lambda: _size(changed) == len(b"new...")
    yield "a new name, by stat", made.exists
    yield "a new name, by listing", lambda: made.name in os.listdir(late)
    yield "a growing file, by open", lambda: _bytes(grown).endswith(b"new\n")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
