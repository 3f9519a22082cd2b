"""One launch of a run at a time, so that each sees what those before it have submitted."""

from __future__ import annotations

from contextlib import AbstractContextManager

from hpc.base.lock import hold
from hpc.run.directory import Run

SUBMITTING_S = 300.0  # for which a launch waits while another one submits


def launch_lock(run: Run, patience: float = 0.0) -> AbstractContextManager[None]:
    """Hold `control/launching` of a run. See hpc.base.lock.hold."""
    return hold(run.control / "launching", "launch", patience)
