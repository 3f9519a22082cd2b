"""Stop a run without losing anything: slots finish what is in flight, give their shards back and end.

    python -m hpc.cancel runs/demo             drain, then scancel what is left
    python -m hpc.cancel runs/demo --now       scancel at once (slots still drain within Slurm's KillWait)
    python -m hpc.cancel runs/recap-demo       a pipeline: every stage

Nothing is undone: `python -m hpc.launch` with the same config goes on from there. A requeue does not bring the run
back, since `control/cancelled` stands in the run directory until the next launch. Exit codes: 0 stopped, 1 some slots
still run, 64 wrong usage.
"""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import socket
import subprocess
import sys
import time

import yaml
from rich.console import Console
from rich.markup import escape

from hpc import atomic, heartbeat, sweep_status
from hpc.errors import Exit, Parser, UserError
from hpc.launcher import live_jobs
from hpc.pipeline_run import PipelineRun
from hpc.rundir import Run
from hpc.stage_progress import progress

GRACE_S = 20.0  # beyond map.drain_s, before what has not ended by itself is cancelled


def _scancel(job_ids: list[str], *arguments: str) -> None:
    if job_ids:
        subprocess.run(["scancel", *arguments, *job_ids], capture_output=True, text=True, timeout=60, check=False)


def _left(run: Run, job_ids: list[str]) -> int:
    return len(live_jobs(job_ids)) + len([f for f in heartbeat.alive_here(run.slots) if not f.get("job")])


def cancel(run: Run, job_ids: list[str], wait_s: float, *, now: bool) -> int:
    """Returns how many slots still live."""
    why = f"by {getpass.getuser()} on {socket.gethostname()}".encode()
    atomic.create(run.control / "cancelled", why)
    sweep_status.cancel(run, why)
    _scancel(job_ids, "--state=PENDING")
    end = time.monotonic() + (0.0 if now else wait_s)
    while _left(run, job_ids) and time.monotonic() < end:
        time.sleep(0.5)
    if not _left(run, job_ids):
        return 0
    _scancel(job_ids)
    for facts in heartbeat.alive_here(run.slots):
        if not facts.get("job"):
            os.kill(facts["pid"], signal.SIGTERM)
    end = time.monotonic() + 40.0  # Slurm's KillWait is 30 s
    while (left := _left(run, job_ids)) and time.monotonic() < end:
        time.sleep(0.5)
    return left


def _jobs(run: Run) -> list[str]:
    job_ids = [job for submission in run.submissions() for job in submission.job_ids]
    return job_ids + [submission.gate for submission in run.submissions() if submission.gate]


def _patience(run: Run) -> float:
    return float(run.latest().config["map"]["drain_s"]) + GRACE_S


def _cancel_pipeline(run: PipelineRun, *, now: bool) -> int:
    """Stage jobs first, so that none launches again; then the jobs of the stages. How many slots still live.

    A pipeline that runs on this machine sees the control file, and stops its stage by itself.
    """
    atomic.create(run.control / "cancelled", f"by {getpass.getuser()} on {socket.gethostname()}".encode())
    _scancel([job for submission in run.submissions() for job in submission.job_ids])
    stages = [Run(run.path / name) for name in {s.config["stage"]: None for s in run.submissions()}]
    at_work = [one for one in stages if one.submissions() and not progress(one).complete]
    return sum(cancel(one, _jobs(one), _patience(one), now=now) for one in at_work)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m hpc.cancel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--now", action="store_true", help="do not wait for slots to finish what is in flight")
    args = parser.parse_args(arguments)
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        if pipeline := PipelineRun.at(args.run):
            left = _cancel_pipeline(pipeline, now=args.now)
            source = yaml.safe_load(pipeline.record.read_text(encoding="utf-8"))["source"]
        else:
            run = Run(args.run)
            source = run.latest().source
            slots, wait_s = _left(run, _jobs(run)), _patience(run)
            console.print(
                f"cancelling {slots} slots: they have {wait_s:.0f} s to finish what is in flight", markup=False
            )
            left = cancel(run, _jobs(run), wait_s, now=args.now)
    except UserError as error:
        errors.print(f"[red]{escape(str(error))}[/]")
        return Exit.USAGE
    if left:
        console.print(f"{left} slots still run: look at python -m hpc.status {args.run}", markup=False)
        return Exit.INCOMPLETE
    console.print(f"stopped. To go on: python -m hpc.launch {source} with the same overrides", markup=False)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
