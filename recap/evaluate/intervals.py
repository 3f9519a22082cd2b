"""Means and ratios with 95 % bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Mean:
    """A mean, or another statistic, of n values, with its 95 % bootstrap interval [low, high].

    each: the values by what they belong to, such as the shard and key of a caption; {} where that was not given.
        Metrics are compared with one another by it.
    """

    value: float
    low: float
    high: float
    n: int
    each: Mapping[Any, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def plain(self) -> dict[str, float]:
        """All but the single values, for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Mean:
    """A statistic of all rows, with the interval in which it lies for 95 % of 1,000 resamples of the rows (percentile
    bootstrap; Efron 1979).

    Args:
        rows: [rows, ...], at least one row.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Mean(statistic(rows), float(low), float(high), len(rows))


def bootstrap_ratio(
    parts: Sequence[tuple[float, float]] | Mapping[Any, tuple[float, float]], seed: int = 0
) -> Mean | None:
    """The ratio of two sums with its 95 % bootstrap interval; n is the number of parts. None where the second sum is 0.
    Resamples with a second sum of 0 are left out of the interval.

    Args:
        parts: (numerator, denominator) of each unit that is resampled as a whole, such as an image, whose answers
            depend on one another.
    """
    named = parts if isinstance(parts, Mapping) else {}
    each = {name: part / whole for name, (part, whole) in named.items() if whole}
    rows = np.asarray(list(parts.values()) if isinstance(parts, Mapping) else parts, dtype=np.float64).reshape(-1, 2)
    whole = rows.sum(axis=0)
    if not whole[1]:
        return None
    rng = np.random.default_rng(seed)
    sums = np.array([rows[rng.integers(0, len(rows), len(rows))].sum(axis=0) for _ in range(_RESAMPLES)])
    defined = sums[sums[:, 1] > 0]
    low, high = np.percentile(defined[:, 0] / defined[:, 1], [2.5, 97.5])
    return Mean(float(whole[0] / whole[1]), float(low), float(high), len(rows), each)


def bootstrap_mean(values: Sequence[float] | Mapping[Any, float], seed: int = 0) -> Mean:
    """The mean of at least one value, with its 95 % bootstrap interval."""
    each = {name: float(value) for name, value in values.items()} if isinstance(values, Mapping) else {}
    rows = np.asarray(list(values.values()) if isinstance(values, Mapping) else values, dtype=np.float64)
    found = bootstrap(rows, lambda chosen: float(chosen.mean()), seed)
    return replace(found, each=each) if each else found


def bootstrap_mean_of_means(parts: Sequence[Mapping[Any, float]], seed: int = 0) -> Mean:
    """The mean of several means, with its 95 % bootstrap interval. Values with the same name in several parts are
    resampled together, since an image's battles with several opponents depend on one another. n is the number of names;
    `each` is a name's mean over the parts.

    Args:
        parts: for each mean its values by name (`Mean.each`), at least one.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = np.array([[(part.get(name, 0.0), name in part) for part in parts] for name in names], dtype=np.float64)

    def of(drawn: np.ndarray) -> float:
        sums = drawn.sum(axis=0)
        known = sums[:, 1] > 0
        return float((sums[known, 0] / sums[known, 1]).mean())

    found = bootstrap(rows, of, seed)
    return replace(found, each=dict(zip(names, rows[:, :, 0].sum(axis=1) / rows[:, :, 1].sum(axis=1), strict=True)))
