"""Saved blocks, nearly all lines of the journals: taken apart and summed as columns.

At 140,000 shards of 20 blocks a first look meets three million of them, and a JSON parser takes a minute for these.
Here many lines are taken apart at once, at the words that a journal's writer puts between numbers and names; counts are
parsed once a wording. Lines of any other form, and blocks of unfinished shards, go through the JSON parser.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.base import journal

_BEGIN, _BLOCK, _CLAIM = b'{"t": ', b', "event": "segment", ', b', "event": "claim", '


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
        for _, _, span, count in self._sums(seconds, since, apart=False):
            yield span, count

    def by_engine(self, seconds: int, since: float) -> Iterator[tuple[int, int, int, int]]:
        """The same for each engine: (journal, engine, index of the span, samples)."""
        return self._sums(seconds, since, apart=True)

    def _sums(self, seconds: int, since: float, apart: bool) -> Iterator[tuple[int, int, int, int]]:
        at = (self.new > 0) & (self.t >= since)
        keys = {"owner": self.owner[at] * apart, "engine": self.engine[at] * apart, "span": self.t[at] // seconds}
        table = pa.table({**keys, "new": self.new[at]})
        sums = table.group_by(list(keys), use_threads=False).aggregate([("new", "sum")])
        sums = sums.set_column(2, "span", sums["span"].cast(pa.int64()))
        return zip(*(sums[name].to_pylist() for name in (*keys, "new_sum")), strict=True)


class Bulk:
    """Lines of several journals."""

    def __init__(self) -> None:
        self._lines: list[pa.Array] = []
        self.bytes = 0
        self._over: list[bytes] = []  # shards whose blocks need not be told apart: ids in generation 0
        self._over_later: set[tuple[str, int]] = set()

    def add(self, data: bytes) -> list[bytes]:
        """Take whole lines of one journal; returns those that name no block, but of the claims the first and the last
        alone.
        """
        lines = _lines(data)
        mine = pc.match_substring(lines, _BLOCK)
        self._lines.append(lines.filter(mine))
        self.bytes += len(data)
        others = lines.filter(pc.invert(mine))
        wanted = ~_numpy(pc.match_substring(others, _CLAIM))
        wanted[np.flatnonzero(~wanted)[[0, -1] if not wanted.all() else []]] = True
        return others.filter(pa.array(wanted)).to_pylist()

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
        try:
            sound, over = self._take_apart(lines, blocks)
        except (pa.ArrowException, ValueError, AttributeError, TypeError):  # a line is damaged
            sound = over = np.zeros(size, bool)
        left = []
        singly = np.flatnonzero(~(sound & over))
        for i, line in zip(singly, lines.take(singly).to_pylist(), strict=True):
            event = _sound(line)
            sound[i] = event is not None
            if event is not None:
                blocks.t[i], blocks.engine[i], blocks.new[i] = event["t"], event.get("engine", 0), _new(event)
                if (event["shard"], event.get("g", 0)) not in self._over_later:
                    left.append(event)
        return Blocks(*(column[sound] for column in vars(blocks).values())), left

    def _take_apart(self, lines: pa.Array, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Fill in the lines of the usual form. Returns which these are, and which are of shards that are over."""
        cut = _Cut(lines, _BEGIN, (_BLOCK + b'"shard": "', b'", "g": ', b', "engine": ', b', "counts": '))
        usual = pc.and_(pc.starts_with(lines, _BEGIN), pc.ends_with(lines, b"}\n"))
        sound = cut.ordered & _numpy(usual)
        t, shard, generation, engine, counts = (cut.text(number, sound) for number in range(5))
        blocks.t[sound] = t.cast(pa.string()).cast(pa.float64()).to_numpy()
        blocks.engine[sound] = _by_wording(engine, lambda words: int(words.partition(b",")[0]))
        # with the rest of the line, that is, whether they were adopted
        blocks.new[sound] = _by_wording(counts, lambda words: _new(json.loads(b'{"counts": ' + words)))
        first = pc.or_(pc.equal(generation, b"0"), pc.starts_with(generation, b"0,"))
        over = np.zeros(len(lines), bool)
        over[sound] = _numpy(pc.and_(first, pc.is_in(shard, pa.array(self._over, pa.binary()))))
        return sound, over


class _Cut:
    """Many lines cut at the same words, behind as many bytes as `begin` has.

    ordered: the lines that have all words, one behind the other.
    """

    def __init__(self, lines: pa.Array, begin: bytes, words: tuple[bytes, ...]) -> None:
        self._text = lines.buffers()[2]
        offsets = np.frombuffer(lines.buffers()[1] or b"\0\0\0\0", np.int32)[lines.offset :][: len(lines) + 1]
        self._starts, self._stops = [offsets[:-1] + np.int32(len(begin))], []
        self.ordered = np.ones(len(lines), bool)
        for word in words:
            found = pc.find_substring(lines, word).to_numpy()
            self._stops.append(offsets[:-1] + found)
            self.ordered &= (found >= 0) & (self._stops[-1] >= self._starts[-1])
            self._starts.append(self._stops[-1] + np.int32(len(word)))
        self._stops.append(offsets[1:])

    def text(self, number: int, which: np.ndarray) -> pa.Array:
        """What lies before the word of this number, or behind the last."""
        if not which.any():
            return pa.array([], pa.binary())
        both = (self._starts[number][which], self._stops[number][which])
        offsets = np.stack(both, axis=1).ravel()  # of pieces, of which every second one is wanted
        pieces = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), self._text])
        return pieces.take(pa.array(np.arange(0, len(offsets) - 1, 2)))


def _lines(data: bytes) -> pa.Array:
    """Each with its line feed, without a copy."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _by_wording(texts: pa.Array, value: Any) -> np.ndarray:
    """`value` of each text, computed once for all that are alike."""
    coded = texts.dictionary_encode()
    values = np.array([value(words) for words in coded.dictionary.to_pylist()], dtype=int)
    return values[coded.indices.to_numpy()] if len(values) else np.zeros(0, int)


def _numpy(mask: pa.Array) -> np.ndarray:
    return mask.to_numpy(zero_copy_only=False)


def _sound(line: bytes) -> dict[str, Any] | None:
    """A block; None where the line is damaged."""
    event = journal.event(line)
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
