"""What Slurm's queue says of our jobs."""

from __future__ import annotations

import re
import subprocess
import time

from hpc.base.errors import Unanswered
from hpc.slurm import commands as slurm

PATIENCE_S = 120.0  # for which we wait for a controller that does not answer


class NoSqueueAnswer(Exception):
    """squeue failed: it is not installed, or the controller does not answer."""


def job_of(name: str) -> str:
    """The id of the job that an array element belongs to.

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
    """The id of the job that carries this --comment, None if Slurm has none. Raises NoSqueueAnswer."""
    answer = _squeue("-h", "-a", "-t", "all", "-o", "%F %k")  # %A would be an element's own id
    for line in answer.splitlines():
        job, _, text = line.partition(" ")
        if text.strip() == comment:
            return job
    return None


def live_jobs(job_ids: list[str]) -> dict[str, str]:
    """State (RUNNING, PENDING, ...) of array elements that squeue still lists, by "job_element". {} also where squeue
    does not answer, so it is only good for showing.
    """
    try:
        return _listed(job_ids, timeout=5)
    except NoSqueueAnswer:
        return {}


def pending(job_ids: list[str]) -> dict[str, tuple[int, str]]:
    """(number of elements that wait to start, Slurm's reason) by job; {} where squeue does not answer, too."""
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


def wait_for_live_jobs(job_ids: list[str], patience_s: float | None = None) -> dict[str, str]:
    """The same as `live_jobs`, where a wrong {} would do harm, such as starting a second job: waits for an answer of
    squeue, at most `patience_s` seconds (default: PATIENCE_S). Raises Unanswered where none comes.
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
        if "Invalid job id" in str(error):  # squeue says so of a single job that ended long ago
            return {}
        raise
    rows = (line.split() for line in answer.splitlines())
    return {name.removesuffix("_N/A"): state for name, state in rows}  # N/A: of a job that is no array


def _squeue(*arguments: str, timeout: float = 30) -> str:
    """What squeue prints. Raises NoSqueueAnswer."""
    try:
        done = slurm.run(["squeue", *arguments], timeout)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise NoSqueueAnswer(str(error)) from error
    if done.returncode:
        raise NoSqueueAnswer((done.stderr or done.stdout).strip()[-200:])
    return done.stdout


def jobs_named(name: str) -> list[str]:
    """The ids of the jobs with this name that have not ended; an array has one id. Raises NoSqueueAnswer."""
    return list(dict.fromkeys(_squeue("-h", "-a", "-n", name, "-o", "%F").split()))
