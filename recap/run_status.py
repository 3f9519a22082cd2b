"""What `hpc.status` says of a run: this package does not reach into it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError


def status(run: Path) -> dict[str, Any]:
    """The fields of `python -m hpc.status RUN --json`. UserError with its words where it has none."""
    command = [sys.executable, "-m", "hpc.status", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise UserError(done.stderr.strip() or f"{run}: hpc.status exited with {done.returncode}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
