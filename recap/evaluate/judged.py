"""Reads a judge's answers from the column that a generating job published, and counts rows without a verdict.

A judge is a job such as `configs/generate/judge.yaml` or one of `configs/systems/`, with everything that a captioning
job has. A metric is a function of its rows.
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

REFUSED = "server: status 400"  # the answer of a server that refuses to look at an image
NO_CAPTION = MISSING


@dataclass
class Judged:
    """A judge's run.

    rows: all rows with a verdict, with all fields and their `shard`.
    asked: number of rows that were asked about (all but those that a rule skipped).
    unparsed, refused, unanswered, empty: numbers of rows without a verdict, by reason; empty: there was no text to
        judge.
    truncated: rows whose answer was cut at the token limit.
    unfinished: shards of the run that are not published.
    reasons: of the rows without a verdict.
    empties, lost: shard and key of the empty rows, and of the others without a verdict.
    digests: sha256 of the images of samples, where they are known.
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
        """The rows by (shard, key) of their sample. Rows `k#0`, `k#1`, ... are together under `k`, in order."""
        found: dict[Sample, list[dict[str, Any]]] = {}
        for row in self.rows:
            found.setdefault((row["shard"], without_dot_slash(parent_of(row["key"]))), []).append(row)
        return found

    def samples(self) -> list[Sample]:
        """(shard, key) of all rows that were asked about, with a verdict or without."""
        return [
            *((row["shard"], without_dot_slash(row["key"])) for row in self.rows),
            *sorted(self.empties),
            *sorted(self.lost),
        ]

    def of_rows(self) -> dict[Sample, dict[str, Any]]:
        """The rows of a run of samples, by shard and key."""
        return {(row["shard"], without_dot_slash(row["key"])): row for row in self.rows}

    def as_text_set(self, samples: Iterable[Sample] = ()) -> TextSet:
        """Samples (default: all) as a set of texts, in which each one's text is its name, so that `join_by_sample`
        matches them with another set's."""
        texts = {sample: [name_of(sample)] for sample in samples or self.samples()}
        return TextSet(self.run, texts, {sample: found for sample, found in self.digests.items() if sample in texts})

    @property
    def account(self) -> dict[str, int]:
        """The counts that are reported beside every number."""
        names = ("asked", "unparsed", "refused", "unanswered", "empty", "truncated")
        return {name: getattr(self, name) for name in names} | unfinished(self.unfinished)


def name_of(sample: Sample) -> str:
    """Shard and key as one string."""
    return "\0".join(sample)


def read(run: Path, fields: list[str]) -> Judged:
    """All published rows of a judge's run.

    Args:
        fields: that the metric needs.

    Raises:
        UserError: it is no such run, lacks one of these fields, or no row has a verdict.
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
        raise UserError(f"evaluate: no row of {run} has a verdict: {_why_none(found)}.")
    return found


def _why_none(found: Judged) -> str:
    if not found.asked:
        return "nothing is published yet" if found.unfinished else "n = 0: what it asks about has no row"
    why = ", ".join(f"{count:,} {reason}" for reason, count in found.reasons.most_common(3))
    return f"n = 0 of {found.asked:,} asked, {found.refused:,} refused ({why})"


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
