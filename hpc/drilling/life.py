"""A job that waits for Slurm's signals and writes down when they came.

    python -m hpc.drilling.life PLACE --drain SECONDS

Its first life ends with exit code 75 at USR2, the signal before the time limit. A later one waits for TERM, and goes on
until KILL comes, or for some seconds more than a slot may take to drain. Started by `hpc.drill`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from hpc.base.errors import Exit, Parser
from hpc.base.journal import Journal
from hpc.drilling.place import Place
from hpc.map import machine

LONGER_S = 5.0  # beyond a slot's drain: a KILL that has not come by then is late enough
_TICK_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--drain", type=float, required=True, help="seconds that a slot may take after TERM")
    args = parser.parse_args(arguments)
    place, life = Place(args.place), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    came: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, frame: came.append(number))
    journal = Journal(place.lives / f"{life}.jsonl")
    left = float(os.environ.get("SLURM_JOB_END_TIME") or "nan") - time.time()
    journal.write("start", host=machine.describe()["host"], left=round(left, 1))
    begun = time.monotonic()
    while not (signal.SIGTERM in came or (came and life == 0)) and place.path.exists():
        time.sleep(0.05)
    journal.write("signal", names=[signal.Signals(n).name for n in came], after=round(time.monotonic() - begun, 1))
    if signal.SIGTERM not in came:
        return Exit.REQUEUE
    terminated = time.monotonic()  # by scancel, or at the time limit, where Slurm sends the same
    while time.monotonic() - terminated < args.drain + LONGER_S and place.path.exists():
        time.sleep(_TICK_S)
        journal.write("alive", after=round(time.monotonic() - terminated, 1))
    journal.write("spared")
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
