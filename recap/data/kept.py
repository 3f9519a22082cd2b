"""`data.keep: RUN`: a training of the samples that a selection kept, those of its rows that are ok.

The order is planned over the blocks' kept samples, so that an epoch is what is kept, and nothing is replaced: two bytes
a block of 512 are held. A block's own rows are read with its other columns, joined by key, and compared with the images
as these are. A selection is any run whose rows are the tars' samples.
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
    """How its shards are found, where that is worth a line. UserError where it lacks one of these shards."""
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
class Kept:
    """counts: uint16 for each block, its kept samples. digest: of which samples are kept."""

    counts: np.ndarray
    digest: str

    @classmethod
    def open(cls, path: Path) -> Kept:
        with np.load(path) as made:
            return cls(made["counts"], str(made["digest"]))

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        made = io.BytesIO()
        np.savez(made, counts=self.counts, digest=np.array(self.digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, made.getvalue())


def count(index: Index, column: RunColumn) -> Kept:
    """What a selection keeps of these shards. Reads one field of it, in threads.

    Raises:
        UserError: it has other samples than the tars, or keeps none.
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
    return Kept(counts, made.hexdigest()[:16])


class KeptIndex(Index):
    """A block index that counts the kept samples of each block; the blocks themselves are as they were.

    UserError where both are not of the same blocks.
    """

    def __init__(self, index: Index, kept: Kept) -> None:
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
