"""How long Slurm says that our jobs have held their nodes, where it keeps accounts (sacct)."""

from __future__ import annotations

import subprocess
import time

from hpc.slurm import commands as slurm

TIMEOUT_S = 5.0
EVERY_S = 60.0  # that a watch asks again


def elapsed(job_ids: list[str]) -> dict[str, float] | None:
    """Seconds by array element ("job_element", or "job"), all of its lives together; None where sacct does not say."""
    ask = ["sacct", "-n", "-P", "-X", "-D", "-o", "JobID,ElapsedRaw", "-j", ",".join(job_ids)]
    try:
        done = slurm.run(ask, TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else parse(done.stdout)


def parse(said: str) -> dict[str, float]:
    """Lines `JobID|ElapsedRaw`. Those that wait (`123_[0-7]`) or have no number are left out."""
    found: dict[str, float] = {}
    for line in said.splitlines():
        element, _, seconds = line.partition("|")
        if element and "[" not in element and seconds.isdigit():
            found[element] = found.get(element, 0.0) + int(seconds)
    return found


class Accounting:
    """Asks for one run, again and again, not more often than it should."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}
        self._next = 0.0

    def look(self, job_ids: list[str]) -> dict[str, float]:
        """What `elapsed` says now, or has said before; {} where Slurm keeps no accounts."""
        if job_ids and time.monotonic() >= self._next:
            found = elapsed(job_ids)
            self._known = self._known if found is None else found
            self._next = time.monotonic() + EVERY_S
        return self._known
