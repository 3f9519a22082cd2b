"""Events of a run that a webhook is told of, see hpc.map.webhook: `<run>/events/`.

`<kind>.g<reruns>.json` is an event. Beside it `.e<N>` names who sends it, and `.sent` says that it was confirmed.
"""

from __future__ import annotations

import os
import re

from hpc.run.directory import Run

VARIABLE = "HPC_WEBHOOK"  # the environment variable that holds the address
_EVENT = re.compile(r"(complete|paused|failed)\.g\d+\.json")


def unsent(run: Run) -> list[str]:
    """Events that no receiver has confirmed, as `complete.g0`."""
    try:
        names = set(os.listdir(run.event_files))
    except FileNotFoundError:
        return []
    events = sorted(name.removesuffix(".json") for name in names if _EVENT.fullmatch(name))
    return [event for event in events if f"{event}.sent" not in names]
