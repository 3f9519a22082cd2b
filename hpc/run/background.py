"""A training that goes on in the background of this machine, when the terminal is closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hpc.config import Config
from hpc.run.directory import Run
from hpc.run.launch_lock import launch_lock


def launch(run: Run, config: Config, *, supersede: bool) -> Path:
    """Start the same launch again, apart from this terminal; its log. UserError where another one is at work here.

    It checks everything once more, and is the one launch of this run for as long as it lasts.
    """
    with launch_lock(run):
        log = run.logs / "launch.log"
    flags = ["--supersede"] if supersede else []
    with open(log, "ab") as out:
        subprocess.Popen(
            [sys.executable, "-m", "hpc.launch", config.source, *config.overrides, *flags],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    return log
