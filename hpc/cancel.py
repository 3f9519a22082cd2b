"""Stop a run without losing anything: slots finish what is in flight, release their shards and end.

    python -m hpc.cancel runs/demo             drain, then scancel what is left
    python -m hpc.cancel runs/demo --now       scancel at once (slots still drain within Slurm's KillWait)
    python -m hpc.cancel runs/recap-demo       a pipeline: every stage

Says what it cancelled, and what it could not reach. Nothing is undone: the command that it prints goes on from there. A
requeue does not bring the run back, since `control/cancelled` stands in the run directory until the next launch. A run
that is finished stays as it is. Exit codes: 0 stopped, 1 something still runs or may run, 64 wrong usage.
"""

from __future__ import annotations

import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpc import relaunch
from hpc.any_status import read_any_status
from hpc.base import atomic, damage, heartbeat, processes
from hpc.base.command import command, console
from hpc.base.errors import Exit, Parser, Unanswered, UserError
from hpc.gang import sweep_status
from hpc.launching import recover_lost_submissions
from hpc.map import orphan_events
from hpc.pipeline.directory import PipelineRun
from hpc.run.directory import Run
from hpc.run.plan import DamagedPlan
from hpc.slurm import commands as slurm
from hpc.slurm.queue import NoSqueueAnswer, find_job, job_of, wait_for_live_jobs

GRACE_S = 20.0  # beyond map.drain_s, before what has not ended by itself is cancelled
_KILL_S = 40.0  # that Slurm may take to end what was scancelled: its KillWait is 30 s


@dataclass
class AtWork:
    """What works on a run, as far as can be seen from here.

    jobs: Slurm's state of each array element that it lists; here: process numbers on this machine; elsewhere: slots on
    other machines that Slurm did not start and that have not recorded their end, in words; unknown: why it is not known
    which jobs Slurm has.
    """

    jobs: dict[str, str] = field(default_factory=dict)
    here: list[int] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    unknown: str = ""

    @classmethod
    def at(cls, run: Run) -> AtWork:
        """What works on a run now."""
        found = cls()
        arms = list(sweep_status.runs(run).values())
        lives = [facts for one in (run, *arms) for facts in heartbeat.read_all(one.slots)]
        awake = [facts for facts in lives if facts.get("state") != "exited" and not facts.get("ranks")]
        own = {s.uuid for s in run.submissions() if s.state == "by hand"}
        by_hand = {str(facts["job"]) for facts in awake if facts.get("job") and facts.get("submission") in own}
        try:
            recover_lost_submissions(run)
            lost = [job for name in run.damaged_submissions() if (job := _job_of(name))]
            found.jobs = wait_for_live_jobs(sorted({*_jobs(run), *by_hand, *lost}), patience_s=0)
        except Unanswered as error:
            found.unknown = str(error)
        if run.latest().config["cluster"]["kind"] == "local":
            found.here = [pid for one in (run, *arms) for pid in processes.at_work(one.path)]
        found.here += [f["pid"] for f in heartbeat.alive_here(run.slots) if not f.get("job")]
        found.here = sorted(set(found.here))
        for facts in awake:
            if not facts.get("job") and facts.get("host") != socket.gethostname():
                silent = max(0.0, time.time() - facts.get("t", 0.0))
                if silent < 10 * heartbeat.STALE_S:
                    found.elsewhere.append(
                        f"slot {facts.get('slot')} on {facts.get('host')} (heard of {silent:.0f} s ago)"
                    )
        return found

    def __bool__(self) -> bool:
        return bool(self.jobs or self.here or self.elsewhere or self.unknown)

    def described(self) -> str:
        """In one line, for people."""
        states = Counter(self.jobs.values())
        elements = [f"{count} {state.lower()}" for state, count in sorted(states.items())]
        ids = sorted({job_of(name) for name in self.jobs})
        parts = [f"jobs {', '.join(ids)} ({', '.join(elements)})"] if ids else []
        parts += [f"{len(self.here)} processes here"] if self.here else []
        return " · ".join([*parts, *self.elsewhere]) or "nothing that can be seen from here"


def cancel(run: Run, *, now: bool) -> AtWork:
    """Returns what still works. Prints what it does."""
    found = AtWork.at(run)
    if _is_over(run):
        if found:  # slots that have not noticed yet that the run is finished
            _scancel(sorted(found.jobs))
            console.print(f"left over, cancelled: {found.described()}", markup=False)
        else:
            console.print(f"{run.name} is finished: nothing to cancel, nothing was changed", markup=False)
        return AtWork()
    wait_s = 0.0 if now else _patience(run)
    console.print(f"cancelling {found.described()}; {wait_s:.0f} s to finish what is in flight", markup=False)
    why = f"by {getpass.getuser()} on {socket.gethostname()}".encode()
    atomic.create(run.control / "cancelled", why)
    sweep_status.cancel(run, why)
    _scancel(sorted({job_of(name) for name in found.jobs}), "--state=PENDING")
    left = _wait(run, wait_s)
    if not left:
        return left
    _scancel(sorted(left.jobs))
    for pid in left.here:
        try:
            os.kill(pid, signal.SIGTERM)
        except (ProcessLookupError, PermissionError) as error:
            console.print(f"process {pid}: {error.strerror}", markup=False)
    return _wait(run, _KILL_S if left.jobs or left.here else 0.0)


def _is_over(run: Run) -> bool:
    """Whether a run is finished; False where its plan cannot be read, so that this is not known."""
    try:
        return read_any_status(run)["exit"] in (Exit.COMPLETE, Exit.SOME_FAILED)
    except DamagedPlan as error:
        damage.warn_once(str(error))
        return False


def _wait(run: Run, wait_s: float) -> AtWork:
    """Wait until nothing works on the run, at most `wait_s` seconds; returns what is left."""
    end = time.monotonic() + wait_s
    while (left := AtWork.at(run)) and time.monotonic() < end:
        time.sleep(0.5)
    return left


def _scancel(names: list[str], *arguments: str) -> None:
    if not names:
        return
    try:
        done = slurm.run(["scancel", *arguments, *names], timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        console.print(f"scancel: {error}", markup=False)
        return
    for line in dict.fromkeys(done.stderr.strip().splitlines()):
        console.print(line, markup=False)


def _jobs(run: Run) -> list[str]:
    job_ids = [job for submission in run.submissions() for job in submission.job_ids]
    return job_ids + [submission.gate for submission in run.submissions() if submission.gate]


def _job_of(submission: str) -> str | None:
    """The job of a launch whose record is damaged, found by its comment; None where Slurm has none or does not say."""
    try:
        return find_job(submission)
    except NoSqueueAnswer:
        return None


def _patience(run: Run) -> float:
    return float(run.latest().config["map"]["drain_s"]) + GRACE_S


def _cancel_pipeline(run: PipelineRun, *, now: bool) -> Iterator[AtWork]:
    """Stage jobs first, so that none launches again; then the jobs of the stages; what is left of each.

    A pipeline that runs on this machine sees the control file, and stops its stage by itself.
    """
    if _is_finished(run):
        console.print(f"{run.name} is finished: nothing to cancel, nothing was changed", markup=False)
        return
    atomic.create(run.control / "cancelled", f"by {getpass.getuser()} on {socket.gethostname()}".encode())
    ids = [job for submission in run.submissions() for job in submission.job_ids]
    chain = AtWork()
    try:
        chain.jobs = wait_for_live_jobs(ids, patience_s=0)
    except Unanswered as error:
        chain.unknown = str(error)
    if chain.jobs:
        console.print(f"cancelling the stages' {chain.described()}", markup=False)
        _scancel(sorted(chain.jobs))
    for stage in {s.config["stage"]: None for s in run.submissions()}:
        one = Run(run.path / stage)
        if one.submissions() and read_any_status(one)["exit"] == Exit.INCOMPLETE:
            yield cancel(one, now=now)
    yield AtWork(unknown=chain.unknown)


def _is_finished(run: PipelineRun) -> bool:
    """Whether a pipeline is finished. One whose record is damaged is not known to be."""
    try:
        return read_any_status(run)["exit"] == Exit.COMPLETE
    except UserError as error:
        damage.warn_once(str(error))
        return False


def _report(left: list[AtWork], again: list[str], path: str, *, over: bool) -> int:
    """Say what could not be stopped, or how to go on; the exit code."""
    for one in left:
        if one.unknown:
            console.print(f"not reached: {one.unknown} What it has of this run may still start.", markup=False)
        for name in one.elsewhere:
            console.print(f"not reached: {name}; it ends when it sees {path}/control/cancelled", markup=False)
        if one.jobs or one.here:
            still = AtWork(one.jobs, one.here).described()
            console.print(f"not ended yet: {still}. Look at: python -m hpc.status {path}", markup=False)
    if any(left):
        return Exit.INCOMPLETE
    console.print(
        f"{'To launch it again' if over else 'stopped. To go on'}:\n{relaunch.shell_text(again)}", markup=False
    )
    return Exit.COMPLETE


@command
def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m hpc.cancel", description=__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--now", action="store_true", help="do not wait for slots to finish what is in flight")
    args = parser.parse_args(arguments)
    if pipeline := PipelineRun.at(args.run):
        over = _is_finished(pipeline)
        left = list(_cancel_pipeline(pipeline, now=args.now))
    else:
        run = Run(args.run)
        run.latest()
        over = _is_over(run)
        left = [cancel(run, now=args.now)]
        if not any(left):
            orphan_events.send(run)
    return _report(left, relaunch.command_for(Run(args.run)), args.run, over=over)


if __name__ == "__main__":
    sys.exit(main())
