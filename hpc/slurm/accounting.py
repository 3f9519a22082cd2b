"""How long Slurm says that our jobs have held their nodes, where it keeps accounts (sacct)."""

from __future__ import annotations

import subprocess
import time

from hpc.slurm import commands as slurm

Accounts = dict[str, dict[float, float]]
"""Seconds that each life of an array element lasted, by the moment that it began: {"123_4": {1795899640.0: 3600.0}}."""

TIMEOUT_S = 5.0
EVERY_S = 60.0  # that a watch asks again


def elapsed(job_ids: list[str]) -> Accounts | None:
    """By array element ("job_element", or "job"); None where sacct does not say."""
    ask = ["sacct", "-n", "-P", "-X", "-D", "-o", "JobID,Start,ElapsedRaw", "-j", ",".join(job_ids)]
    try:
        done = slurm.run(ask, TIMEOUT_S, slurm.environment() | {"SLURM_TIME_FORMAT": "%s"})
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else parse(done.stdout)


def parse(said: str) -> Accounts:
    """Lines `JobID|Start|ElapsedRaw`. Those that wait (`123_[0-7]`), or have no number, are left out."""
    found: Accounts = {}
    for line in said.splitlines():
        element, _, numbers = line.partition("|")
        start, _, seconds = numbers.partition("|")
        if element and "[" not in element and start.isdigit() and seconds.isdigit():
            found.setdefault(element, {})[float(start)] = float(seconds)
    return found


class Accounting:
    """Asks for one run, again and again, not more often than it should."""

    def __init__(self) -> None:
        self._known: Accounts = {}
        self._next = 0.0

    def look(self, job_ids: list[str]) -> Accounts:
        """What `elapsed` says now, or has said before; {} where Slurm keeps no accounts."""
        if job_ids and time.monotonic() >= self._next:
            found = elapsed(job_ids)
            self._known = self._known if found is None else found
            self._next = time.monotonic() + EVERY_S
        return self._known
