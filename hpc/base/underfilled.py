"""How much time is lost while input fills only a part of the batches that an engine could take."""

from __future__ import annotations


class Underfilled:
    """Fits the cost of a batch of n samples, a + b·n seconds, by least squares over the batches it is told of. From
    that it knows what a sample costs in a full batch, and so how much time full batches would have spared.

    Where all batches had one size, a is taken as 0: then nothing counts as lost.
    """

    def __init__(self) -> None:
        self._count = self._n = self._nn = self._s = self._ns = 0.0  # sums over batches: 1, n, n², seconds, n·seconds
        self._short_s = self._short_n = 0.0  # seconds and samples of batches that were not full
        self._lost_s = 0.0

    def took(self, samples: int, seconds: float) -> None:
        """Add a batch, full or not, to the fit."""
        self._count += 1
        self._n += samples
        self._nn += samples * samples
        self._s += seconds
        self._ns += samples * seconds

    def short(self, samples: int, seconds: float) -> None:
        """Count a batch that was not full, beside `took`."""
        self._short_n += samples
        self._short_s += seconds

    def lost_s(self, full: int) -> float:
        """Seconds that full batches would have spared, until now. It never falls.

        Args:
            full: samples of a full batch.
        """
        spread = self._count * self._nn - self._n * self._n
        if spread > 0 and self._count > 2:
            each = max(0.0, (self._count * self._ns - self._n * self._s) / spread)
            fixed = max(0.0, (self._s - each * self._n) / self._count)
            best = fixed / full + min(each, self._s / self._n)
            self._lost_s = max(self._lost_s, self._short_s - best * self._short_n)
        return self._lost_s
