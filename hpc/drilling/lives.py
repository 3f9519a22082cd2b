"""The lines `signals`, `requeue` and `cancel`: follows a job of one element (hpc.drilling.life) through its lives."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

from hpc.base import journal
from hpc.drilling import jobs
from hpc.drilling.jobs import LIMIT_MIN
from hpc.drilling.session import GONE, Session, SlurmJob
from hpc.slurm import commands as slurm

NAMES = ("signals", "requeue", "cancel")
_NO_USR2 = "it ends with 75 after USR2, which did not come"
_SHOWN_S = 10.0  # that a shared file system may take to show what a job that ended has written


class Lives:
    """Submits the job, and follows it."""

    def __init__(self, session: Session) -> None:
        self._session, self._board = session, session.board
        session.place.lives.mkdir()
        launcher = jobs.lives(session)
        number = launcher.submit_script()
        log = session.place.run.logs / launcher.log_pattern.replace("%A", number).replace("%a", "0")
        self.job = SlurmJob(number, log)
        self._gone = 0.0  # since when Slurm does not list it any more, 0.0 while it does
        self._cancelled = False

    @property
    def done(self) -> bool:
        return all(name in self._board.lines for name in NAMES)

    def look(self) -> None:
        """Take in what has happened since the last look."""
        if self.done:
            return
        first, second = (self._events(number) for number in (0, 1))
        state = self.job.state()
        self._gone = (self._gone or time.monotonic()) if state == GONE else 0.0
        if "signal" in first and "signals" not in self._board.lines:
            self._signals(first)
        if "start" in second and "requeue" not in self._board.lines:
            waited = max(0.0, second["start"]["t"] - first.get("signal", second["start"])["t"])  # for people alone
            self._board.judge("requeue", "", f"started again after {waited:.0f} s, on {second['start']['host']}", "")
        if "start" in second and not self._cancelled:
            self._cancel()
        told = second if "start" in second else first
        over = bool(self._gone) and time.monotonic() - self._gone > _SHOWN_S
        if "spared" in told or (over and "signal" in told and "SIGTERM" in told["signal"]["names"]):
            self._killed(told)
        if over:
            self._ended_early(first)

    def leave(self) -> None:
        """Add the lines that are still open: the drill's time is over."""
        self.look()
        self._board.not_tried(NAMES, self.job.why_not(), again=True)

    def _events(self, number: int) -> dict[str, dict[str, Any]]:
        """The last event of each kind in the journal of one life."""
        folder, name = self._session.place.lives, f"{number}.jsonl"
        found = journal.read(folder / name)[0] if name in os.listdir(folder) else []
        return {event["event"]: event for event in found}

    def _signals(self, first: dict[str, dict[str, Any]]) -> None:
        names, after = first["signal"]["names"], first["signal"]["after"]
        problem = "" if "SIGUSR2" in names else f"at the end of {LIMIT_MIN} minutes TERM came, and no USR2 before"
        self._board.judge(
            "signals", problem, f"after {after:.0f} s of {LIMIT_MIN} minutes",
            "no wrapper between srun and python that keeps signals (cluster.python, cluster.container, "
            "cluster.srun_args); slots drain by SLURM_JOB_END_TIME all the same",
        )  # fmt: skip
        if problem:
            self._board.not_tried(["requeue"], _NO_USR2)

    def _cancel(self) -> None:
        self._cancelled = True
        try:
            slurm.run(["scancel", self.job.number], timeout=60)
        except (OSError, subprocess.TimeoutExpired):  # at its time limit it gets the same signals
            pass

    def _killed(self, told: dict[str, dict[str, Any]]) -> None:
        """Judge `cancel`: how long after TERM the process was killed, if it was."""
        after = told.get("alive", {}).get("after", 0.0)
        spared, need = "spared" in told, self._session.drain_s
        problem = "" if spared or after >= need else f"KILL came {after:.0f} s after TERM, a slot may need {need:.0f} s"
        seen = f"TERM came, and no KILL for {after:.0f} s; a slot needs {need:.0f}"
        self._board.judge(
            "cancel", problem, seen, f"map.drain_s={max(1, int(after) - 1)}, or KillWait=30 in slurm.conf"
        )

    def _ended_early(self, first: dict[str, dict[str, Any]]) -> None:
        """Judge what is left, now that Slurm does not list the job any more."""
        words = f"job {self.job.number} ended: {self.job.last_words()}"
        if "start" not in first:
            self._board.not_tried(NAMES, f"it said nothing; {words}", again=True)
        if "signals" not in self._board.lines:
            to_set = "no wrapper between srun and python that dies of signals (cluster.python, cluster.srun_args)"
            self._board.judge("signals", f"the worker ended without a word; {words}", "", to_set)
        if self._board.unfit("signals"):
            self._board.not_tried(["requeue"], _NO_USR2)
        self._board.judge(
            "requeue", f"it did not start again; {words}", "",
            "`scontrol requeue` allowed, and on PATH on the nodes (cluster.prelude); JobRequeue=1 in slurm.conf; the "
            "worker's exit code must come through cluster.python and cluster.srun_args",
        )  # fmt: skip
        self._board.not_tried(["cancel"], "there was no second life to be cancelled")
