"""Which shards of a run's newest plan are not finished."""

from __future__ import annotations

from hpc.base.patience import MOST_S, patiently
from hpc.run.directory import Run
from hpc.run.ledger import DONE, FAILED
from hpc.run.plan import Plan


def unfinished_shards(run: Run) -> tuple[list[str], list[str], int]:
    """(ids of shards neither done nor failed, ids that failed, number of shards that are done) in the newest plan."""
    latest = run.latest()
    survey = run.ledger(latest.identity).survey(run.generations.opened())
    opened: list[str] = []
    failed: list[str] = []
    done = 0
    stored = patiently(lambda: Plan(run.plans, latest.plan), MOST_S)
    for shard in stored.ids():
        status = survey[shard].status if shard in survey else ""
        if status == DONE:
            done += 1
        else:
            (failed if status == FAILED else opened).append(shard)
    return opened, failed, done


def first_names(shards: list[str]) -> str:
    """The first ten of these names, and how many more there are."""
    return ", ".join(shards[:10]) + (f" and {len(shards) - 10} more" if len(shards) > 10 else "")
