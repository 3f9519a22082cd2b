"""A judge's answers as a generating job has published them, with an account of those that say nothing.

A judge is `configs/generate/judge.yaml` or one of `configs/systems/`: asking shards, resumes, reruns and counts as
captions do, and answers are kept. A metric is a function of its rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.generate.operator import MISSING, UNPARSED

REFUSED = "server: status 400"  # a judge that does not want to look at an image says so
NO_CAPTION = MISSING


@dataclass
class Judged:
    """rows: those that are ok, whole. asked: all that are no skips by a rule. unparsed, refused, unanswered, empty:
    rows without a verdict, by why (empty: there was no text to judge). truncated: of the rows, those whose answer was
    cut at its limit.
    """

    run: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    unparsed: int = 0
    refused: int = 0
    unanswered: int = 0
    empty: int = 0
    truncated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def account(self) -> dict[str, int]:
        """What stands beside every number."""
        names = ("asked", "unparsed", "refused", "unanswered", "empty", "truncated")
        return {name: getattr(self, name) for name in names}


def read(run: Path, fields: list[str]) -> Judged:
    """All published rows of a judge's run.

    Args:
        fields: that the metric needs.

    Raises:
        UserError: it is no such run, has not all these fields, or no row has a verdict.
    """
    found = Judged(run)
    for shard in Published(run):
        table = shard.table()
        if lacking := [name for name in fields if name not in table.column_names]:
            raise UserError(
                f"evaluate: the column of {run} has no field {lacking[0]!r} (it has {', '.join(table.column_names)}): "
                "is it the judge's run that this metric is made of?"
            )
        for row in table.to_pylist():
            _count(found, row)
    if not found.rows:
        why = ", ".join(f"{count:,} {reason}" for reason, count in found.reasons.most_common(3))
        raise UserError(f"evaluate: no row of {run} has a verdict ({why or 'nothing is published yet'}).")
    return found


def _count(found: Judged, row: dict[str, Any]) -> None:
    found.asked += 1
    found.truncated += row.get("finish") == "length"
    if row["status"] == OK:
        found.rows.append(row)
        return
    reason = row["reason"] or row["status"]
    found.reasons[reason] += 1
    if reason == UNPARSED:
        found.unparsed += 1
    elif reason.startswith(REFUSED):
        found.refused += 1
    elif reason.startswith(NO_CAPTION):
        found.empty += 1
    else:
        found.unanswered += 1
