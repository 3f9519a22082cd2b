"""Commands of the toolkit, as their users start them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cost:
    """Of a process: seconds of CPU, and the most memory that it held."""

    cpu_s: float
    mb: float


def command(*arguments: str) -> Cost:
    """Run one to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=said, stderr=said, cwd=ROOT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        assert process.returncode in (0, 1, 2), said.read().decode(errors="replace")[-3000:]
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)
