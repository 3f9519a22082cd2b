"""The local profile: a small supervisor that starts and restarts `hpc.worker` processes as Slurm would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from hpc.base import snapshot
from hpc.base.errors import FINAL, Exit, Parser
from hpc.base.processes import drain_with_parent
from hpc.run import allocations
from hpc.run.directory import Run, Submission

_PAUSE_S, _LONGEST_S = 0.5, 60.0  # the first and the longest pause before the next life; each short life doubles it


def command(run: Run, submission: Submission, slot: int) -> list[str]:
    """The command line of one slot."""
    which = ("--submission", submission.uuid, "--slot", str(slot))
    return snapshot.command(run.code / submission.code, "hpc.worker", str(run.path), *which)


class _Slot:
    """One slot: its process and its later lives."""

    def __init__(self, run: Run, submission: Submission, number: int) -> None:
        self._run, self._submission, self._number = run, submission, number
        self.code: int | None = None
        self._again = 0.0  # when it is restarted
        self._pause_s = 0.0
        self._start()

    def _start(self) -> None:
        self._begun = time.monotonic()
        self._again = 0.0
        log = self._run.logs / f"local-{self._submission.uuid}_{self._number}.log"
        self._life = f"{self._submission.uuid}-{self._number}.{time.time_ns()}"
        environment = {**os.environ, "HPC_LOG": str(log), allocations.VARIABLE: self._life}
        self._record_life(allocations.BEGIN)
        with open(log, "ab") as out:
            # a session of its own: the terminal's Ctrl-C reaches the supervisor alone, which drains its workers
            self._process = subprocess.Popen(
                command(self._run, self._submission, self._number), stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, env=environment, start_new_session=True, preexec_fn=drain_with_parent,
            )  # fmt: skip

    def poll(self, stopping: bool) -> bool:
        """Whether this slot is over; restarts it as the batch script would requeue it."""
        if self.code is not None:
            return True
        code = self._process.poll()
        if code is None:
            return False
        if self._life:
            self._record_life(allocations.END)
            self._life = ""
        if code in FINAL or stopping:
            self.code = code
            return True
        now = time.monotonic()
        if not self._again:
            self._pause_s = min(_LONGEST_S, max(_PAUSE_S, 2 * self._pause_s)) if now - self._begun < _LONGEST_S else 0.0
            self._again = now + self._pause_s
        if now >= self._again:
            self._start()
        return False

    def _record_life(self, event: str) -> None:
        allocations.write(self._run.allocations, self._submission.uuid, self._number, event, self._life)

    def signal(self, number: int) -> None:
        if self.code is None:
            self._process.send_signal(number)


def supervise(run: Run, submission: Submission) -> int:
    """Run all slots to their end, with live progress. Ctrl-C or TERM drains; a launch goes on from there.

    Returns:
        The exit code of the whole job: 0 complete, 1 incomplete, 2 some shards failed.
    """
    from hpc.map import status as map_status

    submission.state = "submitted"
    run.save(submission)
    stop: list[int] = []
    before = {n: signal.signal(n, lambda number, frame: stop.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    console = Console(highlight=False)
    slots = [_Slot(run, submission, n) for n in range(submission.slots)]
    told = 0
    tally = map_status.current(run)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            drawn = 0.0
            while not all([slot.poll(bool(stop)) for slot in slots]):
                if len(stop) > told:
                    told = len(stop)
                    for slot in slots:
                        slot.signal(signal.SIGTERM)
                    live.console.print("draining: finishing what is in flight (launch again to go on)")
                if time.monotonic() - drawn > 1.0 and console.is_terminal:
                    live.update(map_status.render(map_status.read_status(run, tally)), refresh=True)
                    drawn = time.monotonic()
                time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for slot in slots:
            slot.signal(signal.SIGTERM)
    facts = map_status.read_status(run)
    console.print(map_status.render(facts))
    return Exit.USAGE if any(slot.code == Exit.USAGE for slot in slots) else int(facts["exit"])


def detach(run: Run, submission: Submission) -> Path:
    """Start the supervisor as a process that does not end with this terminal; returns its log."""
    log = run.logs / f"local-{submission.uuid}.log"
    submission.state = "submitted"
    run.save(submission)
    with open(log, "ab") as out:
        subprocess.Popen(
            [sys.executable, "-m", "hpc.map.local", str(run.path), "--submission", submission.uuid],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    return log


def main() -> int:
    parser = Parser(prog="python -m hpc.map.local", description="Supervise a recorded launch here.")
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--submission", required=True, help="which launch")
    args = parser.parse_args()
    run = Run(args.run)
    return supervise(run, run.submission(args.submission))


if __name__ == "__main__":
    sys.exit(main())
