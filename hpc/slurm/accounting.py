"""How long our jobs have held their nodes, by Slurm's own accounts (sacct), where a site keeps them."""

from __future__ import annotations

import subprocess
import time

from hpc.slurm import commands as slurm

Accounts = dict[str, dict[float, float]]
"""Seconds that each life of an array element lasted, by when it began (seconds of the controller's clock):
{"123_4": {1795899640.0: 3600.0}}.
"""

TIMEOUT_S = 5.0
EVERY_S = 60.0  # between two questions to sacct


def elapsed(job_ids: list[str]) -> Accounts | None:
    """The accounts of these jobs, by array element ("job_element", or "job"); None where sacct does not answer."""
    ask = ["sacct", "-n", "-P", "-X", "-D", "-o", "JobID,Start,ElapsedRaw", "-j", ",".join(job_ids)]
    try:
        done = slurm.run(ask, TIMEOUT_S, slurm.environment() | {"SLURM_TIME_FORMAT": "%s"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else parse(done.stdout)


def parse(output: str) -> Accounts:
    """Accounts from lines `JobID|Start|ElapsedRaw`. Elements that still wait (`123_[0-7]`), and lines without numbers,
    are left out.
    """
    found: Accounts = {}
    for line in output.splitlines():
        element, _, numbers = line.partition("|")
        start, _, seconds = numbers.partition("|")
        if element and "[" not in element and start.isdigit() and seconds.isdigit():
            found.setdefault(element, {})[float(start)] = float(seconds)
    return found


class Accounting:
    """The accounts of one run, for a status that is shown again and again: sacct is asked every EVERY_S."""

    def __init__(self) -> None:
        self._known: Accounts = {}
        self._next = 0.0

    def look(self, job_ids: list[str]) -> Accounts:
        """The newest accounts that there are; {} where Slurm keeps none."""
        if job_ids and time.monotonic() >= self._next:
            found = elapsed(job_ids)
            self._known = self._known if found is None else found
            self._next = time.monotonic() + EVERY_S
        return self._known
