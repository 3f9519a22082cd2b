"""A table's rows as samples: which column is the image, the text, the key, and what becomes of the others.

The image column is a struct of `bytes` and `path`, as `datasets` writes it, or a binary column: the first that
`data.image` names, else the only one there is, or of several the one called `image`. A text column is the member of its
name. Where `txt` is wanted and there is none, the column `text` or `caption` is taken. The member `json` is an object
of the row's other columns, as downloaders write one beside each image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from hpc.base.errors import ShardError, UserError
from hpc.operator import Damage, MissingShards, Shard
from recap.data.blocks import BLOCK
from recap.data.kind import Wanted
from recap.data.tars import Sample

PATH_ALONE = "a path without its bytes"
KEPT = 256 << 20  # bytes of rows that a process keeps in memory for later blocks
FOR_TEXT = ("text", "caption")  # columns that stand for the member txt
_BATCH = 32 << 20  # bytes of rows that are decoded at a time
_LOOKED_AT = 16  # files whose columns are looked at when a run is planned
_MAGIC = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


def image_type(data: bytes) -> str:
    """The extension that an image file's first bytes ask for; jpg where they say nothing.

    >>> image_type(b"\\x89PNG\\r\\n"), image_type(b"RIFF....WEBPVP8 "), image_type(b"")
    ('png', 'webp', 'jpg')
    """
    if data.startswith(b"\xff\xd8"):
        return "jpg"
    if data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((extension for magic, extension in _MAGIC if data.startswith(magic)), "jpg")


class Layout:
    """What each of a table's columns is used for.

    image, key: names of their columns, None where there is none.
    problem: why there is no image column.
    members: names of columns, by the member that they become.
    columns: names of all columns that are read.

    Args:
        wanted: what is wanted of the rows.
    """

    def __init__(self, schema: pa.Schema, wanted: Wanted) -> None:
        self._wanted, self._schema = wanted, schema
        self._named: dict[str, str] = {}  # columns by their names in lower case, as members are
        for name in schema.names:
            self._named.setdefault(name.lower(), name)
        self.image, self.problem = self._find_image() if wanted.image else (None, "")
        own = (self.image or "").lower()
        self._named_image = own if wanted.members is not None and own in wanted.image else ""
        self.key = self._named.get(wanted.key.lower()) if wanted.key else None
        self.members = self._find_members()
        self._json = self._others() if self._wants_json() else []
        read = [self.image, self.key, *self.members.values(), *self._json]
        self.columns: list[str] = list(dict.fromkeys(name for name in read if name is not None))

    def describe(self) -> str:
        """Which columns are read, for people."""
        parts = [f"images in `{self.image}`"] if self.image else []
        parts += [f"{member} in `{name}`" for member, name in self.members.items() if self._wanted.members]
        parts += [f"keys in `{self.key}`"] if self.key else []
        return ", ".join(parts)

    def schema_in_words(self) -> str:
        return ", ".join(f"{field.name} ({field.type})" for field in self._schema)[:600]

    # --- which column -------------------------------------------------------------------------

    def _find_image(self) -> tuple[str | None, str]:
        """(the image column, ""), or (None, why there is none)."""
        named = (self._named[e.lower()] for e in self._wanted.image if e.lower() in self._named)
        if found := next((name for name in named if _holds_bytes(self._type(name))), None):
            return found, ""
        structs = [field.name for field in self._schema if pa.types.is_struct(field.type)]
        for names in ([n for n in structs if _holds_bytes(self._type(n))], self._binary()):
            if "image" in names or len(names) == 1:
                return ("image" if "image" in names else names[0]), ""
            if names:
                return None, f"several columns may hold the images ({', '.join(names)})"
        if paths := [name for name in structs if self._type(name).get_field_index("path") >= 0]:
            return None, f"column {paths[0]} holds paths alone, without the images' bytes"
        return None, "no column holds images"

    def _type(self, name: str) -> pa.DataType:
        return self._schema.field(name).type

    def _binary(self) -> list[str]:
        return [field.name for field in self._schema if _is_binary(field.type)]

    def _find_members(self) -> dict[str, str]:
        """Names of columns, by the member that they become."""
        wanted = self._wanted.members
        if wanted is None:
            others = [name for name in self._binary() if name != self.image]
            text = self._text()
            return {**({"txt": text} if text else {}), **{name.lower(): name for name in others}}
        found = {member: self._named[member] for member in sorted(wanted) if member in self._named}
        if "txt" in wanted and "txt" not in found and (text := self._text()):
            found["txt"] = text
        return found

    def _text(self) -> str | None:
        return next((self._named[name] for name in ("txt", *FOR_TEXT) if name in self._named), None)

    def _wants_json(self) -> bool:
        return "json" not in self._named and (self._wanted.members is None or "json" in self._wanted.members)

    def _others(self) -> list[str]:
        """Names of the columns that the member json holds: all but images and binary ones."""
        return [f.name for f in self._schema if f.name != self.image and not _holds_bytes(f.type)]

    # --- rows ---------------------------------------------------------------------------------

    def samples(self, batch: pa.RecordBatch, first: int, keys: Keys) -> Iterator[Sample]:
        """The rows of a batch as samples. first: number of its first row in the shard."""
        size = batch.num_rows
        images, paths = _images(batch.column(self.image)) if self.image else ([None] * size, [None] * size)
        own = self.own_keys(batch) if self.key else [None] * size
        members = {member: _members(batch.column(name)) for member, name in self.members.items()}
        if self._json:
            members["json"] = _objects(batch.select(self._json))
        for at in range(size):
            sample = keys.sample(own[at], first + at)
            sample.members = {name: cell for name, cells in members.items() if (cell := cells[at]) is not None}
            image = images[at]
            if image is not None:
                sample.members[self._member(image)] = image
            elif paths[at]:
                sample.odd[self._member(b"")] = PATH_ALONE
            yield sample

    def own_keys(self, batch: pa.RecordBatch) -> list[bytes | None]:
        """The values of the key column, as UTF-8."""
        return _texts(batch.column(str(self.key)))

    def lost(self, key: bytes | None, number: int, why: str, keys: Keys) -> Sample:
        """The sample of a row that cannot be read. why: a phrase for its `lost`, and for the `odd` of its members."""
        sample = keys.sample(key, number)
        sample.lost = why
        sample.odd = dict.fromkeys([*([self._member(b"")] if self.image else []), *self.members], why)
        return sample

    def _member(self, image: bytes) -> str:
        """The extension under which the reader looks for the image; that of its format where all members are wanted."""
        if self._named_image:
            return self._named_image
        extension, wanted = image_type(image), self._wanted
        return extension if wanted.members is None or extension in wanted.image else wanted.image[0]


def check_layouts(shards: Sequence[Shard], wanted: Wanted, schema: Callable[[Shard], pa.Schema | None]) -> str:
    """What a dry run says of tables, after looking at a few of them; see `Kind.check`.

    Args:
        schema: returns a shard's schema, None where the shard is damaged.
    """
    there = [shard for shard in shards if shard.etag != MissingShards.ETAG]
    most = 1 if any("://" in shard.uri for shard in there) else _LOOKED_AT
    seen: list[tuple[Shard, Layout]] = []
    for shard in there[:: max(len(there) // most, 1)]:
        try:
            found = schema(shard)
        except (OSError, ShardError):
            continue  # reported when the shard is worked on
        seen += [(shard, Layout(found, wanted))] if found is not None else []
    if not seen:
        return ""
    first, layout = seen[0]
    lacks = f"{layout.problem}. Write data.image=[COLUMN]" if wanted.image and layout.image is None else ""
    lacks = lacks or (f"no column is called {wanted.key}. Correct data.key" if wanted.key and not layout.key else "")
    if lacks:
        raise UserError(f"data: {first.uri}: {lacks}. Its columns: {layout.schema_in_words()}.")
    others = [shard.uri for shard, other in seen if other.columns != layout.columns]
    told = f"other columns in {len(others)} of {len(seen)} that were looked at, as {others[0]}" if others else ""
    return "; ".join(filter(None, (layout.describe(), told)))


class Reading:
    """One pass over a shard's rows. damages: what was found wrong, which readers of the file add to."""

    def __init__(self, schema: pa.Schema, wanted: Wanted) -> None:
        self.layout, self._wanted, self.damages = Layout(schema, wanted), wanted, list[Damage]()
        self.keys = Keys(self.layout.key is not None)

    def samples(self, batch: pa.RecordBatch, first: int) -> Iterator[Sample]:
        """The rows of a batch as samples. first: number of its first row in the shard."""
        return self.layout.samples(batch, first, self.keys)

    def lost(self, first: int, count: int, why: str, own: Sequence[bytes | None] | None = None) -> Iterator[Sample]:
        """Samples for rows that cannot be read, or of which only the key is wanted. own: their keys, where known."""
        for at in range(count):
            yield self.layout.lost(own[at] if own else None, first + at, why, self.keys)

    def damage(self) -> Damage | None:
        """What is wrong with the shard, None where it is whole. To be asked after all rows were read."""
        found = []
        if self._wanted.image and self.layout.image is None:
            found.append(Damage("images: no such column", self.layout.problem))
        if self._wanted.key and self.layout.key is None:
            found.append(Damage("keys: no such column", f"{self._wanted.key}: the keys are the rows' numbers"))
        found += self.damages
        if not found:
            return None
        more = f"; {len(found) - 1:,} more places" if len(found) > 1 else ""
        return Damage(found[0].reason, found[0].detail + more)


def batch_rows(size: int, rows: int) -> int:
    """How many rows to decode at a time, where `rows` rows have `size` bytes."""
    return max(1, min(BLOCK, _BATCH * rows // max(size, 1)))


def raise_unless_damage(error: Exception) -> None:
    """Raise `error` again where it comes from the file system (it has an errno) and not from the file's content."""
    if isinstance(error, OSError) and error.errno:
        raise error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Keys:
    """Makes samples with keys, and marks duplicate keys as a problem.

    Args:
        own: whether a column holds the keys. Else they are the rows' numbers, of which none is a duplicate.
    """

    def __init__(self, own: bool) -> None:
        self._seen: set[str] | None = set() if own else None

    def sample(self, own: bytes | None, number: int) -> Sample:
        """A sample without members. own: its key in the column; None or empty: the key is its number, zero-padded."""
        key = own.decode("utf-8", "replace") if own else f"{number:08d}"
        if self._seen is None:
            return Sample(key)
        back = key in self._seen
        self._seen.add(key)
        return Sample(key, problems=["key: duplicate"] if back else [])


def _is_binary(kind: pa.DataType) -> bool:
    tests: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column can hold image files: binary, or a struct with binary `bytes`."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind)


def _plain(column: pa.Array) -> pa.Array:
    """The column with dictionary encoding and extension types removed."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _images(column: pa.Array) -> tuple[list[bytes | None], list[bytes | None]]:
    """(bytes of each row's image, path of each row's image)"""
    column = _plain(column)
    if not pa.types.is_struct(column.type):
        return column.to_pylist(), [None] * len(column)
    import pyarrow.compute as pc  # 0.1 s: a launch reads no rows

    at = column.type.get_field_index("path")
    none: list[bytes | None] = [None] * len(column)
    paths = _texts(pc.struct_field(column, [at])) if at >= 0 else none
    return pc.struct_field(column, [column.type.get_field_index("bytes")]).to_pylist(), paths


def _texts(column: pa.Array) -> list[bytes | None]:
    """Values as UTF-8. They are not decoded here, since a text column may hold bytes that are not UTF-8."""
    column = _plain(column)
    if _is_text(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    if _is_binary(column.type):
        return column.to_pylist()
    return [None if value is None else str(value).encode() for value in column.to_pylist()]


def _members(column: pa.Array) -> list[bytes | None]:
    """Values as a tar's members would hold them: texts as they are, lists of texts joined by newlines, others as
    JSON."""
    column = _plain(column)
    if _is_text(column.type) or _is_binary(column.type):
        return _texts(column)
    if pa.types.is_struct(column.type) and _holds_bytes(column.type):
        return _images(column)[0]
    values = column.to_pylist()
    if pa.types.is_list(column.type) and _is_text(column.type.value_type):
        return [None if v is None else "\n".join(line for line in v if line is not None).encode() for v in values]
    return [None if value is None else _json(value) for value in values]


def _objects(batch: pa.RecordBatch) -> list[bytes | None]:
    """Each row as a JSON object."""
    cells = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return [_json({name: values[at] for name, values in cells.items()}) for at in range(batch.num_rows)]


def _values(column: pa.Array) -> list[Any]:
    if _is_text(column.type):
        return [None if data is None else data.decode("utf-8", "replace") for data in _texts(column)]
    return column.to_pylist()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
