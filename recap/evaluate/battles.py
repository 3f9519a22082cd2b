"""Which of two captions of an image a judge prefers, counted as CapArena-Auto does (arXiv 2503.12329).

The caption that is shown first is drawn by a hash of the sample's key, and the row says which it is. The published
script draws it anew in each run, leaves unreadable answers out of its sum without a correction, and finds verdicts by
substring.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hpc.base.errors import UserError
from recap.data.headers import without_dot_slash
from recap.evaluate.intervals import Mean, bootstrap_mean
from recap.evaluate.judged import Judged

VERDICTS = ("first", "second", "tie")
FIELDS = ["verdict", "order"]


@dataclass(frozen=True)
class Battles:
    """Counts of battles between the columns `ours` and `theirs`.

    score: 100 (wins - losses) / n, from -100 to 100; for 200 verdicts the published (wins - losses) / 2.
    first: share of battles, without ties, that the caption shown first won; None where all are ties.
    """

    ours: str
    theirs: str
    score: Mean
    wins: int
    losses: int
    ties: int
    first: float | None


def compute(judged: Judged, ours: str = "ours") -> Battles:
    """The battles of a run of `configs/systems/caparena.yaml`.

    Args:
        ours: the column that is scored; the other one is its opponent.

    Raises:
        UserError: a verdict is another word, or the columns are not two, one of them `ours`.
    """
    sides = {name for row in judged.rows for name in row["order"] or []}
    if len(sides) != 2 or ours not in sides:
        raise UserError(
            f"evaluate: {judged.run} compares the columns {', '.join(sorted(sides)) or '(none)'}: expected two, with "
            f"{ours!r} among them. Name the column that is scored with --of."
        )
    (theirs,) = sides - {ours}
    points = [point(row, ours, judged) for row in judged.rows]
    samples = [(row["shard"], without_dot_slash(row["key"])) for row in judged.rows]
    score = bootstrap_mean([100 * point for point in points])
    decided = [row["verdict"] for row in judged.rows if row["verdict"] != "tie"]
    return Battles(
        ours, theirs, replace(score, each=dict(zip(samples, (100.0 * point for point in points), strict=True))),
        wins=points.count(1), losses=points.count(-1), ties=points.count(0),
        first=decided.count("first") / len(decided) if decided else None,
    )  # fmt: skip


def point(row: dict[str, Any], ours: str, judged: Judged) -> int:
    """1 where the column `ours` won, -1 where the other did, 0 for a tie. UserError for any other verdict."""
    if row["verdict"] not in VERDICTS:
        raise UserError(
            f"evaluate: {judged.run}: key {row['key']} has the verdict {row['verdict']!r}: expected one of "
            f"{', '.join(VERDICTS)}."
        )
    if row["verdict"] == "tie":
        return 0
    return 1 if row["order"][VERDICTS.index(row["verdict"])] == ours else -1
