"""Where the hours of a run's engines (GPUs, where there are any) went, through all lives of its slots.

Each slot says it of itself, see hpc.map.engine_time. Here work is told apart by what became of it: samples that a run
has saved and later made again, or thrown away (a rerun, a failed shard, another identity), are redone, too. Where Slurm
keeps accounts, what it counts beyond the lives' own time is `unseen`: before a slot's first breath and, of one that was
killed, after its last sign of life.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from hpc.base import heartbeat
from hpc.map.cost import Life, cluster_of, kinds_of
from hpc.map.engine_time import BROKEN, IDLE, INPUT, REDONE, START, WORK
from hpc.run.directory import Run, Submission

USEFUL, UNSEEN, UNKNOWN = "useful", "unseen", "unknown"
WORDS = {
    USEFUL: "useful",
    REDONE: "redone: lost before it was saved, done again or thrown away",
    INPUT: "waiting for input",
    START: "start-up and model load",
    BROKEN: "broken: hung, given up, excluded, a service away",
    IDLE: "idle: no shard was left for it",
    UNSEEN: "seen by Slurm alone: before a slot's start, after a kill",
    UNKNOWN: "not told apart: slots of an earlier version",
}


def by_kind(lives: list[Life], others: Iterable[dict[str, Any]], standing: int, unseen_s: float) -> dict[str, float]:
    """Engine-hours by kind, in the order of WORDS; those that are nothing are left out.

    Args:
        others: heartbeats of slots that worked for another identity.
        standing: samples that count, of those that the lives have saved.
        unseen_s: engine-seconds of Slurm's alone.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for life in lives:
        _add(seconds, life.kinds or {UNKNOWN: life.seconds * life.engines})
    produced = sum(life.activity.samples for life in lives)
    again = seconds[WORK] * max(0, produced - standing) / produced if produced else 0.0
    seconds[USEFUL] = seconds.pop(WORK, 0.0) - again
    seconds[REDONE] += again
    for beat in others:
        found = kinds_of(beat.get("time"))
        seconds[REDONE] += found.pop(WORK, 0.0)
        _add(seconds, found)
    seconds[UNSEEN] += unseen_s
    return {kind: seconds[kind] / 3600 for kind in WORDS if seconds[kind] > 0}


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for kind, seconds in more.items():
        total[kind] += seconds


def described(hours: Mapping[str, float], price: float | None) -> dict[str, dict[str, Any]]:
    """The same with money and in words, as status and reports show it."""
    return {
        kind: {"what": WORDS[kind], "hours": round(h, 9), "cost": None if price is None else round(h * price, 4)}
        for kind, h in hours.items()
    }


def of_other_identities(run: Run, latest: Submission) -> list[dict[str, Any]]:
    """Heartbeats of all lives that worked for another identity than the newest launch's."""
    mine = {s.uuid for s in run.submissions() if s.identity == latest.identity}
    if len(mine) == len(run.submissions()):
        return []
    return [beat for beat in heartbeat.read_all(run.slots) if str(beat.get("instance")).partition("-")[0] not in mine]


def unseen_s(run: Run, lives: list[Life], others: list[dict[str, Any]], accounts: Mapping[str, float]) -> float:
    """Engine-seconds that Slurm counts of jobs beyond what their slots have seen. Jobs that it lacks add nothing."""
    engines = {job: cluster_of(s).workers_per_node for s in run.submissions() for job in s.job_ids}
    seen: defaultdict[str, float] = defaultdict(float)
    for life in lives:
        seen[life.activity.job] += life.seconds * life.engines
    for beat in others:
        seen[str(beat.get("job", ""))] += sum(kinds_of(beat.get("time")).values())
    return sum(
        max(0.0, elapsed * engines[job] - seen[element])
        for element, elapsed in accounts.items()
        if (job := element.partition("_")[0]) in engines
    )
