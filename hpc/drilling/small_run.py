"""The lines `engine`, `slot`, `stall` and `run`: a real launch of a small job, harmed while it works."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpc.base import atomic, heartbeat, journal, snapshot
from hpc.base.errors import Exit
from hpc.base.processes import die_with_parent
from hpc.config import dump
from hpc.drilling import jobs, work
from hpc.drilling.session import GONE, Session, SlurmJob
from hpc.map.check import last_lines
from hpc.run.directory import Run
from hpc.run.published import Published

NAMES = ("engine", "slot", "stall", "run")
NEEDED = ("access", "space", "link", "fsync", "rename", "exclusion", "attributes")  # lines that must be fit before it
HARMFUL = (*NEEDED, "start", "nodes")  # lines that must not be unfit
_LEAST_LEASE_S, _LATE_TIMES = (
    3.0,
    8,
)  # its lease: at least so long, and so many times as long as changes take to be seen
_VERIFY_S = 300.0


def drill(session: Session) -> None:
    """Do the small run, where all that it needs is fit."""
    if bad := session.board.unfit(*HARMFUL):
        session.board.not_tried(NAMES, f"unfit: {', '.join(bad)}")
    elif not session.board.fit(*NEEDED):
        session.board.not_tried(NAMES, session.time_over or "not all that it stands on was tried", again=True)
    else:
        SmallRun(session).drill()


class SmallRun:
    """The small run of a drill. lease_s: its lease, which is short, so that a slot that stands still soon counts as
    dead.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._board, self._place = session, session.board, session.place
        self.run = Run(session.place.path / session.place.name)  # its jobs get the drill's name
        self._orders = session.place.folder("orders")
        self.lease_s = max(_LEAST_LEASE_S, _LATE_TIMES * session.late_s)
        self._log = session.place.run.logs / "launch.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._job: SlurmJob | None = None

    def drill(self) -> None:
        try:
            if self._launch():
                self._harm()
                self._end()
        finally:
            if self._process and self._process.poll() is None:
                self._process.terminate()
                self._process.wait()

    # --- launch -----------------------------------------------------------------------------

    def _config(self) -> Path:
        session = self._session
        tree: dict[str, Any] = {
            "operator": "hpc.drilling.work.Work",
            "orders": str(self._orders),
            "name": self._place.name,
            "runs": str(self._place.path),
            "cluster": dataclasses.asdict(jobs.small(session)),
            "map": {
                "lease_s": self.lease_s, "save_s": 1.0, "drain_s": session.config.map.drain_s,
                "min_free_gb": session.config.map.min_free_gb,
            },
        }  # fmt: skip
        path = self._place.path / "work.yaml"
        path.write_text(dump(tree))
        return path

    def _launch(self) -> bool:
        command = [sys.executable, "-m", "hpc.launch", str(self._config())]
        environment = {**os.environ, "PYTHONPATH": _path(), "TMPDIR": str(self._place.temporary)}
        environment.pop("HPC_WEBHOOK", None)  # nobody is to be told of a drill
        local = self._session.config.cluster.kind == "local"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        if local:
            return True
        self._session.wait(lambda: self._process and self._process.poll() is not None)
        if self._process.poll() == Exit.COMPLETE:
            number = self.run.latest().job_ids[0]
            self._job = SlurmJob(number, self.run.logs / f"{number}_0.log")
            return True
        said = " / ".join(last_lines(self._log)[-4:])
        if self._process.poll() is None or "does not answer" in said:
            self._board.not_tried(NAMES, f"hpc.launch was not answered: {said}", again=True)
        else:
            self._board.judge("run", f"hpc.launch refuses it: {said}", "", "what it says")
            self._board.not_tried(NAMES, "the run was refused")
        return False

    # --- harm -------------------------------------------------------------------------------

    def _harm(self) -> None:
        session, board = self._session, self._board
        session.wait(lambda: len(self._working()) >= session.nodes or self._over(), 0.6 * 60 * session.minutes)
        if not self._working():
            if self._over():
                board.judge("run", self._why_not(), "", "what it says")
            board.not_tried(NAMES, self._why_not(), again=not self._over())
            return
        if self._ordered(work.ENGINE) and session.wait(lambda: self._again(work.ENGINE) or self._over()):
            words = f"killed on {self._host(work.ENGINE)}, and another one went on with its work"
            board.judge("engine", "" if self._again(work.ENGINE) else self._why_ended(), words, "see its log")
        self._ordered(work.SLOT)
        if session.nodes > 1:  # one stands still, another must be there to take over
            session.wait(lambda: self._left() > 1 or self._over() or board.unfit("requeue"), session.left_s / 2)
            if self._left() > 1:
                self._ordered(work.STALL)
        self._order(work.FINISH)

    def _left(self) -> int:
        """How many slots work. The one that was killed does not count, although its last heartbeat is still there."""
        return len(set(self._working()) - {self._taken(work.SLOT)})

    def _order(self, name: str) -> None:
        atomic.replace(self._orders / name, b"")

    def _ordered(self, name: str) -> bool:
        """Give an order; whether a slot has taken it."""
        self._order(name)
        return self._session.wait(lambda: self._taken(name) or self._over()) and bool(self._taken(name))

    def _taken(self, name: str) -> str:
        """The instance of the slot that has taken an order, "" where none has."""
        try:
            return (self._orders / f"{name}.taken").read_text()
        except OSError:
            return ""

    def _host(self, order: str) -> str:
        return str(heartbeat.read(self.run.slots, self._taken(order)).get("host", "?"))

    def _working(self) -> list[str]:
        """Instances that work, by their newest heartbeats."""
        return [f["instance"] for f in heartbeat.newest(self.run.slots, {}) if f.get("state") == "running"]

    def _again(self, order: str) -> bool:
        """Whether the slot that took an order has saved something since its engine died."""
        events, _ = journal.read(self.run.journals / f"{self._taken(order)}.jsonl")
        died = [n for n, event in enumerate(events) if event["event"] == "engine"]
        return bool(died) and any(event["event"] == "segment" for event in events[died[0] :])

    # --- the end ----------------------------------------------------------------------------

    def _end(self) -> None:
        if any(name not in self._board.lines for name in NAMES):
            complete = self._session.wait(lambda: self._complete() or self._over())
            self._stalled(complete and self._complete())
            self._order(work.RESUME)
            self._session.wait(self._over)
            self._slot()
            self._whole()
        self._board.not_tried(NAMES, self._why_not(), again=True)

    def _stalled(self, complete: bool) -> None:
        victim = self._taken(work.STALL)
        if self._session.nodes < 2:
            self._board.not_tried(["stall"], "one slot took part: nobody could take over (--nodes 2)")
        elif not victim:
            why = "one slot was left, the other one had not started (again): nobody could take over"
            self._board.not_tried(["stall"], why, again=not self._board.unfit("requeue"))
        elif complete:
            words = f"stopped on {self._host(work.STALL)}; others took over after {self.lease_s:.0f} s and finished"
            self._board.judge("stall", "", words, "")

    def _slot(self) -> None:
        victim = self._taken(work.SLOT)
        if not victim or not self._complete():
            return
        next_life = heartbeat.has_successor(self.run.slots, victim)
        again = "its next life started" if next_life else "its next life had not started when all was done"
        self._board.judge("slot", "", f"killed on {self._host(work.SLOT)}; {again}, and nothing was lost", "")

    def _whole(self) -> None:
        """Judge `run`: whether every row is as it must be, and every byte as it was published."""
        if not self._complete():
            if self._over():
                self._board.judge("run", f"it ended with shards left: {self._words()}", "", "see what its log says")
            return
        command = [sys.executable, "-m", "hpc.verify", str(self.run.path), "--full"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_VERIFY_S, check=False,
            env={**os.environ, "PYTHONPATH": _path()}, preexec_fn=die_with_parent,
        )  # fmt: skip
        problem = "" if done.returncode == Exit.COMPLETE else " / ".join(done.stdout.splitlines()[:3])
        config = work.WorkConfig()
        wanted = [f"s{shard:03d}-{index}" for shard in range(config.shards) for index in range(config.samples)]
        rows = [row for one in Published(self.run.path) for row in one.table().to_pylist()]
        found = [row["key"] for row in rows if row["value"] == work.value(row["key"]) and row["status"] == "ok"]
        if not problem and sorted(found) != sorted(wanted):
            problem = (
                f"{len(rows):,} rows, {len(set(found) & set(wanted)):,} of {len(wanted):,} samples as they must be"
            )
        self._board.judge("run", problem, f"{len(rows):,} samples, verified", "keep the folder (--keep) and report it")

    def _complete(self) -> bool:
        if not self.run.is_run() or not self.run.submissions():
            return False
        done = self.run.ledger(self.run.latest().identity).done()
        return len(done) == work.WorkConfig().shards

    def _over(self) -> bool:
        """Whether none of its slots runs or will run."""
        if self._job is not None:
            return self._job.state() == GONE
        return self._process is None or self._process.poll() is not None

    def _why_not(self) -> str:
        """Why something was not tried."""
        if self._over():
            return self._why_ended()
        return self._job.why_not() if self._job and not self._working() else "the time was over"

    def _why_ended(self) -> str:
        return f"the run ended: {self._words()}"

    def _words(self) -> str:
        """The last lines of the newest log, of a slot or of the launch."""
        logs = sorted(self.run.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return " / ".join(last_lines((logs or [self._log])[-1])[-3:])


def _path() -> str:
    return os.pathsep.join(filter(None, (str(snapshot.ROOT), os.environ.get("PYTHONPATH"))))
