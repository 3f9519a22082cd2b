"""How a map job has ended, once all its shards are done or failed.

A run in which no sample is ok has failed, whatever its markers say: the pattern for images may be wrong, or the
decoder. Rows that a rule of the config dropped (`by_rule` of an operator) do not count against it: a run with only such
rows has ended well. So has one whose config says `map.allow_nothing`, e.g. of a judge that may refuse everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from hpc.base.errors import Exit
from hpc.operator import OK
from hpc.run.directory import Run, Submission
from hpc.run.ledger import FAILED as SHARD_FAILED
from hpc.run.ledger import Ledger
from hpc.run.plan import Plan


def fruitless(samples: Mapping[str, int], reasons: Mapping[str, int], by_rule: Iterable[str]) -> str:
    """Why a finished run has made nothing; "" where it made something, or where a rule dropped all that there was.

    Args:
        samples: number by status; reasons: number by "status: reason", as in markers.
        by_rule: reasons of rows that a rule of the config dropped.
    """
    total = sum(samples.values())
    if samples.get(OK, 0):
        return ""
    if not total:
        return "no shard holds a sample"
    dropped = set(by_rule)
    left = {r: n for r, n in reasons.items() if n and r.partition(": ")[2] not in dropped}
    if total == sum(reasons.values()) and not left:
        return ""
    said = max(left, key=lambda reason: left[reason]) if left else "no reason given"
    return f"no sample is ok; of {total:,}, {left.get(said, total):,} are {said}"


def barren(shards: int, example: str) -> str:
    """The message about shards that could not be read at all, "" where there are none."""
    return f"{shards:,} unreadable {'shard' if shards == 1 else 'shards'} gave nothing ({example})" if shards else ""


def allowed(submission: Submission) -> bool:
    """Whether its run may have nothing to show for."""
    return bool(submission.config.get("map", {}).get("allow_nothing"))


def of_markers(run: Run, submission: Submission, ledger: Ledger, plan: Plan) -> str:
    """`fruitless` of a finished run. Reads markers until one has a good sample: nearly always the first."""
    if allowed(submission):
        return ""
    samples: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for marker in ledger.markers(plan.ids(), run.generations.by_bucket()):
        samples.update(marker.get("counts", {}))
        reasons.update(marker.get("reasons", {}))
        if samples[OK]:
            return ""
    return fruitless(samples, reasons, submission.by_rule)


def of_newest(run: Run) -> str:
    """The same, of a run's newest launch."""
    latest = run.latest()
    return of_markers(run, latest, run.ledger(latest.identity), Plan(run.plans, latest.plan))


def of_run(
    run: Run, submission: Submission, ledger: Ledger, plan: Plan, empty: Iterable[tuple[str, int]] = ()
) -> tuple[Exit, str] | None:
    """(exit code of a job, why); None while shards are left.

    Args:
        empty: (shard, generation) of damaged shards without a row that this process has published itself.
    """
    counts = ledger.outcome(plan.ids(), run.generations.by_bucket())
    if counts is None:
        return None
    if failed := counts[SHARD_FAILED]:
        return Exit.SOME_FAILED, f"nothing is left to do; {failed} shards failed"
    if why := of_markers(run, submission, ledger, plan):
        return Exit.SOME_FAILED, f"nothing is left to do; {why}"
    reopened = run.generations.opened() if empty else {}
    if still := [shard for shard, generation in empty if reopened.get(shard, 0) <= generation]:
        return Exit.SOME_FAILED, f"nothing is left to do; {barren(len(still), min(still))}"
    return Exit.COMPLETE, "every shard is done"
