"""Why a slot stops, and until when its engines may finish what they have in flight."""

from __future__ import annotations

import logging
import os
import signal
import time

from hpc.base import heartbeat
from hpc.base.errors import Exit
from hpc.config import RunConfig
from hpc.run.directory import Run

log = logging.getLogger("agent")

HAS_SUCCESSOR = "a later life of this slot has started"
TERM_S = 20.0  # to drain after SIGTERM: Slurm's KillWait is 30 s by default
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Drain:
    """Begins with the first of: a signal, the slot's own fault, what the run directory says, the time limit.

    Args:
        look_s: how often the run directory is looked at, seconds.
    """

    def __init__(self, run: Run, instance: str, beat: heartbeat.Heartbeat, config: RunConfig, look_s: float) -> None:
        self._run, self._instance, self._beat, self._config, self._look_s = run, instance, beat, config, look_s
        self.fault = ""  # why this slot cannot go on, found by itself (storage, breaker)
        self.reason = ""  # "" while it works
        self.until = 0.0  # as time.monotonic() counts
        self._signal = 0  # the last that arrived; set by a handler, acted on by `begins`
        self._terminated = False
        self._next_look = 0.0

    def listen(self) -> None:
        """Take signals: from now on they only set a flag."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number

    def begins(self) -> bool:
        """Whether the slot must stop as of now; true once."""
        if self.reason:
            if self._signal == signal.SIGTERM and not self._terminated:  # after USR2: now KILL is near
                self._terminated, self.until = True, min(self.until, time.monotonic() + TERM_S)
            return False
        reason, limit = self.fault, self._config.map.drain_s
        if self._signal == signal.SIGTERM:
            reason, limit = "SIGTERM", min(limit, TERM_S)
        elif self._signal:
            reason = signal.Signals(self._signal).name
        elif time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + self._look_s
            reason = reason or self._told_to_stop()
        if reason:
            log.info("draining: %s", reason)
            self.reason, self.until = reason, time.monotonic() + limit
        return bool(reason)

    def misses_folders(self) -> bool:
        """Whether folders of the run directory are gone. Then the slot stops, and no shard is charged for it."""
        if missing := self._run.missing():
            self.fault = f"storage: {missing} missing in {self._run.path}"
        return bool(missing)

    @property
    def signalled(self) -> bool:
        """Whether a signal has told the slot to stop."""
        return bool(self._signal)

    def code(self) -> Exit:
        """What a slot that has drained exits with."""
        if self._signal == signal.SIGTERM:
            return Exit.TERMINATED
        ended = self.reason.startswith(("cancelled", "paused", "SIGINT", HAS_SUCCESSOR))
        return Exit.INCOMPLETE if ended else Exit.REQUEUE

    def _told_to_stop(self) -> str:
        failing = self._beat.failing_s()
        if failing > self._config.map.lease_s:  # by now others count this slot as dead
            return f"storage: no heartbeat could be written for {failing:.0f} s"
        if heartbeat.has_successor(self._run.slots, self._instance):
            return HAS_SUCCESSOR
        if (text := self._run.control_text("cancelled")) is not None:
            return f"cancelled {text}".strip()
        if (text := self._run.control_text("pause")) is not None:
            return f"paused: {text}"
        return "time limit" if time.time() > self._deadline() else ""

    def _deadline(self) -> float:
        """When to drain, by the wall clock, for sites whose Slurm sends no signal before the time limit."""
        end = float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        return end - self._config.cluster.signal_delay_s
