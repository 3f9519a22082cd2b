"""What several machines do at the same time in one folder: they make the same names, replace files while others read
them, and look how late they see what the others have changed.

Each writes files of its own and remembers what it saw, by its own monotonic clock; no two clocks are compared. All of
it is in the reports, which the drill reads at the end. A meeting goes on without those who do not come.
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

NAMES, RACE_S = 500, 1.0  # that all try to make, one after the other
REPLACE_S = 2.0
QUIET_S = 5.0  # without a change, so that caches have something old to hold on to
_POLL_S = 0.05
COME_S = 90.0  # at least, for one that starts late, or works on a busy machine
_STEPS = ["came", "raced", "replaced", "laid", "looked"]


@dataclass
class Report:
    """What one of a meeting saw. wins: names that it made; late: seconds, by what was looked at, None where it was not
    seen at all; absent: who did not come to it.
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
    """One of those who meet. names: all of them; patience_s: for those who are late, and for what is not seen yet."""

    def __init__(self, folder: Path, me: str, names: list[str], patience_s: float, stop: Callable[[], bool]) -> None:
        self._folder, self._me, self._patience_s, self._stop = folder, me, patience_s, stop
        self._others = [name for name in names if name != me]
        self.report = Report(me, machine.describe()["host"])

    def attend(self) -> Report:
        """From the first to the last step; the report."""
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
        """Until each has come to a step, as a new name in a folder or the content of a file tells, whichever earlier.
        Nobody is waited for twice in vain.
        """
        atomic.replace(self._folder / "steps" / f"{step}-{self._me}", b"")
        atomic.replace(self._folder / f"step-{self._me}", step.encode())
        end = time.monotonic() + max(self._patience_s, COME_S)
        while missing := [name for name in self._others if not self._has_come(name, step)]:
            if self._stop():  # nobody is to blame
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
        """All make the name behind the last: who comes late does not run after the others."""
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
        """Replace our file, and read those of the others meanwhile."""
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
        """All look at one another's files, are quiet, change them at about the same moment, and look until they see it.

        That moment is when all have come: what it takes to see that is counted with the rest.
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
    """What another one changes, and how we see it."""
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
