"""A training that goes on in the background of this machine, when the terminal is closed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hpc.base.errors import UserError
from hpc.config import Config
from hpc.run.directory import Run
from hpc.run.launch_lock import launch_lock


def launch(run: Run, config: Config, *, supersede: bool) -> Path:
    """Start the same launch again as a process of its own, which does not end with this terminal. Returns its log, once
    its submission is on record.

    That process makes all checks once more. Raises UserError where another launch of this run is at work, or where the
    process ends before it has recorded a submission.
    """
    with launch_lock(run):
        log, known = run.logs / "launch.log", _recorded(run)
    flags = ["--supersede"] if supersede else []
    with open(log, "ab") as out:
        start = out.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "hpc.launch", config.source, *config.overrides, *flags],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    while process.poll() is None and _recorded(run) == known:
        time.sleep(0.1)
    if process.returncode and _recorded(run) == known:
        said = log.read_bytes()[start:].decode("utf-8", "replace").strip().splitlines()
        raise UserError(f"launch: it ended before it had begun: {said[-1] if said else process.returncode} ({log})")
    return log


def _recorded(run: Run) -> set[str]:
    return {submission.uuid for submission in run.submissions()}
