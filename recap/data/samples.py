"""The usable samples of each training step: places of the plan, prepared in threads, unusable ones replaced.

What CLIP and DiT trainers have in common: they differ in what `prepare` makes of a sample.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.base.no_collection import without_collection
from hpc.operator import Shard
from hpc.run.published import Published
from hpc.trainer import Gang
from recap.data.blocks import BLOCK
from recap.data.column import Column, ColumnConfig, ColumnOfFiles
from recap.data.columns import ParquetColumn, members_of, open_column, runs_of
from recap.data.images import BadImage
from recap.data.index import Index
from recap.data.inputs import DataConfig, list_shards
from recap.data.joined import HELD, Joined, Reader, Slot, check_window_memory
from recap.data.kept import KEEP, KeptCounts, KeptIndex, check_selection, count_kept, selection
from recap.data.kinds import check_ranges, described
from recap.data.manifest import Manifest, write
from recap.data.memory import machine_memory
from recap.data.open_files import OpenFiles
from recap.data.pictures import MISSING, why_missing
from recap.data.streams import StreamPlan
from recap.data.unindexed import StreamedReader, StreamedSlot

log = logging.getLogger(__name__)

T = TypeVar("T")

INDEX = "blocks.index"  # name of the block index in a training's run directory
_IMAGE_BYTES = 100_000  # what a dry run assumes for an encoded image of the web; most are smaller
_WAIT_S = 1500.0  # how long ranks wait for rank 0's index; less than the gang's own limit on setting up


@dataclass
class JoinedDataConfig(DataConfig):
    """The tars, their columns, and how they are read."""

    columns: dict[str, ColumnConfig] = semantic({}, "columns by name: run, folder or member, and field")
    keep: str | None = execution(None, "run of a selection (recap.select): samples whose row there is ok, no others")
    pixels: str | None = semantic(None, "column of small images (recap.data.shrink) to use instead of the tars'")
    streams: int = semantic(64, "virtual streams; ranks divide it, and it divides the batch")
    window: int = semantic(32, "blocks of 512 samples among which a stream shuffles")
    indexed: bool = semantic(True, "False: tars are streamed without an index; resume is then approximate")
    size: int = semantic(0, "samples of an epoch, where the tars are not indexed")
    index: str | None = execution(None, "file of the block index; made on first use. Empty: beside the run")
    readers: int = execution(8, "blocks that a rank reads at the same time")
    decoders: int = execution(4, "threads of a rank that decode images")


def check_batch(data: JoinedDataConfig, batch: int) -> None:
    """UserError where there are no streams or windows, the streams do not divide a batch, or the length of an epoch is
    not known.
    """
    for name, value in (("streams", data.streams), ("window", data.window)):
        if value < 1:
            raise UserError(f"config: `data.{name}`: {value} is less than 1.")
    if data.indexed and batch % data.streams:
        near = max(batch // data.streams, 1) * data.streams
        raise UserError(
            f"config: `data.streams`: {data.streams} do not divide the batch of {batch}. Write a batch of {near}."
        )
    if not data.indexed and not data.size:
        raise UserError(
            "config: `data.size`: how many samples an epoch has is not known without an index. Write their number."
        )


def describe_reading(data: JoinedDataConfig, ranks: int) -> str:
    """How much a rank reads before its first step, and holds from then on, in words; "" where tars are streamed."""
    if not data.indexed:
        return ""
    first = data.streams * data.window * BLOCK / max(ranks, 1)
    size = first * _IMAGE_BYTES / 1e9
    return (
        f"{first:,.0f} samples a rank before the first step, {HELD * first:,.0f} held: {size:.2f} and "
        f"{HELD * size:.2f} GB at {_IMAGE_BYTES // 1000} kB a sample (data.streams x data.window blocks of {BLOCK})"
    )


def check_memory(data: JoinedDataConfig, seed: int, ranks: int, run: Path, memory: int | None) -> None:
    """UserError where a rank cannot hold its first windows. Without a block index there is nothing to check yet.

    Args:
        seed: of the order of samples.
        run: directory of the training's run.
        memory: bytes that a rank may use; None: the ranks share this machine's.
    """
    path = Path(data.index) if data.index else run / INDEX
    if data.indexed and not data.pixels and path.exists():
        plan = StreamPlan(Index.open(path), seed, data.streams, data.window)
        check_window_memory(plan, ranks, machine_memory() // ranks if memory is None else memory)


def check_columns(data: JoinedDataConfig, names: Sequence[str]) -> str:
    """Check the shards and the columns `names`, and return what a dry run says of the input.

    Raises:
        UserError: a column is not described or lacks shards, or blocks of the shards cannot be read.
    """
    shards = list_shards(data)
    if data.indexed:
        check_ranges(shards)
    columns = []
    for name in [*names, *([data.pixels] if data.pixels else [])]:
        if name not in data.columns:
            known = ", ".join(data.columns)
            raise UserError(f"config: column {name!r} is not among data.columns ({known}).")
        columns.append(open_column(name, data.columns[name]))
        if told := columns[-1].check(shards):
            log.warning("data: %s", told)
    if data.keep:
        if not data.indexed:
            raise UserError(f"config: `{KEEP}`: what is kept is known by the index. Set data.indexed=true.")
        if told := check_selection(data.keep, shards):
            log.warning("data: %s", told)
    return described(shards, data.wanted(members_of(columns), image=not data.pixels))


def column_identities(data: JoinedDataConfig) -> dict[str, Any]:
    """The part of a trainer's identity that names the columns made by runs of this toolkit: identities by column."""
    runs = {name: column.run for name, column in sorted(data.columns.items()) if column.run}
    made: dict[str, Any] = {"columns": {name: Published(run).identity for name, run in runs.items()}} if runs else {}
    return made | ({"keep": Published(data.keep).identity} if data.keep else {})


@dataclass(frozen=True)
class SharedInput:
    """Files that rank 0 makes about a training's input, and that all ranks then map into memory.

    A training that goes on uses those of its first start.

    index: file of the block index.
    manifests: by column, the file that says where the column's rows lie; for columns beside the tars only.
    kept: file with the counts of samples that a selection keeps; None without a selection.
    """

    index: Path
    manifests: dict[str, Path]
    kept: Path | None = None

    def digests(self) -> dict[str, str]:
        """Digest of each manifest. Checkpoints hold them, to check that a training goes on with what it began with."""
        return {name: Manifest(path).digest for name, path in self.manifests.items()}


def shared_input(data: JoinedDataConfig, gang: Gang, folder: str = "columns") -> SharedInput | None:
    """The training's shared files. Rank 0 makes what is missing, the other ranks wait for it.

    Args:
        folder: name of the manifests' folder in the training's run directory.

    Returns:
        None where tars are not indexed.
    """
    if not data.indexed:
        return None
    index = Path(data.index) if data.index else Path(gang.directory) / INDEX
    columns = Path(gang.directory) / folder
    beside = [*(name for name, column in data.columns.items() if not column.member), *([KEEP] if data.keep else [])]
    kept = columns / f"{KEEP}.npz" if data.keep else None
    found = SharedInput(index, {name: columns / f"{name}.arrow" for name in beside}, kept)
    if gang.rank == 0:
        shards = list_shards(data)
        opened = {name: _opened(data, name) for name in found.manifests}
        blocks = Index.open_or_make(index, shards, data.readers, data.wanted(image=False), runs_of(opened.values()))
        _tell_damage(blocks)
        with without_collection():
            for name, path in found.manifests.items():
                _share(name, opened[name], shards, path)
        if kept is not None and not kept.exists():
            count_kept(blocks, selection(str(data.keep), Manifest(found.manifests[KEEP]))).save(kept)
    patience = time.monotonic() + _WAIT_S
    for path in (index, *found.manifests.values(), *([kept] if kept else [])):
        while not path.exists():
            if time.monotonic() > patience:
                raise UserError(f"data: rank 0 made no {path} in {_WAIT_S:.0f} s. See its log for what keeps it.")
            time.sleep(0.2)
    return found


def opened_columns(data: JoinedDataConfig, names: Sequence[str], shared: SharedInput | None) -> dict[str, Column]:
    """The columns `names` and the selection (as column `data.keep`), by name.

    With `shared` they are read as they were when the training began, without it as they are now.
    """
    paths = shared.manifests if shared else {}
    wanted = [*names, *([KEEP] if data.keep else [])]
    found = {name: Manifest(paths[name]) if name in paths else None for name in wanted}
    opened = {name: _opened(data, name, manifest) for name, manifest in found.items()}
    files: dict[tuple[str | None, str | None, str], OpenFiles] = {}
    for name, column in opened.items():
        if isinstance(column, ParquetColumn):  # several fields of one merged run: its files are opened once
            config, manifest = column.config, found[name]
            place = (config.run, config.folder, manifest.digest if manifest else "")
            column.files = files.setdefault(place, column.files)
    return opened


def _opened(data: JoinedDataConfig, name: str, manifest: Manifest | None = None) -> Column:
    """A column of the config, or its selection."""
    if name == KEEP and data.keep:
        return selection(data.keep, manifest)
    return open_column(name, data.columns[name], manifest)


def blocks_of(data: JoinedDataConfig, shards: list[Shard], shared: SharedInput | None) -> Index:
    """The block index; where there is a selection, one that counts only the samples that it keeps."""
    if shared is None:
        runs = runs_of(open_column(name, column) for name, column in data.columns.items())
        index = Index.open_or_make(None, shards, data.readers, data.wanted(image=False), runs)
        return KeptIndex(index, count_kept(index, selection(data.keep))) if data.keep else index
    index = Index.open(shared.index)
    return KeptIndex(index, KeptCounts.open(shared.kept)) if shared.kept else index


def _share(name: str, column: Column, shards: Sequence[Shard], path: Path) -> None:
    """Write a column's manifest at `path`. Where there is one, log which shards were made again since then."""
    assert isinstance(column, ColumnOfFiles)
    if not path.exists():
        if told := column.check(shards):
            log.warning("data: %s", told)
        write(path, column.manifest(shards))
        return
    known = Manifest(path).generations()
    if newer := [shard.id for shard in shards if column.generation(shard) > known.get(shard.id, 0)]:
        log.warning(
            "data: column %s: %s shards (one is %s) were made again since this training began; it goes on with what it "
            "began with, by %s.", name, f"{len(newer):,}", newer[0], path,
        )  # fmt: skip


def _tell_damage(index: Index) -> None:
    if damaged := index.damaged():
        shard, why = next(iter(damaged.items()))
        log.warning(
            "data: %s of %s shards are damaged; their samples before the damage are used. First: %s: %s",
            f"{len(damaged):,}", f"{index.shards:,}", shard, why,
        )  # fmt: skip


@dataclass
class PreparedSample(Generic[T]):
    """A usable sample for one place of a batch.

    name: unique in the corpus. value: what `prepare` made of it.
    rejected: (name, reason) of each sample that was tried for the place before.
    """

    name: str
    epoch: int
    value: T
    rejected: list[tuple[str, str]] = field(default_factory=list)


class Samples(Generic[T]):
    """Prepares the samples of each training step.

    Args:
        names: the columns that are read.
        seed: of the order of samples.
        shared: files that rank 0 made; None: the index and the columns are read here, and kept in memory.
        instead: a column that holds all that is wanted of the tars (small images). The tars are then not read, unless
            another column is a member of them.
        total: samples of the whole training, past which nothing is read ahead; 0: no end.
        prepare: turns a sample, in an epoch, into a value, or into a string that says why it cannot be used. Called in
            several threads at a time.
    """

    def __init__(
        self,
        data: JoinedDataConfig,
        names: Sequence[str],
        seed: int,
        shared: SharedInput | None,
        instead: str | None,
        total: int,
        prepare: Callable[[Joined, int], T | str],
    ) -> None:
        self.data, self._seed, self._instead, self._total, self._prepare = data, seed, instead, total, prepare
        self._shards: list[Shard] = [] if shared else list_shards(data)
        self._plan: StreamPlan | None = None
        if data.indexed:
            self._plan = StreamPlan(blocks_of(data, self._shards, shared), seed, data.streams, data.window)
        self._columns = opened_columns(data, names, shared)
        if shared is None:
            for column in self._columns.values():
                column.check(self._shards)
        self.manifests = shared.digests() if shared else {}
        self._reader: Reader | StreamedReader | None = None  # opened by the first `take`, since it starts threads
        self._decoders: ThreadPoolExecutor | None = None

    def size(self) -> int:
        """Samples of one epoch."""
        return self._plan.epoch_size if self._plan else self.data.size

    def digest(self) -> str:
        """Hash of the samples and their order, which a resumed training must find again; "" where tars are streamed."""
        return self._plan.digest if self._plan else ""

    def take(self, first: int, count: int, rank: int = 0, world: int = 1) -> list[PreparedSample[T]]:
        """The samples of the training's places [first, first + count) that belong to this rank."""
        if self._reader is None or self._decoders is None:
            self._reader = self._open()
            self._decoders = ThreadPoolExecutor(max(self.data.decoders, 1), thread_name_prefix="decoder")
        slots: list[Any] = list(self._reader.batch(first, count, rank, world))
        return list(self._decoders.map(self._fill, slots))

    def close(self) -> None:
        if self._reader is not None and self._decoders is not None:
            self._reader.close()
            self._decoders.shutdown()
        self._reader = self._decoders = None

    def _open(self) -> Reader | StreamedReader:
        if self._plan is None:
            wanted = self.data.wanted(members_of(self._columns.values()))
            return StreamedReader(self._shards, self._columns, self._seed, self.data.size, wanted)
        return Reader(
            self._plan, self._columns, self.data.readers, keys_from=self._instead, total=self._total or None,
            images=self.data.image, key=self.data.key,
        )  # fmt: skip

    def _fill(self, slot: Slot | StreamedSlot) -> PreparedSample[T]:
        """The first usable sample for a place, and why others were not."""
        rejected: list[tuple[str, str]] = []
        try:
            for sample in slot.candidates():
                made = sample.problem or self._prepare(sample, slot.epoch)
                if not isinstance(made, str):
                    return PreparedSample(sample.name, slot.epoch, made, rejected)
                rejected.append((sample.name, made))
        except UserError as error:
            reasons = Counter(reason for _, reason in rejected)
            told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
            raise UserError(f"{error} They say: {told}.") from error
        raise AssertionError("candidates end with an error")


def image_of(sample: Joined, data: JoinedDataConfig) -> bytes:
    """A sample's image file: from the column `data.pixels`, or the first member with an extension of `data.image`.

    Raises:
        BadImage: there is none.
    """
    if data.pixels:
        image, why = sample.columns[data.pixels], (MISSING, "")
    else:
        image = next((sample.members[e] for e in data.image if e in sample.members), None)
        why = why_missing(sample.members) if image is None else ("", "")
    if image is None:
        raise BadImage(*why)
    return image
