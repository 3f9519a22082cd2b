"""The order of samples as a pure function of (seed, epoch, position), so that a checkpoint stores only one integer.

In every epoch, all blocks of the corpus are put in a line by a random permutation. The line is cut into V equal parts,
one for each *virtual stream*; a remainder of less than V samples is left out of the epoch. A stream shuffles its
samples inside a *window* of G consecutive blocks. Batch k consists of the next B/V samples of each stream. V is fixed
in the config and divided among the ranks, so that the order does not depend on how many there are. Finding any position
takes the same time.

    plan = StreamPlan(index, seed=0, streams=96, window=32)
    window = plan.window(stream=5, position=1_000_000)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from hpc.base.errors import UserError
from recap.data.index import Index
from recap.randomness import mixed, permute_array

_COARSE = 64  # blocks between two entries of an epoch's table of sample counts
_CHUNK = 1 << 16  # blocks that are permuted at a time while the table is made


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples [first, first + count) of a block."""

    block: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive samples of a stream that are shuffled among themselves.

    start: the position in the stream of the first one, counted over all epochs.
    pieces: the samples, block by block.
    key: seed of the order inside the window.
    """

    epoch: int
    stream: int
    start: int
    pieces: tuple[Piece, ...]
    key: int

    @property
    def size(self) -> int:
        return sum(piece.count for piece in self.pieces)

    def order(self) -> np.ndarray:
        """int64 [size]: for each position in the window, the number of its sample, counted through the pieces."""
        return permute_array(np.arange(self.size), self.size, self.key)


class StreamPlan:
    """Which samples are at which positions. Holds one small table for each of the last two epochs.

    Args:
        streams: virtual streams (V).
        window: blocks among which a stream shuffles (G).
    """

    def __init__(self, index: Index, seed: int, streams: int, window: int = 32) -> None:
        if streams < 1 or window < 1:
            raise UserError(f"config: `data.streams` ({streams}) and `data.window` ({window}) must be at least 1.")
        self.index, self.seed, self.streams, self.blocks_per_window = index, seed, streams, window
        self.length = index.samples // streams
        """Samples that a stream gives in one epoch."""
        if not self.length:
            raise UserError(
                f"config: `data.streams`: {streams} is more than the {index.samples:,} samples. Write a smaller number."
            )
        self._epochs: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def epoch_size(self) -> int:
        """Samples of one epoch, over all streams."""
        return self.length * self.streams

    @property
    def digest(self) -> str:
        """16 hex digits of a hash of everything that the order depends on."""
        made = hashlib.sha256(f"{self.seed} {self.streams} {self.blocks_per_window}".encode())
        for name in self.index.ids():
            made.update(name.encode() + b"\0")
        made.update(self.index.counts(slice(None)).tobytes())
        made.update(self.index.selection.encode())
        return made.hexdigest()[:16]

    def window(self, stream: int, position: int) -> Window:
        """The window in which a position of an (endless) stream lies."""
        epoch, offset = divmod(position, self.length)
        begin, end = stream * self.length, (stream + 1) * self.length
        first = self._place(epoch, begin)
        phase = (
            stream * self.blocks_per_window // self.streams
        )  # so that the streams do not all begin a new window in the same batch
        number = (self._place(epoch, begin + offset) - first + phase) // self.blocks_per_window
        low = max(first, first + number * self.blocks_per_window - phase)
        high = min(first + (number + 1) * self.blocks_per_window - phase, len(self.index))
        blocks = self._blocks(epoch, low, high)
        bounds = self._before(epoch, low) + np.concatenate([[0], np.cumsum(self.index.counts(blocks), dtype=np.int64)])
        pieces = []
        for block, at, until in zip(blocks.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            start, stop = max(at, begin), min(until, end)
            if start < stop:
                pieces.append(Piece(block, start - at, stop - start))
        start = epoch * self.length + max(int(bounds[0]), begin) - begin
        return Window(epoch, stream, start, tuple(pieces), mixed(self.seed, 2, epoch, stream, number))

    # --- one epoch's line of blocks ---------------------------------------------------------------

    def _blocks(self, epoch: int, low: int, high: int) -> np.ndarray:
        """The blocks at places [low, high) of an epoch's line."""
        return permute_array(np.arange(low, high), len(self.index), mixed(self.seed, 1, epoch))

    def _table(self, epoch: int) -> np.ndarray:
        """int64: how many samples come before every 64th block of the epoch's line, and before its end."""
        if epoch not in self._epochs:
            sums = []
            for low in range(0, len(self.index), _CHUNK):
                counts = self.index.counts(self._blocks(epoch, low, min(low + _CHUNK, len(self.index))))
                sums.append(np.add.reduceat(counts, np.arange(0, len(counts), _COARSE), dtype=np.int64))
            self._epochs[epoch] = np.concatenate([[0], np.cumsum(np.concatenate(sums))])
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _before(self, epoch: int, place: int) -> int:
        """Samples that lie before a place of the line."""
        entry = place // _COARSE
        inside = self.index.counts(self._blocks(epoch, entry * _COARSE, place))
        return int(self._table(epoch)[entry]) + int(inside.sum(dtype=np.int64))

    def _place(self, epoch: int, sample: int) -> int:
        """The place whose block holds a sample of the line."""
        table = self._table(epoch)
        entry = int(np.searchsorted(table, sample, side="right")) - 1
        low = entry * _COARSE
        blocks = self._blocks(epoch, low, min(low + _COARSE, len(self.index)))
        ends = int(table[entry]) + np.cumsum(self.index.counts(blocks), dtype=np.int64)
        return low + int(np.searchsorted(ends, sample, side="right"))
