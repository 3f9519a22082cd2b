"""Tries on one machine what a run needs of its file system, in a new folder. Each function returns (what is wrong, what
was seen), of which one is "".
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hpc.base import atomic
from hpc.base.errors import storage_full
from hpc.base.text import file_size

Answer = tuple[str, str]

WRITTEN, PIECE, NAMES = 64 << 20, 4 << 20, 256
SYNCS, REPLACED = 16, 200
SLOW_S = 1.0  # that an fsync may take before the line says that it is slow


def link(folder: Path) -> Answer:
    """link(2) makes a second name of a file, and refuses one that exists, ours or another's."""
    first, other, name = folder / "first", folder / "other", folder / "name"
    first.write_bytes(b"first")
    other.write_bytes(b"other")
    try:
        os.link(first, name)
    except OSError as error:
        return f"no hard link can be made: {error.strerror}", ""
    if (count := first.stat().st_nlink) != 2:
        return f"a file with two names has a link count of {count}", ""
    for again in (first, other):
        try:
            os.link(again, name)
        except FileExistsError:
            continue
        except OSError as error:
            return f"a name that exists is refused with {error.strerror}, not with File exists", ""
        return "link() does not exclude: a name that exists is no error", ""
    if name.read_bytes() != b"first":
        return "link() does not exclude: a refused one changed the file", ""
    return "", "made once, refused twice"


def fsync(folder: Path) -> Answer:
    """Files and folders can be forced to storage; how long that takes."""
    took = []
    for number in range(SYNCS):
        begun = time.monotonic()
        try:
            what = "a file"
            atomic.write_synced(folder / f"synced-{number}", b"x" * 4096)
            what = "a folder"
            atomic.sync(folder)
        except OSError as error:
            return f"fsync of {what} fails: {error.strerror}", ""
        took.append(time.monotonic() - begun)
    typical = statistics.median(took)
    slow = "; slow: a larger map.save_s saves less often" if typical > SLOW_S else ""
    return "", f"{1000 * typical:.1f} ms for a file and its folder (at most {1000 * max(took):.1f}){slow}"


def rename(folder: Path) -> Answer:
    """A file that is replaced is whole and there at each moment; a folder does not replace a full one."""
    target, over, seen = folder / "replaced", threading.Event(), Readings()
    try:
        atomic.replace(target, content(0))
        reader = threading.Thread(target=_read_on, args=(target, over, seen))
        reader.start()
        try:
            for number in range(1, REPLACED + 1):
                atomic.replace(target, content(number))
        finally:
            over.set()
            reader.join()
        if problem := seen.problem():
            return problem, ""
        for name in ("old", "new"):
            (folder / name).mkdir()
            (folder / name / "file").write_bytes(b"")
        try:
            os.rename(folder / "new", folder / "old")
            return "a folder takes the place of one that is not empty", ""
        except OSError:
            pass
    except OSError as error:
        return f"a file cannot be replaced: {error.strerror}", ""
    return "", f"{seen.whole:,} readings during {REPLACED} replacements, all whole"


def space(folder: Path, free: Callable[[Path], list[str]]) -> Answer:
    """Bytes and names can be written: a quota may forbid it although blocks are free. free: says what is missing."""
    said = "; ".join(free(folder))
    done = names = 0
    try:
        with open(folder / "large", "wb") as file:
            while done < WRITTEN:
                file.write(b"\0" * PIECE)
                file.flush()
                done += PIECE
            _raise_if_full(file.fileno())
        for number in range(NAMES):
            (folder / f"name-{number}").write_bytes(b"")
            names += 1
    except OSError as error:
        said = f"after {file_size(done)} and {names} names: {error.strerror}" + (f"; {said}" if said else "")
    facts = os.statvfs(folder)
    left = file_size(facts.f_bavail * facts.f_frsize)
    inodes = f", {facts.f_favail:,} inodes" if facts.f_files else ""
    return said, "" if said else f"written; {left}{inodes} free, as far as quotas are told"


def _raise_if_full(fd: int) -> None:
    """Some file systems report only at an fsync that they are full. Its other errors belong to the line `fsync`."""
    try:
        os.fsync(fd)
    except OSError as error:
        if storage_full(error):
            raise


class Readings:
    """Counts what a reader sees of a file that a writer replaces, each time with the next number (`content`)."""

    def __init__(self) -> None:
        self.whole = self.torn = self.missing = self.older = 0  # readings; older: than one before
        self._last = -1
        self.error = ""

    def look(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self.missing += 1
            return
        except OSError as error:
            self.error = str(error.strerror)
            return
        number = number_in(data)
        if number is None:
            self.torn += 1
        elif number < self._last:
            self.older += 1
        else:
            self.whole, self._last = self.whole + 1, number

    def problem(self) -> str:
        bad = [(self.missing, "found no file"), (self.torn, "a torn one"), (self.older, "an older one than before")]
        said = ", ".join(f"{count} {what}" for count, what in bad if count)
        return f"of readings beside replacements {said}" if said else self.error and f"a reading fails: {self.error}"


def content(number: int) -> bytes:
    """16 KiB that repeat a number."""
    return b"%08d" % number * 2048


def number_in(data: bytes) -> int | None:
    """The number of a whole content, None for a torn one."""
    return int(data[:8]) if data[:8].isdigit() and data == data[:8] * 2048 else None


def _read_on(target: Path, over: threading.Event, seen: Readings) -> None:
    while not over.is_set():
        seen.look(target)
        time.sleep(0)
