"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Mean:
    """A mean, or another statistic, of n values and its 95 % bootstrap interval. each: the values, by what they are of,
    where that was said (shard and key of a caption): what metrics are compared by.
    """

    value: float
    low: float
    high: float
    n: int
    each: Mapping[Any, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def plain(self) -> dict[str, float]:
        """For JSON; without each value."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Mean:
    """A statistic of all rows, and between which bounds it lies for 95 % of 1,000 resamples of them (percentile
    bootstrap; Efron 1979).

    Args:
        rows: at least one; along the first axis.
    """
    rng = np.random.default_rng(seed)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(_RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Mean(statistic(rows), float(low), float(high), len(rows))


def bootstrap_ratio(
    parts: Sequence[tuple[float, float]] | Mapping[Any, tuple[float, float]], seed: int = 0
) -> Mean | None:
    """The ratio of two sums with its 95 % bootstrap interval; n is the number of parts. None where it is undefined: the
    second sum is 0. Resamples in which it is are left out of the interval.

    Args:
        parts: numerator and denominator of what is drawn together: of one image, whose answers depend on each other.
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
    """The mean with its 95 % bootstrap interval, of at least one value."""
    each = {name: float(value) for name, value in values.items()} if isinstance(values, Mapping) else {}
    rows = np.asarray(list(values.values()) if isinstance(values, Mapping) else values, dtype=np.float64)
    found = bootstrap(rows, lambda chosen: float(chosen.mean()), seed)
    return replace(found, each=each) if each else found


def bootstrap_mean_of_means(parts: Sequence[Mapping[Any, float]], seed: int = 0) -> Mean:
    """The mean of several means with its 95 % bootstrap interval; what has one name in several parts is drawn together:
    an image's battles with several opponents depend on each other. n is the number of names.

    Args:
        parts: the values of each mean, at least one, by name: `Mean.each`.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    rows = np.array([[(part.get(name, 0.0), name in part) for part in parts] for name in names], dtype=np.float64)

    def of(drawn: np.ndarray) -> float:
        sums = drawn.sum(axis=0)
        known = sums[:, 1] > 0
        return float((sums[known, 0] / sums[known, 1]).mean())

    return bootstrap(rows, of, seed)
