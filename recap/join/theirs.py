"""Reads their files, parquet or csv with a text and an identifier of its image, in batches of bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from hpc.base.remote_files import file_system
from recap.join.identifiers import RULES
from recap.model_files import file_digest

TEXTS = ("re_caption", "caption", "text")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_KINDS = (".parquet", *_CSV)
_BATCH = 8192  # rows
_CSV_BLOCK = 1 << 20  # bytes


@dataclass
class TheirsConfig:
    """Where the texts come from."""

    files: list[str] = execution([], "parquet or csv files (.csv, .tsv, gzipped or not): paths, globs, folders, URLs")
    text: str = semantic("", "their column of texts; empty: the first of re_caption, caption, text that they have")
    names: dict[str, str] = semantic({}, "their columns of sha256, uid, url, key, where they are called otherwise")
    by: list[str] = semantic(
        [], "identifiers that count, strongest first; empty: sha256, uid, url where they have these, else key"
    )


@dataclass(frozen=True)
class File:
    """One of their files. columns: the names of its columns, by role (text, sha256, ...)."""

    path: str
    columns: dict[str, str]
    digest: str


class Theirs:
    """All files of a config. by: the identifiers that count, strongest first. digest: hash of the files' digests.

    Raises:
        UserError: no such files, or one without a text or an identifier.
    """

    def __init__(self, config: TheirsConfig) -> None:
        wrong = [rule for rule in [*config.by, *config.names] if rule not in (*RULES, "text")]
        if wrong:
            raise UserError(f"config: `theirs`: {wrong[0]!r} is no identifier. Write some of {', '.join(RULES)}.")
        paths = _matching_files(config.files)
        with ThreadPoolExecutor(8) as pool:
            schemas = list(pool.map(_schema, paths))
            digests = list(pool.map(_digest, paths))
        found = [_roles(path, schema.names, config) for path, schema in zip(paths, schemas, strict=True)]
        first = next(role for role in ({*names} for names in found))
        self.by = list(config.by) or [rule for rule in RULES[:-1] if rule in first] or ["key"]
        self.files = []
        for path, schema, roles, digest in zip(paths, schemas, found, digests, strict=True):
            wanted = {role: name for role, name in roles.items() if role in ("text", *self.by)}
            if len(wanted) < 2:
                raise UserError(
                    f"join: {path} has no column for {' or '.join(self.by)}: it has {', '.join(schema.names)}. Name "
                    f"it: theirs.names.{self.by[0]}=COLUMN, or set theirs.by."
                )
            if nested := [name for name in wanted.values() if pa.types.is_nested(schema.field(name).type)]:
                kind = schema.field(nested[0]).type
                raise UserError(f"join: {path}: column {nested[0]} is {kind}, which is no text. Name another.")
            self.files.append(File(path, wanted, digest))
        self.digest = hashlib.sha256("".join(file.digest for file in self.files).encode()).hexdigest()


def batches(file: File) -> Iterator[pa.Table]:
    """The rows of a file, as tables with a string column for each role.

    Raises:
        UserError: the file cannot be read.
    """
    names = list(file.columns.values())
    try:
        for batch in _csv(file.path, names) if file.path.endswith(_CSV) else _parquet(file.path, names):
            found = {role: batch[name] for role, name in file.columns.items()}
            yield pa.table({role: _texts(role, values) for role, values in found.items()})
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"join: {file.path} cannot be read: {str(error).splitlines()[0]}") from error


def _texts(role: str, values: pa.Array) -> pa.Array:
    """A column as strings. A sha256 of 32 bytes becomes hex."""
    if role == "sha256" and not isinstance(values, pa.StringArray):
        values = pa.array([v.hex() if isinstance(v, bytes) and len(v) == 32 else v for v in values.to_pylist()])
    return values.cast(pa.string())


def _parquet(path: str, names: list[str]) -> Iterator[pa.RecordBatch]:
    system, place = file_system(path)
    with ExitStack() as stack:
        # Local files are opened by Arrow itself, since reading through a Python file fragments memory.
        source = place if "://" not in path else stack.enter_context(system.open(place, "rb"))
        file = stack.enter_context(pq.ParquetFile(source, buffer_size=1 << 20))
        yield from file.iter_batches(_BATCH, columns=names, use_threads=False)


def _csv(path: str, names: list[str] | None) -> Any:
    """A reader of a csv file that reads all values as strings, so that keys keep their leading zeros."""
    system, place = file_system(path)
    source = pa.input_stream(system.open(place, "rb"), compression="gzip" if path.endswith(".gz") else None)
    kinds = {name: pa.string() for name in names or []}
    return pyarrow.csv.open_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in path[-7:] else ",", newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=names, column_types=kinds, strings_can_be_null=True, null_values=[""]
        ),
    )


def _matching_files(patterns: list[str]) -> list[str]:
    found: list[str] = []
    for pattern in patterns:
        system, place = file_system(pattern)
        if system.isdir(place):
            names = [name for name in system.find(place) if name.endswith(_KINDS)]
        else:
            names = system.glob(place) if any(c in place for c in "*?[") else [place] if system.exists(place) else []
        if not names:
            raise UserError(f"config: `theirs.files`: {pattern} finds no parquet or csv file.")
        found += [system.unstrip_protocol(name) if "://" in pattern else name for name in sorted(names)]
    if not found:
        raise UserError(
            "config: `theirs.files` is empty: name parquet or csv files with a text and sha256, url or key."
        )
    if strange := [name for name in found if not name.endswith(_KINDS)]:
        raise UserError(f"config: `theirs.files`: {strange[0]} is neither {', '.join(_KINDS[:-1])} nor {_KINDS[-1]}.")
    return list(dict.fromkeys(found))


def _schema(path: str) -> pa.Schema:
    try:
        if path.endswith(_CSV):
            with _csv(path, None) as reader:
                return reader.schema
        system, place = file_system(path)
        with system.open(place, "rb") as source:
            return pq.read_schema(source)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"join: {path} cannot be read: {str(error).splitlines()[0]}") from error


def _digest(path: str) -> str:
    """sha256 of a local file's content, or of a remote file's name, size and version."""
    if "://" not in path:
        return file_digest(Path(path))
    system, place = file_system(path)
    facts = system.info(place)
    version = facts.get("ETag") or facts.get("etag") or facts.get("mtime") or facts.get("LastModified") or ""
    return hashlib.sha256(f"{path}\0{facts.get('size')}\0{version}".encode()).hexdigest()


def _roles(path: str, names: list[str], config: TheirsConfig) -> dict[str, str]:
    """The names of a file's columns by role. UserError where it has no text column, or lacks one that is named."""
    asked = {**{rule: rule for rule in RULES}, **config.names}
    text = config.text or config.names.get("text") or next((name for name in TEXTS if name in names), "")
    for role, name in {"text": text, **config.names}.items():
        if name not in names:
            near = get_close_matches(name, names, n=1) if name else []
            hint = f" Did you mean {near[0]!r}?" if near else ""
            key = "theirs.text" if role == "text" else f"theirs.names.{role}"
            raise UserError(
                f"join: {path} has no column {name or ' or '.join(TEXTS)!r} ({key}).{hint} It has {', '.join(names)}."
            )
    return {"text": text, **{rule: asked[rule] for rule in RULES if asked[rule] in names}}
