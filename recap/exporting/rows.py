"""The rows of an export: a shard's captions in the schema of Recap-DataComp-1B, with columns from other runs and from
the downloader's metadata, reduced to the columns and rows that are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hpc.base.errors import UserError
from hpc.operator import OK, Shard
from hpc.run.published import Published, PublishedShard
from recap.data.blocks import BLOCK
from recap.data.column import Values
from recap.data.origin import Origins
from recap.data.same_image import SameImages, digest_field
from recap.downloaded import Downloads
from recap.exporting.where import Where, nearest, parse

VERSION = "2"  # 2: image_sha256

# (name, type, meaning) of the 11 columns of the published data set, the 2 that were added later, and one of this
# toolkit. All are nullable, so that files without scores have the same schema.
COLUMNS: list[tuple[str, pa.DataType, str]] = [
    ("url", pa.string(), "address of the image, where the downloader's metadata is at hand"),
    ("re_caption", pa.string(), "the generated caption"),
    ("org_caption", pa.string(), "the original text"),
    ("sha256", pa.string(), "of the downloaded file (downloader's metadata), else of the file that was captioned"),
    ("key", pa.string(), "the sample's key in its tar"),
    ("re_clip_score", pa.float64(), "CLIP score of re_caption"),
    ("org_clip_score", pa.float64(), "CLIP score of org_caption"),
    ("re_length", pa.int64(), "words of re_caption"),
    ("org_length", pa.int64(), "words of org_caption"),
    ("re_gpt4v_score", pa.int64(), "a judge's rating of re_caption, 1-5"),
    ("org_gpt4v_score", pa.int64(), "a judge's rating of org_caption, 1-5"),
    ("re_caption_condition_diverse_topk", pa.string(), "a caption that was conditioned on the original text"),
    ("re_condition_length", pa.int64(), "words of that caption"),
    ("image_sha256", pa.string(), "of the image file that was captioned: with which readers compare (recap.data)"),
]
_LENGTHS = {
    "re_length": "re_caption",
    "org_length": "org_caption",
    "re_condition_length": "re_caption_condition_diverse_topk",
}


KEPT = "of --keep"
_FROM_THIS_RUN = ("url", "re_caption", "org_caption", "sha256", "key", "image_sha256")
_FOR_CARD = ("key", "org_caption", "re_caption", "re_length", "org_length", "tokens", "finish", "lint")


@dataclass(frozen=True)
class Selection:
    """Which columns and rows are written.

    schema: of the files. wide: the same with the columns that the condition and the card need.
    where: the condition of `--where`.
    fields: the fields of the run's own column that are in `wide`.
    keep: the run of `--keep`; only samples whose row there is ok are written.
    """

    schema: pa.Schema
    wide: pa.Schema
    where: Where | None
    fields: tuple[str, ...]
    keep: OtherRun | None = None

    def unfilled(self, added: Iterable[str]) -> str:
        """A hint where a column of the condition is null in all rows, since nothing fills it; else ""."""
        filled = {*added, *self.fields, *_FROM_THIS_RUN}
        filled |= {name for name, text in _LENGTHS.items() if text in filled}
        empty = [name for name in (self.where.columns if self.where else ()) if name not in filled]
        return f"{empty[0]} is null in all rows: --add {empty[0]}=RUN:FIELD takes it from another run" if empty else ""


def select(source: Published, columns: str = "", condition: str = "") -> Selection:
    """The selection that `--columns` and `--where` ask for, out of the published columns and the run's own fields.

    Raises:
        UserError: there is no such column, or the condition cannot be parsed.
    """
    fields = [pa.field(name, kind, nullable=True, metadata={"about": about}) for name, kind, about in COLUMNS]
    first = next(iter(source), None)
    own = [f for f in (first.table().schema if first else []) if f.name not in {known.name for known in fields}]
    everything = pa.schema([*fields, *own])
    names = [name.strip() for name in columns.split(",") if name.strip()] or [field.name for field in fields]
    for name in names:
        if name not in everything.names:
            raise UserError(f"export: --columns: no column {name!r}. {nearest(name, everything.names)}")
        if names.count(name) > 1:
            raise UserError(f"export: --columns names {name!r} twice.")
    where = parse(condition, everything) if condition.strip() else None
    about = {"schema_version": VERSION, "column": source.column, "identity": source.identity}
    target = pa.schema([everything.field(name) for name in names], about | ({"where": condition} if where else {}))
    used = {*names, *(where.columns if where else ()), *_FOR_CARD}
    wide = pa.schema([field for field in everything if field.name in used])
    return Selection(target, wide, where, tuple(field.name for field in own if field.name in used))


def rows(
    shard: PublishedShard,
    selection: Selection,
    others: dict[str, OtherRun],
    same: SameImages,
    downloads: Downloads | None,
) -> pa.Table:
    """The captioned samples of one shard that the selection takes, in its wide schema.

    Args:
        others: by column of the export, a field of another run, joined row by row (keys must be equal).
        same: compares the images that the columns were made from.
        downloads: joins the downloader's metadata; None: none of it is wanted.
    """
    table = shard.table(list(dict.fromkeys(["key", "sha256", "text", "caption", "status", *selection.fields])))
    found: dict[str, Any] = {name: table[name] for name in selection.fields} | {
        "key": table["key"],
        "re_caption": table["caption"],
        "org_caption": table["text"],
        "sha256": table["sha256"],
        "image_sha256": table["sha256"],
    }
    for name, value in (downloads.read(shard, table["key"].to_pylist()) if downloads else {}).items():
        found[name] = pc.coalesce(value, found[name]) if name in found else value
    read = {name: added.read(shard.shard, table["key"]) for name, added in others.items()}
    kept = {KEPT: selection.keep.read(shard.shard, table["key"])} if selection.keep else {}
    _compare(same, shard, table, read | kept)
    found |= {name: pa.array(values.values) for name, values in read.items()}
    for name, text in _LENGTHS.items():
        if text in found and name not in found:
            found[name] = _words(found[text])
    wide = selection.wide
    whole = {f.name: _cast(found[f.name], f) if f.name in found else pa.nulls(len(table), f.type) for f in wide}
    written = pc.equal(table["status"], OK)
    if kept:
        written = pc.and_(written, pa.array([status == OK for status in kept[KEPT].values]))
    captioned = pa.table(whole, schema=wide).filter(written)
    return selection.where.keep(captioned) if selection.where else captioned


def _cast(values: Any, field: pa.Field) -> Any:
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise UserError(f"export: {field.name}: cannot become {field.type}: {error}") from error


def _words(texts: Any) -> pa.Array:
    return pa.array([None if t is None else len(t.split()) for t in texts.to_pylist()], pa.int64())


class OtherRun:
    """A field of another run over the same tars."""

    def __init__(self, run: str, field: str) -> None:
        self.run, self._field, self.published = run, field, Published(run)
        self._origins = Origins(field, run, self.published.shards)

    def lacks(self, shards: Iterable[Shard]) -> list[str]:
        """Ids of shards that the other run does not have, or has not finished."""
        found = ((shard, self._origins.find(shard)) for shard in shards)
        return [shard.id for shard, origin in found if origin is None or origin.shard.id not in self.published]

    def read(self, shard: Shard, keys: Any) -> Values:
        """The values of a shard's samples. UserError where the other run has other samples, or no such field."""
        origin = self._origins.find(shard)
        other = self.published.find(origin.shard.id) if origin else None
        if origin is None or other is None:
            return Values([None] * len(keys), [None] * len(keys))
        table = other.table()
        if self._field not in table.column_names:
            known = ", ".join(table.column_names)
            raise UserError(f"export: the column of {self.run} has no field {self._field!r}. It has {known}.")
        if table["key"] != keys:
            raise UserError(f"export: {shard.id}: {self.run} has other samples. Are both runs of one input?")
        digests = digest_field(table.schema)
        return Values(table[self._field].to_pylist(), table[digests].to_pylist() if digests else None, origin.doubt)


def _compare(same: SameImages, shard: PublishedShard, table: pa.Table, others: dict[str, Values]) -> None:
    keys, own = table["key"].to_pylist(), table["sha256"].to_pylist()
    for start in range(0, len(keys) if others else 0, BLOCK):
        part = slice(start, start + BLOCK)
        columns = {"of this run": Values([], own[part])}
        for name, values in others.items():
            columns[name] = Values([], values.digests and values.digests[part], values.doubt)
        same.check(shard.shard.id, keys[part], [{}] * len(keys[part]), columns)
