"""The lines of a drill's verdict: what was tried, what was seen, and what to set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from hpc.base.errors import Exit

FIT, UNFIT, NOT_TRIED = "fit", "unfit", "not tried"


@dataclass(frozen=True)
class Line:
    """One line of the verdict.

    name: a key of `LINES`. verdict: FIT, UNFIT or NOT_TRIED. seen: what came of it, or why it was not tried. set:
    config keys, or options of the site, that would mend it. again: whether another drill may be able to try it, since
    the time was over or Slurm did not answer.
    """

    name: str
    verdict: str
    seen: str
    set: str = ""
    again: bool = False


LINES = {
    "access": "`runs` can be written, and nobody else may put another folder in its place",
    "space": "64 MiB and 256 names are written, and map.min_free_gb is free",
    "link": "a hard link is made, and a name that exists is refused",
    "fsync": "files and folders are forced to stable storage",
    "rename": "a file that is replaced is always there, whole and not older than before",
    "slurm": "Slurm's commands are here, and the controller answers",
    "request": "sbatch takes a job of this profile (it is held, and cancelled at once)",
    "array": "sbatch takes an array of cluster.slots elements",
    "time": "the partition grants cluster.time",
    "start": "a job with this profile's resources starts, and runs this code",
    "nodes": "several nodes and this machine see one another's files",
    "exclusion": "of nodes that make the same name at the same moment, one wins",
    "attributes": "what one node changes is seen by the others in a quarter of map.lease_s",
    "signals": "USR2 reaches the workers before the time limit",
    "requeue": "a job that ends with exit code 75 starts again, under its old number",
    "cancel": "TERM reaches the workers, and KILL comes later than they need to drain",
    "preemption": "a preempted slot is told, and requeued",
    "engine": "an engine that is killed is started again",
    "slot": "a slot that is killed loses nothing: its next life, or others, go on",
    "stall": "a slot that stands still longer than its lease is superseded, and its late results are refused",
    "run": "after all that each sample is in the output, once, and every byte as it was published",
}
"""What is tried, in words, in the order of the verdict."""


@dataclass
class Board:
    """Collects the lines as they become known. say: is called at once with each."""

    say: Callable[[Line], None]
    lines: dict[str, Line] = field(default_factory=dict)

    def add(self, name: str, verdict: str, seen: str, to_set: str = "", again: bool = False) -> None:
        """Add a line, unless one of that name is there."""
        if name not in self.lines:
            self.lines[name] = Line(name, verdict, seen, to_set, again)
            self.say(self.lines[name])

    def judge(self, name: str, problem: str, seen: str, to_set: str) -> bool:
        """Add a line: unfit where there is a `problem`, else fit, with what was `seen`. Returns whether it is fit."""
        self.add(name, UNFIT if problem else FIT, problem or seen, to_set if problem else "")
        return not problem

    def not_tried(self, names: Iterable[str], why: str, again: bool = False) -> None:
        """Add those of these lines of which nothing is known yet, as not tried."""
        for name in names:
            self.add(name, NOT_TRIED, why, again=again)

    def fit(self, *names: str) -> bool:
        """Whether all of these lines are there and fit."""
        return all(name in self.lines and self.lines[name].verdict == FIT for name in names)

    def unfit(self, *names: str) -> list[str]:
        """Which of these lines are unfit."""
        return [name for name in names if name in self.lines and self.lines[name].verdict == UNFIT]

    @property
    def code(self) -> Exit:
        """0 where all that this cluster offers was tried and is fit."""
        bad = any(line.verdict == UNFIT or line.again for line in self.lines.values())
        return Exit.INCOMPLETE if bad else Exit.COMPLETE

    def as_records(self) -> list[dict[str, Any]]:
        """For --json."""
        return [{**asdict(self.lines[name]), "tried": LINES[name]} for name in LINES if name in self.lines]
