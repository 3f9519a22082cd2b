"""Lives of slots: how long each has held its node, and where the time of its engines went.

A slot itself divides its time into kinds, by its monotonic clock (hpc.map.engine_time), up to its last heartbeat. The
one that started it has recorded how long it lasted (hpc.run.allocations). The time that the slot's own sums lack of
that is divided here. Before the first heartbeat and after the last of one that ended by itself it counts as start;
after the last of one that was killed it counts as work that was lost; of a life that never registered all of it counts
as broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpc.base import heartbeat
from hpc.config import ClusterConfig
from hpc.map.engine_time import BROKEN, KINDS, REDONE, START, WORK
from hpc.run.allocations import Allocation
from hpc.run.directory import Run, Submission
from hpc.run.journal_reader import Activity, JournalReader

BEAT_S = 60.0  # by which a heartbeat may be older than the last event of its slot's journal
ENDED = ("exited", "silent")
SLURM, STARTER, SIGNS = "slurm", "starter", "signs"
BY = {
    SLURM: "by Slurm's accounts",
    STARTER: "as their batch script or supervisor saw them",
    SIGNS: "up to their last sign of life",
}
"""Where it is known from how long a life has lasted."""


@dataclass
class Life:
    """One life of a slot, from its journal, its heartbeat and the record of whoever started it.

    kinds: engine-seconds by kind, see hpc.map.engine_time; {} where an earlier version of the toolkit wrote none.
    seconds: how long it has lasted. by: where that is known from, see `BY`; without a record of its start it is the
    time from its first to its last sign of life.
    """

    instance: str
    slot: int
    host: str
    state: str
    engines: int
    seconds: float
    activity: Activity
    beat: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)
    allocation: Allocation | None = None
    by: str = SIGNS

    def scale(self, seconds: float) -> None:
        """Set how long it has lasted, with all kinds in proportion."""
        share = seconds / self.seconds if self.seconds else 0.0
        self.kinds = {kind: spent * share for kind, spent in self.kinds.items()}
        self.seconds = seconds


def cluster_of(submission: Submission) -> ClusterConfig:
    """The cluster keys of a launch that say how many engines and GPUs its slots had; all others at their defaults."""
    stored = submission.config["cluster"]
    return ClusterConfig(gpus_per_node=stored["gpus_per_node"], engines_per_node=stored["engines_per_node"])


def lives(run: Run, reader: JournalReader, newest: list[dict[str, Any]], seen: Mapping[str, Allocation]) -> list[Life]:
    """All lives that have a journal.

    Args:
        newest: the newest heartbeat of each slot. seen: what is recorded of all lives by whoever started them.
    """
    submissions = {s.uuid: s for s in run.submissions()}
    beats = {facts.get("instance", ""): facts for facts in newest}
    found = []
    free = dict(seen)
    for instance, activity in reader.lives.items():
        uuid, _, rest = instance.partition("-")
        submission = submissions.get(uuid)
        if submission is None or not activity.first:
            continue
        beat = beats.get(instance, {})
        if not beat and activity.time is None:  # it was killed: its last heartbeat will not change any more
            activity.time = _time_of(heartbeat.read(run.slots, instance))
        engines = cluster_of(submission).workers_per_node
        slot = int(rest.partition("-")[0]) if rest.partition("-")[0].isdigit() else 0
        life = Life(instance, slot, activity.host, str(beat.get("state", "exited")), engines, 0.0, activity, beat)
        life.allocation = free.pop(activity.allocation, None)  # at most one life gets a record
        time = _time_of(beat) if beat else activity.time or {}
        ended = activity.stopped or beat.get("state") == "exited"
        _set_times(life, time, _seconds_after(activity, time), killed=life.state in ENDED and not ended)
        found.append(life)
    return found


def lives_of_other_identities(run: Run, latest: Submission, seen: Mapping[str, Allocation]) -> list[Life]:
    """All lives that worked for another identity than the newest launch's, by their heartbeats alone."""
    theirs = {s.uuid: s for s in run.submissions() if s.identity != latest.identity}
    found = []
    for beat in heartbeat.read_all(run.slots) if theirs else []:
        instance = str(beat.get("instance"))
        submission = theirs.get(instance.partition("-")[0])
        if submission is None:
            continue
        state, engines = str(beat.get("state", "silent")), cluster_of(submission).workers_per_node
        activity = Activity(str(beat.get("host", "")), job=str(beat.get("job", "")))
        life = Life(instance, int(beat.get("slot", 0)), activity.host, state, engines, 0.0, activity, beat)
        life.allocation = seen.get(str(beat.get("allocation")))
        _set_times(life, _time_of(beat), 0.0, killed=state != "exited")
        found.append(life)
    return found


def unregistered_lives(run: Run, others: Iterable[Life], seen: Mapping[str, Allocation]) -> list[Life]:
    """Lives that ended before their worker could register: no python, no container, no code, a wrong node.

    Args:
        others: all lives that did register.
    """
    known = {id(life.allocation) for life in others}
    submissions = {s.uuid: s for s in run.submissions()}
    found = []
    for name, allocation in seen.items():
        if id(allocation) in known:
            continue
        submission = submissions.get(allocation.launch) or run.latest()
        engines, activity = cluster_of(submission).workers_per_node, Activity(allocation.host, job=allocation.job)
        life = Life(name, 0, allocation.host, "exited", engines, allocation.lasted() or 0.0, activity)
        life.allocation, life.by = allocation, STARTER
        life.kinds = {BROKEN: life.seconds * engines}
        found.append(life)
    return found


def _set_times(life: Life, time: dict[str, Any], after: float, *, killed: bool) -> None:
    """Set a life's `kinds`, `seconds` and `by`.

    Args:
        time: the sums that it wrote last, see `SlotTime.summed`. after: seconds for which its journal went on after
            that.
        killed: it ended without writing that it did.
    """
    life.kinds = kinds_of(time, dead=life.state in ENDED)
    if not life.kinds:
        activity, said = life.activity, life.beat.get("t")
        life.seconds = max(0.0, max(activity.last, float(said or 0.0)) - activity.first)
        if life.allocation is not None and life.allocation.ended is not None:
            life.seconds, life.by = life.allocation.lasted() or 0.0, STARTER
        return
    life.kinds[WORK] += life.engines * after
    last, allocation = time.get("up"), life.allocation
    last = float(last) + after if isinstance(last, int | float) else None
    if allocation is not None and (lasted := allocation.lasted(last)) is not None:
        life.by = STARTER if allocation.ended is not None or not killed else SIGNS
        if killed and allocation.ended is not None and last is not None:
            worked = life.kinds[WORK] + life.kinds[REDONE] > 0
            life.kinds[REDONE if worked else START] += life.engines * max(0.0, allocation.ended - last)
        life.kinds[START] += max(0.0, life.engines * lasted - sum(life.kinds.values()))
    life.seconds = sum(life.kinds.values()) / life.engines


def _time_of(beat: dict[str, Any]) -> dict[str, Any]:
    """The sums of its slot's time that a heartbeat holds, with `t`, when it was written; {} where it holds none."""
    time = beat.get("time")
    return {**time, "t": beat.get("t")} if isinstance(time, dict) else {}


def _seconds_after(activity: Activity, time: dict[str, Any]) -> float:
    """Seconds for which a journal goes on after the heartbeat whose sums these are. Both have one machine's clock."""
    told = time.get("t")
    if not isinstance(told, int | float) or not activity.first <= told <= activity.last:
        return 0.0  # or the clock was set meanwhile
    return min(activity.last - told, BEAT_S)


def kinds_of(time: Any, *, dead: bool = False) -> dict[str, float]:
    """Engine-seconds by kind from the `time` of a heartbeat or a journal; {} where it holds none.

    Args:
        dead: the slot has ended: what it had not saved is lost.
    """
    try:
        seconds = {kind: max(0.0, float(time["seconds"][kind])) for kind in KINDS}
        unsaved = min(seconds[WORK], max(0.0, float(time["unsaved"]))) if dead else 0.0
    except (KeyError, TypeError, ValueError):
        return {}
    return {**seconds, WORK: seconds[WORK] - unsaved, REDONE: seconds[REDONE] + unsaved}
