"""A frozen list of a folder's image files. A run reads the images on its lists, whatever is added to the folder later.

One JSON object a line: first the folder, then an image each, with the files beside it and its row of the folder's
metadata. Paths are relative to the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from hpc.base import atomic
from hpc.base.errors import ShardError

ENDING = ".files"
VERSION = 1


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file as it was when it was listed. size: bytes. time: of its last change, or its ETag."""

    path: str
    size: int
    time: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample.

    beside: files of the same name with other extensions, by extension.
    row: the image's row of the folder's metadata, None where there is none.
    """

    key: str
    image: ListedFile
    beside: dict[str, ListedFile] = field(default_factory=dict)
    row: dict[str, Any] | None = None

    def line(self) -> bytes:
        return atomic.as_json(asdict(self)) + b"\n"


def content(folder: str, entries: Iterable[Entry]) -> bytes:
    """The bytes of a list's file."""
    head = atomic.as_json({"version": VERSION, "folder": folder}) + b"\n"
    return head + b"".join(entry.line() for entry in entries)


def digest(entries: Iterable[Entry]) -> str:
    """16 hex digits of a hash of names, sizes, times and metadata. It serves as the list's version (ETag)."""
    made = hashlib.sha256()
    for entry in entries:
        made.update(entry.line())
    return made.hexdigest()[:16]


def read_folder(file: IO[bytes], uri: str) -> str:
    """The folder, from a list's first line. ShardError where the file is no list."""
    try:
        head = json.loads(file.readline())
        if head["version"] != VERSION:
            raise ValueError(f"version {head['version']}, this code reads {VERSION}")
        return str(head["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError("list: not a list of files", f"{uri}: {error}") from error


def read_entries(file: IO[bytes], uri: str) -> Iterator[tuple[int, Entry]]:
    """(first byte of its line, entry) from the file's position on. ShardError where a line cannot be read."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line:
            return
        try:
            found = json.loads(line)
            beside = {extension: ListedFile(**other) for extension, other in found["beside"].items()}
            entry = Entry(found["key"], ListedFile(**found["image"]), beside, found["row"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError("list: damaged", f"{uri}: at byte {at:,}: {error}") from error
        yield at, entry
