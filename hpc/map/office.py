"""What one slot does for all: who that is.

<folder>/<name>.e<N>     its owner, an instance of a slot; the highest N counts. Made by link, and followed by another
                         when its owner is dead
"""

from __future__ import annotations

import os
from pathlib import Path

from hpc.base import atomic, heartbeat


class Office:
    """As one slot sees it."""

    def __init__(
        self, folder: Path, name: str, instance: str, beat: heartbeat.Heartbeat, observer: heartbeat.Observer
    ) -> None:
        self._folder, self._name, self._instance = folder, name, instance
        self._beat, self._observer = beat, observer

    def mine(self) -> bool:
        """Whether this slot is the one; takes over from a dead one."""
        if self._beat.fenced():
            return False
        number, owner = holder(self._folder, self._name)
        if owner == self._instance:
            return True
        if number >= 0 and not self._observer.dead(owner):
            return False
        return atomic.create(self._folder / f"{self._name}.e{number + 1}", self._instance.encode())


def holder(folder: Path, name: str) -> tuple[int, str]:
    """Number and name of the owner; (-1, "") where there was none yet."""
    prefix = f"{name}.e"
    found = (file.removeprefix(prefix) for file in os.listdir(folder) if file.startswith(prefix))
    numbers = [int(number) for number in found if number.isdigit()]
    if not numbers:
        return -1, ""
    return max(numbers), (folder / f"{prefix}{max(numbers)}").read_text()
