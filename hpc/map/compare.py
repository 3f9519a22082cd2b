"""Compares a run's newest rows with those of its pilot, which come from all over the plan.

There are three measures: the share of rows that are odd (ok with a reason, or with a field `lint` that names
something), the share that failed, and the mean length (a field `tokens`). The rows of one shard resemble one another,
so that a thousand of them tell less than one row each of a thousand shards. Shards are therefore the units of the
estimate. The pilot shows how much they differ from one another, and a window whose rows come from few shards may differ
more from the pilot than one from many (by Kish's effective number of shards, where these have several sizes).

A run counts as different where two windows of WINDOW rows in succession lie outside the interval in which 99.9 % of
such windows lie (Student's t; the three measures share the 0.1 %), in one measure and one direction, and both together
outside one that is wider still: a pilot that is itself off by chance, or two windows of the same large shard, must not
stop a run. Differences under a point, or 3 % of the length, are of no matter.
"""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from hpc.operator import LOST
from hpc.run.directory import Run

if TYPE_CHECKING:
    import pyarrow as pa

WINDOW = 20_000  # rows
STEP = 10_000  # rows after which the last two windows are looked at again
LEAST_UNITS = 8  # shards of a pilot, under which it says too little
_OUTSIDE, _BOTH = 1e-3 / 3, 1e-5  # share of windows like the pilot that lie outside the interval: one, and two joined
_LEAST_SHARE, _LEAST_LENGTH = 0.01, 0.03  # smallest differences that matter: of a share, and relative of a length
_SURE = 0.99  # confidence of the upper bound on how much shards differ


class Measure(NamedTuple):
    """Sums over some rows: how many there are, how many are odd and failed; of those that are ok and have a length, how
    many (`long`), and the sums of the lengths and of their squares.
    """

    rows: int = 0
    odd: int = 0
    failed: int = 0
    long: int = 0
    tokens: int = 0
    squares: int = 0

    @classmethod
    def of(cls, table: pa.Table) -> Measure:
        """The measure of rows as column files hold them."""
        import pyarrow.compute as pc

        ok = pc.equal(table["status"], "ok")
        odd = pc.and_(ok, pc.greater(pc.binary_length(table["reason"]), 0))
        if "lint" in table.column_names and table["lint"].type.num_fields:
            odd = pc.or_(odd, pc.and_(ok, pc.greater(pc.fill_null(pc.list_value_length(table["lint"]), 0), 0)))
        by_work = pc.and_not(pc.equal(table["status"], "failed"), pc.starts_with(table["reason"], LOST))
        failed = pc.or_(by_work, pc.equal(table["status"], "quarantined"))
        count = (table.num_rows, pc.sum(odd).as_py() or 0, pc.sum(failed).as_py() or 0)
        if "tokens" not in table.column_names:
            return cls(*count)
        tokens = table["tokens"].filter(ok).drop_null().cast("int64")
        return cls(*count, len(tokens), pc.sum(tokens).as_py() or 0, pc.sum(pc.multiply(tokens, tokens)).as_py() or 0)

    def plus(self, other: Measure) -> Measure:
        return Measure(*map(operator.add, self, other))


def pilot_units(run: Run, name: str) -> list[Measure]:
    """What the rows of a run's pilot are like, one for each of its shards. name: of its record."""
    record = json.loads((run.path / "pilot" / f"{name}.like.json").read_bytes())
    return [Measure(*numbers) for numbers in record["units"]]


@dataclass(frozen=True)
class _Kind:
    """One of the measures. share: it is a share of rows, shown in per cent."""

    name: str
    share: bool

    def of(self, made: Measure) -> tuple[int, float, float]:
        """Number of rows, their mean, and the variance of one row."""
        if not self.share:
            mean = made.tokens / made.long if made.long else 0.0
            return made.long, mean, max(0.0, made.squares / made.long - mean**2) if made.long else 0.0
        mean = (made.odd if self.name == ODD else made.failed) / made.rows if made.rows else 0.0
        return made.rows, mean, mean * (1.0 - mean)

    def shown(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.share else f"{value:.1f}"


ODD, FAILURES, LENGTH = "odd rows", "failed rows", "tokens a row"
_KINDS = (_Kind(ODD, True), _Kind(FAILURES, True), _Kind(LENGTH, False))


@dataclass(frozen=True)
class Estimate:
    """What the pilot says of one measure: its mean; the variance of that mean (of_mean), from shard to shard (between)
    and of one row (of_row); and the degrees of freedom with which these are known.
    """

    kind: _Kind
    mean: float
    of_mean: float
    between: float
    of_row: float
    freedom: int

    @classmethod
    def of(cls, kind: _Kind, units: Iterable[Measure]) -> Estimate | None:
        """None where too few shards have such rows."""
        found = [triple for unit in units if (triple := kind.of(unit))[0]]
        if len(found) < LEAST_UNITS:
            return None
        counts, rows = [count for count, _, _ in found], sum(count for count, _, _ in found)
        mean = sum(count * value for count, value, _ in found) / rows
        freedom = len(found) - 1
        spread = sum(count * (value - mean) ** 2 for count, value, _ in found) / rows * len(found) / freedom
        of_row = mean * (1 - mean) if kind.share else sum(count * variance for count, _, variance in found) / rows
        by_chance = of_row * len(found) / rows
        # Rows differ by chance alone, which is part of the spread; what exceeds even the upper bound of that is sure to
        # come from the shards.
        most = max(0.0, spread * freedom / _chi_square(1 - _SURE, freedom) - by_chance)
        return cls(kind, mean, spread * sum(c * c for c in counts) / rows**2, min(spread, most), of_row, freedom)

    def half_width(self, rows: int, units: float, outside: float) -> float:
        """Half the width of the interval around the mean in which windows of `rows` rows from `units` shards lie, but
        for the share `outside` of them.
        """
        deviation = math.sqrt(self.of_mean + self.between / units + self.of_row / rows)
        least = _LEAST_SHARE if self.kind.share else _LEAST_LENGTH * self.mean
        return max(least, _student(1 - outside / 2, self.freedom) * deviation)


@dataclass(frozen=True)
class Window:
    """The measure of rows that were made one after another. shards: how many rows came from each."""

    made: Measure
    shards: Counter[str]

    @property
    def units(self) -> float:
        """The effective number of shards (Kish): as many of equal size would tell as much."""
        total = sum(self.shards.values())
        return total**2 / sum(n * n for n in self.shards.values())

    def __add__(self, other: Window) -> Window:
        return Window(self.made.plus(other.made), self.shards + other.shards)


class Comparison:
    """Takes a run's rows and says when they differ from the pilot's.

    Args:
        units: what the pilot's rows are like, one for each of its shards.
    """

    def __init__(self, units: Iterable[Measure]) -> None:
        found = list(units)
        self.estimates = [made for kind in _KINDS if (made := Estimate.of(kind, found)) is not None]
        self._steps: list[Window] = []  # the last 2 * WINDOW rows, in parts of STEP rows
        self._made, self._shards = Measure(), Counter[str]()  # the part that is being filled

    def add(self, shard: str, made: Measure) -> str:
        """Take the next rows. Returns how the run differs by now, "" where it does not."""
        self._made = self._made.plus(made)
        self._shards[shard] += made.rows
        if self._made.rows < STEP:
            return ""
        keep = 2 * WINDOW // STEP
        self._steps = [*self._steps, Window(self._made, self._shards)][-keep:]
        self._made, self._shards = Measure(), Counter()
        return self.difference() if len(self._steps) == keep else ""

    def windows(self) -> tuple[Window, Window] | None:
        """The last two, None where there are not so many rows yet."""
        half = WINDOW // STEP
        if len(self._steps) < 2 * half:
            return None
        return _joined(self._steps[:half]), _joined(self._steps[half:])

    def difference(self) -> str:
        """In what the last two windows differ from the pilot, "" where in nothing."""
        if (two := self.windows()) is None:
            return ""
        both = two[0] + two[1]
        return "; ".join(said for estimate in self.estimates if (said := _differs(estimate, two, both)))

    # --- for another slot that goes on with it ------------------------------------------------

    def dump(self) -> Any:
        parts = [*self._steps, Window(self._made, self._shards)]
        return [[part.made, part.shards] for part in parts]

    def restore(self, saved: Any) -> None:
        *steps, last = [Window(Measure(*made), Counter(shards)) for made, shards in saved]
        self._steps, self._made, self._shards = steps, last.made, last.shards


def _joined(steps: Sequence[Window]) -> Window:
    found = steps[0]
    for step in steps[1:]:
        found += step
    return found


def _differs(estimate: Estimate, two: tuple[Window, Window], both: Window) -> str:
    """How both windows, and the two joined, differ from the pilot in one direction; "" where they do not."""
    signs, means = set(), []
    for window, outside in ((two[0], _OUTSIDE), (two[1], _OUTSIDE), (both, _BOTH)):
        rows, mean, _ = estimate.kind.of(window.made)
        if not rows or abs(mean - estimate.mean) <= estimate.half_width(rows, window.units, outside):
            return ""
        signs.add(mean > estimate.mean)
        means.append(mean)
    if len(signs) > 1:
        return ""
    rows, _, _ = estimate.kind.of(two[1].made)
    wide, shown = estimate.half_width(rows, two[1].units, _OUTSIDE), estimate.kind.shown
    low = max(0.0, estimate.mean - wide)
    return (
        f"{estimate.kind.name}: {shown(means[0])} and {shown(means[1])} in the last two windows of {WINDOW:,} rows; by "
        f"its pilot {shown(low)} to {shown(estimate.mean + wide)}"
    )


# --- quantiles ----------------------------------------------------------------------------------


def _student(probability: float, freedom: int) -> float:
    """Quantile of Student's t: Abramowitz and Stegun 26.7.5, to 2 % from seven degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _chi_square(probability: float, freedom: int) -> float:
    """Quantile of chi-square: Wilson and Hilferty."""
    z = NormalDist().inv_cdf(probability)
    return freedom * max(1e-3, 1 - 2 / (9 * freedom) + z * math.sqrt(2 / (9 * freedom))) ** 3
