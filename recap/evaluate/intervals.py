"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Mean:
    """A mean, or another statistic, of n values and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


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


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """The mean with its 95 % bootstrap interval, of at least one value."""
    return bootstrap(np.asarray(values, dtype=np.float64), lambda chosen: float(chosen.mean()), seed)
