"""The local profile of a gang: its ranks as processes of this machine, restarted together as Slurm would."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

from rich.console import Console
from rich.live import Live

from hpc.base import snapshot
from hpc.base.errors import FINAL, Exit
from hpc.base.processes import at_work, drain_with_parent
from hpc.gang import status as gang_status
from hpc.run.directory import Run, Submission

_STOPPING = "stopping at a checkpoint after this step (launch again to go on; Ctrl-C again: at once)"
_KILLED = "killed: steps since the last checkpoint are lost (launch again to go on from it)"


def command(run: Run, submission: Submission) -> list[str]:
    """The command line of one rank; the variables RANK, WORLD_SIZE and LOCAL_RANK tell it which one it is."""
    return snapshot.command(run.code / submission.code, "hpc.gang.rank", str(run.path), "--submission", submission.uuid)


class _Life:
    """The ranks of one life. One that dies takes the others with it, as srun's --kill-on-bad-exit does."""

    def __init__(self, run: Run, submission: Submission, ranks: int) -> None:
        self._environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._run, self._submission = run, submission
        self.log = run.logs / f"local-{submission.uuid}.log"
        self._environment |= {"WORLD_SIZE": str(ranks), "HPC_LOG": str(self.log)}
        self.ranks: list[subprocess.Popen[bytes]] = []
        self.code: int | None = self._start([*command(run, submission), "--begin"], 0).wait() or None
        if self.code is None:
            self.ranks = [self._start(command(run, submission), rank) for rank in range(ranks)]

    def _start(self, argv: list[str], rank: int) -> subprocess.Popen[bytes]:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(self.log, "ab") as out:
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment | place,
                start_new_session=True, preexec_fn=drain_with_parent,
            )  # fmt: skip

    def poll(self) -> int | None:
        """The life's exit code once all its ranks are gone: the highest, a killed one counting as 128 and more."""
        if self.code is not None:
            return self.code
        codes = [rank.poll() for rank in self.ranks]
        if any(codes) and None in codes:  # one has failed: others that fail with it get a moment to say so
            time.sleep(1.0)
            for rank in self.ranks:
                rank.kill()
        if None not in codes:
            self.code = max((128 - code if code < 0 else code) for code in codes if code is not None)
        return self.code

    def signal(self, number: int) -> None:
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(number)


def supervise(run: Run, submission: Submission, ranks: int) -> tuple[int, bool]:
    """Run a gang to its end, with live progress. Ctrl-C or TERM stops it at a checkpoint, after the step that it is in,
    however long that lasts (a rank that hangs is ended by its own watchdog). A further Ctrl-C kills it.

    Returns its exit code, and whether it was told to stop.
    """
    console = Console(highlight=False)
    _wait_for_earlier(run, console)
    submission.state = "submitted"
    run.save(submission)
    stop: list[int] = []
    handler = {n: signal.signal(n, lambda number, _: stop.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    life, told = _Life(run, submission, ranks), 0
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                code = life.poll()
                if code is not None:
                    if code in FINAL or stop:
                        break
                    life = _Life(run, submission, ranks)
                if len(stop) > told:
                    at_once = told > 0 and signal.SIGINT in stop[told:]
                    told = len(stop)
                    life.signal(signal.SIGKILL if at_once else signal.SIGTERM)
                    live.console.print(_KILLED if at_once else _STOPPING)
                if console.is_terminal:
                    live.update(gang_status.render(gang_status.read_status(run)), refresh=True)
                time.sleep(0.2)
    finally:
        for number, before in handler.items():
            signal.signal(number, before)
        life.signal(signal.SIGTERM)
    console.print(gang_status.render(gang_status.read_status(run)))
    if code not in (Exit.COMPLETE, Exit.REQUEUE):
        console.print(f"exit code {code}; the ranks' own words: {life.log}", markup=False, soft_wrap=True)
    return int(Exit.INCOMPLETE if stop and code else code), bool(stop)


def _wait_for_earlier(run: Run, console: Console) -> None:
    """Wait until ranks whose launcher was killed have ended, after their step: a new life writes the same files."""
    is_said = False
    while left := at_work(run.path):
        if not is_said:
            numbers = ", ".join(map(str, left))
            console.print(f"waiting for ranks of a launch that was killed: {numbers}", soft_wrap=True)
        is_said = True
        time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
