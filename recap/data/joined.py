"""Samples with their columns, in the plan's order: what CLIP, DiT and SFT trainers read.

    reader = Reader(plan, columns, images=["jpg", "png"])
    for slot in reader.batch(first=0, count=4096, rank=0, world=8):
        for sample in slot.candidates():      # the sample of this place, then what may replace it
            ...

A window's blocks are read whole: a range of the tar, in pieces where it is large, and one row group of each column.
They are held until all samples of the window were taken. The stream's next window is read ahead once three quarters of
this one were. Memory: about 1.3 windows for each stream of this rank, as many bytes as in the tar, and a piece for each
thread that reads. Where reading ahead would take more than three quarters of the rank's memory, a window is read only
when it is needed; where even that is too much, the training ends with an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hpc.base.errors import UserError
from hpc.operator import OK, Shard
from recap.data.blocks import BLOCK, Block
from recap.data.column import Column, Values
from recap.data.columns import MemberColumn, ParquetColumn, members_of
from recap.data.index import Index
from recap.data.kept import KEEP
from recap.data.kind import Wanted
from recap.data.kinds import kind_of
from recap.data.memory import rank_memory
from recap.data.same_image import SameImages
from recap.data.streams import StreamPlan, Window
from recap.data.tars import Sample
from recap.randomness import draw

_AHEAD = 0.75  # share of a window after which the next one is read
HELD = 1.3  # windows of a stream that are held on average
_MEMORY = 0.75  # share of a rank's memory for windows; the rest is for the model and decoded images
_REPLACEMENTS = 64  # samples that are tried for one place before the training ends


@dataclass(frozen=True, slots=True)
class Joined:
    """One sample with its columns.

    members: of the tar, by extension. columns: values by name, None where there is none.
    problem: why it cannot be used (a duplicate key), else "".
    """

    shard: str
    key: str
    members: Mapping[str, bytes]
    columns: Mapping[str, Any]
    problem: str = ""

    @property
    def name(self) -> str:
        """SHARD/KEY, unique in the corpus."""
        return f"{self.shard}/{self.key}"


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of the batch: sample `at` of its window's `samples`. seed: of the training, for replacements."""

    window: Window
    samples: list[Joined]
    at: int
    seed: int

    @property
    def epoch(self) -> int:
        return self.window.epoch

    def candidates(self) -> Iterator[Joined]:
        """The place's own sample, then others of its window in a random order that depends on the sample and the seed.

        Raises:
            UserError: none of _REPLACEMENTS others was taken either.
        """
        own = self.samples[self.at]
        yield own
        for attempt in range(_REPLACEMENTS):
            yield self.samples[draw(self.seed, "replace", self.epoch, own.name, attempt) % len(self.samples)]
        raise UserError(
            f"data: sample {own.name} cannot be used, nor {_REPLACEMENTS} others of its window. Are these the right "
            "tars and columns?"
        )


class Reader:
    """Reads samples in the plan's order. Not thread-safe; reads ahead in threads of its own.

    Args:
        columns: by name.
        threads: blocks that are read at the same time.
        keys_from: a column beside the tars that holds all that is wanted of them (small images). Unless another column
            is a member of the tars, the tars are then not read, and the keys are this column's.
        total: samples of the training, past which nothing is read ahead.
        images: extensions of the image members, with which the columns' digests are compared (recap.data.same_image).
        key: the column of tables that holds the keys, see `Wanted`.
    """

    def __init__(
        self,
        plan: StreamPlan,
        columns: Mapping[str, Column],
        threads: int = 4,
        keys_from: str | None = None,
        total: int | None = None,
        images: Sequence[str] = (),
        key: str = "",
    ) -> None:
        self._wanted = Wanted(tuple(images), key, members_of(columns.values()))
        self.plan, self.columns = plan, dict(columns)
        self._end = total // plan.streams if total else None
        self._beside_tars = [name for name, column in columns.items() if not isinstance(column, MemberColumn)]
        alone = len(self._beside_tars) == len(self.columns)
        found = self.columns[keys_from] if keys_from and alone else None
        self._keys_column = found if isinstance(found, ParquetColumn) else None
        self._same = SameImages(images)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._held: dict[int, _LoadedWindow] = {}
        self._ahead: dict[int, _LoadedWindow] = {}
        self.bytes_read = 0
        """Bytes of shards that were read so far."""

    def batch(self, first: int, count: int, rank: int = 0, world: int = 1) -> list[Slot]:
        """The training's places [first, first + count) that belong to a rank, stream by stream.

        Raises:
            UserError: the streams do not divide among the ranks, or the batch among the streams.
        """
        self._same.tells = rank == 0
        streams = self.plan.streams
        check_division(count, streams, world)
        if first % streams:
            raise UserError(f"data: training cannot start at sample {first:,}: the {streams} streams do not divide it.")
        mine = streams_of(rank, world, streams)
        positions = range(first // streams, (first + count) // streams)
        for stream in mine:  # start reading all windows before waiting for the first
            if not self._have(stream, positions[0]):
                self._held.pop(stream, None)
                self._ahead.pop(stream, None)
                self._held[stream] = self._load(self.plan.window(stream, positions[0]))
        return [self._slot(stream, position) for stream in mine for position in positions]

    def place(self, position: int) -> Slot:
        """One place of the training by its number, where the streams take turns sample by sample."""
        return self._slot(position % self.plan.streams, position // self.plan.streams)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _have(self, stream: int, position: int) -> bool:
        return any(stream in place and place[stream].covers(position) for place in (self._held, self._ahead))

    def _slot(self, stream: int, position: int) -> Slot:
        held = self._held.get(stream)
        if held is None or not held.covers(position):
            self._held.pop(stream, None)
            held = self._ahead.pop(stream, None)
            if held is None or not held.covers(position):
                held = self._load(self.plan.window(stream, position))
            self._held[stream] = held
        offset = position - held.window.start
        following = held.window.start + held.size
        needed = self._end is None or following < self._end
        if needed and stream not in self._ahead and offset >= _AHEAD * held.size:
            ahead = self.plan.window(stream, following)
            if self._fits(self._bytes(ahead)):
                self._ahead[stream] = self._load(ahead)
        return Slot(held.window, held.samples(), int(held.order[offset]), self.plan.seed)

    def _load(self, window: Window) -> _LoadedWindow:
        held = _LoadedWindow(window, self._bytes(window))
        if not self._fits(held.bytes):
            raise self._refused(held.bytes)
        held.reads = [self._pool.submit(self._read, p.block, p.first, p.count) for p in window.pieces]
        return held

    def _bytes(self, window: Window) -> int:
        """Bytes of a window's blocks in the tars; 0 where the tars are not read."""
        if self._keys_column is not None:
            return 0
        return window_bytes(window, self.plan.index)

    def _in_memory(self) -> list[_LoadedWindow]:
        return [*self._held.values(), *self._ahead.values()]

    def _fits(self, size: int) -> bool:
        """Whether a window of `size` bytes fits, beside those that are held, in the share of memory for windows."""
        return size + sum(held.bytes for held in self._in_memory()) <= _MEMORY * rank_memory()

    def _refused(self, size: int) -> UserError:
        """The error for a window that does not fit. Without it the kernel would kill the process silently."""
        whole, count = size + sum(held.bytes for held in self._in_memory()), len(self._in_memory()) + 1
        return _too_large(whole, count, self.plan.blocks_per_window, _MEMORY * rank_memory())

    # --- one block --------------------------------------------------------------------------------

    def _read(self, number: int, first: int, count: int) -> list[Joined]:
        block = self.plan.index.block(number)
        shard = self.plan.index.shard(block.shard)
        found = self._samples(shard, block)
        _check_block(shard.uri, block, found)
        keys, members = [s.key for s in found], [s.members for s in found]
        columns = {name: c.read(shard, block.number, keys, members) for name, c in self.columns.items()}
        self._same.check(shard.id, keys, members, {name: columns[name] for name in self._beside_tars})
        places = self._kept(number, block, columns)
        return [
            Joined(
                shard.id, found[i].key, found[i].members, {name: read.values[i] for name, read in columns.items()},
                block.problems.get(i, ""),
            )
            for i in places[first : first + count]
        ]  # fmt: skip

    def _kept(self, number: int, block: Block, columns: Mapping[str, Values]) -> Sequence[int]:
        """Places, in the block, of the samples that the training uses: those that `data.keep` keeps, else all."""
        if KEEP not in columns:
            return range(block.count)
        places = [i for i, status in enumerate(columns[KEEP].values) if status == OK]
        if len(places) != (counted := int(self.plan.index.counts(slice(number, number + 1))[0])):
            shard = self.plan.index.shard(block.shard).id
            raise UserError(
                f"config: `{KEEP}`: shard {shard}, samples {block.number * BLOCK:,} on: {counted:,} were kept when the "
                f"training began, {len(places):,} are now: the selection was made again."
            )
        return places

    def _samples(self, shard: Shard, block: Block) -> list[Sample]:
        if self._keys_column is not None:
            return [Sample(key) for key in self._keys_column.keys(shard, block.number, block.count)]

        def read(size: int) -> None:
            self.bytes_read += size

        return kind_of(shard.uri).block(shard, block, self._wanted, read)


def check_window_memory(plan: StreamPlan, world: int, memory: int) -> None:
    """UserError where a rank with `memory` bytes, out of `world`, could not hold the windows of its first step."""
    for rank in range(world):
        mine = streams_of(rank, world, plan.streams)
        whole = sum(window_bytes(plan.window(stream, 0), plan.index) for stream in mine)
        if whole > _MEMORY * memory:
            raise _too_large(whole, len(mine), plan.blocks_per_window, _MEMORY * memory)


def streams_of(rank: int, world: int, streams: int) -> range:
    """The streams that a rank reads."""
    return range(rank * streams // world, (rank + 1) * streams // world)


def window_bytes(window: Window, index: Index) -> int:
    """Bytes of a window's blocks in the tars."""
    blocks = [index.block(piece.block) for piece in window.pieces]
    return sum(block.end - block.start for block in blocks)


def _too_large(size: int, windows: int, blocks: int, most: float) -> UserError:
    fits = max(1, int(blocks * most / size / 2))
    return UserError(
        f"config: `data.window`: {windows} windows of {blocks} blocks hold {size / 2**30:,.1f} GiB of tars, a rank has "
        f"{most / 2**30:,.1f} GiB for them. Write about {fits}, use more nodes, or shrink the images first "
        "(configs/data/shrink.yaml) and name the column in data.pixels."
    )


class _LoadedWindow:
    """A window whose blocks are being read, or were read."""

    def __init__(self, window: Window, bytes: int) -> None:
        self.window, self.size, self.order = window, window.size, window.order()
        self.bytes = bytes
        """Bytes of its blocks in the tars."""
        self.reads: list[Future[list[Joined]]] = []
        self._samples: list[Joined] | None = None

    def covers(self, position: int) -> bool:
        return self.window.start <= position < self.window.start + self.size

    def samples(self) -> list[Joined]:
        if self._samples is None:
            self._samples = [sample for read in self.reads for sample in read.result()]
            self.reads = []
        return self._samples


def check_division(batch: int, streams: int, world: int) -> None:
    """UserError unless the ranks divide the streams, and the streams the batch."""
    if batch < world:
        raise UserError(f"config: `train.batch`: {batch} is smaller than the {world} ranks. Raise it or use fewer.")
    if streams % world:
        raise UserError(
            f"config: `data.streams`: {streams} streams do not divide among {world} ranks. "
            f"Use {max(d for d in range(1, world + 1) if streams % d == 0)} ranks, or a new run with other streams."
        )
    if batch % streams:
        raise UserError(
            f"config: `train.batch`: {batch} does not divide among {streams} streams. "
            f"Write {max(batch // streams, 1) * streams}, or set data.streams to a divisor of the batch."
        )


def _check_block(uri: str, block: Block, found: list[Sample]) -> None:
    if len(found) != block.count or found[0].key != block.first:
        got = f"{len(found)} samples from {found[0].key} on" if found else "no samples"
        raise UserError(
            f"data: {uri}: block {block.number} (bytes {block.start:,} to {block.end:,}) holds {got}, the index says "
            f"{block.count} from {block.first} on. "
            "The shard changed: delete the index, and make the columns again."
        )
