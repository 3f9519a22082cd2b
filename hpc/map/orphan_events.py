"""Webhook events of runs that no slot is left to send: slots that never started, were all cancelled, or were killed.

A command that looks at the run sends them: `hpc.status` in any form (so a cron job with --openmetrics does),
`hpc.cancel`, and a launch that Slurm refuses. It makes the event that a slot would have made (hpc.map.webhook), and
tries once to send each event that nobody has sent. It does so only for runs that were launched with a webhook, so that
looking at old runs sends nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc.base import atomic, heartbeat, processes
from hpc.base.errors import Exit, Unanswered, UserError
from hpc.map import webhook
from hpc.map.election import holder
from hpc.map.life import ENDED
from hpc.map.webhook import COMPLETE, FAILED, PAUSED
from hpc.run.directory import Run, Submission
from hpc.run.events import unsent
from hpc.slurm.queue import job_of, wait_for_live_jobs, why_pending

NEVER = "DependencyNeverSatisfied"
PATIENCE_S = 90.0  # for another command that was the first to send an event; its request may take webhook.ANSWER_S


@contextmanager
def sent_if_refused(run: Run) -> Iterator[None]:
    """Around a submission: where Slurm refuses it, the run's end is sent."""
    try:
        yield
    except Unanswered:
        raise
    except UserError:
        send(run)
        raise


def send(run: Run, facts: dict[str, Any] | None = None) -> None:
    """Send a map run's events that nobody has sent, its end among them, where there is an address to send to. Writes to
    stderr what could not be sent.

    Args:
        facts: of hpc.map.status, where the caller has them.
    """
    try:
        where = webhook.address()
        if not where:
            return
        latest = run.latest()
        if latest.webhook and not latest.pilot:  # a pilot ends no run
            from hpc.map.status import read_status

            facts = facts or read_status(run)
            if found := end_of_run(run, latest, facts):
                webhook.create(run, facts, *found, run.generations.count())
        for event in unsent(run):
            if problem := _send(run, where, event):
                sys.stderr.write(f"webhook: {event} was not taken: {problem}\n")
    except (OSError, UserError, ValueError, KeyError) as error:
        sys.stderr.write(f"webhook: {error}\n")


def end_of_run(run: Run, latest: Submission, facts: dict[str, Any]) -> tuple[str, str] | None:
    """(kind, why) where a run has come to an end; None while it goes on, or where that cannot be known."""
    if facts["exit"] != Exit.INCOMPLETE:
        return (
            (COMPLETE, "every shard is done") if facts["exit"] == Exit.COMPLETE else (FAILED, "nothing is left to do")
        )
    ours = {job for submission in run.submissions() for job in submission.job_ids}
    awake = [row for row in facts["slots"]["list"] if row["state"] not in ENDED]
    if any(job_of(str(row.get("job", ""))) not in ours for row in awake):
        return None
    gone = _jobs_gone(sorted(ours), latest) if facts["kind"] == "slurm" else _processes_gone(run, facts)
    if not gone:
        return None
    if (why := facts["paused"]) is not None:
        return PAUSED, f"paused: {why}"
    if (why := facts["cancelled"]) is not None:
        gone = f"cancelled {why}".strip()
    return FAILED, gone


def _jobs_gone(ours: list[str], latest: Submission) -> str:
    """Why no job of a run will work on it any more; "" where some will, or Slurm does not say."""
    if latest.state in ("by hand", "intent", "unanswered"):
        return ""
    try:
        live = wait_for_live_jobs(ours, patience_s=0)
    except Unanswered:
        return ""
    if live and (set(live.values()) != {"PENDING"} or why_pending(ours) != [NEVER]):
        return ""
    if live:
        return f"its jobs wait for others that have failed ({NEVER}): none of them will start"
    if latest.state == "refused":
        return f"Slurm refused it: {latest.error}"
    return "its jobs have all ended or were cancelled, and shards are left"


def _processes_gone(run: Run, facts: dict[str, Any]) -> str:
    """Why no process of a run without Slurm will work on it any more; "" where some will, or where that is not known:
    the run has not begun, or it works on other machines. Slots have to be silent for a while, since their supervisor
    may take a minute before it starts one again.
    """
    rows = facts["slots"]["list"]
    here = rows and all(row.get("host") == socket.gethostname() for row in rows)
    quiet = facts["cancelled"] is not None or all(row["silent_s"] > heartbeat.STALE_S for row in rows)
    if not here or not quiet or processes.at_work(run.path):
        return ""
    return "its processes have all ended, and shards are left"


def _send(run: Run, where: str, event: str) -> str:
    """Try once to send an event, unless a slot or another command does so. Returns what went wrong, "" if nothing."""
    number, owner = holder(run.event_files, event)
    if number >= 0 and not _left(run, event, number, owner):
        return ""
    me = f"look-{socket.gethostname()}-{os.getpid()}"  # without a heartbeat: slots take over from it after a lease
    if not atomic.create(run.event_files / f"{event}.e{number + 1}", me.encode()):
        return ""
    data = (run.event_files / f"{event}.json").read_bytes()
    problem = webhook.post(where, data, json.loads(data)["name"])
    if not problem:
        atomic.create(run.event_files / f"{event}.sent", b"")
    return problem


def _left(run: Run, event: str, number: int, owner: str) -> bool:
    """Whether the sender of an event is gone: a slot that has ended or is silent, or a command that began long ago."""
    facts = heartbeat.read(run.slots, owner)
    if facts:
        age = _age(run, run.slots / f"{owner}.json")
        return facts.get("state") == "exited" or age > heartbeat.STALE_S
    return _age(run, run.event_files / f"{event}.e{number}") > PATIENCE_S


def _age(run: Run, path: Path) -> float:
    """Seconds since a file was written, by the clock of the file server alone."""
    probe = atomic.temporary(run.event_files / "probe")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
