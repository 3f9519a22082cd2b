"""A judge's answers as a generating job has published them, with an account of those that say nothing.

A judge is `configs/generate/judge.yaml` or one of `configs/systems/`: asking shards, resumes, reruns and counts as
captions do, and answers are kept. A metric is a function of its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc.base.errors import UserError
from hpc.operator import OK
from hpc.run.published import Published
from recap.data.headers import without_dot_slash
from recap.data.rows import parent_of
from recap.data.same_image import FIELD
from recap.evaluate.text_sets import Sample, TextSet, unfinished
from recap.generate.operator import MISSING, UNPARSED

REFUSED = "server: status 400"  # a judge that does not want to look at an image says so
NO_CAPTION = MISSING


@dataclass
class Judged:
    """rows: those that are ok, whole, each with its `shard`. asked: all that are no skips by a rule. unparsed, refused,
    unanswered, empty: rows without a verdict, by why (empty: there was no text to judge). truncated: of the rows, those
    whose answer was cut at its limit. unfinished: shards of the run that are not published. empties, lost: shard and
    key of the rows that are empty, and of the others without a verdict. digests: of the images of samples, where they
    are known.
    """

    run: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    unparsed: int = 0
    refused: int = 0
    unanswered: int = 0
    empty: int = 0
    truncated: int = 0
    unfinished: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    empties: set[Sample] = field(default_factory=set)
    lost: set[Sample] = field(default_factory=set)
    digests: dict[Sample, str] = field(default_factory=dict)

    def of_samples(self) -> dict[Sample, list[dict[str, Any]]]:
        """The rows by shard and sample: those of children `k#0`, `k#1`, ... together, in their order."""
        found: dict[Sample, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault((row["shard"], without_dot_slash(parent_of(row["key"]))), []).append(row)
        return found

    def samples(self) -> list[Sample]:
        """Shard and key of all rows that were asked about, with a verdict or without."""
        return [
            *((row["shard"], without_dot_slash(row["key"])) for row in self.rows),
            *sorted(self.empties),
            *sorted(self.lost),
        ]

    def of_rows(self) -> dict[Sample, dict[str, Any]]:
        """The rows of a run of samples, by shard and key."""
        return {(row["shard"], without_dot_slash(row["key"])): row for row in self.rows}

    def named(self, samples: Iterable[Sample] = ()) -> TextSet:
        """All samples, or some, as a set of texts, which joins them with another's: each one's text is its name."""
        texts = {sample: [name_of(sample)] for sample in samples or self.samples()}
        return TextSet(self.run, texts, {sample: found for sample, found in self.digests.items() if sample in texts})

    @property
    def account(self) -> dict[str, int]:
        """What stands beside every number."""
        names = ("asked", "unparsed", "refused", "unanswered", "empty", "truncated")
        return {name: getattr(self, name) for name in names} | unfinished(self.unfinished)


def name_of(sample: Sample) -> str:
    """What a sample is called where both of its parts are one text."""
    return "\0".join(sample)


def read(run: Path, fields: list[str]) -> Judged:
    """All published rows of a judge's run.

    Args:
        fields: that the metric needs.

    Raises:
        UserError: it is no such run, has not all these fields, or no row has a verdict.
    """
    published = Published(run)
    found = Judged(run, unfinished=len(published.missing()))
    for shard in published:
        table = shard.table()
        if lacking := [name for name in fields if name not in table.column_names]:
            raise UserError(
                f"evaluate: the column of {run} has no field {lacking[0]!r} (it has {', '.join(table.column_names)}): "
                "is it the judge's run that this metric is made of?"
            )
        for row in table.to_pylist():
            _count(found, row | {"shard": shard.shard.id})
    if not found.rows:
        why = ", ".join(f"{count:,} {reason}" for reason, count in found.reasons.most_common(3))
        raise UserError(f"evaluate: no row of {run} has a verdict ({why or 'nothing is published yet'}).")
    return found


def _count(found: Judged, row: dict[str, Any]) -> None:
    found.asked += 1
    found.truncated += row.get("finish") == "length"
    sample = (row["shard"], without_dot_slash(row["key"]))
    if digest := row.get(FIELD):
        found.digests[sample] = digest
    if row["status"] == OK:
        found.rows.append(row)
        return
    reason = row["reason"] or row["status"]
    found.reasons[reason] += 1
    if reason.startswith(NO_CAPTION):
        found.empty += 1
        found.empties.add(sample)
        return
    found.lost.add(sample)
    if reason == UNPARSED:
        found.unparsed += 1
    elif reason.startswith(REFUSED):
        found.refused += 1
    else:
        found.unanswered += 1
