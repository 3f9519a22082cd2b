"""One drill: where it works, by which settings, until when, and what it has found."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpc.base.errors import Unanswered
from hpc.config import RunConfig
from hpc.config.cluster_checks import slurm_seconds
from hpc.drilling.board import Board
from hpc.drilling.place import Place
from hpc.map.check import last_lines
from hpc.map.drain import TERM_S
from hpc.slurm import commands as slurm
from hpc.slurm.queue import pending, wait_for_live_jobs

LATE_SHARE = 4  # changes must be seen within this part of a lease (a quarter), so that a heartbeat is not missed
GONE, UNKNOWN = "gone", "unknown"
_SOME = "its nodes"
_ASK_S = 1.0  # between two questions to Slurm


@dataclass
class Session:
    """One drill.

    nodes: how many take part. minutes: that it may take. code: the snapshot's name. late_s: how late machines see one
    another's changes, once that is known. granted_s: the partition's time limit. end: of the drill, as time.monotonic()
    counts. watched: functions to call whenever something is waited for, such as one that follows another job.
    """

    place: Place
    config: RunConfig
    board: Board
    nodes: int
    minutes: float
    code: str = ""
    late_s: float = 0.0
    granted_s: float = math.inf
    end: float = field(init=False)
    watched: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = time.monotonic() + 60 * self.minutes

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    @property
    def left_s(self) -> float:
        return max(0.0, self.end - time.monotonic())

    @property
    def time_over(self) -> str:
        """Why something was not tried, "" while there is time."""
        return "the time was over" if self.over else ""

    @property
    def limit(self) -> str:
        """The time limit of a job that has to end with the drill, as Slurm writes it."""
        granted = min(slurm_seconds(self.config.cluster.time), self.granted_s) / 60
        return str(max(1, math.floor(min(self.minutes + 2, granted))))

    @property
    def patience_s(self) -> float:
        """Seconds to wait until a change of another machine is seen; longer than that is unfit."""
        return self.config.map.lease_s / LATE_SHARE + 1.0

    @property
    def drain_s(self) -> float:
        """Seconds that slots take to drain after TERM."""
        return min(self.config.map.drain_s, TERM_S)

    def wait(self, condition: Callable[[], object], most_s: float = math.inf) -> bool:
        """Wait until a condition holds. False where the drill's time, or `most_s` seconds, are over first."""
        end = min(self.end, time.monotonic() + most_s)
        while not condition():
            if time.monotonic() > end:
                return False
            for look in self.watched:
                look()
            time.sleep(0.2)
        return True


class SlurmJob:
    """A job of the drill, by what squeue says of it. number: its id."""

    def __init__(self, number: str, log: Path) -> None:
        self.number, self._log = number, log
        self._state, self._asked, self.reason = "PENDING", 0.0, ""
        self._submitted = time.monotonic()
        self.waited_s = 0.0
        self._nodes = _SOME

    def state(self) -> str:
        """PENDING, RUNNING, ..., GONE, or UNKNOWN where the controller does not answer."""
        if self._state == GONE or time.monotonic() - self._asked < _ASK_S:
            return self._state
        try:
            live = wait_for_live_jobs([self.number], patience_s=0)
            self._state = next(iter(live.values()), GONE)
        except Unanswered:
            self._state = UNKNOWN
        if self._state == "PENDING":
            self.reason = pending([self.number]).get(self.number, (0, self.reason))[1]
            self.waited_s = time.monotonic() - self._submitted
        self._asked = time.monotonic()
        return self._state

    def nodes(self) -> str:
        """The names of its nodes, as Slurm gave them when this was first called; "its nodes" where it gave none."""
        if self._nodes == _SOME:
            try:
                self._nodes = slurm.run(["squeue", "-h", "-j", self.number, "-o", "%N"], 30).stdout.strip() or _SOME
            except (OSError, subprocess.TimeoutExpired):
                pass
        return self._nodes

    def why_not(self) -> str:
        """Why it has done nothing yet."""
        if self._state == UNKNOWN:
            return "Slurm's controller does not answer"
        waits = f"job {self.number} has waited to start for {self.waited_s:.0f} s"
        if self._state == "PENDING":
            return f"{waits} ({self.reason or 'no reason given'})"
        return "the time was over" if self._state == GONE else f"job {self.number} ran, and the time was over"

    def last_words(self) -> str:
        """The end of its log, in one line: the log itself is removed with the drill."""
        return " / ".join(last_lines(self._log)[-4:]) or "its log is empty"
