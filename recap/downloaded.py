"""What img2dataset's parquet beside a tar knows of its samples: the address of each image, and its digest."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.run.published import PublishedShard
from recap.data.expected import stem_of
from recap.data.headers import without_dot_slash

FIELDS = ("url", "sha256")


@dataclass
class Downloads:
    """Joins shards with the files beside them, by key, and counts.

    known, asked: samples that were found there, of those in shards that have such a file. first: a key that was not.
    unusable: files that could not be joined, `why`: what is wrong with the first.
    """

    known: int = 0
    asked: int = 0
    unusable: int = 0
    first: str = ""
    why: str = ""

    def read(self, shard: PublishedShard, keys: list[str]) -> dict[str, pa.Array]:
        """`url` and `sha256` of a shard's samples; {} where no file lies beside the tar. UserError: no key is in it."""
        table, why = _beside(shard.shard.uri)
        self.unusable, self.why = self.unusable + bool(why), self.why or why
        names = [name for name in FIELDS if table is not None and name in table.column_names]
        if table is None or not names or not keys:
            return {}
        theirs = [without_dot_slash(key) for key in table["key"].cast(pa.string()).to_pylist() if key is not None]
        at = pc.index_in(pa.array([without_dot_slash(key) for key in keys], pa.string()), pa.array(theirs, pa.string()))
        if at.null_count == len(keys) and theirs:
            raise UserError(
                f"export: none of the {len(keys):,} keys of {shard.shard.uri} is in the parquet beside it: the tar "
                f"spells them {keys[0]!r}, the parquet {theirs[0]!r}. Give that its tar's keys, or move it away: "
                "the export then has no url."
            )
        self.known, self.asked = self.known + len(keys) - at.null_count, self.asked + len(keys)
        if at.null_count and not self.first:
            self.first = f"{keys[at.is_null().to_pylist().index(True)]} of {shard.shard.id}"
        return {name: table[name].combine_chunks().take(at) for name in names}

    def add(self, other: Downloads) -> None:
        """Count what another has found in shards that follow."""
        self.known, self.asked = self.known + other.known, self.asked + other.asked
        self.unusable, self.why = self.unusable + other.unusable, self.why or other.why
        self.first = self.first or other.first

    def told(self) -> str:
        """What was not found, as one line; "" where nothing is missing."""
        said = []
        if self.known != self.asked:
            said.append(f"found for {self.known:,} of {self.asked:,} samples in the parquet beside their tar")
        if self.unusable:
            said.append(f"not to be had from {self.unusable:,} parquet files beside tars (the first: {self.why})")
        return f"url: {'; '.join(said)}" if said else ""

    def lines(self) -> list[str]:
        """What `told` returns, as lines of a data set's card; [] where nothing is missing."""
        example = f" (not for {self.first})" if self.first else ""
        return [f"- {self.told()}{example}"] if self.told() else []


def _beside(uri: str) -> tuple[pa.Table | None, str]:
    """The table beside a tar, without rows that have no key; without one, what is wrong with the file ("": none)."""
    stem = stem_of(uri)
    if stem is None:
        return None, ""
    try:
        with fsspec.open(f"{stem}.parquet", "rb") as file:
            table = pq.read_table(file)
    except FileNotFoundError:
        return None, ""
    except Exception as error:  # noqa: BLE001 - each store's client has exceptions of its own
        return None, f"{stem}.parquet: {type(error).__name__}: {error}"
    if "key" not in table.column_names:
        missing = f"{stem}.parquet has no column `key`, by which it would be joined"
        return None, missing if "url" in table.column_names else ""
    return table.filter(pc.is_valid(table["key"])), ""
