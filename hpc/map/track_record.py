"""How earlier runs met what was foreseen of them, on the same kind of nodes: what a rate that was tuned, or measured
while engines worked, loses in production to start-up, waiting, lost work and idle ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from hpc.map import hours
from hpc.map.cost import working_rate
from hpc.map.tally import Tally
from hpc.run.directory import Run, Submission

RUNS = 10  # the newest that are looked at
LEAST_HOURS = 0.002  # of engines, under which a run tells nothing
_PROFILE = ("kind", "partition", "constraint", "gres", "gpus_per_node", "engines_per_node", "cpus_per_node")


@dataclass(frozen=True)
class Met:
    """times: engine-hours that the run's samples took, over those that its rate had promised."""

    run: str
    times: float


def met(folder: Path, cluster: dict[str, Any]) -> list[Met]:
    """Of the newest map runs in a folder of runs whose newest launch had this profile of `cluster`."""
    found = []
    for run, latest in _runs(folder, cluster):
        times = _times(run, latest)
        if times is not None:
            found.append(Met(run.name, round(times, 3)))
        if len(found) == RUNS:
            break
    return found


def span(known: Sequence[Met]) -> tuple[float, float] | None:
    """Between what and what a forecast's hours are to be multiplied; None where no run tells. A few runs do not say
    that nothing at all may go better.
    """
    if not known:
        return None
    times = sorted(one.times for one in known)
    return (times[0] if len(times) >= 3 else min(1.0, times[0])), times[-1]


def profile(cluster: dict[str, Any]) -> tuple[Any, ...]:
    """What must be alike for rates to be."""
    return tuple(cluster.get(key) for key in _PROFILE)


def _runs(folder: Path, cluster: dict[str, Any]) -> Iterator[tuple[Run, Submission]]:
    """The newest launches first."""
    known = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            latest = Run(path).latest()
        except (UserError, OSError):
            continue  # no run, or one that is damaged
        if latest.plan and profile(latest.config["cluster"]) == profile(cluster):
            known.append((latest.created, path, latest))
    for _, path, latest in sorted(known, key=lambda one: one[0], reverse=True):
        yield Run(path), latest


def _times(run: Run, latest: Submission) -> float | None:
    try:
        tally = Tally(run, latest, keep=False)
        totals = tally.count()
        spent = hours.of_run(run, tally, [], totals.standing, {})
    except (UserError, OSError, ValueError, KeyError):
        return None
    rate = latest.rate or working_rate(tally.reader, latest)
    total = spent.total
    return total * 3600 * rate / totals.standing if rate and totals.standing and total >= LEAST_HOURS else None
