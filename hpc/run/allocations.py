"""How long each life of a slot has held its node, as the one that started it recorded it: `<run>/allocations/`.

`<launch>-<slot>.jsonl` gets a line as a life begins and one as it ends, from the slot's batch script (which writes it
in shell, see hpc.slurm.submission) or the local supervisor:

    {"event": "begin", "life": "4711.0", "job": "4710_3", "host": "n1", "up": 8123.45, "t": 1795899648, "since": 0}

`up` counts seconds since the machine's boot, so that clocks that are set do no harm. `since` is when Slurm says that
the job began, 0 where it does not. The worker finds `life` in $HPC_LIFE and repeats it in its heartbeat and journal. A
life that was killed together with its script has no end here.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.base import atomic, journal

VARIABLE = "HPC_LIFE"
BEGIN, END = "begin", "end"
LONGEST_PROLOG_S = 300.0  # between a job's start and its script's; where it seems longer, two clocks differ


@dataclass
class Allocation:
    """The time for which one life has held its node.

    launch: the submission's uuid; job: the array element. begun, ended: seconds since the machine's boot. t: when it
    began, by the machine's wall clock. since: when Slurm says that the job began, by its controller's clock, 0.0 where
    it does not say.
    """

    launch: str
    job: str
    host: str
    begun: float
    t: float
    since: float
    ended: float | None = None

    @property
    def before(self) -> float:
        """Seconds for which Slurm's job had the node before the life's script began; 0.0 where that is not known."""
        gap = self.t - self.since
        return gap if self.since and 0.0 <= gap <= LONGEST_PROLOG_S else 0.0

    def lasted(self, last: float | None = None) -> float | None:
        """Seconds from the job's start to the life's end or to `last`, whichever is later; None where neither is known.

        Args:
            last: its last sign of life, seconds since the machine's boot.
        """
        ends = [end for end in (self.ended, last) if end is not None]
        return self.before + max(0.0, max(ends) - self.begun) if ends else None


class Allocations:
    """The allocations of all lives of a run. Each `refresh` reads on from where the last one stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}
        self.lives: dict[str, Allocation] = {}  # by life

    def refresh(self) -> dict[str, Allocation]:
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder.is_dir() else []:
            events, self._offsets[path.name] = journal.read(path, self._offsets.get(path.name, 0))
            for event in events:
                try:
                    self._take(path.stem.rpartition("-")[0], event)
                except (KeyError, TypeError, ValueError):  # damaged: as if torn
                    continue
        return self.lives

    def _take(self, launch: str, event: dict[str, Any]) -> None:
        life, up, t = str(event["life"]), float(event["up"]), float(event["t"])
        if event["event"] == BEGIN:
            place = (launch, str(event.get("job", "")), str(event.get("host", "")))
            self.lives[life] = Allocation(*place, up, t, float(event.get("since", 0.0)))
        elif event["event"] == END and life in self.lives:
            self.lives[life].ended = up


def write(folder: Path, launch: str, slot: int, event: str, life: str) -> None:
    """Record the begin or the end of a life, for the local supervisor. A full disk must not stop the work: what cannot
    be written is left out, and the life's own signs of life count instead.
    """
    facts = {"event": event, "life": life, "host": socket.gethostname(), "up": uptime_s(), "t": int(time.time())}
    try:
        with open(folder / f"{launch}-{slot}.jsonl", "ab", buffering=0) as file:
            file.write(atomic.as_json(facts) + b"\n")
    except OSError:
        return


def uptime_s() -> float:
    """Seconds since this machine's boot, as a shell reads them."""
    return float(Path("/proc/uptime").read_text().split()[0])


def this_life() -> str:
    """The name that this process's life has in these files, "" where the one that started it gave none."""
    return os.environ.get(VARIABLE, "")
