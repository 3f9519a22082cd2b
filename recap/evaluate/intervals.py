"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 1000


@dataclass(frozen=True)
class Mean:
    """A mean of n values and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """The mean, and between which bounds 95 % of the means of 1,000 resamples lie (percentile bootstrap; Efron 1979).

    Args:
        values: at least one.
    """
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Mean(float(array.mean()), float(low), float(high), len(array))
