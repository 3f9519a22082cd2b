"""The processes of this machine that work on a run."""

from __future__ import annotations

import os
from pathlib import Path

_MODULES = (b"hpc.worker", b"hpc.gang.rank")


def at_work(run: Path) -> list[int]:
    """Process numbers of a run's workers and ranks here, whoever started them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(run) in words and any(module in words for module in _MODULES):
            found.append(int(process.name))
    return found
