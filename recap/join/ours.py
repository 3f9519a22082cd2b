"""Identifiers of one's own samples that are in the downloader's table beside a tar (url, uid, sha256 of the download),
and keys that several samples have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc.base.errors import ShardError
from hpc.operator import Damage, Shard
from recap.data.archive import Archive
from recap.data.expected import stem_of
from recap.data.headers import without_dot_slash
from recap.data.remote import open_shard
from recap.data.tars import read_keys
from recap.join.identifiers import as_numbers, cleaned, hashed

DOWNLOADER_RULES = ("sha256", "uid", "url")
"""The identifiers that img2dataset's parquet file beside a tar may have."""
_BATCH = 8192


class DownloaderTable:
    """The parquet file that img2dataset wrote beside a tar, held as hashes: 64 bytes a sample.

    fields: which of `DOWNLOADER_RULES` it has; none where there is no such file.

    Args:
        uri: of the tar. rules: the identifiers that are wanted.
    """

    def __init__(self, uri: str, rules: Sequence[str]) -> None:
        self.fields: tuple[str, ...] = ()
        self._keys, self._order = np.empty((0, 2), "<u8"), np.empty(0, np.int64)
        self._hashes: dict[str, bytearray] = {}
        stem = stem_of(uri)
        try:
            if stem is not None:
                with fsspec.open(f"{stem}.parquet", "rb") as file:
                    self._read(file, rules)
        except (OSError, pa.ArrowException):
            self.fields = ()

    def _read(self, file: object, rules: Sequence[str]) -> None:
        keys = bytearray()
        with pq.ParquetFile(file, buffer_size=1 << 20) as table:
            names = table.schema_arrow.names
            self.fields = (
                tuple(rule for rule in DOWNLOADER_RULES if rule in rules and rule in names) if "key" in names else ()
            )
            found = {rule: bytearray() for rule in self.fields}
            for batch in table.iter_batches(_BATCH, columns=["key", *self.fields]) if self.fields else ():
                for key in batch["key"].cast(pa.string()).to_pylist():
                    keys += hashed("key", cleaned("key", key))
                for rule in self.fields:
                    for value in batch[rule].cast(pa.string()).to_pylist():
                        clean = cleaned(rule, value)
                        found[rule] += hashed(rule, clean) if clean else _NONE
        numbers = as_numbers(keys)
        self._order = np.argsort(numbers[:, 0], kind="stable")
        self._keys = numbers[self._order]
        self._hashes = found

    def find(self, key: str) -> dict[str, bytes]:
        """Hashes of a sample's identifiers, by rule; {} where the table has no such key."""
        [[first, second]] = as_numbers(hashed("key", cleaned("key", key)))
        place = int(np.searchsorted(self._keys[:, 0], first))
        while place < len(self._keys) and self._keys[place, 0] == first:
            if self._keys[place, 1] == second:
                at = 16 * int(self._order[place])
                found = {rule: bytes(hashes[at : at + 16]) for rule, hashes in self._hashes.items()}
                return {rule: value for rule, value in found.items() if value != _NONE}
            place += 1
        return {}


_NONE = bytes(16)  # stands for a value that is no identifier


def duplicate_keys(shards: Sequence[Shard], threads: int = 8) -> set[bytes]:
    """Hashes of the keys that more than one sample has. Reads the headers of all tars; holds 8 bytes a sample."""
    with ThreadPoolExecutor(threads) as pool:
        numbers = list(pool.map(lambda shard: np.fromiter(_first_numbers(shard), "<u8"), shards))
    values, counts = np.unique(np.concatenate([*numbers, np.empty(0, "<u8")]), return_counts=True)
    doubtful = {*values[counts > 1].tolist()}
    if not doubtful:
        return set()
    return {h for shard in shards for h in _hashes(shard) if int.from_bytes(h[:8], "little") in doubtful}


def _first_numbers(shard: Shard) -> Iterator[int]:
    return (int.from_bytes(found[:8], "little") for found in _hashes(shard))


def _hashes(shard: Shard) -> Iterator[bytes]:
    try:
        with open_shard(shard) as file:
            for sample in read_keys(Archive(file)):
                if not isinstance(sample, Damage):
                    yield hashed("key", cleaned("key", without_dot_slash(sample.key)))
    except (OSError, ShardError):
        return  # reported when the shard is worked on
