"""Where the hours of a run's engines (GPUs, where there are any) went, through all lives of its slots.

Each slot says it of itself, see hpc.map.life. Here work is told apart by what became of it: samples that a run has
saved and later made again, or thrown away (a rerun, a failed shard, another identity), are redone, too. Where Slurm
keeps accounts, a life lasts as long as they say: what they count beyond it is `unseen`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpc.map import cost
from hpc.map.engine_time import BROKEN, IDLE, INPUT, REDONE, START, WORK
from hpc.map.life import BY, ENDED, SLURM, Life, cluster_of, lives, of_other_identities, without_a_word
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


TAIL_S = 300.0  # that processes may outlast their job in Slurm's accounts, which end with scancel or the time limit
_SAME_S = 2.0  # between two words of Slurm for one moment


@dataclass
class Account:
    """mine: lives that work, or worked, for the newest launch's identity. hours: of engines, by kind, in the order of
    WORDS, those that are nothing left out. by: number of lives by what their time is known by, see hpc.map.life.
    """

    mine: list[Life]
    hours: dict[str, float]
    by: dict[str, int]

    @property
    def total(self) -> float:
        """Hours for which the slots were there."""
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


def of_run(run: Run, tally: Tally, newest: list[dict[str, Any]], standing: int, accounts: Accounts) -> Account:
    """All hours of a run.

    Args:
        newest: heartbeats of the newest lives. standing: samples that count, of those that the lives have saved.
    """
    seen = tally.allocations.refresh()
    mine, others = lives(run, tally.reader, newest, seen), of_other_identities(run, tally.latest, seen)
    mine += without_a_word(run, [*mine, *others], seen)
    unseen = hold_to(accounts, [*mine, *others], run)
    counted = Counter(life.by for life in (*mine, *others))
    return Account(mine, by_kind(mine, others, standing, unseen), {by: counted[by] for by in BY if counted[by]})


def by_kind(mine: list[Life], others: Iterable[Life], standing: int, unseen_s: float) -> dict[str, float]:
    """Engine-hours by kind.

    Args:
        others: lives that worked for another identity. unseen_s: engine-seconds of Slurm's alone.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    for life in mine:
        _add(seconds, life.kinds or {UNKNOWN: life.seconds * life.engines})
    produced = sum(life.activity.samples for life in mine)
    again = seconds[WORK] * max(0, produced - standing) / produced if produced else 0.0
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


def hold_to(accounts: Accounts, found: Iterable[Life], run: Run) -> float:
    """Let lives last as long as Slurm's accounts say; engine-seconds that these have beyond them.

    A life is known by when its job began; without a moment of Slurm's (before 23.02 it tells jobs of none), by when its
    script did. Lives of which neither is known are held against what the accounts have left of their element. Jobs and
    lives that the accounts lack last as long as they did.
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
            continue  # its controller's clock was set
        unseen += max(0.0, elapsed - life.seconds) * life.engines
        if elapsed < life.seconds and life.state in ENDED:
            life.scale(elapsed)
        life.by = SLURM
    for element, spans in left.items():
        unseen += max(0.0, sum(spans.values()) - own[element]) * engines.get(element.partition("_")[0], 0)
    return unseen


def _began(spans: Mapping[float, float], allocation: Allocation | None) -> float | None:
    """When a life's job began, of those times that the accounts have of its element; None where they lack it."""
    if allocation is None or not spans:
        return None
    moment = allocation.since or allocation.t
    at = min(spans, key=lambda start: abs(start - moment))
    within = _SAME_S if allocation.since else LONGEST_PROLOG_S
    there = abs(at - moment) <= within and moment <= at + spans[at] + _SAME_S  # a script begins while its job lasts
    return at if there else None
