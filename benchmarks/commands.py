"""Commands of the toolkit, started as users start them; memory of a process; files that are many names of one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINKS = 60_000  # that a benchmark makes to one file (ext4 allows 65,000)


@dataclass(frozen=True)
class ProcessCost:
    """What a process took: seconds of CPU, and the most resident memory that it held, in MB."""

    cpu_s: float
    mb: float


def command(*arguments: str) -> ProcessCost:
    """Run `python -m ARGUMENTS` in the repository to its end. AssertionError with its output where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=said, stderr=said, cwd=ROOT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode in (0, 1, 2), said.read().decode(errors="replace")[-3000:]
    return ProcessCost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def anonymous_mb() -> float:
    """MB of anonymous memory that this process holds now (what it allocated, without files that it maps)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))
