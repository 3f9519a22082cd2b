"""The folder that holds a drill's files, and how it is removed, after Ctrl-C too. After kill -9 the next drill removes
it.

`<runs>/hpc-drill-<8 hex digits>/drill.json` says whose it is, and is there before anything else; all jobs of a drill
carry its folder's name. Neither link() nor a lock is used, since whether they work is what a drill finds out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc.base import atomic, lock, processes
from hpc.base.text import short
from hpc.run.directory import Run
from hpc.slurm import commands as slurm
from hpc.slurm.queue import NoSqueueAnswer, jobs_named

PREFIX, FACTS = "hpc-drill-", "drill.json"
TOUCH_S, DEAD_S = 2.0, 20.0  # between the owner's touches; without one, by our clock, it is dead
_ENDING_S = 90.0  # that Slurm may take to end jobs that were cancelled: its KillWait is 30 s
_NODES_S = 20.0  # for which files of a node's last processes may hinder a removal (NFS keeps open ones as .nfs...)

Say = Callable[[str], None]


class Place:
    """The folder of one drill, which holds everything of it. run: the same folder as launchers see it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self.run = Run(path)
        self.meeting = path / "meeting"  # see hpc.drilling.witness
        self.lives = path / "lives"  # see hpc.drilling.life
        self.temporary = path / "tmp"  # TMPDIR of the drill's jobs: nothing stays on a node's own disks

    @classmethod
    def new(cls, runs: Path) -> Place:
        return cls(runs / f"{PREFIX}{os.urandom(4).hex()}")

    def facts(self) -> dict[str, Any]:
        """What drill.json holds, {} where there is none."""
        try:
            facts = dict(json.loads((self.path / FACTS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}
        return facts if "pid" in facts else {}

    def folder(self, name: str) -> Path:
        """Make a folder in it."""
        made = self.path / name
        made.mkdir(parents=True)
        return made

    def make(self) -> None:
        """Make the folder so that it appears with its drill.json in it, and make parents that are missing. Raises
        OSError.
        """
        above = [folder for folder in self.path.parents if not folder.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        making = self.path.parent / f"{atomic.TEMPORARY}{self.name}"
        making.mkdir(mode=0o700)
        self._write(making, {**lock.this_process(), "above": [str(folder) for folder in above]})
        making.rename(self.path)
        for folder in (self.run.logs, self.run.code, self.temporary):
            folder.mkdir(mode=0o700)

    def expect_jobs(self) -> None:
        """Record, before the first sbatch, that cleaning has to ask Slurm for jobs of this name."""
        self._write(self.path, {**self.facts(), "slurm": True})

    def keep(self) -> str:
        """End its jobs but keep its files, also from later drills. Returns why jobs are left, "" where none is."""
        facts = self.facts()
        left = end_jobs(self.name) if facts.get("slurm") else ""
        if facts and not left:
            self._write(self.path, {**facts, "kept": True})
        return left

    @staticmethod
    def _write(folder: Path, facts: dict[str, Any]) -> None:
        atomic.replace(folder / FACTS, atomic.as_json(facts))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Inside, show other machines that the owner is alive."""
        over = threading.Event()
        toucher = threading.Thread(target=self._touch, args=(over,), name="owner", daemon=True)
        toucher.start()
        try:
            yield
        finally:
            over.set()
            toucher.join(TOUCH_S)

    def _touch(self, over: threading.Event) -> None:
        while not over.wait(TOUCH_S):
            try:
                os.utime(self.path / FACTS)
            except OSError:
                pass

    def abandoned(self) -> bool:
        """Whether its owner is gone. Takes up to DEAD_S where the owner is a process of another machine."""
        facts = self.facts()
        if not facts:
            return True
        if lock.is_same_machine(facts):
            return lock.has_ended(facts)
        first, end = self._touched(), time.monotonic() + DEAD_S
        while time.monotonic() < end:
            if self._touched() != first:
                return False
            time.sleep(0.5)
        return True

    def _touched(self) -> int:
        try:
            with open(self.path / FACTS, "rb") as file:  # NFS asks its server at an open
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return 0

    def clean(self) -> str:
        """Cancel its jobs, wait for their end, remove its files. Returns why something is left, "" where nothing is."""
        facts = self.facts()
        if facts.get("slurm") and (left := end_jobs(self.name)):
            return left
        self._end_processes()
        end = time.monotonic() + _NODES_S
        while True:
            try:
                self._remove()
                break
            except OSError as error:  # a process at its end may still write, or remove things itself
                if time.monotonic() > end:
                    return f"{short(self.path)} cannot be removed: {error}"
                time.sleep(0.2)
        for folder in facts.get("above", []):
            try:
                os.rmdir(folder)
            except OSError:
                break
        return ""

    def _end_processes(self) -> None:
        """Kill processes of its small run on this machine, whose supervisor may have been killed."""
        for pid in processes.at_work(self.path / self.name):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _remove(self) -> None:
        """Remove the folder, drill.json last: where this is killed on the way, the next drill knows it and goes on."""
        try:
            entries = list(os.scandir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != FACTS:
                os.unlink(entry.path)
        (self.path / FACTS).unlink(missing_ok=True)
        self.path.rmdir()


def end_jobs(name: str) -> str:
    """Cancel the jobs of this name and wait until Slurm has none. Returns why some are left, "" where none is."""
    end, next_cancel = time.monotonic() + _ENDING_S, 0.0
    try:
        while jobs := jobs_named(name):
            if time.monotonic() > end:
                return f"jobs {', '.join(jobs)} have not ended yet"
            if time.monotonic() > next_cancel:
                slurm.run(["scancel", *jobs], timeout=60)
                next_cancel = time.monotonic() + 15.0
            time.sleep(0.5)
    except (NoSqueueAnswer, OSError, subprocess.SubprocessError) as error:
        return f"whether Slurm has jobs named {name} is not known: {error}"
    return ""


def clean_earlier(runs: Path, say: Say) -> None:
    """Remove what killed drills have left in a folder, and say so. Others, alive or kept, are only named."""
    for place in _earlier(runs):
        facts = place.facts()
        if not facts:  # killed in its first or last moment: it is empty, or it is not a drill's
            if _is_empty(place.path) and place.abandoned():
                place.path.rmdir()
        elif facts.get("kept"):
            say(f"kept by an earlier drill: {short(place.path)} (to remove it: rm -r {short(place.path)})")
        elif not place.abandoned():
            say(f"another drill, process {facts['pid']} on {facts['host']}, is at work in {short(place.path)}")
        else:
            left = place.clean()
            say(f"left by an earlier drill: {short(place.path)}; {left or 'cleaned'}")


def _earlier(runs: Path) -> list[Place]:
    """Folders of drills that this user has made, those that were still being made included."""
    ours = re.compile(f"({re.escape(atomic.TEMPORARY)})?{PREFIX}[0-9a-f]{{8}}")
    try:
        found = [Path(entry.path) for entry in os.scandir(runs) if ours.fullmatch(entry.name)]
        return [Place(path) for path in sorted(found) if path.lstat().st_uid == os.geteuid() and path.is_dir()]
    except OSError:
        return []


def _is_empty(path: Path) -> bool:
    try:
        return not os.listdir(path) and time.time() - path.stat().st_mtime > DEAD_S
    except OSError:
        return False
