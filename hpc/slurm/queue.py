"""What Slurm's queue says of our jobs."""

from __future__ import annotations

import re
import subprocess
import time

from hpc.base.errors import Unanswered
from hpc.slurm import commands as slurm

PATIENCE_S = 120.0  # for a controller that is away


class NoSqueueAnswer(Exception):
    """squeue could not be asked."""


def job_of(name: str) -> str:
    """The id of the job that an element is of.

    >>> job_of("123_4"), job_of("123")
    ('123', '123')
    """
    return name.partition("_")[0]


def max_array_size() -> int | None:
    """How many elements an array may have on this Slurm (indices end at MaxArraySize - 1), None where it cannot be
    asked.
    """
    try:
        done = slurm.run(["scontrol", "show", "config"], timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return int(match[1]) if match else None


def find_job(comment: str) -> str | None:
    """The id of the job that carries this --comment, None if Slurm has none. NoAnswer if it does not say."""
    answer = _squeue("-h", "-a", "-t", "all", "-o", "%F %k")  # %A would be an element's own id
    for line in answer.splitlines():
        job, _, text = line.partition(" ")
        if text.strip() == comment:
            return job
    return None


def live_jobs(job_ids: list[str]) -> dict[str, str]:
    """State (RUNNING, PENDING, ...) of array elements that squeue still lists, by "job_element"; {} where it cannot
    be asked: good enough to be shown.
    """
    try:
        return _listed(job_ids, timeout=5)
    except NoSqueueAnswer:
        return {}


def pending(job_ids: list[str]) -> dict[str, tuple[int, str]]:
    """(elements that wait to start, Slurm's reason) by job; {} where squeue cannot be asked."""
    if not job_ids:
        return {}
    try:
        answer = _squeue("-h", "-a", "-r", "-t", "PENDING", "-o", "%F %r", "-j", ",".join(job_ids))
    except NoSqueueAnswer:
        return {}
    found: dict[str, tuple[int, str]] = {}
    for line in answer.splitlines():
        job, _, reason = line.partition(" ")
        found[job] = (found.get(job, (0, ""))[0] + 1, reason)
    return found


def why_pending(job_ids: list[str]) -> list[str]:
    """Slurm's reasons why elements of jobs wait: Priority, Resources, PartitionConfig, ..."""
    return sorted({reason for _, reason in pending(job_ids).values()})


def surely_live(job_ids: list[str], patience_s: float | None = None) -> dict[str, str]:
    """`live_jobs`, for those who would start a second job where there is none: waits for squeue's answer, by default
    PATIENCE_S. Raises Unanswered without one.
    """
    end = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
    while True:
        try:
            return _listed(job_ids, timeout=30)
        except NoSqueueAnswer as error:
            if time.monotonic() > end:
                raise Unanswered(str(error)) from error
            time.sleep(2.0)


def _listed(job_ids: list[str], timeout: float) -> dict[str, str]:
    if not job_ids:
        return {}
    try:
        # -a: also those in a partition that the site hides
        answer = _squeue("-h", "-a", "-r", "-o", "%F_%K %T", "-j", ",".join(job_ids), timeout=timeout)
    except NoSqueueAnswer as error:
        if "Invalid job id" in str(error):  # the only one, and it has left Slurm's memory
            return {}
        raise
    rows = (line.split() for line in answer.splitlines())
    return {name.removesuffix("_N/A"): state for name, state in rows}  # N/A: of a job that is no array


def _squeue(*arguments: str, timeout: float = 30) -> str:
    """What squeue prints. NoAnswer where there is none, or its controller is away."""
    try:
        done = slurm.run(["squeue", *arguments], timeout)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NoSqueueAnswer(str(error)) from error
    if done.returncode:
        raise NoSqueueAnswer((done.stderr or done.stdout).strip()[-200:])
    return done.stdout


def named(name: str) -> list[str]:
    """The ids of the jobs (of an array its own) with this name that squeue lists: finished ones are left out. NoAnswer
    if it does not say.
    """
    return list(dict.fromkeys(_squeue("-h", "-a", "-n", name, "-o", "%F").split()))
