"""A map job that joins the texts of other files ("theirs") to one's own samples ("ours"): the rows of tars, or those of
a column.

    python -m hpc.launch configs/data/join.yaml data.shards=[…] theirs.files=[captions/*.parquet]
    python -m recap.join.report runs/joined                     the account

A row of theirs counts only by its strongest identifier. A sample of ours is joined by the strongest of its identifiers
that theirs have. Where one identifier has two texts, or a key belongs to two samples, the sample is skipped as
ambiguous.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.operator import SKIPPED, Batched, Column, Damage, Item, Row, Shard
from recap.data.expected import stem_of
from recap.data.pictures import find_image
from recap.data.rows import JoinedRow, Rows, RowsConfig
from recap.data.same_image import FIELD, digest
from recap.data.tar_job import RowsJob
from recap.join.identifiers import cleaned, hashed
from recap.join.ours import DOWNLOADER_RULES, DownloaderTable, duplicate_keys
from recap.join.sorted_texts import SortedTexts, TheirRow, prepare
from recap.join.theirs import Theirs, TheirsConfig

log = logging.getLogger(__name__)

MISSING, AMBIGUOUS = "join: missing", "join: ambiguous"
IMAGE, DOWNLOAD = "sha256 of the image", "sha256 of the download"
FIELDS: list[tuple[str, pa.DataType]] = [
    ("caption", pa.string()),
    ("by", pa.string()),  # which identifier: one of IMAGE, DOWNLOAD, uid, url, key
    ("theirs", pa.int64()),  # number of their first row with this identifier, counted over all files
    ("theirs_rows", pa.int32()),  # how many of their rows have it
    (FIELD, pa.string()),
]


@dataclass
class JoinConfig:
    """Config keys of a joining job."""

    column: str = semantic("joined", "name of the column that is made")
    data: RowsConfig = field(default_factory=RowsConfig)
    theirs: TheirsConfig = field(default_factory=TheirsConfig)
    table: str = execution(
        "runs/tables", "folder that all nodes see: theirs is sorted there once, about as large as its texts"
    )

    def __post_init__(self) -> None:
        """Paths become absolute: a rerun may be typed in another folder."""
        self.table = os.path.abspath(self.table)
        self.theirs.files = [p if "://" in p else os.path.abspath(p) for p in self.theirs.files]


@dataclass(frozen=True, slots=True)
class _OurRow:
    """An item's payload.

    identifiers: hashes by the names that the field `by` gives them, strongest first.
    image: sha256 of the sample's image. problem: why the sample cannot be joined, else "".
    """

    identifiers: dict[str, bytes]
    image: str | None
    problem: str
    without: str  # which identifiers are not known, in words


class JoinOperator(RowsJob, Batched):
    """See hpc.operator.Operator."""

    Config: ClassVar[type] = JoinConfig
    version: ClassVar[int] = 1
    by_rule: ClassVar[frozenset[str]] = frozenset({MISSING, AMBIGUOUS})
    batch_size = 4096

    def __init__(self, config: JoinConfig) -> None:
        super().__init__()
        self.config = config
        self._texts: SortedTexts | None = None
        self._duplicate_keys: set[bytes] = set()

    # --- what a login node asks ---------------------------------------------------------------

    @cached_property
    def theirs(self) -> Theirs:
        return Theirs(self.config.theirs)

    @cached_property
    def _rows(self) -> Rows:
        columns = list(self.config.data.columns)
        return Rows(self.config.data, columns, image=not columns)

    @property
    def folder(self) -> Path:
        """The folder of their sorted texts, named after their files' content and the columns that are used."""
        chosen = hashed("theirs", f"{self.theirs.digest} {self.theirs.by} {[f.columns for f in self.theirs.files]}")
        return Path(self.config.table) / chosen.hex()

    def plan(self) -> list[Shard]:
        shards = super().plan()
        for line in self._note_missing_tables(shards):
            log.warning("data: %s", line)
        return shards

    def _note_missing_tables(self, shards: list[Shard]) -> Iterator[str]:
        """A sentence where tars have no table of the downloader beside them, so that uid and url are not known.

        Raises:
            UserError: no tar has one, and nothing else could match.
        """
        rules = [rule for rule in self.theirs.by if rule in ("uid", "url")]
        local = [shard for shard in shards if "://" not in shard.uri]
        lacking = [shard for shard in local if not os.path.exists(f"{stem_of(shard.uri)}.parquet")]
        if not rules or not lacking:
            return
        what = f"{len(lacking):,} of {len(local):,} tars have no parquet of img2dataset beside them"
        what += f" (first: {lacking[0].uri})"
        if len(lacking) == len(shards) and set(self.theirs.by) == set(rules):
            raise UserError(
                f"join: {what}: {' and '.join(rules)} of their samples are unknown. Copy these files there."
            )
        yield f"{what}: {' and '.join(rules)} do not reach their samples"

    def identity(self) -> dict[str, Any]:
        columns = self._rows.identities()
        return {"theirs": self.theirs.digest, "by": self.theirs.by} | ({"columns": columns} if columns else {})

    def describe(self) -> list[tuple[str, str]]:
        theirs, rows = self.theirs, self._rows
        names = "; ".join(sorted({", ".join(f"{r} {n}" for r, n in file.columns.items()) for file in theirs.files}))
        return [
            ("theirs", f"{len(theirs.files):,} files · {names}"),
            (
                "join",
                f"by {', '.join(theirs.by)}" + ("" if rows.tars else f" · the rows of column {rows.main}, no tar read"),
            ),
        ]

    def column(self) -> Column:
        return Column(self.config.column, list(FIELDS))

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m recap.join.report {run}     matched, missing, ambiguous, and what of theirs was not used"]

    # --- what an engine process asks ----------------------------------------------------------

    def setup(self, device: str) -> None:
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own pool would keep tens of MB of freed memory
        prepare(self.theirs, self.folder)
        self._texts = SortedTexts(self.folder)
        if "key" in self.theirs.by:
            self._duplicate_keys = duplicate_keys(self._rows.shards())

    def read(self, shard: Shard) -> Iterator[Item | Damage]:
        beside = DownloaderTable(shard.uri, [rule for rule in self.theirs.by if rule in DOWNLOADER_RULES])
        without = [rule for rule in self.theirs.by if rule in ("uid", "url") and rule not in beside.fields]
        told = f"{' and '.join(without)} unknown: not in a parquet beside the tar" if without else ""
        return self._rows.read(shard, lambda row: (self._our_row(row, beside, told), 1000))

    def _our_row(self, row: JoinedRow, beside: DownloaderTable, without: str) -> _OurRow:
        image, problem = row.image, ""
        if row.sample is not None:
            problem = row.sample.problems[0] if row.sample.problems else ""
            image = digest(find_image(row.sample, self.config.data.image).image)
        known, found = beside.find(row.key), dict[str, bytes]()
        for rule in self.theirs.by:
            if rule == "sha256":
                found |= {IMAGE: hashed(rule, image)} if image else {}
                found |= {DOWNLOAD: known[rule]} if rule in known else {}
            elif rule == "key":
                found[rule] = hashed(rule, cleaned(rule, row.key))
            elif rule in known:
                found[rule] = known[rule]
        return _OurRow(found, image, problem, without)

    def apply(self, items: list[Item]) -> list[Row]:
        assert self._texts is not None, "setup() comes first"
        known = self._texts.find([h for item in items for h in item.payload.identifiers.values()])
        return [self._joined(item, known) for item in items]

    def _joined(self, item: Item, known: dict[bytes, list[TheirRow]]) -> Row:
        ours: _OurRow = item.payload
        made: dict[str, Any] = {FIELD: ours.image}
        if ours.problem:
            return Row(item.shard, item.index, item.key, SKIPPED, ours.problem, values=made)
        by = next((name for name, identifier in ours.identifiers.items() if identifier in known), None)
        if by is None:
            return Row(item.shard, item.index, item.key, SKIPPED, MISSING, ours.without, values=made)
        rows = sorted(known[ours.identifiers[by]], key=lambda found: found.row)
        made |= {"by": by, "theirs": rows[0].row, "theirs_rows": len(rows)}
        texts = len({found.text for found in rows})
        if texts > 1 or (by == "key" and ours.identifiers[by] in self._duplicate_keys):
            why = f"{texts:,} texts have one {by}" if texts > 1 else "the key of several samples"
            return Row(item.shard, item.index, item.key, SKIPPED, AMBIGUOUS, why, values=made)
        return Row(item.shard, item.index, item.key, values={**made, "caption": rows[0].text})

    def close(self) -> None:
        if self._texts is not None:
            self._texts.close()
