"""Samples with their columns, in the plan's order: what CLIP, DiT and SFT trainers read.

    reader = Reader(plan, columns, images=["jpg", "png"])
    for slot in reader.batch(first=0, count=4096, rank=0, world=8):
        for sample in slot.candidates():      # the sample of this place, then what may replace it
            ...

A window's blocks are read whole (one range of the tar, in pieces where it is large, and one row group of each column)
and held until the window is through; the next window is read ahead when three quarters are. Memory: about 1.3 windows x
streams of this rank, as the tar has them, and a piece for each thread that reads. Where that would be more than three
quarters of this rank's memory, windows are read when they are needed; what is needed and more than that is refused.
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
from recap.data.memory import of_rank
from recap.data.same_image import SameImages
from recap.data.streams import StreamPlan, Window
from recap.data.tars import Sample
from recap.randomness import draw

_AHEAD = 0.75  # of a window, after which the next is read
HELD = 1.3  # windows of a stream that are held on average
_MEMORY = 0.75  # of what a rank may use, for windows: the rest is the model's and the decoded images'
_REPLACEMENTS = 64  # drawn for one place before the data is called useless


@dataclass(frozen=True, slots=True)
class Joined:
    """One sample: members of the tar by extension, columns by name (None where there is no value)."""

    shard: str
    key: str
    members: Mapping[str, bytes]
    columns: Mapping[str, Any]
    problem: str = ""

    @property
    def name(self) -> str:
        """Unique in the corpus, whatever machine it lies on."""
        return f"{self.shard}/{self.key}"


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of the batch."""

    window: Window
    samples: list[Joined]
    at: int
    seed: int

    @property
    def epoch(self) -> int:
        return self.window.epoch

    def candidates(self) -> Iterator[Joined]:
        """The place's own sample, then others of its window, drawn by hash: take the first that is usable."""
        own = self.samples[self.at]
        yield own
        for attempt in range(_REPLACEMENTS):
            yield self.samples[draw(self.seed, "replace", self.epoch, own.name, attempt) % len(self.samples)]
        raise UserError(
            f"data: sample {own.name} cannot be used, nor {_REPLACEMENTS} others of its window. Are these the right "
            "tars and columns?"
        )


class Reader:
    """Reads the plan. Not thread-safe; reads ahead in threads of its own.

    Args:
        columns: by name, as the text policy calls them.
        threads: reads at the same time.
        keys_from: a column beside the tars that holds all that is wanted of them: where no other column is a member
            of the tars, these are not read.
        total: samples of the training, past which nothing is read ahead.
        images: extensions of the image members, with which the columns' digests are compared (recap.data.same_image).
        key: see `Wanted`.
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
        self._beside = [name for name, column in columns.items() if not isinstance(column, MemberColumn)]
        alone = len(self._beside) == len(self.columns)
        found = self.columns[keys_from] if keys_from and alone else None
        self._instead = found if isinstance(found, ParquetColumn) else None
        self._same = SameImages(images)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._held: dict[int, _Held] = {}
        self._ahead: dict[int, _Held] = {}
        self.bytes_read = 0
        """Bytes of shards that were read so far."""

    def batch(self, first: int, count: int, rank: int = 0, world: int = 1) -> list[Slot]:
        """The places [first, first + count) of the training that belong to a rank, stream by stream.

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
        for stream in mine:  # all at once, so that a start reads in parallel
            if not self._have(stream, positions[0]):
                self._held.pop(stream, None)
                self._ahead.pop(stream, None)
                self._held[stream] = self._load(self.plan.window(stream, positions[0]))
        return [self._slot(stream, position) for stream in mine for position in positions]

    def place(self, position: int) -> Slot:
        """One place of the training, wherever a batch begins: the streams take turns."""
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

    def _load(self, window: Window) -> _Held:
        held = _Held(window, self._bytes(window))
        if not self._fits(held.bytes):
            raise self._refused(held.bytes)
        held.reads = [self._pool.submit(self._read, p.block, p.first, p.count) for p in window.pieces]
        return held

    def _bytes(self, window: Window) -> int:
        """Of the tars' blocks that a window holds."""
        if self._instead is not None:
            return 0
        return bytes_of(window, self.plan.index)

    def _in_memory(self) -> list[_Held]:
        return [*self._held.values(), *self._ahead.values()]

    def _fits(self, size: int) -> bool:
        """Whether a window of so many bytes, beside those that are held, leaves enough of this rank's memory."""
        return size + sum(held.bytes for held in self._in_memory()) <= _MEMORY * of_rank()

    def _refused(self, size: int) -> UserError:
        """The process would be killed without a word."""
        whole, count = size + sum(held.bytes for held in self._in_memory()), len(self._in_memory()) + 1
        return _too_large(whole, count, self.plan.blocks_per_window, _MEMORY * of_rank())

    # --- one block --------------------------------------------------------------------------------

    def _read(self, number: int, first: int, count: int) -> list[Joined]:
        block = self.plan.index.block(number)
        shard = self.plan.index.shard(block.shard)
        found = self._samples(shard, block)
        _check_block(shard.uri, block, found)
        keys, members = [s.key for s in found], [s.members for s in found]
        columns = {name: c.read(shard, block.number, keys, members) for name, c in self.columns.items()}
        self._same.check(shard.id, keys, members, {name: columns[name] for name in self._beside})
        places = self._kept(number, block, columns)
        return [
            Joined(
                shard.id, found[i].key, found[i].members, {name: read.values[i] for name, read in columns.items()},
                block.problems.get(i, ""),
            )
            for i in places[first : first + count]
        ]  # fmt: skip

    def _kept(self, number: int, block: Block, columns: Mapping[str, Values]) -> Sequence[int]:
        """The samples of a block that count."""
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
        if self._instead is not None:
            return [Sample(key) for key in self._instead.keys(shard, block.number, block.count)]

        def read(size: int) -> None:
            self.bytes_read += size

        return kind_of(shard.uri).block(shard, block, self._wanted, read)


def check_held(plan: StreamPlan, world: int, memory: int) -> None:
    """UserError where a rank of so many, with so many bytes, could not hold the windows of its first step."""
    for rank in range(world):
        mine = streams_of(rank, world, plan.streams)
        whole = sum(bytes_of(plan.window(stream, 0), plan.index) for stream in mine)
        if whole > _MEMORY * memory:
            raise _too_large(whole, len(mine), plan.blocks_per_window, _MEMORY * memory)


def streams_of(rank: int, world: int, streams: int) -> range:
    return range(rank * streams // world, (rank + 1) * streams // world)


def bytes_of(window: Window, index: Index) -> int:
    """Of the tars' blocks that a window holds."""
    blocks = [index.block(piece.block) for piece in window.pieces]
    return sum(block.end - block.start for block in blocks)


def _too_large(size: int, windows: int, blocks: int, most: float) -> UserError:
    fits = max(1, int(blocks * most / size / 2))
    return UserError(
        f"config: `data.window`: {windows} windows of {blocks} blocks hold {size / 2**30:,.1f} GiB of tars, a rank has "
        f"{most / 2**30:,.1f} GiB for them. Write about {fits}, use more nodes, or shrink the images first "
        "(configs/data/shrink.yaml) and name the column in data.pixels."
    )


class _Held:
    """A window whose blocks are being read, or have been."""

    def __init__(self, window: Window, bytes: int) -> None:
        self.window, self.size, self.order = window, window.size, window.order()
        self.bytes = bytes
        """Of the tars, as the index says."""
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
