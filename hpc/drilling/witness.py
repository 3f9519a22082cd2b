"""One participant of a drill's meeting, on a node or as a process of this machine: tries the file system there, then
takes part in the meeting.

    python -m hpc.drilling.witness PLACE --count N --patience SECONDS [--number K]

Started by `hpc.drill`. Exit codes: 0, whatever it saw: that is in its report.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpc.base import atomic
from hpc.base.errors import Exit, Parser
from hpc.drilling import file_system
from hpc.drilling.file_system import Answer
from hpc.drilling.meeting import Meeting
from hpc.drilling.place import Place
from hpc.map import machine

HERE = "login"  # the drill itself, in a meeting


def names(count: int) -> list[str]:
    """The names of all participants: the drill itself and `count` nodes."""
    return [HERE, *(f"node-{number}" for number in range(count))]


def local(folder: Path) -> dict[str, Answer]:
    """What this machine's file system answers to each of hpc.drilling.file_system's functions, in a new folder."""
    folder.mkdir(parents=True)
    return {
        name: ask(folder)
        for name, ask in (
            ("link", file_system.link),
            ("fsync", file_system.fsync),
            ("rename", file_system.rename),
        )
    }


def prepare(place: Place) -> None:
    """Make the folder of the meeting, before any participant comes."""
    for name in ("steps", "race", "late"):
        (place.meeting / name).mkdir(parents=True)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--count", type=int, required=True, help="how many there are besides the drill itself")
    parser.add_argument("--patience", type=float, required=True, help="seconds")
    parser.add_argument("--number", type=int, default=int(os.environ.get("SLURM_PROCID", "0")))
    args = parser.parse_args(arguments)
    place, me = Place(args.place), f"node-{args.number}"
    folder = place.meeting
    atomic.replace(folder / f"started-{me}.json", atomic.as_json({"host": machine.describe()["host"]}))
    meeting = Meeting(folder, me, names(args.count), args.patience, lambda: not place.path.exists())
    try:
        meeting.report.local = local(place.path / "local" / me)
        meeting.attend()
    finally:
        meeting.write()
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
