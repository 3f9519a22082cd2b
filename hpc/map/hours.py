"""Where the hours of a run's engines (GPUs, where there are any) went, through all lives of its slots.

Each life of a slot tells where its time went, see hpc.map.life. Here its work is divided by what became of it: work on
samples that were saved, but later made again or thrown away (a rerun, a failed shard, another identity), counts as
redone, too. Where Slurm keeps accounts, a life lasts as long as they say; time that only they know of is `unseen`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpc.map import cost
from hpc.map.engine_time import BROKEN, IDLE, INPUT, REDONE, START, WORK
from hpc.map.life import BY, ENDED, SLURM, Life, cluster_of, lives, lives_of_other_identities, unregistered_lives
from hpc.map.tally import Tally
from hpc.run.allocations import LONGEST_PROLOG_S, Allocation
from hpc.run.directory import Run, Submission
from hpc.slurm.accounting import Accounts

USEFUL, UNSEEN, UNKNOWN = "useful", "unseen", "unknown"
WORDS = {
    USEFUL: "useful",
    REDONE: "redone: lost before it was saved, done again or thrown away",
    INPUT: "waiting for input",
    START: "start-up and model load",
    BROKEN: "broken: hung, given up, excluded, never begun, a service away",
    IDLE: "idle: no shard was left for it",
    UNSEEN: "seen by Slurm alone: before a slot's start, after its last word",
    UNKNOWN: "not told apart: slots of an earlier version, words that are lost",
}


TAIL_S = 300.0  # by which processes may outlast their job in Slurm's accounts, where scancel or the time limit ends it
_SAME_S = 2.0  # by which two times that Slurm gives for one moment may differ


@dataclass
class RunHours:
    """The hours of a run.

    mine: lives that work, or worked, for the newest launch's identity. hours: of engines, by kind, in the order of
    WORDS; kinds without hours are left out. by: number of lives by the source of their time, see `BY` in hpc.map.life.
    """

    mine: list[Life]
    hours: dict[str, float]
    by: dict[str, int]

    @property
    def total(self) -> float:
        """All hours of the engines."""
        return sum(self.hours.values())

    def described(self, latest: Submission) -> dict[str, Any]:
        """In words and with money, as status and reports show it."""
        price, unit = latest.config["cluster"].get("price"), cost.unit(cluster_of(latest))
        kinds = {
            kind: {"what": WORDS[kind], "hours": round(h, 9), "cost": None if price is None else round(h * price, 4)}
            for kind, h in self.hours.items()
        }
        accounted = self.total - self.hours.get(UNSEEN, 0.0)
        said = f"{accounted:,.3f} of {self.total:,.3f} {unit} hours of the slots are accounted for"
        known = ", ".join(f"{number:,} {BY[by]}" for by, number in self.by.items())
        what = f"{said}; lives: {known}" if known else said
        return {"by_kind": kinds, "accounted": {"hours": round(accounted, 9), "lives": self.by, "what": what}}


def of_run(run: Run, tally: Tally, newest: list[dict[str, Any]], kept: int, accounts: Accounts) -> RunHours:
    """All hours of a run.

    Args:
        newest: heartbeats of the newest lives. kept: samples that count now, of all that the lives have saved.
    """
    seen = tally.allocations.refresh()
    mine, others = lives(run, tally.reader, newest, seen), lives_of_other_identities(run, tally.latest, seen)
    mine += unregistered_lives(run, [*mine, *others], seen)
    unseen = apply_accounts(accounts, [*mine, *others], run)
    counted = Counter(life.by for life in (*mine, *others))
    return RunHours(mine, by_kind(mine, others, kept, unseen), {by: counted[by] for by in BY if counted[by]})


def by_kind(mine: list[Life], others: Iterable[Life], kept: int, unseen_s: float) -> dict[str, float]:
    """Engine-hours by kind.

    Args:
        others: lives that worked for another identity. kept: as for `of_run`. unseen_s: engine-seconds that only
            Slurm's accounts know of.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for life in mine:
        _add(seconds, life.kinds or {UNKNOWN: life.seconds * life.engines})
    produced = sum(life.activity.samples for life in mine)
    again = seconds[WORK] * max(0, produced - kept) / produced if produced else 0.0
    seconds[USEFUL] = seconds.pop(WORK, 0.0) - again
    seconds[REDONE] += again
    for life in others:
        found = dict(life.kinds)
        seconds[REDONE] += found.pop(WORK, 0.0)
        _add(seconds, found)
    seconds[UNSEEN] += unseen_s
    return {kind: seconds[kind] / 3600 for kind in WORDS if seconds[kind] > 0}


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for kind, seconds in more.items():
        total[kind] += seconds


def apply_accounts(accounts: Accounts, found: Iterable[Life], run: Run) -> float:
    """Set how long lives have lasted by Slurm's accounts. Returns the engine-seconds of the accounts beyond all lives.

    A life is found in the accounts by the time at which its job began, or, where Slurm did not tell the job of that
    (before 23.02), by the time at which its script began. Lives without either are subtracted from what the accounts
    have left of their array element. A life that the accounts lack stays as it is.
    """
    engines = {job: cluster_of(s).workers_per_node for s in run.submissions() for job in s.job_ids}
    left = {element: dict(spans) for element, spans in accounts.items()}
    unseen, own = 0.0, defaultdict[str, float](float)
    for life in found:
        spans = left.get(life.activity.job, {})
        at = _began(spans, life.allocation)
        if at is None:
            own[life.activity.job] += life.seconds
            continue
        elapsed = spans.pop(at)
        if elapsed < life.seconds - TAIL_S:
            continue  # the controller's clock was changed meanwhile
        unseen += max(0.0, elapsed - life.seconds) * life.engines
        if elapsed < life.seconds and life.state in ENDED:
            life.scale(elapsed)
        life.by = SLURM
    for element, spans in left.items():
        unseen += max(0.0, sum(spans.values()) - own[element]) * engines.get(element.partition("_")[0], 0)
    return unseen


def _began(spans: Mapping[float, float], allocation: Allocation | None) -> float | None:
    """The begin, of those in the accounts of its array element, that is this life's; None where there is none."""
    if allocation is None or not spans:
        return None
    moment = allocation.since or allocation.t
    at = min(spans, key=lambda start: abs(start - moment))
    within = _SAME_S if allocation.since else LONGEST_PROLOG_S
    there = abs(at - moment) <= within and moment <= at + spans[at] + _SAME_S  # a script begins while its job lasts
    return at if there else None
