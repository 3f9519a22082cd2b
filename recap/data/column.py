"""The protocol of a column of a corpus, its config, and what all columns that lie in files share."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import execution
from hpc.base.small_reads import small_reads
from hpc.operator import Shard
from recap.data.changed_files import is_damage, unreadable
from recap.data.manifest import Located, Manifest


@dataclass
class ColumnConfig:
    """Where one column comes from: exactly one of run, folder and member."""

    run: str | None = execution(None, "directory of a run of this toolkit")
    folder: str | None = execution(None, "folder or URL that holds <shard id>.parquet, or what recap.export wrote")
    member: str | None = None  # extension of a tar member, e.g. txt
    # of the parquet file, or key of a JSON member; default: caption for runs, re_caption for exports, text for folders
    field: str | None = None
    identity: str | None = None  # what the column's identity must begin with
    missing: str = "error"  # error | null: what a shard without this column means


@dataclass(frozen=True, slots=True)
class Values:
    """A column's values of some samples.

    values: one a sample, None where the column has none.
    digests: sha256 of the image that each value was made from; None where the column has none. See
        recap.data.same_image.
    doubt: the message of an error, where the shard was found by its name alone and may be another. It is raised unless
        the digests prove that the images are the same.
    """

    values: list[Any]
    digests: list[str | None] | None = None
    doubt: str = ""


class Column(Protocol):
    """One column of a corpus."""

    def check(self, shards: Sequence[Shard]) -> str:
        """Check that the column has every shard; return how they are found, "" where there is nothing to say.

        Raises:
            UserError: a shard is missing, or the column cannot be read.
        """

    def read(self, shard: Shard, block: int, keys: Sequence[str], members: Sequence[Mapping[str, bytes]]) -> Values:
        """The values of a block's samples, in the order of `keys`.

        Args:
            block: number of the block in the shard.
            keys, members: of the block's samples. Members by extension; empty where the tar is not read.
        """


class ColumnOfFiles:
    """A column whose rows lie in files beside the tars: those that `manifest` names, without it those there are now."""

    def __init__(self, name: str, config: ColumnConfig, field: str, manifest: Manifest | None) -> None:
        self.name, self.config, self.field, self._manifest = name, config, field, manifest
        self.newer: dict[str, Manifest] = {}  # by shard that was reopened by a rerun: its newer manifest

    def locate(self, shard: Shard) -> Located | None:
        """Where the rows of a shard lie now; None where the column has none."""
        raise NotImplementedError

    def generation(self, shard: Shard) -> int:
        """Which of a run's generations `locate` would find; 0 where there are none. No marker is read."""
        return 0

    def pieces(self, shard: Shard) -> Generator[tuple[list[str], Values]]:
        """Keys and values of all rows of a shard, in their order, a block at a time; none where there is no file."""
        raise NotImplementedError

    def known_identity(self) -> str:
        """Identity of the job that made the column; "" where its files do not say."""
        raise NotImplementedError

    def type(self) -> pa.DataType:
        """Type of its values, by one of its files. UserError where there is no file, or none with this field."""
        schema = self.some_schema()
        if schema is None:
            raise UserError(
                f"data: column {self.name} ({self.config.run or self.config.folder}) holds no file yet, so that the "
                "type of its values is not known. Make it first."
            )
        self.check_names("its first file", schema.names)
        return schema.field(self.field).type

    def check_names(self, file: str, names: Sequence[str], more: Sequence[str] = ()) -> None:
        """UserError unless the fields `names` of a file include the key, the column's field, and `more`."""
        for wanted in ("key", self.field, *more):
            if wanted not in names:
                raise UserError(
                    f"config: `data.columns.{self.name}`: {file} has no field {wanted!r}. It has "
                    f"{', '.join(names)}: set `field`."
                )

    def check_first_file(self) -> None:
        """Check the fields of one file when a job is planned. All files have one schema; each is checked when
        opened."""
        try:
            schema = self._some_schema()
        except (OSError, pa.ArrowException):  # a damaged file is reported when its shard is read
            return
        if schema is not None:
            self.check_names("its first file", schema.names)

    def some_schema(self) -> pa.Schema | None:
        """Schema of one of the files; None where there is no file. UserError where it cannot be read."""
        try:
            return self._some_schema()
        except (OSError, pa.ArrowException) as error:
            if not is_damage(error):
                raise
            raise unreadable(self.name, str(self.config.run or self.config.folder), error) from error

    def _some_schema(self) -> pa.Schema | None:
        """Schema of one of the files; None where there is no file."""
        raise NotImplementedError

    def manifest(self, shards: Sequence[Shard]) -> Iterator[tuple[str, Located]]:
        """(shard id, where its rows lie) for all shards that have rows. Each may cost a small read."""
        for shard, located in zip(shards, small_reads(self.locate, shards), strict=True):
            if located is not None:
                yield shard.id, located

    def located(self, shard: Shard) -> Located | None:
        """Where a shard's rows lie by the manifest; without one, where they lie now."""
        manifest = self.newer.get(shard.id, self._manifest)
        return manifest.find(shard.id) if manifest is not None else self.locate(shard)


def check_missing(name: str, config: ColumnConfig, missing: list[str], shards: int) -> None:
    """UserError where a column lacks shards and its config does not allow it. missing: their ids, out of `shards`."""
    if missing and config.missing == "error":
        raise UserError(
            f"data: column {name} ({config.run or config.folder}) lacks {len(missing):,} of {shards:,} shards "
            f"(first: {missing[0]}), by uri and by id. {_how_to_complete(config)}, or set "
            f"data.columns.{name}.missing=null to train those on other columns."
        )


def _how_to_complete(config: ColumnConfig) -> str:
    return f"Finish it (python -m hpc.status {config.run})" if config.run else "Add their files"
