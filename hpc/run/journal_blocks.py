"""Events `segment` (a saved block), nearly all lines of the journals: parsed many at a time, and summed as columns.

At 140,000 shards of 20 blocks the first status of a run meets three million of them, for which a JSON parser takes a
minute. A journal's writer always writes the same bytes around the time and the shard's name, so here many lines are
split there at once. What follows the name (engine, counts, ...) is the same text in many lines, and each such text is
parsed once. Lines of any other form, and blocks of unfinished shards, go through the JSON parser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hpc.base import journal

_FEW = 1 << 16  # sums that always take the quicker way of `_sums`, however few values there are
# What a line holds before its time, between time and shard, and after the shard.
_BEGIN, _BLOCK, _REST = b'{"t": ', b', "event": "segment", "shard": "', b'", "g": '
_EVENT, _ODD = b'"event": "segment"', -2  # _ODD marks a block whose line has another form
_CLAIM = b', "event": "claim", '


@dataclass
class Blocks:
    """Blocks of several journals, as arrays of equal length.

    owner: index of the journal, rising; t: when it was saved, the writer's clock in seconds; engine: its number on the
    node; new: samples in it, 0 where they were adopted from an earlier owner.
    """

    owner: np.ndarray
    t: np.ndarray
    engine: np.ndarray
    new: np.ndarray

    def journals(self) -> Iterator[tuple[int, slice]]:
        """(index of a journal, where its blocks are in the arrays) of each that has any."""
        edges = np.flatnonzero(np.diff(self.owner, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            yield int(self.owner[start]), slice(start, stop)

    def by_time(self, seconds: int, since: float = 0.0) -> Iterator[tuple[int, int]]:
        """New samples in each span of so many seconds: (index of the span, samples)."""
        chosen = self._with_new(since)
        yield from _sums([self._spans(seconds)[chosen]], self.new[chosen])

    def by_engine(self, seconds: int, since: float) -> Iterator[tuple[int, int, int, int]]:
        """The same for each engine: (journal, engine, index of the span, samples)."""
        chosen = self._with_new(since)
        keys = [self.owner[chosen], self.engine[chosen], self._spans(seconds)[chosen]]
        yield from _sums(keys, self.new[chosen])

    def _with_new(self, since: float) -> np.ndarray:
        """Indices of the blocks since then that have new samples."""
        return np.flatnonzero((self.new > 0) & (self.t >= since))

    def _spans(self, seconds: int) -> np.ndarray:
        return np.floor(self.t / seconds)  # several times as quick as //


def _sums(keys: list[np.ndarray], values: np.ndarray) -> Iterator[Any]:
    """(*keys, sum of the values) for each combination of whole numbers that occurs."""
    whole = [key.astype(np.int64) for key in keys]
    least = [int(key.min(initial=0)) for key in whole]
    sizes = [int(key.max(initial=0)) - low + 1 for key, low in zip(whole, least, strict=True)]
    combined = np.zeros(len(values), np.int64)
    for key, low, size in zip(whole, least, sizes, strict=True):
        combined = combined * size + (key - low)
    if math.prod(sizes) <= 4 * len(values) + _FEW:  # nearly always: no need to sort them
        times = np.bincount(combined)
        found = np.flatnonzero(times)
        sums = np.bincount(combined, values)[found].astype(np.int64)
    else:
        found, place = np.unique(combined, return_inverse=True)
        sums = np.bincount(place, values, len(found)).astype(np.int64)
    columns = []
    for low, size in zip(least[::-1], sizes[::-1], strict=True):
        columns.append((found % size + low).tolist())
        found = found // size
    return zip(*columns[::-1], sums.tolist(), strict=True)


class BlockParser:
    """Collects lines of several journals and parses the blocks in them together."""

    def __init__(self) -> None:
        self._lines: list[pa.Array] = []  # of each journal
        self._at: list[np.ndarray] = []  # where _BLOCK begins in each line; _ODD, or -1 where the line is no block
        self.bytes = 0
        # Shards that were counted as a whole: ids where that was in generation 0, and (id, generation) of all others.
        self._counted: list[bytes] = []
        self._counted_later: set[tuple[str, int]] = set()

    def add(self, data: bytes) -> list[bytes]:
        """Take complete lines of one journal. Returns those that are no blocks; of events `claim`, which are many, only
        the first and the last, which tell since when and until when it claimed.
        """
        import pyarrow.compute as pc  # 0.1 s: a launch of a new run has no journals

        lines = _lines(data)
        at = pc.find_substring(lines, _BLOCK).to_numpy().copy()
        others = np.flatnonzero(at < 0)
        other_lines = lines.take(others)
        at[others[_numpy(pc.match_substring(other_lines, _EVENT))]] = _ODD
        self._lines.append(lines)
        self._at.append(at)
        self.bytes += len(data)
        wanted = (at[others] != _ODD) & ~_numpy(pc.match_substring(other_lines, _CLAIM))
        claims = np.flatnonzero((at[others] != _ODD) & ~wanted)
        wanted[claims[[0, -1] if len(claims) else []]] = True
        return other_lines.filter(pa.array(wanted)).to_pylist()

    def count_whole(self, shard: str, generation: int) -> None:
        """A shard was counted as a whole by its marker: `parse` need not return its blocks as events."""
        if generation:
            self._counted_later.add((shard, generation))
        else:
            self._counted.append(shard.encode(errors="replace"))

    def parse(self) -> tuple[Blocks, list[dict[str, Any]]]:
        """(all blocks, the events of those whose shards were not counted as a whole)."""
        lines = pa.concat_arrays(self._lines) if self._lines else pa.array([], pa.binary())
        size = len(lines)
        owner = np.repeat(np.arange(len(self._lines)), [len(of_one) for of_one in self._lines])
        blocks = Blocks(owner, np.zeros(size), np.zeros(size, int), np.zeros(size, int))
        at = np.concatenate([*self._at, np.zeros(0, np.int32)])
        try:
            sound, counted = self._parse_usual(lines, at, blocks)
        except (pa.ArrowException, ValueError, AttributeError, TypeError):  # a line is damaged
            sound = counted = np.zeros(size, bool)
        left = []
        singly = np.flatnonzero(~(sound & counted) & (at != -1))
        for i, line in zip(singly, lines.take(singly).to_pylist(), strict=True):
            event = _parse_block(line)
            sound[i] = event is not None
            if event is not None:
                blocks.t[i], blocks.engine[i], blocks.new[i] = event["t"], event.get("engine", 0), _new(event)
                if (event["shard"], event.get("g", 0)) not in self._counted_later:
                    left.append(event)
        return Blocks(*(column[sound] for column in vars(blocks).values())), left

    def _parse_usual(self, lines: pa.Array, at: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Fill in the blocks of lines that have the usual form.

        Args:
            at: where `_BLOCK` begins in each line, below 0 where it does not.

        Returns:
            Two masks over the lines: which were filled in, and which are of shards that were counted as a whole.
        """
        import pyarrow.compute as pc

        starts = np.frombuffer(lines.buffers()[1] or b"\0\0\0\0", np.int32)[lines.offset :][: len(lines) + 1]
        begin, end = starts[:-1], starts[1:]
        shard, rest = begin + at + len(_BLOCK), begin + pc.find_substring(lines, _REST).to_numpy()
        usual = pc.and_(pc.starts_with(lines, _BEGIN), pc.ends_with(lines, b"}\n"))
        sound = _numpy(usual) & (at >= 0) & (rest >= shard)
        what = _pieces(lines, (rest + len(_REST))[sound], end[sound]).dictionary_encode()
        parsed = np.array([_parse_rest(text) for text in what.dictionary.to_pylist()], int).reshape(-1, 4)
        engine, new, generation, is_sound = parsed[what.indices.to_numpy()].T
        ids = _pieces(lines, shard[sound], rest[sound])
        blocks.t[sound] = (
            _pieces(lines, (begin + len(_BEGIN))[sound], (begin + at)[sound]).cast(pa.string()).cast(pa.float64())
        )
        blocks.engine[sound], blocks.new[sound] = engine, new
        counted = np.zeros(len(lines), bool)
        counted[sound] = _numpy(pc.is_in(ids, pa.array(self._counted, pa.binary()))) & (generation == 0)
        sound[sound] = is_sound == 1
        return sound, counted


def _pieces(lines: pa.Array, starts: np.ndarray, stops: np.ndarray) -> pa.Array:
    """The bytes from each start to its stop in the lines' common buffer, without a copy. These places must rise."""
    if not len(starts):
        return pa.array([], pa.binary())
    offsets = np.stack([starts, stops], axis=1).ravel().astype(np.int32)  # the piece, and what lies before the next
    found = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), lines.buffers()[2]])
    return found.take(pa.array(np.arange(0, len(offsets) - 1, 2)))


def _parse_rest(text: bytes) -> tuple[int, int, int, int]:
    """(engine, new samples, generation, 1) from what follows the shard in a line; all 0 where it is damaged."""
    event = _parse_block(b'{"t": 0, "event": "segment", "shard": ""' + _REST[1:] + text)
    return (event.get("engine", 0), _new(event), event.get("g", 0), 1) if event else (0, 0, 0, 0)


def _lines(data: bytes) -> pa.Array:
    """The lines of some data, each with its line feed, without a copy."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _numpy(mask: pa.Array) -> np.ndarray:
    return mask.to_numpy(zero_copy_only=False)


def _parse_block(line: bytes) -> dict[str, Any] | None:
    """The event of a block; None where the line is damaged."""
    event = journal.parse(line)
    try:
        if event is None or event["event"] != "segment" or not isinstance(event["shard"], str):
            return None
        numbers = [event["t"], event["start"], _new(event), *event["counts"].values()]
        numbers += [event.get(name, 0) for name in ("g", "e", "engine")]
        return event if all(isinstance(n, int | float) for n in numbers) else None
    except (KeyError, TypeError, AttributeError):
        return None


def _new(event: dict[str, Any]) -> int:
    """Samples of a block that its slot made itself."""
    return 0 if event["adopted"] else sum(event["counts"].values())
