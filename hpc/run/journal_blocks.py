"""Saved blocks, nearly all lines of the journals: taken apart and summed as columns.

At 140,000 shards of 20 blocks a first look meets three million of them, and a JSON parser takes a minute for these.
Here many lines are taken apart at once, at the words that a journal's writer puts around a shard's name; what follows
it, engine, counts and all, is parsed once a wording. Lines of any other form, and blocks of unfinished shards, go
through the JSON parser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.base import journal

_FEW = 1 << 16  # sums, which are no work whatever their number
_BEGIN, _BLOCK, _REST = b'{"t": ', b', "event": "segment", "shard": "', b'", "g": '
_EVENT, _ODD = b'"event": "segment"', -2  # a block whose line has another form
_CLAIM = b', "event": "claim", '


@dataclass
class Blocks:
    """Blocks of several journals, as arrays of equal length.

    owner: index of the journal, rising; t: seconds; engine: its number; new: samples, 0 for a block that was adopted.
    """

    owner: np.ndarray
    t: np.ndarray
    engine: np.ndarray
    new: np.ndarray

    def journals(self) -> Iterator[tuple[int, slice]]:
        """Each journal that has any, and where these are."""
        edges = np.flatnonzero(np.diff(self.owner, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(edges):
            yield int(self.owner[start]), slice(start, stop)

    def by_time(self, seconds: int, since: float = 0.0) -> Iterator[tuple[int, int]]:
        """New samples in each span of so many seconds: (index of the span, samples)."""
        at = self._made(since)
        yield from _sums([self._spans(seconds)[at]], self.new[at])

    def by_engine(self, seconds: int, since: float) -> Iterator[tuple[int, int, int, int]]:
        """The same for each engine: (journal, engine, index of the span, samples)."""
        at = self._made(since)
        yield from _sums([self.owner[at], self.engine[at], self._spans(seconds)[at]], self.new[at])

    def _made(self, since: float) -> np.ndarray:
        """Where samples were made since then."""
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


class Bulk:
    """Lines of several journals."""

    def __init__(self) -> None:
        self._lines: list[pa.Array] = []
        self._at: list[np.ndarray] = []  # where in each line the word is that tells blocks; _ODD, -1
        self.bytes = 0
        self._over: list[bytes] = []  # shards whose blocks need not be told apart: ids in generation 0
        self._over_later: set[tuple[str, int]] = set()

    def add(self, data: bytes) -> list[bytes]:
        """Take whole lines of one journal; returns those that name no block, but of the claims the first and the last
        alone.
        """
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

    def over(self, shard: str, generation: int) -> None:
        """A shard has been counted as a whole."""
        if generation:
            self._over_later.add((shard, generation))
        else:
            self._over.append(shard.encode(errors="replace"))

    def parse(self) -> tuple[Blocks, list[dict[str, Any]]]:
        """All blocks; and those of shards that are not over, as events."""
        lines = pa.concat_arrays(self._lines) if self._lines else pa.array([], pa.binary())
        size = len(lines)
        owner = np.repeat(np.arange(len(self._lines)), [len(of_one) for of_one in self._lines])
        blocks = Blocks(owner, np.zeros(size), np.zeros(size, int), np.zeros(size, int))
        at = np.concatenate([*self._at, np.zeros(0, np.int32)])
        try:
            sound, over = self._take_apart(lines, at, blocks)
        except (pa.ArrowException, ValueError, AttributeError, TypeError):  # a line is damaged
            sound = over = np.zeros(size, bool)
        left = []
        singly = np.flatnonzero(~(sound & over) & (at != -1))
        for i, line in zip(singly, lines.take(singly).to_pylist(), strict=True):
            event = _sound(line)
            sound[i] = event is not None
            if event is not None:
                blocks.t[i], blocks.engine[i], blocks.new[i] = event["t"], event.get("engine", 0), _new(event)
                if (event["shard"], event.get("g", 0)) not in self._over_later:
                    left.append(event)
        return Blocks(*(column[sound] for column in vars(blocks).values())), left

    def _take_apart(self, lines: pa.Array, at: np.ndarray, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Fill in the blocks of the usual form. Returns which these are, and which are of shards that are over.

        Args:
            at: of each line, where `_BLOCK` stands in it.
        """
        starts = np.frombuffer(lines.buffers()[1] or b"\0\0\0\0", np.int32)[lines.offset :][: len(lines) + 1]
        begin, end = starts[:-1], starts[1:]
        shard, rest = begin + at + len(_BLOCK), begin + pc.find_substring(lines, _REST).to_numpy()
        usual = pc.and_(pc.starts_with(lines, _BEGIN), pc.ends_with(lines, b"}\n"))
        sound = _numpy(usual) & (at >= 0) & (rest >= shard)
        what = _pieces(lines, (rest + len(_REST))[sound], end[sound]).dictionary_encode()
        told = np.array([_told(words) for words in what.dictionary.to_pylist()], int).reshape(-1, 4)
        engine, new, generation, is_sound = told[what.indices.to_numpy()].T
        ids = _pieces(lines, shard[sound], rest[sound])
        blocks.t[sound] = (
            _pieces(lines, (begin + len(_BEGIN))[sound], (begin + at)[sound]).cast(pa.string()).cast(pa.float64())
        )
        blocks.engine[sound], blocks.new[sound] = engine, new
        over = np.zeros(len(lines), bool)
        over[sound] = _numpy(pc.is_in(ids, pa.array(self._over, pa.binary()))) & (generation == 0)
        sound[sound] = is_sound == 1
        return sound, over


def _pieces(lines: pa.Array, starts: np.ndarray, stops: np.ndarray) -> pa.Array:
    """Parts of the lines' text, from and to these places of it, which rise."""
    if not len(starts):
        return pa.array([], pa.binary())
    offsets = np.stack([starts, stops], axis=1).ravel().astype(np.int32)  # of pieces, of which every second is wanted
    found = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), lines.buffers()[2]])
    return found.take(pa.array(np.arange(0, len(offsets) - 1, 2)))


def _told(words: bytes) -> tuple[int, int, int, int]:
    """Engine, new samples and generation of a line, from what follows its shard; and whether it is sound."""
    event = _sound(b'{"t": 0, "event": "segment", "shard": ""' + _REST[1:] + words)
    return (event.get("engine", 0), _new(event), event.get("g", 0), 1) if event else (0, 0, 0, 0)


def _lines(data: bytes) -> pa.Array:
    """Each with its line feed, without a copy."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _numpy(mask: pa.Array) -> np.ndarray:
    return mask.to_numpy(zero_copy_only=False)


def _sound(line: bytes) -> dict[str, Any] | None:
    """A block; None where the line is damaged."""
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
    return 0 if event["adopted"] else sum(event["counts"].values())
