"""An engine process as its agent sees it: started, fed, watched, killed and started again."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any, Protocol

from hpc.base.processes import leave_signals_to_parent
from hpc.config import MapConfig
from hpc.map.drain import Drain
from hpc.map.engine_time import BROKEN, IDLE, EngineTime
from hpc.map.in_flight import Held, InFlight
from hpc.run.directory import Run, Submission

log = logging.getLogger("agent")

# Deaths in a row without a finished sample, after which the engine's device is given up. There may be more of them
# while samples are in flight: of neighbours that each kill, it takes three deaths to find the first and two for each
# next.
RESTARTS, RESTARTS_IN_FLIGHT = 3, 7
HANGS = 2  # in a row without a finished sample: the device is broken
DUMP_S = 3.0  # between SIGABRT (every thread's stack goes to the log) and SIGKILL
STUCK_S = 30.0  # after SIGKILL, when the kernel does not let go of a process (a dead driver or file system)


class Owner(Protocol):
    """The agent, as its engines see it."""

    run: Run
    submission: Submission
    settings: MapConfig
    selector: selectors.BaseSelector
    instance: str
    drain: Drain

    @property
    def work(self) -> Collection[tuple[int, str]]:
        """(engine, shard id) of all that is being worked on."""

    def on_event(self, engine: EngineProcess, event: dict[str, Any]) -> None:
        """The engine reports on a shard, or that its storage fails."""

    def on_death(self, engine: EngineProcess, why: str, held: Held) -> bool:
        """The engine died. Returns whether a shard that has killed engines before is to blame."""

    def on_broken(self, reason: str, words: str) -> None:
        """The engine ended during its set-up with an error of its own, not by a signal."""

    def release(self, engine: EngineProcess) -> None:
        """Release the claims of the shards that the engine was working on."""


class EngineProcess:
    """One engine on one device."""

    def __init__(self, index: int, device: dict[str, str], agent: Owner, spent: EngineTime) -> None:
        self.index, self._device, self._agent, self.time = index, device, agent, spent
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._fruitless = 0  # deaths in a row without a finished sample between
        self.given_up = False
        self.last_words = ""
        self.unread: list[tuple[str, int]] = []  # (shard, generation) that it was only reading at deaths in a row
        self._reset()

    def _reset(self) -> None:
        self.ready = self.hungry = False
        self.done = 0  # samples since its start, as it reports them
        self._changed = time.monotonic()  # when `done` last grew, or it became ready
        self.waiting = ""  # the service that it waits for, and why
        self._served = time.monotonic()  # when it last waited for none
        self._aborted = 0.0
        self._why = ""
        self._broken: dict[str, str] = {}  # what it said of its set-up, before it died
        self._hung = False

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def _inflight(self) -> Any:
        return self._agent.run.inflight / f"{self._agent.instance}.{self.index}"

    def start(self) -> None:
        self._reset()
        command = [
            sys.executable, "-P", "-m", "hpc.map.engine", str(self._agent.run.path),
            "--submission", self._agent.submission.uuid, "--device", self._device["device"],
            "--inflight", str(self._inflight),
        ]  # fmt: skip
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": self._device["CUDA_VISIBLE_DEVICES"]}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, preexec_fn=leave_signals_to_parent
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._agent.selector.register(self._process.stdout, 1, self)

    def send(self, command: dict[str, Any]) -> None:
        if self._process and self._process.stdin:
            try:
                self._process.stdin.write(json.dumps(command).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # it is dead; `receive` will see the end of its output

    def drain(self) -> None:
        """Tell it to finish what is in flight; while it sets up, it has nothing to finish and is killed."""
        self.hungry = False
        if self.ready:
            self.send({"do": "drain"})
        else:
            self.kill()

    def receive(self) -> None:
        """Its output is readable: take events, or notice its death."""
        assert self._process is not None and self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            data = b""
            if self._process.poll() is None:
                return
        if not data:
            self._died()
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._on_event(_parse(line))

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "ready":
            self.ready, self._changed = True, time.monotonic()
            self.time.turn_to(IDLE)
        elif kind == "broken":
            self._broken = event
        elif kind == "hungry":
            self.hungry = not self._agent.drain.reason
        elif kind == "progress":
            self.time.reported(event)
            self.waiting = str(event.get("waiting") or "")
            if event["done"] != self.done or self.waiting:
                self.done, self._changed = event["done"], time.monotonic()
            if not self.waiting:
                self._served = time.monotonic()
        elif kind in ("segment", "measured", "finished", "piloted", "failed", "storage"):
            self._changed = time.monotonic()
            self._agent.on_event(self, event)

    def watch(self) -> None:
        """Kill it when it makes no progress (first by SIGABRT, which logs its stacks); start it again after a death."""
        if self._process is None:
            if not (self.given_up or self._agent.drain.reason):
                self.start()
            return
        settings = self._agent.settings
        now = time.monotonic()
        silent = now - self._changed
        busy = any(index == self.index for index, _ in self._agent.work)
        if self._process.poll() is not None:
            self.receive()  # its pipe may be held open by a child of its own: do not wait for the end of the output
        elif self._aborted:
            if now - self._aborted > DUMP_S:
                self._process.kill()
            if now - self._aborted > DUMP_S + STUCK_S:
                self._died()
        elif not self.ready and silent > settings.setup_s:
            self._abort(f"setup took more than {settings.setup_s:.0f} s")
        elif self.ready and busy and silent > settings.hang_s:
            self._hung = True
            self._abort(f"no progress for {settings.hang_s:.0f} s")
        elif self.waiting and now - self._served > settings.away_s:
            self._agent.drain.fault = f"away for {settings.away_s:.0f} s: {self.waiting}"
        elif not busy:
            self._changed = now

    def _abort(self, why: str) -> None:
        assert self._process is not None
        log.error("engine %d: %s: killing it; the stacks of its threads follow", self.index, why)
        self._why, self._aborted = why, time.monotonic()
        self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """Stop it at once, without blame for what it has in flight."""
        if self._process is not None:
            self._process.kill()
            self._forget()
            self.time.died()

    def _forget(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        self._agent.selector.unregister(self._process.stdout)
        self._process.stdout.close()
        if self._process.stdin:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            code = self._process.wait(timeout=STUCK_S if self._aborted == 0 else 0.1)
        except subprocess.TimeoutExpired:
            log.error("engine %d cannot be killed: its device is given up", self.index)
            self.given_up, code = True, -signal.SIGKILL
        self._process, self._buffer, self.ready, self.hungry = None, b"", False, False
        return code

    def _died(self) -> None:
        was_ready = self.ready
        code = self._forget()
        self.time.died(self._hung)
        if self._agent.drain.reason or self._agent.drain.fault or self._agent.drain.misses_folders():
            self._agent.release(self)
            return
        why = self._why or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}")
        if not was_ready:
            why = f"setup: {self._broken.get('detail') or (code > 0 and _last_words()) or why}"
        log.error("engine %d died: %s", self.index, why)
        held = InFlight.read(self._inflight) if was_ready else Held()
        self.last_words = why
        known = self._agent.on_death(self, why, held)
        if not was_ready and code > 0:  # it ended itself, with an error
            self._agent.on_broken(self._broken.get("reason") or why, why)
        if held.finished:
            self._fruitless, self.unread = 0, []
        self._fruitless += not known  # of the deaths by one shard, only the first counts against this device
        self.unread += held.reading if not held.samples else []
        limit = HANGS if self._hung else RESTARTS_IN_FLIGHT if held.samples else RESTARTS
        if self._fruitless >= limit and not known:
            self.given_up = True
            log.error(
                "engine %d is given up: %d deaths in a row without a finished sample", self.index, self._fruitless
            )
        if self.given_up:
            self.time.turn_to(BROKEN)

    def describe(self) -> dict[str, Any]:
        state = "given up" if self.given_up else "ready" if self.ready else "starting" if self.alive else "dead"
        return {"device": self._device["CUDA_VISIBLE_DEVICES"] or "cpu", "state": state, "done": self.done,
                "waiting": self.waiting}  # fmt: skip


def _last_words() -> str:
    """The last line of the log; "" where the agent wrote it and not the engine."""
    try:
        with open(os.environ.get("HPC_LOG", ""), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return "" if f" {log.name} " in last else last[:500]


def _parse(line: bytes) -> dict[str, Any]:
    """An event; {} for anything else (a library that wrote to the saved stdout)."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
