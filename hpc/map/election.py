"""Elects the one slot that does something on behalf of all, such as sending an event or watching a comparison.

<folder>/<name>.e<N>     names an instance of a slot, the leader; the file with the highest N counts. It is made by
                         link(), and another slot makes the next one when the leader is dead
"""

from __future__ import annotations

import os
from pathlib import Path

from hpc.base import atomic, heartbeat


class Election:
    """One slot's part in an election."""

    def __init__(
        self, folder: Path, name: str, instance: str, beat: heartbeat.Heartbeat, observer: heartbeat.Observer
    ) -> None:
        self._folder, self._name, self._instance = folder, name, instance
        self._beat, self._observer = beat, observer

    def is_leader(self) -> bool:
        """Whether this slot is the leader; it becomes that where there is none, or a dead one."""
        if self._beat.fenced():
            return False
        number, owner = holder(self._folder, self._name)
        if owner == self._instance:
            return True
        if number >= 0 and not self._observer.dead(owner):
            return False
        return atomic.create(self._folder / f"{self._name}.e{number + 1}", self._instance.encode())


def holder(folder: Path, name: str) -> tuple[int, str]:
    """(number, instance) of the leader; (-1, "") where there was none yet."""
    prefix = f"{name}.e"
    found = (file.removeprefix(prefix) for file in os.listdir(folder) if file.startswith(prefix))
    numbers = [int(number) for number in found if number.isdigit()]
    if not numbers:
        return -1, ""
    return max(numbers), (folder / f"{prefix}{max(numbers)}").read_text()
