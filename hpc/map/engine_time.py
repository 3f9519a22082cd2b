"""Where an engine's time goes: every second of its slot's life belongs to one kind, by the monotonic clock.

An engine reports how long it has waited (in `progress` events). Its agent sums up, and writes the sums into the slot's
heartbeat and, at the end, into the journal.

    work    samples are in its hands
    redone  it worked on samples that were lost before they were saved
    input   it waited for samples to be read or decoded
    start   before it is ready: the job's start, imports, the model; and its slot's last moments
    broken  it hung, was given up, waited for a service that is away, or its node is not to work for the run
    idle    there was no shard for it
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc.run import allocations

WORK, REDONE, INPUT, START, BROKEN, IDLE = KINDS = ("work", "redone", "input", "start", "broken", "idle")

RECENT_MINUTES = 15
_LONGEST_START_S = 3600.0  # that a job may have taken before us; beyond it two machines' clocks must differ


class EngineTime:
    """The time of one engine of a slot, through all of its processes.

    Args:
        before_s: seconds that the job had lasted when this object was made; they count as START.
    """

    def __init__(self, before_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._seconds[START] = before_s
        self._kind, self._at = START, clock()
        self._begin()

    def _begin(self) -> None:
        """Begin with a new process of the engine."""
        self._waited = {INPUT: 0.0, IDLE: 0.0}
        self._made = self._saved = 0  # samples
        self._worked = self._fruitless = 0.0  # seconds of work, all of it and since the last sample

    def turn_to(self, kind: str) -> None:
        """Count the time from now on as this kind."""
        self._add(self._kind, self._pass())
        self._kind = kind

    def reported(self, progress: dict[str, Any]) -> None:
        """Divide the time since the last report by what the process reports: `made` samples, and the seconds that it
        has waited for input (`input_s`) and for shards (`idle_s`), all since it was ready.
        """
        left = self._pass()
        parts = {}
        for kind, name in ((INPUT, "input_s"), (IDLE, "idle_s")):
            waited = float(progress.get(name, 0.0))
            parts[kind] = min(left, max(0.0, waited - self._waited[kind]))
            self._waited[kind] = max(waited, self._waited[kind])
            left -= parts[kind]
        parts[BROKEN if progress.get("waiting") else WORK] = left
        for kind, seconds in parts.items():
            self._add(kind, seconds)
        self._kind = max(parts, key=lambda kind: parts[kind])  # until the next report
        made = int(progress.get("made", 0))
        if made > self._made:
            self._made, self._fruitless = made, 0.0

    def saved(self, samples: int) -> None:
        self._saved += samples

    def died(self, hung: bool = False) -> None:
        """Its process has ended: the work that it had not saved is lost. Where it hung, the time since its last sample
        was no work at all.
        """
        if hung:
            self._kind = BROKEN
        self.turn_to(START)
        if hung:
            self._move(WORK, BROKEN, self._fruitless)
            self._worked -= self._fruitless
        self._move(WORK, REDONE, self.unsaved_s())
        self._begin()

    def unfit(self) -> None:
        """The node is not to work for the run: all time until now counts as BROKEN."""
        self.turn_to(BROKEN)
        self._move(START, BROKEN, self._seconds[START])

    def unsaved_s(self) -> float:
        """Seconds of work that are lost if it dies now."""
        made = max(self._made, self._saved)
        return self._worked * (1.0 - self._saved / made if made else 1.0)

    def seconds(self) -> dict[str, float]:
        """By kind, until now."""
        return {**self._seconds, self._kind: self._seconds[self._kind] + self._clock() - self._at}

    def _pass(self) -> float:
        """Seconds since the last look."""
        now = self._clock()
        span, self._at = now - self._at, now
        return span

    def _add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] += seconds
        if kind == WORK:
            self._worked += seconds
            self._fruitless += seconds

    def _move(self, kind: str, to: str, seconds: float) -> None:
        self._seconds[kind] -= seconds
        self._seconds[to] += seconds


class SlotTime:
    """The time of all engines of a slot.

    Args:
        weight: how many seconds a second of one engine counts: one for each of its GPUs.
    """

    def __init__(self, engines: int, weight: int = 1) -> None:
        before = before_s()
        self._weight = weight
        self.engines = [EngineTime(before) for _ in range(engines)]
        self._past: deque[tuple[float, float, float]] = deque(maxlen=RECENT_MINUTES)  # clock, seconds of work, of input

    def unfit(self) -> None:
        """The node is not to work for the run: all time of its engines until now counts as BROKEN."""
        for engine in self.engines:
            engine.unfit()

    def summed(self) -> dict[str, Any]:
        """The sums for heartbeat and journal: `seconds` by kind; `unsaved`, those of work that are lost if the slot
        dies now; `recent`, those of work and of waiting for input in the last minutes; `up`, since the machine's boot.
        """
        total = Counter(dict.fromkeys(KINDS, 0.0))
        for engine in self.engines:
            total.update({kind: seconds * self._weight for kind, seconds in engine.seconds().items()})
        unsaved = sum(engine.unsaved_s() for engine in self.engines) * self._weight
        now = time.monotonic()
        _, work, waited = self._past[0] if self._past else (now, 0.0, 0.0)
        recent = {WORK: max(0.0, round(total[WORK] - work, 3)), INPUT: round(total[INPUT] - waited, 3)}
        if not self._past or now - self._past[-1][0] >= 60:
            self._past.append((now, total[WORK], total[INPUT]))
        return {
            "seconds": {kind: round(total[kind], 3) for kind in KINDS}, "unsaved": round(unsaved, 3), "recent": recent,
            "up": allocations.uptime_s(),
        }  # fmt: skip


def before_s() -> float:
    """Seconds since this process began. Where the one that started it has not recorded that (hpc.run.allocations):
    since its job began, as Slurm says, if that is plausible.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    since_boot = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / ticks
    own = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    begun = "" if allocations.this_life() else os.environ.get("SLURM_JOB_START_TIME", "")
    of_job = time.time() - float(begun) if begun.isdigit() else 0.0
    return of_job if own < of_job < own + _LONGEST_START_S else own
