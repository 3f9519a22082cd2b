"""How many hours earlier runs took on the same kind of nodes, over those that their rate promised. A rate is tuned, or
measured while engines work; production also has start-up, waiting, lost work and idle engines at the end.
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
class PastRun:
    """times: engine-hours that the run's samples took, as a multiple of those that its rate had promised."""

    run: str
    times: float


def past_runs(folder: Path, cluster: dict[str, Any]) -> list[PastRun]:
    """The newest map runs in a folder of runs, at most RUNS, whose newest launch had this `profile` of cluster keys."""
    found = []
    for run, latest in _runs(folder, cluster):
        times = _times(run, latest)
        if times is not None:
            found.append(PastRun(run.name, round(times, 3)))
        if len(found) == RUNS:
            break
    return found


def factors(known: Sequence[PastRun]) -> tuple[float, float] | None:
    """The smallest and the largest factor for the hours of a forecast; None where there is no past run. Of fewer than
    three runs the smallest is at most 1.0: they do not show that a run cannot do better than they did.
    """
    if not known:
        return None
    times = sorted(one.times for one in known)
    return (times[0] if len(times) >= 3 else min(1.0, times[0])), times[-1]


def profile(cluster: dict[str, Any]) -> tuple[Any, ...]:
    """The cluster keys that must be equal for two runs' rates to be comparable."""
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
        spent = hours.of_run(run, tally, [], totals.kept, {})
    except (UserError, OSError, ValueError, KeyError):
        return None
    rate = latest.rate or working_rate(tally.reader, latest)
    total = spent.total
    return total * 3600 * rate / totals.kept if rate and totals.kept and total >= LEAST_HOURS else None
