"""The rows of a map job: samples of tars joined with columns, or the rows of a column alone.

Columns are in the order of their tars, so that a join by key holds only a few blocks of each in memory. Where neither
images nor members are wanted, no tar is opened. The rows of a child column, with keys `k#0`, `k#1`, ..., are joined
with the sample `k` of the tars and of other columns. Digests of images are compared where both sides have them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hpc.base.errors import ShardError, UserError
from hpc.base.fields import semantic
from hpc.operator import Damage, Item, Shard
from recap.data.blocks import BLOCK
from recap.data.column import Column, ColumnConfig, ColumnOfFiles, Values
from recap.data.columns import MemberColumn, ParquetColumn, RunColumn, members_of, open_column
from recap.data.headers import without_dot_slash
from recap.data.inputs import DataConfig, list_shards
from recap.data.kind import Wanted
from recap.data.kinds import samples_of
from recap.data.manifest import open_once, write_as_digest
from recap.data.pictures import read_items
from recap.data.same_image import SameImages
from recap.data.tars import Sample
from recap.data.texts import TextMember, check_key

TARS = "tars"
_WINDOW = 2 * BLOCK  # rows of a column that are held while a key is looked for


@dataclass
class RowsConfig(DataConfig):
    """The tars, their columns, and whose rows are worked on."""

    columns: dict[str, ColumnConfig] = semantic({}, "columns by name: run, folder or member, and field")
    rows: str = semantic(
        "",
        "whose rows are worked on: tars | the name of a column (its rows may be children k#0, k#1, ... of "
        "a sample k); empty: the tars' where an image or a member is read, else those of the first column",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.manifests: dict[str, Path] = {}
        """By column, the manifest that the launch made; {} before it did."""


@dataclass(frozen=True, slots=True)
class JoinedRow:
    """One row.

    sample: of the tar, None where no tar is read. columns: values by name, None where there is none.
    image: sha256 of the image that the columns were made from, None where no column has it.
    """

    key: str
    sample: Sample | None
    columns: Mapping[str, Any]
    image: str | None = None


class Rows:
    """Reads a map job's rows.

    Args:
        names: the columns that are read.
        image: whether the job looks at the images.

    Raises:
        UserError: a column is not described, or its description is wrong.
    """

    def __init__(self, config: RowsConfig, names: Sequence[str], image: bool) -> None:
        self.config, self.image = config, image
        main = config.rows if config.rows not in ("", TARS) else ""
        for name in [*names, *([main] if main else [])]:
            if name not in config.columns:
                known = ", ".join(config.columns) or "there are none"
                raise UserError(f"config: column {name!r} is not among data.columns ({known}).")
        found = {name: open_once(path) for name, path in config.manifests.items()}
        self.columns: dict[str, Column] = {
            name: open_column(name, config.columns[name], found.get(name))
            for name in dict.fromkeys([*names, *([main] if main else [])])
        }
        self._same, self._told = SameImages(config.image), False
        self.input = ""
        """What a dry run says of the shards; set by `plan`, "" where no tar is read."""
        self.main = main or self._first()
        self.tars = image or not self.main or any(isinstance(c, MemberColumn) for c in self.columns.values())
        if main and not isinstance(self.columns[main], ColumnOfFiles):
            raise UserError(f"config: `data.rows`: column {main} is a member of the tars. Write {TARS}.")

    @property
    def wanted(self) -> Wanted:
        """What is read of each sample of the tars."""
        text = TextMember.named(self.config.text).member
        return self.config.wanted([text, *members_of(self.columns.values())], image=self.image)

    def _first(self) -> str:
        """The column whose rows are worked on where the config names none; "" for the tars'."""
        alone = all(isinstance(column, ParquetColumn) for column in self.columns.values())
        return next(iter(self.columns), "") if alone and not self.image and self.config.rows != TARS else ""

    def plan(self) -> tuple[list[Shard], list[str]]:
        """(the shards, sentences about how each column's shards were found). UserError where a column lacks some."""
        shards = self.shards()
        for name, column in self.columns.items():
            if isinstance(column, MemberColumn):
                check_key(f"data.columns.{name}", column.text, shards)
        self.input = self.config.described(shards, self.wanted) if self.tars else ""
        told = [said for column in self.columns.values() if (said := column.check(shards))]
        if self.config.rows not in ("", TARS):  # a column may have several rows for a sample
            shards = [replace(shard, expected=None) for shard in shards]
        return shards, told

    def shards(self) -> list[Shard]:
        """The shards that `data.shards` names, or those of the column whose rows are worked on."""
        main = self.columns.get(self.main)
        if not self.config.shards and not self.tars and isinstance(main, RunColumn):
            return list(main.published.shards)
        return list_shards(self.config)

    def identities(self) -> dict[str, str]:
        """Identity of the job that made each column, by name; without columns that do not say."""
        return {name: found for name, column in sorted(self._beside.items()) if (found := column.known_identity())}

    def survey(self, folder: Path, shards: Sequence[Shard]) -> dict[str, str]:
        """Write a manifest, in `folder`, of each column beside the tars; return their names by column.

        A name is the content's digest, so that a manifest that exists already is the same.
        """
        return {name: write_as_digest(folder, column.manifest(shards)) for name, column in self._beside.items()}

    def reopened(self, shard: str, manifests: Mapping[str, Path]) -> None:
        """Read a shard that a rerun reopened by these manifests, which the rerun made, by column."""
        for name, column in self._beside.items():
            if name in manifests:
                column.newer[shard] = open_once(manifests[name])

    @property
    def _beside(self) -> dict[str, ColumnOfFiles]:
        return {name: column for name, column in self.columns.items() if isinstance(column, ColumnOfFiles)}

    def read(self, shard: Shard, payload: Callable[[JoinedRow], tuple[Any, int]]) -> Iterator[Item | Damage]:
        """A shard's items.

        Args:
            payload: an item's payload, and the bytes that it holds in memory.

        Raises:
            UserError: a column was made from other tars, or from other images.
        """
        beside = {name: column for name, column in self._beside.items() if name != self.main}
        kind = _ParentJoin if self.config.rows not in ("", TARS) else _WindowJoin
        with ExitStack() as stack:
            joins: dict[str, _Join] = {n: stack.enter_context(closing(kind(n, c, shard))) for n, c in beside.items()}
            if self.main:
                found = self._of_column(shard, joins, payload)
            else:
                found = read_items(shard, self.config, lambda s: payload(self._joined(shard, s, joins)), self.wanted)
            for item in found:
                yield item
                if isinstance(item, Damage):
                    return  # what follows in the columns belongs to samples that could not be read
            for join in joins.values():
                join.check_rest()

    def _joined(self, shard: Shard, sample: Sample, joins: Mapping[str, _Join]) -> JoinedRow:
        found = {name: join.find(sample.key) for name, join in joins.items()}
        return self._row(shard, sample.key, sample, found)

    def _of_column(
        self, shard: Shard, joins: Mapping[str, _Join], payload: Callable[[JoinedRow], tuple[Any, int]]
    ) -> Iterator[Item | Damage]:
        main = self.columns[self.main]
        assert isinstance(main, ColumnOfFiles)
        with ExitStack() as stack:
            samples = stack.enter_context(closing(_TarCursor(shard, self.wanted))) if self.tars else None
            index = 0
            for keys, values in main.pieces(shard):
                for at, key in enumerate(keys):
                    own = _one(values, at)
                    sample = samples.find(key) if samples else None
                    if samples is not None and samples.damage is not None:
                        yield samples.damage
                        return
                    found = {name: join.find(key) for name, join in joins.items()}
                    row = self._row(shard, key, sample, {self.main: own, **found})
                    yield Item(shard.id, index, key, *payload(row), lost=sample.failure() if sample else "")
                    index += 1

    def _row(self, shard: Shard, key: str, sample: Sample | None, found: Mapping[str, Values]) -> JoinedRow:
        """The row with all its columns, after the digests of its image were compared."""
        members = sample.members if sample is not None else {}
        if not self._told or any(read.digests or read.doubt for read in found.values()):
            self._same.check(shard.id, [key], [members], found)
            self._told = True  # the first check logs which columns have no digests
        columns: dict[str, Any] = {}
        for name, column in self.columns.items():
            if name in found:
                columns[name] = found[name].values[0]
            else:
                columns[name] = column.read(shard, 0, [key], [members]).values[0]
        digests = (read.digests[0] for read in found.values() if read.digests)
        return JoinedRow(key, sample, columns, next((digest for digest in digests if digest), None))


def parent_of(key: str) -> str:
    """The sample that a child's key belongs to: `k` of `k#3`."""
    return key.rpartition("#")[0] or key


def _one(values: Values, at: int) -> Values:
    """The values of one sample."""
    digests = None if values.digests is None else [values.digests[at]]
    return Values([values.values[at]], digests, values.doubt)


class _Join(Protocol):
    """Looks up one column's rows by the keys of others, which come in the same order."""

    def find(self, key: str) -> Values:
        """The column's row for a key, as one value; the value is None where it has no such row."""

    def check_rest(self) -> None:
        """UserError where rows are left that belong to none of the keys."""

    def close(self) -> None: ...


class _WindowJoin:
    """A join by equal keys. Up to _WINDOW rows are held, so that the two orders may differ a little."""

    def __init__(self, name: str, column: ColumnOfFiles, shard: Shard) -> None:
        self._name, self._shard = name, shard
        self._pieces = column.pieces(shard)
        self._held: dict[str, deque[Values]] = {}
        self._size = self._asked = self._found = 0
        self._digests = False

    def close(self) -> None:
        self._pieces.close()

    def find(self, key: str) -> Values:
        self._asked += 1
        key = without_dot_slash(key)
        while key not in self._held and self._size < _WINDOW and self._load():
            pass
        rows = self._held.get(key)
        if rows is None:
            if not self._found and self._asked >= BLOCK and self._size:
                raise self._foreign(f"none of the first {self._asked:,} keys that it is joined to (one is {key})")
            return Values([None], [None] if self._digests else None)
        found = rows.popleft()
        if not rows:
            del self._held[key]
        self._size -= 1
        self._found += 1
        return found

    def check_rest(self) -> None:
        if self._held or self._load():
            raise self._foreign("none of the keys that it is joined to")

    def _load(self) -> bool:
        """Load one more block of rows; False where there is none."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        keys, values = piece
        self._digests = values.digests is not None
        for at, key in enumerate(keys):
            self._held.setdefault(without_dot_slash(key), deque()).append(_one(values, at))
        self._size += len(keys)
        return True

    def _foreign(self, of: str) -> UserError:
        return UserError(
            f"data: column {self._name}: shard {self._shard.id}: key {next(iter(self._held))} is {of}. The column was "
            "made from other tars: make it again, or name its own. (Rows k#0, k#1, ... of a sample k: name the column "
            "in data.rows.)"
        )


class _ParentJoin:
    """A join of child rows, `k#0`, `k#1`, ..., with the row `k`, or with a row of the same key."""

    def __init__(self, name: str, column: ColumnOfFiles, shard: Shard) -> None:
        self._name, self._column, self._shard = name, column, shard
        self._rows, self._place = self._from(0), 0
        self._last: tuple[str, Values] | None = None

    def close(self) -> None:
        self._rows.close()

    def find(self, key: str) -> Values:
        wanted = (without_dot_slash(key), parent_of(without_dot_slash(key)))
        if self._last is not None and self._last[0] in wanted:
            return self._last[1]
        for passed, row in enumerate(self._rows, 1):
            if row[0] in wanted:
                self._place += passed
                self._last = row
                return row[1]
        self._check_order(wanted)
        self._rows = self._from(self._place)  # the column lacks this row; go back to look for the next ones
        return Values([None], None)

    def check_rest(self) -> None:
        """Rows without children are allowed."""

    def _from(self, place: int) -> Generator[tuple[str, Values]]:
        at = 0
        with closing(self._column.pieces(self._shard)) as pieces:
            for keys, values in pieces:
                yield from ((without_dot_slash(keys[i]), _one(values, i)) for i in range(max(0, place - at), len(keys)))
                at += len(keys)

    def _check_order(self, wanted: Sequence[str]) -> None:
        for _, row in zip(range(self._place), self._from(0), strict=False):  # only the rows before the place
            if row[0] in wanted:
                raise UserError(
                    f"data: column {self._name}: shard {self._shard.id}: key {row[0]} comes earlier than in the column "
                    "whose rows are worked on (data.rows). Columns lie in the order of their tars: make one of them "
                    "again."
                )


class _TarCursor:
    """Looks up the samples of a tar for rows that come in the same order. damage: why the tar ended early, else
    None."""

    def __init__(self, shard: Shard, wanted: Wanted) -> None:
        self._shard = shard
        self._samples = samples_of(shard, wanted)
        self._current: Sample | None = None
        self.damage: Damage | None = None

    def close(self) -> None:
        self._samples.close()

    def find(self, key: str) -> Sample | None:
        """The sample of a row or of its parent. None where the tar is damaged before it (`damage` says how)."""
        wanted = (key, parent_of(key))
        while self._current is None or self._current.key not in wanted:
            found = next(self._samples, None)
            if isinstance(found, Damage):
                self.damage = found
                return None
            if found is None:
                raise ShardError(
                    "column: rows of other tars",
                    f"no sample of {self._shard.uri} from the last joined on is {' or '.join(dict.fromkeys(wanted))}; "
                    "the column whose rows are worked on (data.rows) was made from other tars",
                )
            self._current = found
        return self._current
