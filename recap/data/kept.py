"""`data.keep: RUN`: a training on the samples that a selection kept: those whose row in that run is ok.

The order of samples is planned with the number of kept samples of each block, two bytes a block, so that an epoch is
exactly the kept samples. Which ones they are is read block by block, as a column joined by key, whose image digests are
compared as those of any column. A selection is any run whose rows are the tars' samples.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc.base import atomic
from hpc.base.errors import UserError
from hpc.operator import Shard
from recap.data.blocks import BLOCK
from recap.data.column import ColumnConfig
from recap.data.columns import RunColumn
from recap.data.index import Index
from recap.data.manifest import Manifest

KEEP = "data.keep"
"""The name under which a selection is read as a column."""
_READERS = 16


def selection(run: str, manifest: Manifest | None = None) -> RunColumn:
    """The column of a selection: `ok` for samples that are kept, else None."""
    return RunColumn(KEEP, ColumnConfig(run=run, field="status", missing="null"), manifest)


def check_selection(run: str, shards: Sequence[Shard]) -> str:
    """How its shards are found, in words, "" where there is nothing to say. UserError where it lacks a shard."""
    column = selection(run)
    told = column.check(shards)
    lacking = [shard.id for shard in shards if column.locate(shard) is None]
    if lacking:
        raise UserError(
            f"config: `{KEEP}`: {run} lacks {len(lacking):,} of {len(shards):,} shards (first: {lacking[0]}), by uri "
            f"and by id. Finish it (python -m hpc.status {run}), or name the selection of these tars."
        )
    return told


@dataclass(frozen=True)
class KeptCounts:
    """counts: uint16 [blocks], how many samples of each block are kept. digest: hash of which ones are."""

    counts: np.ndarray
    digest: str

    @classmethod
    def open(cls, path: Path) -> KeptCounts:
        with np.load(path) as made:
            return cls(made["counts"], str(made["digest"]))

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        made = io.BytesIO()
        np.savez(made, counts=self.counts, digest=np.array(self.digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, made.getvalue())


def count_kept(index: Index, column: RunColumn) -> KeptCounts:
    """Count what a selection keeps of each block. Reads only the field `status`, of many shards at a time.

    Raises:
        UserError: it has another number of rows than the tars have samples, or keeps none.
    """
    counts, starts = np.zeros(len(index), np.uint16), index.bounds

    def of_shard(number: int) -> bytes:
        shard, blocks = index.shard(number), slice(int(starts[number]), int(starts[number + 1]))
        total = int(index.counts(blocks).sum(dtype=np.int64))
        ok = column.ok_rows(shard)
        if len(ok) != total:
            raise UserError(
                f"config: `{KEEP}`: {column.config.run} has {len(ok):,} rows of shard {shard.id}, the tar {total:,} "
                "samples: it is a selection of other tars, or of rows that are not samples."
            )
        if total:
            counts[blocks] = np.add.reduceat(ok, np.arange(0, total, BLOCK), dtype=np.uint16)
        return np.packbits(ok).tobytes()

    made = hashlib.sha256()
    with ThreadPoolExecutor(_READERS) as pool:
        for bits in pool.map(of_shard, range(index.shards)):
            made.update(bits)
    if not counts.any():
        raise UserError(f"config: `{KEEP}`: {column.config.run} keeps none of {index.samples:,} samples.")
    return KeptCounts(counts, made.hexdigest()[:16])


class KeptIndex(Index):
    """A block index whose counts are the kept samples of each block. Where blocks lie is unchanged.

    Raises:
        UserError: the counts were made for another number of blocks.
    """

    def __init__(self, index: Index, kept: KeptCounts) -> None:
        super().__init__(index._table)
        if len(kept.counts) != len(index):
            raise UserError(
                f"data: {len(kept.counts):,} blocks were counted for `{KEEP}`, the index has {len(index):,}: it was "
                "made again. Put the old one back, or start a new training."
            )
        self._kept, self.selection = kept.counts, kept.digest

    @property
    def samples(self) -> int:
        return int(self._kept.sum(dtype=np.int64))

    def counts(self, blocks: np.ndarray | slice) -> np.ndarray:
        return self._kept[blocks]
